"""Reads the type tables: a small notation for Kubernetes API types -> structural schema nodes.

A table is text. A line at the margin opens a type, an indented line is a field of it:

    ContainerPort                      an object type
      containerPort! int32 1..65535    `!` = required; a range sets minimum and maximum
      protocol string ="TCP"           `=` is a default, in JSON without spaces
      hosts [Hostname] items(..16) atomic   a list; list kind `atomic`, `set` or `map(key,key)`
      labels {string}                  a map with string keys
      ...OtherType -field field? field!     all fields of another type, leaving out `-field`,
                                       making `field?` optional or `field!` required
    Hostname = string len(1..253) pattern(hostname)     a named scalar, list or map

Other words: `enum(a|b)`, `len(..)`, `items(..)`, `props(..)`, `pattern(name)` out of the patterns
given, `cel(name)` out of the rules given, `one` (x-kubernetes-map-type: atomic), `granular`,
`preserve` (unknown fields stay), `nullable`.

The result uses the words of OpenAPI structural schemas, with `{"$ref": "Type"}` for shared types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Node = dict[str, Any]
Types = dict[str, Node]
Rules = Mapping[str, Sequence[tuple[str, str]]]
"""Name -> the (rule, message) pairs that `cel(name)` stands for."""

QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
_INT_OR_STRING: Node = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
}
SCALARS: dict[str, Node] = {
    "string": {"type": "string"},
    "bool": {"type": "boolean"},
    "integer": {"type": "integer"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "number": {"type": "number"},
    "date-time": {"type": "string", "format": "date-time"},
    "bytes": {"type": "string", "format": "byte"},
    "object": {"type": "object"},
    "any": {"x-kubernetes-preserve-unknown-fields": True},
    "int-or-string": _INT_OR_STRING,
    "quantity": {**_INT_OR_STRING, "pattern": QUANTITY},
}
_BOUNDS = {
    "len": ("minLength", "maxLength"),
    "items": ("minItems", "maxItems"),
    "props": ("minProperties", "maxProperties"),
}
_WORD = re.compile(r"(\w+)\((.*)\)")
_RANGE = re.compile(r"(-?\d*)\.\.(-?\d*)")


class TableError(ValueError):
    """A table says something this notation does not have."""


class TableReader:
    """Reads tables into one set of types.

    Args:
        patterns: What `pattern(name)` stands for.
        rules: What `cel(name)` stands for.
        types: Types that are there already (from other tables); added to.
    """

    def __init__(self, types: Types, *, patterns: Mapping[str, str], rules: Rules) -> None:
        self.types = types
        self.patterns = patterns
        self.rules = rules

    def read(self, table: str) -> None:
        """Add the types of one table.

        Raises:
            TableError: A word, type or reference is not known.
        """
        current: Node | None = None
        for line in table.splitlines():
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if not line.startswith(" "):
                name, rest = words[0], words[1:]
                if rest[:1] == ["="]:
                    self.types[name] = self.node(rest[1:])
                    current = None
                else:
                    current = self.types[name] = {"type": "object", "properties": {}}
                    self.change(current, rest)
            elif current is None:
                raise TableError(f"field outside of a type: {line!r}")
            elif words[0].startswith("..."):
                self._include(current, words[0][3:], words[1:])
            else:
                self._field(current, words)

    def node(self, words: Sequence[str]) -> Node:
        """Return the node that `type word word` stands for."""
        node = self._type(words[0])
        self.change(node, words[1:])
        return node

    def _type(self, text: str) -> Node:
        if text in SCALARS:
            return dict(SCALARS[text])
        if text.startswith("["):
            return {"type": "array", "items": self._type(text[1:-1])}
        if text.startswith("{"):
            return {"type": "object", "additionalProperties": self._type(text[1:-1])}
        if text not in self.types:
            raise TableError(f"type {text} is not known (yet)")
        # Small shapes are written out: a reference would cost more than it saves.
        known = self.types[text]
        return {"$ref": text} if "properties" in known else dict(known)

    def _field(self, owner: Node, words: Sequence[str]) -> None:
        name = words[0]
        if name.endswith("!"):
            name = name[:-1]
            owner.setdefault("required", []).append(name)
        owner["properties"][name] = self.node(words[1:])

    def _include(self, owner: Node, name: str, changes: Sequence[str]) -> None:
        source = self.types[name]
        required = list(source.get("required", ()))
        left_out = {c[1:] for c in changes if c.startswith("-")}
        for change in changes:
            if change.endswith("?"):
                if change[:-1] not in required:
                    raise TableError(f"{name} does not require {change[:-1]}")
                required.remove(change[:-1])
            elif change.endswith("!"):
                required.append(change[:-1])
        unknown = left_out - set(source["properties"])
        if unknown:
            raise TableError(f"{name} has no {sorted(unknown)} to leave out")
        for key, value in source["properties"].items():
            if key not in left_out:
                owner["properties"][key] = value
        kept = [r for r in required if r not in left_out]
        if kept:
            owner.setdefault("required", []).extend(kept)
        for key, value in source.items():
            if key not in ("type", "properties", "required"):
                owner[key] = value

    def change(self, node: Node, words: Sequence[str]) -> None:
        """Apply words to a node in place."""
        for word in words:
            if word.startswith("="):
                node["default"] = json.loads(word[1:])
            elif bounds := _RANGE.fullmatch(word):
                _bound(node, ("minimum", "maximum"), bounds)
            elif word in ("atomic", "set"):
                node["x-kubernetes-list-type"] = word
            elif word in ("one", "granular"):
                node["x-kubernetes-map-type"] = "atomic" if word == "one" else word
            elif word == "preserve":
                node["x-kubernetes-preserve-unknown-fields"] = True
            elif word == "nullable":
                node["nullable"] = True
            elif call := _WORD.fullmatch(word):
                self._call(node, call[1], call[2])
            else:
                raise TableError(f"word {word!r} is not known")

    def _call(self, node: Node, name: str, inside: str) -> None:
        if name == "map":
            node["x-kubernetes-list-type"] = "map"
            node["x-kubernetes-list-map-keys"] = inside.split(",")
        elif name == "enum":
            node["enum"] = [
                int(v) if node.get("type") == "integer" else v for v in inside.split("|")
            ]
        elif name in _BOUNDS:
            bounds = _RANGE.fullmatch(inside)
            if bounds is None:
                raise TableError(f"{name}({inside}) is no range")
            _bound(node, _BOUNDS[name], bounds)
        elif name == "pattern":
            node["pattern"] = self.patterns[inside]
        elif name == "cel":
            node["x-kubernetes-validations"] = [
                {"rule": rule, "message": message} for rule, message in self.rules[inside]
            ]
        else:
            raise TableError(f"word {name}(...) is not known")


def _bound(node: Node, names: tuple[str, str], bounds: re.Match[str]) -> None:
    for name, value in zip(names, bounds.groups(), strict=True):
        if value:
            node[name] = int(value)


def relaxed(types: Types, root: str, *, without: Sequence[str], prefix: str) -> str:
    """Copy a type and all it refers to, leaving out some keywords.

    KServe embeds types it does not own in its templates (LLMInferenceServiceConfig) with their
    string checks taken out, so that Go template text fits in their place.

    Args:
        without: Keywords that the copies do not have, e.g. `pattern`.
        prefix: Goes before the copies' names.

    Returns:
        The name of the copied root.
    """
    new = prefix + root
    if new in types:
        return new
    types[new] = {}  # types may refer to themselves

    def copy(node: Any) -> Any:
        if isinstance(node, list):
            return [copy(item) for item in node]
        if not isinstance(node, dict):
            return node
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key == "$ref":
                out[key] = relaxed(types, value, without=without, prefix=prefix)
            elif key == "properties":
                out[key] = {name: copy(child) for name, child in value.items()}
            elif key not in without:
                out[key] = value if key == "default" else copy(value)
        return out

    types[new].update(copy(types[root]))
    return new


def expand(types: Types, node: Node) -> Node:
    """Return a node with every reference written out, as a CRD file has it."""
    if "$ref" in node:
        rest = {k: v for k, v in node.items() if k != "$ref"}
        return {**expand(types, types[node["$ref"]]), **rest}
    out = dict(node)
    if "properties" in node:
        out["properties"] = {k: expand(types, v) for k, v in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            out[key] = expand(types, node[key])
    return out
