"""Where an engine's networks are out of reach (rootless, or in a virtual machine) a Pod is reached
on ports of the loopback: here on an engine that is told to be one of those.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kserve_local.backends.docker import DockerBackend
from kserve_local.backends.docker_engine import Engine
from kserve_local.interfaces.backend import (
    ContainerSpec,
    Mount,
    Probe,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaStatus,
)
from kserve_local.settings import Settings
from tests.integration.project import ENGINE, ROOT, project
from tests.integration.test_podman import MANIFEST

pytestmark = pytest.mark.docker

SERVER = Path(__file__).parents[1] / "fakes" / "oip_server.py"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(Engine, "is_rootless", True)
    return Settings(
        project=tmp_path,
        state=tmp_path / ".kserve-local",
        cache=tmp_path / "cache",
        runtime=tmp_path / "s",
    )


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[DockerBackend]:
    backend = await DockerBackend.open(settings)
    try:
        yield backend
    finally:
        await backend.close(stop_replicas=True)


def container(settings: Settings) -> ContainerSpec:
    return ContainerSpec(
        name="kserve-container",
        image="python:3.11-slim",
        command=("python3", "-u"),
        argv=("python3", "-u", "/fake/oip_server.py"),
        log_path=settings.log_dir / "pod" / "kserve-container.log",
        ports=(("", 8080), ("", 9999)),
        readiness=Probe("http", port=8080, path="/v2/health/ready", period=1),
        mounts=(Mount("/fake", SERVER.parent),),
    )


async def event(backend: DockerBackend, kind: str) -> ReplicaEvent:
    async with asyncio.timeout(60):
        async for found in backend.events():
            if found.kind == kind:
                return found
    raise AssertionError("the backend closed")


async def pid_told(status: ReplicaStatus) -> object:
    url = f"http://127.0.0.1:{status.containers[0].ports[8080]}/facts"

    def fetch() -> object:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["pid"]

    return await asyncio.to_thread(fetch)


async def test_a_pod_is_reached_on_ports_of_the_loopback_which_it_keeps(
    backend: DockerBackend, settings: Settings
) -> None:
    one = container(settings)
    spec = ReplicaSpec(id="uid-1", namespace="default", pod="pod", containers=(one,), grace=1.0)
    await backend.start(spec)
    status = (await event(backend, "ready")).status
    ports = status.containers[0].ports
    assert status.ip == ""
    assert list(ports) == [8080, 9999]
    assert not {8080, 9999} & set(ports.values())
    assert await pid_told(status) == 1

    # They are the sandbox's: a container that is started again has them, too.
    assert status.containers[0].pid is not None
    os.kill(status.containers[0].pid, signal.SIGKILL)
    await event(backend, "exited")
    await backend.start_container("uid-1", one)
    again = (await event(backend, "ready")).status
    assert again.containers[0].ports == ports

    # What a new supervisor finds, while the first one still looks on.
    later = await DockerBackend.open(settings)
    try:
        [adopted] = await later.list()
        assert (adopted.ip, adopted.containers[0].ports) == ("", ports)
        await event(later, "ready")
        assert await pid_told(adopted) == 1
    finally:
        await later.close(stop_replicas=True)


# Every Python process of a project takes the engine for a rootless one.
TOLD = """from kserve_local.backends.docker_engine import Engine
Engine.is_rootless = True
"""


def test_the_gateway_reaches_such_a_pod_also_after_an_adoption(tmp_path: Path) -> None:
    folder, told = tmp_path / "any", tmp_path / "told"
    folder.mkdir()
    told.mkdir()
    (folder / "any.yaml").write_text(MANIFEST)
    (told / "sitecustomize.py").write_text(TOLD)
    paths = os.pathsep.join(map(str, (told, ROOT, ROOT / "runtimes")))
    with project(folder, env={"DOCKER_HOST": ENGINE, "PYTHONPATH": paths}) as own:
        own.up()
        assert own.call("/serving/default/any/", timeout=10) == (200, "own")
        [pod] = json.loads(own.run("get", "pods", "-o", "json").stdout)["items"]
        assert "podIP" not in pod["status"]
        os.kill(int(own.run_file["pid"]), signal.SIGKILL)
        own.run("up", "-d", "--wait")
        assert own.call("/serving/default/any/", timeout=10) == (200, "own")
