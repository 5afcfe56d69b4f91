"""A Pod's status as kubelet writes it. Pure.

Takes what is known of each container (`View`) and the former status; gives the new `status`.
Shapes, condition types, reasons and messages are Kubernetes' own (pkg/kubelet/status,
pkg/kubelet/kubelet_pods.go), because KServe's and Knative's status logic reads exactly these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kserve_local.api.meta import Object, timestamp
from kserve_local.api.pods import WAITING_FOR_MEMORY


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not started, or not started again yet."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """Runs since `started_at` (Unix time)."""

    started_at: float
    ready: bool = False
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Terminated:
    """Ended. `message`: see `pod_terminations`. Times are Unix times."""

    exit_code: int
    reason: str
    message: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    signal: int | None = None
    pid: int | None = None


State = Waiting | Running | Terminated


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container as the status will show it.

    Args:
        last: The termination before the present state, `lastState`.
        image_id: What really runs, e.g. `kserve-local://sklearnserver`.
        container_id: Of the present or last process.
    """

    name: str
    image: str
    state: State
    last: Terminated | None = None
    restarts: int = 0
    image_id: str = ""
    container_id: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """The whole Pod.

    Args:
        unschedulable: Why no node takes it; empty when it is scheduled.
        waits: It will be, once there is memory.
        final: No container will be started again (restartPolicy says so).
    """

    init: tuple[ContainerView, ...]
    containers: tuple[ContainerView, ...]
    ip: str
    host_ip: str
    unschedulable: str = ""
    waits: bool = False
    final: bool = False


def at(seconds: float | None) -> str | None:
    """Return a Unix time as `metav1.Time`."""
    return None if seconds is None else timestamp(datetime.fromtimestamp(seconds, UTC))


def state_json(state: State, container_id: str = "") -> dict[str, Any]:
    """Return a `ContainerState`."""
    if isinstance(state, Waiting):
        waiting = {"reason": state.reason}
        if state.message:
            waiting["message"] = state.message
        return {"waiting": waiting}
    if isinstance(state, Running):
        return {"running": {"startedAt": at(state.started_at)}}
    ended: dict[str, Any] = {"exitCode": state.exit_code, "reason": state.reason}
    if state.signal:
        ended["signal"] = state.signal
    if state.message:
        ended["message"] = state.message
    # Kubernetes has no null times here: an unknown one is the zero time.
    ended["startedAt"] = at(state.started_at or state.finished_at)
    ended["finishedAt"] = at(state.finished_at)
    if container_id:
        ended["containerID"] = container_id
    return {"terminated": ended}


def _moment(text: object) -> float | None:
    return datetime.fromisoformat(text).timestamp() if isinstance(text, str) and text else None


def terminated_from_json(value: Mapping[str, Any] | None) -> Terminated | None:
    """Return the termination that a `state` or `lastState` holds, if any."""
    ended = (value or {}).get("terminated")
    if not ended:
        return None
    return Terminated(
        exit_code=int(ended.get("exitCode", 0)),
        reason=str(ended.get("reason") or ""),
        message=str(ended.get("message") or ""),
        started_at=_moment(ended.get("startedAt")),
        finished_at=_moment(ended.get("finishedAt")),
        signal=ended.get("signal"),
    )


