"""A Pod whose sandbox ends: noticed, rebuilt with a new one, and nothing of the old one left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kserve_local.backends.docker import DockerBackend
from kserve_local.interfaces.backend import ReplicaEvent
from kserve_local.settings import Settings
from tests.integration.docker_world import (
    answer,
    containers,
    docker,
    project_settings,
    ready,
    replica,
    start,
)

pytestmark = pytest.mark.docker


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "model").mkdir()
    return project_settings(tmp_path, standby=False)


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[DockerBackend]:
    backend = await DockerBackend.open(settings)
    yield backend
    await backend.close(stop_replicas=True)
    assert containers(settings) == []


def sandbox(settings: Settings) -> str:
    """Return the one sandbox of a project."""
    [name] = docker(
        "ps", "--all", "--format", "{{.Names}}", "--filter", "label=kserve-local.dev/container=",
        "--filter", f"label=kserve-local.dev/state={settings.state}",
    ).split()  # fmt: skip
    assert name.startswith("k8s_POD_")
    return name


async def exited(backend: DockerBackend) -> ReplicaEvent:
    async with asyncio.timeout(20):
        async for event in backend.events():
            if event.kind == "exited":
                return event
    raise AssertionError("the backend closed")


@pytest.mark.parametrize("words", [("kill",), ("rm", "--force")])
async def test_a_sandbox_that_ends_ends_its_pods_containers(
    backend: DockerBackend, settings: Settings, words: tuple[str, ...]
) -> None:
    spec = replica(settings, "a")
    await start(backend, spec)
    await asyncio.to_thread(docker, *words, sandbox(settings))
    [ended] = (await exited(backend)).status.containers
    assert (ended.state, ended.exit_code) == ("terminated", 137)
    assert "sandbox" in ended.message
    # What the node agent does then.
    await backend.start_container("uid-a", spec.containers[0])
    again = await ready(backend, "uid-a")
    assert (await answer(again))["pid"] == 1
    assert len(containers(settings)) == 2


async def test_one_that_ended_unwatched_is_noticed_by_the_next_supervisor(
    settings: Settings,
) -> None:
    backend = await DockerBackend.open(settings)
    spec = replica(settings, "a")
    await start(backend, spec)
    await backend.close(stop_replicas=False)
    docker("kill", sandbox(settings))
    backend = await DockerBackend.open(settings)
    await exited(backend)
    await backend.start_container("uid-a", spec.containers[0])
    assert (await answer(await ready(backend, "uid-a")))["pid"] == 1
    await backend.close(stop_replicas=True)
    assert containers(settings) == []
