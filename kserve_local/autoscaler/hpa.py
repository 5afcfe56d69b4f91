"""The Horizontal Pod Autoscaler's decision: measured usage -> number of replicas. Pure.

Copies Kubernetes 1.33 (pkg/controller/podautoscaler/{horizontal,replica_calculator}.go; traffic.md
5.2): how Pods without a figure count, the tolerance, the largest of several metrics, a failed
metric that may not scale down, stabilization windows, policies per period, and the bounds. Time and
history come in as values, a new history goes out.

`external_replicas` is KEDA's average value over a metric from elsewhere; nothing here asks such a
metric, see docs/compatibility.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kserve_local.api.hpa import DEFAULT_BEHAVIOR

PERIOD = 15.0
"""Seconds between two decisions (--horizontal-pod-autoscaler-sync-period)."""
TOLERANCE = 0.1
CPU_INITIALIZATION = 300.0
"""Seconds after its start in which a Pod's cpu counts only once it is ready."""
INITIAL_READINESS = 30.0
"""Seconds after its start in which a Pod that turns unready counts as never ready."""
DOWN_WINDOW = 300.0
"""Seconds of stabilization before going down, when no behavior says otherwise."""

Group = Literal["measured", "unready", "missing"]


class MetricFailed(Exception):
    """A metric gives no number of replicas; the text is the cluster's."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What the HPA's spec asks for of one resource.

    Args:
        resource: `cpu` (cores) or `memory` (bytes).
        utilization: Wanted percent of the requests; None: `average` holds.
        average: Wanted usage a Pod.
    """

    resource: str
    utilization: int | None = None
    average: float | None = None

    @property
    def label(self) -> str:
        """What Events and conditions call it."""
        if self.utilization is not None:
            return f"{self.resource} resource utilization (percentage of request)"
        return f"{self.resource} resource"


