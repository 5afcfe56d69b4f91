"""What a handler gets and what becomes of its answer, for each envelope."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelserver.errors import InferenceError, InvalidInput, LoadError
from modelserver.model import InferInput, InferRequest
from torchserver.envelopes import envelope_of, v1_answer, v1_rows, v2_answer, v2_rows

MANIFEST = {"model": {"modelName": "mnist", "modelVersion": "1.0"}}


def request(*inputs: InferInput, id: str | None = None) -> InferRequest:
    return InferRequest("served", list(inputs), id)


def answer(result: Any, *names: str) -> dict[str, Any]:
    inputs = [InferInput(name, [1], "FP32", [0]) for name in names]
    return v2_answer(result, "kservev2", request(*inputs), MANIFEST, "new")


def test_kserve_hands_over_the_instances() -> None:
    rows = [{"data": "aGk="}, [1, 2]]
    assert v1_rows({"instances": rows}, "kserve", "m") == rows
    assert v1_rows(b'{"instances": [1]}', "kserve", "m") == [1]
    assert v1_answer([2, 3], "kserve", explain=False) == {"predictions": [2, 3]}
    assert v1_answer([2], "kserve", explain=True) == {"explanations": [2]}


def test_without_an_envelope_the_body_is_the_only_row() -> None:
    assert v1_rows({"any": 1}, "", "m") == [{"body": {"any": 1}}]
    assert v1_answer([{"label": "cat"}], "", explain=False) == {"label": "cat"}
    with pytest.raises(InferenceError, match="2 answers to one request"):
        v1_answer([1, 2], "", explain=False)


@pytest.mark.parametrize("payload", [{"instances": 1}, {"inputs": []}, [], b"[]"])
def test_a_body_without_instances_is_the_clients_fault(payload: Any) -> None:
    with pytest.raises(InvalidInput):
        v1_rows(payload, "kserve", "m")


def test_the_other_protocol_is_refused_with_the_path_to_call() -> None:
    with pytest.raises(InvalidInput, match="/v2/models/m/infer"):
        v1_rows({"instances": []}, "kservev2", "m")
    with pytest.raises(InvalidInput, match="/v1/models/served:predict"):
        v2_rows(request(), "kserve")


def test_kservev2_nests_numbers_and_takes_the_first_text() -> None:
    raw = np.array([[1, 2]], "<i4").tobytes()
    rows = v2_rows(
        request(
            InferInput("a", [2, 1], "FP32", [0.1, 2]),
            InferInput("b", [1], "BYTES", ["text"], {"content_type": "str"}),
            InferInput("c", [1, 2], "INT32", raw=raw),
            InferInput("d", [1], "BYTES", raw=b"\2\0\0\0hi"),
        ),
        "kservev2",
    )
    assert rows == [
        {"name": "a", "shape": [2, 1], "datatype": "FP32", "data": [[0.1], [2.0]]},
        {
            "name": "b",
            "shape": [1],
            "datatype": "BYTES",
            "data": "text",
            "parameters": {"content_type": "str"},
        },
        {"name": "c", "shape": [1, 2], "datatype": "INT32", "data": [[1, 2]]},
        {"name": "d", "shape": [1], "datatype": "BYTES", "data": "hi"},
    ]


def test_data_that_do_not_fit_name_the_input() -> None:
    with pytest.raises(InvalidInput, match="input 'a'"):
        v2_rows(request(InferInput("a", [3], "FP32", [1])), "kservev2")
    with pytest.raises(InvalidInput, match="input 'a'"):
        v2_rows(request(InferInput("a", [0], "BYTES", [])), "kservev2")


def test_each_item_becomes_a_flat_output_named_as_its_input() -> None:
    got = answer([np.array([[1, 2]]), 0.5, "cat"], "a", "b", "c")
    assert (got["model_name"], got["model_version"], got["id"]) == ("mnist", "1.0", "new")
    assert got["outputs"] == [
        {"name": "a", "shape": [2], "datatype": "INT64", "data": [1, 2]},
        {"name": "b", "shape": [1], "datatype": "FP64", "data": [0.5]},
        {"name": "c", "shape": [1], "datatype": "BYTES", "data": ["cat"]},
    ]


def test_more_items_than_inputs_have_no_name() -> None:
    with pytest.raises(InferenceError, match="2 items for 1 inputs"):
        answer([1, 2], "a")
    with pytest.raises(InferenceError, match="returned a dict, not a list"):
        answer({}, "a")


def test_without_an_envelope_the_handler_answers_in_v2_itself() -> None:
    row = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    asked = request(InferInput("x", [1], "FP32", [1]), id="7")
    assert v2_rows(asked, "") == [{"body": {"inputs": [row], "id": "7"}}]
    got = v2_answer([{"outputs": [row]}], "", asked, MANIFEST, "new")
    assert got == {"model_name": "served", "id": "7", "outputs": [row]}
    with pytest.raises(InferenceError, match="set service_envelope=kservev2"):
        v2_answer([1], "", asked, MANIFEST, "new")


def test_envelopes_of_other_servers_are_refused() -> None:
    assert envelope_of(" KServe ") == "kserve"
    with pytest.raises(LoadError, match="service_envelope json is not served here"):
        envelope_of("json")
