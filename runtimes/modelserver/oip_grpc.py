"""V2 (Open Inference Protocol) over gRPC: messages to `InferRequest`, answers to messages.

Tensors come typed (`contents`) or raw (`raw_input_contents`) and go back in the same form. They
become numpy arrays without a Python object per element where the wire has the bytes of the array:
always raw, and typed where numbers have a fixed width. Checks, their order and texts are KServe
0.20's; where its answer is an accident of the code (INTERNAL for bad input, requested outputs
ignored), the answer is that of REST.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelserver import tensors
from modelserver.errors import InvalidInput
from modelserver.model import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    Parameters,
    RequestedOutput,
)
from modelserver.oip import missing_data, new_id, select_outputs
from modelserver.oip_proto import MESSAGES

ModelInferRequest = MESSAGES["ModelInferRequest"]
ModelInferResponse = MESSAGES["ModelInferResponse"]
InferTensorContents = MESSAGES["InferTensorContents"]

# The contents field of each datatype that can travel typed, and the dtype its elements come in.
_CONTENTS: dict[str, tuple[str, np.dtype[Any]]] = {
    "BOOL": ("bool_contents", np.dtype("?")),
    "INT8": ("int_contents", np.dtype("i4")),
    "INT16": ("int_contents", np.dtype("i4")),
    "INT32": ("int_contents", np.dtype("i4")),
    "INT64": ("int64_contents", np.dtype("i8")),
    "UINT8": ("uint_contents", np.dtype("u4")),
    "UINT16": ("uint_contents", np.dtype("u4")),
    "UINT32": ("uint_contents", np.dtype("u4")),
    "UINT64": ("uint64_contents", np.dtype("u8")),
    "FP32": ("fp32_contents", np.dtype("<f4")),
    "FP64": ("fp64_contents", np.dtype("<f8")),
}
# Datatypes whose packed elements are the raw tensor, and the tag of the field that holds them.
_PACKED = {
    datatype: bytes([InferTensorContents.DESCRIPTOR.fields_by_name[field].number << 3 | 2])
    for datatype, (field, _) in _CONTENTS.items()
    if datatype in ("BOOL", "FP32", "FP64")
}
# Below this many elements protobuf's own way costs less than going through its bytes.
_FEW = 16


class Tensor(InferInput):
    """An input that came over gRPC: numbers are in `raw`, whichever way they came; BYTES elements
    are `bytes`, in `raw` or a list of them in `data`.
    """

    __slots__ = ()

    def as_numpy(self) -> tensors.Array:
        """Return the tensor in its declared shape and dtype; BYTES is an `object` array of `bytes`.

        Raises:
            InvalidInput: The elements do not fill the shape.
        """
        try:
            if self.raw is None:
                array: tensors.Array = np.array(self.data, dtype=np.object_)
            elif self.datatype == "BYTES":
                array = np.array(tensors.split_bytes(self.raw), dtype=np.object_)
            else:
                dtype = tensors.DTYPES[self.datatype]
                array = np.frombuffer(self.raw, dtype.newbyteorder("<")).astype(dtype, copy=False)
            return array.reshape(self.shape)
        except (ValueError, struct.error) as error:
            raise InvalidInput(f"input '{self.name}': {error}") from error


def decode(message: Any, headers: Mapping[str, str]) -> InferRequest:
    """Return the request in a `ModelInferRequest`.

    Args:
        headers: The call's metadata, names in lower case.

    Raises:
        InvalidInput: Raw and typed contents are mixed, a datatype is unknown, an integer does not
            fit its datatype.
    """
    contents = message.raw_input_contents
    if contents:
        _check_raw(message)
    inputs: list[InferInput] = []
    for index, item in enumerate(message.inputs):
        datatype = item.datatype
        if datatype not in tensors.DTYPES:
            raise InvalidInput("invalid content type")
        tensor = Tensor(item.name, list(item.shape), datatype)
        if contents:
            tensor.raw = contents[index]
        elif datatype == "BYTES":
            tensor.data = list(item.contents.bytes_contents)
        else:
            tensor.raw = _typed(item.contents, datatype, item.name)
        if item.parameters:
            plain = _plain(item.parameters)
            tensor.parameters = {k: v for k, v in plain.items() if v is not None}
        inputs.append(tensor)
    return InferRequest(
        message.model_name,
        inputs,
        message.id or None,
        _plain(message.parameters) if message.parameters else None,
        [RequestedOutput(o.name, _plain(o.parameters)) for o in message.outputs] or None,
        headers,
        model_version=message.model_version or None,
        raw=bool(contents),
    )


def _check_raw(message: Any) -> None:
    inputs, contents = message.inputs, message.raw_input_contents
    if len(inputs) != len(contents):
        raise InvalidInput(
            f"the number of inputs ({len(inputs)}) does not match the expected number of raw input "
            f"contents ({len(contents)}) for model '{message.model_name}'."
        )
    for item in inputs:
        if item.HasField("contents"):
            raise InvalidInput(
                "contents field must not be specified when using raw_input_contents for input "
                f"'{item.name}' for model '{message.model_name}'"
            )


def _typed(contents: Any, datatype: str, name: str) -> bytes | memoryview:
    """Return typed elements as a raw tensor; only the field of the datatype is read."""
    if datatype == "FP16":
        return b""
    field, wide = _CONTENTS[datatype]
    values = getattr(contents, field)
    count = len(values)
    if count > _FEW and datatype in _PACKED:
        size = count * wide.itemsize
        wire = contents.SerializeToString()
        # Tag and length in front, and nothing else: no other field was set.
        if len(wire) == len(_header(datatype, size)) + size:
            return memoryview(wire)[-size:]
    elements = np.fromiter(values, wide, count)
    dtype = tensors.DTYPES[datatype]
    if wide.itemsize != dtype.itemsize:
        narrow = elements.astype(dtype)
        if not np.array_equal(narrow, elements):
            raise InvalidInput(f"input '{name}': the values do not fit {datatype}")
        elements = narrow
    return elements.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def _header(datatype: str, size: int) -> bytes:
    """Return what stands before the packed elements: the field's tag and the length."""
    length = bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return _PACKED[datatype] + bytes(length)


