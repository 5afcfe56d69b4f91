"""traffic.md 1.4: rules of the tick that hold for every load."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.autoscaler import kpa
from kserve_local.autoscaler.bounds import Activity, applied, bounds
from kserve_local.autoscaler.revision_scaler import RevisionScaler
from kserve_local.interfaces.scaling import Observation, ScalingConfig, ScalingPolicy
from tests.unit.autoscaler.replay import stat

POLICY: ScalingPolicy[kpa.KpaState] = kpa
CONFIG = ScalingConfig(target=0.7, total=1)


def decide(
    seen: Observation, config: ScalingConfig, state: kpa.KpaState | None = None, now: float = 0.0
) -> tuple[int, bool, str]:
    _, found = kpa.decide(state or kpa.KpaState(), seen, config, now=now)
    return found.desired, found.panic, found.reason


@pytest.mark.parametrize(
    ("ready", "threshold"), [(0, 70), (1, 70), (2, 210), (3, 350), (4, 490), (10, 1330)]
)
def test_panic_starts_just_above(ready: int, threshold: float) -> None:
    """A ceil on both sides: with one replica above one target, not two."""
    config = ScalingConfig()
    assert not decide(Observation(0, threshold, ready), config)[1]
    assert decide(Observation(0, threshold + 0.000001, ready), config)[1]


def test_average_of_71_is_panic_and_two_replicas() -> None:
    assert decide(Observation(71, 71, 1), ScalingConfig()) == (2, True, "Stable")
    assert decide(Observation(10, 71, 1), ScalingConfig()) == (2, True, "Panic")
    assert decide(Observation(70, 70, 1), ScalingConfig()) == (1, False, "Stable")


def test_leaving_panic_takes_more_than_a_window() -> None:
    state = kpa.KpaState(panic_since=0.0, max_panic_pods=8)
    calm = Observation(0.7, 0.7, 8)
    assert decide(calm, CONFIG, state, now=60.0) == (8, True, "PanicHold")
    assert decide(calm, CONFIG, state, now=60.5) == (4, False, "ScaleDownRate")


def test_more_than_one_ready_replica_starts_in_panic() -> None:
    """After a restart nothing is known: what is there stays."""
    state, decision = kpa.start(CONFIG, ready=5, now=100.0)
    assert (decision.desired, decision.panic) == (-1, True)
    assert decide(Observation(0, 0, 5), CONFIG, state, now=102.0) == (5, True, "PanicHold")
    for ready in (0, 1):
        assert kpa.start(CONFIG, ready=ready, now=100.0)[0] == kpa.KpaState()


def test_activation_scale_only_with_traffic() -> None:
    config = replace(CONFIG, activation_scale=4)
    assert decide(Observation(0.1, 0, 1), config) == (4, False, "ActivationScale")
    assert decide(Observation(0, 0, 1), config) == (0, False, "Idle")
    assert decide(Observation(7, 7, 20), config)[0] == 10


def test_activation_scale_comes_after_the_scale_up_rate() -> None:
    config = replace(CONFIG, activation_scale=6, max_scale_up_rate=2)
    assert decide(Observation(70, 0, 1), config)[0] == 6


def test_a_rate_just_above_one_still_grows_by_one() -> None:
    config = ScalingConfig(target=1, total=1, max_scale_up_rate=1.1)
    assert decide(Observation(3, 3, 2), config)[0] == 3


def test_delay_takes_the_largest_of_a_slot() -> None:
    """A poke can make two decisions in one slot."""
    config = replace(CONFIG, scale_down_delay=2)
    state, _ = kpa.decide(kpa.KpaState(), Observation(3.5, 0, 4), config, now=10.0)
    state, same = kpa.decide(state, Observation(1.4, 0, 4), config, now=11.9)
    assert (same.desired, same.reason) == (5, "ScaleDownDelay")
    _, after = kpa.decide(state, Observation(1.4, 0, 4), config, now=12.0)
    assert after.desired == 2


def test_unreachable_knows_no_delay() -> None:
    config = replace(CONFIG, scale_down_delay=60)
    state, _ = kpa.decide(kpa.KpaState(), Observation(3.5, 0, 5), config, now=0.0)
    gone = Observation(0, 0, 5, reachable=False)
    assert decide(gone, config, state, now=2.0) == (0, False, "Idle")


def test_reasons_carry_their_numbers() -> None:
    _, up = kpa.decide(kpa.KpaState(), Observation(0.5, 5, 3), CONFIG, now=0)
    assert (up.reason, up.message) == ("Panic", "5 in flight over 6 s, 0.7 a replica: 8")
    _, idle = kpa.decide(kpa.KpaState(), Observation(0, 0, 1), CONFIG, now=0)
    assert (idle.reason, idle.message) == ("Idle", "nothing in flight over 60 s")


averages = st.floats(0, 5000, allow_nan=False).map(lambda value: round(value, 6))
configs = st.builds(
    ScalingConfig,
    target=st.floats(0.01, 200),
    total=st.floats(0.01, 300),
    panic_threshold=st.floats(1.1, 10),
    max_scale_up_rate=st.floats(1.01, 1000),
    max_scale_down_rate=st.floats(1.01, 10),
    target_burst_capacity=st.sampled_from([-1.0, 0.0, 50.0, 211.0]),
    activation_scale=st.sampled_from([0, 2, 5]),
    scale_down_delay=st.sampled_from([0.0, 10.0, 60.0]),
    min_scale=st.integers(0, 5),
    max_scale=st.sampled_from([0, 5, 9]),
)
ticks = st.lists(
    st.tuples(averages, averages, st.integers(0, 300), st.booleans()), min_size=1, max_size=25
)


@given(configs, ticks)
def test_rules_that_always_hold(
    config: ScalingConfig, seen: list[tuple[float, float, int, bool]]
) -> None:
    """Growth and halving limits, panic never shrinks, bounds hold outside."""
    state, before = kpa.start(config, ready=0, now=0.0)
    for index, (stable, panic, ready, reachable) in enumerate(seen, 1):
        now = index * kpa.TICK
        observation = Observation(stable, panic, ready, reachable)
        state, decision = kpa.decide(state, observation, config, now=now)
        own = max(1, ready)
        assert decision.desired >= 0
        if reachable:
            assert decision.desired >= math.floor(own / config.max_scale_down_rate)
        if decision.panic and before.panic and not config.scale_down_delay:
            assert decision.desired >= before.desired
        if not decision.panic and not config.scale_down_delay:
            limit = math.ceil(config.max_scale_up_rate * own)
            assert decision.desired <= max(limit, config.activation_scale)
        least, most = bounds(config, reachable=reachable, initialized=True)
        written = applied(decision.desired, least, most)
        assert written >= least
        assert not most or written <= most
        before = decision


@given(st.lists(st.floats(0, 300), min_size=10, max_size=90), st.integers(0, 3), st.integers(3, 6))
def test_a_revision_stays_within_its_bounds(load: list[float], least: int, most: int) -> None:
    """Whatever comes: never above max, never below min, at most halved at once; zero is written
    only where min allows it and no request was seen for a window."""
    config = replace(CONFIG, min_scale=least, max_scale=most, stable_window=6.0, panic_window=1.0)
    active = Activity("Active", -1000.0, initialized=True)
    ready = max(1, least)
    scaler = RevisionScaler(config, ready=ready, now=0.0, activity=active)
    for second, value in enumerate(load):
        scaler.record(stat(value), second)
        if second % 2:
            continue
        scaler.tick(ready, second)
        result = scaler.apply(ready, second)
        assert scaler.apply(ready, second) == result or result.again is not None
        if result.replicas is None:
            continue
        assert least <= result.replicas <= most
        assert result.replicas >= ready // 2
        if result.replicas == 0:
            assert not any(load[max(0, second - 5) : second + 1])
        ready = result.replicas
