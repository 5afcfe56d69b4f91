"""V2 (Open Inference Protocol) over REST: bodies to `InferRequest`, answers to bytes.

Reads JSON requests (parsed as Python's json does, which accepts more than RFC 8259) and binary
tensor requests; writes JSON answers and binary tensor answers. Source: Open Inference Protocol,
its binary data extension, and KServe 0.20's behaviour where they are silent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from modelserver import tensors
from modelserver.errors import HTTPError, InvalidInput, UnrecognizedRequest
from modelserver.model import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from modelserver.oip_schema import SchemaError, invalid_json, missing_body, parse

LENGTH_HEADER = "inference-header-content-length"

# An answer: body, and the length of its JSON part when binary tensors follow (else None).
Encoded = tuple[bytes, int | None]

_NDARRAY = np.ndarray
_NUMERIC = {dtype: name for name, dtype in tensors.DTYPES.items() if name not in ("FP16", "BYTES")}
_PLAIN_TYPES = tensors.DTYPES.keys() - {"FP16"}


def is_json(content_type: str | None) -> bool:
    """Return whether a V2 body of this content type is JSON; anything else is a binary request."""
    if content_type == "application/json":
        return True
    if not content_type:
        return False
    kind = content_type.split(";", 1)[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def decode_json(body: bytes, model_name: str, headers: Mapping[str, str]) -> InferRequest | None:
    """Return the request in a JSON body; None for a JSON string, which counts as bytes.

    Raises:
        SchemaError: 422.
        HTTPError: The body is not text, or too deep to parse (400).
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _python_json(body)
    if type(document) is dict:
        request = _plain(document, model_name, headers)
        if request is not None:
            return request
        request = parse(document, model_name, headers)
        if _has_huge_number(request):
            request = parse(_python_json(body), model_name, headers)
        return request
    if document is None:
        raise missing_body()
    if type(document) is str:
        return None
    return parse(document, model_name, headers)


def _plain(
    document: dict[str, Any], model_name: str, headers: Mapping[str, str]
) -> InferRequest | None:
    """Return the request if it is of the plainest kind, most are; None leaves it to `parse`.

    Plain: no parameters, no outputs, known datatypes in upper case, every value of the right type.
    """
    get = document.get
    items = get("inputs")
    request_id = get("id")
    if (
        type(items) is not list
        or (request_id is not None and type(request_id) is not str)
        or get("parameters") is not None
        or get("outputs") is not None
    ):
        return None
    inputs: list[InferInput] = []
    for item in items:
        if type(item) is not dict or len(item) != 4:
            return None
        try:
            name = item["name"]
            shape = item["shape"]
            datatype = item["datatype"]
            data = item["data"]
        except KeyError:
            return None
        if (
            type(name) is not str
            or type(shape) is not list
            or type(data) is not list
            or type(datatype) is not str
            or datatype not in _PLAIN_TYPES
        ):
            return None
        for size in shape:
            if type(size) is not int:
                return None
        inputs.append(InferInput(name, shape, datatype, data))
    return InferRequest(model_name, inputs, request_id, None, None, headers)


def _python_json(body: bytes) -> Any:
    """Parse what orjson refused: NaN, byte order marks, UTF-16, lone surrogates are accepted."""
    if not body:
        raise missing_body()
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise invalid_json(error.msg, error.pos) from error
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, "There was an error parsing the body") from error


def _has_huge_number(request: InferRequest) -> bool:
    """Return whether a parameter may be an integer beyond 64 bits, which orjson makes a float."""
    return any(
        type(value) is float and not -9e18 < value < 9e18
        for parameters in (request.parameters, *(t.parameters for t in request.inputs))
        if parameters
        for value in parameters.values()
    )


def check_json_inputs(request: InferRequest) -> None:
    """Upper-case datatypes, and refuse what a JSON request must not carry.

    Raises:
        InvalidInput: FP16 elements.
    """
    for tensor in request.inputs:
        # Before upper-casing: upstream's check is case sensitive, its types are not.
        if tensor.datatype == "FP16" and tensor.data:
            raise InvalidInput(
                "Sending FP16 data via JSON is not supported. "
                f"Please use the binary data format for input {tensor.name}"
            )
        tensor.datatype = tensor.datatype.upper()


