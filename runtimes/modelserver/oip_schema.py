"""The schema of a V2 JSON request: what is a 422, and with which words.

The reference validates with pydantic against "InferenceRequest or bytes"; this is the same check by
hand, with pydantic's error types and its lax conversions (`2.0`, `"2"` and `true` are shape
elements), at a tenth of the cost. Texts of 422 bodies are close to, not equal to, the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelserver.model import InferInput, InferRequest, RequestedOutput

_SCALARS = (str, int, float, bool)
_MISSING: Any = object()

Detail = dict[str, Any]
Location = tuple[str | int, ...]


class SchemaError(Exception):
    """The body is not an inference request; `detail` is the list of a 422 answer."""

    def __init__(self, detail: list[Detail]) -> None:
        super().__init__("invalid inference request")
        self.detail = detail


def missing_body() -> SchemaError:
    """Return the error for an empty body (or the JSON value null)."""
    return SchemaError(
        [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]
    )


def invalid_json(message: str, offset: int) -> SchemaError:
    """Return the error for a body that is not JSON, `offset` characters in."""
    return SchemaError(
        [
            {
                "type": "json_invalid",
                "loc": ["body", offset],
                "msg": "JSON decode error",
                "input": {},
                "ctx": {"error": message},
            }
        ]
    )


def parse(document: Any, model_name: str, headers: Mapping[str, str]) -> InferRequest:
    """Return the request that a JSON value describes; datatypes as written, `oip` upper-cases them.

    Raises:
        SchemaError: It describes none.
    """
    if type(document) is not dict:
        raise SchemaError([_error("model_attributes_type", (), document), _not_bytes(document)])
    get = document.get
    errors: list[Detail] = []
    inputs: list[InferInput] = []
    raw_inputs = get("inputs", _MISSING)
    if type(raw_inputs) is list:
        for index, item in enumerate(raw_inputs):
            parsed = _input(item, index, errors)
            if parsed is not None:
                inputs.append(parsed)
    elif raw_inputs is _MISSING:
        errors.append(_error("missing", ("inputs",), document))
    else:
        errors.append(_error("list_type", ("inputs",), raw_inputs))
    request_id = get("id")
    if request_id is not None and type(request_id) is not str:
        errors.append(_error("string_type", ("id",), request_id))
    parameters = get("parameters")
    if parameters is not None:
        _check_parameters(parameters, ("parameters",), errors)
    raw_outputs = get("outputs")
    outputs: list[RequestedOutput] | None = None
    if raw_outputs is not None:
        outputs = _outputs(raw_outputs, errors)
    if errors:
        raise SchemaError([*errors, _not_bytes(document)])
    return InferRequest(model_name, inputs, request_id, parameters, outputs, headers)


def _input(item: Any, index: int, errors: list[Detail]) -> InferInput | None:
    if type(item) is not dict:
        errors.append(_error("model_attributes_type", ("inputs", index), item))
        return None
    get = item.get
    name = get("name", _MISSING)
    shape = get("shape", _MISSING)
    datatype = get("datatype", _MISSING)
    data = get("data", _MISSING)
    parameters = get("parameters")
    before = len(errors)
    at = ("inputs", index)
    if type(name) is not str:
        errors.append(_absent_or("string_type", (*at, "name"), name, item))
    if type(shape) is list:
        for size in shape:
            if type(size) is not int:
                shape = _shape(shape, (*at, "shape"), errors)
                break
    else:
        errors.append(_absent_or("list_type", (*at, "shape"), shape, item))
    if type(datatype) is not str:
        errors.append(_absent_or("string_type", (*at, "datatype"), datatype, item))
    if parameters is not None:
        _check_parameters(parameters, (*at, "parameters"), errors)
    if type(data) is not list:
        errors.append(_absent_or("list_type", (*at, "data"), data, item))
    if len(errors) != before:
        return None
    return InferInput(name, shape, datatype, data, parameters)


def _shape(shape: list[Any], at: Location, errors: list[Detail]) -> list[int]:
    sizes: list[int] = []
    for index, size in enumerate(shape):
        kind = None
        if isinstance(size, bool | int):
            sizes.append(int(size))
        elif isinstance(size, float):
            if size.is_integer():
                sizes.append(int(size))
            else:
                kind = "int_from_float"
        elif isinstance(size, str):
            try:
                sizes.append(int(size))
            except ValueError:
                kind = "int_parsing"
        else:
            kind = "int_type"
        if kind:
            errors.append(_error(kind, (*at, index), size))
    return sizes


def _outputs(raw: Any, errors: list[Detail]) -> list[RequestedOutput]:
    outputs: list[RequestedOutput] = []
    if type(raw) is not list:
        errors.append(_error("list_type", ("outputs",), raw))
        return outputs
    for index, item in enumerate(raw):
        if type(item) is not dict:
            errors.append(_error("model_attributes_type", ("outputs", index), item))
            continue
        name = item.get("name", _MISSING)
        if type(name) is not str:
            errors.append(_absent_or("string_type", ("outputs", index, "name"), name, item))
        parameters = item.get("parameters")
        if parameters is not None:
            _check_parameters(parameters, ("outputs", index, "parameters"), errors)
        outputs.append(RequestedOutput(name, parameters))
    return outputs


def _check_parameters(parameters: Any, at: Location, errors: list[Detail]) -> None:
    if type(parameters) is not dict:
        errors.append(_error("dict_type", at, parameters))
        return
    errors.extend(
        _error(kind, (*at, name, kind.removesuffix("_type")), value)
        for name, value in parameters.items()
        if not isinstance(value, _SCALARS)
        for kind in ("string_type", "bool_type", "int_type", "float_type")
    )


def _absent_or(kind: str, at: Location, value: Any, parent: Any) -> Detail:
    if value is _MISSING:
        return _error("missing", at, parent)
    return _error(kind, at, value)


_MESSAGES = {
    "missing": "Field required",
    "list_type": "Input should be a valid list",
    "dict_type": "Input should be a valid dictionary",
    "string_type": "Input should be a valid string",
    "bool_type": "Input should be a valid boolean",
    "int_type": "Input should be a valid integer",
    "float_type": "Input should be a valid number",
    "int_from_float": "Input should be a valid integer, got a number with a fractional part",
    "int_parsing": "Input should be a valid integer, unable to parse string as an integer",
    "model_attributes_type": (
        "Input should be a valid dictionary or object to extract fields from"
    ),
}


def _error(kind: str, at: Location, value: Any) -> Detail:
    return {
        "type": kind,
        "loc": ["body", "InferenceRequest", *at],
        "msg": _MESSAGES[kind],
        "input": value,
    }


def _not_bytes(document: Any) -> Detail:
    return {
        "type": "bytes_type",
        "loc": ["body", "bytes"],
        "msg": "Input should be a valid bytes",
        "input": document,
    }
