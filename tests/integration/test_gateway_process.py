"""The gateway's process: killed, orphaned, adopted, told to stop. Real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable

import pytest

from kserve_local.errors import PortTaken, UsageError
from kserve_local.gateway.main import start_time
from kserve_local.interfaces.routing import RouteTable
from kserve_local.supervisor.gateway_process import GatewayProcess
from tests.fakes.raw_upstream import Client, Upstream, answering, ask, echo, response
from tests.integration.gateway_world import HOST, Figures, iris, make_settings, world

GET = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"


async def until(claim: Callable[[], bool]) -> None:
    """Return once `claim` holds."""
    async with asyncio.timeout(20):
        while not claim():  # noqa: ASYNC110  # what is claimed is about other processes
            await asyncio.sleep(0.01)


def is_gone(pid: int, started: int) -> bool:
    """Whether that process has ended; an orphan's zombie is nobody's to reap but ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return start_time(pid) != started


async def test_a_killed_gateway_queues_connections_instead_of_refusing_them() -> None:
    """The socket is the supervisor's: whoever connects in the gap is served by the successor."""
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        for round_number in range(3):
            first = own.process.pid
            os.kill(first, signal.SIGKILL)
            answers = await asyncio.gather(*(ask(own.port, GET) for _ in range(20)))
            assert {a.status for a in answers} == {200}
            await until(lambda old=first: own.process.pid not in (0, old))  # type: ignore[misc]  # default binds now
            assert own.process.restarts == round_number + 1


async def test_a_successor_has_the_newest_table_and_reports_again() -> None:
    async with Upstream(echo) as upstream, world() as own:
        await own.serve()
        os.kill(own.process.pid, signal.SIGKILL)
        await own.serve(upstream)
        own.figures.stats.clear()
        assert (await ask(own.port, GET)).status == 200
        await own.figures.until(lambda: any(s.requests for s in own.figures.stats))


async def test_an_orphan_goes_on_and_is_adopted() -> None:
    """The supervisor dies: same process, same port, last table; a new one takes over all of it."""
    async with Upstream(answering(response(b"one"))) as one, world() as own:
        await own.serve(one)
        pid, port = own.process.pid, own.port
        async with Client(port) as client:
            assert (await client.ask(GET)).body == b"one"
            own.process.detach()
            await own.process.__aexit__(None, None, None)
            assert (await client.ask(GET)).body == b"one"
            assert (await ask(port, GET)).body == b"one"

            figures = Figures()
            successor = GatewayProcess(own.settings, figures)
            async with successor, Upstream(answering(response(b"two"))) as two:
                assert successor.adopted
                assert (successor.pid, successor.port) == (pid, port)
                # Nothing published yet: the old table stays in force.
                assert (await client.ask(GET)).body == b"one"
                successor.publish(RouteTable(1, (iris([two]),)))
                await successor.wait_applied(1)
                assert (await client.ask(GET)).body == b"two"
                await figures.until(lambda: bool(figures.stats))
                # The listening socket came along: a crash now still costs no connection.
                os.kill(pid, signal.SIGKILL)
                assert (await ask(port, GET)).body == b"two"
                await until(lambda: successor.restarts == 1)


async def test_an_orphan_at_another_port_makes_way() -> None:
    async with world() as own:
        pid, started = own.process.pid, start_time(own.process.pid)
        await own.publish()
        own.process.detach()
        await own.process.__aexit__(None, None, None)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = make_settings(own.settings.project, gateway_port=port)
        async with GatewayProcess(settings, Figures()) as successor:
            assert not successor.adopted
            assert successor.port == port
            assert is_gone(pid, started)


async def test_a_stuck_orphan_is_replaced() -> None:
    async with world() as own:
        pid, started = own.process.pid, start_time(own.process.pid)
        await own.publish()
        own.process.detach()
        await own.process.__aexit__(None, None, None)
        os.kill(pid, signal.SIGSTOP)
        async with GatewayProcess(own.settings, Figures()) as successor:
            assert successor.pid != pid
            assert is_gone(pid, started)


async def test_a_stale_run_file_is_no_gateway() -> None:
    """Its pid may be anybody by now."""
    async with world() as own:
        run_file = own.process.run_file
        await own.publish()
        content = run_file.read_bytes()
        assert run_file.stat().st_mode & 0o777 == 0o600
        await own.process.stop(0.1)
        run_file.write_bytes(content.replace(str(own.process.pid).encode(), b"1"))
        async with GatewayProcess(own.settings, Figures()) as successor:
            assert not successor.adopted


async def test_a_gateway_ends_itself_when_its_state_folder_vanishes() -> None:
    async with world() as own:
        pid, started = own.process.pid, start_time(own.process.pid)
        await own.publish()
        own.process.detach()
        await own.process.__aexit__(None, None, None)
        shutil.rmtree(own.settings.state)
        await until(lambda: is_gone(pid, started))


async def test_stopping_leaves_nothing_behind() -> None:
    async with world() as own:
        await own.publish()
        pid, started = own.process.pid, start_time(own.process.pid)
        port = own.port
        await own.process.stop(0.5)
        assert is_gone(pid, started)
        assert list(own.settings.run_dir.iterdir()) == []
        assert list(own.settings.runtime.iterdir()) == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_gateway_can_be_stopped_before_it_serves() -> None:
    """`up` that is interrupted at once: no wait for the grace, nothing left."""
    async with world() as own:
        pid, started = own.process.pid, start_time(own.process.pid)
        async with asyncio.timeout(20):
            await own.process.stop(60.0)
        assert is_gone(pid, started)
        assert list(own.settings.runtime.iterdir()) == []


async def test_a_deaf_gateway_is_killed_after_the_grace() -> None:
    async with world() as own:
        await own.publish()
        pid, started = own.process.pid, start_time(own.process.pid)
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            await own.process.stop(0.2)
        assert is_gone(pid, started)


async def test_a_taken_port_names_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is in use") as caught:
            async with world(gateway_port=port):
                raise AssertionError("started on a taken port")
        assert f"held by   pid {os.getpid()} " in caught.value.hint


async def test_beyond_loopback_without_a_token_is_refused() -> None:
    with pytest.raises(UsageError, match=r"auth\.token"):
        async with world(gateway_host="0.0.0.0"):
            raise AssertionError("started without a token")


async def test_a_link_without_the_token_is_refused() -> None:
    """Who cannot read the run file cannot route traffic or take the socket."""
    async with world() as own:
        await own.publish()
        for want in ("", "sockets"):
            reader, writer = await asyncio.open_unix_connection(
                str(own.settings.runtime / "gateway.sock")
            )
            body = b'{"type":"hello","token":"nope","want":"%b"}' % want.encode()
            writer.write(len(body).to_bytes(4, "big") + body)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()