@dataclass(frozen=True, slots=True)
class PodFigures:
    """One Pod of the scaled workload. Times are seconds of one clock.

    Args:
        usage: Of all its containers; None: not measured (yet).
        request: Sum over its containers.
        lacks_request: A container without a request, empty if all have one.
        pending: Its phase is Pending.
        ready: Its condition Ready; None: it has none yet.
        started: When it was accepted (`status.startTime`); None: not yet.
        turned: When `ready` last changed.
        measured: When `usage` was taken, over the `window` seconds before.
    """

    name: str
    usage: float | None
    request: float
    lacks_request: str = ""
    pending: bool = False
    ready: bool | None = True
    started: float | None = 0.0
    turned: float = 0.0
    measured: float = 0.0
    window: float = PERIOD


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one metric asks for.

    Args:
        utilization: Percent of the requests, None for an average.
        average: Usage a measured Pod.
    """

    metric: Metric
    replicas: int
    utilization: int | None
    average: float


def group_of(pod: PodFigures, resource: str, *, now: float) -> Group:
    """Say how a Pod counts: with its figure, as not ready, or as without a figure."""
    if pod.pending:
        return "unready"
    if pod.usage is None:
        return "missing"
    if resource != "cpu":
        return "measured"
    if pod.ready is None or pod.started is None:
        return "unready"
    if pod.started + CPU_INITIALIZATION > now:
        fresh = pod.measured >= pod.turned + pod.window
        return "measured" if pod.ready and fresh else "unready"
    never = pod.turned < pod.started + INITIAL_READINESS
    return "unready" if not pod.ready and never else "measured"


def propose(metric: Metric, pods: Sequence[PodFigures], *, current: int, now: float) -> Proposal:
    """Return how many replicas a metric asks for.

    Args:
        pods: Those that are not on their way out and have not failed.
        current: `spec.replicas` of the workload.

    Raises:
        MetricFailed: There is no figure, or a container without a request.
    """
    what = f"failed to get {metric.resource} {'utilization' if metric.utilization else 'usage'}: "
    if not pods:
        raise MetricFailed(f"{what}no pods returned by selector while calculating replica count")
    groups = {pod.name: group_of(pod, metric.resource, now=now) for pod in pods}
    usage = {p.name: float(p.usage or 0.0) for p in pods if groups[p.name] == "measured"}
    unready = [p for p in pods if groups[p.name] == "unready"]
    missing = [p for p in pods if groups[p.name] == "missing"]
    if not usage:
        if not any(p.usage is not None for p in pods):
            raise MetricFailed(
                f"{what}unable to get metrics for resource {metric.resource}: no metrics returned "
                "from resource metrics API"
            )
        raise MetricFailed(
            f"{what}did not receive metrics for targeted pods (pods might be unready)"
        )
    if metric.utilization is not None:
        for pod in pods:
            if pod.lacks_request:
                raise MetricFailed(
                    f"{what}missing request for {metric.resource} in container "
                    f"{pod.lacks_request} of Pod {pod.name}"
                )
    requests = {p.name: p.request for p in pods}

    def ratio_of(figures: Mapping[str, float]) -> tuple[float, int | None]:
        if metric.utilization is None:
            average = sum(figures.values()) / len(figures)
            return (average / metric.average if metric.average else math.inf), None
        asked = sum(requests[name] for name in figures)
        if not asked:
            raise MetricFailed(f"{what}no metrics returned matched known pods")
        percent = int(sum(figures.values()) * 100 / asked)
        return percent / metric.utilization, percent

    ratio, percent = ratio_of(usage)
    average = sum(usage.values()) / len(usage)

    def answer(replicas: int) -> Proposal:
        return Proposal(metric, replicas, percent, average)

    rises_with_unready = bool(unready) and ratio > 1.0
    if not rises_with_unready and not missing:
        if _tolerated(ratio):
            return answer(current)
        return answer(math.ceil(ratio * len(usage)))
    filled = dict(usage)
    if missing and ratio < 1.0:
        # Going down, one without a figure counts as using all that it may.
        for pod in missing:
            full = max(100, metric.utilization or 0) / 100 * pod.request
            filled[pod.name] = full if metric.utilization is not None else (metric.average or 0.0)
    elif missing and ratio > 1.0:
        filled |= dict.fromkeys((p.name for p in missing), 0.0)
    if rises_with_unready:
        filled |= dict.fromkeys((p.name for p in unready), 0.0)
    new, _ = ratio_of(filled)
    turned_round = (ratio < 1.0 < new) or (new < 1.0 < ratio)
    if _tolerated(new) or turned_round:
        return answer(current)
    replicas = math.ceil(new * len(filled))
    if (new < 1.0 and replicas > current) or (new > 1.0 and replicas < current):
        return answer(current)
    return answer(replicas)


def external_replicas(total: float, threshold: float, *, current: int) -> int:
    """Return the replicas for a metric from elsewhere of which each replica may have `threshold`.

    KEDA gives every metric to its HPA as an average value, whatever type the user wrote.

    Source: GetExternalPerPodMetricReplicas; traffic.md 5.3.
    """
    if current and _tolerated(total / (threshold * current)):
        return current
    return math.ceil(total / threshold)


def _tolerated(ratio: float) -> bool:
    return abs(1.0 - ratio) <= TOLERANCE


# Behavior


@dataclass(frozen=True, slots=True)
class Policy:
    """At most `value` Pods, or percent, more or less within `period` seconds."""

    type: str
    value: int
    period: float


@dataclass(frozen=True, slots=True)
class Rules:
    """One direction.

    Args:
        window: Seconds of stabilization.
        select: `Max`, `Min` or `Disabled`.
    """

    window: float
    policies: tuple[Policy, ...]
    select: str = "Max"

    @property
    def memory(self) -> float:
        """Seconds for which changes of size must be remembered."""
        return max((p.period for p in self.policies), default=0.0)


@dataclass(frozen=True, slots=True)
class Behavior:
    """`spec.behavior`, complete."""

    up: Rules
    down: Rules


def behavior_of(spec: Mapping[str, Any] | None) -> Behavior:
    """Return `spec.behavior` with Kubernetes' defaults for what it leaves open."""

    def rules(direction: str, window: float) -> Rules:
        given = {**DEFAULT_BEHAVIOR[direction], **((spec or {}).get(direction) or {})}
        seconds = given.get("stabilizationWindowSeconds")
        return Rules(
            window=window if seconds is None else float(seconds),
            policies=tuple(
                Policy(str(p["type"]), int(p["value"]), float(p["periodSeconds"]))
                for p in given.get("policies") or ()
            ),
            select=str(given.get("selectPolicy") or "Max"),
        )

    return Behavior(rules("scaleUp", 0.0), rules("scaleDown", DOWN_WINDOW))


