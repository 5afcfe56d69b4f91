"""V1 bodies and CloudEvents."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from modelserver import cloudevents, v1
from modelserver.errors import CloudEventError, InvalidInput, UnrecognizedRequest

EVENT = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "s",
    "ce-type": "t",
    "ce-subject": "iris",
    "content-type": "application/json",
}


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/ld+json", "application/octet-stream"],
)
def test_four_content_types_mean_json(content_type: str | None) -> None:
    """Compared literally, as upstream does."""
    headers = {} if content_type is None else {"content-type": content_type}
    assert v1.decode(b'{"instances":[1]}', headers) == ({"instances": [1]}, None)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "text/plain", ""])
def test_other_content_types_hand_over_bytes(content_type: str) -> None:
    """Images for a custom model, for example."""
    assert v1.decode(b"{", {"content-type": content_type}) == (b"{", None)


@pytest.mark.parametrize("body", [b"", b"{bad", b"[NaN]", b"[1e999]", b"\xef\xbb\xbf{}", b"\xff"])
def test_json_is_strict(body: bytes) -> None:
    """RFC 8259 only, unlike V2."""
    with pytest.raises(UnrecognizedRequest, match="Unrecognized request format: "):
        v1.decode(body, {})


@pytest.mark.parametrize("instances", ["abc", 5, None, {"a": 1}])
def test_instances_must_be_a_list(instances: Any) -> None:
    """`inputs` may be anything; the model decides."""
    with pytest.raises(InvalidInput, match='Expected "instances" to be a list'):
        v1.decode(json.dumps({"instances": instances}).encode(), {})
    assert v1.decode(json.dumps({"inputs": instances}).encode(), {})[0] == {"inputs": instances}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"predictions": np.array([[1.5, 2.0]])}, b'{"predictions":[[1.5,2.0]]}'),
        ([1, "two", None], b'[1,"two",null]'),
        (None, b"null"),
        ([math.nan, math.inf], b"[null,null]"),
        ({1: "one"}, b'{"1":"one"}'),
    ],
)
def test_json_answers(result: Any, expected: bytes) -> None:
    """numpy is allowed, NaN and infinity become null."""
    assert v1.encode(result) == (expected, b"application/json")


def test_text_and_bytes_go_out_as_they_are() -> None:
    """Without a content type."""
    assert v1.encode("é") == ("é".encode(), None)
    assert v1.encode(b"\x00") == (b"\x00", None)
    with pytest.raises(TypeError):
        v1.encode({1, 2})


def test_binary_mode_events_carry_the_payload_in_the_body() -> None:
    """Whatever the content type; data that are not JSON stay bytes."""
    payload, event = v1.decode(b'{"instances":[1]}', {**EVENT, "content-type": "text/plain"})
    assert payload == {"instances": [1]}
    assert event is not None
    assert event["subject"] == "iris"
    assert v1.decode(b"raw", EVENT)[0] == b"raw"


def test_an_incomplete_event_is_an_ordinary_request() -> None:
    """One required attribute is missing."""
    headers = {name: value for name, value in EVENT.items() if name != "ce-type"}
    assert v1.decode(b"[1]", headers) == ([1], None)


def test_unknown_versions_are_refused() -> None:
    """With the reference's words."""
    with pytest.raises(
        CloudEventError, match="Cloud Event Exceptions: Found invalid specversion 9"
    ):
        v1.decode(b"{}", {**EVENT, "ce-specversion": "9"})
    with pytest.raises(CloudEventError, match="Missing required attributes"):
        v1.decode(b"{}", {**EVENT, "content-type": cloudevents.STRUCTURED_TYPE})


def test_structured_mode_events_carry_attributes_in_the_body() -> None:
    """All six, or it is an ordinary body."""
    document = {
        "specversion": "1.0", "id": "1", "source": "s", "type": "t", "time": "now",
        "data": {"instances": [1]},
    }  # fmt: skip
    payload, event = v1.decode(json.dumps(document).encode(), {})
    assert payload == {"instances": [1]}
    assert event is not None
    assert event["id"] == "1"
    del document["time"]
    assert v1.decode(json.dumps(document).encode(), {}) == (document, None)


def test_answers_have_attributes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """CE_TYPE and CE_SOURCE replace, CE_MERGE keeps the request's others."""
    plain = cloudevents.answer_attributes("iris", {"subject": "x", "id": "1", "time": "then"})
    assert plain["source"] == "io.kserve.inference.iris"
    assert plain["type"] == "io.kserve.inference.response"
    assert "subject" not in plain
    monkeypatch.setenv("CE_MERGE", "true")
    monkeypatch.setenv("CE_TYPE", "my.type")
    monkeypatch.setenv("CE_SOURCE", "my/source")
    merged = cloudevents.answer_attributes("iris", {"subject": "x", "id": "1", "time": "then"})
    assert (merged["subject"], merged["type"], merged["source"]) == ("x", "my.type", "my/source")
    assert merged["id"] != "1"
    assert merged["time"] != "then"


def test_structured_answers_encode_bytes_and_leave_out_none() -> None:
    """As the CloudEvents JSON format says."""
    assert json.loads(cloudevents.structured_body({"id": "1"}, b"\xff"))["data_base64"] == "/w=="
    assert json.loads(cloudevents.structured_body({"id": "1"}, None)) == {"id": "1"}
    assert json.loads(cloudevents.structured_body({}, [1])) == {"data": [1]}