def _plain(parameters: Mapping[str, Any]) -> Parameters:
    """Return parameters as plain values; None for one without a value."""
    plain: Parameters = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        plain[name] = getattr(parameter, choice) if choice else None
    return plain


def encode(response: InferResponse | dict[str, Any], request: InferRequest) -> bytes:
    """Return a serialized `ModelInferResponse`: raw tensors for a raw request and for FP16.

    Raises:
        InvalidInput: A requested output does not exist, an output has no data, a parameter is no
            string, integer or boolean.
        ValueError, TypeError, KeyError: The model's answer makes no sense.
    """
    if isinstance(response, dict):
        response = _of_dict(response)
    outputs = response.outputs
    if request.outputs:
        outputs = select_outputs(response, request.outputs)
    message = ModelInferResponse(
        model_name=response.model_name,
        model_version=response.model_version or "",
        id=response.id or request.id or new_id(),
    )
    if response.parameters:
        _set(message.parameters, response.parameters)
    raw = bool(request.raw) or any(o.datatype == "FP16" and _holds(o.data) for o in outputs)
    for output in outputs:
        if output.data is None:
            raise missing_data(output, response.model_name)
        item = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if output.parameters:
            _set(item.parameters, output.parameters)
        if raw:
            data = tensors.to_raw(output.data, output.datatype)
            message.raw_output_contents.append(data)
            item.parameters["binary_data_size"].int64_param = len(data)
        else:
            _fill(item, output.data, output.datatype)
    serialized: bytes = message.SerializeToString()
    return serialized


def _holds(data: Any) -> bool:
    return data is not None and len(np.atleast_1d(data)) > 0


def _of_dict(response: dict[str, Any]) -> InferResponse:
    """Return a model's plain answer; elements are in `data`, or in `contents` by field as KServe
    has it over gRPC.
    """
    outputs = []
    for output in response["outputs"]:
        data = output.get("data")
        if data is None:
            data = next(iter((output.get("contents") or {}).values()), None)
        outputs.append(
            InferOutput(
                output["name"], output["shape"], output["datatype"], data, output.get("parameters")
            )
        )
    return InferResponse(
        response["model_name"],
        outputs,
        response["id"],
        response.get("model_version"),
        response.get("parameters"),
    )


def _set(parameters: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, str):
            parameters[name].string_param = value
        elif isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        else:
            raise InvalidInput(f"to_grpc: invalid parameter value: {value}")


def _fill(item: Any, data: tensors.Array | Sequence[Any], datatype: str) -> None:
    """Write typed elements; without elements the message has no contents."""
    if datatype == "BYTES":
        flat = data.ravel().tolist() if isinstance(data, np.ndarray) else data
        if len(flat):
            item.contents.bytes_contents.extend(
                [x if isinstance(x, bytes) else str(x).encode() for x in flat]
            )
        return
    if datatype not in _CONTENTS:
        raise InvalidInput("to_grpc: invalid output datatype")
    array = np.asarray(data).astype(tensors.DTYPES[datatype], copy=False)
    if not array.size:
        return
    if array.size > _FEW and datatype in _PACKED:
        elements = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        item.contents.MergeFromString(_header(datatype, len(elements)) + elements)
    else:
        getattr(item.contents, _CONTENTS[datatype][0]).extend(array.ravel().tolist())
