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


async def test_containers_whose_sandbox_is_gone_are_removed_by_the_next_supervisor(
    settings: Settings,
) -> None:
    """Nobody would know of them: their names would be taken, and `down` would leave them."""
    backend = await DockerBackend.open(settings)
    spec = replica(settings, "a")
    await start(backend, spec)
    await backend.close(stop_replicas=False)
    docker("rm", "--force", sandbox(settings))
    backend = await DockerBackend.open(settings)
    assert await backend.list() == []
    assert containers(settings) == []
    assert (await answer(await start(backend, spec)))["pid"] == 1
    await backend.close(stop_replicas=True)
    assert containers(settings) == []


async def test_a_container_that_was_made_and_not_started_is_removed_by_the_next_supervisor(
    settings: Settings,
) -> None:
    backend = await DockerBackend.open(settings)
    spec = replica(settings, "a")
    await start(backend, spec)
    [made] = backend._by_container
    await backend.close(stop_replicas=False)
    docker("rm", "--force", made)
    other = "k8s_kserve-container_pod-a_default_uid-a_0"
    labels = {
        "project": backend._project, "state": str(settings.state),
        "replica": "uid-a", "container": "kserve-container",
    }  # fmt: skip
    words = [w for k, v in labels.items() for w in ("--label", f"kserve-local.dev/{k}={v}")]
    docker("create", "--name", other, *words, "python:3.11-slim", "true")
    backend = await DockerBackend.open(settings)
    assert containers(settings) == []
    await backend.close(stop_replicas=True)
