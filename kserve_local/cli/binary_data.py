"""The Open Inference Protocol's binary tensor data, out of a JSON request and back. Pure.

A binary body is the JSON head, whose length a header gives, then the raw little-endian tensors in
order. Plain `struct`: the command line imports no numpy. Source: the protocol's extension "Binary
tensor data".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from kserve_local.errors import UsageError

LENGTH = "Inference-Header-Content-Length"
_CODES = {
    "BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "UINT8": "B",
    "UINT16": "H", "UINT32": "I", "UINT64": "Q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


def packed(body: bytes) -> tuple[bytes, int]:
    """Return a V2 request with its tensors in binary, and the length of its JSON head.

    The answer is asked for in binary, too.

    Raises:
        UsageError: A tensor's values are not of its datatype.
    """
    request: dict[str, Any] = json.loads(body)
    inputs, tensors = [], []
    for tensor in request["inputs"]:
        raw = _raw(tensor)
        tensors.append(raw)
        parameters = {**(tensor.get("parameters") or {}), "binary_data_size": len(raw)}
        rest = {key: value for key, value in tensor.items() if key != "data"}
        inputs.append({**rest, "parameters": parameters})
    parameters = {**(request.get("parameters") or {}), "binary_data_output": True}
    head = json.dumps({**request, "inputs": inputs, "parameters": parameters}).encode()
    return head + b"".join(tensors), len(head)


def unpacked(body: bytes, length: int) -> dict[str, Any]:
    """Return an answer as it would have come in JSON; `length` is that of its head."""
    answer: dict[str, Any] = json.loads(body[:length])
    at = length
    for tensor in answer.get("outputs") or ():
        parameters = tensor.get("parameters") or {}
        size = parameters.pop("binary_data_size", None)
        if size is None:
            continue
        if not parameters:
            tensor.pop("parameters", None)
        tensor["data"] = _values(tensor["datatype"], body[at : at + size])
        at += size
    return answer


def _raw(tensor: dict[str, Any]) -> bytes:
    datatype, values = str(tensor["datatype"]).upper(), list(_flat(tensor.get("data")))
    try:
        if datatype == "BYTES":
            items = [str(value).encode() for value in values]
            return b"".join(struct.pack("<I", len(item)) + item for item in items)
        return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)
    except KeyError as error:
        raise UsageError(f'unknown datatype "{datatype}" of "{tensor.get("name")}"') from error
    except struct.error as error:
        raise UsageError(
            f'the data of "{tensor.get("name")}" is not {datatype}: {error}'
        ) from error


def _flat(data: Any) -> Iterator[Any]:
    if isinstance(data, list):
        for item in data:
            yield from _flat(item)
    else:
        yield data


def _values(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        code = _CODES[datatype]
        return list(struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw))
    found, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + size].decode(errors="replace"))
        at += 4 + size
    return found
