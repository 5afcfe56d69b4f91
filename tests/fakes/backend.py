"""A Backend and a StorageInitializer in memory that do the job, for tests of the node agent.

Replicas are values: a test lets containers become ready, end, or run out of memory, and sees what
was asked for. A second `FakeBackend` made from the same `machine` finds the replicas of the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kserve_local.errors import AlreadyExists, Conflict, KServeLocalError, NotFound
from kserve_local.interfaces.backend import (
    ContainerSpec,
    ContainerStatus,
    Progress,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaStatus,
    Usage,
)
from kserve_local.interfaces.code import CodeChange, CodeVerdict
from kserve_local.interfaces.storage import Fetched, StorageRequest

EventKind = Literal["started", "exited", "ready", "unready", "unhealthy", "note"]


@dataclass
class FakeReplica:
    spec: ReplicaSpec
    containers: dict[str, ContainerStatus] = field(default_factory=dict)

    def status(self, *, adopted: bool = False) -> ReplicaStatus:
        return ReplicaStatus(
            id=self.spec.id,
            namespace=self.spec.namespace,
            pod=self.spec.pod,
            ip=self.spec.ip,
            containers=tuple(self.containers.values()),
            adopted=adopted,
        )


class FakeBackend:
    """Starts nothing. `becomes_ready` decides whether a started container is ready at once."""

    def __init__(self, machine: dict[str, FakeReplica] | None = None) -> None:
        self.machine = {} if machine is None else machine
        self.becomes_ready = True
        self.start_error: KServeLocalError | None = None
        self.prepare_error: KServeLocalError | None = None
        self.crash: Callable[[ContainerSpec], tuple[int, str, str] | None] = lambda spec: None
        self.starts: list[str] = []
        self.stops: list[tuple[str, float]] = []
        self.specs: list[ReplicaSpec] = []
        # What its processes say of a change of code, and what they were asked.
        self.code: Callable[[str, str, CodeChange], CodeVerdict] = self._takes
        self.changes: list[tuple[str, str, str]] = []
        self.names: dict[str, dict[str, str]] = {}
        self.held: set[str] = set()
        self.changed = asyncio.Event()
        self._queue: asyncio.Queue[ReplicaEvent] = asyncio.Queue()
        self.host = ""
        self._pid = 100_000

    @staticmethod
    def _takes(what: str, replica: str, change: CodeChange) -> CodeVerdict:
        return CodeVerdict(processes=1, functions=sum(map(len, change.functions.values())))

    def _emit(self, uid: str, kind: EventKind, container: str, message: str = "") -> None:
        replica = self.machine[uid]
        self._queue.put_nowait(
            ReplicaEvent(uid, kind, container, replica.status(), message=message)
        )
        self.changed.set()

    def _run(self, uid: str, spec: ContainerSpec) -> None:
        self._pid += 1
        self.starts.append(spec.name)
        self.machine[uid].containers[spec.name] = ContainerStatus(
            name=spec.name, state="running", pid=self._pid, started_at=time.time()
        )
        self._emit(uid, "started", spec.name)
        died = self.crash(spec)
        if died is not None:
            code, reason, log = died
            self.end(uid, spec.name, code=code, reason=reason, log=log)
        elif self.becomes_ready:
            self.ready(uid, spec.name)

    def ready(self, uid: str, container: str) -> None:
        """Let the container's readiness probe say yes."""
        found = self.machine[uid].containers
        found[container] = replace(found[container], ready=True)
        self._emit(uid, "ready", container)

    def end(
        self,
        uid: str,
        container: str,
        *,
        code: int,
        reason: str = "Error",
        log: str = "",
        termination: str = "",
    ) -> None:
        """Let the container end as if by itself, with a last output."""
        replica = self.machine[uid]
        spec = next(c for c in replica.spec.containers if c.name == container)
        if log:
            spec.log_path.parent.mkdir(parents=True, exist_ok=True)
            with spec.log_path.open("a") as file:
                file.write(log)
        replica.containers[container] = replace(
            replica.containers[container],
            state="terminated",
            ready=False,
            finished_at=time.time(),
            exit_code=code,
            reason=reason,
            termination=termination,
        )
        self._emit(uid, "exited", container)

    def unhealthy(self, uid: str, container: str, message: str) -> None:
        """Let the liveness probe give up."""
        self._emit(uid, "unhealthy", container, message)

    async def prepare(self, container: ContainerSpec, report: Callable[[Progress], None]) -> None:
        if self.prepare_error is not None:
            raise self.prepare_error

    async def warm(self, container: ContainerSpec) -> None:
        return None

    async def start(self, spec: ReplicaSpec) -> str:
        if self.start_error is not None:
            raise self.start_error
        if spec.id in self.machine:
            raise AlreadyExists(f'replica "{spec.id}" exists already')
        self.specs.append(spec)
        self.machine[spec.id] = FakeReplica(spec)
        for container in spec.containers:
            self._run(spec.id, container)
        return spec.id

    async def start_container(self, replica: str, container: ContainerSpec) -> None:
        if replica not in self.machine:
            raise NotFound(f'replica "{replica}" does not exist')
        if self.machine[replica].containers[container.name].state == "running":
            raise Conflict("it runs")
        self._run(replica, container)

    def host_address(self) -> str:
        """Return what the test says; by default replicas share the machine's network."""
        return self.host

    async def runs_images(self) -> bool:
        """Return False: what has no program cannot run."""
        return False

    async def stop_container(self, replica: str, container: str, *, grace: float) -> None:
        self.end(replica, container, code=137)

    async def resolve(self, namespace: str, names: tuple[tuple[str, str], ...]) -> None:
        self.names[namespace] = dict(names)
        self.changed.set()

    async def stop(self, replica: str, *, grace: float) -> None:
        self.stops.append((replica, grace))
        self.machine.pop(replica, None)
        self.changed.set()

    async def hold(self, replica: str, on: bool) -> None:
        (self.held.add if on else self.held.discard)(replica)

    async def control_sockets(self, replica: str, container: str) -> Path | None:
        return None

    async def list(self) -> Sequence[ReplicaStatus]:
        return [r.status(adopted=True) for r in self.machine.values()]

    async def events(self) -> AsyncIterator[ReplicaEvent]:
        while True:
            yield await self._queue.get()

    async def check_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        return self._verdict(replica, container, "check", change)

    async def commit_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        return self._verdict(replica, container, "commit", change)

    def _verdict(
        self, replica: str, container: str, what: Literal["check", "commit"], change: CodeChange
    ) -> CodeVerdict:
        found = self.machine.get(replica)
        if found is None or container not in found.containers:
            raise NotFound(f'replica "{replica}" has no container "{container}"')
        self.changes.append((what, replica, change.id))
        return self.code(what, replica, change)

    async def usage(self, replica: str) -> Usage:
        return Usage(cpu_seconds=0.0, memory_bytes=0)

    async def close(self, *, stop_replicas: bool) -> None:
        if stop_replicas:
            self.machine.clear()


@dataclass
class FakeStorage:
    """Serves folders by URI; an exception in `sources` is raised. `gate` holds fetches back."""

    sources: dict[str, Path | KServeLocalError] = field(default_factory=dict)
    requests: list[StorageRequest] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def fetch(self, request: StorageRequest, report: Callable[[Progress], None]) -> Fetched:
        self.requests.append(request)
        report(Progress(phase="download", message=f"Downloading {request.uri}", done=1, total=2))
        if self.gate is not None:
            await self.gate.wait()
        found: Any = self.sources[request.uri]
        if isinstance(found, KServeLocalError):
            raise found
        return Fetched(path=found, cached=True)
