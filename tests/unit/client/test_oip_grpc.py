"""V2 JSON to gRPC's messages and back, judged by messages of protobuf's own making."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.client import oip_grpc
from kserve_local.errors import UsageError
from modelserver.oip_proto import MESSAGES

NUMBERS = {
    "BOOL": st.booleans(),
    "INT8": st.integers(-(2**7), 2**7 - 1),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "UINT16": st.integers(0, 2**16 - 1),
    "UINT64": st.integers(0, 2**64 - 1),
    "FP32": st.floats(width=32, allow_nan=False),
    "FP64": st.floats(allow_nan=False),
    "BYTES": st.text(),
}
FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT16": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
RAW = {"INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d", "UINT16": "H", "BOOL": "?"}
PARAMETERS = st.dictionaries(
    st.text(max_size=8),
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=8)),
    max_size=3,
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    datatype = draw(st.sampled_from(sorted(NUMBERS)))
    data = draw(st.lists(NUMBERS[datatype], max_size=20))
    return {
        "name": draw(st.text(max_size=8)),
        "datatype": datatype,
        "shape": [len(data)],
        "parameters": draw(PARAMETERS),
        "data": data,
    }


def value_of(parameter: Any) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))


@given(st.lists(tensors(), max_size=3), PARAMETERS, st.text(max_size=5))
def test_a_request_reads_as_it_was_written(
    inputs: list[dict[str, Any]], parameters: dict[str, Any], id: str
):
    body = {"inputs": inputs, "parameters": parameters, "id": id, "outputs": [{"name": "y"}]}
    message = MESSAGES["ModelInferRequest"].FromString(oip_grpc.request("iris", body))
    assert (message.model_name, message.id) == ("iris", id)
    assert {k: value_of(v) for k, v in message.parameters.items()} == parameters
    assert [o.name for o in message.outputs] == ["y"]
    for sent, read in zip(inputs, message.inputs, strict=True):
        assert (read.name, read.datatype, list(read.shape)) == (
            sent["name"],
            sent["datatype"],
            sent["shape"],
        )
        assert {k: value_of(v) for k, v in read.parameters.items()} == sent["parameters"]
        data = list(getattr(read.contents, FIELDS[sent["datatype"]]))
        want = [d.encode() for d in sent["data"]] if sent["datatype"] == "BYTES" else sent["data"]
        assert data == want


@given(st.lists(tensors(), max_size=3), PARAMETERS, st.booleans())
def test_a_response_reads_as_it_was_written(
    outputs: list[dict[str, Any]], parameters: dict[str, Any], raw: bool
):
    message = MESSAGES["ModelInferResponse"](model_name="iris", id="r", model_version="1")
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    raw = raw and all(t["datatype"] in RAW for t in outputs)
    for tensor in outputs:
        made = message.outputs.add(
            name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
        )
        if raw:
            code = RAW[tensor["datatype"]]
            packed = struct.pack(f"<{len(tensor['data'])}{code}", *tensor["data"])
            message.raw_output_contents.append(packed)
            made.parameters["binary_data_size"].int64_param = len(packed)
        else:
            data = tensor["data"]
            if tensor["datatype"] == "BYTES":
                data = [d.encode() for d in data]
            getattr(made.contents, FIELDS[tensor["datatype"]]).extend(data)
    read = oip_grpc.response(message.SerializeToString())
    assert (read["model_name"], read["id"], read["model_version"]) == ("iris", "r", "1")
    assert read.get("parameters", {}) == parameters
    for want, got in zip(outputs, read["outputs"], strict=True):
        assert (got["name"], got["datatype"], got["shape"]) == (
            want["name"],
            want["datatype"],
            want["shape"],
        )
        assert got["data"] == want["data"]
        assert "parameters" not in got


@given(st.lists(tensors(), max_size=2))
def test_grpcurls_form_is_the_same_request(inputs: list[dict[str, Any]]):
    inputs = [{**t, "parameters": {}} for t in inputs]
    if any(isinstance(d, float) and math.isinf(d) for t in inputs for d in t["data"]):
        return  # JSON has no such number
    body = {"inputs": inputs}
    text = json.dumps(oip_grpc.as_grpcurl("iris", body))
    parsed = json_format.Parse(text, MESSAGES["ModelInferRequest"]())
    assert parsed == MESSAGES["ModelInferRequest"].FromString(oip_grpc.request("iris", body))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"x", "is not JSON"),
        (b'{"instances": [1]}', "gRPC takes V2 requests"),
        (b'{"inputs": [{"name": "x"}]}', "gRPC takes V2 requests"),
    ],
)
def test_what_is_no_v2_request_is_refused(body: bytes, words: str):
    with pytest.raises(UsageError, match=words):
        oip_grpc.read_body(body)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"datatype": "FP16", "data": [1]}, 'no typed contents for datatype "FP16"'),
        ({"datatype": "INT32", "data": ["a"]}, "data is no INT32"),
        ({"datatype": "FP32", "data": [1e300]}, "data is no FP32"),
        ({"datatype": "INT32", "data": [1], "parameters": {"p": [1]}}, 'parameter "p"'),
    ],
)
def test_what_grpc_cannot_carry_is_refused(tensor: dict[str, Any], words: str):
    body = {"inputs": [{"name": "x", "shape": [1], **tensor}]}
    with pytest.raises(UsageError, match=words):
        oip_grpc.request("iris", body)


def test_bytes_may_be_nested_lists():
    body = {"inputs": [{"name": "x", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]}]}
    made = oip_grpc.as_grpcurl("m", body)["inputs"][0]["contents"]["bytesContents"]
    assert made == [base64.b64encode(t).decode() for t in (b"a", b"b")]
