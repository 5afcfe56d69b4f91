"""Open Inference Protocol over gRPC for callers that have JSON: a V2 body becomes a
`ModelInferRequest`, a `ModelInferResponse` a V2 body.

Written from the field numbers, so that no generated code and no version of protobuf is needed.
Source: ModelInfer of the Open Inference Protocol's service; protobuf's encoding.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kserve_local.errors import UsageError

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# datatype -> (field of InferTensorContents, its JSON name, how one element is written)
_CONTENTS: Mapping[str, tuple[int, str, str]] = {
    "BOOL": (1, "boolContents", "varint"),
    "INT8": (2, "intContents", "varint"),
    "INT16": (2, "intContents", "varint"),
    "INT32": (2, "intContents", "varint"),
    "INT64": (3, "int64Contents", "varint"),
    "UINT8": (4, "uintContents", "varint"),
    "UINT16": (4, "uintContents", "varint"),
    "UINT32": (4, "uintContents", "varint"),
    "UINT64": (5, "uint64Contents", "varint"),
    "FP32": (6, "fp32Contents", "<f"),
    "FP64": (7, "fp64Contents", "<d"),
    "BYTES": (8, "bytesContents", "bytes"),
}
# struct codes of raw contents
_RAW = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B",
    "UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode()) if value else b""


def _parameters(number: int, values: Mapping[str, Any]) -> bytes:
    out = b""
    for name, value in values.items():
        if isinstance(value, bool):
            chosen = _varint(1 << 3) + _varint(int(value))
        elif isinstance(value, int):
            chosen = _varint(2 << 3) + _varint(value)
        elif isinstance(value, str):
            chosen = _field(3, value.encode())
        else:
            raise UsageError(
                f'parameter "{name}" is {json.dumps(value)}; over gRPC a parameter is a bool, a '
                "whole number or a text"
            )
        out += _field(number, _field(1, name.encode()) + _field(2, chosen))
    return out


def _flat(data: Any) -> Iterator[Any]:
    for item in data if isinstance(data, list) else [data]:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def _contents(name: str, datatype: str, data: Any) -> bytes:
    number, _, how = _contents_of(name, datatype)
    items = list(_flat(data))
    try:
        if how == "varint":
            packed = b"".join(_varint(int(item)) for item in items)
        elif how == "bytes":
            return b"".join(_field(number, _as_bytes(item)) for item in items)
        else:
            packed = struct.pack(f"<{len(items)}{how[1]}", *(float(item) for item in items))
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise UsageError(f'input "{name}": data is no {datatype}: {error}') from error
    return _field(number, packed)


def _contents_of(name: str, datatype: str) -> tuple[int, str, str]:
    found = _CONTENTS.get(datatype)
    if found is None:
        raise UsageError(
            f'input "{name}": gRPC has no typed contents for datatype "{datatype}"',
            hint=f"those are: {', '.join(_CONTENTS)}",
        )
    return found


def _as_bytes(item: Any) -> bytes:
    return item.encode() if isinstance(item, str) else bytes(item)


def read_body(body: bytes) -> Mapping[str, Any]:
    """Return a V2 request as it was parsed.

    Raises:
        UsageError: It is none.
    """
    try:
        found = json.loads(body)
    except ValueError as error:
        raise UsageError(f"the request data is not JSON: {error}") from error
    inputs = found.get("inputs") if isinstance(found, dict) else None
    needed = {"name", "shape", "datatype", "data"}
    if not isinstance(inputs, list) or not all(
        isinstance(i, dict) and needed <= set(i) for i in inputs
    ):
        raise UsageError(
            "gRPC takes V2 requests: inputs with name, shape, datatype and data",
            hint='e.g. {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": '
            "[...]}]}",
        )
    return dict(found)


def request(model: str, body: Mapping[str, Any]) -> bytes:
    """Return the `ModelInferRequest` of a V2 request.

    Raises:
        UsageError: A datatype or a value that gRPC cannot carry.
    """
    out = _text(1, model) + _text(3, str(body.get("id") or ""))
    out += _parameters(4, body.get("parameters") or {})
    for tensor in body["inputs"]:
        name, datatype = str(tensor["name"]), str(tensor["datatype"])
        shape = b"".join(_varint(int(size)) for size in tensor["shape"])
        content = _text(1, name) + _text(2, datatype) + _field(3, shape)
        content += _parameters(4, tensor.get("parameters") or {})
        content += _field(5, _contents(name, datatype, tensor["data"]))
        out += _field(5, content)
    for wanted in body.get("outputs") or ():
        parameters = _parameters(2, wanted.get("parameters") or {})
        out += _field(6, _text(1, str(wanted["name"])) + parameters)
    return out


def as_grpcurl(model: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a V2 request in protobuf's JSON form, which grpcurl takes."""
    import base64

    tensors = []
    for tensor in body["inputs"]:
        name, datatype = str(tensor["name"]), str(tensor["datatype"])
        _, field, how = _contents_of(name, datatype)
        items = list(_flat(tensor["data"]))
        if how == "bytes":
            items = [base64.b64encode(_as_bytes(item)).decode() for item in items]
        elif datatype in ("BOOL",):
            items = [bool(item) for item in items]
        tensors.append(
            {
                "name": name,
                "datatype": datatype,
                "shape": tensor["shape"],
                "contents": {field: items},
            }
        )
    found: dict[str, Any] = {"modelName": model, "inputs": tensors}
    if body.get("id"):
        found["id"] = str(body["id"])
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield (number, wire type, value) of each field of a message."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: Any
        if kind == _VARINT:
            value, at = _read_varint(data, at)
        elif kind == _BYTES:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"wire type {kind}")
        yield number, kind, value


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _numbers(kind: int, value: Any, read: Callable[[int], Any]) -> list[Any]:
    """Return the elements of a repeated number, packed or not."""
    if kind == _VARINT:
        return [read(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _read_varint(value, at)
        found.append(read(number))
    return found


def _read_contents(data: bytes) -> list[Any]:
    found: list[Any] = []
    for number, kind, value in _fields(data):
        if number == 8:
            found.append(value.decode(errors="replace"))
        elif number in (6, 7):
            code = "f" if number == 6 else "d"
            found += [item for (item,) in struct.iter_unpack(f"<{code}", value)]
        elif number == 1:
            found += _numbers(kind, value, bool)
        else:
            found += _numbers(kind, value, _signed if number in (2, 3) else int)
    return found


def _read_parameters(data: bytes) -> tuple[str, Any]:
    name, chosen = "", None
    for number, _, value in _fields(data):
        if number == 1:
            name = value.decode()
        else:
            for which, _, content in _fields(value):
                chosen = (
                    bool(content)
                    if which == 1
                    else _signed(content)
                    if which == 2
                    else content.decode()
                )
    return name, chosen


def read_raw(datatype: str, data: bytes) -> list[Any]:
    """Return the values of a tensor's raw bytes; of an unknown datatype none."""
    if datatype == "BYTES":
        found, at = [], 0
        while at + 4 <= len(data):
            (size,) = struct.unpack_from("<I", data, at)
            found.append(data[at + 4 : at + 4 + size].decode(errors="replace"))
            at += 4 + size
        return found
    code = _RAW.get(datatype)
    return [item for (item,) in struct.iter_unpack(f"<{code}", data)] if code else []


def response(data: bytes) -> dict[str, Any]:
    """Return a `ModelInferResponse` as a V2 body.

    Raises:
        ValueError, IndexError, struct.error: It is none.
    """
    found: dict[str, Any] = {}
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    parameters: dict[str, Any] = {}
    for number, _, value in _fields(data):
        if number in (1, 2, 3):
            found[("model_name", "model_version", "id")[number - 1]] = value.decode()
        elif number == 4:
            name, chosen = _read_parameters(value)
            parameters[name] = chosen
        elif number == 5:
            outputs.append(_read_output(value))
        elif number == 6:
            raw.append(value)
    for output, content in zip(outputs, raw, strict=False):
        output["data"] = read_raw(output["datatype"], content)
    if parameters:
        found["parameters"] = parameters
    return {**found, "outputs": outputs}


def _read_output(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "", "datatype": "", "shape": []}
    parameters: dict[str, Any] = {}
    items: Sequence[Any] = []
    for number, kind, value in _fields(data):
        if number in (1, 2):
            found[("name", "datatype")[number - 1]] = value.decode()
        elif number == 3:
            found["shape"] += _numbers(kind, value, _signed)
        elif number == 4:
            name, chosen = _read_parameters(value)
            parameters[name] = chosen
        elif number == 5:
            items = _read_contents(value)
    # How a tensor came is of no interest once it is JSON.
    parameters.pop("binary_data_size", None)
    return {**found, **({"parameters": parameters} if parameters else {}), "data": list(items)}
