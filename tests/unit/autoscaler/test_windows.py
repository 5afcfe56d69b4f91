"""traffic.md 1.2: averages over seconds, and what silence and youth do to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.autoscaler.config import panic_window
from kserve_local.autoscaler.windows import WeightedWindow, Window, window


def filled(ring: Window, values: list[float], start: int = 0) -> Window:
    for second, value in enumerate(values, start):
        ring.record(second, value)
    return ring


@pytest.mark.parametrize(
    ("length", "seconds"),
    [(60, 6), (6, 1), (10, 1), (14, 1), (15, 2), (20, 2), (25, 3), (30, 3), (120, 12)],
)
def test_panic_window_is_a_tenth_in_whole_seconds(length: float, seconds: float) -> None:
    assert panic_window(length, 10) == seconds


def test_values_of_one_second_add_up() -> None:
    ring = Window(60)
    ring.record(5.1, 1)
    ring.record(5.9, 2)
    assert ring.average(5.95) == 3


def test_a_young_window_divides_by_its_age() -> None:
    ring = filled(Window(60), [10, 20])
    assert ring.average(1) == 15


def test_seconds_without_a_value_count_as_zero() -> None:
    ring = Window(60)
    ring.record(0, 10)
    ring.record(4, 10)
    assert ring.average(4) == 4


def test_a_full_window_forgets_its_oldest_second() -> None:
    ring = filled(Window(3), [9, 1, 2, 3])
    assert ring.average(3) == 2


def test_a_silence_as_long_as_the_window_makes_it_young_again() -> None:
    ring = filled(Window(5), [9] * 5)
    ring.record(9, 4)
    assert ring.average(9) == 4


def test_read_late_it_leaves_out_the_oldest() -> None:
    """d seconds late: the d oldest go, and so do their places."""
    ring = filled(Window(4), [8, 4, 2, 1])
    assert [ring.average(t) for t in (3, 4, 5, 6, 7)] == [3.75, 2.333333, 1.5, 1, 0]


def test_a_late_value_goes_where_it_belongs() -> None:
    ring = filled(Window(4), [1, 1, 1, 1], start=10)
    ring.record(11, 3)
    ring.record(9, 100)
    assert ring.average(13) == 1.75


def test_a_value_before_the_first_makes_the_window_older() -> None:
    ring = Window(60)
    ring.record(10, 6)
    ring.record(8, 0)
    assert ring.average(10) == 2


def test_empty_only_after_more_than_the_window() -> None:
    ring = Window(60)
    assert ring.is_empty(0)
    ring.record(0, 1)
    assert not ring.is_empty(60)
    assert ring.average(60) == 0
    assert ring.is_empty(61)


def test_sums_that_should_be_zero_are() -> None:
    """What is left of 0.1 + 0.2 - 0.3 would ask for a replica."""
    ring = filled(Window(3), [0.1, 0.2, 0.3, 0, 0, 0])
    assert ring.average(5) == 0


@pytest.mark.parametrize(
    ("length", "coefficient"), [(6, 0.78456), (30, 0.26436), (41, 0.20120), (42, 0.2), (60, 0.2)]
)
def test_weight_of_the_newest_second(length: int, coefficient: float) -> None:
    assert WeightedWindow(length).coefficient == pytest.approx(coefficient, abs=5e-6)


def test_weighted_sum() -> None:
    ring = WeightedWindow(4)
    filled(ring, [10, 10, 5, 5])
    c = ring.coefficient
    expected = 5 * c + 5 * c * (1 - c) + 10 * c * (1 - c) ** 2 + 10 * c * (1 - c) ** 3
    assert ring.average(3) == pytest.approx(expected)
    late = 5 * c * (1 - c) + 5 * c * (1 - c) ** 2 + 10 * c * (1 - c) ** 3
    assert ring.average(4) == pytest.approx(late)
    assert ring.average(8) == 0


def test_weighted_step() -> None:
    """0 to 10 at c = 0.2."""
    ring = filled(window("weighted-exponential", 60), [0] * 60)
    found = {}
    for sample in range(1, 31):
        ring.record(59 + sample, 10)
        found[sample] = round(ring.average(59 + sample), 4)
    assert {n: found[n] for n in (1, 2, 3, 5, 10, 20, 30)} == {
        1: 2.0, 2: 3.6, 3: 4.88, 5: 6.7232, 10: 8.9263, 20: 9.8847, 30: 9.9876,
    }  # fmt: skip


def test_resizing_keeps_the_newest() -> None:
    ring = filled(Window(4), [1, 2, 3, 4])
    ring.resize(2)
    assert ring.average(3) == 3.5
    ring.resize(4)
    ring.record(4, 6)
    assert ring.average(4) == pytest.approx(13 / 3, abs=1e-6)


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 12), st.floats(0, 100)), max_size=30),
    st.integers(0, 12),
)
def test_average_is_that_of_the_seconds_kept(
    length: int, steps: list[tuple[int, float]], late: int
) -> None:
    """Against a dictionary: whatever the gaps, the incremental sum never drifts."""
    ring, now, first, last = Window(length), 100, None, None
    kept: dict[int, float] = {}
    for gap, value in steps:
        now += gap
        if last is None or now - last >= length:
            kept, first = {}, now
        kept[now] = kept.get(now, 0) + value
        last = now
        ring.record(now, value)
    if first is None or last is None or late >= length:
        assert ring.average(now + late) == 0
        return
    age = min(last - first + 1, length - late)
    total = sum(v for t, v in kept.items() if t > now + late - length)
    assert ring.average(now + late) == pytest.approx(total / age, abs=2e-6)