@dataclass(frozen=True, slots=True)
class History:
    """What of the past counts. Pairs of time and number, oldest first.

    Args:
        recommended: Sizes that the metrics asked for.
        added, removed: Pods by which the size was changed.
    """

    recommended: tuple[tuple[float, int], ...] = ()
    added: tuple[tuple[float, int], ...] = ()
    removed: tuple[tuple[float, int], ...] = ()


# The decision


@dataclass(frozen=True, slots=True)
class Bounds:
    """`minReplicas`, `maxReplicas` and how fast the size may change."""

    least: int
    most: int
    behavior: Behavior = field(default_factory=lambda: behavior_of(None))


@dataclass(frozen=True, slots=True)
class Told:
    """One condition: status, reason, message."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and what the HPA's status says of it.

    Args:
        replicas: The size to have.
        why: Why the size changes, for the Event; empty: it does not.
        conditions: By type, only those that this decision says something about.
        failed: No size could be computed: reason and message of a Warning.
    """

    replicas: int
    history: History
    why: str = ""
    conditions: Mapping[str, Told] = field(default_factory=dict)
    failed: tuple[str, str] | None = None


def decide(
    current: int,
    bounds: Bounds,
    metrics: Sequence[Proposal | tuple[Metric, MetricFailed]],
    history: History,
    *,
    now: float,
) -> Decision:
    """Decide the size of a workload.

    Args:
        current: `spec.replicas` of the workload.
        metrics: What each metric asks for, or why it asks for nothing.
    """
    told = {
        "AbleToScale": Told(
            "True",
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
        )
    }
    if current == 0 and bounds.least:
        text = "scaling is disabled since the replica count of the target is zero"
        told["ScalingActive"] = Told("False", "ScalingDisabled", text)
        return Decision(0, history, conditions=told)
    if current > bounds.most:
        return _changed(
            current, bounds.most, "Current number of replicas above Spec.MaxReplicas",
            history, bounds, told, now,
        )  # fmt: skip
    if current < bounds.least:
        return _changed(
            current, bounds.least, "Current number of replicas below Spec.MinReplicas",
            history, bounds, told, now,
        )  # fmt: skip
    proposals = [m for m in metrics if isinstance(m, Proposal)]
    errors = [m for m in metrics if not isinstance(m, Proposal)]
    best = max(proposals, key=lambda p: p.replicas, default=None)
    if errors and (best is None or best.replicas < current):
        metric, error = errors[0]
        text = f"the HPA was unable to compute the replica count: {error}"
        told["ScalingActive"] = Told("False", "FailedGetResourceMetric", text)
        message = (
            f"invalid metrics ({len(errors)} invalid out of {len(metrics)}), first error is: "
            f"failed to get {metric.resource} resource metric value: {error}"
        )
        return Decision(
            current, history, conditions=told, failed=("FailedComputeMetricsReplicas", message)
        )
    if best is None:
        return Decision(current, history, conditions=told)
    text = f"the HPA was able to successfully calculate a replica count from {best.metric.label}"
    told["ScalingActive"] = Told("True", "ValidMetricFound", text)
    stable, history = _stabilized(current, best.replicas, bounds.behavior, history, now, told)
    limited = _limited(current, stable, bounds, history, now, told)
    if limited == current:
        return Decision(current, history, conditions=told)
    above = f"{best.metric.label} above target"
    why = above if limited > current else "All metrics below target"
    return _changed(current, limited, why, history, bounds, told, now)


def _changed(
    current: int,
    replicas: int,
    why: str,
    history: History,
    bounds: Bounds,
    told: dict[str, Told],
    now: float,
) -> Decision:
    told["AbleToScale"] = Told(
        "True",
        "SucceededRescale",
        f"the HPA controller was able to update the target scale to {replicas}",
    )
    added, removed = history.added, history.removed
    if replicas > current:
        added = (*_recent(added, now - bounds.behavior.up.memory), (now, replicas - current))
    else:
        removed = (*_recent(removed, now - bounds.behavior.down.memory), (now, current - replicas))
    after = History(history.recommended, added, removed)
    return Decision(replicas, after, why=why, conditions=told)