def decode_binary(body: bytes, model_name: str, headers: Mapping[str, str]) -> InferRequest:
    """Return the request in a body of JSON followed by raw tensors.

    The JSON part is not checked against the schema: what is missing is a KeyError, as in the
    reference.

    Raises:
        InvalidInput: No length header, an input without data, FP16 elements as JSON.
        UnrecognizedRequest: The JSON part is not JSON.
    """
    length = headers.get(LENGTH_HEADER)
    if length is None:
        raise InvalidInput(f"received byte inputs, but the'{LENGTH_HEADER}' header is missing.")
    end = int(length)
    try:
        document = orjson.loads(body[:end])
    except orjson.JSONDecodeError as error:
        raise UnrecognizedRequest(str(error)) from error
    inputs: list[InferInput] = []
    rest = memoryview(body)[end:]
    start = 0
    for item in document["inputs"]:
        parameters = item.get("parameters")
        data = item.get("data")
        name = item["name"]
        shape = item["shape"]
        datatype = item["datatype"].upper()
        raw: memoryview | None = None
        if data is not None:
            if datatype == "FP16" and data:
                raise InvalidInput(
                    "Receiving FP16 data via JSON is not supported. "
                    f"Please use the binary data format for input {name}"
                )
            tensors.dtype_of(datatype)
        elif parameters and "binary_data_size" in parameters:
            parameters = dict(parameters)
            size = parameters.pop("binary_data_size")
            if size is None:
                raise InvalidInput(
                    f"'binary_data_size' is not specified for input '{name}' "
                    f"for model '{model_name}'"
                )
            tensors.dtype_of(datatype)
            raw = rest[start : start + size]
            start += size
        else:
            raise InvalidInput(
                f"'data' field is missing for input '{name}' for model '{model_name}'"
            )
        inputs.append(InferInput(name, shape, datatype, data, parameters, raw))
    wanted = document.get("outputs")
    outputs = (
        None
        if wanted is None
        else [RequestedOutput(item["name"], item.get("parameters")) for item in wanted]
    )
    return InferRequest(
        model_name, inputs, document.get("id"), document.get("parameters"), outputs, headers
    )


def encode(response: InferResponse | dict[str, Any], request: InferRequest) -> Encoded:
    """Return the answer's body, in JSON or with binary tensors as the request asks.

    Raises:
        InvalidInput: A requested output does not exist, an output has no data, FP16 as JSON.
        TypeError: Something in the answer is not JSON.
    """
    if isinstance(response, dict):
        return _encode_dict(response), None
    outputs = response.outputs
    if request.outputs:
        outputs = select_outputs(response, request.outputs)
    if (request.outputs or request.parameters) and request.wants_binary:
        binary = _binary_flags(request, len(outputs))
        if any(binary):
            return _encode_binary(response, request, outputs, binary)
    name = response.model_name
    body = {
        "model_name": name,
        "model_version": response.model_version,
        "id": response.id or request.id or new_id(),
        "parameters": response.parameters,
        "outputs": [
            {
                "name": output.name,
                "shape": output.shape,
                "datatype": output.datatype,
                "parameters": _json_parameters(output.parameters) if output.parameters else None,
                "data": _json_data(output, name),
            }
            for output in outputs
        ],
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), None


def encode_rows(model_name: str, output_name: str, y: Any, request: InferRequest) -> bytes | None:
    """Return what `encode` would for one output `y`, by a shorter way; None where it has none.

    It has one for a small numeric array, if the request asks for nothing in particular.
    """
    if request.parameters or request.outputs or not isinstance(y, _NDARRAY) or y.size > 64:
        return None
    datatype = _NUMERIC.get(y.dtype)
    if datatype is None:
        return None
    body = {
        "model_name": model_name,
        "model_version": None,
        "id": request.id or new_id(),
        "parameters": None,
        "outputs": [
            {
                "name": output_name,
                "shape": y.shape,
                "datatype": datatype,
                "parameters": None,
                "data": y.tolist() if y.ndim == 1 else y.ravel().tolist(),
            }
        ],
    }
    return orjson.dumps(body)


