#!/usr/bin/env python3
"""The named subset of the judge for Docker: `python -m tests.conformance.docker`, in `.ci/run`.

Two projects. In the first every Pod is a container (`--backend docker`): sklearnserver and
`echo_port.py`, each asked for all of its recorded cases, REST and gRPC, at its container's own
address and through the gateway. The second is mixed (`--backend auto`): `tr-iris-v2` has local code
as its transformer and a container as its predictor, `tr-echo-grpc` the other way round, so a hop
crosses in either direction, over REST and over gRPC. The whole corpus in Docker is
`python -m tests.conformance.run --backend docker`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kserve_local.backends import docker_images
from tests.conformance.gateway import CUSTOM, CUSTOM_GRPC, served, write_project
from tests.conformance.run import (
    EXPECTED,
    EXPECTED_GRPC,
    HERE,
    Outcome,
    Targets,
    TooFewCases,
    by_name,
    conclude,
    corpus_folder,
    load_cases,
    replay,
    report,
    train,
)

SERVERS = ("sklearn-iris", "echo")
MIXED = ("tr-iris-v2", "tr-echo-grpc")
TRANSFORMER = "conformance/transformer:dev"
ECHO = "conformance/echo-model:dev"
# The echo server needs what our model servers need: their image, with another program.
_RECIPE = """FROM {base}
COPY echo_port.py /app/
ENTRYPOINT ["python", "/app/echo_port.py"]
"""


def kserve_local(folder: Path, *words: str) -> str:
    """Run a command of kserve-local on the project; returns what it prints on stdout."""
    tool = [sys.executable, "-m", "kserve_local.cli.main", "-C", str(folder)]
    return subprocess.run([*tool, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def amend(path: Path, **more: Any) -> dict[str, Any]:
    """Add to a file of JSON, and return what it holds then."""
    held: dict[str, Any] = {**json.loads(path.read_text()), **more}
    path.write_text(json.dumps(held, indent=1))
    return held


def addresses(folder: Path, deployments: tuple[str, ...]) -> Targets:
    """Return how the containers are reached at their own addresses."""
    found = {}
    for pod in json.loads(kserve_local(folder, "get", "pods", "-o", "json"))["items"]:
        name = pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"]
        if pod["metadata"]["annotations"].get("kserve-local.dev/backend") != "docker":
            raise SystemExit(f"{name} does not run in Docker")
        ip = pod["status"]["podIP"]
        found[name] = {"http": f"http://{ip}:8080", "grpc": f"{ip}:8081"}
    return {name: found[name] for name in deployments}


def run_servers(folder: Path, models: Path, *, show_diff: bool) -> list[Outcome]:
    """Serve models from containers, and ask each at its address and through the gateway."""
    folder.mkdir()
    write_project(folder, models, HERE, SERVERS)
    kserve_local(folder, "images", "build", "sklearnserver")
    echo = folder / "echo"
    echo.mkdir()
    shutil.copy(HERE / "echo_port.py", echo)
    base = docker_images.runtime("sklearnserver", os.environ).image
    (echo / "Dockerfile").write_text(_RECIPE.format(base=base))
    amend(folder / "kserve-local.yaml", images={ECHO: {"context": str(echo)}})
    cases = load_cases(
        corpus_folder(),
        {name: EXPECTED[name] for name in SERVERS},
        {name: EXPECTED_GRPC[name] for name in SERVERS},
    )
    with served(folder, "--backend", "docker", patient=True) as url:
        direct = replay(cases, addresses(folder, SERVERS))
        report("containers, direct", direct, show_diff=show_diff)
        through = replay(cases, by_name(url, SERVERS))
        report("containers, through the gateway", through, show_diff=show_diff)
    return [direct, through]


def run_mixed(folder: Path, models: Path, *, show_diff: bool) -> Outcome:
    """Serve pairs of a process and a container, and ask each through the gateway."""
    folder.mkdir()
    write_project(folder, models, HERE, MIXED)
    kserve_local(folder, "images", "build", TRANSFORMER)
    images = json.loads(kserve_local(folder, "images", "list", "--json"))["data"]["images"]
    built = next(i["image"] for i in images if i["name"] == TRANSFORMER and i["current"])
    services = json.loads((folder / "services.yaml").read_text())["items"]
    of_image = next(s for s in services if s["metadata"]["name"] == "tr-echo-grpc")
    # By this name it is no source of the project's any more, but an image like any other.
    of_image["spec"]["transformer"]["containers"][0]["image"] = built
    amend(folder / "services.yaml", items=services)
    amend(folder / "kserve-local.yaml", runtimes={"kserve-sklearnserver": {"backend": "docker"}})
    cases = load_cases(
        corpus_folder(),
        {name: CUSTOM[name] for name in MIXED},
        {name: CUSTOM_GRPC[name] for name in MIXED},
    )
    with served(folder, "--backend", "auto", patient=True) as url:
        places = where(folder)
        if places != EXPECTED_PLACES:
            raise SystemExit(f"not mixed as wanted: {places}")
        outcome = replay(cases, by_name(url, MIXED))
        report("process and container, through the gateway", outcome, show_diff=show_diff)
    return outcome


EXPECTED_PLACES = {
    ("tr-iris-v2", "transformer"): "process",
    ("tr-iris-v2", "predictor"): "docker",
    ("tr-echo-grpc", "transformer"): "docker",
    ("tr-echo-grpc", "predictor"): "process",
}


def where(folder: Path) -> dict[tuple[str, str], str]:
    """Return where each component runs."""
    return {
        (
            pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"],
            pod["metadata"]["labels"]["component"],
        ): pod["metadata"]["annotations"].get("kserve-local.dev/backend", "process")
        for pod in json.loads(kserve_local(folder, "get", "pods", "-o", "json"))["items"]
    }


def main() -> int:
    """Replay and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show-diff", action="store_true", help="print what differs")
    args = parser.parse_args()
    state = Path(tempfile.mkdtemp(prefix="conformance-docker-"))
    try:
        train(state / "models")
        outcomes = run_servers(state / "servers", state / "models", show_diff=args.show_diff)
        outcomes.append(run_mixed(state / "mixed", state / "models", show_diff=args.show_diff))
    except TooFewCases as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return conclude(outcomes)


if __name__ == "__main__":
    sys.exit(main())
