"""Request bodies: bytes -> object, with the repeated keys that JSON parsers hide. Pure."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import yaml

from kserve_local.apiserver import protobuf
from kserve_local.errors import BadRequest, UnsupportedMediaType

JSON = "application/json"
YAML = "application/yaml"
# More values than a body of 3 MiB could hold without aliases.
_MAX_YAML_NODES = 2_000_000
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
        UnsupportedMediaType: Another format, or a protobuf of another kind than are decoded.
    """
    if type_ in _YAML_TYPES:
        return _yaml(body), []
    if type_ == protobuf.MEDIA_TYPE:
        return protobuf.decode(body), []
    if type_ != JSON and not type_.endswith("+json"):
        raise UnsupportedMediaType(
            "the body of the request was in an unknown format - accepted media types include: "
            "application/json, application/yaml"
        )
    try:
        value = orjson.loads(body)
        return value, _duplicates(body) if isinstance(value, dict) else []
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise BadRequest(f"couldn't read the body as JSON: {error}") from error


def _yaml(body: bytes) -> Any:
    if body.startswith(b"{"):
        # Most clients, ours among them, send JSON, which is YAML, and twenty times as fast to read.
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(body)
    try:
        # What JSON has no form for (dates, keys that are no strings) becomes text.
        value = yaml.load(body, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if _nodes(value, {}) > _MAX_YAML_NODES:
            raise BadRequest("error parsing YAML: document contains excessive aliasing")
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise BadRequest(f"error parsing YAML: {error}") from error


def _nodes(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are once every alias is written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # an alias to what holds it: refused when it is written out
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_nodes(item, known) for item in inner)
    return known[id(value)]


def _duplicates(body: bytes) -> list[str]:
    """Return the paths of repeated keys; only the slower standard parser tells of them."""
    repeated: dict[int, list[str]] = {}
    kept: list[dict[str, Any]] = []  # or an id could be given out twice

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            counts = Counter(key for key, _ in items)
            repeated[id(result)] = [key for key, count in counts.items() if count > 1]
            kept.append(result)
        return result

    value = json.loads(body, object_pairs_hook=pairs)
    return list(_find(value, "", repeated)) if repeated else []


def _find(value: Any, path: str, repeated: dict[int, list[str]]) -> Iterator[str]:
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        yield from (f"{prefix}{key}" for key in repeated.get(id(value), ()))
        for key, inner in value.items():
            yield from _find(inner, f"{prefix}{key}", repeated)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find(inner, f"{path}[{index}]", repeated)
