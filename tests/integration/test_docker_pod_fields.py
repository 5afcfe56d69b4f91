"""What a Pod says about its containers, as containers on a real engine see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kserve_local.backends.docker import DockerBackend
from kserve_local.interfaces.backend import ContainerSpec, ContainerStatus, Mount, ReplicaSpec
from kserve_local.settings import Settings

pytestmark = pytest.mark.docker


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        project=tmp_path,
        state=tmp_path / ".kserve-local",
        cache=tmp_path / "cache",
        runtime=tmp_path / "s",
    )


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[DockerBackend]:
    backend = await DockerBackend.open(settings)
    yield backend
    await backend.close(stop_replicas=True)


def container(settings: Settings, script: str, **more: object) -> ContainerSpec:
    """Return a container that runs a line of shell."""
    own = ContainerSpec(
        name="main",
        image="python:3.11-slim",
        command=("sh", "-c"),
        argv=("sh", "-c", script),
        log_path=settings.log_dir / "main.log",
    )
    return replace(own, **more)  # type: ignore[arg-type]  # test shorthand


def replica(*containers: ContainerSpec, **more: object) -> ReplicaSpec:
    own = ReplicaSpec("uid-1", "default", "pod-1", containers, grace=1.0)
    return replace(own, **more)  # type: ignore[arg-type]  # test shorthand


async def end(backend: DockerBackend) -> ContainerStatus:
    """Return how the container ended."""
    async with asyncio.timeout(60):
        async for event in backend.events():
            if event.kind == "exited":
                return event.status.containers[0]
    raise AssertionError("the backend closed")


async def test_a_link_put_there_since_the_check_is_not_mounted(
    backend: DockerBackend, settings: Settings, tmp_path: Path
) -> None:
    """What shares the volume goes on while a container is made again."""
    volume, secret = tmp_path / "volume", tmp_path / "secret"
    volume.mkdir()
    secret.mkdir()
    (volume / "sub").symlink_to(secret)
    mount = Mount("/h", volume / "sub", read_only=False, within=volume)
    await backend.start(replica(container(settings, "touch /h/written", mounts=(mount,))))
    ended = await end(backend)
    assert ended.reason == "ContainerCannotRun"
    assert ended.message.startswith('failed to prepare subPath for container "main": subpath "/')
    assert list(secret.iterdir()) == []
