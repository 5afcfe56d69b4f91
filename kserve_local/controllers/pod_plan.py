"""What the node agent does next for one Pod. Pure: no clock, no I/O, no logging.

`plan_pod` compares the Pod with what was seen of it and says what the status is, what to do now
and when to look again. Copies kubelet's restart rules: the first restart comes at once, further
ones back off from 10 s to 5 min (CrashLoopBackOff), and a container that ran for ten minutes
starts over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kserve_local.api.meta import Object, name_of, namespace_of, uid_of
from kserve_local.controllers.agent_injector import agent_of
from kserve_local.controllers.modelcars import modelcars
from kserve_local.controllers.pod_containers import init_containers, spec_containers
from kserve_local.controllers.pod_state import serving_container
from kserve_local.controllers.pod_status import (
    ContainerView,
    Running,
    State,
    Terminated,
    View,
    Waiting,
    pod_status,
    running_since,
    terminated_from_json,
)
from kserve_local.interfaces.backend import ContainerStatus, ReplicaStatus

FIRST_BACKOFF = 10.0
MAX_BACKOFF = 300.0
RESET_AFTER = 600.0
# kubelet notices an exit about a second later. A container that never became ready keeps its
# `terminated` state for that long, so that everyone who reads the status sees why; one that was
# serving is restarted at once.
NOTICE = 1.0
_CREATING = Waiting("ContainerCreating")
_INITIALIZING = Waiting("PodInitializing")


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one container between its runs.

    Args:
        attempts: Restarts since the back-off was reset.
        restarted_at: When the last of them was made.
        last: The termination before the present run.
        was_ready: The present run has been ready.
    """

    restarts: int = 0
    attempts: int = 0
    restarted_at: float | None = None
    last: Terminated | None = None
    was_ready: bool = False


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why the containers cannot be made, and when to try again (None: not by itself)."""

    waiting: Mapping[str, Waiting]
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a Pod at one moment.

    Args:
        unschedulable: Why no node takes it.
        waits: One will, once there is memory.
        init: State of each init container that was started; others wait.
        initializing: Init containers that are being made or run.
        creating: The containers are being made.
        blocked: They cannot be.
        replica: What the backend reports, None when it has nothing.
        messages: Termination messages by container name.
        images: What really runs, by container name.
        progress: How far the preparation of a container is.
        refused: Why they could not be made the last time, while it is tried again.
    """

    ip: str = ""
    host_ip: str = ""
    unschedulable: str = ""
    waits: bool = False
    init: Mapping[str, Running | Terminated] = field(default_factory=dict)
    initializing: frozenset[str] = frozenset()
    creating: bool = False
    blocked: Blocked | None = None
    replica: ReplicaStatus | None = None
    records: Mapping[str, Record] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    progress: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, Waiting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. At most one of `initialize`, `create`, `restart` is set.

    Args:
        initialize: Init container to run now.
        create: Make and start all containers.
        restart: Containers to start again.
        backing_off: Containers in CrashLoopBackOff, for Events.
        again: Seconds until the next look; None: when something changes.
    """

    status: Object
    initialize: str = ""
    create: bool = False
    restart: tuple[str, ...] = ()
    backing_off: tuple[str, ...] = ()
    again: float | None = None


def go_duration(seconds: float) -> str:
    """Return whole seconds as Go prints a Duration: `10s`, `1m20s`, `5m0s`."""
    whole = int(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def backoff_delay(attempts: int) -> float:
    """Return the wait before the restart that follows `attempts` earlier ones."""
    if attempts == 0:
        return 0.0
    return min(FIRST_BACKOFF * 2.0 ** min(attempts - 1, 30), MAX_BACKOFF)


def backoff_message(pod: Object, container: str, delay: float) -> str:
    """Return kubelet's CrashLoopBackOff message."""
    return (
        f"back-off {go_duration(delay)} restarting failed container={container} "
        f"pod={name_of(pod)}_{namespace_of(pod)}({uid_of(pod)})"
    )


def attempts_at(record: Record, ended: Terminated) -> int:
    """Return the attempts that count for this termination: none after a long enough run."""
    finished = ended.finished_at or 0.0
    if record.restarted_at is not None and finished - record.restarted_at > RESET_AFTER:
        return 0
    return record.attempts


def restarted(record: Record, ended: Terminated, *, now: float) -> Record:
    """Return the record once the container is started again."""
    return Record(
        restarts=record.restarts + 1,
        attempts=attempts_at(record, ended) + 1,
        restarted_at=now,
        last=ended,
    )


def _will_restart(policy: str, ended: Terminated) -> bool:
    return policy == "Always" or (policy == "OnFailure" and ended.exit_code != 0)


