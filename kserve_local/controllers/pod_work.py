"""What the node agent keeps in memory of a Pod, and what it needs of the store.

Everything here can be found out again from the Pod's status, the Pod's folder and the backend, so
a new supervisor loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kserve_local.api import names
from kserve_local.api.meta import Key, Object, annotations_of, uid_of
from kserve_local.controllers.pod_containers import init_containers
from kserve_local.controllers.pod_plan import Blocked, Record, Seen, records_of
from kserve_local.controllers.pod_status import Running, Terminated, Waiting, terminated_from_json
from kserve_local.controllers.pod_volumes import Content
from kserve_local.interfaces.backend import ContainerStatus, ReplicaStatus

DOCKER = "docker"
"""Value of the Pod's annotation `kserve-local.dev/backend` when it runs as containers."""
KUBELET = "kubelet"
INITIALIZE = "init-"
"""What the name of an init container's task begins with."""


class PodStore(Protocol):
    """What the node agent needs of the store."""

    def find(self, key: Key) -> Object | None: ...

    def list(
        self,
        resource: str,
        *,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[Object]: ...

    async def update(self, obj: Object) -> Object: ...

    async def update_status(self, obj: Object) -> Object: ...

    async def delete(
        self, key: Key, *, uid: str | None = None, grace: float | None = None
    ) -> Object: ...


class Recorder(Protocol):
    """Takes Events."""

    async def event(
        self,
        obj: Object,
        type_: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        *,
        component: str = "",
    ) -> None: ...


Note = Callable[[Object, Literal["Normal", "Warning"], str, str], None]
"""`note(pod, type, reason, message)` records an Event in kubelet's name, without waiting."""


@dataclass(slots=True)
class Work:
    """One Pod.

    Args:
        contents: What each init container fetched.
        images: What really runs, by container.
        notes: Which stand-in serves, by container; empty for local source.
        progress: The last word of a container's preparation (an environment being built).
        messages: Termination message by container name and end.
        log_offsets: Where the present run's output begins in the log file.
        failures: Failed creations in a row.
        unhealthy: Containers that are being killed, or were, because their liveness probe failed.
        refused: What was `blocked` before the try that is under way.
        empty: URIs of models without a file; None: nobody has looked.
        no_stand_in: Why a container runs in Docker, by name.
        in_docker: It runs as containers, whose address the engine gives.
        carried: The gateway does its work: nothing is started, and it runs (`graph_pod`).
        unschedulable: Why it does not start yet; `waits`: it will, once there is memory.
        begins: When the phases of its first start began (`api.start_phases`); None: they are told,
            or nobody saw them.
    """

    uid: str
    key: Key
    ip: str
    records: dict[str, Record]
    contents: dict[str, tuple[Content, ...]]
    init: dict[str, Running | Terminated] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    messages: dict[tuple[str, float | None], str] = field(default_factory=dict)
    log_offsets: dict[str, int] = field(default_factory=dict)
    announced: set[str] = field(default_factory=set)
    progress: dict[str, str] = field(default_factory=dict)
    blocked: Blocked | None = None
    failures: int = 0
    unhealthy: set[str] = field(default_factory=set)
    refused: Mapping[str, Waiting] = field(default_factory=dict)
    empty: tuple[str, ...] | None = None
    in_docker: bool = False
    no_stand_in: dict[str, str] = field(default_factory=dict)
    admitted: bool = False
    carried: bool = False
    begins: dict[str, float] | None = None
    unschedulable: str = ""
    waits: bool = False
    creating: bool = False
    stopping: bool = False
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def enters(self, phase: str) -> None:
        """Take note that a phase of the first start begins; a repeated one goes on."""
        if self.begins is not None:
            self.begins.setdefault(phase, time.monotonic())


def meet(
    pod: Object,
    key: Key,
    *,
    ip: str,
    contents: dict[str, tuple[Content, ...]],
    running: bool,
    now: float,
) -> Work:
    """Return what is known of a Pod that is new, or met again by a new supervisor.

    Args:
        contents: What earlier init containers fetched.
        running: Its containers run, so its init containers must be done.
    """
    work = Work(
        uid=uid_of(pod),
        key=key,
        ip=ip,
        records=records_of(pod, now=now),
        contents=contents,
        in_docker=annotations_of(pod).get(names.BACKEND) == DOCKER,
    )
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    states: dict[str, Any] = {str(s.get("name")): s.get("state") for s in statuses}
    for container in init_containers(pod):
        name = str(container.get("name"))
        if running or name in contents:
            ended = terminated_from_json(states.get(name))
            if ended is None or ended.exit_code != 0:
                ended = Terminated(0, "Completed", started_at=now, finished_at=now)
            work.init[name] = ended
    return work


def seen(work: Work, replica: ReplicaStatus | None, *, host_ip: str) -> Seen:
    """Return what `plan_pod` needs to know."""
    messages = {
        status.name: work.messages[status.name, status.finished_at]
        for status in (replica.containers if replica is not None else ())
        if (status.name, status.finished_at) in work.messages
    }
    return Seen(
        ip="" if work.in_docker else work.ip,
        host_ip=host_ip,
        unschedulable=work.unschedulable,
        waits=work.waits,
        initializing=frozenset(
            t.removeprefix(INITIALIZE) for t in work.tasks if t.startswith(INITIALIZE)
        ),
        init=dict(work.init),
        creating=work.creating,
        blocked=work.blocked,
        replica=replica,
        records=dict(work.records),
        messages=messages,
        images=dict(work.images),
        progress=dict(work.progress),
        refused=work.refused,
    )


def container_of(replica: ReplicaStatus | None, name: str) -> ContainerStatus | None:
    """Return one container of a replica."""
    containers = replica.containers if replica is not None else ()
    return next((c for c in containers if c.name == name), None)
