"""GJSON paths: upstream's own answers, recorded, and what a path must not be able to do.

`gjson_cases.jsonl` holds `[document, path, kind, raw]` lines as tidwall/gjson v1.18.0 answered
them (kind empty: the path leads nowhere): the examples of its documentation, conditions as KServe
users write them, and random documents and paths.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.gateway import gjson, gjson_path

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "gjson_cases.jsonl").read_text().splitlines()
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)
WORDS = """a 0 # . | #( ) == % * ? [ ] { } \\ ! " ~true : , é
@this @reverse @flatten @dig:a @join @group"""
PATHS = st.lists(st.sampled_from(WORDS.split()), max_size=14).map("".join)


def test_every_recorded_answer_of_upstream_is_ours() -> None:
    """Presence, kind and raw text: what a condition can depend on, and a little more."""
    wrong = []
    for document, path, kind, raw in CASES:
        value = gjson.get(document.encode(), path)
        got = (value.kind if value.exists else "", value.raw.decode())
        if got != (kind, raw):
            wrong.append((document, path, (kind, raw), got))
    assert len(CASES) > 600
    assert not wrong, wrong[:3]


@pytest.mark.parametrize(
    ("document", "path", "there"),
    [
        (b'{"a": false}', "a", True),
        (b'{"a": null}', "a", True),
        (b'{"a": null}', "b", False),
        (b'{"predictions":[{"label":"dog"}]}', 'predictions.#(label=="dog")', True),
        (b'{"predictions":[{"label":"cat"}]}', 'predictions.#(label=="dog")', False),
        (b'{"decision_picker":"ERROR"}', "[@this].#(decision_picker==ERROR)", True),
        (b'{"decision_picker":"OK"}', "[@this].#(decision_picker==ERROR)", False),
        # `#(...)#` collects: an empty collection is there, too.
        (b'{"predictions":[]}', 'predictions.#(label=="dog")#', True),
        (b"17", "a", False),
        (b"{}", "", False),
    ],
)
def test_a_condition_asks_for_presence(document: bytes, path: str, there: bool) -> None:
    """The conditions of KServe's documentation and samples."""
    assert gjson.exists(document, path) is there


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        (b"", False),
        (b"  ", False),
        (b"{}", True),
        (b' [1, "a"] \n', True),
        (b"[1,]", False),
        (b"01", False),
        (b"1 2", False),
        (b'{"a" 1}', False),
        (b'"\xff"', True),  # upstream does not look at UTF-8
        (b'"\x01"', False),
        (b'"\\x"', False),
        (b"[" * 5000 + b"]" * 5000, True),
        (b"[" * 5000 + b"]" * 4999, False),
        (b'{"a":' * 3000 + b"-0.5e+3" + b"}" * 3000, True),
    ],
)
def test_validity_is_upstreams(document: bytes, valid: bool) -> None:
    """Deep nesting and foreign bytes are no errors there; both are checked without recursion."""
    assert gjson.is_valid(document) is valid


@given(JSON_VALUES, PATHS)
@settings(max_examples=400, deadline=None)
def test_no_path_raises_on_valid_json(value: object, path: str) -> None:
    """A condition comes from a user's YAML unchecked; whatever it is, there is an answer."""
    gjson.exists(json.dumps(value).encode(), path)


@given(st.binary(max_size=60), PATHS)
@settings(max_examples=300, deadline=None)
def test_no_path_raises_on_anything_else(document: bytes, path: str) -> None:
    """Broken documents lead somewhere or nowhere, but never to an exception."""
    gjson.exists(document, path)


@given(JSON_VALUES)
@settings(max_examples=200, deadline=None)
def test_valid_documents_are_valid_and_one_line(value: object) -> None:
    """What json writes is valid, is itself, and is one JSON line."""
    document = json.dumps(value, indent=1).encode()
    assert gjson.is_valid(document)
    assert json.loads(gjson.get(document, "@this").raw) == value
    assert gjson.get(document, "..#").raw == b"1"


@given(st.dictionaries(st.text(min_size=1, max_size=6), st.integers(), min_size=1))
@settings(max_examples=200, deadline=None)
def test_every_key_is_reached_by_its_escaped_name(members: dict[str, int]) -> None:
    """Each sign of a key may be escaped, whatever it means otherwise."""
    document = json.dumps(members).encode()
    for key, number in members.items():
        path = "".join(f"\\{c}" if c in ".|*?\\#@!{}[]" else c for c in key)
        assert gjson.get(document, path).raw == str(number).encode()


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (b"[1]", "|".join(["[@this,@this]"] * 64)),
        (b"[1]", "[" * 5000),
        (b"[1]", "#(" * 3000),
        (b"[1]", "[@this" * 500 + "]" * 500),
        (b"[" * 100_000 + b"]" * 100_000, ".".join(["#"] * 1000)),
        (b"[" * 100_000 + b"]" * 100_000, ".".join(["0"] * 1000)),
        (b"[" * 100_000 + b"]" * 100_000, '@flatten:{"deep":true}'),
        (b"[" * 100_000 + b"]" * 100_000, "@dig:a"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, ".".join(["*"] * 90)),
        (b'["' + b"a" * 200_000 + b'"]', '#(%"' + "*a" * 100 + '*b")'),
        (b'{"' + b"a" * 200_000 + b'":1}', "*a" * 300 + "b"),
        (b'"' + b"\\" * 400_001 + b'"', "a"),
    ],
)
def test_a_hostile_path_ends_soon(document: bytes, path: str) -> None:
    """Doubling, nesting and patterns are bounded: an answer or a refusal, never a hang."""
    begun = process_time()
    with contextlib.suppress(gjson.PathTooCostly):
        gjson.exists(document, path)
    assert process_time() - begun < 10.0


def test_a_path_knows_every_modifier_there_is() -> None:
    """Whether a dot means a pipe hangs on the names alone."""
    assert set(gjson._MODIFIERS) == gjson_path.MODIFIERS


def test_an_ordinary_condition_takes_linear_time() -> None:
    """Ten times the document takes about ten times as long."""

    def seconds(rows: int) -> float:
        document = json.dumps({"predictions": [{"label": "cat", "p": i} for i in range(rows)]})
        begun = process_time()
        assert not gjson.exists(document.encode(), 'predictions.#(label=="dog")')
        return process_time() - begun

    small = min(seconds(2_000) for _ in range(3))
    large = min(seconds(20_000) for _ in range(3))
    assert large < 25 * small
