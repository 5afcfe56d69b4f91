"""Images from a registry that asks for a login: a real one, on the loopback."""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
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

pytestmark = pytest.mark.docker

LOGIN = Login("ana", "s3cret")
# bcrypt of that password, as htpasswd -B writes it.
HTPASSWD = "ana:$2y$04$abcdefghijklmnopqrstuuLZYjhNQAOdpbzt4WxWlUHjv1wsyH5DG\n"
CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}
log: {{level: error}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Return `host:port` of a registry that knows one user."""
    port = free_port()
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(folder=tmp_path, port=port))
    process = subprocess.Popen(["docker-registry", "serve", str(config)])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            process_wait(process, 0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def process_wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


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
