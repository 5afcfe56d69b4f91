"""Reads YAML and JSON text into objects, keeping the line and column of every field.

Values mean what kubectl makes of them (sigs.k8s.io/yaml: go-yaml v2 rules, then JSON): `yes`, `on`
and `y` are booleans, `010` is eight, dates stay text, whole floats become integers. Documents are
split where kubectl splits them, so one broken document does not take the others of its file along.
`List` objects are opened. Anchors and aliases work; what they may expand to is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from kserve_local.api.meta import Object

Path_ = tuple[str | int, ...]
Position = tuple[int, int]
"""Line and column, both from 1."""

MAX_NODES = 500_000
MAX_DEPTH = 200
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_FLOAT = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?|[-+]?[0-9]+\.([eE][-+]?[0-9]+)?")
_INTEGERS = (
    (re.compile(r"[-+]?0[xX][0-9a-fA-F]+"), 16),
    (re.compile(r"[-+]?0[bB][01]+"), 2),
    (re.compile(r"[-+]?0[oO]?[0-7]+"), 8),
    (re.compile(r"[-+]?(0|[1-9][0-9]*)"), 10),
)
_NOT_JSON = frozenset((".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"))


class ManifestError(Exception):
    """A document cannot be read.

    Args:
        message: What is wrong, without the position.
        position: Where.
    """

    def __init__(self, message: str, position: Position = (1, 1)) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


@dataclass(slots=True)
class _Node:
    """One YAML node: `keys` of a mapping are (name, where the key stands, value)."""

    position: Position
    value: Any = None
    keys: list[tuple[str, Position, _Node]] | None = None
    items: list[_Node] | None = None
    size: int = 1


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file, or one item of a `List` in it.

    Args:
        path: The file as it was named.
        object: What it holds; None when it cannot be read.
        error: Why it cannot be read.
        duplicates: Fields given more than once, with where the later one stands.
    """

    path: str
    object: Any
    error: ManifestError | None = None
    duplicates: Sequence[tuple[Path_, Position]] = ()
    _root: _Node = field(default_factory=lambda: _Node((1, 1)), repr=False)

    @property
    def is_kubernetes(self) -> bool:
        """Whether it has `apiVersion` and `kind`."""
        obj = self.object
        return (
            isinstance(obj, dict)
            and isinstance(obj.get("apiVersion"), str)
            and isinstance(obj.get("kind"), str)
            and bool(obj["kind"])
        )

    @property
    def position(self) -> Position:
        """Where the document's content starts."""
        return self.error.position if self.error is not None else self._root.position

    def position_of(self, path: Path_) -> Position:
        """Return where a field's name or a list item stands; of the nearest parent if missing."""
        node, where = self._root, self._root.position
        for part in path:
            found = None
            if isinstance(part, int) and node.items is not None and part < len(node.items):
                found = node.items[part]
                where = found.position
            elif node.keys is not None:
                for key, position, value in node.keys:
                    if key == part:
                        found, where = value, position  # the last one counts, as in the object
            if found is None:
                break
            node = found
        return where


def load(text: str, path: str = "-") -> list[Document]:
    """Return the documents of a file, empty ones left out, `List`s opened.

    Never raises for what the text holds: see `Document.error`.
    """
    documents: list[Document] = []
    for first_line, chunk in split(text):
        try:
            documents.extend(d for n in _read(chunk, first_line) for d in _documents(n, path))
        except ManifestError as error:
            documents.append(Document(path, None, error))
    return documents


def _documents(node: _Node, path: str) -> Iterator[Document]:
    duplicates: list[tuple[Path_, Position]] = []
    obj = _object(node, (), duplicates)
    if obj is None:
        return
    items = obj.get("items") if isinstance(obj, dict) else None
    kind = obj.get("kind") if isinstance(obj, dict) else None
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list) and node.keys:
        inside = next(value for key, _, value in reversed(node.keys) if key == "items")
        for item in inside.items or ():
            yield from _documents(_with_kind(item, obj, kind), path)
        return
    yield Document(path, obj, None, duplicates, node)


