"""What the contract suites run against: every implementation of a seam, by name."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kserve_local.backends.docker import DockerBackend
from kserve_local.backends.group import BackendGroup
from kserve_local.backends.process import ProcessBackend
from kserve_local.interfaces.backend import (
    Backend,
    Build,
    ContainerSpec,
    Mount,
    Probe,
    Program,
    ReplicaSpec,
)
from kserve_local.settings import Settings

SERVER = Path(__file__).parents[1] / "fakes" / "oip_server.py"
DOCKER_IMAGE = "python:3.11-slim"
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
    in_docker: bool = False

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
        if self.in_docker:
            values |= {
                "image": DOCKER_IMAGE,
                "program": None,
                "command": ("python3", "-u"),
                "argv": ("python3", "-u", "/fake/oip_server.py", *arguments),
                # Tests put files into it that change how the server answers.
                "mounts": (
                    Mount("/fake", SERVER.parent),
                    Mount(str(self.settings.project.parent), self.settings.project.parent),
                ),
            }
        return ContainerSpec(**(values | more))  # type: ignore[arg-type]  # test shorthand

    def of_source(
        self, folder: Path, *argv: str, live: str, name: str = "kserve-container"
    ) -> ContainerSpec:
        """Return a container that runs the user's own code, `python ARGV` in `folder`.

        Args:
            live: What of the folder a container sees as it is now.
        """
        container = self.container(name=name, readiness=Probe("tcp", port=8080, period=0.1))
        if not self.in_docker:
            assert container.program is not None  # `container` gives it one
            program = replace(container.program, argv=argv, cwd=folder)
            return replace(container, program=program)
        build = Build(context=folder, command=("python3", *argv), reload=(live,))
        return replace(container, image="fake/code:1", command=(), argv=(), mounts=(), build=build)

    def without_a_program(self, container: ContainerSpec) -> ContainerSpec:
        """Return the container as one that this backend has nothing to run for."""
        if self.in_docker:
            return replace(container, image="nobody/made:this", pull="Never")
        return replace(container, program=None)

    @property
    def started_how(self) -> str:
        """What a container's status says of its start."""
        return "container" if self.in_docker else "zygote" if self.preload else "process"

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


def inner_pid(pid: int | None) -> int:
    """Return a process's number as it sees it itself: another one in a container."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


@pytest.fixture(
    params=[
        "process",
        "process-zygote",
        "group",
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("group-docker", marks=pytest.mark.docker),
    ]
)
async def world(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[World]:
    """One world per implementation: plain processes, forks of a zygote, containers, and
    the group that has both."""

    async def open_process() -> Backend:
        return await ProcessBackend.open(settings)

    async def open_docker() -> Backend:
        return await DockerBackend.open(settings)

    async def open_group() -> Backend:
        return await BackendGroup.open(settings)

    preload = ("http.server", "argparse") if request.param == "process-zygote" else ()
    opens = {"group": open_group, "group-docker": open_group, "docker": open_docker}
    open_ = opens.get(request.param, open_process)
    made = World(settings, open_, preload, in_docker=request.param.endswith("docker"))
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
