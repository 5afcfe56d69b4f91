"""encoding/json's reading, writing and words. `gojson_cases.jsonl` holds what Go answered:
`[document, Marshal of Unmarshal into a map, error]`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.gateway import gojson

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "gojson_cases.jsonl").read_text().splitlines()
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize(("document", "written", "error"), CASES, ids=lambda text: repr(text)[:40])
def test_a_recorded_case(document: str, written: str, error: str) -> None:
    """The same text, or the same refusal."""
    if error:
        with pytest.raises(gojson.GoJSONError) as refused:
            gojson.decode_object(document.encode())
        assert str(refused.value) == error
    else:
        assert gojson.encode(gojson.decode_object(document.encode())).decode() == written


@given(VALUES)
def test_what_is_written_is_read_back(value: object) -> None:
    """Numbers and texts survive; the result is JSON to others, too."""
    text = gojson.encode(value)
    assert gojson.decode(text) == value
    json.loads(text)


@given(st.binary(max_size=40))
def test_whatever_comes_there_is_an_answer(data: bytes) -> None:
    """Every refusal has words."""
    try:
        gojson.decode(data)
    except gojson.GoJSONError as error:
        assert str(error)  # noqa: PT017  # either outcome is right


def test_depth_is_refused_not_fatal() -> None:
    """Deeper than the interpreter's stack."""
    with pytest.raises(gojson.GoJSONError, match="exceeded max depth"):
        gojson.decode(b'{"a":' * 100_000)
