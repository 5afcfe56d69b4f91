"""Properties of schema walks and manifest reading over arbitrary JSON and text."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.api import schema, scheme
from kserve_local.api.manifest import load
from kserve_local.api.review import review

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(max_size=8),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KINDS = st.sampled_from(
    [
        (f"{kind.group}/{version}" if kind.group else version, kind.kind)
        for kind in scheme.ALL
        for version in kind.versions
    ]
)


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    """An object that follows its schema's names here and there, with arbitrary values below."""
    api_version, kind = draw(KINDS)
    obj: dict[str, Any] = {"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}}
    for _ in range(draw(st.integers(0, 6))):
        node: Any = obj
        path: tuple[str | int, ...] = ()
        for _ in range(draw(st.integers(0, 6))):
            names = schema.fields_of(api_version, kind, path)
            name = draw(st.sampled_from(names)) if names else draw(st.text(max_size=4))
            if name in ("apiVersion", "kind") and not path:
                break
            path = (*path, name)
            below = schema.fields_of(api_version, kind, path)
            if not isinstance(node.get(name), dict):
                node[name] = {} if below else draw(JSON)
            if not isinstance(node[name], dict):
                break
            node = node[name]
    return obj


@settings(max_examples=150, deadline=None)
@given(objects())
def test_any_object_gets_a_verdict(obj: dict[str, Any]) -> None:
    """Whatever a client sends must end in findings, never in a crash, and stay untouched."""
    before = copy.deepcopy(obj)
    for finding in (*schema.check(obj), *schema.unknown(obj)):
        assert str(finding)
        assert finding.reason
    assert obj == before


@settings(max_examples=150, deadline=None)
@given(objects())
def test_pruned_objects_have_nothing_unknown(obj: dict[str, Any]) -> None:
    pruned = schema.prune(obj)
    assert schema.unknown_fields(pruned) == []
    assert schema.prune(pruned) == pruned


@settings(max_examples=150, deadline=None)
@given(objects())
def test_defaulting_twice_changes_nothing(obj: dict[str, Any]) -> None:
    once = schema.apply_defaults(obj)
    assert schema.apply_defaults(once) == once
    assert schema.prune(schema.apply_defaults(schema.prune(obj))) == schema.apply_defaults(
        schema.prune(obj)
    )


@settings(max_examples=60, deadline=None)
@given(objects())
def test_any_manifest_gets_a_report(obj: dict[str, Any]) -> None:
    text = json.dumps(obj)
    report = review({"a": load(text)})[0]
    assert all(finding.line >= 1 and finding.column >= 1 for finding in report.findings)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), JSON, min_size=1, max_size=4))
def test_json_reads_back_as_it_is(value: dict[str, Any]) -> None:
    """JSON is YAML: what the API server prints can be fed to `apply`."""
    (document,) = load(json.dumps(value))
    assert document.error is None
    assert document.object == value


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=12), min_size=1, max_size=4))
def test_quoted_yaml_reads_back_as_text(value: dict[str, str]) -> None:
    text = yaml.safe_dump(value, default_style='"')
    (document,) = load(text)
    assert document.error is None
    assert document.object == value


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"# \n\t%@,?<1.~"), max_size=40))
def test_any_text_is_documents_or_errors_with_a_place(text: str) -> None:
    for document in load(text):
        line, column = document.position
        assert line >= 1
        assert column >= 1
        if document.error is None:
            document.position_of(("a", 0, "b"))
