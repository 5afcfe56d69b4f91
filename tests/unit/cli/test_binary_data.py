"""Binary tensor data of the Open Inference Protocol, without numpy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kserve_local.cli.binary_data import packed, unpacked
from kserve_local.errors import UsageError


def request(datatype: str, data: list[Any]) -> bytes:
    tensor = {"name": "x", "shape": [len(data)], "datatype": datatype, "data": data}
    return json.dumps({"id": "7", "inputs": [tensor]}).encode()


def test_tensors_follow_the_head_in_order_as_little_endian_bytes() -> None:
    body, length = packed(request("INT16", [[1], [-2]]))
    head = json.loads(body[:length])
    assert head["id"] == "7"
    assert head["parameters"] == {"binary_data_output": True}
    (tensor,) = head["inputs"]
    assert "data" not in tensor
    assert tensor["parameters"] == {"binary_data_size": 4}
    assert body[length:] == b"\x01\x00\xfe\xff"


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT64", [0, 2**64 - 1]),
        ("FP16", [0.5, -2.0]),
        ("FP32", [1.5, 0.25]),
        ("FP64", [0.1]),
        ("BYTES", ["", "é", "two words"]),
        ("INT8", []),
    ],
)
def test_what_is_packed_comes_back_as_the_json_it_was(datatype: str, data: list[Any]) -> None:
    body, length = packed(request(datatype, data))
    head = json.loads(body[:length])
    answer = json.dumps({"outputs": head["inputs"]}).encode()
    assert unpacked(answer + body[length:], len(answer)) == {
        "outputs": [{"name": "x", "shape": [len(data)], "datatype": datatype, "data": data}]
    }


def test_an_output_that_came_in_json_stays() -> None:
    answer = b'{"outputs": [{"name": "y", "datatype": "FP32", "data": [1.0]}]}'
    assert unpacked(answer, len(answer)) == json.loads(answer)


@pytest.mark.parametrize(
    ("datatype", "data"), [("INT8", [300]), ("INT32", ["x"]), ("COMPLEX", [1]), ("FP32", [None])]
)
def test_values_of_another_type_are_named(datatype: str, data: list[Any]) -> None:
    with pytest.raises(UsageError, match=r'"x"'):
        packed(request(datatype, data))
