"""A Pod in Docker: start to first answer from a warm standby, against a plain start of the same
container.

    python -m tests.bench.bench_docker [--rounds N]

Both start the image of our sklearnserver with the iris sample through the Docker backend, one after
the other in every round. Builds the image where it is not there. Exit 1 if the target is missed by
more than 2x; without an engine the row says so, and exit is 7.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from kserve_local.backends.docker import DockerBackend
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import Build, ContainerSpec, Mount, Probe, ReplicaSpec
from kserve_local.settings import Settings
from tests.bench.bench_start import row, wait_answer

TARGET = 0.15
MODEL = Path(__file__).resolve().parents[2] / "sample_models" / "sklearn-iris" / "model"
_PATIENCE = 120.0


def pod(folder: Path, name: str) -> ReplicaSpec:
    """Return a Pod like every other of this bench but for its name."""
    container = ContainerSpec(
        name="kserve-container",
        image="kserve/sklearnserver",
        build=Build(server="sklearnserver"),
        command=("python",),
        argv=("python", "-m", "sklearnserver", "--model_name=iris", "--model_dir=/mnt/models"),
        log_path=folder / f"{name}.log",
        ports=(("", 8080),),
        mounts=(Mount("/mnt/models", MODEL),),
        readiness=Probe("tcp", port=8080),
    )
    return ReplicaSpec(id=name, namespace="default", pod=name, containers=(container,), grace=5.0)


async def first_answer(backend: DockerBackend, spec: ReplicaSpec) -> tuple[float, str]:
    """Return seconds from the start to the first answer, and the container's note."""
    begun = time.monotonic()
    await backend.start(spec)
    [status] = [s for s in await backend.list() if s.id == spec.id]
    seconds = await asyncio.to_thread(wait_answer, status.ip, 8080, "iris", begun)
    [status] = [s for s in await backend.list() if s.id == spec.id]
    return seconds, status.containers[0].note


async def has_standby(backend: DockerBackend) -> None:
    """Return once a Pod that is started has a standby to take."""
    async with asyncio.timeout(_PATIENCE):
        while not backend.standbys:  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(0.1)


async def measure(rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of warm and of plain starts, round by round."""
    folder = Path(tempfile.mkdtemp(prefix="bench-docker-"))
    settings = Settings(
        project=folder,
        state=folder / ".kserve-local",
        cache=folder / "cache",
        runtime=folder / "s",
    )
    warm: list[float] = []
    plain: list[float] = []
    backend = await DockerBackend.open(settings)
    try:
        await backend.prepare(pod(folder, "first").containers[0], lambda progress: None)
        for number in range(rounds):
            cold = replace(settings, standby=False, state=folder / "plain")
            other = await DockerBackend.open(cold)
            try:
                name = f"plain-{number}"
                plain.append((await first_answer(other, pod(folder, name)))[0])
            finally:
                await other.close(stop_replicas=True)
            if not backend.standbys:
                await first_answer(backend, pod(folder, f"seed-{number}"))
                await has_standby(backend)
                await backend.stop(f"seed-{number}", grace=5)
            seconds, note = await first_answer(backend, pod(folder, f"warm-{number}"))
            if not note:
                raise RuntimeError("the Pod was not started from its standby")
            warm.append(seconds)
            await has_standby(backend)
            await backend.stop(f"warm-{number}", grace=5)
    finally:
        await backend.close(stop_replicas=True)
        shutil.rmtree(folder, ignore_errors=True)
    return warm, plain


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    try:
        warm, plain = asyncio.run(measure(args.rounds))
    except Missing as error:
        print(f"Docker: {error} ({error.hint})")
        return 7
    ratios = [mine / peer for mine, peer in zip(warm, plain, strict=True)]
    good = row(
        "Docker: first answer with warm standby",
        ratios,
        f"{statistics.median(warm):.3f} s",
        f"{statistics.median(plain):.3f} s plain start",
        TARGET,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
