"""What counts as a difference between two answers of a model."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from kserve_local.client.answers import Difference, compare
from kserve_local.interfaces.recorded import REDACTED


def differences(before: Any, after: Any, **more: Any) -> list[Difference]:
    return compare(json.dumps(before).encode(), json.dumps(after).encode(), **more)


def test_numbers_have_a_tolerance_relative_and_absolute() -> None:
    assert differences({"p": [1.0, 1e9, 0.0]}, {"p": [1.0 + 1e-7, 1e9 + 100, 1e-7]}) == []
    assert differences([1], [1.0]) == []
    [found] = differences({"p": [1.0]}, {"p": [1.01]})
    assert (found.path, found.before, found.after) == ("p.0", 1.0, 1.01)
    assert found.delta == pytest.approx(0.01)
    assert differences({"p": [1.0]}, {"p": [1.01]}, tolerance=0.1) == []
    assert differences([1.0], [1.0 + 1e-9], tolerance=0.0) != []


def test_what_is_new_missing_or_of_another_type_is_named() -> None:
    found = differences({"a": 1, "b": [1, 2], "c": None}, {"b": [1, 2, 3], "c": 0, "d": True})
    assert found == [
        Difference("a", 1, None, "removed"),
        Difference("b.2", None, 3, "added"),
        Difference("c", None, 0),
        Difference("d", None, True, "added"),
    ]
    assert differences([1], [True]) == [Difference("0", 1, True)]
    assert differences(["x"], ["y"]) == [Difference("0", "x", "y")]


def test_no_number_is_one_and_infinity_has_no_delta() -> None:
    assert compare(b"[NaN]", b"[ NaN]") == []
    assert compare(b"[NaN]", b"[1]")[0].delta is None
    assert compare(b"[Infinity]", b"[Infinity ]") == []
    assert compare(b"[1]", b"[Infinity]")[0].delta is None


def test_the_form_of_json_is_no_difference() -> None:
    assert compare(b'{"a": 1, "b": 2}', b'{"b":2,"a":1}') == []


@pytest.mark.parametrize(
    "answer",
    [
        {"model_name": "m", "outputs": []},
        {"object": "chat.completion", "created": 1, "choices": []},
    ],
)
def test_ids_and_times_of_a_protocol_are_no_difference(answer: dict[str, Any]) -> None:
    assert differences({**answer, "id": "a"}, {**answer, "id": "b", "created": 2}) == []


def test_a_models_own_id_is_one() -> None:
    assert differences({"id": 1}, {"id": 2}) != []


def test_streams_are_compared_by_their_text() -> None:
    def events(*texts: str) -> bytes:
        lines = [
            json.dumps({"id": id(text), "choices": [{"index": 0, "delta": {"content": text}}]})
            for text in texts
        ]
        return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()

    assert compare(events("Hello", " you"), events("Hel", "lo you")) == []
    assert compare(events("Hello"), events("Hallo")) == [
        Difference("choices.0.text", "Hello", "Hallo")
    ]
    assert compare(b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n')[0].path == "events.0.n"


def with_tensor(*values: float, datatype: str = "FP32") -> tuple[bytes, int]:
    raw = struct.pack(f"<{len(values)}f", *values)
    tensor = {
        "name": "y", "shape": [len(values)], "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    head = json.dumps({"model_name": "m", "outputs": [tensor]}).encode()
    return head + raw, len(head)


def test_binary_tensors_are_compared_by_their_values() -> None:
    before, size = with_tensor(1.0, 2.0)
    close, _ = with_tensor(1.0, 2.0000001)
    other, _ = with_tensor(1.0, 2.5)
    heads = {"before_head": size, "after_head": size}
    assert compare(before, close, **heads) == []
    [found] = compare(before, other, **heads)
    assert (found.path, found.delta) == ("outputs.0.data.1", 0.5)
    as_json = {"name": "y", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]}
    text = json.dumps({"model_name": "m", "outputs": [as_json]}).encode()
    assert compare(before, text, before_head=size) == []


def test_tensors_of_unknown_types_are_compared_by_bytes() -> None:
    before, size = with_tensor(1.0, datatype="BF16")
    after, _ = with_tensor(2.0, datatype="BF16")
    [found] = compare(before, after, before_head=size, after_head=size)
    assert found.path == "outputs.0.data"


@pytest.mark.parametrize("other", [b"text", b"", b"\xff\xfe", b"{", b"[" * 100_000])
def test_what_is_no_json_is_compared_by_bytes(other: bytes) -> None:
    assert compare(other, other) == []
    [found] = compare(b"{}", other)
    assert (found.path, found.before) == ("", "{}")


def test_what_was_redacted_is_not_shown_by_its_difference() -> None:
    assert differences({"a": REDACTED, "b": 1}, {"a": "secret", "b": 1}) == []
