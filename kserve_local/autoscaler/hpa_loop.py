"""HorizontalPodAutoscaler -> replicas of its Deployment, by what the Pods really use.

Reads HPAs, their Deployment and Pods, and what each Pod uses (`Meter`); writes the
Deployment's `spec.replicas`, the HPA's status and Events. The decision is
`kserve_local.autoscaler.hpa`, taken every 15 s as by Kubernetes' controller, whose conditions and
Events these are. Whose HPA it is makes no difference: KServe's, KEDA's, or one of the user's own.

cpu is the time used between two looks; a Pod looked at once only is one without a figure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kserve_local.api import pod_autoscaler, quantity
from kserve_local.api.meta import (
    Key,
    Object,
    get_condition,
    name_of,
    parse_timestamp,
    timestamp,
    uid_of,
    with_status,
)
from kserve_local.api.scheme import DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER, POD
from kserve_local.api.workloads import asked_of, replicas_of
from kserve_local.autoscaler import hpa as policy
from kserve_local.autoscaler.hpa import (
    Bounds,
    Decision,
    History,
    Metric,
    MetricFailed,
    PodFigures,
    Proposal,
)
from kserve_local.interfaces.backend import Usage
from kserve_local.interfaces.holds import NONE, Holds, scale_group
from kserve_local.reconcile.controller import Watch, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

COMPONENT = "horizontal-pod-autoscaler"
_ENDED = ("Failed", "Succeeded")
_ORDER = ("AbleToScale", "ScalingActive", "ScalingLimited")

Meter = Callable[[str], Awaitable[Usage | None]]
"""What a Pod, by its uid, has used so far; None: nothing of it runs."""


async def no_meter(uid: str) -> Usage | None:
    """Measure nothing."""
    return None


@dataclass(frozen=True, slots=True)
class Sample:
    """What a Pod had used at a time."""

    at: float
    cpu_seconds: float


@dataclass(slots=True)
class _Memory:
    """What is remembered of one HPA between two looks; as on a cluster, not over a restart."""

    uid: str
    history: History
    due: float = 0.0
    samples: dict[str, Sample] = field(default_factory=dict)


class HPAController:
    """Scales the Deployments of HPAs.

    Args:
        meter: What Pods use.
        speed: How many times faster than a cluster's the HPA's clock runs: between two decisions,
            in windows and in what is counted from a Pod's start.
        clock: Seconds since the epoch.
        holds: Which Pods have a debugger attached: their Deployments keep their scale.
    """

    name = "hpa"

    def __init__(
        self,
        store: Store,
        events: EventRecorder,
        *,
        meter: Meter = no_meter,
        speed: float = 1.0,
        clock: Callable[[], float] = time.time,
        holds: Holds = NONE,
    ) -> None:
        self._holds = holds
        self._store = store
        self._events = events
        self._meter = meter
        self._speed = speed
        self._period = policy.PERIOD / speed
        self._clock = clock
        self._memories: dict[Key, _Memory] = {}
        self.watches = (Watch(HORIZONTAL_POD_AUTOSCALER.id, itself),)

    async def reconcile(self, key: Key) -> Result:
        """Decide, once a period at most, and say how it stands."""
        hpa = self._store.find(key)
        if hpa is None or hpa["metadata"].get("deletionTimestamp"):
            self._memories.pop(key, None)
            return DONE
        now = self._clock()
        count = pod_autoscaler.override(hpa)
        if count is not None:
            await self._by_hand(hpa, count)
            self._memories.pop(key, None)
            return DONE
        memory = self._memories.get(key)
        if memory is not None and memory.uid == uid_of(hpa) and now < memory.due:
            return Result(requeue_after=memory.due - now)
        deployment = self._target(hpa)
        if deployment is not None and self._is_held(deployment):
            return Result(requeue_after=self._period)
        first = memory is None or memory.uid != uid_of(hpa)
        if memory is None or first:
            size = replicas_of(deployment) if deployment is not None else 0
            history = History(recommended=((now * self._speed, size),))
            memory = self._memories[key] = _Memory(uid_of(hpa), history)
        memory.due = now + self._period
        if deployment is None:
            await self._write(hpa, _no_scale(hpa), {})
        else:
            await self._decide(hpa, deployment, memory, first=first)
        return Result(requeue_after=self._period)

    def _is_held(self, deployment: Object) -> bool:
        group = scale_group(deployment["metadata"]["namespace"], deployment["metadata"]["name"])
        return self._holds.is_held(group)

    async def _by_hand(self, hpa: Object, count: int) -> None:
        """Have as many replicas as a user asked for."""
        deployment = self._target(hpa)
        if deployment is None or replicas_of(deployment) == count:
            return
        spec = {**deployment["spec"], "replicas": count}
        await self._store.update({**deployment, "spec": spec})
        text = f"New size: {count}; reason: kserve-local scale"
        await self._event(hpa, "Normal", "SuccessfulRescale", text)

    def _target(self, hpa: Object) -> Object | None:
        ref: Mapping[str, Any] = hpa["spec"].get("scaleTargetRef") or {}
        if ref.get("kind") != DEPLOYMENT.kind:
            return None
        name, namespace = str(ref.get("name") or ""), hpa["metadata"]["namespace"]
        return self._store.find(Key(DEPLOYMENT.id, namespace, name))

    async def _decide(
        self, hpa: Object, deployment: Object, memory: _Memory, *, first: bool
    ) -> None:
        pods = [
            p
            for p in self._store.owned_by(uid_of(deployment), POD.id)
            if not p["metadata"].get("deletionTimestamp") and _phase(p) not in _ENDED
        ]
        used = await self._measure(pods, memory)
        now = self._clock() * self._speed
        current = replicas_of(deployment)
        proposals: list[Proposal | tuple[Metric, MetricFailed]] = []
        for metric in metrics_of(hpa):
            figures = [
                figures_of(p, metric.resource, used.get(uid_of(p)), speed=self._speed) for p in pods
            ]
            try:
                proposals.append(policy.propose(metric, figures, current=current, now=now))
            except MetricFailed as error:
                proposals.append((metric, error))
        nothing_yet = first and not any(isinstance(p, Proposal) for p in proposals)
        if nothing_yet and bounds_of(hpa).least <= current <= bounds_of(hpa).most:
            # The first look is only the start of a measurement.
            return
        decision = policy.decide(current, bounds_of(hpa), proposals, memory.history, now=now)
        memory.history = decision.history
        if decision.replicas != current:
            spec = {**deployment["spec"], "replicas": decision.replicas}
            await self._store.update({**deployment, "spec": spec})
            await self._event(
                hpa,
                "Normal",
                "SuccessfulRescale",
                f"New size: {decision.replicas}; reason: {decision.why}",
            )
        if decision.failed is not None:
            await self._event(hpa, "Warning", *decision.failed)
        running = int((deployment.get("status") or {}).get("replicas") or 0)
        status = {
            "currentReplicas": running,
            "desiredReplicas": decision.replicas,
            "currentMetrics": [_shown(p) for p in proposals if isinstance(p, Proposal)],
        }
        await self._write(hpa, decision, status)

    async def _measure(
        self, pods: Sequence[Object], memory: _Memory
    ) -> dict[str, tuple[Usage, float, float, float]]:
        """Return usage, cores, time and window of each Pod that is measured; cores -1: not yet."""
        answers = await asyncio.gather(*(self._meter(uid_of(pod)) for pod in pods))
        found: dict[str, tuple[Usage, float, float, float]] = {}
        samples: dict[str, Sample] = {}
        for pod, usage in zip(pods, answers, strict=True):
            if usage is None:
                continue
            uid, at = uid_of(pod), self._clock()
            before = memory.samples.get(uid)
            samples[uid] = Sample(at, usage.cpu_seconds)
            cores, window = -1.0, 0.0
            # A restarted container counts from zero again.
            if before is not None and usage.cpu_seconds >= before.cpu_seconds and at > before.at:
                window = at - before.at
                cores = (usage.cpu_seconds - before.cpu_seconds) / window
            found[uid] = (usage, cores, at, window)
        memory.samples = samples
        return found

    async def _write(self, hpa: Object, decision: Decision, status: dict[str, Any]) -> None:
        before: Mapping[str, Any] = hpa.get("status") or {}
        wanted = {
            **{k: v for k, v in before.items() if k != "conditions"},
            "observedGeneration": hpa["metadata"].get("generation"),
            **status,
            "conditions": list(_conditions(hpa, decision)),
        }
        if decision.why:
            wanted["lastScaleTime"] = timestamp()
        if wanted != before:
            await self._store.update_status(with_status(hpa, wanted))

    async def _event(self, hpa: Object, type_: Any, reason: str, message: str) -> None:
        await self._events.event(hpa, type_, reason, message, component=COMPONENT)


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def bounds_of(hpa: Object) -> Bounds:
    """Return the HPA's bounds and behavior."""
    spec = hpa["spec"]
    least = spec.get("minReplicas")
    return Bounds(
        1 if least is None else int(least),
        int(spec["maxReplicas"]),
        policy.behavior_of(spec.get("behavior")),
    )


