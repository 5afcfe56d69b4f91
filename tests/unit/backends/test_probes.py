"""Probes against small servers: what passes, what a failure says, and when changes are told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from kserve_local.backends import grpc_health, probes
from kserve_local.backends.probes import Change, ProbeFailed, Target
from kserve_local.errors import ServiceUnavailable
from kserve_local.interfaces.backend import Probe

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[int]:
    tasks = set()

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handled, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*(task for task in tasks if task is not None))


def answering(*statuses: int, seen: list[bytes] | None = None) -> Handle:
    left = list(statuses)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        status = left.pop(0) if len(left) > 1 else left[0]
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()

    return handle


async def said(probe: Probe, target: Target | None = None) -> str:
    with pytest.raises(ProbeFailed) as failed:
        await probes.check(probe, target or Target(ip="127.0.0.1"))
    return str(failed.value)


@pytest.mark.parametrize("status", [200, 204, 302, 399])
async def test_http_passes_below_400(status: int):
    async with serving(answering(status)) as port:
        await probes.check(Probe("http", port=port), Target(ip="127.0.0.1"))


@pytest.mark.parametrize("status", [400, 404, 500, 503])
async def test_http_fails_from_400(status: int):
    async with serving(answering(status)) as port:
        assert (
            await said(Probe("http", port=port)) == f"HTTP probe failed with statuscode: {status}"
        )


async def test_http_sends_the_probes_headers_path_and_mapped_port():
    seen: list[bytes] = []
    async with serving(answering(200, seen=seen)) as port:
        probe = Probe("http", port=8080, path="/ok?x=1", headers=(("Host", "a.b"), ("X-Y", "z")))
        await probes.check(probe, Target(ip="127.0.0.1", ports={8080: port}))
    assert seen[0].startswith(b"GET /ok?x=1 HTTP/1.1\r\nhost: a.b\r\nuser-agent: kube-probe/")
    assert b"\r\nx-y: z\r\n" in seen[0]


async def test_messages_are_worded_as_the_kubelets():
    async with serving(answering(200)) as port:
        pass
    refused = f"dial tcp 127.0.0.1:{port}: connect: connection refused"
    assert await said(Probe("tcp", port=port)) == refused
    assert (
        await said(Probe("http", port=port, path="/x"))
        == f'Get "http://127.0.0.1:{port}/x": {refused}'
    )

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port:
        assert await said(Probe("http", port=port, path="/x", timeout=0.05)) == (
            f'Get "http://127.0.0.1:{port}/x": context deadline exceeded '
            "(Client.Timeout exceeded while awaiting headers)"
        )

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with serving(hang_up) as port:
        assert await said(Probe("http", port=port)) == f'Get "http://127.0.0.1:{port}/": EOF'


async def test_exec_passes_on_exit_0_and_tells_output_otherwise():
    run = (sys.executable, "-c")
    good = Probe("exec", command=(*run, "import os; assert os.environ['A'] == 'b'"), timeout=20)
    await probes.check(good, Target(ip="", env={"A": "b"}))
    bad = Probe("exec", command=(*run, "print('not yet'); raise SystemExit(3)"), timeout=20)
    assert await said(bad) == "not yet"
    silent = Probe("exec", command=(*run, "raise SystemExit(3)"), timeout=20)
    assert await said(silent) == "command terminated with exit code 3"
    assert "no such" in (await said(Probe("exec", command=("/none",)))).lower()


async def test_exec_is_killed_after_its_timeout():
    slow = Probe("exec", command=("/bin/sh", "-c", "sleep 600"), timeout=0.05)
    assert await said(slow) == 'command "/bin/sh -c sleep 600" timed out'


def health(status: int | None) -> Handle:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        writer.write(grpc_health._frame(4, 0, 0, b"") + grpc_health._frame(6, 0, 0, b"12345678"))
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == 0:
                break
        if status is None:
            writer.write(grpc_health._frame(1, 5, 1, b"\x88"))
        else:
            message = bytes([8, status]) if status else b""
            body = b"\0" + struct.pack(">I", len(message)) + message
            writer.write(grpc_health._frame(1, 4, 1, b"\x88"))
            # Padded, and in two frames: both are allowed.
            writer.write(grpc_health._frame(0, 8, 1, b"\x02" + body[:3] + b"\0\0"))
            writer.write(grpc_health._frame(0, 1, 1, body[3:]))
        await writer.drain()
        await reader.read()

    return handle


async def test_grpc_health_by_status():
    probe = Probe("grpc", service="x" * 200)
    async with serving(health(1)) as port:
        await probes.check(replace(probe, port=port), Target(ip="127.0.0.1"))
    async with serving(health(2)) as port:
        assert await said(replace(probe, port=port)) == (
            'service unhealthy (responded with "NOT_SERVING")'
        )
    async with serving(health(None)) as port:
        assert "no health service" in await said(replace(probe, port=port))


class Changes:
    """Collects what a watch tells."""

    def __init__(self) -> None:
        self.all: list[Change] = []
        self._new = asyncio.Event()

    def __call__(self, change: Change) -> None:
        self.all.append(change)
        self._new.set()

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(20):
            while len(self.all) < count:
                self._new.clear()
                await self._new.wait()
        return [change.kind for change in self.all]


@contextlib.asynccontextmanager
async def watching(
    port: int, pause: probes.Pause | None = None, **kinds: Probe
) -> AsyncIterator[Changes]:
    changes = Changes()
    given = {k: replace(p, port=port) for k, p in kinds.items()}
    task = asyncio.create_task(
        probes.watch(
            startup=given.get("startup"),
            readiness=given.get("readiness"),
            liveness=given.get("liveness"),
            target=Target(ip="127.0.0.1"),
            report=changes,
            pause=pause,
        )
    )
    try:
        yield changes
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_first_readiness_does_not_wait_for_the_period():
    async with (
        serving(answering(503, 503, 503, 200)) as port,
        watching(port, readiness=Probe("http", period=3600)) as changes,
    ):
        assert await changes.until(2) == ["unready", "ready"]
    assert (
        changes.all[0].message == "Readiness probe failed: HTTP probe failed with statuscode: 503"
    )


async def test_readiness_needs_its_thresholds():
    async with (
        serving(answering(200, 200, 503, 200, 503, 503, 200, 200)) as port,
        watching(
            port,
            readiness=Probe("http", period=0.01, success_threshold=2, failure_threshold=2),
        ) as changes,
    ):
        assert await changes.until(3) == ["ready", "unready", "ready"]


async def test_liveness_tells_once_after_its_threshold():
    async with (
        serving(answering(200, 500, 500, 200, 500, 500, 500)) as port,
        watching(port, liveness=Probe("http", period=0.01)) as changes,
    ):
        assert await changes.until(2) == ["ready", "unhealthy"]


async def test_nothing_else_runs_before_startup_has_passed():
    async with (
        serving(answering(503, 503, 503, 503, 200)) as port,
        watching(
            port,
            startup=Probe("http", period=1, failure_threshold=30),
            readiness=Probe("http", period=3600),
            liveness=Probe("http", period=0.01, failure_threshold=1),
        ) as changes,
    ):
        assert await changes.until(1) == ["ready"]


async def test_startup_gives_up_after_period_times_threshold():
    async with (
        serving(answering(503)) as port,
        watching(port, startup=Probe("http", period=0.02, failure_threshold=3)) as changes,
    ):
        assert await changes.until(1) == ["unhealthy"]
    assert changes.all[0].message.startswith("Startup probe failed: HTTP probe failed")


async def test_without_readiness_startup_alone_makes_ready():
    async with (
        serving(answering(200)) as port,
        watching(port, startup=Probe("http", period=0.02)) as changes,
    ):
        assert await changes.until(1) == ["ready"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def explained(port: int, more: list[str], **kinds: Probe) -> list[str]:
    """Watch a port where nobody listens; return what was told while `more` gave explanations."""
    told: list[str] = []
    all_told = asyncio.Event()
    left = list(more)

    async def explain(probe: Probe, refused: bool) -> str:
        assert probe.port == port
        assert refused
        return left.pop(0) if len(left) > 1 else left[0]

    def report(change: Change) -> None:
        assert change.kind == "unready"
        told.append(change.message)
        if len(told) == len(set(more)):
            all_told.set()

    given = {k: replace(p, port=port) for k, p in kinds.items()}
    task = asyncio.create_task(
        probes.watch(
            startup=given.get("startup"),
            readiness=given.get("readiness"),
            liveness=None,
            target=Target(ip="127.0.0.1"),
            report=report,
            explain=explain,
        )
    )
    async with asyncio.timeout(20):
        await all_told.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return told


@pytest.mark.parametrize(("kind", "word"), [("readiness", "Readiness"), ("startup", "Startup")])
async def test_a_port_that_stays_refused_is_told_after_a_while(
    monkeypatch: pytest.MonkeyPatch, kind: str, word: str
):
    """Once for each explanation, in the kubelet's words first."""
    monkeypatch.setattr(probes, "_PATIENCE", 0.05)
    port = free_port()
    probe = Probe("tcp", failure_threshold=300)
    told = await explained(port, ["listens nowhere", "listens nowhere", "on 9999"], **{kind: probe})
    refused = f"{word} probe failed: dial tcp 127.0.0.1:{port}: connect: connection refused"
    assert told == [f"{refused}\nlistens nowhere", f"{refused}\non 9999"]


