"""Checks objects against their structural schema, as the Kubernetes API server does with a CRD.

Reads the compiled schema through `schema_document.py`. Copies Kubernetes' rules for pruning,
defaulting, types, int-or-string, list types and CEL, and the texts it prints. `metadata` is checked
by `metadata_rules.py`.

Kinds without a CRD (Pod, Secret, ...) are decoded into Go structs on a cluster: there null means
absent and a quantity may be a number. Their texts are kept in the CRDs' form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from kserve_local.api import cel, metadata_rules, quantity, scheme
from kserve_local.api import schema_document as compiled
from kserve_local.api.meta import Object
from kserve_local.api.schema_document import Node
from kserve_local.errors import Cause, Invalid

Path_ = tuple[str | int, ...]
"""Where in an object: field names and list indexes."""
Kind = Literal[
    "invalid", "required", "unknown", "duplicate", "cel", "type", "unsupported", "toolong"
]

_REASONS: dict[Kind, str] = {
    "invalid": "FieldValueInvalid",
    "required": "FieldValueRequired",
    "unknown": "FieldValueInvalid",
    "duplicate": "FieldValueDuplicate",
    "cel": "FieldValueInvalid",
    "type": "FieldValueTypeInvalid",
    "unsupported": "FieldValueNotSupported",
    "toolong": "FieldValueTooLong",
}
_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer"}
_MAX_INT = {"int32": 2**31 - 1, "int64": 2**63 - 1}
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with an object.

    Args:
        path: Where; for a missing field the path it would have.
        message: What the API server prints after the field, e.g. `Required value`.
        suggestion: A name or value that fits better, empty if there is none.
    """

    path: Path_
    kind: Kind
    message: str
    suggestion: str = ""

    @property
    def field(self) -> str:
        """The path as Kubernetes prints it: `spec.containers[0].name`."""
        return dotted(self.path)

    @property
    def reason(self) -> str:
        """`reason` of the entry in `Status.details.causes`."""
        return _REASONS[self.kind]

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def dotted(path: Path_) -> str:
    """Return a path as Kubernetes prints it."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def check(obj: Object, *, old: Object | None = None) -> list[Finding]:
    """Return what the API server refuses in an object: metadata, schema, CEL rules.

    Unknown fields are not among them (`unknown`); the API server prunes those.

    Args:
        obj: Any kind of `scheme.ALL`; defaults need not be applied.
        old: The object before an update, for rules that compare.

    Raises:
        NotFound: No such kind.
    """
    kind = scheme.of(obj)
    root = compiled.kind_of(obj)
    found = [
        Finding(("metadata", *path), reason, message)
        for path, reason, message in metadata_rules.check(obj, kind)
    ]
    walk = _Check(strict=kind.custom, out=found)
    walk.node(root, obj, ())
    if not found and compiled.has_rules(f"{obj['apiVersion']}/{obj['kind']}"):
        old_value = cel.NO_OLD if old is None else apply_defaults(old)
        _check_rules(root, apply_defaults(prune(obj)), old_value, (), found)
    return found


def unknown(obj: Object) -> list[Finding]:
    """Return the fields that the schema does not have, in the object's order."""
    return list(_unknown(compiled.kind_of(obj), obj, ()))


def unknown_fields(obj: Object) -> list[str]:
    """Return the unknown fields as the API server prints them: `spec.predictor.foo`."""
    return [finding.field for finding in unknown(obj)]


def prune(obj: Object) -> Object:
    """Return the object without unknown fields."""
    pruned: Object = _prune(compiled.kind_of(obj), obj)
    return pruned


def apply_defaults(obj: Object) -> Object:
    """Return the object with the schema's defaults filled in.

    Null at a field that is not nullable is dropped first, as if it had not been given.
    """
    defaulted: Object = _default(compiled.kind_of(obj), obj)
    return defaulted


def normalize_quantities(obj: Object) -> Object:
    """Return the object with plain numbers at quantities written as quantities: `0.5` -> `500m`.

    What decoding into Go types and back does to an object, be it in the API server for built-in
    kinds or in KServe's mutating webhook; null is dropped there, too.
    """
    normal: Object = _normalize(compiled.kind_of(obj), obj)
    return normal