def metrics_of(hpa: Object) -> list[Metric]:
    """Return the HPA's resource metrics; without any cpu at 80 %, as the API server has it."""
    found = []
    for entry in hpa["spec"].get("metrics") or ():
        resource = entry.get("resource") or {}
        target: Mapping[str, Any] = resource.get("target") or {}
        if entry.get("type") != "Resource":
            continue
        percent, average = target.get("averageUtilization"), target.get("averageValue")
        found.append(
            Metric(
                str(resource.get("name")),
                utilization=None if percent is None else int(percent),
                average=None if average is None else float(quantity.parse(average)),
            )
        )
    return found or [Metric("cpu", utilization=80)]


def figures_of(
    pod: Object,
    resource: str,
    used: tuple[Usage, float, float, float] | None,
    *,
    speed: float = 1.0,
) -> PodFigures:
    """Return what a Pod contributes to a decision, in times of the HPA's clock."""
    status = pod.get("status") or {}
    ready = get_condition(pod, "Ready")
    request, lacks = _request(pod, resource)
    usage: float | None = None
    at = window = 0.0
    if used is not None:
        total, cores, at, window = used
        usage = (cores if cores >= 0 else None) if resource == "cpu" else float(total.memory_bytes)
    return PodFigures(
        name=name_of(pod),
        usage=usage,
        request=request,
        lacks_request=lacks,
        pending=_phase(pod) == "Pending",
        ready=None if ready is None else ready.get("status") == "True",
        started=_seconds(status.get("startTime"), speed),
        turned=_seconds((ready or {}).get("lastTransitionTime"), speed) or 0.0,
        measured=at * speed,
        window=window * speed,
    )


