"""The worked examples A to M of traffic.md 1.11, number for number, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kserve_local.autoscaler import kpa
from kserve_local.autoscaler.config import scaling_config
from kserve_local.autoscaler.revision_scaler import RevisionScaler
from kserve_local.interfaces.scaling import Observation, ScalingConfig
from tests.unit.autoscaler.replay import Step, calm_at, changes, replay, stat

PREFIX = "autoscaling.knative.dev/"
DEFAULT = scaling_config({})
ONE = scaling_config({PREFIX + "target": "1"})
TEN = scaling_config({}, 10)

Row = tuple[int, float, float, int, int, int, bool]

A: list[Row] = [
    (2, 0.166667, 1.666667, 1, 3, -212, True),
    (4, 0.333333, 3.333333, 1, 5, -214, True),
    (6, 0.5, 5, 3, 8, -213, True),
    (8, 0.666667, 5, 5, 8, -211, True),
    (10, 0.833333, 5, 8, 8, -208, True),
    (68, 5, 5, 8, 8, -208, False),
]
C: list[Row] = [
    (2, 6.666667, 66.666667, 1, 1, -178, False),
    (4, 13.333333, 133.333333, 1, 2, -245, True),
    (6, 20, 200, 1, 3, -311, True),
    (10, 33.333333, 200, 2, 3, -211, True),
    (12, 40, 200, 3, 3, -111, True),
    (70, 100, 0, 3, 2, 89, False),
    (72, 93.333333, 0, 2, 2, -11, False),
    (80, 66.666667, 0, 2, 1, -11, False),
    (100, 0, 0, 1, 0, -111, False),
]


@pytest.mark.parametrize("row", A, ids=lambda row: f"t={row[0]}")
def test_a_five_in_flight_at_a_target_of_one(row: Row) -> None:
    """The steady state is ceil(5 / 0.7) = 8."""
    check(row, replay(ONE, lambda t: 5, until=70))


def check(row: Row, steps: dict[int, Step]) -> None:
    second, *expected = row
    step, decision = steps[second], steps[second].decision
    found = [step.stable, step.panic, step.ready, decision.desired]
    assert [*found, decision.excess_burst_capacity, decision.panic] == expected


def test_a_leaves_panic_a_window_after_the_last_tick_over() -> None:
    steps = replay(ONE, lambda t: 5, until=70)
    assert changes(steps) == [(2, 3), (4, 5), (6, 8)]
    assert calm_at(steps) == 68


def test_b_load_stops_and_the_panic_holds() -> None:
    """Panic keeps 8 until 68, then one tick may only halve."""
    steps = replay(ONE, lambda t: 5 if t <= 30 else 0, until=92, least=1)
    assert changes(steps)[2:] == [(6, 8), (68, 4), (70, 3), (74, 2), (82, 1), (90, 0)]
    assert steps[68].stable == 1.833333
    assert steps[68].decision.reason == "ScaleDownRate"
    assert steps[90].applied == 1


def c_load(t: int) -> float:
    return 200 if t <= 40 else 0


@pytest.mark.parametrize("row", C, ids=lambda row: f"t={row[0]}")
def test_c_defaults_and_a_burst_of_200(row: Row) -> None:
    check(row, replay(DEFAULT, c_load, until=100, start=6, least=1))


def test_c_never_below_min() -> None:
    steps = replay(DEFAULT, c_load, until=100, start=6, least=1)
    assert steps[100].applied == 1


def test_c_prime_bounds_are_outside_the_decider() -> None:
    """The decider says 3, two are applied."""
    steps = replay(replace(DEFAULT, max_scale=2), c_load, until=100, start=6, least=1)
    assert next(t for t, step in steps.items() if step.applied > 1) == 4
    assert max(step.applied for step in steps.values()) == 2
    assert steps[6].decision.desired == 3
    assert calm_at(steps) == 70
    assert next(t for t, step in steps.items() if t > 70 and step.applied == 1) == 80


def test_d_container_concurrency_10() -> None:
    steps = replay(TEN, lambda t: 35, until=100)
    assert changes(steps) == [(2, 2), (4, 4), (6, 5)]
    assert all(steps[t].decision.panic for t in (2, 4, 6))
    assert (steps[8].ready, steps[10].ready) == (4, 5)
    assert calm_at(steps) == 68


def test_e_requests_per_second() -> None:
    config = scaling_config({PREFIX + "target": "5", PREFIX + "metric": "rps"})
    steps = replay(config, lambda t: 20, until=100)
    assert changes(steps) == [(2, 2), (4, 4), (6, 6)]
    assert steps[10].ready == 6
    assert calm_at(steps) == 68


@pytest.mark.parametrize(
    ("delay", "falls"), [("0s", [(44, 2), (72, 1)]), ("30s", [(72, 2), (100, 1)])]
)
def test_f_scale_down_delay(delay: str, falls: list[tuple[int, int]]) -> None:
    config = scaling_config({PREFIX + "scale-down-delay": delay}, 10)
    steps = replay(config, lambda t: 20 if t <= 20 else 5, until=110, ready=3, warm=20, calm=True)
    assert changes(steps) == [(2, 3), *falls]
    assert steps[44].stable == 14.0


def test_g_scale_up_rate() -> None:
    config = replace(scaling_config({}, 1), max_scale_up_rate=2.0)
    steps = replay(config, lambda t: 20, until=20, start=2)
    assert changes(steps) == [(2, 2), (4, 4), (6, 8), (8, 16), (10, 29)]
    assert steps[2].decision.reason == "ScaleUpRate"


@pytest.mark.parametrize("reachable", [True, False])
def test_h_calm_scale_down(reachable: bool) -> None:
    """The halving limit never bites on the way down a whole window."""
    steps = replay(ONE, lambda t: 0, until=62, ready=8, warm=5, calm=True, reachable=reachable)
    falls = [(2, 7), (10, 6), (18, 5), (28, 4), (36, 3), (44, 2), (52, 1), (60, 0)]
    assert changes(steps) == falls


def test_i_shortest_window() -> None:
    config = scaling_config({PREFIX + "target": "1", PREFIX + "window": "6s"})
    assert config.panic_window == 1
    steps = replay(config, lambda t: 5 if t <= 10 else 0, until=18, start=1)
    assert changes(steps) == [(2, 8), (12, 5), (14, 3), (16, 1), (18, 0)]
    assert steps[2].decision.panic
    assert calm_at(steps) == 10
    assert steps[16].stable == 0.0
    assert steps[16].decision.reason == "ScaleDownRate"


def test_j_staircase() -> None:
    def load(t: int) -> float:
        return 60 if t <= 60 else 130 if t <= 120 else 0

    steps = replay(DEFAULT, load, until=182, least=1)
    assert changes(steps) == [(2, 1), (62, 2), (148, 1), (180, 0)]
    assert (steps[62].stable, steps[62].panic) == (62.333333, 83.333333)
    assert steps[62].decision.panic
    assert calm_at(steps) == 126
    assert steps[180].applied == 1


@pytest.mark.parametrize(
    ("limit", "desired", "panic"),
    [(0, 1, False), (10, 1, False), (3, 1, False), (2, 1, False), (1, 2, True)],
)
def test_k_the_very_first_request(limit: int, desired: int, panic: bool) -> None:
    """It counts at once, as 1, and divides by the age of the window: 1 second."""
    scaler = RevisionScaler(scaling_config({}, limit), ready=0, now=0.0)
    scaler.arrived(0.3)
    decision = scaler.tick(0, 0.3)
    assert decision.seen == Observation(1.0, 1.0, 0)
    assert (decision.desired, decision.panic) == (desired, panic)
    assert decision.excess_burst_capacity == -212


@pytest.mark.parametrize(
    ("config", "held", "desired"),
    [
        (DEFAULT, 1, 1),
        (DEFAULT, 5, 1),
        (DEFAULT, 20, 1),
        (DEFAULT, 100, 2),
        (DEFAULT, 500, 8),
        (ONE, 5, 8),
        (ONE, 20, 29),
        (ONE, 100, 143),
        (ONE, 500, 715),
    ],
)
def test_k_a_held_burst(config: ScalingConfig, held: int, desired: int) -> None:
    scaler = RevisionScaler(config, ready=0, now=0.0)
    scaler.record(stat(held), 0.0)
    decision = scaler.tick(0, 0.0)
    assert decision.desired == desired
    assert decision.panic == (desired > 1)


def test_l_one_long_request_after_a_cold_start() -> None:
    steps = replay(
        ONE,
        lambda t: 1 if t <= 20 else 0,
        until=82,
        start=6,
        ready=0,
        warm=None,
        first=0,
    )
    assert changes(steps) == [(0, 2), (66, 1), (80, 0)]
    assert steps[0].decision.panic
    assert calm_at(steps) == 66
    assert steps[66].stable == 0.233333


@pytest.mark.parametrize(
    ("seen", "down_rate", "desired", "panic"),
    [
        (Observation(10, 10, 1), 2, 1, False),
        (Observation(50, 50, 5), 2, 5, False),
        (Observation(1, 1, 100), 10, 10, False),
        (Observation(1, 1, 100, reachable=False), 10, 1, False),
        (Observation(21, 21, 0), 2, 3, True),
        (Observation(0, 31, 2), 2, 4, True),
        (Observation(30, 30, 2), 2, 3, False),
    ],
)
def test_m_static_cases(seen: Observation, down_rate: float, desired: int, panic: bool) -> None:
    config = ScalingConfig(target=10, total=10, max_scale_down_rate=down_rate)
    _, decision = kpa.decide(kpa.KpaState(), seen, config, now=100.0)
    assert (decision.desired, decision.panic) == (desired, panic)
