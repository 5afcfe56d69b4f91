"""traffic.md 1.1: what reports and silence become in the windows."""

from __future__ import annotations

import pytest

from kserve_local.autoscaler.config import scaling_config
from kserve_local.autoscaler.revision_scaler import RevisionScaler
from kserve_local.autoscaler.sampling import Sampler
from kserve_local.interfaces.scaling import ScalingConfig
from tests.unit.autoscaler.replay import stat

RPS = ScalingConfig(metric="rps")
ALWAYS = ScalingConfig(target_burst_capacity=-1)


def stable(sampler: Sampler, now: float) -> float:
    found = sampler.averages(now)
    assert found is not None
    return found[0]


def test_the_first_request_counts_at_once_and_only_once() -> None:
    sampler = Sampler(ScalingConfig())
    assert sampler.arrived(0.2)
    assert stable(sampler, 0.2) == 1
    assert not sampler.arrived(0.3)
    sampler.record(stat(1.8, 3), 1.0)
    assert stable(sampler, 1.0) == 0.9  # (1 + 0.8) / 2
    sampler.record(stat(2.0, 0), 2.0)
    assert stable(sampler, 2.0) == pytest.approx(3.8 / 3, abs=1e-6)


def test_what_is_taken_off_never_goes_below_zero() -> None:
    sampler = Sampler(ScalingConfig())
    sampler.arrived(0.9)
    assert not sampler.record(stat(0.1, 1), 1.0)
    assert stable(sampler, 1.0) == 0.5


def test_requests_a_second_take_it_off_too() -> None:
    sampler = Sampler(RPS)
    sampler.arrived(0.2)
    sampler.record(stat(0.5, 5), 1.0)
    assert stable(sampler, 1.0) == 2.5  # 1 at once, 4 more


def test_after_a_silent_report_the_next_request_counts_at_once_again() -> None:
    sampler = Sampler(ScalingConfig())
    sampler.arrived(0.0)
    sampler.record(stat(1.0, 1), 1.0)
    assert not sampler.arrived(1.5)
    sampler.record(stat(0.0), 2.0)
    assert sampler.arrived(2.5)


def test_no_replica_and_no_report_is_no_figure() -> None:
    sampler = Sampler(ScalingConfig())
    sampler.scrape(0, 5.0)
    assert sampler.averages(5.0) is None
    sampler.record(stat(1.0), 5.0)
    assert sampler.averages(65.0) == (0, 0)
    assert sampler.averages(66.0) is None


def test_idle_replicas_say_zero_each_second() -> None:
    sampler = Sampler(ScalingConfig())
    sampler.scrape(1, 0.0)
    sampler.record(stat(7.0), 1.0)
    sampler.scrape(1, 2.0)
    sampler.scrape(1, 7.0)
    assert stable(sampler, 7.0) == 1


def test_the_second_under_way_is_not_silent_yet() -> None:
    """A tick may come before the report of its second: a 0 would halve a short panic window."""
    sampler = Sampler(scaling_config({"autoscaling.knative.dev/window": "20s"}))
    for second in range(10):
        sampler.record(stat(6.0), second + 0.9)
        sampler.scrape(1, second + 1.1)
    assert sampler.averages(10.1) == (6, 6)


def test_seconds_without_replicas_are_not_made_up_for() -> None:
    sampler = Sampler(ScalingConfig())
    sampler.record(stat(8.0), 0.0)
    sampler.scrape(0, 2.0)
    sampler.scrape(1, 70.0)
    assert sampler.averages(70.0) is None
    sampler.record(stat(4.0), 71.0)
    sampler.scrape(1, 72.0)
    assert stable(sampler, 72.0) == 2


def test_always_behind_the_activator_silence_is_zero() -> None:
    sampler = Sampler(ALWAYS)
    sampler.scrape(1, 5.0)
    assert sampler.averages(5.0) == (0, 0)


def test_a_late_report_stands_for_the_seconds_it_covers() -> None:
    """Three seconds of a busy machine weigh three times."""
    late, prompt = Sampler(ScalingConfig()), Sampler(ScalingConfig())
    for sampler in (late, prompt):
        sampler.record(stat(2.0, 4), 10.0)
    late.record(stat(6.0, 30, period=3.0), 13.0)
    for second in (11, 12, 13):
        prompt.record(stat(6.0, 10), float(second))
    assert late.averages(14.0) == prompt.averages(14.0)


def test_two_reports_in_one_second_are_two_seconds() -> None:
    sampler = Sampler(ScalingConfig())
    for now in (10.01, 10.99, 12.01):
        sampler.record(stat(3.0), now)
    assert sampler.averages(12.5) == (3, 3)


def test_a_second_that_no_report_came_in_belongs_to_the_next_one() -> None:
    """Timers are not exact: reports at 10.98 and 12.01 leave no hole at 11."""
    sampler = Sampler(scaling_config({"autoscaling.knative.dev/window": "20s"}))
    for now in (9.99, 10.98, 12.01, 12.99, 14.0):
        sampler.record(stat(6.0), now)
        assert sampler.averages(now) == (6, 6)


def test_a_silent_second_stays_silent() -> None:
    sampler = Sampler(ScalingConfig())
    sampler.record(stat(4.0), 10.0)
    sampler.record(stat(0.0), 11.0)
    sampler.arrived(12.5)
    sampler.record(stat(1.5), 13.0)
    # 4, 0, 1 at once, and what the report adds to it.
    assert stable(sampler, 13.0) == pytest.approx(5.5 / 4)


def test_traffic_at_zero_asks_for_a_tick_at_once() -> None:
    """Not before the first decision, and not above zero."""
    scaler = RevisionScaler(scaling_config({}), ready=1, now=0.0)
    assert not scaler.record(stat(1.0), 0.0)
    for second in range(0, 64, 2):
        scaler.tick(1, second)
    assert scaler.decision.desired == 0
    assert not scaler.record(stat(0.0), 64.0)
    assert scaler.record(stat(0.5), 65.0)
    assert scaler.tick(1, 65.0).desired == 1
    assert not scaler.record(stat(0.5), 66.0)


def test_without_figures_the_decision_stays() -> None:
    scaler = RevisionScaler(scaling_config({}), ready=0, now=0.0)
    first = scaler.decision
    assert scaler.tick(0, 2.0) is first
    assert first.desired == -1
    assert scaler.apply(0, 2.0).replicas is None


def test_new_settings_keep_what_was_seen() -> None:
    scaler = RevisionScaler(scaling_config({}), ready=1, now=0.0)
    for second in range(30):
        scaler.record(stat(10.0), second)
    scaler.reconfigure(scaling_config({"autoscaling.knative.dev/window": "20s"}))
    seen = scaler.tick(1, 30.0).seen
    assert seen is not None
    assert seen.stable == 10
    scaler.reconfigure(scaling_config({"autoscaling.knative.dev/metric": "rps"}))
    assert scaler.tick(1, 32.0).seen is not None
