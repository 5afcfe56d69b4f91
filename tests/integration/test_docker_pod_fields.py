"""What a Pod says about its containers, as containers on a real engine see it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kserve_local.backends.docker import DockerBackend
from kserve_local.interfaces.backend import (
    HOST_IP,
    ContainerSpec,
    ContainerStatus,
    Mount,
    ReplicaSpec,
    Security,
)
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
    # The engine knows names only once, and others may test at the same time.
    own = ReplicaSpec(f"uid-{secrets.token_hex(4)}", "default", "pod-1", containers, grace=1.0)
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


async def test_last_words_are_what_any_user_wrote_to_the_termination_log(
    backend: DockerBackend, settings: Settings
) -> None:
    """Not an earlier run's, nor more than the kubelet reads."""
    script = "printf %05000d 7 > /dev/termination-log; echo $WORDS >> /dev/termination-log; exit 3"
    one = container(
        settings, script, termination_path="/dev/termination-log", env=(("WORDS", "first"),),
        security=Security(user=1234, read_only_root=True),
    )  # fmt: skip
    id = await backend.start(replica(one))
    ended = await end(backend)
    assert ended.exit_code == 3
    assert ended.termination == "7first\n".rjust(4096, "0")
    later = replace(one, argv=("sh", "-c", "echo -n bye >> /dev/termination-log"))
    await backend.start_container(id, later)
    assert (await end(backend)).termination == "bye"


async def test_whoever_adopts_reads_last_words(settings: Settings) -> None:
    script = "echo -n bye > /dev/termination-log; sleep 1"
    first = await DockerBackend.open(settings)
    await first.start(replica(container(settings, script, termination_path="/dev/termination-log")))
    await first.close(stop_replicas=False)
    second = await DockerBackend.open(settings)
    [found] = [c for r in await second.list() for c in r.containers]
    ended = found if found.state == "terminated" else await end(second)
    await second.close(stop_replicas=True)
    assert ended.termination == "bye"


async def test_the_hostname_and_no_seccomp_where_the_pod_says_so(
    backend: DockerBackend, settings: Settings
) -> None:
    script = (
        "echo $(hostname) $(hostname -f) $(grep -c '^Seccomp:.0' /proc/self/status)"
        " > /dev/termination-log"
    )
    free = container(
        settings, script, termination_path="/dev/termination-log",
        security=Security(seccomp="unconfined"),
    )  # fmt: skip
    await backend.start(replica(free, hostname="head", domain="ring.default.svc.cluster.local"))
    said = (await end(backend)).termination
    assert said == "head head.ring.default.svc.cluster.local 1\n"


async def test_the_host_ip_leads_to_this_machine(
    backend: DockerBackend, settings: Settings
) -> None:
    """Where a server of this machine listens on all addresses, a container finds it."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    line = f"import socket,os; socket.create_connection((os.environ['HOST'], {port}), 10)"
    one = container(settings, f'python3 -c "{line}"', env=(("HOST", HOST_IP),))
    async with server:
        await backend.start(replica(one))
        assert (await end(backend)).exit_code == 0
    assert backend.host_address() not in ("", "127.0.0.1")
