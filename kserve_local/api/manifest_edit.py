"""Changes one field of one object in the text of a manifest, and not one character more. Pure.

Comments, order, quoting, indentation and the other documents stay as they are, because only the
field's own characters are replaced, added or taken away, by the positions that YAML's parser gives.
A dump of what was read could not promise that. The new text is read again before it is handed out:
where it would say anything else than the old one with the new value (an anchor that others use, a
merge key), the edit is refused.
"""

from __future__ import annotations

import copy
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

from kserve_local.api.manifest import Document, Path_, Position, load, split
from kserve_local.errors import Invalid

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CannotEdit(Invalid):
    """The field cannot be changed in the text without changing something else."""


@dataclass(slots=True)
class _Node:
    """One node of the text: offsets into it, and the entries of a mapping.

    Args:
        start, end: Offsets; of a block mapping `end` is where the next thing stands.
        position: Line and column of `start`.
        own: Whether an anchor or a tag stands before it.
    """

    start: int
    end: int
    position: Position
    kind: str
    flow: bool = False
    own: bool = False
    quote: str = ""
    text: str = ""
    entries: list[tuple[_Node, _Node]] = field(default_factory=list)
    items: list[_Node] = field(default_factory=list)


def with_value(text: str, document: Document, path: Path_, value: int | None) -> str:
    """Return the text with a field of one of its documents set, or taken away.

    Args:
        text: All of the file, lines ended by a line feed.
        document: The one to change, as `manifest.load(text)` has it.
        path: Names of fields; what holds the last one is there.
        value: None: the field goes. Where it is there by a merge only, or not, nothing changes.

    Raises:
        CannotEdit: It takes more than a change of this one field; the message says what.
    """
    wanted = _changed(document.object, path, value)
    if wanted == document.object:
        return text
    holder = _holder(_root(text, document), path)
    entry = next((e for e in reversed(holder.entries) if e[0].text == path[-1]), None)
    if value is None:
        if entry is None:
            raise CannotEdit(f"{_dotted(path)} comes in by a merge key (<<)")
        edited = _without(text, holder, entry)
    elif entry is not None:
        edited = _replaced(text, entry, str(value))
    else:
        edited = _inserted(text, holder, str(path[-1]), str(value))
    _verify(text, edited, document, wanted)
    return edited


def _changed(obj: Any, path: Path_, value: int | None) -> Any:
    out = copy.deepcopy(obj)
    inside = out
    for depth, part in enumerate(path[:-1], 1):
        inside = inside.get(part)
        if not isinstance(inside, dict):
            raise CannotEdit(f"there is no {_dotted(path[:depth])}")
    if value is None:
        inside.pop(path[-1], None)
    else:
        inside[path[-1]] = value
    return out


def _verify(text: str, edited: str, document: Document, wanted: Any) -> None:
    before, after = load(text, document.path), load(edited, document.path)
    expected = [wanted if d.position == document.position else d.object for d in before]
    if [d.object for d in after] != expected:
        raise CannotEdit("the document is written in a way where one field stands for several")


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path)


# --- the text as a tree ----------------------------------------------------------------------


def _root(text: str, document: Document) -> _Node:
    """Return the node of a document, which may be an item of a List."""
    line = document.position[0]
    offset = 0
    for first_line, chunk in split(text):
        if first_line <= line <= first_line + chunk.count("\n"):
            found = (n for top in _tree(chunk, first_line, offset) for n in _mappings(top))
            node = next((n for n in found if n.position == document.position), None)
            if node is not None:
                return node
        offset = _after(text, offset, chunk)
    raise CannotEdit("the document cannot be found in the text again")


def _after(text: str, offset: int, chunk: str) -> int:
    """Return where the chunk after this one begins: behind the line that parts them."""
    end = text.find("\n", offset + len(chunk) + 1)
    return len(text) if end < 0 else end + 1


def _tree(chunk: str, first_line: int, offset: int) -> Iterator[_Node]:
    try:
        events = iter(yaml.parse(chunk, Loader=_LOADER))
        for event in events:
            if isinstance(event, DocumentStartEvent):
                yield _node(next(events), events, first_line, offset)
    except yaml.YAMLError as error:
        raise CannotEdit(f"the text is not YAML: {error}") from error