def refuse(obj: Object, findings: Sequence[Finding]) -> Invalid:
    """Return the 422 error of an object with findings, with the API server's message."""
    kind = scheme.of(obj)
    qualified = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    name = (obj.get("metadata") or {}).get("name", "")
    texts = [str(finding) for finding in findings]
    what = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return Invalid(
        f'{qualified} "{name}" is invalid: {what}',
        causes=[Cause(f.reason, f.message, f.field) for f in findings],
    )


def fields_of(api_version: str, kind: str, path: Path_) -> list[str]:
    """Return the field names that the schema has at a path, for suggestions and completion."""
    node = compiled.kind_of({"apiVersion": api_version, "kind": kind})
    for part in path:
        node = compiled.child(node, part) or {}
    return list(node.get("properties", ()))


def openapi(api_version: str, kind: str) -> tuple[Node, dict[str, Node]]:
    """Return the kind's node and all types that nodes may refer to (by `$ref` name)."""
    return compiled.kind_of({"apiVersion": api_version, "kind": kind}), compiled.document()["types"]


# --- checking ----------------------------------------------------------------------------------


@cache
def _pattern(text: str) -> re.Pattern[str]:
    # Go's `$` means the end of the text; Python's would also match before a last newline.
    return re.compile(text.replace("$", r"\Z") if "[" not in text else _end_of_text(text))


def _end_of_text(text: str) -> str:
    out, inside, escaped = [], False, False
    for char in text:
        if not escaped and char in "[]":
            inside = char == "["
        out.append(r"\Z" if char == "$" and not inside and not escaped else char)
        escaped = char == "\\" and not escaped
    return "".join(out)


