"""The gateway process: inherits its listening socket, serves the newest table, reports figures.

Reads its configuration (`GatewayConfig` as JSON) from stdin to the end, writes its run file, and
accepts clients from the first table on, so that after a respawn those who queued at the socket
find their routes. Without a supervisor it goes on with the last table. It ends on `stop`, on
SIGTERM (both drain), and when the state folder is gone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from time import perf_counter, time
from typing import Any

import orjson
import uvloop

from kserve_local import log
from kserve_local.gateway import errors, exposition
from kserve_local.gateway.agent_host import agent_host
from kserve_local.gateway.calls import Calls
from kserve_local.gateway.graph_host import graph_host
from kserve_local.gateway.http1 import ClientConnection
from kserve_local.gateway.link import Frame, LinkError, SupervisorLink
from kserve_local.gateway.proxy import Dataplane, Exchange
from kserve_local.gateway.recorded import identity, told
from kserve_local.gateway.recorder import Key, Recorder
from kserve_local.gateway.redaction import Redaction
from kserve_local.gateway.table import EXPLAINER
from kserve_local.interfaces.routing import (
    SERVICE_PORT,
    UNPRIVILEGED_PORT,
    RouteTable,
    changed_table,
    table_from_wire,
)
from kserve_local.interfaces.stats import Woken

logger = logging.getLogger("kserve_local.gateway")

BACKLOG = 4096
STAT_PERIOD = 1.0
STORE_AGAIN = 0.5
EVENTS_GRACE = 2.0
"""Seconds that events have to be delivered when the gateway stops."""
PAYLOADS = "payloads"
"""Folder of the built-in sink below the state folder."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What the supervisor says at start.

    Args:
        fd: The inherited listening socket.
        port: Its port.
        socket: Path of the Unix socket to own.
        run_file / state: Where to write who we are; the folder whose end is ours.
        token: What a supervisor must say on the Unix socket.
        auth_token: Demanded of every request; set when `host` is no loopback address.
        max_held: Requests one revision may hold without a replica.
        access_log: One line a request on stderr.
        calls: Path of the Unix socket on which calls within Pods are told; empty: none.
        seed: For the weighted draws; None: random.
        stat_period: Seconds between two reports of figures.
    """

    fd: int
    port: int
    socket: str
    run_file: str
    state: str
    token: str
    host: str = "127.0.0.1"
    auth_token: str = ""
    max_held: int = 1000
    access_log: bool = False
    calls: str = ""
    log_level: str = "INFO"
    seed: int | None = None
    stat_period: float = STAT_PERIOD


def start_time(pid: int | str) -> int:
    """Return when a process started, in clock ticks since boot; 0 when it is not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


class Neighbour(ClientConnection):
    """A client at this machine's address in a network of containers: only who lives in it is heard.

    No token is asked for there, and the machine routes between its networks.

    Args:
        network: That network.
    """

    __slots__ = ("_network",)

    def __init__(
        self,
        plane: Dataplane,
        admin: Callable[[bytes], errors.Answer | None],
        service: bytes,
        network: IPv4Network,
    ) -> None:
        super().__init__(plane, admin, service)
        self._network = network

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        if not isinstance(peer, tuple) or IPv4Address(peer[0]) not in self._network:
            transport.abort()  # type: ignore[attr-defined]  # always a full transport here
            return
        super().connection_made(transport)


def _network_of(address: str) -> IPv4Network | None:
    """Return the network that an interface with this address is in; None on the loopback."""
    if address.startswith("127."):
        return None
    import psutil

    for found in psutil.net_if_addrs().values():
        for each in found:
            if each.family == socket.AF_INET and each.address == address and each.netmask:
                return IPv4Network(f"{address}/{each.netmask}", strict=False)
    return IPv4Network(address)  # nobody but the machine itself


