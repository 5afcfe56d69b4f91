"""Selectors select what Kubernetes' would."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api import scheme
from kserve_local.apiserver.selectors import both, field_selector, label_selector
from kserve_local.errors import BadRequest


def labelled(**labels: str) -> dict[str, Any]:
    return {"metadata": {"name": "x", "namespace": "n", "labels": labels}}


@pytest.mark.parametrize(
    ("text", "labels", "matches"),
    [
        ("a=1", {"a": "1"}, True),
        ("a==1", {"a": "1"}, True),
        ("a=1", {"a": "2"}, False),
        ("a=1", {}, False),
        ("a!=1", {"a": "2"}, True),
        ("a!=1", {}, True),
        ("a", {"a": ""}, True),
        ("a", {}, False),
        ("!a", {}, True),
        ("!a", {"a": "1"}, False),
        ("a in (1, 2)", {"a": "2"}, True),
        ("a in (1, 2)", {"a": "3"}, False),
        ("a notin (1,2)", {"a": "3"}, True),
        ("a notin (1,2)", {}, True),
        ("a in (1,2),b!=x,c", {"a": "1", "c": "3"}, True),
        ("a in (1,2),b!=x,c", {"a": "1", "b": "x", "c": "3"}, False),
        ("serving.kserve.io/inferenceservice", {"serving.kserve.io/inferenceservice": "i"}, True),
        ("a=", {"a": ""}, True),
    ],
)
def test_label_selectors(text: str, labels: dict[str, str], matches: bool) -> None:
    selector = label_selector(text)
    assert selector is not None
    assert selector(labelled(**labels)) is matches


def test_an_empty_selector_selects_everything() -> None:
    assert label_selector("") is None
    assert field_selector(scheme.POD, "") is None


@pytest.mark.parametrize("text", ["a in 1", "=x", "a=b=c", "a in (1"])
def test_broken_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        label_selector(text)


def test_field_selectors() -> None:
    pod = {"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Running"}}
    for text, matches in (
        ("metadata.name=p", True),
        ("metadata.name=p,status.phase!=Running", False),
        ("status.phase==Running", True),
        ("spec.nodeName=", True),
    ):
        selector = field_selector(scheme.POD, text)
        assert selector is not None
        assert selector(pod) is matches


def test_fields_that_a_kind_does_not_index_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"^field label not supported: status\.phase$"):
        field_selector(scheme.CONFIG_MAP, "status.phase=Running")


def test_both_selectors_count() -> None:
    one, other = label_selector("a"), label_selector("b")
    selector = both(one, other)
    assert selector is not None
    assert selector(labelled(a="", b=""))
    assert not selector(labelled(a=""))
    assert both(None, other) is other
