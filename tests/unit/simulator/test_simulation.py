"""Whole runs against traffic.md: the worked examples with real requests instead of samples, the way
to zero and back, limits, queues and timeouts. Times are exact: the clock is virtual.
"""

from __future__ import annotations

import pytest

from kserve_local.simulator.durations import distribution
from kserve_local.simulator.load import Load
from kserve_local.simulator.rate import rate
from kserve_local.simulator.simulation import simulate
from tests.unit.simulator.world import constant, run, steps, terms

QUIET = 70.0
"""Seconds of silence before a load: windows are full of zeros."""


def test_example_a_panics_up_to_eight_replicas() -> None:
    """Five in flight at a target of 1 need ceil(5 / 0.7).

    Its decider stood at 0, so the first report is looked at at once (1.4): one step more than in
    the example, at 1 s.
    """
    found = run(terms(scaleTarget=1), constant(5, 0, 100), 100, idle_before=QUIET)
    assert steps(found) == [(1, 2), (2, 3), (4, 5), (6, 8)]
    assert {s.reason for s in found.steps} == {"Panic"}
    assert [(c.time, c.ready) for c in found.changes if not c.is_step][1:] == [
        (5, 2), (6, 3), (8, 4), (8, 5), (10, 6), (10, 7), (10, 8),
    ]  # fmt: skip


def test_example_b_holds_while_in_panic_then_halves() -> None:
    found = run(terms(scaleTarget=1), constant(5, 0, 30), 120, idle_before=QUIET)
    assert steps(found)[3:] == [(6, 8), (68, 4), (70, 3), (74, 2), (82, 1)]
    assert found.steps[4].reason == "ScaleDownRate"
    assert found.codes == {200: 150}


def test_example_c_keeps_the_bounds() -> None:
    found = run(terms(maxReplicas=2), constant(200, 0, 40), 110, cold="6s", idle_before=QUIET)
    assert steps(found) == [(4, 2), (80, 1)]
    assert found.most_ready == 2


def test_example_e_counts_requests_instead_of_concurrency() -> None:
    load = Load(60, rate("20", "--rate"), service=distribution("1ms", ""), spacing="even")
    wanted = terms(scaleTarget=5, scaleMetric="rps")
    found = simulate(wanted, load, distribution("4s", ""), held=100, idle_before=QUIET)
    assert steps(found) == [(2, 2), (4, 4), (6, 6)]


def test_example_g_grows_as_fast_as_the_cluster_lets_it() -> None:
    wanted = terms(cluster={"max-scale-up-rate": "2"}, containerConcurrency=1)
    found = run(wanted, [(0, 60)] * 20, 60, cold="2s", idle_before=QUIET)
    assert steps(found) == [(1, 2), (4, 4), (6, 8), (8, 16), (10, 29)]
    assert found.steps[0].reason == "ScaleUpRate"


def test_example_l_one_slow_request_wakes_two_replicas() -> None:
    """At a target of 1 the first request counts 1 / 0.7; held for 6 s, it ends at 26 s."""
    wanted = terms(scaleTarget=1, minReplicas=0)
    found = run(wanted, [(0, 20)], 100, cold="6s", from_zero=True)
    assert steps(found) == [(0, 2), (66, 1), (89, 0)]
    assert found.latency["max"] == 26
    assert (found.wakes, found.starts, found.waited) == (1, 2, 1)


def test_a_first_request_at_zero_is_held_as_long_as_the_start_takes() -> None:
    found = run(terms(minReplicas=0), [(10.5, 0.1)], 20, cold="3s", from_zero=True)
    assert steps(found) == [(10.5, 1)]
    assert found.latency["max"] == pytest.approx(3.1)
    assert found.codes == {200: 1}


def test_fifty_requests_at_zero_are_one_start_and_fifty_answers() -> None:
    calls = [(10 + i / 100, 0.1) for i in range(50)]
    found = run(terms(minReplicas=0), calls, 20, cold="3s", from_zero=True)
    assert steps(found) == [(10, 1)]
    assert found.codes == {200: 50}
    assert (found.waited, found.most_held) == (50, 50)


@pytest.mark.parametrize(
    ("annotations", "zero"),
    [
        ({}, 63),
        ({"target-burst-capacity": "0"}, 90),
        ({"target-burst-capacity": "-1"}, 63),
        ({"scale-to-zero-pod-retention-period": "2m"}, 180),
        ({"window": "6s"}, 9),
    ],
)
def test_the_way_to_zero_takes_what_the_settings_say(
    annotations: dict[str, str], zero: float
) -> None:
    """traffic.md 1.6, one replica, long active, the last figures at 0."""
    wanted = terms(annotations, minReplicas=0)
    found = run(wanted, constant(1, 0, 200), 600)
    assert [n for _, n in steps(found)] == [0]
    assert steps(found)[0][0] - 200 == pytest.approx(zero, abs=2)


def test_a_service_with_a_minimum_never_goes_to_zero() -> None:
    found = run(terms(minReplicas=2), [], 500)
    assert steps(found) == []
    assert found.replica_seconds == 1000
    assert (found.mean_ready, found.least_ready) == (2, 2)


def test_a_service_that_starts_with_more_replicas_goes_down_to_what_it_needs() -> None:
    found = run(terms({"initial-scale": "4"}, minReplicas=1), [], 200)
    assert [n for _, n in steps(found)] == [2, 1]
    assert found.least_ready == 1


