"""JSON patches (RFC 6902) and merge patches (RFC 7386). Pure: the original stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import orjson

from kserve_local.errors import ApiError, BadRequest, Invalid

Json = Any
# As the API server: maxJSONPatchOperations and its json-patch library's limit on copies.
MAX_OPERATIONS = 10_000
MAX_COPIED_BYTES = 3 * 1024 * 1024


def merge_patch(original: Json, patch: Json) -> Json:
    """Return `original` with `patch` merged in; null removes a member."""
    if not isinstance(patch, dict):
        return patch
    result = dict(original) if isinstance(original, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(original: Json, operations: Json) -> Json:
    """Return `original` after all operations.

    Raises:
        BadRequest: The patch is malformed.
        Invalid: A path is not there, or a `test` fails; in the API server's words.
    """
    if not isinstance(operations, list):
        raise BadRequest("a JSON patch is a list of operations")
    if len(operations) > MAX_OPERATIONS:
        raise _too_large(
            f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, "
            f"got {len(operations)}"
        )
    result = copy.deepcopy(original)
    copied = 0
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise BadRequest("every operation of a JSON patch needs `op` and `path`")
        if operation.get("op") == "copy" and isinstance(operation.get("from"), str):
            # Each copy can double the document: a short patch would take all memory.
            copied += len(orjson.dumps(_get(result, operation["from"])))
            if copied > MAX_COPIED_BYTES:
                raise _too_large(
                    f"Unable to complete the copy, the accumulated size increase of copy is "
                    f"{copied}, exceeding the limit {MAX_COPIED_BYTES}"
                )
        result = _apply(result, operation)
    return result


def _too_large(text: str) -> ApiError:
    return ApiError(text, code=413, reason="RequestEntityTooLarge")


def _apply(document: Json, operation: dict[str, Any]) -> Json:
    kind, path = operation.get("op"), operation["path"]
    if kind in ("add", "replace", "test") and "value" not in operation:
        raise BadRequest(f'JSON patch operation "{kind}" at "{path}" needs a value')
    if kind in ("move", "copy") and not isinstance(operation.get("from"), str):
        raise BadRequest(f'JSON patch operation "{kind}" at "{path}" needs `from`')
    if kind == "add":
        return _add(document, path, copy.deepcopy(operation["value"]))
    if kind == "remove":
        return _remove(document, path)
    if kind == "replace":
        _get(document, path)
        if not _steps(path):
            return copy.deepcopy(operation["value"])
        return _set(document, path, copy.deepcopy(operation["value"]))
    if kind == "test":
        if _get(document, path) != operation["value"]:
            raise Invalid(f"the server rejected our request: testing value {path} failed")
        return document
    if kind == "move":
        value = _get(document, operation["from"])
        return _add(_remove(document, operation["from"]), path, value)
    if kind == "copy":
        return _add(document, path, copy.deepcopy(_get(document, operation["from"])))
    raise BadRequest(f'JSON patch operation "{kind}" is unknown')


def _steps(path: str) -> list[str]:
    if path and not path.startswith("/"):
        raise BadRequest(f'JSON patch path "{path}" must start with /')
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]


def _missing(path: str) -> Invalid:
    return Invalid(f"the server rejected our request: JSON patch path {path} does not exist")


def _index(items: list[Any], step: str, path: str, *, end: int) -> int:
    if (
        not (step.isascii() and step.isdigit())
        or len(step) > 9
        or (step != "0" and step.startswith("0"))
        or int(step) >= end
    ):
        raise _missing(path)
    return int(step)


def _get(document: Json, path: str) -> Json:
    value = document
    for step in _steps(path):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list):
            value = value[_index(value, step, path, end=len(value))]
        else:
            raise _missing(path)
    return value


def _parent(document: Json, path: str) -> tuple[Json, str]:
    *before, last = _steps(path)
    parent = document
    for step in before:
        if isinstance(parent, dict) and step in parent:
            parent = parent[step]
        elif isinstance(parent, list):
            parent = parent[_index(parent, step, path, end=len(parent))]
        else:
            raise _missing(path)
    return parent, last


def _add(document: Json, path: str, value: Json) -> Json:
    if not _steps(path):
        return value
    parent, last = _parent(document, path)
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list):
        at = len(parent) if last == "-" else _index(parent, last, path, end=len(parent) + 1)
        parent.insert(at, value)
    else:
        raise _missing(path)
    return document


def _set(document: Json, path: str, value: Json) -> Json:
    parent, last = _parent(document, path)
    if isinstance(parent, list):
        parent[_index(parent, last, path, end=len(parent))] = value
    else:
        parent[last] = value
    return document


def _remove(document: Json, path: str) -> Json:
    if not _steps(path):
        raise BadRequest("a JSON patch cannot remove the whole object")
    _get(document, path)
    parent, last = _parent(document, path)
    if isinstance(parent, list):
        del parent[_index(parent, last, path, end=len(parent))]
    else:
        del parent[last]
    return document
