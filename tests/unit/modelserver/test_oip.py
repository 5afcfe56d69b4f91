"""V2 bodies: the schema, binary tensors in and out, ids."""

from __future__ import annotations

import contextlib
import json
import struct
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserver import oip, tensors
from modelserver.errors import DataPlaneError, HTTPError, InvalidInput, UnrecognizedRequest
from modelserver.model import InferOutput, InferRequest, InferResponse, RequestedOutput
from modelserver.oip_schema import SchemaError, parse

TENSOR: dict[str, Any] = {"name": "x", "shape": [2], "datatype": "INT32", "data": [1, 2]}


def body(**changes: Any) -> bytes:
    return json.dumps({"inputs": [TENSOR], **changes}).encode()


def tensor(**changes: Any) -> bytes:
    return body(inputs=[{**TENSOR, **changes}])


@pytest.mark.parametrize(
    ("raw", "kind", "location"),
    [
        (b"", "missing", ["body"]),
        (b"null", "missing", ["body"]),
        (b"{", "json_invalid", ["body", 1]),
        (b"[]", "model_attributes_type", ["body", "InferenceRequest"]),
        (b"{}", "missing", ["body", "InferenceRequest", "inputs"]),
        (body(inputs=3), "list_type", ["body", "InferenceRequest", "inputs"]),
        (body(inputs=[1]), "model_attributes_type", ["body", "InferenceRequest", "inputs", 0]),
        (body(id=5), "string_type", ["body", "InferenceRequest", "id"]),
        (body(parameters=[]), "dict_type", ["body", "InferenceRequest", "parameters"]),
        (body(outputs={}), "list_type", ["body", "InferenceRequest", "outputs"]),
        (body(outputs=[{}]), "missing", ["body", "InferenceRequest", "outputs", 0, "name"]),
        (tensor(name=7), "string_type", ["body", "InferenceRequest", "inputs", 0, "name"]),
        (tensor(data=None), "list_type", ["body", "InferenceRequest", "inputs", 0, "data"]),
        (
            tensor(shape=[1.5]),
            "int_from_float",
            ["body", "InferenceRequest", "inputs", 0, "shape", 0],
        ),
        (tensor(shape=["a"]), "int_parsing", ["body", "InferenceRequest", "inputs", 0, "shape", 0]),
        (tensor(shape=[[2]]), "int_type", ["body", "InferenceRequest", "inputs", 0, "shape", 0]),
    ],
)
def test_bodies_that_break_the_schema_say_where(raw: bytes, kind: str, location: list[Any]) -> None:
    """The first entry of a 422 names the place."""
    with pytest.raises(SchemaError) as caught:
        oip.decode_json(raw, "m", {})
    assert (caught.value.detail[0]["type"], caught.value.detail[0]["loc"]) == (kind, location)


def test_parameters_are_scalars() -> None:
    """null, lists and objects are refused wherever parameters may stand."""
    for value in (None, [1], {"a": 1}):
        for raw in (
            body(parameters={"p": value}),
            tensor(parameters={"p": value}),
            body(outputs=[{"name": "x", "parameters": {"p": value}}]),
        ):
            with pytest.raises(SchemaError):
                oip.decode_json(raw, "m", {})


def test_shapes_are_read_as_loosely_as_upstream_reads_them() -> None:
    """2.0, "2" and true count as integers there."""
    request = oip.decode_json(tensor(shape=[2.0, "1", True]), "m", {})
    assert request is not None
    assert request.inputs[0].shape == [2, 1, 1]


_SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
)
_ANY = st.recursive(
    _SCALAR,
    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=2), x, max_size=2),
    max_leaves=4,
)
_TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", 7, None]),
        "shape": st.sampled_from([[2], [], ["2"], [2.5], None]),
        "datatype": st.sampled_from(["INT32", "fp16", "FP16", "zzz", 3]),
        "data": st.sampled_from([[1, 2], [], None, "a"]),
        "parameters": _ANY,
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(_TENSORS | _ANY, max_size=2)},
        optional={"id": _ANY, "parameters": _ANY, "outputs": _ANY},
    )
)
def test_the_short_way_agrees_with_the_schema(document: dict[str, Any]) -> None:
    """Plain requests skip the general walk; they must be the ones it accepts, and mean the same."""
    short = oip._plain(document, "m", {})
    try:
        full: InferRequest | None = parse(document, "m", {})
    except SchemaError:
        full = None
    if short is None:
        return
    assert full is not None
    assert (short.id, short.parameters, short.outputs) == (full.id, None, None)
    assert [(t.name, t.shape, t.datatype, t.data) for t in short.inputs] == [
        (t.name, t.shape, t.datatype, t.data) for t in full.inputs
    ]


def test_python_json_is_accepted() -> None:
    """NaN, a byte order mark and UTF-16, as the reference's parser."""
    for raw in (
        tensor(data=[1.0, float("nan")], datatype="FP32"),
        b"\xef\xbb\xbf" + body(),
        body().decode().encode("utf-16"),
    ):
        assert oip.decode_json(raw, "m", {}) is not None


