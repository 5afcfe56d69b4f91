"""Durations and distributions as they are written."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest

from kserve_local.errors import UsageError
from kserve_local.simulator.durations import distribution, seconds_of

MANY = 20_000


def drawn(text: str, count: int = MANY) -> list[float]:
    draw = distribution(text, "--service-time").draws(random.Random(1))
    return [draw() for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.05", 0.05), ("50ms", 0.05), ("3s", 3.0), ("1m30s", 90.0), ("0", 0.0), ("nan", None)],
)
def test_a_duration_is_a_number_of_seconds_or_has_a_unit(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


def test_a_constant_is_always_the_same() -> None:
    assert set(drawn("50ms", 10)) == {0.05}


def test_the_mean_of_an_exponential_is_its_argument() -> None:
    assert statistics.mean(drawn("exp(50ms)")) == pytest.approx(0.05, rel=0.05)


def test_a_uniform_one_stays_within_its_bounds() -> None:
    values = drawn("uniform(20ms, 80ms)")
    assert min(values) >= 0.02
    assert max(values) <= 0.08
    assert statistics.mean(values) == pytest.approx(0.05, rel=0.02)


def test_a_normal_one_is_never_below_zero() -> None:
    values = drawn("normal(10ms,20ms)")
    assert min(values) == 0.0
    assert statistics.median(values) == pytest.approx(0.01, rel=0.1)


def test_a_lognormal_one_has_the_median_and_the_95th_percentile_that_it_says() -> None:
    values = sorted(drawn("lognormal(3s,8s)"))
    assert values[MANY // 2] == pytest.approx(3.0, rel=0.05)
    assert values[MANY * 95 // 100] == pytest.approx(8.0, rel=0.05)


def test_an_empirical_one_draws_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "times").write_text("# seconds\n0.1\n\n200ms\n")
    assert set(drawn(f"empirical({tmp_path}/times)")) == {0.1, 0.2}


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "-1", "exp()", "exp(-1)", "exp(1,2)", "exp(exp(1))", "uniform(2,1)",
        "lognormal(0,1)", "lognormal(8s,3s)", "gamma(1)", "50 ms 3", "empirical(/does/not/exist)",
    ],
)  # fmt: skip
def test_what_is_no_distribution_is_refused_by_the_option_s_name(text: str) -> None:
    with pytest.raises(UsageError, match="--cold-start"):
        distribution(text, "--cold-start")


def test_a_line_that_is_no_duration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "times"
    path.write_text("0.1\nsoon\n")
    with pytest.raises(UsageError, match=r'times:2: "soon" is no duration'):
        distribution(f"empirical({path})", "--service-time")
