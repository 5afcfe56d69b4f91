"""What a Pod's status says: ready, on its way out, dead, and why a container failed.

Pure. Reads Kubernetes' PodStatus; shared by the controllers that look at Pods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api.meta import Object, condition_is, get_condition, labels_of, name_of
from kserve_local.api.names import (
    AGENT_CONTAINER,
    DEFAULT_PORT,
    PREDICTOR_CONTAINER,
    STORAGE_INITIALIZER,
)

CRASH_LOOP = "CrashLoopBackOff"
_MODEL_INIT = re.compile(rf"{STORAGE_INITIALIZER}|modelcar-init(-\d+)?")
_STARTING_REASONS = ("", "PodInitializing", "ContainerCreating", CRASH_LOOP)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model does not load. Shape of `modelStatus.lastFailureInfo`."""

    reason: str
    message: str
    exit_code: int | None = None

    def info(self) -> dict[str, Any]:
        """Return `lastFailureInfo`."""
        info: dict[str, Any] = {"reason": self.reason, "message": self.message}
        if self.exit_code is not None:
            info["exitCode"] = self.exit_code
        return info


def is_terminating(pod: Object) -> bool:
    """Whether the Pod was told to go."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def phase_of(pod: Object) -> str:
    """Return `status.phase`, Pending when not yet set."""
    return str((pod.get("status") or {}).get("phase") or "Pending")


def is_dead(pod: Object) -> bool:
    """Whether the Pod has ended for good."""
    return phase_of(pod) in ("Failed", "Succeeded")


def is_ready(pod: Object) -> bool:
    """Whether the Pod takes requests: running, Ready, not on its way out."""
    return phase_of(pod) == "Running" and condition_is(pod, "Ready") and not is_terminating(pod)


def has_served(pod: Object) -> bool:
    """Whether a Pod that is not Ready was so before; one that was for less than a second may not
    count.
    """
    began = str((get_condition(pod, "Initialized") or {}).get("lastTransitionTime") or "")
    # Both are whole seconds of the same form.
    unready = str((get_condition(pod, "Ready") or {}).get("lastTransitionTime") or "")
    return bool(began) and unready > began


def newest_first(pods: Sequence[Object]) -> list[Object]:
    """Return the Pods, newest first, ties by name (control-plane.md 5.7)."""
    by_name = sorted(pods, key=name_of)
    return sorted(by_name, key=lambda p: str(p["metadata"]["creationTimestamp"]), reverse=True)


def statuses(pod: Object, *, init: bool = False) -> Sequence[Mapping[str, Any]]:
    """Return `containerStatuses` or `initContainerStatuses`."""
    status = pod.get("status") or {}
    return status.get("initContainerStatuses" if init else "containerStatuses") or ()


def container_status(pod: Object, name: str, *, init: bool = False) -> Mapping[str, Any] | None:
    """Return one container's status, None before the Pod reports it."""
    return next((s for s in statuses(pod, init=init) if s.get("name") == name), None)


def model_inits(pod: Object) -> list[Mapping[str, Any]]:
    """Return the statuses of the init containers that bring models.

    A cluster tells of a `modelcar-init` that fails in its Pod only; the rest is ours.
    """
    return [s for s in statuses(pod, init=True) if _MODEL_INIT.fullmatch(str(s.get("name")))]


def terminated(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the termination that stands: the current one, or the last one while backing off."""
    state = status.get("state") or {}
    if state.get("terminated"):
        ended: Mapping[str, Any] = state["terminated"]
        return ended
    if (state.get("waiting") or {}).get("reason") == CRASH_LOOP:
        return last_terminated(status)
    return None


def last_terminated(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return `lastState.terminated`."""
    return (status.get("lastState") or {}).get("terminated")


def failed(ended: Mapping[str, Any] | None) -> bool:
    """Whether a termination is a failure, by any reason (Error, OOMKilled, ...)."""
    return ended is not None and (
        ended.get("reason") not in ("Completed", None) or ended.get("exitCode", 0) != 0
    )


def stuck(status: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return reason and message of a container that cannot even be started, e.g. no image."""
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    if reason in _STARTING_REASONS:
        return None
    return reason, str(waiting.get("message") or "")


def serving_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the container that takes requests: the one with ports, else `kserve-container`.

    Never the agent, whose work the gateway does.
    """
    every: Sequence[Mapping[str, Any]] = spec.get("containers") or ({},)
    containers = [c for c in every if c.get("name") != AGENT_CONTAINER] or every
    with_ports = [c for c in containers if c.get("ports")]
    if with_ports:
        return with_ports[0]
    named = [c for c in containers if c.get("name") == PREDICTOR_CONTAINER]
    return named[0] if named else containers[0]


def serving_port(container: Mapping[str, Any]) -> int:
    """Return the container's first port, 8080 without ports (control-plane.md 4.1)."""
    ports = container.get("ports") or ()
    return int(ports[0]["containerPort"]) if ports else DEFAULT_PORT


def failure_of(pod: Object) -> Failure | None:
    """Return why this Pod's model does not come up, None while it may still.

    Storage first, then the predictor's container, then any other container of the Pod.
    """
    for init in model_inits(pod):
        ended = terminated(init)
        if failed(ended):
            return _load_failed(ended)
        waiting = stuck(init)
        if waiting is not None:
            return Failure("ModelLoadFailed", ": ".join(filter(None, waiting)))
    ordered = sorted(statuses(pod), key=lambda s: s.get("name") != PREDICTOR_CONTAINER)
    for status in ordered:
        ended = terminated(status)
        if failed(ended):
            return _load_failed(ended)
        waiting = stuck(status)
        if waiting is not None:
            return Failure("ModelLoadFailed", ": ".join(filter(None, waiting)))
    if phase_of(pod) == "Failed":
        status = pod.get("status") or {}
        text = ": ".join(filter(None, (status.get("reason"), status.get("message"))))
        return Failure("ModelLoadFailed", text or "the Pod failed")
    return None


def is_not_coming(pod: Object) -> Failure | None:
    """Return why a Pod that is not Ready has failed to come up, None while it still may.

    An init container that failed; a container that may not even be made; or one that ended twice
    in a row before the Pod was Ready. One that served and died is not meant: its restart brings
    it back.
    """
    if is_terminating(pod) or is_ready(pod):
        return None
    for init in statuses(pod, init=True):
        ended, waiting = terminated(init), stuck(init)
        if failed(ended):
            return _load_failed(ended)
        if waiting is not None:
            return Failure("ModelLoadFailed", ": ".join(filter(None, waiting)))
    unready_since = str((get_condition(pod, "Ready") or {}).get("lastTransitionTime") or "")
    for status in statuses(pod):
        ended, waiting = terminated(status), stuck(status)
        if waiting is not None:
            return Failure("ModelLoadFailed", ": ".join(filter(None, waiting)))
        again = int(status.get("restartCount") or 0) > 0
        # Both are whole seconds of the same form.
        if failed(ended) and again and str((ended or {}).get("startedAt") or "") > unready_since:
            return _load_failed(ended)
    return None


def _load_failed(ended: Mapping[str, Any] | None) -> Failure:
    assert ended is not None
    message = str(ended.get("message") or "")
    if not message and ended.get("reason") not in ("Error", None):
        message = str(ended["reason"])
    code = ended.get("exitCode")
    return Failure("ModelLoadFailed", message, None if code is None else int(code))


def revision_of(pod: Object) -> str:
    """Return the name of the Revision the Pod belongs to, empty if none."""
    return labels_of(pod).get("serving.knative.dev/revision", "")