@dataclass(frozen=True, slots=True)
class _Step:
    """What follows from a termination: shown `state` and `last`, restart now, or look again."""

    state: State
    last: Terminated | None
    restart: bool = False
    backing_off: bool = False
    again: float | None = None


def _after(pod: Object, name: str, ended: Terminated, record: Record, *, now: float) -> _Step:
    """Decide about a container that ended and is to be started again."""
    attempts = attempts_at(record, ended)
    delay = backoff_delay(attempts)
    pause = delay if attempts else (0.0 if record.was_ready else NOTICE)
    due = (ended.finished_at or now) + pause
    if now >= due:
        return _Step(ended, record.last, restart=True)
    if attempts == 0:
        return _Step(ended, record.last, again=due - now)
    waiting = Waiting("CrashLoopBackOff", backoff_message(pod, name, delay))
    return _Step(waiting, ended, backing_off=True, again=due - now)


def seen_termination(status: ContainerStatus, message: str, *, now: float) -> Terminated:
    """Return a backend's terminated container as a termination."""
    code = 137 if status.exit_code is None else status.exit_code
    reason = status.reason or ("Completed" if code == 0 else "Error")
    return Terminated(
        exit_code=code,
        reason=reason,
        message=message or status.message,
        started_at=status.started_at,
        finished_at=status.finished_at if status.finished_at is not None else now,
        # The runtime of a cluster reports 128 + n in exitCode and leaves `signal` alone.
        pid=status.pid,
    )


def lost(pod: Object, name: str, *, now: float) -> Terminated | None:
    """Return the end of a container whose replica is gone, None if it never ran.

    Source: kubelet's ContainerStatusUnknown.
    """
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status.get("name") != name:
            continue
        state = status.get("state") or {}
        known = terminated_from_json(state)
        if known is not None:
            return known
        if "running" in state:
            return Terminated(
                exit_code=137,
                reason="ContainerStatusUnknown",
                message="The container could not be located when the pod was looked at again",
                finished_at=now,
            )
        return terminated_from_json(status.get("lastState"))
    return None


def records_of(pod: Object, *, now: float) -> dict[str, Record]:
    """Return the records that a stored status implies, for a Pod met for the first time."""
    status = pod.get("status") or {}
    found = {}
    for container in (
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ):
        restarts = int(container.get("restartCount") or 0)
        found[str(container.get("name"))] = Record(
            restarts=restarts,
            attempts=restarts,
            restarted_at=now if restarts else None,
            last=terminated_from_json(container.get("lastState")),
            was_ready=bool(container.get("ready")),
        )
    return found


def _init_plan(
    pod: Object, seen: Seen, policy: str, *, now: float
) -> tuple[list[ContainerView], Plan, bool]:
    """Return the init containers' views, what to do about them, and whether all are done."""
    views: list[ContainerView] = []
    plan = Plan(status={})
    done = True
    for container in init_containers(pod):
        name = str(container.get("name"))
        record = seen.records.get(name, Record())
        blocked = seen.blocked.waiting.get(name) if seen.blocked else None
        waiting = Waiting(_INITIALIZING.reason, seen.progress.get(name, ""))
        if name in seen.refused and not seen.progress.get(name):
            waiting = seen.refused[name]  # As on a node, until it has worked.
        state: State = seen.init.get(name) or blocked or waiting
        last = record.last
        if done and isinstance(state, Terminated) and state.exit_code != 0:
            done = False
            if policy != "Never":
                step = _after(pod, name, state, record, now=now)
                state, last = step.state, step.last
                plan = replace(
                    plan,
                    initialize=name if step.restart else "",
                    backing_off=(name,) if step.backing_off else (),
                    again=step.again,
                )
        elif done and not isinstance(state, Terminated):
            done = False
            beginning = name in seen.initializing
            if isinstance(state, Waiting) and not seen.blocked and not beginning:
                plan = replace(plan, initialize=name)
        views.append(
            ContainerView(
                name=name,
                image=str(container.get("image") or ""),
                state=state,
                last=last,
                restarts=record.restarts,
                image_id=seen.images.get(name, ""),
            )
        )
    return views, plan, done


def _modelcar_view(container: Mapping[str, Any], seen: Seen, *, initialized: bool) -> ContainerView:
    """Return the view of a sidecar that holds a model image: it runs once the model is there."""
    name = str(container.get("name"))
    ends = [s.finished_at or 0.0 for s in seen.init.values() if isinstance(s, Terminated)]
    return ContainerView(
        name=name,
        image=str(container.get("image") or ""),
        state=Running(max(ends, default=0.0), ready=True) if initialized else _INITIALIZING,
        image_id=seen.images.get(name, ""),
    )


