#!/usr/bin/env python3
"""Starting against KServe's server, in the same run: a replica, the whole `up`, and memory.

    python tests/bench/bench_start.py [--rounds 5]

Every round measures, in random order: the peer (`kserve_iris.py` on the installed `kserve`) from
process start to its first right answer; a replica forked from a warm zygote, likewise; and
`kserve-local up -d --wait` on the iris sample from the shell prompt until it returns, with the
environment in place and no state. Ratios are taken within a round; a row is their median. Memory is
USS (private pages) after 200 predictions.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kserve_local import settings
from kserve_local.backends.process import ProcessBackend
from kserve_local.controllers.standins import PRELOAD
from kserve_local.interfaces.backend import ContainerSpec, Program, ReplicaSpec

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parents[1] / "sample_models" / "sklearn-iris"
BODY = (SAMPLE / "request.json").read_bytes()
ANSWER = json.loads((SAMPLE / "expected.json").read_text())
TARGETS = {"replica": 0.05, "up": 1.0, "memory": 0.1}


def free_port() -> int:
    """Return a port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def predict(host: str, port: int, model: str) -> bool:
    """Call the model once; True for the right answer, False while nobody listens."""
    try:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"/v1/models/{model}:predict", BODY, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
    except OSError:
        return False
    return answer.status == 200 and json.loads(body) == ANSWER


def wait_answer(host: str, port: int, model: str, begun: float) -> float:
    """Return the seconds from `begun` to the first right answer."""
    while not predict(host, port, model):
        if time.monotonic() - begun > 60:
            raise TimeoutError(f"{model} at {host}:{port} did not answer within 60 s")
        time.sleep(0.001)
    return time.monotonic() - begun


def uss(pid: int) -> int:
    """Return the private bytes of a process."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total


def kserve(model_dir: Path) -> tuple[float, int]:
    """Return start to first answer of KServe's server, and its memory."""
    port = free_port()
    argv = [sys.executable, str(HERE / "kserve_iris.py"), "--model_name=iris"]
    # With gRPC, which our replicas serve as well.
    argv += [f"--model_dir={model_dir}", f"--http_port={port}", f"--grpc_port={free_port()}"]
    begun = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        seconds = wait_answer("127.0.0.1", port, "iris", begun)
        for _ in range(200):
            predict("127.0.0.1", port, "iris")
        return seconds, uss(process.pid)
    finally:
        process.terminate()
        process.wait()


async def replica(
    backend: ProcessBackend, folder: Path, model_dir: Path, n: int
) -> tuple[float, int]:
    """Return start to first answer of a replica forked from the warm zygote, and its memory."""
    address = f"127.127.250.{n}"
    argv = ("-m", "sklearnserver", "--model_name=iris", f"--model_dir={model_dir}")
    program = Program(
        kind="runtime",
        runtime="sklearnserver",
        argv=(*argv, "--http_port=8080"),
        preload=PRELOAD["sklearnserver"],
    )
    log = folder / f"replica-{n}.log"
    container = ContainerSpec(
        name="kserve-container", image="kserve/sklearnserver", argv=(), log_path=log,
        program=program, ports=(("", 8080),),
    )  # fmt: skip
    spec = ReplicaSpec(
        id=f"bench-{n}", namespace="default", pod=f"bench-{n}", containers=(container,), ip=address
    )
    begun = time.monotonic()
    await backend.start(spec)
    try:
        seconds = await asyncio.to_thread(wait_answer, address, 8080, "iris", begun)

        def calls() -> None:
            for _ in range(200):
                predict(address, 8080, "iris")

        await asyncio.to_thread(calls)
        (status,) = [s for s in await backend.list() if s.id == spec.id]
        if status.containers[0].started_how != "zygote":
            raise RuntimeError(f"the replica was not forked: {status.containers[0].note}")
        pid = status.containers[0].pid
        assert pid is not None
        return seconds, uss(pid)
    finally:
        await backend.stop(spec.id, grace=5)


def up(folder: Path) -> float:
    """Return how long `kserve-local up -d --wait` takes on a project without state."""
    tool = [sys.executable, "-m", "kserve_local.cli.main", "-C", str(folder), "-q"]
    script = Path(sys.executable).with_name("kserve-local")
    if script.exists():
        tool = [str(script), "-C", str(folder), "-q"]
    begun = time.monotonic()
    try:
        subprocess.run(
            [*tool, "up", "-d", "--wait", "--port", "auto", "--api-port", "auto"], check=True
        )
        return time.monotonic() - begun
    finally:
        subprocess.run([*tool, "down", "--volumes"], check=True)


async def measure(rounds: int) -> dict[str, list[float]]:
    """Return per figure the ratio to KServe of each round, and the figures themselves."""
    folder = Path(tempfile.mkdtemp(prefix="bench-start-"))
    project = folder / "project"
    shutil.copytree(SAMPLE, project, ignore=shutil.ignore_patterns(".kserve-local"))
    model_dir = project / "model"
    (folder / "backend").mkdir()
    configured = settings.load(folder / "backend", environ={**os.environ})
    from kserve_local.supervisor import statedir

    statedir.prepare(configured)
    backend = await ProcessBackend.open(configured)
    out: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        out.setdefault(name, []).append(value)

    try:
        number = 1
        await replica(backend, folder, model_dir, number)  # the zygote warms up with the first one
        await asyncio.to_thread(up, project)
        for _ in range(rounds):
            seconds: dict[str, float] = {}
            memory: dict[str, int] = {}
            kinds = ["kserve", "replica", "up"]
            random.shuffle(kinds)
            for kind in kinds:
                if kind == "kserve":
                    seconds[kind], memory[kind] = await asyncio.to_thread(kserve, model_dir)
                elif kind == "replica":
                    number += 1
                    seconds[kind], memory[kind] = await replica(backend, folder, model_dir, number)
                else:
                    seconds[kind] = await asyncio.to_thread(up, project)
            for kind, value in seconds.items():
                note(f"{kind} s", value)
                note(f"{kind} ratio", value / seconds["kserve"])
            note("memory ratio", memory["replica"] / memory["kserve"])
            note("kserve MiB", memory["kserve"] / 2**20)
            note("replica MiB", memory["replica"] / 2**20)
    finally:
        await backend.close(stop_replicas=True)
        shutil.rmtree(folder, ignore_errors=True)
    return out


def row(name: str, ratios: list[float], mine: str, peer: str, target: float) -> bool:
    """Print one row; False if the target is missed by more than twice."""
    middle = statistics.median(ratios)
    verdict = "ok" if middle <= target else "missed" if middle <= 2 * target else "MISSED"
    print(
        f"{name:<44} {middle:8.3f}x ({min(ratios):.3f}-{max(ratios):.3f})  "
        f"target <= {target}x  {verdict:<7} {mine} against {peer}"
    )
    return middle <= 2 * target


def main() -> int:
    """Measure and print; exit 1 if a target is missed by more than 2x."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = asyncio.run(measure(args.rounds))

    def middle(name: str, unit: str) -> str:
        return f"{statistics.median(found[name]):.3f} {unit}"

    peer = middle("kserve s", "s")
    good = [
        row("replica start to first answer (zygote)", found["replica ratio"],
            middle("replica s", "s"), peer, TARGETS["replica"]),
        row("up to Ready, from the shell prompt", found["up ratio"],
            middle("up s", "s"), peer, TARGETS["up"]),
        row("memory a replica adds (USS)", found["memory ratio"],
            middle("replica MiB", "MiB"), middle("kserve MiB", "MiB"), TARGETS["memory"]),
    ]  # fmt: skip
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