async def test_a_container_that_does_not_listen_yet_is_given_time():
    """Loading a model takes a moment; nothing is told before there is something to tell."""
    port = free_port()
    async with watching(port, readiness=Probe("tcp")) as changes:
        await asyncio.sleep(0.3)
        assert changes.all == []
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
        async with server:
            assert await changes.until(1) == ["ready"]


async def test_behind_an_engines_proxy_a_connection_that_ends_at_once_was_refused():
    """It accepts before it knows; only then it finds that nobody listens in the Pod."""

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(closes) as port:
        proxied = Target(ip="", ports={8080: port}, is_proxied=True)
        for probe in (Probe("tcp", port=8080), Probe("http", port=8080, path="/")):
            with pytest.raises(ProbeFailed, match=r"connect: connection refused$"):
                await probes.check(probe, proxied)
        await probes.check(Probe("tcp", port=8080), replace(proxied, is_proxied=False))
    async with serving(waits) as port:
        await probes.check(
            Probe("tcp", port=8080, timeout=1), Target(ip="", ports={8080: port}, is_proxied=True)
        )


async def test_a_look_that_could_not_be_done_is_thrown_away_and_the_probes_go_on():
    """An engine that does not answer says nothing of the container."""
    answers = 0

    async def run(command: Sequence[str]) -> tuple[int, bytes]:
        nonlocal answers
        answers += 1
        if answers < 8:
            raise ServiceUnavailable("the Docker engine does not answer")
        return 0, b""

    probe = Probe("exec", command=("true",), period=0.01, failure_threshold=1)
    changes: asyncio.Queue[Change] = asyncio.Queue()
    watching = asyncio.create_task(
        probes.watch(
            startup=probe, readiness=probe, liveness=probe, target=Target(ip="", run=run),
            report=changes.put_nowait,
        )
    )  # fmt: skip
    try:
        async with asyncio.timeout(5):
            assert (await changes.get()).kind == "ready"
        answers = 0
        async with asyncio.timeout(5):
            while answers < 20:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        assert changes.empty()
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_ready_replica_that_listens_no_more_is_noticed() -> None:
    """Most looks at a ready one ask the kernel who listens, which finds the same."""
    called = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()

    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(handle))
        probe = Probe("tcp", period=0.01, failure_threshold=2)
        async with watching(port, readiness=probe) as changes, asyncio.timeout(20):
            assert await changes.until(1) == ["ready"]
            called.clear()
            await called.wait()  # now and then it is really asked
            await stack.aclose()
            assert await changes.until(2) == ["ready", "unready"]