def running_since(pod: Object, name: str) -> float | None:
    """Return since when a container has run as the Pod's status has it, None if it does not."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status.get("name") == name:
            running = (status.get("state") or {}).get("running") or {}
            return _moment(running.get("startedAt"))
    return None


def _is_ready(view: ContainerView) -> bool:
    return isinstance(view.state, Running) and view.state.ready


def _is_done(view: ContainerView) -> bool:
    """Whether an init container ended well."""
    return isinstance(view.state, Terminated) and view.state.exit_code == 0


def _container_json(view: ContainerView, *, init: bool) -> dict[str, Any]:
    running = isinstance(view.state, Running)
    status: dict[str, Any] = {
        "name": view.name,
        "state": state_json(view.state, view.container_id),
        "lastState": state_json(view.last) if view.last is not None else {},
        "ready": _is_done(view) if init else _is_ready(view),
        "restartCount": view.restarts,
        "image": view.image,
        "imageID": view.image_id,
        "started": running,
    }
    if view.container_id:
        status["containerID"] = view.container_id
    return status


def phase_of(view: View) -> str:
    """Return the Pod's phase.

    Source: kubelet's getPhase: Pending until every container was started once, Running while one
    runs or will run again, else Succeeded or Failed.
    """
    if view.unschedulable or not all(_is_done(c) for c in view.init):
        failed = [c for c in view.init if isinstance(c.state, Terminated) and c.state.exit_code]
        return "Failed" if failed and view.final else "Pending"
    states = [c.state for c in view.containers]
    if view.final and all(isinstance(s, Terminated) for s in states):
        ok = all(isinstance(s, Terminated) and s.exit_code == 0 for s in states)
        return "Succeeded" if ok else "Failed"
    if any(isinstance(c.state, Waiting) and c.last is None for c in view.containers):
        return "Pending"
    return "Running"


def _names(views: Sequence[ContainerView]) -> str:
    return "[" + " ".join(v.name for v in views) + "]"


def _conditions(view: View, phase: str) -> list[dict[str, Any]]:
    """Return the conditions without times, in kubelet's order."""
    if view.unschedulable:
        return [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": WAITING_FOR_MEMORY if view.waits else "Unschedulable",
                "message": view.unschedulable,
            }
        ]
    undone = [c for c in view.init if not _is_done(c)]
    unready = [c for c in view.containers if not _is_ready(c)]
    initialized: dict[str, Any] = {"type": "Initialized", "status": "True"}
    if undone:
        initialized |= {
            "status": "False",
            "reason": "ContainersNotInitialized",
            "message": f"containers with incomplete status: {_names(undone)}",
        }
    ready: dict[str, Any] = {"status": "True"}
    if phase in ("Succeeded", "Failed"):
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
        ready = {"status": "False", "reason": reason}
        if phase == "Succeeded":
            initialized |= {"reason": "PodCompleted"}
    elif unready:
        ready = {
            "status": "False",
            "reason": "ContainersNotReady",
            "message": f"containers with unready status: {_names(unready)}",
        }
    return [
        {"type": "PodReadyToStartContainers", "status": "True"},
        initialized,
        {"type": "Ready", **ready},
        {"type": "ContainersReady", **ready},
        {"type": "PodScheduled", "status": "True"},
    ]


def _with_times(
    new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]], now: str
) -> list[dict[str, Any]]:
    """Return the conditions with `lastTransitionTime`, which moves when the status changes only.

    Conditions of other writers (readiness gates) are kept.
    """
    former = {str(c.get("type")): c for c in old}
    result = []
    for condition in new:
        before = former.pop(str(condition["type"]), None)
        since = now
        if before is not None and before.get("status") == condition["status"]:
            since = str(before.get("lastTransitionTime") or now)
        result.append({"lastProbeTime": None, "lastTransitionTime": since, **condition})
    return result


def pod_status(pod: Object, view: View, *, now: float) -> dict[str, Any]:
    """Return the Pod's new `status`; equal to the old one when nothing changed."""
    old: Mapping[str, Any] = pod.get("status") or {}
    moment = str(at(now))
    phase = phase_of(view)
    conditions = _with_times(_conditions(view, phase), old.get("conditions") or (), moment)
    status: dict[str, Any] = {"phase": phase, "conditions": conditions}
    if not view.unschedulable:
        status["hostIP"] = view.host_ip
        status["hostIPs"] = [{"ip": view.host_ip}]
        if view.ip:
            status["podIP"] = view.ip
            status["podIPs"] = [{"ip": view.ip}]
        status["startTime"] = old.get("startTime") or moment
        if view.init:
            status["initContainerStatuses"] = [_container_json(c, init=True) for c in view.init]
        status["containerStatuses"] = [_container_json(c, init=False) for c in view.containers]
    status["qosClass"] = old.get("qosClass") or qos_class(pod)
    return status


def qos_class(pod: Object) -> str:
    """Return the Pod's quality of service class.

    Source: Kubernetes, Pod Quality of Service Classes.
    """
    containers = (pod.get("spec") or {}).get("containers") or ()
    given = [c.get("resources") or {} for c in containers]
    if not any(r.get("limits") or r.get("requests") for r in given):
        return "BestEffort"
    for resources in given:
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        for name in ("cpu", "memory"):
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                return "Burstable"
    return "Guaranteed"
