#!/usr/bin/env python3
"""Judge our model servers by the recorded KServe answers: `make conformance`.

    python tests/conformance/run.py [--show-diff] [--strict] [--keep] [--backend docker]
    python tests/conformance/run.py --base-url http://127.0.0.1:8080 --grpc 127.0.0.1:8080 \
        --host '{model}.default.example.com'             # whatever serves them already

Trains the models, starts sklearnserver, xgbserver, lgbserver and `echo_port.py` as
`deployments.json` says, and replays every case of `oip_rest.jsonl` and `oip_grpc.jsonl` for those
deployments with `replay.py`. The last line is `N/M match`, M the full count of their non-advisory
cases; the exit status is 0 only if N == M. `KSERVE_LOCAL_CONFORMANCE=DIR` takes the cases from
another folder; fewer cases than `EXPECTED` is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).resolve().parent

# Non-advisory cases per deployment that our own servers answer, over REST and over gRPC.
EXPECTED = {
    "sklearn-iris": 113,
    "sklearn-proba": 7,
    "sklearn-reg": 2,
    "sklearn-text": 9,
    "sklearn-strlabel": 1,
    "sklearn-repo": 52,
    "xgb-iris": 33,
    "xgb-reg": 8,
    "lgb-iris": 6,
    "lgb-reg": 3,
    "docs": 8,
    "echo": 656,
}
EXPECTED_GRPC = {
    "sklearn-iris": 29,
    "sklearn-repo": 13,
    "xgb-iris": 15,
    "xgb-reg": 3,
    "lgb-iris": 1,
    "lgb-reg": 2,
    "echo": 202,
}
# Where a deployment can be reached: keys as in replay.py's targets.json ("http", "grpc", "host").
Targets = Mapping[str, Mapping[str, str]]


class TooFewCases(Exception):
    """The corpus is missing or has lost cases; a good result would mean nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a replay found."""

    passed: int
    failed: int
    advisory_passed: int
    advisory_failed: int
    problems: tuple[tuple[dict[str, Any], list[str]], ...]
    counted: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """Non-advisory cases."""
        return self.passed + self.failed


def corpus_folder() -> Path:
    """Return the folder of the recorded cases."""
    return Path(os.environ.get("KSERVE_LOCAL_CONFORMANCE") or HERE)


def load_cases(
    folder: Path,
    expected: Mapping[str, int] = EXPECTED,
    expected_grpc: Mapping[str, int] | None = EXPECTED_GRPC,
) -> list[dict[str, Any]]:
    """Return the deployments' cases, those over REST first, in file order.

    Args:
        expected: Deployments, and how many non-advisory cases they have over REST.
        expected_grpc: The same over gRPC, where there are any; None: leave gRPC out.

    Raises:
        TooFewCases: A deployment has fewer non-advisory cases than it is known to have.
    """
    deployments = tuple(expected)
    cases = _read_cases(folder / "oip_rest.jsonl", deployments, expected)
    if expected_grpc is not None:
        cases += _read_cases(folder / "oip_grpc.jsonl", deployments, expected_grpc)
    return cases


def _read_cases(
    path: Path, deployments: Sequence[str], expected: Mapping[str, int]
) -> list[dict[str, Any]]:
    if not path.is_file():
        raise TooFewCases(f"no {path}")
    with path.open(encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines if line.strip()]
    cases = [case for case in cases if case["model"] in deployments]
    for name in deployments:
        known = expected.get(name, 0)
        found = sum(1 for c in cases if c["model"] == name and not c.get("advisory"))
        if found < known:
            raise TooFewCases(f"{path}: deployment {name} has {found} cases, {known} are known")
    return cases


def replayer() -> ModuleType:
    """Return `replay.py` of this folder as a module."""
    spec = importlib.util.spec_from_file_location("conformance_replay", HERE / "replay.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def replay(
    cases: Sequence[Mapping[str, Any]], targets: Targets, *, strict: bool = False
) -> Outcome:
    """Send the cases to their deployments, in order, and compare."""
    module = replayer()
    rest, grpc = module.Rest(30), None
    counts = {(False, True): 0, (False, False): 0, (True, True): 0, (True, False): 0}
    problems = []
    try:
        for case in cases:
            target = targets[case["model"]]
            if "request_b64" in case:
                grpc = grpc or module.Grpc(30)
                found = module.check_grpc(case, grpc.send(target, case), strict)
            else:
                found = module.check_rest(case, rest.send(target, case), strict)
            counts[bool(case.get("advisory")), not found] += 1
            if found:
                problems.append((dict(case), found))
    finally:
        if rest.client is not None:
            rest.client.close()
        for channel in grpc.channels.values() if grpc is not None else ():
            channel.close()
    return Outcome(
        counts[False, True],
        counts[False, False],
        counts[True, True],
        counts[True, False],
        tuple(problems),
        frozenset(str(c["id"]) for c in cases if not c.get("advisory")),
    )


def train(out: Path) -> None:
    """Write the model files of `models/train_models.py` to `out`."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(HERE / "models" / "train_models.py"), str(out)],
        check=True,
        env=environment,
    )


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def servers(
    models: Path, logs: Path, deployments: Sequence[str] = tuple(EXPECTED)
) -> Iterator[Targets]:
    """Run our server for each deployment while the block is open."""
    described = json.loads((HERE / "deployments.json").read_text(encoding="utf-8"))
    processes: dict[str, subprocess.Popen[bytes]] = {}
    targets: dict[str, dict[str, str]] = {}
    try:
        for name in deployments:
            deployment = described["deployments"][name]
            port, grpc_port = free_port(), free_port()
            if "module" in deployment:
                command = [sys.executable, "-m", deployment["module"]]
            else:
                command = [sys.executable, str(HERE / "echo_port.py")]
            command += [
                argument.replace("{models}", str(models)) for argument in deployment["args"]
            ]
            command += [f"--http_port={port}", f"--grpc_port={grpc_port}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **deployment.get("env", {})}
            with (logs / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            targets[name] = {
                "http": f"http://127.0.0.1:{port}",
                "grpc": f"127.0.0.1:{grpc_port}",
            }
        for name, process in processes.items():
            wait_ready(targets[name]["http"], process, logs / f"{name}.log")
        yield targets
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path, limit: float = 90.0) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: It ended, or did not answer in time; with the end of its log.
    """
    deadline = time.monotonic() + limit
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            opener.open(f"{url}/v2/health/ready", timeout=5).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{log.stem} did not start:\n{log.read_text(errors='replace')[-2000:]}")


def report(title: str, outcome: Outcome, *, show_diff: bool) -> None:
    """Print what a replay found."""
    if show_diff:
        for case, found in outcome.problems:
            kind = "ADVISORY" if case.get("advisory") else "FAIL"
            print(f"{kind} {case['id']} [{case['model']}] {case['method']} {case.get('path', '')}")
            for problem in found[:8]:
                print("      ", problem)
    advisory = outcome.advisory_passed + outcome.advisory_failed
    print(
        f"{title}: {outcome.passed}/{outcome.total} match, "
        f"advisory {outcome.advisory_passed}/{advisory}"
    )


def run_direct(
    *, show_diff: bool, strict: bool, keep: bool, then: Callable[[Path], Outcome] | None = None
) -> list[Outcome]:
    """Start the servers, replay, and let `then` add a pass of its own over the same model files."""
    cases = load_cases(corpus_folder())
    state = Path(tempfile.mkdtemp(prefix="conformance-"))
    try:
        train(state / "models")
        with servers(state / "models", state) as targets:
            outcome = replay(cases, targets, strict=strict)
        report("direct", outcome, show_diff=show_diff)
        outcomes = [outcome]
        if then is not None:
            outcomes.append(then(state / "models"))
        return outcomes
    finally:
        if keep:
            print(f"models and logs: {state}")
        else:
            shutil.rmtree(state, ignore_errors=True)


def run_gateway(models: Path, show_diff: bool, strict: bool, backend: str) -> Outcome:
    """Serve the deployments as InferenceServices under `kserve-local up` and replay through it."""
    from tests.conformance.gateway import CUSTOM, CUSTOM_GRPC, served, write_project

    expected = {**EXPECTED, **CUSTOM}
    folder = Path(tempfile.mkdtemp(prefix="conformance-project-"))
    try:
        write_project(folder, models, HERE, tuple(expected))
        with served(folder, "--backend", backend, patient=backend == "docker") as url:
            cases = load_cases(corpus_folder(), expected, {**EXPECTED_GRPC, **CUSTOM_GRPC})
            outcome = replay(cases, by_name(url, expected), strict=strict)
        where = "through the gateway" + (", in Docker" if backend == "docker" else "")
        report(where, outcome, show_diff=show_diff)
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def by_name(url: str, deployments: Iterable[str]) -> Targets:
    """Return how deployments are reached behind the gateway at `url`."""
    # One port for both: a call's :authority is what Host is to a request.
    place = {"http": url, "grpc": urlsplit(url).netloc}
    return {n: {**place, "host": f"{n}.default.example.com"} for n in deployments}


def conclude(outcomes: Sequence[Outcome]) -> int:
    """Print what the passes come to, and return the exit status."""
    # A case counts once, and only if it matched in every pass that it was part of.
    counted = {case for outcome in outcomes for case in outcome.counted}
    failed = {str(c["id"]) for o in outcomes for c, _ in o.problems if not c.get("advisory")}
    print(f"{len(counted - failed)}/{len(counted)} match")
    return 1 if failed or not counted else 0


def main() -> int:
    """Replay and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base-url", help="replay against this address instead of own servers")
    parser.add_argument("--grpc", help="HOST:PORT for gRPC with --base-url")
    parser.add_argument(
        "--host", help="Host header and :authority with --base-url, {model} = deployment"
    )
    parser.add_argument("--show-diff", action="store_true", help="print what differs")
    parser.add_argument("--strict", action="store_true", help="compare status-only bodies too")
    parser.add_argument(
        "--direct", action="store_true", help="leave out the pass through a gateway"
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "process", "docker"),
        help="what runs the services behind the gateway",
    )
    parser.add_argument("--keep", action="store_true", help="leave model files and logs")
    args = parser.parse_args()
    try:
        if args.base_url:
            targets = {
                name: {
                    "http": args.base_url,
                    **({"grpc": args.grpc} if args.grpc else {}),
                    **({"host": args.host.replace("{model}", name)} if args.host else {}),
                }
                for name in EXPECTED
            }
            cases = load_cases(corpus_folder(), EXPECTED, EXPECTED_GRPC if args.grpc else None)
            outcomes = [replay(cases, targets, strict=args.strict)]
            report(args.base_url, outcomes[0], show_diff=args.show_diff)
        else:
            outcomes = run_direct(
                show_diff=args.show_diff,
                strict=args.strict,
                keep=args.keep,
                then=None
                if args.direct
                else lambda models: run_gateway(models, args.show_diff, args.strict, args.backend),
            )
    except TooFewCases as error:
        print(error, file=sys.stderr)
        return 1
    return conclude(outcomes)


if __name__ == "__main__":
    sys.exit(main())
