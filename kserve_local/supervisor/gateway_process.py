"""Keeps the gateway process running: start, adopt, feed, respawn, stop.

The supervisor opens the listening socket and the gateway inherits it, so connections queue while a
crashed gateway is replaced. A gateway that outlived its supervisor is adopted: process (pid, start
time, token of `run/gateway.json`) and, over its Unix socket, the listening socket itself.
`GatewayProcess` is the `RouteSink` of the controllers and feeds a `StatSink`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import ipaddress
import itertools
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from kserve_local.aio import backoff
from kserve_local.client.project import GATEWAY_FILE
from kserve_local.errors import ServiceUnavailable, UsageError
from kserve_local.gateway.link import Frame, LinkError, encode_frame, read_frame
from kserve_local.gateway.main import BACKLOG, GatewayConfig, start_time
from kserve_local.interfaces.routing import RouteTable, change_of
from kserve_local.interfaces.stats import RequestStat, StatSink, Woken
from kserve_local.interfaces.storage import StoredObject
from kserve_local.settings import RequestsConfig, Settings
from kserve_local.supervisor.ports import taken

logger = logging.getLogger(__name__)

# Bodies pass in pieces of up to 256 KiB: kept on the heap, they cost no mapping and no page fault
# each (glibc; others ignore it).
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
    "MALLOC_TOP_PAD_": str(1 << 20),
}
START_TIMEOUT = 20.0
ANSWER_TIMEOUT = 3.0
STABLE_AFTER = 10.0
MAX_OBJECTS = 100


class GatewayProcess:
    """One project's gateway. Use as an async context; leaving it stops the gateway.

    Args:
        settings: Address, port, limits, folders.
        stats: Where the gateway's figures and pokes go, on this loop.
        seed: Repeats the weighted draws of a run.
    """

    def __init__(self, settings: Settings, stats: StatSink, *, seed: int | None = None) -> None:
        self._settings = settings
        self._stats = stats
        self._seed = seed
        self._token = ""
        self._path = str(settings.runtime / "gateway.sock")
        self._socket: socket.socket | None = None
        self._process: _Process | None = None
        self._table: RouteTable | None = None
        self._fresh = asyncio.Event()
        self._change = asyncio.Condition()
        self._applied: int | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._keep = False
        self._stopping = False
        self.adopted = False
        self.restarts = 0
        self.unbound: dict[str, str] = {}
        # What loggers write, for whoever uploads it.
        self.objects: asyncio.Queue[StoredObject] = asyncio.Queue(MAX_OBJECTS)
        self._writer: asyncio.StreamWriter | None = None
        self._releases: dict[str, asyncio.Future[None]] = {}
        self._held: dict[str, list[str]] = {}
        self._sent: RouteTable | None = None
        self._listings: dict[str, asyncio.Future[float]] = {}
        self.woken: Callable[[Woken], None] | None = None
        self._recorded = settings.requests
        self._asked: dict[int, asyncio.Future[list[dict[str, Any]]]] = {}
        self._numbers = itertools.count(1)

    @property
    def pid(self) -> int:
        """The running gateway; 0 between a crash and its successor."""
        return self._process.pid if self._process is not None else 0

    @property
    def port(self) -> int:
        """The port that is really listened on."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else 0

    @property
    def url(self) -> str:
        """Where clients call."""
        host = self._settings.gateway_host
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def run_file(self) -> Path:
        """`run/gateway.json`."""
        return self._settings.run_dir / GATEWAY_FILE

    async def __aenter__(self) -> GatewayProcess:
        settings = self._settings
        if not _is_loopback(settings.gateway_host) and not settings.auth_token:
            raise UsageError(
                f'gateway.host: "{settings.gateway_host}" is reachable from outside, '
                "which needs auth.token; set it, or keep 127.0.0.1"
            )
        settings.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        if not await self._adopt():
            self._socket = _listening_socket(settings.gateway_host, settings.gateway_port)
            self._process = await self._spawn()
        self._keeper = asyncio.create_task(self._run(), name="gateway-process")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await (self._let_go() if self._keep else self.stop())

    # What the supervisor calls

    def publish(self, table: RouteTable) -> None:
        """Make this the newest table. Never blocks; an older one that waits is skipped."""
        self._table = table
        self._fresh.set()

    async def wait_applied(self, version: int) -> None:
        """Return when the gateway serves the published table `version` or a newer one."""
        async with self._change:
            await self._change.wait_for(
                lambda: self._applied is not None and self._applied >= version
            )

    async def released(self, pod: str) -> None:
        """Return when the gateway sends the Pod nothing more and has all of its answers.

        A gateway that died had no requests any more; its successor is asked again.

        Args:
            pod: `namespace/name`.
        """
        waiting = self._releases.setdefault(pod, asyncio.get_running_loop().create_future())
        if self._writer is not None:
            self._writer.write(encode_frame({"type": "release", "pod": pod}))
        await asyncio.shield(waiting)

    async def requests(self, **wanted: object) -> list[dict[str, Any]]:
        """Return recorded calls, the newest last.

        Args:
            wanted: `namespace`, `name`, `component`, `id`, `last`, `bodies`: which, and how much of
                them (`gateway.link`).

        Raises:
            ServiceUnavailable: The gateway is just being replaced, or does not answer.
        """
        number = next(self._numbers)
        answer: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            if self._writer is None:
                raise ServiceUnavailable("the gateway is being replaced; ask again in a moment")
            self._writer.write(encode_frame({"type": "requests", "number": number, **wanted}))
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await answer
        except TimeoutError as error:
            raise ServiceUnavailable("the gateway does not tell which calls it keeps") from error
        finally:
            self._asked.pop(number, None)

    def record(self, kept: RequestsConfig) -> None:
        """Keep calls by other settings from now on, and show by them what is kept."""
        self._recorded = kept
        if self._writer is not None:
            self._writer.write(encode_frame(self._recording()))

    def _recording(self) -> Frame:
        kept = self._recorded
        return {
            "type": "record",
            "enabled": kept.enabled,
            "keep": kept.keep,
            "maxBytes": kept.max_bytes,
            "headers": list(kept.redact_headers),
            "fields": list(kept.redact_fields),
        }

    def hold(self, pods: Mapping[str, Collection[str]]) -> None:
        """Say which Pods a debugger has stopped; all others run.

        Args:
            pods: `namespace/name` -> the Pods whose requests may wait for it.
        """
        self._held = {pod: sorted(callers) for pod, callers in pods.items()}
        if self._writer is not None:
            self._writer.write(encode_frame({"type": "hold", "pods": self._held}))

    async def listed(self, pod: str) -> float:
        """Return when the gateway was seen to send requests to the Pod, in monotonic seconds.

        Args:
            pod: `namespace/name`.
        """
        loop = asyncio.get_running_loop()
        waiting = self._listings.setdefault(pod, loop.create_future())
        self._tell_listed()
        try:
            return await asyncio.shield(waiting)
        finally:
            self._listings.pop(pod, None)

    def _tell_listed(self) -> None:
        """Answer those who wait for a Pod that the table in use names."""
        table = self._sent
        if not self._listings or table is None or self._applied != table.version:
            return
        for target in (t for route in table.routes for t in route.every_target()):
            for endpoint in target.endpoints:
                waiting = self._listings.get(f"{target.id.partition('/')[0]}/{endpoint.pod}")
                if waiting is not None and not waiting.done():
                    waiting.set_result(time.monotonic())

    def detach(self) -> None:
        """On leaving the context, let the gateway go on serving, to be adopted later."""
        self._keep = True

    async def stop(self, grace: float = 5.0) -> None:
        """Drain for up to `grace` seconds, then end the process. Returns once it is gone."""
        self._stopping = True
        process = self._process
        if process is not None and process.is_alive():
            process.send(signal.SIGTERM) if not await self._tell_stop(grace) else None
            try:
                async with asyncio.timeout(grace + 2.0):
                    await process.wait()
            except TimeoutError:
                logger.warning("gateway did not stop within %.0f s; killing it", grace + 2.0)
                process.send(signal.SIGKILL)
                await process.wait()
        await self._let_go()
        for path in (self.run_file, Path(self._path)):
            with contextlib.suppress(OSError):
                path.unlink()

    def kill(self) -> None:
        """End the process now, requests and all; `stop` still cleans up after it."""
        self._stopping = True
        if self._process is not None:
            self._process.send(signal.SIGKILL)

    async def _let_go(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.close()

    # Process

    async def _adopt(self) -> bool:
        """Take over a gateway that a dead supervisor left behind; False: there is none to have."""
        try:
            run: dict[str, Any] = orjson.loads(self.run_file.read_bytes())
            pid, started = int(run["pid"]), int(run["start_time"])
            token, port, path = str(run["token"]), int(run["port"]), str(run["socket"])
            host = str(run["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        process = _Process.adopt(pid, started)
        if process is None:
            return False
        wanted = self._settings.gateway_port
        taken: socket.socket | None = None
        if host == self._settings.gateway_host and wanted in (None, 0, port):
            try:
                taken = await asyncio.to_thread(_fetch_socket, path, token)
            except (OSError, LinkError) as error:
                logger.warning("gateway %d does not answer (%s); replacing it", pid, error)
        if taken is None:
            # It listens elsewhere than we were told to, or is stuck: its time is over.
            process.send(signal.SIGTERM)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await process.wait()
            except TimeoutError:
                process.send(signal.SIGKILL)
                await process.wait()
            process.close()
            return False
        self._socket, self._process = taken, process
        self._token, self._path = token, path
        self.adopted = True
        logger.info("adopted gateway %d at port %d", pid, port)
        return True

    async def _spawn(self) -> _Process:
        settings = self._settings
        assert self._socket is not None
        self._token = secrets.token_hex(16)
        config = GatewayConfig(
            fd=self._socket.fileno(),
            port=self.port,
            host=settings.gateway_host,
            socket=self._path,
            run_file=str(self.run_file),
            state=str(settings.state),
            token=self._token,
            auth_token="" if _is_loopback(settings.gateway_host) else settings.auth_token,
            max_held=settings.max_held_requests,
            access_log=settings.verbose >= 2,
            calls=str(settings.calls_socket),
            log_level="DEBUG" if settings.verbose else "INFO",
            seed=self._seed,
            stat_period=1.0 / settings.scaling_speed,
        )
        settings.log_dir.mkdir(exist_ok=True)
        log_file = settings.log_dir / "gateway.log"
        with contextlib.suppress(OSError):
            if log_file.stat().st_size > settings.log_max_bytes:
                log_file.replace(log_file.with_suffix(".log.1"))
        with log_file.open("ab") as output:
            child = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-P", "-m", "kserve_local.gateway"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[config.fd],
                start_new_session=True,
                cwd="/",
                env={**os.environ, **_ALLOCATOR},
            )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(orjson.dumps(asdict(config)))
            child.stdin.close()
        return _Process(child.pid, child)

    async def _run(self) -> None:
        """Feed the gateway; when it ends unasked, replace it."""
        attempt = 0
        while True:
            process = self._process
            assert process is not None
            since = time.monotonic()
            link = asyncio.create_task(self._feed(process), name="gateway-link")
            try:
                await process.wait()
            finally:
                link.cancel()
                await asyncio.gather(link, return_exceptions=True)
            if self._stopping:
                return
            process.close()
            if not self._settings.run_dir.is_dir():
                # It ended with its state folder; another one would only make the folder anew.
                logger.error("gateway %d: the state folder is gone", process.pid)
                return
            attempt = 0 if time.monotonic() - since > STABLE_AFTER else attempt + 1
            wait = backoff(attempt - 2, first=0.1, cap=5.0) if attempt > 1 else 0.0
            logger.warning(
                "gateway %d ended (%s); starting another in %.1f s",
                process.pid,
                process.outcome(),
                wait,
            )
            await asyncio.sleep(wait)
            self._process = None
            self._applied = None
            self._process = await self._spawn()
            self.restarts += 1

    # Link

    async def _feed(self, process: _Process) -> None:
        """Keep a link to this process: tables there, figures back."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                if time.monotonic() > deadline:
                    logger.error("gateway %d opened no socket; killing it", process.pid)
                    process.send(signal.SIGKILL)
                    return
                await asyncio.sleep(0.01)
                continue
            try:
                await self._talk(reader, writer)
            except TimeoutError:
                logger.error("gateway %d does not answer; killing it", process.pid)
                process.send(signal.SIGKILL)
                return
            except (LinkError, OSError) as error:
                logger.warning("link to gateway %d: %s", process.pid, error)
            finally:
                writer.close()
            deadline = time.monotonic() + START_TIMEOUT
            await asyncio.sleep(0.05)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode_frame({"type": "hello", "token": self._token}))
        async with asyncio.timeout(ANSWER_TIMEOUT):
            hello = await read_frame(reader)
        if hello is None or hello["type"] != "hello":
            raise LinkError("refused, or ended before it said hello")
        if self._table is not None or hello.get("version") is None:
            # A gateway that has no table yet accepts nobody before its first one.
            self._table = self._table or RouteTable(version=0)
            self._fresh.set()
        # Before any table: nothing is recorded by another rule, such as a former supervisor's.
        writer.write(encode_frame(self._recording()))
        sender = asyncio.create_task(self._send_tables(writer), name="gateway-tables")
        self._writer = writer
        writer.write(encode_frame({"type": "hold", "pods": self._held}))
        for pod in self._releases:
            writer.write(encode_frame({"type": "release", "pod": pod}))
        try:
            while (frame := await read_frame(reader)) is not None:
                await self._take(frame)
        finally:
            self._writer = None
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send_tables(self, writer: asyncio.StreamWriter) -> None:
        """Send the first table of this link whole, the others as changes."""
        before: RouteTable | None = None
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            table = self._table
            if table is not None:
                self._sent = table
                if before is None:
                    writer.write(encode_frame({"type": "table", "table": table}))
                else:
                    change = change_of(before, table)
                    writer.write(encode_frame({"type": "change", "change": change}))
                before = table
                await writer.drain()

    async def _take(self, frame: Frame) -> None:
        kind = frame["type"]
        if kind == "applied":
            async with self._change:
                self._applied = int(frame["version"])
                self.unbound = dict(frame.get("unbound") or {})
                self._change.notify_all()
            self._tell_listed()
        elif kind == "stats":
            self._stats.record(tuple(RequestStat(**s) for s in frame["stats"]))
        elif kind == "poke":
            self._stats.poke(str(frame["target"]))
        elif kind == "woken":
            if self.woken is not None:
                self.woken(Woken(**frame["woken"]))
        elif kind == "object":
            self._take_object(frame)
        elif kind == "requests":
            asked = self._asked.get(int(frame["number"]))
            if asked is not None and not asked.done():
                asked.set_result(frame["requests"])
        elif kind == "released":
            waiting = self._releases.pop(str(frame["pod"]), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def _take_object(self, frame: Frame) -> None:
        data = base64.b64decode(frame["data"])
        found = StoredObject(frame["namespace"], frame["pod"], frame["uri"], data)
        try:
            self.objects.put_nowait(found)
        except asyncio.QueueFull:
            logger.warning("%s: the store does not keep up; the object is lost", found.uri)

    async def _tell_stop(self, grace: float) -> bool:
        """Ask the gateway to drain; False: it could not be reached."""
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    hello = {"type": "hello", "token": self._token, "want": "stop", "grace": grace}
                    writer.write(encode_frame(hello))
                    return await read_frame(reader) is not None
                finally:
                    writer.close()
        except (OSError, LinkError, TimeoutError):
            return False


class _Process:
    """A process that may or may not be our child, watched until it ends."""

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None, started: int = 0) -> None:
        self.pid = pid
        self._child = child
        self._started = started or start_time(pid)
        self._ended: asyncio.Event | None = None
        self._pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)

    @classmethod
    def adopt(cls, pid: int, started: int) -> _Process | None:
        """Return the process if it is alive and really the one that started then."""
        if not _runs(pid, started):
            return None
        process = cls(pid, None, started)
        # Looked at again with the pidfd in hand: the number cannot be reused under us any more.
        if not _runs(pid, started):
            process.close()
            return None
        return process

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        if self._child is not None:
            return self._child.poll() is None
        return _runs(self.pid, self._started)

    def outcome(self) -> str:
        """Say how it ended, as far as it is known."""
        if self._child is None or self._child.returncode is None:
            return "not our child"
        code = self._child.returncode
        return f"signal {-code}" if code < 0 else f"exit {code}"

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it still is that process."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                if self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, number)
                else:
                    os.kill(self.pid, number)

    async def wait(self) -> None:
        """Return once it has ended and, if it is our child, has been reaped."""
        if self._pidfd >= 0 and self.is_alive():
            if self._ended is None:
                # One reader a descriptor: all who wait share it.
                self._ended = asyncio.Event()
                asyncio.get_running_loop().add_reader(self._pidfd, self._has_ended)
            await self._ended.wait()
        while self.is_alive():  # noqa: ASYNC110  # no pidfd here: only asking tells
            await asyncio.sleep(0.05)

    def _has_ended(self) -> None:
        assert self._ended is not None
        self._stop_watching()
        self._ended.set()

    def _stop_watching(self) -> None:
        if self._ended is not None and self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)

    def close(self) -> None:
        """Let go of the handle; a child that goes on is no longer ours to wait for."""
        if self._child is not None and self._child.poll() is None:
            self._child.returncode = 0
        if self._pidfd >= 0:
            self._stop_watching()
            os.close(self._pidfd)
            self._pidfd = -1


def _runs(pid: int, started: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        if os.path.isdir("/proc/self"):
            return False
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    fields = stat[stat.rindex(b")") + 2 :].split()
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == started


def _fetch_socket(path: str, token: str) -> socket.socket:
    """Ask a gateway for its listening socket. Blocking, bounded.

    Raises:
        OSError, LinkError: It does not answer, or gives none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT)
        connection.connect(path)
        connection.sendall(encode_frame({"type": "hello", "token": token, "want": "sockets"}))
        _, fds, _, _ = socket.recv_fds(connection, 64, 4)
    if not fds:
        raise LinkError("it handed over no socket")
    for extra in fds[1:]:
        os.close(extra)
    os.set_inheritable(fds[0], False)
    taken = socket.socket(fileno=fds[0])
    taken.setblocking(False)
    return taken


def _listening_socket(host: str, port: int | None) -> socket.socket:
    """Open the gateway's socket; connections queue from here on.

    Raises:
        PortTaken: Somebody else listens there; the hint says who.
        ServiceUnavailable: The address is not one of this machine's, or may not be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port or 0))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE and port:
            raise taken(port, what="gateway.port", flag="--port") from error
        raise ServiceUnavailable(
            f"gateway: cannot listen on {host}:{port or 0}: {error.strerror}"
        ) from error
    listener.setblocking(False)
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
