"""Lists with keys as maps and back, for server-side apply to own element by element. Pure.

Which lists have keys is the schema's word (`x-kubernetes-list-type`); all others are one value, as
on a cluster: also `containers` of an InferenceService, whose CRD gives them no key. A list becomes
a `Keyed` whose steps are those of FieldsV1: `k:{"name":"A"}` for elements with keys, `v:"x"` for
the elements of a set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import schema_document
from kserve_local.api.meta import Object
from kserve_local.api.schema_document import Node
from kserve_local.errors import NotFound

_ITEM, _VALUE = "k:", "v:"
# Metadata is the same for every kind, and the schema says nothing about its lists.
_METADATA: Mapping[tuple[str, ...], Sequence[str]] = {
    ("metadata", "ownerReferences"): ("uid",),
    ("metadata", "finalizers"): (),
}


class Keyed(dict[str, Any]):
    """A list's elements by their step."""


def keyed(obj: Object) -> Object:
    """Return the object with every list that has keys as a `Keyed`."""
    try:
        node = schema_document.kind_of(obj)
    except NotFound:
        node = {}
    converted: Object = _convert(obj, node, ())
    return converted


def listed(value: Any) -> Any:
    """Return the value with every `Keyed` as a list again."""
    if isinstance(value, Keyed):
        return [
            json.loads(step.removeprefix(_VALUE)) if step.startswith(_VALUE) else listed(item)
            for step, item in value.items()
        ]
    if isinstance(value, dict):
        return {k: listed(v) for k, v in value.items()}
    return value


def is_element(step: str) -> bool:
    """Whether a step names an element of a list rather than a field."""
    return step.startswith((_ITEM + "{", _VALUE))


def keys_of(step: str) -> frozenset[str]:
    """Return the fields that make up the key of an element, none for a field's step."""
    if not step.startswith(_ITEM + "{"):
        return frozenset()
    return frozenset(json.loads(step.removeprefix(_ITEM)))


def shown(step: str) -> str:
    """Return the step as conflicts print it: `[name="A"]`, or `.field`."""
    if step.startswith(_VALUE):
        return f"[={step.removeprefix(_VALUE)}]"
    if not is_element(step):
        return f".{step}"
    key = json.loads(step.removeprefix(_ITEM))
    return f"[{','.join(f'{k}={json.dumps(v)}' for k, v in key.items())}]"


def _convert(value: Any, node: Node, path: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {
            k: _convert(v, schema_document.child(node, k) or {}, (*path, k))
            for k, v in value.items()
        }
    if not isinstance(value, list):
        return value
    keys = _METADATA.get(path)
    if keys is None:
        keys = node.get("x-kubernetes-list-map-keys")
        if keys is None and node.get("x-kubernetes-list-type") == "set":
            keys = ()
        if keys is None:
            return value
    inner = schema_document.child(node, 0) or {}
    elements = Keyed()
    for item in value:
        step = _step(item, keys, inner)
        if step is None or step in elements:
            return value  # not such a list after all; the schema check will say so
        elements[step] = True if step.startswith(_VALUE) else _convert(item, inner, (*path, step))
    return elements


def _step(item: Any, keys: Sequence[str], inner: Node) -> str | None:
    if not keys:
        return None if isinstance(item, (dict, list)) else _VALUE + _json(item)
    if not isinstance(item, dict):
        return None
    properties = inner.get("properties", {})
    key = {}
    for name in keys:
        part = item.get(name, (properties.get(name) or {}).get("default", _IMPLIED.get(name)))
        if part is not None:
            key[name] = part
    return _ITEM + _json(key) if key else None


# Defaults that the API server fills in and the schema leaves out.
_IMPLIED = {"protocol": "TCP"}


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
