"""The compiled schema file: which node describes which kind, field or item.

Reads `schemas.json` (made by `schemagen/compile.py`) once, on first use: `types` that refer to each
other by name, and `kinds` by `apiVersion/Kind`. Nodes are OpenAPI structural schemas, read-only.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from kserve_local.api import scheme
from kserve_local.api.meta import Object

Node = dict[str, Any]


@cache
def document() -> dict[str, Any]:
    """Return the whole file; `types` and `kinds`."""
    file = Path(__file__).with_name("schemas.json")
    content: dict[str, Any] = json.loads(file.read_bytes())
    return content


def kind_of(obj: Object) -> Node:
    """Return the node of an object's kind and version.

    Raises:
        NotFound: No such kind, in kubectl's words.
    """
    node = document()["kinds"].get(f"{obj['apiVersion']}/{obj['kind']}")
    if node is None:
        scheme.of(obj)
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return resolve(node)


def resolve(node: Node) -> Node:
    """Return the node with a reference at its top followed."""
    name = node.get("$ref")
    if name is None:
        return node
    target: Node = document()["types"][name]
    if len(node) == 1:
        return target
    # Words beside a reference (default, rules, map type) count with the type's own.
    merged = {**target, **node}
    del merged["$ref"]
    return merged


def child(node: Node, part: str | int) -> Node | None:
    """Return the node of a field or list item, None where the schema has none."""
    if isinstance(part, int):
        found = node.get("items")
    else:
        found = node.get("properties", {}).get(part)
        if found is None and isinstance(node.get("additionalProperties"), dict):
            found = node["additionalProperties"]
    return None if found is None else resolve(found)


@cache
def has_rules(key: str) -> bool:
    """Whether a kind (`apiVersion/Kind`) has a CEL rule anywhere."""
    seen: set[str] = set()
    waiting: list[Any] = [document()["kinds"].get(key, {})]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            if "x-kubernetes-validations" in node:
                return True
            name = node.get("$ref")
            if isinstance(name, str) and name not in seen:
                seen.add(name)
                waiting.append(document()["types"][name])
            waiting.extend(node.values())
    return False
