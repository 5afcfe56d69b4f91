"""`kserve-local debug`: who debugs which service, and what stands still meanwhile.

A session is a port for an IDE (`debug_relay`) and the replica behind it, found anew whenever an IDE
comes. Nothing happens to the replica before; from then on it keeps its scale, and while it stands
at a breakpoint its probes are not judged, its requests have no time limit, and the clocks of its
rollout stand. Sessions end with the supervisor, and so does everything they hold.

`POST /apis/kserve-local.dev/v1/debug` begins a session, `DELETE` ends it, `GET` says one state a
line, with `follow=true` those that come, until the session ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from kserve_local.api import names, pod_autoscaler, scheme
from kserve_local.api.meta import labels_of, name_of, uid_of
from kserve_local.apiserver.app import json_route
from kserve_local.apiserver.watch import OpenStreams
from kserve_local.backends import control
from kserve_local.client.project import DEBUG
from kserve_local.errors import KServeLocalError, NotFound, ServiceUnavailable
from kserve_local.interfaces.backend import Backend
from kserve_local.interfaces.holds import Holds
from kserve_local.settings import ImageSource
from kserve_local.store.store import Store
from kserve_local.supervisor import debug_target
from kserve_local.supervisor.debug_relay import Relay, Streams
from kserve_local.supervisor.debug_target import Target
from kserve_local.supervisor.ports import listen

logger = logging.getLogger(__name__)

DEFAULT_PORT = 5678
WAKE = 60.0
"""Seconds that a replica of a service at zero may take to come."""
_ATTACH = 20.0
"""Seconds that debugpy may take to be imported and to listen."""
_LOOK = 0.1
_STATES = 256

_EXPECTED = "expected"
"""No IDE has attached yet, and requests are held until one has."""


@dataclass
class Session:
    """One service that is debugged.

    Args:
        state: `waiting` for an IDE, `expected`, `attached`, `running`, `stopped`.
        target: The process that an IDE is attached to, or that is meant; None: not known yet.
        told: The last states, for who follows; `count`: how many there were in all.
    """

    namespace: str
    service: str
    component: str
    pid: int | None
    state: str = "waiting"
    target: Target | None = None
    relay: Relay | None = None
    told: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_STATES))
    count: int = 0
    ended: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one session of."""
        return self.namespace, self.service, self.component

    def described(self, images: Mapping[str, ImageSource]) -> dict[str, Any]:
        """Return what the command shows."""
        target = self.target
        return {
            "namespace": self.namespace,
            "name": self.service,
            "component": self.component,
            "host": "127.0.0.1",
            "port": self.relay.port if self.relay is not None else 0,
            "state": self.state,
            "pod": name_of(target.pod) if target is not None else "",
            "container": target.container if target is not None else "",
            "pid": target.pid if target is not None else 0,
            "otherPids": list(target.others) if target is not None else [],
            "source": target.source if target is not None else "",
            "folder": _folder(target, images) if target is not None else "",
        }