class Gateway:
    """One gateway: the data plane with its listeners and its link."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.plane = Dataplane(
            poke=self._poke,
            max_held=config.max_held,
            token=config.auth_token.encode(),
            seed=config.seed,
        )
        self.plane.woken = self._woken
        if config.access_log:
            self.plane.access_log = _log_access
        self.plane.graphs = graph_host(self.plane, self._admin)
        self.plane.agents = agent_host(
            self.plane,
            self._admin,
            folder=Path(config.state) / PAYLOADS,
            store=self._store,
        )
        self._public = socket.socket(fileno=config.fd)
        self._public.setblocking(False)
        self._stop = asyncio.Event()
        self._grace = 5.0
        self._server: asyncio.Server | None = None
        self._services: dict[str, asyncio.Server] = {}
        self._unbound: dict[str, str] = {}
        self._binding: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._started = perf_counter()
        self._link: SupervisorLink | None = None
        # One for good: heads remember where their requests are kept.
        self._recorder = Recorder()
        self._redaction = Redaction()

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        config = self.config
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        listener = _own_socket(config.socket)
        self._link = SupervisorLink(
            listener,
            token=config.token,
            hello=self._hello,
            on_frame=self._on_frame,
            sockets=[self._public],
        )
        calls: Calls | None = None
        if config.calls:
            try:
                calls = Calls(config.calls, self.plane.traces)
            except OSError as error:
                logger.warning("traces will lack calls within Pods: %s: %s", config.calls, error)
        _write_run_file(config)
        work = [
            asyncio.create_task(self._link.serve(), name="link"),
            asyncio.create_task(self.plane.keep_time(), name="clock"),
            asyncio.create_task(self._report(), name="report"),
            asyncio.create_task(self._watch_state(), name="watch-state"),
        ]
        try:
            await self._stop.wait()
            await self._drain()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            listener.close()
            if calls is not None:
                calls.close()
            for path in (config.socket, config.run_file):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    # The link

    def _hello(self) -> Frame:
        return {
            "type": "hello",
            "pid": os.getpid(),
            "port": self.config.port,
            "version": self.plane.table.version if self._server or self._listening else None,
        }

    def _on_frame(self, frame: Frame) -> Frame | None:
        kind = frame["type"]
        if kind in ("table", "change"):
            if kind == "table":
                table = table_from_wire(frame["table"])
            else:
                try:
                    table = changed_table(self.plane.table.table, frame["change"])
                except ValueError as error:
                    raise LinkError(str(error)) from error
            self.plane.apply(table)
            if self._listening is None:
                self._listening = asyncio.create_task(self._listen(), name="listen")
            self._bind_services(dict(table.listen or {}))
            return {"type": "applied", "version": table.version, "unbound": self._unbound}
        if kind == "hold":
            self.plane.hold({str(pod): list(map(str, c)) for pod, c in frame["pods"].items()})
            return None
        if kind == "release":
            self.plane.when_released(str(frame["pod"]), self._released)
            return None
        if kind == "record":
            self._record(frame)
            return None
        if kind == "requests":
            return {"type": "requests", "number": frame["number"], "requests": self._told(frame)}
        if kind == "stop":
            self._grace = float(frame.get("grace", 5.0))
            self._stop.set()
        return None

    def _record(self, frame: Frame) -> None:
        """Keep calls from now on, by these settings, or forget all of them."""
        if not frame["enabled"]:
            self.plane.recorder = None
            self._recorder.forget()
            return
        self._redaction = Redaction(frame["headers"], frame["fields"])
        self._recorder.limit(int(frame["keep"]), int(frame["maxBytes"]))
        self.plane.recorder = self._recorder

    def _told(self, frame: Frame) -> list[dict[str, Any]]:
        recorder = self.plane.recorder
        if recorder is None:
            return []
        component, wanted = str(frame.get("component") or ""), str(frame.get("id") or "")
        found = recorder.entries(
            namespace=str(frame.get("namespace") or ""),
            service=str(frame.get("name") or ""),
            component=component,
        )
        inner = _inner(self.plane.table.table, {key for key, _ in found})
        if wanted:
            # The whole id, else the newest that begins so.
            named = [(identity(entry), key, entry) for key, entry in found]
            same = [n for n in named if n[0] == wanted]
            same = same or [n for n in named if n[0].startswith(wanted)]
            found = [(key, entry) for _, key, entry in same[-1:]]
        elif not component:
            found = [pair for pair in found if pair[0] not in inner]
        # Of all services together no more than one may have: it is told between calls.
        last = int(frame.get("last") or 0) or recorder.keep
        bodies, clock = bool(frame.get("bodies")), time() - perf_counter()
        return [
            told(key, entry, self._redaction, inner=key in inner, bodies=bodies, clock=clock)
            for key, entry in found[-last:]
        ]

    def _released(self, pod: str) -> None:
        if self._link is not None:
            self._link.send({"type": "released", "pod": pod})

    def _poke(self, target: str) -> None:
        if self._link is not None:
            self._link.send({"type": "poke", "target": target})

    def _woken(self, woken: Woken) -> None:
        if self._link is not None:
            self._link.send({"type": "woken", "woken": woken})

    async def _store(self, namespace: str, pod: str, uri: str, data: bytes) -> None:
        """Hand an object to the supervisor, which may write it; wait for one that listens."""
        frame = {
            "type": "object",
            "namespace": namespace,
            "pod": pod,
            "uri": uri,
            "data": base64.b64encode(data).decode(),
        }
        while self._link is None or not self._link.send(frame):  # noqa: ASYNC110  # asked, as it tells
            await asyncio.sleep(STORE_AGAIN)

    async def _report(self) -> None:
        period = self.config.stat_period
        due = perf_counter() + period
        while True:
            await asyncio.sleep(max(0.0, due - perf_counter()))
            due = max(due + period, perf_counter())
            stats = self.plane.stats(perf_counter())
            if stats and self._link is not None:
                self._link.send({"type": "stats", "stats": stats})

    async def _watch_state(self) -> None:
        # Watched by asking: a folder on any file system, once a second, costs nothing.
        while os.path.isdir(self.config.state):  # noqa: ASYNC110,ASYNC240  # one stat call
            await asyncio.sleep(1.0)
        logger.info("the state folder is gone; leaving")
        self._grace = 1.0
        self._stop.set()

    # Listening

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ClientConnection(self.plane, self._admin), sock=self._public, backlog=BACKLOG
        )

    def _bind_services(self, listen: dict[str, str]) -> None:
        for address in [a for a in self._services if a not in listen]:
            self._services.pop(address).close()
        if self._binding is None or self._binding.done():
            missing = [a for a in listen if a not in self._services and a not in self._unbound]
            if missing:
                self._binding = asyncio.create_task(self._bind(missing), name="bind-services")

    async def _bind(self, addresses: list[str]) -> None:
        while addresses:
            for address in addresses:
                try:
                    network = await asyncio.to_thread(_network_of, address)
                    try:
                        server = await self._serve_at(address, SERVICE_PORT, network)
                    except PermissionError:
                        # Replicas that are processes know this port; those in Docker do not.
                        server = await self._serve_at(address, UNPRIVILEGED_PORT, network)
                    self._services[address] = server
                except OSError as error:
                    # The names still work by Host and path.
                    self._unbound[address] = str(error)
                    logger.info("no listener at %s: %s", address, error)
            listen = self.plane.table.table.listen or {}
            addresses = [a for a in listen if a not in self._services and a not in self._unbound]

    async def _serve_at(
        self, address: str, port: int, network: IPv4Network | None
    ) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            functools.partial(self._serve, address, network), address, port, backlog=BACKLOG
        )

    def _serve(self, address: str, network: IPv4Network | None) -> ClientConnection:
        host = self._service_host(address)
        if network is None:
            return ClientConnection(self.plane, self._admin, host)
        return Neighbour(self.plane, self._admin, host, network)

    def _service_host(self, address: str) -> bytes:
        return ((self.plane.table.table.listen or {}).get(address, "")).encode()

    def _admin(self, target: bytes) -> errors.Answer | None:
        path = target.partition(b"?")[0]
        if path == b"/-/healthz":
            return errors.Answer(200, b"ok\n")
        if path == b"/-/metrics":
            body = exposition.render(self.plane, uptime=perf_counter() - self._started)
            return errors.Answer(200, body, kind=exposition.CONTENT_TYPE)
        return None

    # The end

    async def _drain(self) -> None:
        """Take no more connections, let requests finish within the grace, then close."""
        self.plane.draining = True
        if self._listening is not None:
            await self._listening
        for server in (self._server, *self._services.values()):
            if server is not None:
                server.close()
        for client in list(self.plane.clients):
            client.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                await self.plane.all_gone()
        for client in list(self.plane.clients):
            client.transport.abort()
        if self.plane.agents is not None:
            await self.plane.agents.drain(min(self._grace, EVENTS_GRACE))


def _inner(table: RouteTable, keys: set[Key]) -> set[Key]:
    """Return those of the components that only others of their service call.

    Of a service that is gone nothing is known; whatever it had is as good as its entry.
    """
    entries: dict[tuple[str, str], set[str]] = {}
    for route in table.routes:
        if route.names_service:
            at = entries.setdefault((route.namespace, route.service), set())
            at |= {route.component, *((EXPLAINER,) if route.explain else ())}
    return {key for key in keys if key[2] not in entries.get(key[:2], {key[2]})}


def _log_access(exchange: Exchange, now: float) -> None:
    head = exchange.head
    logger.info(
        '%s "%s %s" %d %.1fms %s',
        exchange.client.peer,
        head.method.decode("latin-1"),
        head.target.decode("latin-1"),
        exchange.status,
        (now - exchange.started) * 1000,
        exchange.target.spec.id,
    )


def _own_socket(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def _write_run_file(config: GatewayConfig) -> None:
    """Say who we are, for a supervisor that has to adopt us. All or nothing, mode 0600."""
    content: dict[str, Any] = {
        "pid": os.getpid(),
        "start_time": start_time("self"),
        "token": config.token,
        "host": config.host,
        "port": config.port,
        "socket": config.socket,
        "url": f"http://{config.host}:{config.port}",
    }
    path = Path(config.run_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(orjson.dumps(content))
    os.replace(part, path)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Read the configuration from stdin and serve."""
    config = GatewayConfig(**orjson.loads(sys.stdin.buffer.read()))
    log.configure(config.log_level)
    _raise_file_limit()

    async def serve() -> None:
        await Gateway(config).run()

    # What start-up made stays: no later collection has to look at it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    return 0
