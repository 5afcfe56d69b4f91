"""What holds for every load and every setting."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.simulator.durations import distribution
from kserve_local.simulator.load import Load
from kserve_local.simulator.rate import rate
from kserve_local.simulator.result import Result, summary
from kserve_local.simulator.simulation import simulate
from tests.unit.simulator.world import run, terms

calls = st.lists(
    st.tuples(st.floats(0, 200), st.one_of(st.floats(0, 2), st.floats(0, 100))), max_size=60
).map(sorted)
services: Any = st.fixed_dictionaries(
    {"minReplicas": st.integers(0, 3), "timeout": st.sampled_from([1, 5, 60, 300])},
    optional={
        "maxReplicas": st.integers(3, 6),
        "scaleTarget": st.integers(1, 20),
        "containerConcurrency": st.integers(0, 5),
        "scaleMetric": st.sampled_from(["concurrency", "rps"]),
    },
)
annotations = st.fixed_dictionaries(
    {},
    optional={
        "target-burst-capacity": st.sampled_from(["-1", "0", "1", "5"]),
        "window": st.sampled_from(["6s", "20s"]),
        "scale-down-delay": st.sampled_from(["0s", "10s"]),
        "initial-scale": st.sampled_from(["1", "2"]),
        "metric-aggregation-algorithm": st.sampled_from(["linear", "weighted-exponential"]),
    },
)
starts = st.sampled_from(["0s", "1s", "exp(5s)", "uniform(0s,40s)"])


@settings(max_examples=60, deadline=None)
@given(calls, services, annotations, starts, st.integers(1, 20), st.integers(0, 3), st.booleans())
def test_every_request_has_one_answer_and_bounds_hold(
    load: list[tuple[float, float]],
    fields: dict[str, Any],
    given_annotations: dict[str, str],
    cold: str,
    held: int,
    seed: int,
    from_zero: bool,
) -> None:
    if from_zero:
        fields = {**fields, "minReplicas": 0}
    wanted = terms(given_annotations, **fields)
    found = run(wanted, load, 200, cold=cold, held=held, seed=seed, from_zero=from_zero)
    assert found.requests == len(load)
    assert sum(found.codes.values()) == len(load)
    assert set(found.codes) <= {200, 503, 504}
    assert found.most_held <= held
    assert found.latency["max"] <= wanted.timeout + 1e-6
    most = wanted.scaling.max_scale
    for change in found.changes:
        assert change.ready >= 0
        assert change.replicas >= (0 if from_zero else wanted.scaling.min_scale)
        assert not most or max(change.replicas, change.ready) <= most
        if change.is_step:
            assert change.reason
            assert change.message
    assert all(a.time <= b.time for a, b in pairwise(found.changes))
    assert found.replica_seconds >= found.mean_ready * found.duration - 1e-6
    assert found.starts >= found.wakes
    if load and all(at < 199 for at, _ in load):
        assert sum(found.bins.requests) == pytest.approx(len(load))


def poisson(seed: int, **fields: Any) -> Result:
    load = Load(120, rate("20+15*sin(t/10)", "--rate"), service=distribution("exp(300ms)", ""))
    cold = distribution("lognormal(2s,6s)", "")
    return simulate(terms(**fields), load, cold, held=100, seed=seed)


@settings(max_examples=10, deadline=None)
@given(st.integers())
def test_equal_seeds_give_equal_runs(seed: int) -> None:
    one, other = poisson(seed, scaleTarget=2), poisson(seed, scaleTarget=2)
    assert summary(one) == summary(other)


def test_other_seeds_give_other_runs() -> None:
    assert summary(poisson(1, scaleTarget=2)) != summary(poisson(2, scaleTarget=2))


def test_other_settings_meet_the_same_requests() -> None:
    """What a sweep compares differs in nothing else."""
    one, other = poisson(1, scaleTarget=1), poisson(1, scaleTarget=50)
    assert one.bins.requests == other.bins.requests
    assert one.replica_seconds > other.replica_seconds


def test_a_thousand_replicas_are_possible() -> None:
    load = Load(60, rate("400", ""), service=distribution("2s", ""), spacing="even")
    wanted = terms(containerConcurrency=1, minReplicas=1)
    found = simulate(wanted, load, distribution("1s", ""), held=100)
    assert found.most_ready > 1000
    assert found.codes == {200: 24_000}
