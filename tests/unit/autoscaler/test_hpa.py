"""The HPA's numbers: traffic.md 5.2's examples and Kubernetes' own rules, with time as a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.autoscaler.hpa import (
    Bounds,
    Decision,
    History,
    Metric,
    MetricFailed,
    PodFigures,
    Proposal,
    behavior_of,
    decide,
    external_replicas,
    group_of,
    propose,
)

CPU = Metric("cpu", utilization=80)
OLD = -10_000.0


def pods(*percents: float | None, **more: Any) -> list[PodFigures]:
    """Return ready Pods that have run for long, each using so many percent of one core."""
    return [
        PodFigures(
            name=f"p{n}",
            usage=None if percent is None else percent / 100,
            request=1.0,
            started=OLD,
            turned=OLD,
            **more,
        )
        for n, percent in enumerate(percents)
    ]


def replicas(*percents: float | None, metric: Metric = CPU, current: int = 0) -> int:
    return propose(metric, pods(*percents), current=current or len(percents), now=0.0).replicas


@pytest.mark.parametrize(
    ("percents", "wanted"),
    [
        ((85,), 1),
        ((89,), 2),
        ((160, 160), 4),
        ((40, 40, 40), 2),
        ((75, 75, 75), 3),
        ((0,), 0),
    ],
)
def test_the_formula_and_its_tolerance(percents: tuple[float, ...], wanted: int) -> None:
    assert replicas(*percents) == wanted


@pytest.mark.parametrize(
    ("percents", "current", "wanted"),
    [
        ((160, None), 2, 2),  # 80 % a Pod when the missing one counts as idle: tolerated
        ((320, None), 2, 4),
        ((10, None), 2, 2),  # the missing one counts as using all it asked for
        ((10, 10, 10, None), 4, 2),
    ],
)
def test_a_pod_without_a_figure_counts_against_the_change(
    percents: tuple[float | None, ...], current: int, wanted: int
) -> None:
    assert replicas(*percents, current=current) == wanted


def test_unready_pods_count_as_idle_on_the_way_up_and_not_at_all_on_the_way_down() -> None:
    young = replace(pods(500)[0], name="young", ready=False, started=-5.0, turned=-5.0)
    assert propose(CPU, [*pods(160), young], current=2, now=0.0).replicas == 2
    assert propose(CPU, [*pods(320), young], current=2, now=0.0).replicas == 4
    assert propose(CPU, [*pods(20), young], current=2, now=0.0).replicas == 1


@pytest.mark.parametrize(
    ("change", "group"),
    [
        ({}, "measured"),
        ({"pending": True}, "unready"),
        ({"usage": None}, "missing"),
        ({"ready": None}, "unready"),
        ({"started": None}, "unready"),
        # Within five minutes of its start a figure counts once it is wholly of a ready Pod.
        ({"started": -60.0, "turned": -40.0, "measured": 0.0}, "measured"),
        ({"started": -60.0, "turned": -10.0, "measured": 0.0}, "unready"),
        ({"started": -60.0, "turned": -40.0, "measured": 0.0, "ready": False}, "unready"),
        # Afterwards only one that was never ready is left out.
        ({"started": -400.0, "turned": -10.0, "ready": False}, "measured"),
        ({"started": -400.0, "turned": -399.0, "ready": False}, "unready"),
    ],
)
def test_which_figures_of_cpu_count(change: dict[str, Any], group: str) -> None:
    assert group_of(replace(pods(50)[0], **change), "cpu", now=0.0) == group


def test_memory_counts_from_the_first_moment() -> None:
    young = replace(pods(50)[0], ready=False, started=-1.0, turned=-1.0)
    assert group_of(young, "memory", now=0.0) == "measured"


def test_an_average_value_needs_no_request() -> None:
    metric = Metric("memory", average=100.0)
    figures = [PodFigures(f"p{n}", 250.0, 0.0, "c") for n in range(2)]
    found = propose(metric, figures, current=2, now=0.0)
    assert (found.replicas, found.utilization, found.average) == (5, None, 250.0)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ([], "no pods returned by selector while calculating replica count"),
        (pods(None), "no metrics returned from resource metrics API"),
        ([replace(pods(50)[0], ready=None)], "did not receive metrics for targeted pods"),
        (
            [replace(pods(50)[0], lacks_request="kserve-container")],
            "missing request for cpu in container kserve-container of Pod p0",
        ),
    ],
)
def test_why_a_metric_gives_nothing(figures: list[PodFigures], words: str) -> None:
    with pytest.raises(MetricFailed, match=words):
        propose(CPU, figures, current=1, now=0.0)


# Decisions over time


class Load:
    """A workload under a load that its replicas share evenly, looked at every 15 s."""

    def __init__(self, least: int, most: int, *, size: int = 1, **behavior: Any) -> None:
        self.bounds = Bounds(least, most, behavior_of(behavior or None))
        self.size = size
        self.history = History(((0.0, size),))
        self.now = 0.0
        self.last = Decision(size, self.history)

    def tick(self, total: float) -> int:
        self.now += 15.0
        found = propose(CPU, pods(*[total / self.size] * self.size), current=self.size, now=0.0)
        self.last = decide(self.size, self.bounds, [found], self.history, now=self.now)
        self.size, self.history = self.last.replicas, self.last.history
        return self.size


def test_growth_is_limited_a_period() -> None:
    load = Load(1, 20)
    assert [load.tick(1600) for _ in range(4)] == [5, 10, 20, 20]
    load = Load(1, 100)
    assert [load.tick(8000) for _ in range(7)] == [5, 10, 20, 40, 80, 100, 100]


def test_shrinking_waits_for_the_highest_recommendation_of_five_minutes() -> None:
    load = Load(1, 10, size=3)
    sizes = {}
    for _ in range(24):
        size = load.tick(120)
        sizes[size] = load.now
    assert sizes[3] == 285.0
    assert load.size == 2
    assert load.last.conditions["AbleToScale"].reason in ("ReadyForNewScale", "SucceededRescale")


def test_while_it_waits_it_says_so() -> None:
    load = Load(1, 10, size=3)
    load.tick(120)
    told = load.last.conditions["AbleToScale"]
    assert (told.status, told.reason) == ("True", "ScaleDownStabilized")


def test_bounds_hold_and_are_told() -> None:
    load = Load(1, 1)
    assert load.tick(500) == 1
    assert load.last.conditions["ScalingLimited"].reason == "TooManyReplicas"
    load = Load(2, 4, size=2, scaleDown={"stabilizationWindowSeconds": 0})
    assert load.tick(2) == 2
    assert load.last.conditions["ScalingLimited"].reason == "TooFewReplicas"


def test_a_size_outside_the_bounds_is_brought_inside_at_once() -> None:
    outside = decide(9, Bounds(1, 4), [], History(), now=0.0)
    assert (outside.replicas, outside.why) == (
        4,
        "Current number of replicas above Spec.MaxReplicas",
    )
    outside = decide(1, Bounds(3, 4), [], History(), now=0.0)
    assert outside.why == "Current number of replicas below Spec.MinReplicas"


def test_at_zero_the_autoscaler_rests() -> None:
    rests = decide(0, Bounds(1, 4), [], History(), now=0.0)
    assert rests.replicas == 0
    assert rests.conditions["ScalingActive"].reason == "ScalingDisabled"


def test_the_largest_metric_wins_and_a_failed_one_may_not_shrink() -> None:
    memory = Metric("memory", utilization=50)
    failed = (memory, MetricFailed("failed to get memory utilization: gone"))

    def asks(wanted: int) -> Proposal:
        return Proposal(CPU, wanted, 80, 0.8)

    bounds = Bounds(1, 10)
    up = decide(2, bounds, [asks(3), Proposal(memory, 4, 90, 1.0)], History(), now=0.0)
    assert (up.replicas, up.why) == (
        4,
        "memory resource utilization (percentage of request) above target",
    )
    assert decide(2, bounds, [asks(3), failed], History(), now=0.0).replicas == 3
    down = decide(2, bounds, [asks(1), failed], History(), now=0.0)
    assert down.replicas == 2
    assert down.conditions["ScalingActive"].reason == "FailedGetResourceMetric"
    assert down.failed == (
        "FailedComputeMetricsReplicas",
        "invalid metrics (1 invalid out of 2), first error is: failed to get memory resource metric"
        " value: failed to get memory utilization: gone",
    )


def test_behavior_may_slow_down_or_forbid() -> None:
    slow = {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 30}]}
    load = Load(1, 10, scaleUp=slow)
    assert [load.tick(1000) for _ in range(4)] == [2, 2, 3, 3]
    assert load.last.conditions["ScalingLimited"].reason == "ScaleUpLimit"
    load = Load(1, 10, size=4, scaleDown={"selectPolicy": "Disabled"})
    assert {load.tick(1) for _ in range(30)} == {4}
    wait = {"stabilizationWindowSeconds": 60}
    load = Load(1, 10, scaleUp=wait)
    assert [load.tick(300) for _ in range(6)][-1] == 4
    assert load.tick(300) == 4


def test_the_smallest_policy_is_chosen_on_demand() -> None:
    both = [
        {"type": "Pods", "value": 1, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ]
    load = Load(1, 50, size=10, scaleUp={"policies": both, "selectPolicy": "Min"})
    assert load.tick(5000) == 11
    load = Load(1, 50, size=10, scaleUp={"policies": both})
    assert load.tick(5000) == 20


@pytest.mark.parametrize(
    ("total", "threshold", "current", "wanted"),
    [(20, 5, 2, 4), (10.4, 5, 2, 2), (0, 5, 3, 0), (20, 5, 0, 4)],
)
def test_kedas_average_value(total: float, threshold: float, current: int, wanted: int) -> None:
    assert external_replicas(total, threshold, current=current) == wanted


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 500)), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(0, 10),
)
def test_the_size_is_always_within_the_bounds(
    percents: list[float | None], least: int, more: int
) -> None:
    bounds = Bounds(least, least + more)
    current = min(max(len(percents), least), least + more)
    try:
        proposal = propose(CPU, pods(*percents), current=current, now=0.0)
    except MetricFailed:
        return
    decision = decide(current, bounds, [proposal], History(), now=0.0)
    assert least <= decision.replicas <= least + more
