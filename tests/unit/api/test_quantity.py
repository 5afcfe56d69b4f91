"""Kubernetes quantities as numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.api import quantity
from kserve_local.errors import Invalid


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", "1"),
        (2, "2"),
        (0.5, "0.5"),
        ("500m", "0.5"),
        ("1k", "1000"),
        ("1Ki", "1024"),
        ("2Gi", str(2 * 2**30)),
        ("1.5Gi", str(3 * 2**29)),
        (".5", "0.5"),
        ("5.", "5"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("1E", "1e18"),
        ("-1", "-1"),
        ("+1", "1"),
        ("10n", "1e-8"),
        ("3u", "3e-6"),
        (" 1Mi ", str(2**20)),
    ],
)
def test_suffixes_mean_what_kubernetes_says(text: str | int | float, value: str) -> None:
    assert quantity.parse(text) == Decimal(value)
    assert quantity.is_quantity(text)


@pytest.mark.parametrize(
    "text", ["", "1 Gi", "1GB", "Gi", "1gi", "0x10", "1_000", "one", "1K", "--1"]
)
def test_what_is_no_quantity_is_refused_in_kubernetes_words(text: str) -> None:
    assert not quantity.is_quantity(text)
    with pytest.raises(Invalid, match="quantities must match the regular expression"):
        quantity.parse(text)


def test_memory_is_rounded_up_to_whole_bytes() -> None:
    assert quantity.to_bytes("1500m") == 2
    assert quantity.to_bytes("128Mi") == 128 * 2**20
    assert quantity.to_cores("250m") == 0.25


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.5, "500m"), (2.0, "2"), (0.1, "100m"), (1.25, "1250m"), (0.0005, "500u"), (1e-12, "1n")],
)
def test_plain_numbers_are_written_as_kubernetes_writes_them(number: float, text: str) -> None:
    assert quantity.canonical(number) == text


@given(st.integers(min_value=0, max_value=10**9))
def test_a_written_quantity_reads_back(millis: int) -> None:
    number = Decimal(millis) / 1000
    assert quantity.parse(quantity.canonical(number)) == number


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2GB", ("2G", "2Gi")),
        ("512 mb", ("512M", "512Mi")),
        ("2GiB", ("2Gi",)),
        ("1.5kb", ("1.5k", "1.5Ki")),
        ("1 core", ("1",)),
        ("100 mcpu", ("100m",)),
        ("64 bytes", ("64",)),
        ("lots", ()),
        ("2 XB", ()),
    ],
)
def test_what_was_meant(written: str, meant: tuple[str, ...]) -> None:
    """Each suggestion is one that Kubernetes takes."""
    assert quantity.meant(written) == meant
    assert all(map(quantity.is_quantity, meant))