class Debugging:
    """All sessions of a project.

    Args:
        hold: Tells the gateway which Pods stand, and who waits for each.
        wake: Wakes a revision (`namespace/name`) as a request would.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        holds: Holds,
        hold: Callable[[Mapping[str, Sequence[str]]], None],
        wake: Callable[[str], None],
        ports: Mapping[str, int | None],
    ) -> None:
        self._store = store
        self._backend = backend
        self._holds = holds
        self._hold = hold
        self._wake = wake
        self._ports = ports
        self._sessions: dict[tuple[str, str, str], Session] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """End all sessions at the end of the block."""
        try:
            yield
        finally:
            for session in list(self._sessions.values()):
                await self.end(session)

    # Sessions

    async def begin(
        self,
        namespace: str,
        service: str,
        component: str,
        *,
        port: int | None,
        pid: int | None = None,
        expect: bool = False,
    ) -> Session:
        """Return the session for a component; one that there is stays, its port too.

        Args:
            port: None: any free one; 0: the project's, or 5678.
            pid: The process; None: the one that serves.
            expect: Hold requests until an IDE has attached.

        Raises:
            NotFound: No such service.
            UsageError: No such component or process, or it runs no code of the user's.
            ServiceUnavailable: It has no replica and none comes.
            PortTaken: The port is held by somebody else.
        """
        debug_target.check(self._store, namespace, service, component)
        session = self._sessions.get((namespace, service, component))
        if session is not None:
            return session
        session = Session(namespace, service, component, pid)
        session.target = await self._find(session)
        if port == 0:
            port = self._ports.get(service, DEFAULT_PORT)
        listener = listen(
            "127.0.0.1",
            port,
            what=f"services.{service}.debug.port",
            flag="--port",
            command=f"debug {service}",
        )

        async def tell(state: str, why: str) -> None:
            await self._tell(session, state, why)

        def reach() -> contextlib.AbstractAsyncContextManager[Streams]:
            return self._reach(session)

        session.relay = Relay(listener, reach, tell)
        await session.stack.enter_async_context(session.relay.open())
        self._sessions[session.key] = session
        await self._tell(session, _EXPECTED if expect else "waiting", "")
        logger.info("%s/%s can be debugged at port %d", namespace, service, session.relay.port)
        return session

    async def end(self, session: Session) -> None:
        """Let the debugger go: whatever stood runs on."""
        if self._sessions.pop(session.key, None) is None:
            return
        await session.stack.aclose()
        session.state, session.ended = "ended", True
        await self._settle(session, before=session.target)
        async with session.changed:
            session.changed.notify_all()

    def of(self, namespace: str, service: str, component: str) -> Session:
        """Return the session of a component.

        Raises:
            NotFound: There is none.
        """
        found = self._sessions.get((namespace, service, component))
        if found is None:
            raise NotFound(f'{component} of "{service}" is not being debugged')
        return found

    async def _find(self, session: Session) -> Target:
        """Return the process to debug, its service woken if it is at zero.

        Raises:
            UsageError: It runs no code of the user's.
            ServiceUnavailable: No replica comes.
        """
        deadline = time.monotonic() + WAKE
        while True:
            found = await debug_target.find(self._store, self._backend, *session.key, session.pid)
            if found is not None:
                return found
            if not self._poke(session) or time.monotonic() > deadline:
                break
            await asyncio.sleep(_LOOK)
        raise ServiceUnavailable(
            f'{session.component} of "{session.service}" has no ready replica to debug',
            hint=f"kserve-local status {session.service}   ·   "
            f"kserve-local scale {session.service} 1",
        )

    def _poke(self, session: Session) -> bool:
        """Wake the component as a request would; False: it cannot be, and none is coming."""
        pods = debug_target.pods_of(self._store, *session.key)
        labels = {names.ISVC_LABEL: session.service, names.COMPONENT_LABEL: session.component}
        found = [
            a
            for a in self._store.list(
                scheme.POD_AUTOSCALER.id, namespace=session.namespace, labels=labels
            )
            if a["spec"].get("reachability") != pod_autoscaler.UNREACHABLE
        ]
        for autoscaler in found:
            self._wake(f"{session.namespace}/{name_of(autoscaler)}")
        return bool(found or pods)

    # One IDE

    @asynccontextmanager
    async def _reach(self, session: Session) -> AsyncIterator[Streams]:
        """Let a debugger into the process and connect to it while the block is open.

        Raises:
            KServeLocalError: There is no such process, or debugpy cannot be had in it.
        """
        target = session.target = await self._find(session)
        scaling = debug_target.scaling(target.pod)
        self._holds.stop(f"{target.name}/attached", scaling, now=time.time())
        try:
            host, inside = await self._address(target)
            request = {"do": "debug", "path": _debugpy(), "host": inside}
            answer = await control.tell(target.sockets, target.pid, request, within=_ATTACH)
            reader, writer = await asyncio.open_connection(host, int(answer["port"]))
            try:
                yield reader, writer
            finally:
                writer.close()
                await asyncio.shield(self._left(session, target))
        finally:
            self._holds.go_on(f"{target.name}/attached", scaling, now=time.time())

    async def _left(self, session: Session, target: Target) -> None:
        with contextlib.suppress(KServeLocalError):
            await control.tell(target.sockets, target.pid, {"do": "undebug"}, within=_ATTACH)

    async def _address(self, target: Target) -> tuple[str, str]:
        """Return where the debugger is reached, and where it has to listen for that."""
        for replica in await self._backend.list():
            for container in replica.containers:
                if replica.id == uid_of(target.pod) and container.name == target.container:
                    if not container.container_id:
                        return "127.0.0.1", "127.0.0.1"
                    if replica.ip:
                        return replica.ip, "0.0.0.0"
        raise ServiceUnavailable(f"Pod {target.name}: this machine does not reach its address")

    async def _tell(self, session: Session, state: str, why: str) -> None:
        """Take a new state: first what stands still, then who is told."""
        if state == "failed":
            await self._note(session, {"state": state, "message": why})
            return
        if state == "attached":
            state = "running"
            if session.state not in ("waiting", _EXPECTED):
                return
        if state == session.state and state != "stopped" and session.told:
            return
        session.state = state
        await self._settle(session, before=session.target)
        told = {"state": state}
        if session.target is not None:
            told["pod"] = name_of(session.target.pod)
        if state == "stopped" and session.target is not None:
            told |= await _place(session.target)
        await self._note(session, told)

    async def _note(self, session: Session, told: dict[str, Any]) -> None:
        async with session.changed:
            session.told.append({"at": time.time(), **told})
            session.count += 1
            session.changed.notify_all()

    async def _settle(self, session: Session, *, before: Target | None) -> None:
        """Let stand what has to, and run on what may."""
        target = session.target
        if target is None:
            return
        stands = session.state == "stopped"
        change = self._holds.stop if stands else self._holds.go_on
        change(target.name, debug_target.clocks(target.pod), now=time.time())
        with contextlib.suppress(NotFound):
            await self._backend.hold(uid_of(target.pod), stands)
        pods = {}
        for each in self._sessions.values():
            if each.target is not None and each.state in ("stopped", _EXPECTED):
                pods[each.target.name] = self._callers(each)
        self._hold(pods)

    def _callers(self, session: Session) -> list[str]:
        """Return the Pods of the service's other components: they may wait for this one."""
        found = debug_target.pods_of(self._store, session.namespace, session.service)
        return [
            f"{session.namespace}/{name_of(pod)}"
            for pod in found
            if labels_of(pod).get(names.COMPONENT_LABEL) != session.component
        ]

    async def follow(self, session: Session, streams: OpenStreams | None) -> AsyncIterator[bytes]:
        """Yield the states of a session, one a line; with `streams` those that come, too."""
        seen = 0
        stopped = asyncio.Event()
        with contextlib.ExitStack() as registered:
            if streams is not None:
                registered.enter_context(streams.register(stopped.set))
            while True:
                fresh = min(session.count - seen, len(session.told))
                seen = session.count
                for told in list(session.told)[len(session.told) - fresh :]:
                    yield orjson.dumps(told) + b"\n"
                if streams is None or session.ended or stopped.is_set():
                    return
                async with session.changed:
                    if seen == session.count and not session.ended:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(1.0):
                                await session.changed.wait()