def _agent_view(
    pod: Object, container: Mapping[str, Any], seen: Seen, *, initialized: bool, now: float
) -> ContainerView:
    """Return the view of the agent, whose work the gateway does.

    It runs since the Pod's containers were first started, and is ready when the serving one is,
    whose probe a cluster's agent makes.
    """
    name = str(container.get("name"))
    others = seen.replica.containers if seen.replica is not None else ()
    state: State = _CREATING if initialized else _INITIALIZING
    if initialized and others:
        serving = str(serving_container(pod["spec"]).get("name"))
        ready = any(c.name == serving and c.state == "running" and c.ready for c in others)
        since = running_since(pod, name)
        if since is None:
            since = min((c.started_at for c in others if c.started_at), default=now)
        state = Running(since, ready=ready)
    return ContainerView(
        name=name,
        image=str(container.get("image") or ""),
        state=state,
        image_id=f"kserve-local://{name}",
    )


def _container_id(status: ContainerStatus | None) -> str:
    return id_of(status) if status is not None else ""


def id_of(status: ContainerStatus) -> str:
    """Return `containerID`: the engine's, or the process's number."""
    return status.container_id or (f"process://{status.pid}" if status.pid else "")


def plan_pod(pod: Object, seen: Seen, now: float) -> Plan:
    """Decide what the Pod's status is and what to do. Running it twice changes nothing.

    Args:
        pod: As stored; `status` is what was written last.
        now: Unix time.
    """
    policy = str((pod.get("spec") or {}).get("restartPolicy") or "Always")
    init, plan, initialized = _init_plan(pod, seen, policy, now=now)
    containers: list[ContainerView] = []
    final = policy != "Always"
    restart: list[str] = []
    backing_off = list(plan.backing_off)
    looks = [plan.again] if plan.again is not None else []
    running = {c.name: c for c in seen.replica.containers} if seen.replica else {}
    create = initialized and not running and not seen.creating and seen.blocked is None
    played = {car.sidecar for car in modelcars(pod)}
    agent = agent_of(pod)
    for container in spec_containers(pod):
        name = str(container.get("name"))
        if container is agent:
            final = final and not initialized
            view_of = _agent_view(pod, container, seen, initialized=initialized, now=now)
            containers.append(view_of)
            continue
        if name in played:
            final = final and not initialized
            containers.append(_modelcar_view(container, seen, initialized=initialized))
            continue
        record = seen.records.get(name, Record())
        status = running.get(name)
        creating = Waiting(_CREATING.reason, seen.progress.get(name, ""))
        if name in seen.refused and not seen.progress.get(name):
            creating = seen.refused[name]  # As on a node, until it has worked.
        state: State = _INITIALIZING if not initialized else creating
        last = record.last
        if seen.blocked and name in seen.blocked.waiting:
            state = seen.blocked.waiting[name]
        if status is not None and status.state == "running":
            state = Running(status.started_at or now, status.ready, status.pid)
        elif status is not None and status.state == "waiting" and not seen.creating:
            # Adopted between the starts of its containers.
            restart.append(name)
        elif initialized and not (seen.blocked and name in seen.blocked.waiting):
            ended = None
            if status is not None and status.state == "terminated":
                ended = seen_termination(status, seen.messages.get(name, ""), now=now)
            elif status is None and not seen.creating:
                ended = lost(pod, name, now=now)
            if ended is not None and not _will_restart(policy, ended):
                state = ended
                if status is None:
                    create = False
            elif ended is not None:
                final = False
                step = _after(pod, name, ended, record, now=now)
                state, last = step.state, step.last
                if step.restart:
                    restart.append(name)
                elif status is None:
                    create = False
                if step.backing_off:
                    backing_off.append(name)
                if step.again is not None:
                    looks.append(step.again)
        if not isinstance(state, Terminated):
            final = False
        containers.append(
            ContainerView(
                name=name,
                image=str(container.get("image") or ""),
                state=state,
                last=last,
                restarts=record.restarts,
                image_id=seen.images.get(name, ""),
                container_id=_container_id(status),
            )
        )
    if seen.blocked and seen.blocked.retry_at is not None:
        looks.append(max(0.0, seen.blocked.retry_at - now))
    view = View(
        init=tuple(init),
        containers=tuple(containers),
        ip=seen.ip or (seen.replica.ip if seen.replica is not None else ""),
        host_ip=seen.host_ip,
        unschedulable=seen.unschedulable,
        waits=seen.waits,
        final=final or (policy == "Never" and not initialized and not plan.initialize),
    )
    if seen.unschedulable:
        return Plan(status=pod_status(pod, view, now=now))
    return Plan(
        status=pod_status(pod, view, now=now),
        initialize=plan.initialize,
        create=create,
        restart=() if create else tuple(restart),
        backing_off=tuple(backing_off),
        again=min(looks) if looks else None,
    )
