"""traffic.md 1.5 and 1.7: bounds, conditions, and the path of requests."""

from __future__ import annotations

from typing import get_args

import pytest

from kserve_local.autoscaler import bounds, kpa
from kserve_local.autoscaler.bounds import ActiveStatus, Activity
from kserve_local.autoscaler.mode import mode_of
from kserve_local.interfaces.scaling import Observation, ScalingConfig

STATUSES = get_args(ActiveStatus)


@pytest.mark.parametrize(
    ("config", "reachable", "initialized", "expected"),
    [
        (ScalingConfig(), True, False, (0, 0)),
        (ScalingConfig(min_scale=2, max_scale=5), True, True, (2, 5)),
        (ScalingConfig(min_scale=2, max_scale=5), False, True, (0, 5)),
        (ScalingConfig(initial_scale=3), True, False, (3, 0)),
        (ScalingConfig(initial_scale=3), True, True, (0, 0)),
        (ScalingConfig(initial_scale=3), False, False, (0, 0)),
        (ScalingConfig(min_scale=4, initial_scale=3), True, False, (4, 0)),
    ],
)
def test_bounds(
    config: ScalingConfig, reachable: bool, initialized: bool, expected: tuple[int, int]
) -> None:
    assert bounds.bounds(config, reachable=reachable, initialized=initialized) == expected


def test_applied() -> None:
    assert [bounds.applied(n, 1, 3) for n in (0, 1, 2, 3, 9)] == [1, 1, 2, 3, 3]
    assert bounds.applied(9, 0, 0) == 9
    assert bounds.applied(1, 5, 3) == 5


TABLE = [
    # want, enough ready, before -> after (knative/serving kpa.go, computeActiveCondition)
    *((0, ready, before, "Inactive") for ready in (False, True) for before in STATUSES),
    *((2, False, before, "Activating") for before in STATUSES),
    *((2, True, before, "Active") for before in STATUSES),
    (-1, False, "Inactive", "Inactive"),
    (-1, False, "Activating", "Activating"),
    (-1, False, "Active", "Activating"),
    (-1, True, "Inactive", "Inactive"),
    (-1, True, "Activating", "Active"),
    (-1, True, "Active", "Active"),
]


@pytest.mark.parametrize(("want", "enough", "before", "after"), TABLE)
def test_condition_active(
    want: int, enough: bool, before: ActiveStatus, after: ActiveStatus
) -> None:
    config = ScalingConfig(min_scale=2)
    old = Activity(before, 5.0, initialized=True)
    new = bounds.activity(old, want, 2 if enough else 1, config, reachable=True, now=9.0)
    assert new.status == after
    assert new.since == (5.0 if before == after else 9.0)


def test_condition_texts() -> None:
    def turned(before: ActiveStatus, want: int) -> tuple[str, str]:
        old = Activity(before, 0.0, initialized=True)
        new = bounds.activity(old, want, 0, ScalingConfig(), reachable=True, now=1.0)
        return new.reason, new.message

    buffered = "Requests to the target are being buffered as resources are provisioned."
    assert turned("Inactive", 1) == ("Queued", buffered)
    assert turned("Active", 0) == ("NoTraffic", "The target is not receiving traffic.")
    assert turned("Activating", 0) == ("TimedOut", "The target could not be activated.")


def test_the_initial_scale_is_reached_once() -> None:
    """What comes before needs all of it; what comes after needs one."""
    config = ScalingConfig(initial_scale=3)
    new = Activity("Activating", 0.0)
    some = bounds.activity(new, 3, 2, config, reachable=True, now=1.0)
    assert (some.status, some.initialized) == ("Activating", False)
    every = bounds.activity(some, 3, 3, config, reachable=True, now=2.0)
    assert (every.status, every.initialized) == ("Active", True)
    fewer = bounds.activity(every, 1, 1, config, reachable=True, now=3.0)
    assert (fewer.status, fewer.initialized) == ("Active", True)


def test_an_initial_scale_of_zero_is_reached_at_once() -> None:
    config = ScalingConfig(initial_scale=0)
    first = bounds.activity(Activity("Activating", 0), -1, 0, config, reachable=True, now=0)
    assert (first.status, first.reason, first.initialized) == ("Inactive", "NoTraffic", True)
    again = bounds.activity(first, -1, 0, config, reachable=True, now=1)
    assert again == first


@pytest.mark.parametrize(
    ("total", "metric", "direct_from"),
    [(100, "concurrency", 3), (10, "concurrency", 22), (1, "concurrency", 211), (200, "rps", 2)],
)
def test_idle_replicas_that_take_the_activator_out(
    total: float, metric: str, direct_from: int
) -> None:
    config = ScalingConfig(target=0.7 * total, total=total)
    for ready in (0, 1, 2, 3, 21, 22, 210, 211, 212):
        _, decision = kpa.decide(kpa.KpaState(), Observation(0, 0, ready), config, now=0)
        assert decision.excess_burst_capacity == ready * total - 211
        expected = "Serve" if ready >= direct_from else "Proxy"
        assert mode_of(1, decision.excess_burst_capacity, ready=ready) == expected


@pytest.mark.parametrize(("panic", "mode"), [(89, "Serve"), (89.5, "Proxy"), (90, "Proxy")])
def test_load_eats_the_burst_capacity(panic: float, mode: str) -> None:
    _, decision = kpa.decide(kpa.KpaState(), Observation(0, panic, 3), ScalingConfig(), now=0)
    assert mode_of(3, decision.excess_burst_capacity, ready=3) == mode


def test_burst_capacity_0_and_unlimited() -> None:
    for burst, expected in ((0.0, 0), (-1.0, -1)):
        config = ScalingConfig(target_burst_capacity=burst)
        _, first = kpa.start(config, ready=0, now=0)
        _, decision = kpa.decide(kpa.KpaState(), Observation(50, 50, 1), config, now=0)
        assert first.excess_burst_capacity == decision.excess_burst_capacity == expected
    assert mode_of(1, 0, ready=1) == "Serve"
    assert mode_of(1, 0, ready=0) == "Proxy"
    assert mode_of(0, 0, ready=1) == "Proxy"
    assert mode_of(-1, 0, ready=1) == "Proxy"


@pytest.mark.parametrize(("initial", "excess"), [(1, -111), (2, -11), (3, 89)])
def test_burst_capacity_before_the_first_tick(initial: int, excess: int) -> None:
    _, decision = kpa.start(ScalingConfig(initial_scale=initial), ready=0, now=0)
    assert (decision.desired, decision.excess_burst_capacity) == (-1, excess)
