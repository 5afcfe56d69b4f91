"""Request bodies: bytes -> object, with the repeated keys that JSON parsers hide. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import yaml

from kserve_local.errors import BadRequest, UnsupportedMediaType

JSON = "application/json"
YAML = "application/yaml"
_YAML_TYPES = frozenset({YAML, "application/x-yaml", "text/yaml", "application/apply-patch+yaml"})


def media_type(header: str) -> str:
    """Return the media type of a Content-Type header; a missing one means JSON."""
    return header.partition(";")[0].strip().lower() or JSON


def decode(body: bytes, type_: str) -> tuple[Any, list[str]]:
    """Return the value and the dotted paths of repeated keys (the last value counts).

    Args:
        type_: Media type; JSON unless a YAML type.

    Raises:
        BadRequest: It cannot be read.
        UnsupportedMediaType: Another format, such as Kubernetes' protobuf.
    """
    if type_ in _YAML_TYPES:
        try:
            value = yaml.load(body, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise BadRequest(f"error parsing YAML: {error}") from error
        return value, []
    if type_ != JSON and not type_.endswith("+json"):
        raise UnsupportedMediaType(
            "the body of the request was in an unknown format - accepted media types include: "
            "application/json, application/yaml"
        )
    try:
        # orjson says where; only json tells of repeated keys.
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"couldn't read the body as JSON: {error}") from error
    if not isinstance(value, dict):
        return value, []
    return _with_duplicates(body)


def _with_duplicates(body: bytes) -> tuple[Any, list[str]]:
    repeated: dict[int, list[str]] = {}

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            counts = Counter(key for key, _ in items)
            repeated[id(result)] = [key for key, count in counts.items() if count > 1]
        return result

    value = json.loads(body, object_pairs_hook=pairs)
    return value, list(_find(value, "", repeated)) if repeated else []


def _find(value: Any, path: str, repeated: dict[int, list[str]]) -> Iterator[str]:
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        yield from (f"{prefix}{key}" for key in repeated.get(id(value), ()))
        for key, inner in value.items():
            yield from _find(inner, f"{prefix}{key}", repeated)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find(inner, f"{path}[{index}]", repeated)
