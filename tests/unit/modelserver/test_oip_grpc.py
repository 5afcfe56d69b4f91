"""gRPC messages: the definition, and tensors in and out in every encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modelserver import oip_grpc, oip_proto, tensors
from modelserver.errors import (
    HTTPError,
    InferenceError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    grpc_answer_of,
)
from modelserver.model import InferOutput, InferRequest, InferResponse, RequestedOutput
from modelserver.oip_grpc import ModelInferRequest, ModelInferResponse

PROTO = Path(oip_proto.__file__).with_name("oip.proto")
NUMERIC = sorted(set(tensors.DTYPES) - {"BYTES"})
FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Long enough for the way through packed bytes, and for lengths of two and three bytes.
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40)


def test_the_readable_definition_and_the_one_in_use_agree(tmp_path: Path) -> None:
    """`oip.proto` is what users give to grpcurl; what answers them is `oip_proto`."""
    protoc = pytest.importorskip("grpc_tools.protoc")
    out = tmp_path / "set.bin"
    arguments = ["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={out}", str(PROTO)]
    assert protoc.main(arguments) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    assert everything(file) == everything(oip_proto.file_descriptor())


def everything(file: Any) -> object:
    """Return names, numbers, types, labels, oneofs, maps and methods; not the order of messages."""

    def message(about: Any) -> object:
        return (
            about.name,
            sorted(
                (f.number, f.name, f.type, f.label, f.type_name, f.HasField("oneof_index"))
                for f in about.field
            ),
            [o.name for o in about.oneof_decl],
            about.options.map_entry,
            sorted(message(nested) for nested in about.nested_type),
        )

    services = [(s.name, [(m.name, m.input_type, m.output_type) for m in s.method])
                for s in file.service]  # fmt: skip
    return file.package, file.syntax, sorted(message(m) for m in file.message_type), services


def test_the_names_do_not_clash_with_the_sdks_own() -> None:
    """A model may import kserve, whose generated code registers the same names."""
    pb = pytest.importorskip("kserve.protocol.grpc.grpc_predict_v2_pb2")
    theirs = pb.ModelInferRequest(model_name="m", id="i", raw_input_contents=[b"x"])
    ours = ModelInferRequest.FromString(theirs.SerializeToString())
    assert (ours.model_name, ours.id, list(ours.raw_input_contents)) == ("m", "i", [b"x"])
    assert ours.SerializeToString() == theirs.SerializeToString()
    assert ours.DESCRIPTOR.file.pool is not pb.DESCRIPTOR.pool


def test_the_descriptor_is_valid_by_itself() -> None:
    pool = DescriptorPool()
    pool.AddSerializedFile(oip_proto.file_descriptor().SerializeToString())
    service = pool.FindServiceByName(oip_proto.SERVICE)
    assert [m.name for m in service.methods] == list(oip_proto.METHODS)


def request_of(message: Any) -> InferRequest:
    """Return the request that a server makes of a message that went over the wire."""
    return oip_grpc.decode(ModelInferRequest.FromString(message.SerializeToString()), {})


def typed(array: np.ndarray[Any, Any], datatype: str) -> InferRequest:
    message = ModelInferRequest(model_name="m", id="i")
    item = message.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if datatype in FIELDS:
        getattr(item.contents, FIELDS[datatype]).extend(array.ravel().tolist())
    return request_of(message)


def raw(array: np.ndarray[Any, Any], datatype: str) -> InferRequest:
    message = ModelInferRequest(model_name="m", id="i")
    message.inputs.add(name="x", datatype=datatype, shape=array.shape)
    message.raw_input_contents.append(tensors.to_raw(array, datatype))
    return request_of(message)


def answer(request: InferRequest, *outputs: InferOutput, **more: Any) -> Any:
    response = InferResponse("m", list(outputs), request.id, **more)
    return ModelInferResponse.FromString(oip_grpc.encode(response, request))


@given(st.data())
def test_raw_tensors_survive_both_ways_bit_by_bit(data: st.DataObject) -> None:
    """NaN payloads included."""
    datatype = data.draw(st.sampled_from(NUMERIC))
    array = data.draw(npst.arrays(tensors.DTYPES[datatype], SHAPES))
    request = raw(array, datatype)
    got = request.inputs[0].as_numpy()
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    message = answer(request, InferOutput.of("y", got))
    (output,) = message.outputs
    assert list(output.shape) == list(array.shape)
    assert (output.datatype, output.HasField("contents")) == (datatype, False)
    assert output.parameters["binary_data_size"].int64_param == array.nbytes
    assert list(message.raw_output_contents) == [array.tobytes()]


@given(st.data())
def test_typed_tensors_survive_both_ways(data: st.DataObject) -> None:
    """NaN stays one; protobuf may change its payload."""
    datatype = data.draw(st.sampled_from([d for d in NUMERIC if d != "FP16"]))
    array = data.draw(npst.arrays(tensors.DTYPES[datatype], SHAPES))
    request = typed(array, datatype)
    got = request.inputs[0].as_numpy()
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(got, array)
    message = answer(request, InferOutput.of("y", got))
    (output,) = message.outputs
    assert not message.raw_output_contents
    assert not output.parameters
    elements = getattr(output.contents, FIELDS[datatype])
    np.testing.assert_array_equal(np.array(list(elements), array.dtype), array.ravel())


@given(st.lists(st.binary(max_size=300), max_size=20), st.booleans())
def test_bytes_survive_both_ways(items: list[bytes], as_raw: bool) -> None:
    """Bytes that are no text as well."""
    array = np.array(items, dtype=np.object_)
    request = (raw if as_raw else typed)(array, "BYTES")
    got = request.inputs[0].as_numpy()
    assert got.tolist() == items
    message = answer(request, InferOutput.of("y", got))
    if as_raw:
        assert list(message.raw_output_contents) == [tensors.join_bytes(items)]
    else:
        assert list(message.outputs[0].contents.bytes_contents) == items


@given(npst.arrays(np.float32, st.integers(0, 300)))
def test_typed_elements_do_not_need_to_be_packed(array: np.ndarray[Any, Any]) -> None:
    """Each with a tag of its own is as good, and another field beside them changes nothing."""
    contents = b"".join(b"\x35" + element.tobytes() for element in array)
    message = ModelInferRequest(model_name="m")
    item = message.inputs.add(name="x", datatype="FP32", shape=array.shape)
    item.contents.MergeFromString(contents + b"\x08\x01")
    got = request_of(message).inputs[0].as_numpy()
    np.testing.assert_array_equal(got, array)


def test_text_answers_are_utf8() -> None:
    request = typed(np.array([1], np.int32), "INT32")
    message = answer(request, InferOutput.of("y", np.array(["é", "日本"])))
    assert list(message.outputs[0].contents.bytes_contents) == ["é".encode(), "日本".encode()]


def test_fp16_makes_the_answer_raw() -> None:
    """There is no typed field for it."""
    request = typed(np.array([1], np.int32), "INT32")
    half, word = np.array([0.5], np.float16), np.array([7], np.int32)
    message = answer(request, InferOutput.of("a", word), InferOutput.of("b", half))
    assert list(message.raw_output_contents) == [word.tobytes(), half.tobytes()]
    with pytest.raises(InvalidInput, match="to_grpc: invalid output datatype"):
        answer(request, InferOutput.of("b", half[:0]))


def test_only_requested_outputs_are_sent_in_that_order() -> None:
    request = typed(np.array([1], np.int32), "INT32")
    one, two = (InferOutput.of(n, np.array([i], np.int32)) for i, n in enumerate("ab"))
    request.outputs = [RequestedOutput("b"), RequestedOutput("a")]
    assert [o.name for o in answer(request, one, two).outputs] == ["b", "a"]
    request.outputs = [RequestedOutput("c")]
    with pytest.raises(InvalidInput, match="Unexpected inference output 'c' for model 'm'"):
        answer(request, one, two)


@pytest.mark.parametrize("data", [{"data": [1, 2]}, {"contents": {"int_contents": [1, 2]}}])
def test_a_model_may_answer_with_a_plain_dict(data: dict[str, Any]) -> None:
    request = typed(np.array([1], np.int32), "INT32")
    output = {"name": "y", "shape": [2], "datatype": "INT32", **data}
    sent = oip_grpc.encode({"model_name": "m", "id": "i", "outputs": [output]}, request)
    message = ModelInferResponse.FromString(sent)
    assert (message.id, list(message.outputs[0].contents.int_contents)) == ("i", [1, 2])


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 128), ("INT16", -32769), ("UINT8", 256), ("UINT16", 65536)]
)
def test_integers_that_do_not_fit_are_refused(datatype: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=f"input 'x': the values do not fit {datatype}"):
        typed(np.array([value]), datatype)


def test_elements_that_do_not_fill_the_shape_are_the_clients_fault() -> None:
    message = ModelInferRequest(model_name="m", raw_input_contents=[b"\0" * 12])
    message.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    with pytest.raises(InvalidInput, match="input 'x': cannot reshape"):
        request_of(message).inputs[0].as_numpy()


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (InvalidInput("no"), ("INVALID_ARGUMENT", "no")),
        (InferenceError("no", "E42"), ("INVALID_ARGUMENT", "no")),
        (ModelNotFound("m"), ("NOT_FOUND", "Model with name m does not exist.")),
        (ModelNotReady("m"), ("UNAVAILABLE", "Model with name m is not ready.")),
        (NotImplementedError("no"), ("UNIMPLEMENTED", "no")),
        (HTTPError(418, "no"), ("INTERNAL", "Internal server error")),
        (KeyError("x"), ("INTERNAL", "Internal server error")),
    ],
)
def test_errors_have_kserves_codes(error: Exception, answer: tuple[str, str]) -> None:
    assert grpc_answer_of(error) == answer