def _stabilized(
    current: int,
    wanted: int,
    behavior: Behavior,
    history: History,
    now: float,
    told: dict[str, Told],
) -> tuple[int, History]:
    """Return the size after stabilization: not above what was asked for all along the window up,
    not below what was asked for once in the window down.
    """
    up, down = behavior.up.window, behavior.down.window
    lowest = min((n for at, n in history.recommended if at > now - up), default=wanted)
    highest = max((n for at, n in history.recommended if at > now - down), default=wanted)
    stable = min(max(current, min(wanted, lowest)), max(wanted, highest))
    kept = (*_recent(history.recommended, now - max(up, down)), (now, wanted))
    if stable == wanted:
        told["AbleToScale"] = Told(
            "True", "ReadyForNewScale", "recommended size matches current size"
        )
    elif wanted >= current:
        told["AbleToScale"] = Told(
            "True",
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent "
            "recommendation",
        )
    else:
        told["AbleToScale"] = Told(
            "True",
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent "
            "recommendation",
        )
    return stable, History(kept, history.added, history.removed)


def _limited(
    current: int,
    wanted: int,
    bounds: Bounds,
    history: History,
    now: float,
    told: dict[str, Told],
) -> int:
    """Return the size within the bounds and as fast as the policies allow."""
    if wanted > current:
        limit = max(current, _up_limit(current, bounds.behavior.up, history, now))
        most = min(bounds.most, limit)
        if wanted > most:
            told["ScalingLimited"] = (
                Told(
                    "True",
                    "ScaleUpLimit",
                    "the desired replica count is increasing faster than the maximum scale rate",
                )
                if limit < bounds.most
                else Told(
                    "True",
                    "TooManyReplicas",
                    "the desired replica count is more than the maximum replica count",
                )
            )
            return most
    elif wanted < current:
        limit = min(current, _down_limit(current, bounds.behavior.down, history, now))
        least = max(bounds.least, limit)
        if wanted < least:
            told["ScalingLimited"] = (
                Told(
                    "True",
                    "ScaleDownLimit",
                    "the desired replica count is decreasing faster than the maximum scale rate",
                )
                if limit > bounds.least
                else Told(
                    "True",
                    "TooFewReplicas",
                    "the desired replica count is less than the minimum replica count",
                )
            )
            return least
    told["ScalingLimited"] = Told(
        "False", "DesiredWithinRange", "the desired count is within the acceptable range"
    )
    return wanted


def _up_limit(current: int, rules: Rules, history: History, now: float) -> int:
    if rules.select == "Disabled":
        return current

    def proposed(policy: Policy) -> int:
        start = _size_at_start(current, history, now - policy.period)
        if policy.type == "Pods":
            return start + policy.value
        return math.ceil(start * (1 + policy.value / 100))

    return _selected(rules, proposed, max, min)


def _down_limit(current: int, rules: Rules, history: History, now: float) -> int:
    if rules.select == "Disabled":
        return current

    def proposed(policy: Policy) -> int:
        start = _size_at_start(current, history, now - policy.period)
        if policy.type == "Pods":
            return start - policy.value
        return int(start * (1 - policy.value / 100))

    return _selected(rules, proposed, min, max)


def _selected(
    rules: Rules,
    proposed: Callable[[Policy], int],
    most_change: Callable[[list[int]], int],
    least_change: Callable[[list[int]], int],
) -> int:
    """Return the limit of the policy that is to hold: by default the one that allows most."""
    limits = [proposed(policy) for policy in rules.policies]
    return (least_change if rules.select == "Min" else most_change)(limits)


def _size_at_start(current: int, history: History, start: float) -> int:
    added = sum(n for at, n in history.added if at > start)
    removed = sum(n for at, n in history.removed if at > start)
    return current - added + removed


def _recent(entries: Sequence[tuple[float, int]], start: float) -> tuple[tuple[float, int], ...]:
    return tuple(entry for entry in entries if entry[0] > start)