def _request(pod: Object, resource: str) -> tuple[float, str]:
    """Return the sum of the containers' requests, and the first container without one."""
    total, lacks = 0.0, ""
    for container in pod["spec"]["containers"]:
        asked = asked_of(container, resource)
        if asked is None:
            lacks = lacks or str(container["name"])
        else:
            total += float(asked)
    return total, lacks


def _seconds(text: object, speed: float) -> float | None:
    if not isinstance(text, str) or not text:
        return None
    return parse_timestamp(text).timestamp() * speed


def _shown(proposal: Proposal) -> dict[str, Any]:
    """Return an entry of `status.currentMetrics`."""
    name = proposal.metric.resource
    average = (
        f"{round(proposal.average * 1000)}m" if name == "cpu" else str(round(proposal.average))
    )
    current: dict[str, Any] = {"averageValue": average}
    if proposal.utilization is not None:
        current["averageUtilization"] = proposal.utilization
    return {"type": "Resource", "resource": {"name": name, "current": current}}


def _no_scale(hpa: Object) -> Decision:
    ref = hpa["spec"].get("scaleTargetRef") or {}
    text = (
        "the HPA controller was unable to get the target's current scale: "
        f'deployments.apps "{ref.get("name")}" not found'
    )
    return Decision(
        0, History(), conditions={"AbleToScale": policy.Told("False", "FailedGetScale", text)}
    )


def _conditions(hpa: Object, decision: Decision) -> Iterable[dict[str, Any]]:
    """Yield the conditions: those that the decision speaks of, the others as they were."""
    for type_ in _ORDER:
        before = get_condition(hpa, type_)
        told = decision.conditions.get(type_)
        if told is None:
            if before is not None:
                yield dict(before)
            continue
        same = before is not None and before.get("status") == told.status
        since = (before or {}).get("lastTransitionTime") if same else None
        yield {
            "type": type_,
            "status": told.status,
            "reason": told.reason,
            "message": told.message,
            "lastTransitionTime": since or timestamp(),
        }
