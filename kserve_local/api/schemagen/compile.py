"""Compiles the type tables into `api/schemas.json`, the one file that `api/schema.py` reads.

    python -m kserve_local.api.schemagen.compile          writes the file
    python -m kserve_local.api.schemagen.compile --check  exits 1 when the file is not up to date

The file holds `types` (name -> node, with references) and `kinds` (apiVersion/Kind -> node).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kserve_local.api.schemagen import (
    core,
    types_gateway,
    types_knative,
    types_llm,
    types_serving,
    types_standard,
)
from kserve_local.api.schemagen.tables import Node, TableReader, Types, relaxed

TARGET = Path(__file__).resolve().parents[1] / "schemas.json"

# What an LLMInferenceServiceConfig embeds without its string checks and rules.
_TEMPLATED = ("KeyedPodSpec", "HTTPRouteSpec", "InferencePoolSpec", "OldInferencePoolSpec")
_CHECKS = ("pattern", "minLength", "minItems", "minProperties", "x-kubernetes-validations")


def build() -> tuple[Types, dict[str, Node]]:
    """Return all types, and the node of each kind by `apiVersion/Kind`."""
    types: Types = {}
    modules = (types_serving, types_gateway, types_llm)
    reader = TableReader(
        types,
        patterns={name: text for m in modules for name, text in m.PATTERNS.items()},
        rules={name: pairs for m in modules for name, pairs in m.RULES.items()},
    )
    core.load(reader)
    kinds = {
        key: relaxed(types, name, without=(), prefix="core.") for key, name in core.KINDS.items()
    }
    core.inside_kinds(reader)
    for table in types_knative.TABLES:
        reader.read(table)
    core.inside_crds(reader)
    for table in (*types_serving.TABLES, *types_gateway.TABLES, *types_standard.TABLES):
        reader.read(table)
    for name in _TEMPLATED:
        relaxed(types, name, without=_CHECKS, prefix="Relaxed.")
    for table in types_llm.TABLES:
        reader.read(table)
    for tables in (types_knative, types_standard, types_serving, types_llm):
        kinds |= tables.KINDS
    return types, {key: {"$ref": name} for key, name in kinds.items()}


def text() -> str:
    """Return the content of the file: JSON, only the types that a kind can reach."""
    types, kinds = build()
    used: set[str] = set()
    waiting: list[object] = [kinds]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting.extend(node.values())
            name = node.get("$ref")
            if isinstance(name, str) and name not in used:
                used.add(name)
                waiting.append(types[name])
        elif isinstance(node, list):
            waiting.extend(node)
    kept = {name: types[name] for name in sorted(used)}
    return json.dumps({"kinds": kinds, "types": kept}, separators=(",", ":")) + "\n"


def main() -> int:
    """Write the file, or compare it with `--check`."""
    content = text()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text() == content else 1
    TARGET.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
