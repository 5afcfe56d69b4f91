"""What the contract suites run against: every implementation of a seam, by name."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kserve_local.backends.process import ProcessBackend
from kserve_local.interfaces.backend import Backend, ContainerSpec, Probe, Program, ReplicaSpec
from kserve_local.settings import Settings

SERVER = Path(__file__).parents[1] / "fakes" / "oip_server.py"
_addresses = itertools.count(2)


def pod_address() -> str:
    """Return a loopback address that no other test process uses."""
    number = next(_addresses) + (os.getpid() % 4000) * 256
    return f"127.{100 + (number >> 16) % 27}.{number >> 8 & 255}.{number & 255}"


@dataclass
class World:
    """A project folder, and a way to open one more backend on it, as a new supervisor would."""

    settings: Settings
    open: Callable[[], Awaitable[Backend]]
    preload: tuple[str, ...]

    def container(
        self, *arguments: str, name: str = "kserve-container", **more: object
    ) -> ContainerSpec:
        """Return a container that runs the fake server."""
        probe = Probe("http", port=8080, path="/v2/health/ready")
        values: dict[str, object] = {
            "name": name,
            "image": "fake/oip:1",
            "argv": ("python", "oip_server.py", *arguments),
            "log_path": self.settings.log_dir / "pod" / f"{name}.log",
            "program": Program(
                kind="source",
                runtime="fake/oip:1",
                argv=(str(SERVER), *arguments),
                python=Path(sys.executable),
                preload=self.preload,
            ),
            "ports": (("http1", 8080),),
            "readiness": probe,
        }
        return ContainerSpec(**(values | more))  # type: ignore[arg-type]  # test shorthand

    def replica(self, *containers: ContainerSpec, id: str = "uid-1", ip: str = "") -> ReplicaSpec:
        """Return a replica of these containers on an address of its own."""
        return ReplicaSpec(
            id=id,
            namespace="default",
            pod=f"pod-{id}",
            containers=containers or (self.container(),),
            ip=ip or pod_address(),
            grace=5.0,
        )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty project."""
    project = tmp_path / "project"
    project.mkdir()
    return Settings(
        project=project,
        state=project / ".kserve-local",
        cache=tmp_path / "cache",
        runtime=tmp_path / "s",
    )


@pytest.fixture(params=["process", "process-zygote"])
async def world(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[World]:
    """One world per implementation: plain processes, and processes forked from a zygote."""

    async def open_process() -> Backend:
        return await ProcessBackend.open(settings)

    preload = ("http.server", "argparse") if request.param == "process-zygote" else ()
    made = World(settings, open_process, preload)
    yield made
    # Whatever a test left: a new backend finds it and ends it.
    left = await made.open()
    for status in await left.list():
        await left.stop(status.id, grace=0.0)
    await left.close(stop_replicas=True)


@pytest.fixture
async def backend(world: World) -> AsyncIterator[Backend]:
    """An open backend of that world."""
    opened = await world.open()
    yield opened
    await opened.close(stop_replicas=False)
