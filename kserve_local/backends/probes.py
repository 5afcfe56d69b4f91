"""Kubernetes probes: the four kinds of check, and the state machine that runs them.

Semantics are the kubelet's (initial delay, period, timeout, thresholds, startup before the others)
with one difference in favour of the developer: until a container is ready, readiness is asked
every few milliseconds instead of once a period, so it counts as ready when it is. These extra
looks never count as failures, and a container that does not listen yet is given some seconds before
anything is told about it. Checks speak raw HTTP on asyncio streams: a probe costs a fraction
of what an HTTP client library takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kserve_local import sock_diag
from kserve_local.backends import grpc_health, rhythm
from kserve_local.errors import KServeLocalError
from kserve_local.interfaces.backend import Probe

log = logging.getLogger(__name__)

_FIRST_LOOK = 0.004
_SLOWER = 1.25
_SLOWEST_LOOK = 0.5
_BODY = 1024
# Most servers listen by then; the kubelet with its longer periods would tell about as late.
_PATIENCE = 5.0
_REFUSED = "connect: connection refused"
_REALLY = 30
"""Of so many looks at a ready replica one connects; the others ask the kernel who listens."""
_SHARED_FOR = 0.25
"""Seconds for which its answer serves all replicas."""
_PROXY_DIALS = 0.1
"""Seconds in which an engine's proxy finds out that nobody listens behind it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a container's probes go.

    Args:
        ports: The Pod's ports -> those really listened on.
        env, cwd: For exec probes.
        is_proxied: The ports are an engine's proxy's, which accepts for a Pod that does not listen
            yet, and then closes the connection.
        run: Runs an exec probe's command where the container is and returns exit code and output;
            None: as a process beside it, with `env` and `cwd`.
    """

    ip: str
    ports: Mapping[int, int] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    is_proxied: bool = False
    run: Callable[[Sequence[str]], Awaitable[tuple[int, bytes]]] | None = None


class ProbeFailed(Exception):
    """The check said no; the message is worded as the kubelet's."""


class ProbeErrored(Exception):
    """The check could not be done, which says nothing of the container; as the kubelet's."""


async def check(probe: Probe, target: Target) -> None:
    """Do one check, within the probe's timeout.

    Raises:
        ProbeFailed: It did not pass.
        ProbeErrored: An exec probe's engine does not answer, or did not let it run.
    """
    run = {"http": _http, "tcp": _tcp, "exec": _exec, "grpc": _grpc}[probe.kind]
    try:
        async with asyncio.timeout(max(probe.timeout, 0.001)):
            await run(probe, target)
    except TimeoutError:
        raise ProbeFailed(_timed_out(probe, target)) from None


def _port(probe: Probe, target: Target) -> int:
    return target.ports.get(probe.port, probe.port)


def _host(probe: Probe, target: Target) -> str:
    return probe.host or target.ip or "127.0.0.1"


def _url(probe: Probe, target: Target) -> str:
    return f"{probe.scheme.lower()}://{_host(probe, target)}:{_port(probe, target)}{probe.path}"


def _timed_out(probe: Probe, target: Target) -> str:
    if probe.kind == "http":
        return (
            f'Get "{_url(probe, target)}": context deadline exceeded '
            "(Client.Timeout exceeded while awaiting headers)"
        )
    if probe.kind == "tcp":
        return f"dial tcp {_host(probe, target)}:{_port(probe, target)}: i/o timeout"
    if probe.kind == "exec":
        return f'command "{" ".join(probe.command)}" timed out'
    return (
        f'timeout: failed to connect service "{_host(probe, target)}:{_port(probe, target)}" '
        f"within {probe.timeout:g}s: context deadline exceeded"
    )


def _refused(probe: Probe, target: Target) -> str:
    return f"dial tcp {_host(probe, target)}:{_port(probe, target)}: {_REFUSED}"


