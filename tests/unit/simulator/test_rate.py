"""Rates as expressions: what can be said, and that nothing else can."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.errors import UsageError
from kserve_local.simulator.rate import rate


@pytest.mark.parametrize(
    ("text", "at", "value"),
    [
        ("100", 7, 100),
        ("2 + 3 * 4", 0, 14),
        ("(2 + 3) * 4", 0, 20),
        ("2 ** 3 ** 2", 0, 512),
        ("-2 ** 2 + 10", 0, 6),
        ("10 - 4 - 3", 0, 3),
        ("60 / 4 / 3", 0, 5),
        ("t % 60", 130, 10),
        ("1.5e2", 0, 150),
        ("t / 1h * 100", 1800, 50),
        ("50 + 40 * sin(2*pi*t/3600)", 900, 90),
        ("max(t, 5, 20)", 7, 20),
        ("min(t, 5)", 7, 5),
        ("sqrt(abs(0 - 16)) + floor(1.9)", 0, 5),
        ("5 - t", 9, 0),
        ("step(0:10, 10m:200)", 599.9, 10),
        ("step(0:10, 10m:200)", 600, 200),
        ("step(10:7)", 9, 0),
        ("ramp(0:0, 100:50)", 50, 25),
        ("ramp(0:0, 100:50)", 500, 50),
        ("ramp(10:3, 20:9)", 0, 3),
        ("step(0:1, 1m:2) * ramp(0:1, 2m:3)", 60, 4),
    ],
)
def test_an_expression_has_its_value(text: str, at: float, value: float) -> None:
    assert rate(text, "--rate")(at) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "1 +", "1 2", "(1", "1)", "sin", "sin()", "sin(1, 2)", "step()", "step(1)",
        "step(5:1, 5:2)", "step(1/0:1)", "1/0", "t/0", "__import__('os')", "t.real", "0x10", "1;2",
        "lambda: 1", "10x", "(0-1) ** 0.5", "9 ** 9 ** 9 ** 9", "(" * 500 + "1" + ")" * 500,
        "2 **" * 500 + "2", "step(0:1,", "[1]", '"a"', "min(1)",
    ],
)  # fmt: skip
def test_what_is_no_rate_is_refused_by_the_option_s_name(text: str) -> None:
    with pytest.raises(UsageError, match="--rate"):
        rate(text, "--rate")


def test_an_unknown_name_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match='"tan" is unknown; there are t, pi'):
        rate("tan(t)", "--rate")


def test_a_rate_without_a_value_later_says_when() -> None:
    function = rate("1 / (t - 5)", "--rate")
    with pytest.raises(UsageError, match="at t=5 it has no value"):
        function(5)


@given(st.text(alphabet="t0123456789.+-*/%(),: sinmaxstepramphd", max_size=40))
def test_any_text_is_a_rate_or_a_usage_error(text: str) -> None:
    """No other error, and no value that is not a number of requests."""
    try:
        value = rate(text, "--rate")(3.0)
    except UsageError:
        return
    assert math.isfinite(value)
    assert value >= 0