class _Check:
    """One walk over an object; `strict` as for CRDs, else as for kinds decoded into Go types."""

    def __init__(self, *, strict: bool, out: list[Finding]) -> None:
        self.strict = strict
        self.out = out

    def node(self, node: Node, value: Any, path: Path_) -> None:
        if value is None and (not self.strict or node.get("nullable")):
            return  # Go's zero value
        if node.get("x-kubernetes-int-or-string"):
            self.int_or_string(node, value, path)
            return
        wanted = node.get("type")
        if wanted is not None and not _is(value, wanted):
            self.wrong_type(path, value, wanted)
            return
        if isinstance(value, dict):
            self.object(node, value, path)
        elif isinstance(value, list):
            self.array(node, value, path)
        elif isinstance(value, str):
            self.string(node, value, path)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            self.number(node, value, path)
        if "enum" in node and value not in node["enum"]:
            self.unsupported(path, value, node["enum"])

    def object(self, node: Node, value: dict[str, Any], path: Path_) -> None:
        properties = node.get("properties", {})
        for name in node.get("required", ()):
            child = properties.get(name, {})
            if name in value and (value[name] is not None or child.get("nullable")):
                continue
            if "default" not in child:
                self.add(path, name, kind="required", message="Required value")
        values = node.get("additionalProperties")
        inner = compiled.resolve(values) if isinstance(values, dict) else None
        for name, item in value.items():
            child = properties.get(name)
            if item is None or (not path and name == "metadata"):
                continue  # null at a field is dropped before validation, where it is not kept
            if child is not None:
                self.node(compiled.resolve(child), item, (*path, name))
            elif inner is not None:
                self.node(inner, item, (*path, name))
        self.count(node, len(value), path, "Properties", "properties")

    def array(self, node: Node, value: list[Any], path: Path_) -> None:
        self.count(node, len(value), path, "Items", "items")
        items = node.get("items")
        if items is None:
            return
        inner = compiled.resolve(items)
        for index, item in enumerate(value):
            self.node(inner, item, (*path, index))
        list_type = node.get("x-kubernetes-list-type")
        if list_type in ("set", "map"):
            self.unique(node, inner, value, path)

    def unique(self, node: Node, inner: Node, value: list[Any], path: Path_) -> None:
        seen: set[str] = set()
        keys = node.get("x-kubernetes-list-map-keys")
        for index, item in enumerate(value):
            if keys is None:
                key = item
            elif isinstance(item, dict):
                properties = inner.get("properties", {})
                key = {
                    k: item.get(k, properties.get(k, {}).get("default"))
                    for k in keys
                    if k in item or "default" in properties.get(k, {})
                }
            else:
                continue
            text = _json(key)
            if text in seen:
                self.add(path, index, kind="duplicate", message=f"Duplicate value: {text}")
            seen.add(text)

    def string(self, node: Node, value: str, path: Path_) -> None:
        longest = node.get("maxLength")
        if longest is not None and len(value) > longest:
            text = f"Too long: may not be more than {longest} bytes"
            self.out.append(Finding(path, "toolong", text))
        shortest = node.get("minLength")
        if shortest is not None and len(value) < shortest:
            self.invalid(path, value, f"should be at least {shortest} chars long")
        pattern = node.get("pattern")
        if pattern is not None and not _pattern(pattern).search(value):
            self.invalid(path, value, f"should match '{pattern}'")
        if node.get("format") == "date-time" and not _RFC3339.fullmatch(value):
            text = f'must be of type date-time: "{value}"'
            self.invalid(path, value, text)

    def number(self, node: Node, value: float, path: Path_) -> None:
        highest = node.get("maximum", _MAX_INT.get(node.get("format", "")))
        if highest is not None and value > highest:
            self.invalid(path, value, f"should be less than or equal to {highest}")
        lowest = node.get("minimum")
        if lowest is not None and value < lowest:
            self.invalid(path, value, f"should be greater than or equal to {lowest}")

    def int_or_string(self, node: Node, value: Any, path: Path_) -> None:
        is_quantity = "pattern" in node
        if not self.strict and is_quantity and isinstance(value, float):
            return
        if not _is(value, "integer") and not isinstance(value, str):
            self.wrong_type(path, value, "integer,string")
        elif isinstance(value, str) and is_quantity:
            before = len(self.out)
            self.string(node, value, path)
            if len(self.out) > before:
                # Printed between quotation marks.
                meant = '" or "'.join(quantity.meant(value))
                self.out[-1] = replace(self.out[-1], suggestion=meant)

    def count(self, node: Node, count: int, path: Path_, word: str, noun: str) -> None:
        highest = node.get(f"max{word}")
        if highest is not None and count > highest:
            text = f"Too many: {count}: must have at most {highest} {noun}"
            self.out.append(Finding(path, "invalid", text))
        lowest = node.get(f"min{word}")
        if lowest is not None and count < lowest:
            self.invalid(path, count, f"should have at least {lowest} {noun}")

    def add(self, path: Path_, part: str | int, *, kind: Kind, message: str) -> None:
        self.out.append(Finding((*path, part), kind, message))

    def invalid(self, path: Path_, value: Any, what: str) -> None:
        text = f"Invalid value: {_json(value)}: {dotted(path)} in body {what}"
        self.out.append(Finding(path, "invalid", text))

    def wrong_type(self, path: Path_, value: Any, wanted: str) -> None:
        got = type_name(value)
        text = f'Invalid value: "{got}": {dotted(path)} in body must be of type {wanted}: "{got}"'
        self.out.append(Finding(path, "type", text))

    def unsupported(self, path: Path_, value: Any, values: Sequence[Any]) -> None:
        listed = ", ".join(f'"{v}"' for v in values)
        text = f"Unsupported value: {_json(value)}: supported values: {listed}"
        better = closest(str(value), [str(v) for v in values])
        self.out.append(Finding(path, "unsupported", text, better))


