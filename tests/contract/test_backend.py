"""What every Backend does; run against each implementation."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kserve_local.errors import AlreadyExists, Missing, NotFound
from kserve_local.interfaces.backend import (
    Backend,
    ContainerStatus,
    Probe,
    ReplicaEvent,
    ReplicaStatus,
)
from tests.contract.conftest import World, inner_pid


async def wait_for(backend: Backend, *kinds: str, container: str = "") -> ReplicaEvent:
    """Return the next event of one of these kinds."""
    async with asyncio.timeout(30):
        async for event in backend.events():
            if event.kind in kinds and container in ("", event.container):
                return event
    raise AssertionError("the backend closed")


async def status_of(backend: Backend, id: str = "uid-1") -> ReplicaStatus:
    return next(s for s in await backend.list() if s.id == id)


async def get(status: ReplicaStatus, path: str, container: int = 0) -> dict[str, object]:
    port = next(iter(status.containers[container].ports.values()))
    url = f"http://{status.ip or '127.0.0.1'}:{port}{path}"

    def fetch() -> dict[str, object]:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    return await asyncio.to_thread(fetch)


async def until_listed(backend: Backend) -> None:
    """Return as soon as a start is under way."""
    listed = await backend.list()
    while not listed:
        await asyncio.sleep(0)
        listed = await backend.list()


async def until_written(path: Path, text: str) -> None:
    """Wait for a line of output: an engine may tell of it a moment later."""
    async with asyncio.timeout(10):
        while text not in await asyncio.to_thread(path.read_text):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)


def runs(pid: int | None) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_a_started_replica_becomes_ready_and_answers(world: World, backend: Backend):
    id = await backend.start(world.replica())
    assert (await wait_for(backend, "started")).status.containers[0].state == "running"
    event = await wait_for(backend, "ready")
    assert id == event.id == "uid-1"
    [container] = event.status.containers
    assert container.ready
    # Without an address the Pod is reached on other ports of this machine.
    assert container.ports == {8080: 8080} or (
        list(container.ports) == [8080] and not event.status.ip
    )
    assert (await get(event.status, "/facts"))["pid"] == inner_pid(container.pid)


async def test_how_it_was_started_is_told(world: World, backend: Backend):
    await backend.start(world.replica())
    [container] = (await wait_for(backend, "ready")).status.containers
    assert container.started_how == world.started_how
    assert container.note == ""


async def test_the_same_id_twice_is_refused(world: World, backend: Backend):
    await backend.start(world.replica())
    with pytest.raises(AlreadyExists, match="uid-1"):
        await backend.start(world.replica())


async def test_an_image_without_a_program_is_missing_and_leaves_nothing(
    world: World, backend: Backend
):
    good, bad = world.container(name="good"), world.container(name="bad")
    with pytest.raises(Missing, match=r"(?i)docker"):
        await backend.start(world.replica(good, world.without_a_program(bad)))
    assert await backend.list() == []


async def test_names_that_come_after_the_start_resolve(world: World, backend: Backend):
    spec = replace(world.replica(), resolve=(("own.test", "10.0.0.3"),))
    await backend.resolve(spec.namespace, (("old.default", "10.0.0.1"),))
    await backend.start(spec)
    status = (await wait_for(backend, "ready")).status
    assert (await get(status, "/resolve?new.default"))["address"] == ""
    names = (("old.default", "10.0.0.1"), ("new.default", "10.0.0.2"))
    await backend.resolve(spec.namespace, names)
    assert (await get(status, "/resolve?new.default"))["address"] == "10.0.0.2"
    assert (await get(status, "/resolve?old.default"))["address"] == "10.0.0.1"
    assert (await get(status, "/resolve?own.test"))["address"] == "10.0.0.3"
    await backend.resolve("nobody-s", names)


async def test_stop_ends_everything_and_is_idempotent(world: World, backend: Backend):
    await backend.start(world.replica(world.container("--daemon")))
    status = (await wait_for(backend, "ready")).status
    facts = await get(status, "/facts")
    await backend.stop("uid-1", grace=5.0)
    assert await backend.list() == []
    assert not runs(int(str(facts["pid"]))) or world.in_docker
    assert not runs(status.containers[0].pid)
    await backend.stop("uid-1", grace=5.0)


async def test_a_deaf_replica_is_killed_after_its_grace(world: World, backend: Backend):
    await backend.start(world.replica(world.container("--deaf")))
    pid = (await wait_for(backend, "ready")).status.containers[0].pid
    await backend.stop("uid-1", grace=0.2)
    assert not runs(pid)
    exited = await wait_for(backend, "exited")
    assert (exited.status.containers[0].exit_code, exited.status.containers[0].signal) == (137, 9)


async def test_a_second_stop_with_less_grace_takes_effect(world: World, backend: Backend):
    await backend.start(world.replica(world.container("--deaf")))
    await wait_for(backend, "ready")
    async with asyncio.timeout(20):
        patient = asyncio.create_task(backend.stop("uid-1", grace=600.0))
        await asyncio.sleep(0)
        await backend.stop("uid-1", grace=0.0)
        await patient
    assert await backend.list() == []


@pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (1, "Error"), (42, "Error")])
async def test_an_exit_code_is_reported(world: World, backend: Backend, code: int, reason: str):
    await backend.start(world.replica(world.container("--exit", str(code))))
    [container] = (await wait_for(backend, "exited")).status.containers
    assert (container.state, container.exit_code, container.reason) == ("terminated", code, reason)
    assert container.started_at is not None
    assert container.finished_at is not None
    assert container.finished_at >= container.started_at
    assert "leaving" in world.container().log_path.read_text()


async def test_a_killed_container_shows_its_signal(world: World, backend: Backend):
    await backend.start(world.replica())
    pid = (await wait_for(backend, "ready")).status.containers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    [container] = (await wait_for(backend, "exited")).status.containers
    assert (container.exit_code, container.signal, container.ready) == (137, 9, False)


async def test_a_terminated_container_starts_again_and_its_log_is_kept(
    world: World, backend: Backend
):
    await backend.start(world.replica(world.container("--exit", "3")))
    first = (await wait_for(backend, "exited")).status.containers[0]
    again = world.container("--model_name", "second")
    await backend.start_container("uid-1", again)
    ready = (await wait_for(backend, "ready")).status.containers[0]
    assert ready.pid != first.pid
    assert ready.exit_code is None
    await until_written(again.log_path, "starting second")
    assert "leaving" not in again.log_path.read_text()
    kept = again.log_path.with_name("kserve-container.previous.log")
    assert "leaving" in kept.read_text()


async def test_one_container_stops_and_starts_while_the_other_goes_on(
    world: World, backend: Backend
):
    other = world.container(
        "--http_port", "8085", name="b", ports=(("", 8085),), readiness=Probe("tcp", port=8085)
    )
    deaf = world.container("--deaf")
    await backend.start(world.replica(deaf, other))
    await wait_for(backend, "ready", container=deaf.name)
    before = (await status_of(backend)).containers
    await backend.stop_container("uid-1", deaf.name, grace=0.1)
    stopped, running = (await status_of(backend)).containers
    assert (stopped.state, stopped.exit_code) == ("terminated", 137)
    assert (running.state, running.pid) == ("running", before[1].pid)
    await backend.stop_container("uid-1", deaf.name, grace=0.1)
    await backend.start_container("uid-1", world.container())
    ready = await wait_for(backend, "ready", container=deaf.name)
    assert ready.status.containers[0].pid != before[0].pid
    with pytest.raises(NotFound):
        await backend.stop_container("uid-1", "nobody", grace=0.0)


async def test_a_stop_during_the_start_leaves_nothing(world: World, backend: Backend):
    starting = asyncio.create_task(backend.start(world.replica()))
    await until_listed(backend)
    await backend.stop("uid-1", grace=0.0)
    await asyncio.gather(starting, return_exceptions=True)
    assert await backend.list() == []
    again = await backend.start(world.replica())
    assert (await wait_for(backend, "ready")).id == again


async def test_a_cancelled_start_leaves_nothing(world: World, backend: Backend):
    starting = asyncio.create_task(backend.start(world.replica()))
    await until_listed(backend)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await backend.list() == []


async def test_two_containers_share_the_address(world: World, backend: Backend):
    second = world.container(
        "--http_port",
        "8085",
        name="transformer",
        ports=(("", 8085),),
        readiness=Probe("tcp", port=8085),
    )
    await backend.start(world.replica(world.container(), second))
    status = await status_of(backend)
    while not all(container.ready for container in status.containers):
        await wait_for(backend, "ready")
        status = await status_of(backend)
    pids = set()
    for position in (0, 1):
        ports = status.containers[position].ports
        port = {0: 8080, 1: 8085}[position]
        assert ports[port] == port or not status.ip
        url = f"http://{status.ip or '127.0.0.1'}:{ports[port]}/facts"
        facts = json.loads(await asyncio.to_thread(lambda u=url: urllib.request.urlopen(u).read()))
        pids.add(facts["pid"])
    assert pids == {inner_pid(c.pid) for c in status.containers}


async def test_not_ready_while_the_probe_says_no(world: World, backend: Backend, tmp_path):
    flag = tmp_path / "unready"
    probe = Probe(
        "http", port=8080, path="/v2/health/ready", period=0.05, failure_threshold=2, timeout=5
    )
    container = world.container("--unready_file", str(flag), readiness=probe)
    await backend.start(world.replica(container))
    await wait_for(backend, "ready")
    flag.touch()
    event = await wait_for(backend, "unready")
    assert not event.status.containers[0].ready
    assert event.message == "Readiness probe failed: HTTP probe failed with statuscode: 503"
    flag.unlink()
    assert (await wait_for(backend, "ready")).status.containers[0].ready


async def test_failed_liveness_is_told_and_nothing_restarted(
    world: World, backend: Backend, tmp_path
):
    flag = tmp_path / "sick"
    probe = Probe("http", port=8080, path="/v2/health/live", period=0.05, timeout=5)
    startup = Probe("http", port=8080, path="/v2/health/live", period=1, failure_threshold=60)
    container = world.container("--sick_file", str(flag), liveness=probe, startup=startup)
    await backend.start(world.replica(container))
    before = (await wait_for(backend, "ready")).status.containers[0]
    flag.touch()
    event = await wait_for(backend, "unhealthy")
    assert event.message == "Liveness probe failed: HTTP probe failed with statuscode: 500"
    assert event.status.containers[0].pid == before.pid
    assert event.status.containers[0].state == "running"


async def test_without_probes_running_is_ready(world: World, backend: Backend):
    await backend.start(world.replica(world.container("--start_after", "60", readiness=None)))
    event = await wait_for(backend, "ready")
    assert event.status.containers[0].ready


async def test_a_new_backend_adopts_and_restarts_nothing(world: World, backend: Backend):
    await backend.start(world.replica())
    before = (await wait_for(backend, "ready")).status.containers[0]
    await backend.close(stop_replicas=False)
    assert runs(before.pid)

    second = await world.open()
    try:
        [status] = await second.list()
        assert status.adopted
        assert status.containers[0].pid == before.pid
        assert status.containers[0].started_how == before.started_how
        await wait_for(second, "ready")
        assert (await get(status, "/facts"))["pid"] == inner_pid(before.pid)
        assert before.pid is not None
        # The first process of a container is deaf to a SIGTERM that it has no handler for.
        number = signal.SIGKILL if world.in_docker else signal.SIGTERM
        os.kill(before.pid, number)
        exited = (await wait_for(second, "exited")).status.containers[0]
        assert exited.signal == number
    finally:
        await second.close(stop_replicas=True)


async def test_what_ended_unwatched_is_found_ended(world: World, backend: Backend):
    await backend.start(world.replica())
    pid = (await wait_for(backend, "ready")).status.containers[0].pid
    assert pid is not None
    await backend.close(stop_replicas=False)
    os.kill(pid, signal.SIGKILL)
    second = await world.open()
    try:
        async with asyncio.timeout(10):
            while (found := await status_of(second)).containers[0].state != "terminated":
                await wait_for(second, "exited")
        assert found.containers[0].reason in ("Error", "Unknown")
    finally:
        await second.close(stop_replicas=True)


async def test_close_with_stop_leaves_no_process(world: World, backend: Backend):
    await backend.start(world.replica())
    pid = (await wait_for(backend, "ready")).status.containers[0].pid
    await backend.close(stop_replicas=True)
    assert not runs(pid)
    second = await world.open()
    assert await second.list() == []
    await second.close(stop_replicas=True)


async def test_usage_counts_cpu_and_memory(world: World, backend: Backend):
    await backend.start(world.replica())
    status = (await wait_for(backend, "ready")).status
    async with asyncio.timeout(60):
        while (usage := await backend.usage("uid-1")).cpu_seconds == 0:
            await get(status, "/facts")
    assert usage.cpu_seconds < 60
    assert 1 << 20 < usage.memory_bytes < 1 << 30
    with pytest.raises(NotFound):
        await backend.usage("uid-2")


async def test_a_process_over_its_memory_limit_is_oom_killed(world: World, backend: Backend):
    container = world.container("--fill_mib", "512", memory_limit_bytes=96 << 20)
    await backend.start(world.replica(container))
    event = await wait_for(backend, "exited")
    [status] = event.status.containers
    assert (status.reason, status.exit_code, status.signal) == ("OOMKilled", 137, 9)


async def test_events_end_when_the_backend_closes(world: World, backend: Backend):
    async def consume(events: AsyncIterator[ReplicaEvent]) -> int:
        return len([event async for event in events])

    await backend.start(world.replica())
    consumer = asyncio.create_task(consume(backend.events()))
    await backend.close(stop_replicas=True)
    async with asyncio.timeout(10):
        assert await consumer >= 2


def test_a_container_waits_before_it_starts():
    assert ContainerStatus("c", "waiting").exit_code is None
