"""A selector is read in one pass, however many blanks it has."""

from __future__ import annotations

import pytest

from kserve_local.api import scheme
from kserve_local.apiserver import selectors
from kserve_local.errors import BadRequest

BLANKS = " " * 200_000  # quadratic reading would take many minutes


@pytest.mark.parametrize("text", [f"{BLANKS}===", f"a{BLANKS}b", f"!{BLANKS}!", f"a in{BLANKS}("])
def test_a_label_selector_of_blanks(text: str) -> None:
    with pytest.raises(BadRequest):
        selectors.label_selector(text)


def test_a_field_selector_of_blanks() -> None:
    with pytest.raises(BadRequest):
        selectors.field_selector(scheme.POD, f"metadata.name{BLANKS}x")
    matches = selectors.field_selector(scheme.POD, f" metadata.name ={BLANKS}x{BLANKS}")
    assert matches is not None
    assert matches({"metadata": {"name": "x"}})


def test_blanks_mean_nothing() -> None:
    matches = selectors.label_selector(" a  in ( b , c ) , ! d ,e = f, g ")
    assert matches is not None
    labels = {"a": "b", "e": "f", "g": ""}
    assert matches({"metadata": {"labels": labels}})
    assert not matches({"metadata": {"labels": {**labels, "d": ""}}})