async def _open(
    probe: Probe, target: Target, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = _host(probe, target), _port(probe, target)
    try:
        return await asyncio.open_connection(host, port, ssl=context, limit=65536)
    except ConnectionRefusedError:
        raise ProbeFailed(_refused(probe, target)) from None
    except OSError as error:
        raise ProbeFailed(f"dial tcp {host}:{port}: {error.strerror or error}") from None


async def _tcp(probe: Probe, target: Target) -> None:
    if not target.is_proxied and _is_ipv4(_host(probe, target)):
        await _knock(probe, target)
        return
    reader, writer = await _open(probe, target)
    try:
        if target.is_proxied and await _is_closed(reader):
            raise ProbeFailed(_refused(probe, target))
    finally:
        writer.close()


def _is_ipv4(host: str) -> bool:
    return host.count(".") == 3 and host.replace(".", "").isdecimal()


async def _knock(probe: Probe, target: Target) -> None:
    """Connect to an IPv4 address and hang up.

    A hundred replicas are asked once a second each, and on this machine a connection is mostly
    there at once: a socket alone costs a tenth of what streams do.
    """
    host, port = _host(probe, target), _port(probe, target)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as knock:
        knock.setblocking(False)
        try:
            code = knock.connect_ex((host, port))
            if code == errno.EINPROGRESS and not _is_connected(knock):
                await asyncio.get_running_loop().sock_connect(knock, (host, port))
            elif code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except ConnectionRefusedError:
            raise ProbeFailed(_refused(probe, target)) from None
        except OSError as error:
            raise ProbeFailed(f"dial tcp {host}:{port}: {error.strerror or error}") from None


class _Listeners:
    """The sockets of this machine that listen, as of less than a moment ago."""

    def __init__(self) -> None:
        self._known: frozenset[tuple[int, int]] = frozenset()
        self._until = 0.0

    def now(self) -> frozenset[tuple[int, int]]:
        if time.monotonic() >= self._until:
            try:
                self._known = sock_diag.listening()
            except OSError:
                self._known = frozenset()  # everybody is asked for real, then
            self._until = time.monotonic() + _SHARED_FOR
        return self._known


_listeners = _Listeners()


def _listens(probe: Probe, target: Target) -> bool:
    """Whether the kernel says that a TCP probe of a process here would be answered.

    It does not know of a server that accepts nobody any more: every so many looks, and from the
    first failure on, it is really asked.
    """
    host = _host(probe, target)
    if probe.kind != "tcp" or target.is_proxied or target.run is not None or not _is_ipv4(host):
        return False
    port, found = _port(probe, target), _listeners.now()
    return (int.from_bytes(socket.inet_aton(host), "big"), port) in found or (0, port) in found


def _is_connected(knock: socket.socket) -> bool:
    try:
        knock.getpeername()
    except OSError:
        return False
    return True


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection by itself, soon."""
    try:
        async with asyncio.timeout(_PROXY_DIALS):
            return not await reader.read(1)
    except TimeoutError:
        return False
    except OSError:
        return True


async def _http(probe: Probe, target: Target) -> None:
    context = None
    if probe.scheme.lower() == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        reader, writer = await _open(probe, target, context)
    except ProbeFailed as failed:
        raise ProbeFailed(f'Get "{_url(probe, target)}": {failed}') from None
    try:
        headers = {
            "host": f"{_host(probe, target)}:{_port(probe, target)}",
            "user-agent": "kube-probe/1.34",
            "accept": "*/*",
        }
        headers.update((name.lower(), value) for name, value in probe.headers)
        lines = [f"GET {probe.path or '/'} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items() if value]
        writer.write(("\r\n".join(lines) + "\r\nconnection: close\r\n\r\n").encode("latin-1"))
        try:
            line = await reader.readline()
            status = line.split(b" ", 2)
        except (OSError, ValueError) as error:
            if target.is_proxied and isinstance(error, OSError):
                raise ProbeFailed(
                    f'Get "{_url(probe, target)}": {_refused(probe, target)}'
                ) from None
            raise ProbeFailed(f'Get "{_url(probe, target)}": {error}') from None
        if target.is_proxied and not line:
            raise ProbeFailed(f'Get "{_url(probe, target)}": {_refused(probe, target)}')
        if len(status) < 2 or not status[0].startswith(b"HTTP/") or not status[1].isdigit():
            raise ProbeFailed(f'Get "{_url(probe, target)}": EOF')
        code = int(status[1])
        if not 200 <= code < 400:
            raise ProbeFailed(f"HTTP probe failed with statuscode: {code}")
    finally:
        writer.close()


async def _exec(probe: Probe, target: Target) -> None:
    if target.run is not None:
        try:
            code, output = await target.run(probe.command)
        except KServeLocalError as error:
            raise ProbeErrored(str(error)) from error
        _judge(code, output)
        return
    try:
        process = await asyncio.create_subprocess_exec(
            *probe.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(target.env),
            cwd=target.cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise ProbeFailed(f'exec: "{probe.command[0]}": {error.strerror}') from None
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    _judge(process.returncode or 0, output)


def _judge(code: int, output: bytes) -> None:
    if code != 0:
        text = output[:_BODY].decode(errors="replace").strip()
        raise ProbeFailed(text or f"command terminated with exit code {code}")


async def _grpc(probe: Probe, target: Target) -> None:
    reader, writer = await _open(probe, target)
    try:
        authority = f"{_host(probe, target)}:{_port(probe, target)}"
        status = await grpc_health.ask(reader, writer, probe.service, authority)
    except (OSError, EOFError, ValueError) as error:
        raise ProbeFailed(f"error: health rpc failed: {error}") from None
    finally:
        writer.close()
    if status != grpc_health.SERVING:
        name = grpc_health.NAMES.get(status, str(status))
        raise ProbeFailed(f'service unhealthy (responded with "{name}")')


@dataclass(frozen=True, slots=True)
class Change:
    """What a probe found out: `ready`, `unready`, or `unhealthy` (liveness or startup gave up)."""

    kind: str
    message: str = ""


class Pause:
    """Whether a container's probes are judged: not while a debugger has stopped it.

    Attributes:
        stood: Seconds that all pauses before took together.
    """

    def __init__(self) -> None:
        self.stood = 0.0
        self._begun = 0
        self._since: float | None = None
        self._over = asyncio.Event()
        self._over.set()

    def set(self, on: bool) -> None:
        """Begin a pause, or end it."""
        now = time.monotonic()
        if on and self._since is None:
            self._since = now
            self._begun += 1
            self._over.clear()
        elif not on and self._since is not None:
            self.stood += now - self._since
            self._since = None
            self._over.set()

    async def check(self, probe: Probe, target: Target) -> None:
        """Do one check, of which only a failure outside every pause is told. See `check`.

        Raises:
            ProbeFailed: It did not pass, and no pause had to do with it.
            ProbeErrored: It could not be done.
        """
        while True:
            await self._over.wait()
            before = self._begun
            try:
                await check(probe, target)
                return
            except ProbeFailed:
                if self._begun == before:
                    raise


Explain = Callable[[Probe, bool], Awaitable[str]]
"""Says more about a probe that failed, and whether it was refused a connection; may be empty."""


async def _nothing_more(probe: Probe, refused: bool) -> str:
    return ""


async def watch(
    *,
    startup: Probe | None,
    readiness: Probe | None,
    liveness: Probe | None,
    target: Target,
    report: Callable[[Change], None],
    explain: Explain = _nothing_more,
    pause: Pause | None = None,
) -> None:
    """Run a container's probes from its start until cancelled, or until it is found unhealthy.

    Args:
        explain: Asked before a failure is told; lines that go below it.
        pause: Says while nothing is to be judged.
    """
    teller = _Teller(report, explain)
    pause = pause or Pause()
    if startup is not None and not await _wait_for_startup(startup, target, teller, pause):
        return
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_watch_readiness(readiness, target, teller, pause), name="readiness")
        if liveness is not None:
            tasks.create_task(_watch_liveness(liveness, target, teller, pause), name="liveness")


class _Teller:
    """Tells failures of a container that is not ready, each text once.

    Refusals are normal while it loads: they are told after a while, and again, at growing
    distances, when the explanation has changed.
    """

    def __init__(self, report: Callable[[Change], None], explain: Explain) -> None:
        self.report = report
        self._explain = explain
        self._told = ""
        self._begin()

    def _begin(self) -> None:
        self._since = asyncio.get_running_loop().time()
        self._wait = _PATIENCE

    def ready(self) -> None:
        self._told = ""
        self.report(Change("ready"))

    async def became_unready(self, probe: Probe, message: str) -> None:
        """Tell at once: it was ready before."""
        self._begin()
        self._told = await self._whole(probe, message)
        self.report(Change("unready", self._told))

    async def still_unready(self, probe: Probe, message: str, *, patient: bool) -> None:
        """Tell what is new; when `patient`, only after a while."""
        if patient:
            now = asyncio.get_running_loop().time()
            if now - self._since < self._wait:
                return
            self._wait *= 2
        elif message == self._told.partition("\n")[0]:
            return
        whole = await self._whole(probe, message)
        if whole != self._told:
            self._told = whole
            self.report(Change("unready", whole))

    async def gave_up(self, probe: Probe, message: str) -> None:
        """Tell that the container is to be restarted, and what it was doing."""
        self.report(Change("unhealthy", await self._whole(probe, message)))

    async def _whole(self, probe: Probe, message: str) -> str:
        more = await self._explain(probe, message.endswith(_REFUSED))
        return f"{message}\n{more}" if more else message


async def _wait_for_startup(probe: Probe, target: Target, teller: _Teller, pause: Pause) -> bool:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(probe.initial_delay)
    give_up = loop.time() + probe.period * probe.failure_threshold
    stood = pause.stood
    wait = _FIRST_LOOK
    while True:
        try:
            await pause.check(probe, target)
            return True
        except ProbeFailed as failed:
            message = f"Startup probe failed: {failed}"
            give_up, stood = give_up + pause.stood - stood, pause.stood
            if loop.time() >= give_up:
                await teller.gave_up(probe, message)
                return False
            await teller.still_unready(probe, message, patient=True)
        except ProbeErrored as error:
            log.info("startup probe: %s", error)
        await asyncio.sleep(min(wait, max(give_up - loop.time(), 0.0)))
        wait = min(wait * _SLOWER, probe.period, _SLOWEST_LOOK)


async def _watch_readiness(
    probe: Probe | None, target: Target, teller: _Teller, pause: Pause
) -> None:
    if probe is None:
        teller.ready()
        return
    loop = asyncio.get_running_loop()
    await asyncio.sleep(probe.initial_delay)
    ready, successes, failures, looks = False, 0, 0, 0
    wait = _FIRST_LOOK
    ever = False
    while True:
        looks += 1
        try:
            if not (ready and not failures and looks % _REALLY and _listens(probe, target)):
                await pause.check(probe, target)
            successes, failures = successes + 1, 0
            if not ready and successes >= probe.success_threshold:
                ready = ever = True
                teller.ready()
        except ProbeFailed as failed:
            successes, failures = 0, failures + 1
            message = f"Readiness probe failed: {failed}"
            if ready and failures >= probe.failure_threshold:
                ready = False
                await teller.became_unready(probe, message)
            elif not ready:
                # What a server answers is news at once; before it listens there is little to tell.
                await teller.still_unready(probe, message, patient="refused" in message)
        except ProbeErrored as error:
            log.info("readiness probe: %s", error)
        await asyncio.sleep(rhythm.together(probe.period, loop.time()) if ever else wait)
        wait = min(wait * _SLOWER, probe.period, _SLOWEST_LOOK)


async def _watch_liveness(probe: Probe, target: Target, teller: _Teller, pause: Pause) -> None:
    await asyncio.sleep(probe.initial_delay)
    failures = 0
    while True:
        try:
            await pause.check(probe, target)
            failures = 0
        except ProbeFailed as failed:
            failures += 1
            if failures >= probe.failure_threshold:
                await teller.gave_up(probe, f"Liveness probe failed: {failed}")
                return
        except ProbeErrored as error:
            log.info("liveness probe: %s", error)
        await asyncio.sleep(probe.period)