def test_bodies_that_are_no_text_are_400() -> None:
    """The web framework's answer, not the schema's."""
    with pytest.raises(HTTPError) as caught:
        oip.decode_json(b'{"id":"\xff"}', "m", {})
    assert (caught.value.status, caught.value.detail) == (
        400,
        "There was an error parsing the body",
    )


def test_integer_parameters_keep_their_value_beyond_64_bits() -> None:
    """The fast parser would make a float of it."""
    request = oip.decode_json(tensor(parameters={"a": 2**64}), "m", {})
    assert request is not None
    assert request.inputs[0].parameters == {"a": 2**64}


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("APPLICATION/JSON", True),
        ("application/vnd.x+json", True),
        ("application/octet-stream", False),
        ("text/json", False),
        ("", False),
        (None, False),
    ],
)
def test_content_types_that_mean_json(content_type: str | None, expected: bool) -> None:
    """Everything else is a binary request."""
    assert oip.is_json(content_type) is expected


def binary(document: dict[str, Any], raw: bytes = b"") -> tuple[bytes, dict[str, str]]:
    head = json.dumps(document).encode()
    return head + raw, {oip.LENGTH_HEADER: str(len(head))}


def test_raw_tensors_are_taken_in_order_and_json_ones_between_them() -> None:
    """Mixed requests: `data` consumes no bytes, and leftovers are ignored."""
    a, b = np.array([1, 2], np.int32), np.array([0.5], np.float64)
    size = "binary_data_size"
    document = {
        "inputs": [
            {"name": "a", "shape": [2], "datatype": "INT32", "parameters": {size: 8, "k": 1}},
            {"name": "j", "shape": [1], "datatype": "INT32", "parameters": {size: 4}, "data": [7]},
            {"name": "b", "shape": [1], "datatype": "fp64", "parameters": {size: 8}},
        ]
    }
    request = oip.decode_binary(*_named(binary(document, a.tobytes() + b.tobytes() + b"rest")))
    assert [t.as_numpy().tolist() for t in request.inputs] == [[1, 2], [7], [0.5]]
    assert request.inputs[0].parameters == {"k": 1}


def _named(made: tuple[bytes, dict[str, str]]) -> tuple[bytes, str, dict[str, str]]:
    return made[0], "m", made[1]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (
            {"parameters": {"binary_data_size": None}},
            "'binary_data_size' is not specified for input",
        ),
        ({}, "'data' field is missing for input 'x' for model 'm'"),
        ({"datatype": "FP128", "data": [1]}, "invalid datatype None in the input"),
        ({"datatype": "FP16", "data": [1.0]}, "Receiving FP16 data via JSON is not supported"),
    ],
)
def test_broken_binary_inputs_are_the_clients_fault(item: dict[str, Any], text: str) -> None:
    """With KServe's words."""
    document = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT32", **item}]}
    with pytest.raises(InvalidInput, match=text):
        oip.decode_binary(*_named(binary(document)))


def test_a_wrong_length_header_is_a_format_error() -> None:
    """The JSON part ends in the middle."""
    with pytest.raises(UnrecognizedRequest):
        oip.decode_binary(body(), "m", {oip.LENGTH_HEADER: "5"})
    with pytest.raises(InvalidInput, match="header is missing"):
        oip.decode_binary(body(), "m", {})


def respond(request: bytes, *outputs: InferOutput) -> tuple[dict[str, Any], bytes]:
    asked = oip.decode_json(request, "m", {})
    assert asked is not None
    data, length = oip.encode(InferResponse("m", list(outputs)), asked)
    end = len(data) if length is None else length
    return json.loads(data[:end]), data[end:]


A = InferOutput.of("a", np.array([1, 2], np.int32))
B = InferOutput.of("b", np.array([0.5], np.float32))


def test_requested_outputs_select_order_and_repeat() -> None:
    """An empty list means all; one that does not exist is the client's fault."""
    names = [{"name": n} for n in ("b", "a", "b")]
    document, _ = respond(body(outputs=names), A, B)
    assert [o["name"] for o in document["outputs"]] == ["b", "a", "b"]
    document, _ = respond(body(outputs=[]), A, B)
    assert [o["name"] for o in document["outputs"]] == ["a", "b"]
    with pytest.raises(InvalidInput, match="Unexpected inference output 'z' for model 'm'"):
        respond(body(outputs=[{"name": "z"}]), A, B)