class Stoppable:
    """A server that answers 200 until it is stopped, and then nothing."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.runs = asyncio.Event()
        self.runs.set()
        self.asked = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        await self.runs.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()


@pytest.mark.parametrize("kind", ["readiness", "liveness"])
async def test_a_pause_judges_no_probe_and_asks_none(kind: str) -> None:
    """The check that was under way when the program was stopped says nothing, either."""
    server, pause = Stoppable(), probes.Pause()
    probe = Probe("http", period=0.01, timeout=0.05, failure_threshold=1)
    async with serving(server) as port, watching(port, pause, **{kind: probe}) as changes:
        assert await changes.until(1) == ["ready"]
        server.runs.clear()
        server.asked.clear()
        await server.asked.wait()
        pause.set(True)
        await asyncio.sleep(probe.timeout * 2)  # the check under way has failed by now
        server.asked.clear()
        await asyncio.sleep(probe.timeout * 4)
        assert not server.asked.is_set()
        server.runs.set()
        pause.set(False)
        await server.asked.wait()
        assert [c.kind for c in changes.all] == ["ready"]


async def test_after_a_pause_failures_count_again() -> None:
    server, pause = Stoppable(), probes.Pause()
    probe = Probe("http", period=0.01, timeout=0.05, failure_threshold=1)
    async with serving(server) as port, watching(port, pause, liveness=probe) as changes:
        pause.set(True)
        server.runs.clear()
        pause.set(False)
        assert await changes.until(2) == ["ready", "unhealthy"]
        server.runs.set()


async def test_the_time_that_a_startup_probe_has_is_longer_by_a_pause() -> None:
    server, pause = Stoppable(), probes.Pause()
    server.runs.clear()
    probe = Probe("http", period=0.1, timeout=0.05, failure_threshold=3)
    async with serving(server) as port, watching(port, pause, startup=probe) as changes:
        await server.asked.wait()
        pause.set(True)
        await asyncio.sleep(0.6)
        assert not changes.all
        server.runs.set()
        pause.set(False)
        assert await changes.until(1) == ["ready"]
