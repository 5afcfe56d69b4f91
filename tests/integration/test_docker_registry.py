"""Images from a registry that asks for a login: a real one, on the loopback."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from kserve_local.backends.docker import DockerBackend
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import ContainerSpec, Login, Progress
from kserve_local.settings import Settings
from tests.integration.registry_world import LOGIN, registry_of_ana

pytestmark = pytest.mark.docker


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Return `host:port` of a registry that knows one user."""
    with registry_of_ana(tmp_path / "registry") as name:
        yield name


@pytest.fixture
def image(registry: str) -> Iterator[str]:
    """Return an image that is in the registry and not on the engine."""
    name = f"{registry}/team/empty"
    with docker.APIClient(timeout=60) as client:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("nothing"), io.BytesIO())
        client.import_image_from_data(content.getvalue(), repository=name, tag="1")
        auth = {"username": LOGIN.username, "password": LOGIN.password}
        told = client.push(name, tag="1", auth_config=auth)
        assert "error" not in told, told
        client.remove_image(f"{name}:1")
        yield f"{name}:1"
        client.remove_image(f"{name}:1", force=True)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[DockerBackend]:
    settings = Settings(
        project=tmp_path,
        state=tmp_path / ".kserve-local",
        cache=tmp_path / "cache",
        runtime=tmp_path / "s",
    )
    backend = await DockerBackend.open(settings)
    yield backend
    await backend.close(stop_replicas=True)


def ignore(progress: Progress) -> None:
    return None


async def test_pull_secrets_are_tried_in_order(
    backend: DockerBackend, image: str, tmp_path: Path
) -> None:
    container = ContainerSpec("c", image, (), tmp_path / "c.log")
    for logins in ((), (Login("ana", "wrong"),)):
        with pytest.raises(Missing, match=r"Failed to pull image .*(auth|login|denied)"):
            await backend.prepare(replace(container, logins=logins), ignore)
    await backend.prepare(replace(container, logins=(Login("eve", "x"), LOGIN)), ignore)
    # It is there now, and needs no login.
    await asyncio.wait_for(backend.prepare(container, ignore), 30)
