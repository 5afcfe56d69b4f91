"""Latencies in buckets: quantiles within half a percent."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.simulator.latency import Latencies


def test_equal_latencies_come_back_exactly() -> None:
    found = Latencies()
    found.add([0.25] * 1000)
    assert [found.quantile(q) for q in (0.5, 0.99)] == [0.25, 0.25]
    assert found.mean == found.largest == 0.25


def test_nothing_is_zero() -> None:
    found = Latencies()
    found.add([])
    assert found.quantile(0.5) == found.mean == found.largest == 0.0


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_within_half_a_percent(values: list[float], share: float) -> None:
    found = Latencies()
    for value in values:
        found.add([value])
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    assert found.quantile(share) == pytest.approx(exact, rel=0.006, abs=2e-6)
    assert found.largest == max(values)
    assert found.count == len(values)
