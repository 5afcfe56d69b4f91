"""Warm standby: a Pod takes over one like it that was paused, and nothing is left of any."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kserve_local.backends import docker_standby
from kserve_local.backends.docker import DockerBackend
from kserve_local.interfaces.backend import POD_IP, ContainerSpec, Mount
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
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(docker_standby, "PAUSE_BEFORE", 0.0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    return project_settings(tmp_path)


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[DockerBackend]:
    backend = await DockerBackend.open(settings)
    yield backend
    await backend.close(stop_replicas=True)
    assert containers(settings) == []
    assert list((settings.run_dir / "containers").iterdir()) == []


async def kept(backend: DockerBackend, settings: Settings) -> None:
    """Return once there is a paused container."""
    label = f"label=kserve-local.dev/state={settings.state}"
    words = ["docker", "ps", "--quiet", "--filter", label, "--filter", "status=paused"]
    async with asyncio.timeout(60):
        while not (await asyncio.to_thread(subprocess.check_output, words)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        # It counts once it is in the book, a moment later.
        await asyncio.sleep(0.2)


async def test_a_pod_takes_over_the_standby_of_one_like_it(
    backend: DockerBackend, settings: Settings
) -> None:
    first = await start(backend, replica(settings, "a"))
    assert first.containers[0].note == ""
    await kept(backend, settings)
    await backend.stop("uid-a", grace=1.0)
    spec = replica(settings, "b")
    second = await start(backend, spec)
    assert second.containers[0].note == "from a warm standby"
    assert (await answer(second))["pid"] == 1
    assert [s.id for s in await backend.list()] == ["uid-b"]
    log = spec.containers[0].log_path
    container = second.containers[0].container_id.removeprefix("docker://")
    words = ["docker", "exec", container, "cat", "/etc/hosts"]
    hosts = (await asyncio.to_thread(subprocess.check_output, words)).decode()
    assert "10.0.0.1\tb.test" in hosts
    assert "a.test" not in hosts
    assert log.exists()
    # It is replaced, and so is a container of it that ends.
    await kept(backend, settings)
    await backend.stop_container("uid-b", "kserve-container", grace=1.0)
    await backend.start_container("uid-b", spec.containers[0])
    again = await ready(backend, "uid-b")
    assert again.containers[0].note == ""
    assert (await answer(again))["pid"] == 1


async def test_what_was_edited_since_is_not_given_out(
    backend: DockerBackend, settings: Settings
) -> None:
    await start(backend, replica(settings, "a"))
    await kept(backend, settings)
    (settings.project / "model" / "weights").write_text("22")
    second = await start(backend, replica(settings, "b"))
    assert second.containers[0].note == ""


@pytest.mark.parametrize("part", ["sandbox", "container"])
@pytest.mark.parametrize("words", [("kill",), ("rm", "--force")])
async def test_one_that_is_broken_is_not_given_out(
    backend: DockerBackend, settings: Settings, part: str, words: tuple[str, ...]
) -> None:
    await start(backend, replica(settings, "a"))
    await kept(backend, settings)
    [standby] = backend._standbys._by_key.values()
    [container] = standby.containers.values()
    broken = standby.place.sandbox if part == "sandbox" else container
    await asyncio.to_thread(docker, *words, broken)
    second = await start(backend, replica(settings, "b"))
    assert second.containers[0].note == ""
    assert (await answer(second))["pid"] == 1
    left = containers(settings)
    assert broken not in left
    assert standby.place.sandbox not in left


async def test_one_that_no_pod_is_like_any_more_goes_after_a_while(
    backend: DockerBackend, settings: Settings
) -> None:
    first = replica(settings, "a")
    await start(backend, first)
    await kept(backend, settings)
    standbys, late = backend._standbys, docker_standby.IDLE + 1
    await standbys.drop_idle([first], 0.0)
    await standbys.drop_idle([first], late)
    await backend.stop("uid-a", grace=1.0)
    await standbys.drop_idle([], late)
    assert standbys.count == 1
    await standbys.drop_idle([], late + docker_standby.IDLE)
    assert standbys.count == 1
    await standbys.drop_idle([], 2 * late)
    assert standbys.count == 0
    assert containers(settings) == []


async def test_a_later_supervisor_adopts_the_pod_and_removes_the_standby(
    settings: Settings,
) -> None:
    backend = await DockerBackend.open(settings)
    await start(backend, replica(settings, "a"))
    await kept(backend, settings)
    await start(backend, replica(settings, "b"))
    await kept(backend, settings)
    await backend.close(stop_replicas=False)
    before = containers(settings)
    assert len(before) == 6  # two Pods and a standby, with their sandboxes
    backend = await DockerBackend.open(replace(settings, standby=False))
    assert sorted(s.id for s in await backend.list()) == ["uid-a", "uid-b"]
    assert len(containers(settings)) == 4
    assert set(containers(settings)) < set(before)
    await backend.stop("uid-b", grace=1.0)
    assert len(containers(settings)) == 2
    await backend.close(stop_replicas=True)
    assert containers(settings) == []


async def test_there_is_none_when_switched_off_or_over_the_budget(settings: Settings) -> None:
    for changed in ({"standby": False}, {"standby_memory_bytes": 1}):
        backend = await DockerBackend.open(replace(settings, **changed))  # type: ignore[arg-type]
        await start(backend, replica(settings, "a"))
        await asyncio.sleep(3)
        await start(backend, replica(settings, "b"))
        assert all(not s.containers[0].note for s in await backend.list())
        assert len(containers(settings)) == 4
        await backend.close(stop_replicas=True)


def test_pods_with_something_of_their_own_have_no_standby(settings: Settings) -> None:
    volumes = settings.run_dir / "volumes"
    plain = docker_standby.key_of(replica(settings, "a"), volumes)
    assert plain == docker_standby.key_of(replica(settings, "b"), volumes) != ""
    own = {
        "mounts": (Mount("/x", volumes / "uid-a" / "v"),),
        "env": (("IP", POD_IP),),
        "readiness": None,
    }
    for name, value in own.items():
        assert docker_standby.key_of(replica(settings, "a", **{name: value}), volumes) == ""
    named = replica(settings, "a", env=(("POD", "pod-a"),))
    assert docker_standby.key_of(named, volumes) == ""
    other = replica(settings, "a", env=(("A", "1"),))
    assert docker_standby.key_of(other, volumes) != plain


def test_the_fingerprint_changes_with_names_sizes_and_times(tmp_path: Path) -> None:
    def of() -> str:
        container = ContainerSpec("c", "i", (), tmp_path, mounts=(Mount("/m", tmp_path),))
        return docker_standby.fingerprint((container,))

    (tmp_path / "a").write_text("1")
    seen = {of()}
    (tmp_path / "a").write_text("22")
    seen.add(of())
    os.utime(tmp_path / "a", (1, 1))
    seen.add(of())
    (tmp_path / "a").rename(tmp_path / "b")
    seen.add(of())
    assert len(seen) == 4