def _with_kind(item: _Node, owner: Object, kind: str) -> _Node:
    """Return an item of a typed list with the `apiVersion` and `kind` that the list implies."""
    if kind == "List" or item.keys is None:
        return item
    names = {key for key, _, _ in item.keys}
    implied = {"apiVersion": owner.get("apiVersion"), "kind": kind.removesuffix("List")}
    extra = [
        (name, item.position, _Node(item.position, value))
        for name, value in implied.items()
        if name not in names
    ]
    return _Node(item.position, keys=[*extra, *item.keys])


def split(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of the first line, text) of each document, as kubectl splits a file."""
    start = 1
    lines: list[str] = []
    # Not `splitlines`: that also breaks at characters that YAML keeps inside of text.
    for number, line in enumerate(text.split("\n"), 1):
        rest = line[3:].strip()
        if line.startswith("---") and (not rest or rest.startswith("#")):
            yield start, "\n".join(lines)
            start, lines = number + 1, []
        else:
            lines.append(line)
    yield start, "\n".join(lines)


def _read(chunk: str, first_line: int) -> list[_Node]:
    """Return the nodes of one chunk. JSON that is no YAML (surrogate escapes) is read as JSON."""
    try:
        return list(_nodes(chunk, first_line))
    except ManifestError:
        if chunk.lstrip()[:1] not in ("{", "[") or "\\u" not in chunk:
            raise
        return [_json_node(chunk, first_line)]


def _json_node(chunk: str, first_line: int) -> _Node:
    try:
        return _plain(json.loads(chunk), (first_line, 1))
    except json.JSONDecodeError as error:
        where = (error.lineno + first_line - 1, error.colno)
        raise ManifestError(f"not JSON: {error.msg}", where) from None


def _plain(value: Any, where: Position) -> _Node:
    if isinstance(value, dict):
        return _Node(where, keys=[(str(k), where, _plain(v, where)) for k, v in value.items()])
    if isinstance(value, list):
        return _Node(where, items=[_plain(item, where) for item in value])
    return _Node(where, value)


# --- events to nodes -------------------------------------------------------------------------


def _nodes(chunk: str, first_line: int) -> Iterator[_Node]:
    try:
        yield from _Composer(chunk, first_line).documents()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context or error)
        if mark is not None and _at(chunk, mark.line, mark.column) == "\t":
            problem += " (a tab: YAML takes only spaces for indentation)"
        raise ManifestError(f"not YAML: {problem}", _place(mark, first_line)) from None
    except yaml.YAMLError as error:
        raise ManifestError(f"not YAML: {error}", (first_line, 1)) from None


def _at(chunk: str, line: int, column: int) -> str:
    lines = chunk.split("\n")
    return lines[line][column : column + 1] if line < len(lines) else ""


def _place(mark: Any, first_line: int) -> Position:
    if mark is None:
        return first_line, 1
    return mark.line + first_line, mark.column + 1


class _Composer:
    """Builds nodes out of parser events; keeps count of what aliases expand to."""

    def __init__(self, chunk: str, first_line: int) -> None:
        self.events: Iterator[Event] = iter(yaml.parse(chunk, Loader=_LOADER))
        self.first_line = first_line
        self.anchors: dict[str, _Node | None] = {}
        self.count = 0

    def documents(self) -> Iterator[_Node]:
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                self.anchors = {}
                yield self.node(next(self.events), 0)

    def node(self, event: Event, depth: int) -> _Node:
        where = _place(event.start_mark, self.first_line)
        if depth > MAX_DEPTH:
            raise ManifestError(f"nested deeper than {MAX_DEPTH} levels", where)
        if isinstance(event, AliasEvent):
            return self.alias(event, where)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = None
        node = _Node(where)
        if isinstance(event, ScalarEvent):
            node.value = _scalar(event, where)
        elif isinstance(event, SequenceStartEvent):
            node.items = []
            for child in self.children():
                node.items.append(self.node(child, depth + 1))
            node.size += sum(item.size for item in node.items)
        elif isinstance(event, MappingStartEvent):
            self.mapping(node, depth)
        self.grow(1, where)
        if anchor is not None:
            self.anchors[anchor] = node
        return node

    def children(self) -> Iterator[Event]:
        for event in self.events:
            if isinstance(event, CollectionEndEvent):
                return
            yield event

    def mapping(self, node: _Node, depth: int) -> None:
        node.keys = []
        merged: list[tuple[str, Position, _Node]] = []
        for event in self.children():
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            is_plain = isinstance(event, ScalarEvent) and event.implicit[0] and not event.tag
            if key.value == "<<" and is_plain:
                merged.extend(_merged(value))
                continue
            node.keys.append((_key(key), key.position, value))
            node.size += value.size
        own = {name for name, _, _ in node.keys}
        for name, position, value in merged:
            if name not in own:
                own.add(name)
                node.keys.append((name, position, value))
                node.size += value.size

    def alias(self, event: AliasEvent, where: Position) -> _Node:
        name = str(event.anchor)
        if name not in self.anchors:
            raise ManifestError(f"not YAML: unknown anchor '{name}' referenced", where)
        target = self.anchors[name]
        if target is None:
            raise ManifestError(f"not YAML: anchor '{name}' value contains itself", where)
        self.grow(target.size, where)
        return target

    def grow(self, size: int, where: Position) -> None:
        self.count += size
        if self.count > MAX_NODES:
            raise ManifestError("not YAML: document contains excessive aliasing", where)


def _merged(value: _Node) -> list[tuple[str, Position, _Node]]:
    """Return the fields that `<<: value` brings; earlier maps of a list win."""
    if value.keys is not None:
        return value.keys
    if value.items is not None and all(item.keys is not None for item in value.items):
        return [entry for item in value.items for entry in item.keys or ()]
    raise ManifestError("not YAML: map merge requires map or sequence of maps as the value")


def _key(node: _Node) -> str:
    value = node.value
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    what = "null" if node.keys is None and node.items is None else "a map or list"
    raise ManifestError(f"not YAML: {what} cannot be a field name", node.position)


def _scalar(event: ScalarEvent, where: Position) -> Any:
    text, tag = event.value, event.tag
    if tag in (None, "!") and not event.implicit[0]:
        return text
    if tag is None or (tag == "!" and event.implicit[0]):
        return _resolve(text, where)
    short = tag.rpartition(":")[2]
    return _resolve(text, where) if short in ("int", "float", "bool", "null") else text


def _resolve(text: str, where: Position) -> Any:
    """Return the value of a plain scalar under go-yaml v2's rules."""
    if text in _NULL:
        return None
    first = text[0]
    if first not in "0123456789+-.":
        return True if text in _TRUE else False if text in _FALSE else text
    if text in _NOT_JSON or text[1:] in _NOT_JSON:
        raise ManifestError(f"not YAML: {text} has no place in JSON", where)
    plain = text.replace("_", "")
    for pattern, base in _INTEGERS:
        if pattern.fullmatch(plain):
            digits = plain.lower().replace("0o", "").replace("0x", "").replace("0b", "")
            number = int(digits, base)
            return number if -(2**63) <= number < 2**64 else float(number)
    if _FLOAT.fullmatch(plain):
        value = float(plain)
        # JSON has no way to tell 1.0 from 1.
        return int(value) if value.is_integer() and abs(value) < 1e21 else value
    return text


def _object(node: _Node, path: Path_, duplicates: list[tuple[Path_, Position]]) -> Any:
    """Return the JSON value of a node; what an alias stands for is copied, never shared."""
    if node.keys is not None:
        out: dict[str, Any] = {}
        for key, position, value in node.keys:
            where = (*path, key)
            if key in out:
                duplicates.append((where, position))
            out[key] = _object(value, where, duplicates)
        return out
    if node.items is not None:
        return [_object(item, (*path, i), duplicates) for i, item in enumerate(node.items)]
    return node.value