def _node(event: Event, events: Iterator[Event], first_line: int, offset: int) -> _Node:
    # Typed as optional, for events made by hand; the parser's have marks.
    begin: Any = event.start_mark
    end: Any = event.end_mark
    node = _Node(
        start=begin.index + offset,
        end=end.index + offset,
        position=(begin.line + first_line, begin.column + 1),
        kind="scalar",
        own=bool(getattr(event, "anchor", None) or getattr(event, "tag", None)),
    )
    if isinstance(event, AliasEvent):
        node.kind = "alias"
    elif isinstance(event, ScalarEvent):
        node.text = event.value
        node.quote = event.style if event.style in ('"', "'") else ""
    elif isinstance(event, MappingStartEvent | SequenceStartEvent):
        node.flow = bool(event.flow_style)
        node.kind = "mapping" if isinstance(event, MappingStartEvent) else "sequence"
        for child in events:
            if isinstance(child, CollectionEndEvent):
                end = child.end_mark
                node.end = end.index + offset
                break
            inner = _node(child, events, first_line, offset)
            if node.kind == "sequence":
                node.items.append(inner)
            else:
                value = _node(next(events), events, first_line, offset)
                node.entries.append((inner, value))
    return node


def _mappings(node: _Node) -> Iterator[_Node]:
    if node.kind == "mapping":
        yield node
    for child in (*node.items, *(value for _, value in node.entries)):
        yield from _mappings(child)


def _holder(root: _Node, path: Path_) -> _Node:
    """Return the mapping that holds the field."""
    node = root
    for depth, part in enumerate(path[:-1], 1):
        value = next((v for k, v in reversed(node.entries) if k.text == part), None)
        if value is None:
            raise CannotEdit(f"{_dotted(path[:depth])} comes in by a merge key (<<)")
        if value.kind != "mapping":
            raise CannotEdit(f"{_dotted(path[:depth])} is written as an alias (*)")
        node = value
    return node


# --- edits -----------------------------------------------------------------------------------


def _replaced(text: str, entry: tuple[_Node, _Node], word: str) -> str:
    value = entry[1]
    if value.start == value.end:
        at = text.index(":", entry[0].end) + 1
        return f"{text[:at]} {word}{text[at:]}"
    return text[: value.start] + word + text[value.end :]


def _inserted(text: str, holder: _Node, name: str, word: str) -> str:
    """Put the field before the first one, as KServe's own examples have it."""
    if not holder.entries:
        at = holder.end - 1
        return f"{text[:at]}{name}: {word}{text[at:]}"
    first = holder.entries[0][0]
    at = text.rfind("\n", 0, first.start) + 1
    indent = text[at : first.start]
    if holder.flow:
        key = f"{first.quote}{name}{first.quote}"
        gap = " " if indent.strip() else f"\n{indent}"
        return f"{text[: first.start]}{key}: {word},{gap}{text[first.start :]}"
    if indent.strip(" "):
        raise CannotEdit(f"{name} has no line to stand on")
    # Behind the line that opens the mapping, so that comments stay with what they are above of.
    opens = text.rfind("\n", 0, _opener(text, holder, at)) + 1
    line_end = text.index("\n", opens) + 1
    return f"{text[:line_end]}{indent}{name}: {word}\n{text[line_end:]}"


def _opener(text: str, holder: _Node, first_line: int) -> int:
    """Return an offset in the line that opens a block mapping: its anchor's, or its key's."""
    if holder.own:
        return holder.start
    # Comments and empty lines may stand between the key and what it holds.
    at = first_line
    while at > 0:
        start = text.rfind("\n", 0, at - 1) + 1
        line = text[start : at - 1].strip()
        if line and not line.startswith("#"):
            return start
        at = start
    raise CannotEdit("the mapping has no line that opens it")


def _without(text: str, holder: _Node, entry: tuple[_Node, _Node]) -> str:
    key, value = entry
    if holder.flow:
        return _without_in_flow(text, holder.entries, holder.entries.index(entry))
    start = text.rfind("\n", 0, key.start) + 1
    end = text.find("\n", max(key.end, value.end))
    end = len(text) if end < 0 else end + 1
    before, after = text[start : key.start], text[max(key.end, value.end) : end].strip()
    if before.strip(" ") or (after and not after.lstrip(":").strip().startswith("#")):
        raise CannotEdit(f"{key.text} does not have its line to itself")
    return text[:start] + text[end:]


def _without_in_flow(text: str, entries: Sequence[tuple[_Node, _Node]], at: int) -> str:
    key, value = entries[at]
    if at + 1 < len(entries):
        return text[: key.start] + text[entries[at + 1][0].start :]
    end = max(key.end, value.end)
    start = max(node.end for node in entries[at - 1]) if at else key.start
    return text[:start] + text[end:]