# Limits, queues, time


def test_a_start_counts_against_the_timeout() -> None:
    """504 at 2 s; the replica comes up all the same, and the next request is answered."""
    found = run(
        terms(minReplicas=0, timeout=2), [(0, 0.1), (10, 0.1)], 20, cold="5s", from_zero=True
    )
    assert found.codes == {200: 1, 504: 1}
    assert found.latency["max"] == pytest.approx(0.1)
    assert found.wakes == 1


def test_work_that_takes_too_long_is_given_up_and_frees_its_place() -> None:
    wanted = terms(containerConcurrency=1, maxReplicas=1, timeout=2)
    found = run(wanted, [(0, 10), (1, 0.5)], 10)
    assert found.codes == {200: 1, 504: 1}
    assert found.latency["max"] == pytest.approx(1.5)


def test_one_that_waited_its_time_out_for_a_place_is_not_begun() -> None:
    wanted = terms(containerConcurrency=1, maxReplicas=1, timeout=2)
    found = run(wanted, [(0, 1.9), (0, 1.9), (0, 1.9)], 10)
    assert found.codes == {200: 1, 504: 2}
    assert found.most_queued == 2


def test_the_queue_of_a_replica_is_ten_times_its_limit_on_the_direct_path() -> None:
    """Twelve at once with a limit of one: one runs, ten wait, the last is refused."""
    wanted = terms({"target-burst-capacity": "0"}, containerConcurrency=1, maxReplicas=1)
    found = run(wanted, [(5, 1.0)] * 12, 30)
    assert found.codes == {200: 11, 503: 1}
    assert found.most_queued == 10
    assert found.latency["max"] == pytest.approx(11)


def test_behind_the_activator_none_is_refused() -> None:
    found = run(terms(containerConcurrency=1, maxReplicas=1), [(5, 1.0)] * 12, 30)
    assert found.codes == {200: 12}
    assert found.latency["max"] == pytest.approx(12)


def test_requests_beyond_what_the_gateway_holds_are_refused() -> None:
    found = run(terms(minReplicas=0), [(0, 1.0)] * 12, 30, held=5, from_zero=True)
    assert found.codes == {200: 5, 503: 7}
    assert found.most_held == 5


def test_without_a_limit_the_first_replica_takes_all_that_waited() -> None:
    """A later one only gets later requests (traffic.md 2.2)."""
    calls = [(0.0, 30.0)] * 20
    found = run(
        terms(scaleTarget=1, minReplicas=0), calls, 40, cold="uniform(1s,20s)", from_zero=True
    )
    first = min(c.time for c in found.changes if c.ready)
    assert found.latency["max"] == pytest.approx(first + 30)
    assert found.latency["p50"] == pytest.approx(first + 30)


def test_with_a_limit_replicas_share_what_waited() -> None:
    found = run(
        terms(containerConcurrency=1, minReplicas=0, maxReplicas=2),
        [(0.0, 5.0)] * 4,
        30,
        cold="3s",
        from_zero=True,
    )
    assert found.codes == {200: 4}
    assert found.latency["max"] == pytest.approx(3 + 2 * 5)


def test_a_replica_that_goes_answers_what_it_has() -> None:
    """Its seconds count until then."""
    wanted = terms({"window": "6s"}, scaleTarget=1, minReplicas=1)
    calls = [*constant(4, 0, 20), (19.5, 60.0), (19.5, 60.0)]
    found = run(wanted, calls, 100, cold="1s")
    assert found.codes == {200: len(calls)}
    last = found.steps[-1]
    assert last.replicas == 1
    assert found.replica_seconds > found.mean_ready * 100 + 1


def test_a_replica_that_is_not_needed_any_more_is_stopped_while_it_starts() -> None:
    wanted = terms({"window": "6s"}, scaleTarget=1)
    found = run(wanted, constant(5, 0, 10), 100, cold="200s")
    assert found.most_ready == 1
    assert found.steps[-1].replicas == 1
    assert found.codes == {200: 50}


# What comes out


def test_utilisation_is_the_share_of_what_replicas_could_carry() -> None:
    found = run(terms(scaleTarget=10), constant(5, 0, 100), 100)
    assert found.utilisation == pytest.approx(0.5)
    assert found.mean_ready == 1


def test_a_silent_month_costs_no_time_and_ends_where_it_should() -> None:
    found = run(terms(minReplicas=0), [(0, 1.0), (2_500_000.5, 1.0)], 2_600_000)
    assert [n for _, n in steps(found)] == [0, 1, 0]
    assert steps(found)[1][0] == 2_500_000.5
    assert found.wakes == 1
    assert found.replica_seconds < 200


def test_bins_add_up_to_the_requests() -> None:
    found = run(terms(), constant(3, 0, 1500), 1500)
    assert sum(found.bins.requests) * found.bins.width == pytest.approx(found.requests)
    assert found.most_requests == 3
    assert set(found.bins.in_flight) == {3.0}


def test_the_load_is_followed_to_its_last_answer() -> None:
    found = run(terms(timeout=300), [(9.5, 120.0)], 10)
    assert found.codes == {200: 1}
    assert found.replica_seconds == 10


def test_progress_is_told_on_the_way() -> None:
    told: list[float] = []
    run(terms(), constant(1, 0, 600), 600, progress=told.append)
    assert told == pytest.approx([i / 10 for i in range(1, 11)])