def _check_rules(node: Node, value: Any, old: Any, path: Path_, out: list[Finding]) -> None:
    for rule in node.get("x-kubernetes-validations", ()):
        message = cel.failure(rule["rule"], value, old, message=rule.get("message", ""))
        if message is not None:
            text = f'Invalid value: "{type_name(value)}": {message}'
            out.append(Finding(path, "cel", text))
    if isinstance(value, dict):
        for name, item in value.items():
            child = compiled.child(node, name)
            if child is not None:
                before = old.get(name, cel.NO_OLD) if isinstance(old, dict) else cel.NO_OLD
                _check_rules(child, item, before, (*path, name), out)
    elif isinstance(value, list):
        inner = compiled.child(node, 0)
        if inner is not None:
            before = _correlated(node, old)
            for index, item in enumerate(value):
                was = before(item)
                _check_rules(inner, item, was, (*path, index), out)


def _correlated(node: Node, old: Any) -> Any:
    """Return a function from an item to the one it was; only keyed lists have such items."""
    keys = node.get("x-kubernetes-list-map-keys")
    if keys is None or not isinstance(old, list):
        return lambda _item: cel.NO_OLD

    def key(item: Any) -> str:
        return _json([item.get(k) for k in keys] if isinstance(item, dict) else item)

    by_key = {key(item): item for item in old}
    return lambda item: by_key.get(key(item), cel.NO_OLD)


# --- unknown fields, pruning, defaults -------------------------------------------------------


def _unknown(node: Node, value: Any, path: Path_) -> Iterator[Finding]:
    if isinstance(value, list):
        inner = compiled.child(node, 0)
        if inner is not None:
            for index, item in enumerate(value):
                yield from _unknown(inner, item, (*path, index))
    elif isinstance(value, dict) and not node.get("x-kubernetes-int-or-string"):
        open_ = node.get("x-kubernetes-preserve-unknown-fields")
        for name, item in value.items():
            child = compiled.child(node, name)
            if child is not None:
                yield from _unknown(child, item, (*path, name))
            elif not open_:
                better = closest(name, list(node.get("properties", ())))
                where = (*path, name)
                yield Finding(where, "unknown", f'unknown field "{dotted(where)}"', better)


def _prune(node: Node, value: Any) -> Any:
    if isinstance(value, list):
        inner = compiled.child(node, 0)
        return value if inner is None else [_prune(inner, item) for item in value]
    if not isinstance(value, dict):
        return value
    open_ = node.get("x-kubernetes-preserve-unknown-fields")
    out = {}
    for name, item in value.items():
        child = compiled.child(node, name)
        if child is not None:
            out[name] = _prune(child, item)
        elif open_:
            out[name] = item
    return out


def _default(node: Node, value: Any) -> Any:
    if isinstance(value, list):
        inner = compiled.child(node, 0)
        return value if inner is None else [_default(inner, item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    properties = node.get("properties", {})
    for name, item in value.items():
        child = compiled.child(node, name)
        if item is None and child is not None and not child.get("nullable"):
            continue
        out[name] = item if child is None else _default(child, item)
    for name, child in properties.items():
        if "default" in child and name not in out:
            out[name] = _default(compiled.resolve(child), json.loads(json.dumps(child["default"])))
    return out


def _normalize(node: Node, value: Any) -> Any:
    if isinstance(value, list):
        inner = compiled.child(node, 0)
        return value if inner is None else [_normalize(inner, item) for item in value]
    if isinstance(value, dict):
        if node.get("x-kubernetes-preserve-unknown-fields"):
            return value
        out = {}
        for name, item in value.items():
            child = compiled.child(node, name)
            if item is not None:
                out[name] = item if child is None else _normalize(child, item)
        return out
    if isinstance(value, float) and node.get("x-kubernetes-int-or-string") and "pattern" in node:
        return quantity.canonical(value)
    return value


# --- words -----------------------------------------------------------------------------------


def type_name(value: Any) -> str:
    """Return the JSON type of a value, as error messages name it."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return "number"
    return _TYPES.get(type(value), type(value).__name__)


def closest(word: str, choices: Sequence[str]) -> str:
    """Return the choice that was probably meant, empty if none is near."""
    lowered = {choice.lower(): choice for choice in choices}
    if word.lower() in lowered:
        return lowered[word.lower()]
    import difflib

    near = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.75)
    return lowered[near[0]] if near else ""


def _is(value: Any, wanted: str) -> bool:
    if wanted == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
    if wanted == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type_name(value) == wanted


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