def test_binary_answers_carry_json_then_tensors() -> None:
    """Binary outputs have a size in place of data, the others stay JSON."""
    wanted = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]
    document, raw = respond(body(id="i", outputs=wanted), A, B)
    assert list(document) == ["id", "model_name", "model_version", "outputs"]
    assert document["outputs"] == [
        {"name": "a", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
        {"name": "b", "shape": [1], "datatype": "FP32", "data": [0.5]},
    ]
    assert raw == np.array([1, 2], np.int32).tobytes()


def test_binary_data_output_means_every_output() -> None:
    """Unless outputs are requested one by one."""
    document, raw = respond(body(parameters={"binary_data_output": True}), A, B)
    assert [o["parameters"]["binary_data_size"] for o in document["outputs"]] == [8, 4]
    assert len(raw) == 12
    document, raw = respond(
        body(parameters={"binary_data_output": True}, outputs=[{"name": "a"}]), A, B
    )
    assert document["outputs"][0]["data"] == [1, 2]
    assert raw == b""


def test_json_answers_have_every_key_in_order() -> None:
    """Absent values are null; NaN is null."""
    nan = InferOutput.of("n", np.array([np.nan], np.float32))
    document, _ = respond(body(id="i"), nan)
    assert document == {
        "model_name": "m",
        "model_version": None,
        "id": "i",
        "parameters": None,
        "outputs": [
            {"name": "n", "shape": [1], "datatype": "FP32", "parameters": None, "data": [None]}
        ],
    }


@pytest.mark.parametrize("dtype", ["i8", "f4", "f8", "?", "u1"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0,), ()])
def test_rows_written_the_short_way_look_as_always(dtype: str, shape: tuple[int, ...]) -> None:
    """A server writes the one output of a framework model without the general encoder."""
    y = np.ones(shape, np.dtype(dtype))
    if dtype == "f4" and y.size:
        y.flat[0] = 0.1
    asked = InferRequest("m", [], "i")
    short = oip.encode_rows("m", "output-0", y, asked)
    assert (short, None) == oip.encode(InferResponse("m", [InferOutput.of("output-0", y)]), asked)


def test_the_short_way_knows_its_limits() -> None:
    """Text, half floats, long arrays, and requests that ask for something."""
    plain = InferRequest("m", [], "i")
    for y in (np.array(["a"]), np.ones(1, np.float16), np.ones(65), [1]):
        assert oip.encode_rows("m", "o", y, plain) is None
    for asked in (
        InferRequest("m", [], "i", parameters={"binary_data_output": True}),
        InferRequest("m", [], "i", outputs=[RequestedOutput("o")]),
    ):
        assert oip.encode_rows("m", "o", np.ones(1), asked) is None


def test_half_floats_need_a_binary_answer() -> None:
    """The protocol has no JSON form for them."""
    half = InferOutput.of("h", np.array([0.5], np.float16))
    with pytest.raises(InvalidInput, match="for output h"):
        respond(body(), half)
    _, raw = respond(body(parameters={"binary_data_output": True}), half)
    assert raw == np.array([0.5], np.float16).tobytes()


def test_outputs_without_data_are_refused_only_when_sent() -> None:
    """A model may leave out what nobody asked for."""
    empty = InferOutput("e", [1], "INT32", None)
    with pytest.raises(InvalidInput, match="'data' field is missing for output 'e'"):
        respond(body(), A, empty)
    document, _ = respond(body(outputs=[{"name": "a"}]), A, empty)
    assert len(document["outputs"]) == 1


def test_new_ids_are_version_4_uuids_and_never_repeat() -> None:
    """Across the blocks in which randomness is read."""
    ids = [oip.new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {uuid.UUID(i).version for i in ids} == {4}
    assert {uuid.UUID(i).variant for i in ids} == {uuid.RFC_4122}
    assert all(str(uuid.UUID(i)) == i for i in ids)


PARTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.text(max_size=4), st.none(), st.integers()),
        "shape": st.one_of(st.lists(st.integers(-2, 5), max_size=3), st.text(max_size=3)),
        "datatype": st.one_of(st.sampled_from([*tensors.DTYPES, "nope"]), st.integers()),
        "data": st.one_of(st.lists(st.integers(), max_size=3), st.none(), st.text(max_size=3)),
        "parameters": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {"binary_data_size": st.one_of(st.integers(-9, 99), st.none(), st.text(max_size=2))}
            ),
        ),
    },
)
# What the server turns into an answer: its own errors, and what KServe's answers with 500.
ANSWERED = (
    DataPlaneError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error,
)  # fmt: skip


@given(
    st.one_of(
        st.builds(
            lambda inputs: json.dumps({"inputs": inputs}).encode(), st.lists(PARTS, max_size=3)
        ),
        st.binary(max_size=40),
    ),
    st.binary(max_size=60),
    st.one_of(st.integers(-5, 400).map(str), st.text(max_size=3), st.none()),
    st.booleans(),
)
def test_any_binary_request_is_read_or_refused(
    document: bytes, rest: bytes, length: str | None, right: bool
) -> None:
    length = str(len(document)) if right else length
    headers = {} if length is None else {oip.LENGTH_HEADER: length}
    with contextlib.suppress(*ANSWERED):
        request = oip.decode_binary(document + rest, "m", headers)
        for tensor in request.inputs:
            with contextlib.suppress(*ANSWERED):
                tensor.as_numpy()