def select_outputs(response: InferResponse, wanted: list[RequestedOutput]) -> list[InferOutput]:
    """Return the requested outputs, in the order they were asked for.

    Raises:
        InvalidInput: One of them does not exist.
    """
    by_name = {output.name: output for output in response.outputs}
    selected: list[InferOutput] = []
    for request in wanted:
        output = by_name.get(request.name)
        if output is None:
            raise InvalidInput(
                f"Unexpected inference output '{request.name}' for model '{response.model_name}'"
            )
        selected.append(output)
    return selected


def _binary_flags(request: InferRequest, count: int) -> list[bool]:
    if request.outputs:
        # A requested output that does not say is JSON, even with binary_data_output.
        return [bool(output.binary_data) for output in request.outputs]
    return [request.binary_by_default] * count


def _json_parameters(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the parameters of an output sent as JSON: `binary_data_size` is not one of them."""
    if parameters and "binary_data_size" in parameters:
        parameters = {k: v for k, v in parameters.items() if k != "binary_data_size"}
    return parameters or None


def missing_data(output: InferOutput, model_name: str) -> InvalidInput:
    """Return the error of an output that is sent but holds nothing."""
    return InvalidInput(
        f"'data' field is missing for output '{output.name}' for model '{model_name}'"
    )


def _json_data(output: InferOutput, model_name: str) -> Any:
    if output.data is None:
        raise missing_data(output, model_name)
    if output.datatype == "FP16" and len(output.data):
        raise InvalidInput(
            "Sending FP16 data via JSON is not supported. "
            f"Please use the binary data format for output {output.name}"
        )
    return tensors.to_json(output.data, output.datatype)


def _encode_binary(
    response: InferResponse, request: InferRequest, outputs: list[InferOutput], binary: list[bool]
) -> Encoded:
    written: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for output, as_binary in zip(outputs, binary, strict=True):
        item: dict[str, Any] = {
            "name": output.name,
            "shape": output.shape,
            "datatype": output.datatype,
        }
        parameters = dict(_json_parameters(output.parameters) or {})
        if as_binary:
            if output.data is None:
                raise missing_data(output, response.model_name)
            raw.append(tensors.to_raw(output.data, output.datatype))
            parameters["binary_data_size"] = len(raw[-1])
        if parameters:
            item["parameters"] = parameters
        if not as_binary:
            item["data"] = _json_data(output, response.model_name)
        written.append(item)
    body: dict[str, Any] = {
        "id": response.id or request.id or new_id(),
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": written,
    }
    if response.parameters:
        body["parameters"] = response.parameters
    head = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join((head, *raw)), len(head)


def _encode_dict(response: dict[str, Any]) -> bytes:
    body = {
        "model_name": response["model_name"],
        "model_version": response.get("model_version"),
        "id": response["id"],
        "parameters": response.get("parameters"),
        "outputs": [
            {
                "name": output["name"],
                "shape": output["shape"],
                "datatype": output["datatype"],
                "parameters": output.get("parameters"),
                "data": output["data"],
            }
            for output in response["outputs"]
        ],
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


_random_hex = ""
_random_at = 0


def new_id() -> str:
    """Return a new random UUID (version 4) as text; randomness is read 256 ids at a time."""
    global _random_hex, _random_at
    if _random_at >= len(_random_hex):
        _random_hex = os.urandom(16 * 256).hex()
        _random_at = 0
    at = _random_at
    _random_at = at + 32
    text = _random_hex[at : at + 32]
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


def _forget_ids() -> None:
    """Replicas forked from one parent must not hand out the same ids."""
    global _random_hex, _random_at
    _random_hex, _random_at = "", 0


os.register_at_fork(after_in_child=_forget_ids)

__all__ = [
    "LENGTH_HEADER",
    "Encoded",
    "SchemaError",
    "check_json_inputs",
    "decode_binary",
    "decode_json",
    "encode",
    "encode_rows",
    "is_json",
    "missing_data",
    "new_id",
    "select_outputs",
]