def _folder(target: Target, images: Mapping[str, ImageSource]) -> str:
    """Return the folder on this machine that holds what a process sees as its code."""
    if Path(target.source).is_dir() and not target.in_container:
        return target.source
    source = images.get(target.image)
    return str(source.context) if source is not None else "${workspaceFolder}"


async def _place(target: Target) -> dict[str, Any]:
    """Return where a process stands, as far as it says."""
    for interpreter in await control.describe(target.sockets):
        if interpreter.pid == target.pid and (frame := debug_target.where(interpreter)):
            return {"file": frame.file, "line": frame.line, "function": frame.function}
    return {}


def _debugpy() -> list[str]:
    """Return the folder that holds kserve-local's own debugpy, if it has one."""
    found = find_spec("debugpy")
    return [str(Path(found.origin).parents[1])] if found is not None and found.origin else []


def routes(
    debugging: Debugging, images: Mapping[str, ImageSource], streams: OpenStreams
) -> Sequence[BaseRoute]:
    """Return the routes that the API server serves.

    Args:
        images: Image -> its source on this machine.
    """

    def named(request: Request) -> tuple[str, str, str]:
        query = request.query_params
        return query["namespace"], query["name"], query.get("component") or "predictor"

    async def begin(request: Request) -> object:
        asked = await request.json()
        port = asked.get("port", 0)
        try:
            session = await debugging.begin(
                *named(request),
                port=None if port == "auto" else int(port),
                pid=asked.get("pid"),
                expect=bool(asked.get("waitForClient")),
            )
        except KServeLocalError as error:
            # A Status has no place for the exit code, nor for the way out.
            failed = {"exitCode": error.exit_code, "message": error.message, "hint": error.hint}
            return {"failed": failed}
        return session.described(images)

    async def end(request: Request) -> object:
        session = debugging.of(*named(request))
        await debugging.end(session)
        return session.described(images)

    async def states(request: Request) -> Response:
        session = debugging.of(*named(request))
        follow = request.query_params.get("follow") == "true"
        lines = debugging.follow(session, streams if follow else None)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    return [
        json_route(DEBUG, begin, "POST"),
        json_route(DEBUG, end, "DELETE"),
        Route(DEBUG, states, methods=["GET"]),
    ]
