"""How a request of KServe's protocols becomes what a TorchServe handler gets, and back.

`service_envelope` decides, as in TorchServe: `kserve` hands over the V1 `instances`, `kservev2` a
list of the V2 inputs, none the whole body as one row `{"body": ...}`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from modelserver import tensors
from modelserver.errors import InferenceError, InvalidInput, LoadError
from modelserver.model import InferRequest

ENVELOPES = ("", "kserve", "kservev2")


def envelope_of(text: str) -> str:
    """Return `kserve`, `kservev2` or empty.

    Raises:
        LoadError: Another of TorchServe's, which KServe's protocols do not use.
    """
    name = text.strip().lower()
    if name not in ENVELOPES:
        raise LoadError(
            f"service_envelope {text} is not served here; kserve (V1), kservev2 (V2) and none are"
        )
    return name


def v1_rows(payload: Any, envelope: str, name: str) -> list[Any]:
    """Return what the handler gets for a V1 body.

    Raises:
        InvalidInput: The model store speaks V2, or the body has no `instances`.
    """
    if envelope == "kservev2":
        raise InvalidInput(
            f"model '{name}' is served with the envelope kservev2: call /v2/models/{name}/infer, "
            "or set protocolVersion: v1"
        )
    if not envelope:
        return [{"body": payload}]
    if isinstance(payload, (bytes, bytearray, memoryview)):
        try:
            payload = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the request body is not JSON: {error}") from error
    instances = payload.get("instances") if isinstance(payload, dict) else None
    if not isinstance(instances, list):
        raise InvalidInput('Expected "instances" to be a list')
    return instances


def v1_answer(result: Any, envelope: str, explain: bool) -> Any:
    """Return the V1 answer that carries what the handler returned."""
    if envelope:
        return {"explanations" if explain else "predictions": plain(result)}
    return plain(only(result))


def v2_rows(request: InferRequest, envelope: str) -> list[Any]:
    """Return what the handler gets for a V2 request.

    With `kservev2` one row an input: its JSON with `data` nested as `shape` says, BYTES as their
    first element.

    Raises:
        InvalidInput: The model store speaks V1, or data and shape do not fit.
    """
    if envelope == "kserve":
        raise InvalidInput(
            f"model '{request.model_name}' is served with the envelope kserve: call "
            f"/v1/models/{request.model_name}:predict, or set protocolVersion: v2"
        )
    rows = []
    for tensor in request.inputs:
        row: dict[str, Any] = {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "datatype": tensor.datatype,
            "data": _data(tensor, nested=bool(envelope)),
        }
        if tensor.parameters:
            row["parameters"] = tensor.parameters
        rows.append(row)
    if envelope:
        return rows
    body: dict[str, Any] = {"inputs": rows}
    if request.id:
        body["id"] = request.id
    if request.parameters:
        body["parameters"] = request.parameters
    return [{"body": body}]


def _data(tensor: Any, *, nested: bool) -> Any:
    try:
        if tensor.raw is not None:
            array = tensor.as_numpy()
        elif not nested:
            return tensor.data
        elif tensor.datatype == "BYTES":
            return tensor.data[0]
        else:
            # Of JSON numbers, not of the datatype: a handler sees 0.1 as the client wrote it.
            array = np.array(tensor.data).reshape(tensor.shape)
    except (ValueError, TypeError, IndexError, InferenceError) as error:
        raise InvalidInput(f"input '{tensor.name}': {error}") from error
    values: Any = array.tolist() if nested else array.ravel().tolist()
    if nested and tensor.datatype == "BYTES":
        return array.ravel().tolist()[0] if array.size else values
    return values


def v2_answer(
    result: Any, envelope: str, request: InferRequest, manifest: Mapping[str, Any], new_id: str
) -> dict[str, Any]:
    """Return the V2 answer that carries what the handler returned: one output an input, flat.

    Raises:
        InferenceError: The handler returned no list, more items than inputs, or (without an
            envelope) no V2 answer.
    """
    if not envelope:
        answer = plain(only(result))
        if isinstance(answer, dict) and isinstance(answer.get("outputs"), list):
            return {"model_name": request.model_name, "id": request.id or new_id, **answer}
        raise InferenceError(
            "the handler's answer is no V2 answer; set service_envelope=kservev2 in "
            "config.properties"
        )
    if not isinstance(result, (list, tuple)):
        raise InferenceError(f"the handler returned a {type(result).__name__}, not a list")
    names = [tensor.name for tensor in request.inputs]
    if len(result) > len(names):
        raise InferenceError(
            f"the handler returned {len(result)} items for {len(names)} inputs; with the envelope "
            "kservev2 each becomes the output of an input's name"
        )
    outputs = []
    for name, item in zip(names, result, strict=False):
        flat = np.array(plain(item)).ravel()
        datatype = "BYTES" if flat.dtype.kind in "OSU" else tensors.datatype_of(flat.dtype)
        outputs.append(
            {"name": name, "shape": list(flat.shape), "datatype": datatype, "data": flat.tolist()}
        )
    model = manifest["model"]
    return {
        "model_name": model.get("modelName") or request.model_name,
        "model_version": model.get("modelVersion"),
        "id": request.id or new_id,
        "outputs": outputs,
    }


def only(result: Any) -> Any:
    """Return the answer to the only request of the batch.

    Raises:
        InferenceError: The handler returned something else.
    """
    if not isinstance(result, (list, tuple)):
        raise InferenceError(f"the handler returned a {type(result).__name__}, not a list")
    if len(result) != 1:
        raise InferenceError(f"the handler returned {len(result)} answers to one request")
    return result[0]


def plain(value: Any) -> Any:
    """Return a handler's value as JSON values: tensors and arrays as lists, bytes as text."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [plain(v) for v in value]
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "replace")
    return value


__all__ = ["ENVELOPES", "envelope_of", "v1_answer", "v1_rows", "v2_answer", "v2_rows"]
