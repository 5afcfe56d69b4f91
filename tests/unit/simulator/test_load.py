"""Arrivals of a rate: how many, how far apart, and that they are in order."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.errors import UsageError
from kserve_local.simulator.durations import distribution
from kserve_local.simulator.load import Load, load_of
from kserve_local.simulator.rate import rate
from kserve_local.simulator.trace import read


def arrivals(text: str, duration: float, spacing: str = "even", seed: int = 0) -> list[float]:
    load = Load(duration, rate(text, "--rate"), spacing=spacing)  # type: ignore[arg-type]  # both
    return list(load.arrivals(random.Random(seed)))


def test_even_arrivals_are_exact() -> None:
    assert arrivals("4", 1.5) == [0, 0.25, 0.5, 0.75, 1.0, 1.25]


def test_a_gap_may_be_longer_than_the_seconds_in_which_a_rate_is_constant() -> None:
    assert arrivals("0.25", 10) == pytest.approx([0, 4, 8])


def test_nothing_arrives_while_the_rate_is_zero() -> None:
    found = arrivals("step(0:10, 5:0, 8:10)", 10)
    assert not [t for t in found if 5 <= t < 8]
    assert len(found) == 70


def test_poisson_arrivals_are_as_many_as_the_rate_says_and_bunched() -> None:
    found = arrivals("50 + 40*sin(2*pi*t/100)", 1000, "poisson", seed=3)
    assert len(found) == pytest.approx(50_000, rel=0.02)
    counts = [0] * 1000
    for t in found:
        counts[int(t)] += 1
    flat = counts[::100]
    assert max(counts) > 90 > min(counts)
    assert len(set(flat)) > 1


@given(
    st.floats(0, 300), st.floats(0.1, 20), st.sampled_from(["even", "poisson"]), st.integers(0, 9)
)
def test_arrivals_rise_and_end_with_the_duration(
    pace: float, duration: float, spacing: str, seed: int
) -> None:
    found = arrivals(f"{pace:.6f}", duration, spacing, seed)
    assert all(a <= b for a, b in pairwise(found))
    assert not found or (found[0] >= 0 and found[-1] < duration + 1e-9)


def test_a_trace_is_cut_at_the_duration_and_keeps_its_own_times(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("0,0.1\n1,0.2\n2,0.3\n")
    trace = read(path, "--trace")
    load = load_of(rate=None, trace=trace, duration=1.5, service=None, spacing="even")
    draw = load.services(random.Random(0))
    assert [(t, draw()) for t in load.arrivals(random.Random(0))] == [(0, 0.1), (1, 0.2)]


def test_a_distribution_wins_over_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("0,0.1\n1,0.2\n")
    load = load_of(
        rate=None, trace=read(path, "--trace"), duration=None,
        service=distribution("3s", "--service-time"), spacing="even",
    )  # fmt: skip
    assert load.services(random.Random(0))() == 3.0
    assert load.duration == 1


def test_how_long_a_request_takes_must_be_said() -> None:
    with pytest.raises(UsageError, match="how long a request takes") as caught:
        load_of(rate=rate("1", ""), trace=None, duration=None, service=None, spacing="even")
    assert "--service-time" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "duration"), [("1e9", 300.0), ("step(0:1,1h:1e12)", 7200.0), ("0", 1e9)]
)
def test_a_load_that_would_not_end_is_refused(text: str, duration: float) -> None:
    """The first second of it alone would take an hour, without a word on the way."""
    with pytest.raises(UsageError, match="the load is too large"):
        load_of(
            rate=rate(text, "--rate"),
            trace=None,
            duration=duration,
            service=distribution("50ms", "--service-time"),
            spacing="even",
        )
