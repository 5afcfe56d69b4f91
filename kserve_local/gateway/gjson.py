"""GJSON paths on raw JSON: what a graph's conditions are written in. Pure: no I/O, no clock.

Gives what `gjson.GetBytes(document, path)` of tidwall/gjson v1.18.0 gives, the version that KServe
v0.20's router is built with: presence, kind and raw text. Upstream's library was the judge
(`tests/unit/gateway/gjson_cases.jsonl` holds its answers); its documentation is SYNTAX.md there.

Two things are ours. A path may scan or build only so much (`PathTooCostly`): multipaths can double
a document at every step. And `@pretty` gives the document as it is: layout is no matter for
presence.

Documents may be anything; only valid JSON (`is_valid`) has promised answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kserve_local.gateway.gjson_document import (
    JSON,
    NOTHING,
    NULL,
    NUMBER,
    STRING,
    TOKEN,
    TRUE,
    VALID_STRING,
    Value,
    is_valid,
    next_value,
    parsed,
    quoted,
    unescape,
    value_end,
    value_of,
)
from kserve_local.gateway.gjson_path import (
    Part,
    argument_end,
    index_part,
    key_part,
    last_name,
    split_at_pipe,
    sub_paths,
)
from kserve_local.gateway.gjson_query import matches, plain, satisfies

__all__ = ["PathTooCostly", "exists", "get", "is_valid"]

MAX_DEPTH = 100
"""How deep a path may nest: components, queries, multipaths."""

# What one evaluation may scan and build: so many bytes, and so many for each byte of the document.
_SPARE = 8 * 1024 * 1024
_PER_BYTE = 32
_CONTAINER = re.compile(rb"[{\[]")


class PathTooCostly(ValueError):
    """The path asks for more work than any condition needs, or nests too deep."""


def exists(document: bytes, path: str) -> bool:
    """Whether `path` leads to anything in `document`.

    Raises:
        PathTooCostly: The path asks for too much.
    """
    return get(document, path).exists


def get(document: bytes, path: str) -> Value:
    """Return what `path` leads to in `document`.

    Raises:
        PathTooCostly: The path asks for too much.
    """
    words = path.encode("utf-8", "surrogateescape")
    return _Evaluation(_SPARE + _PER_BYTE * len(document)).get(document, words)


class _Walk:
    """One way through a document: what was found, and what it goes through then."""

    __slots__ = ("pipe", "value")

    def __init__(self) -> None:
        self.value = NOTHING
        self.pipe: bytes | None = None


class _Evaluation:
    """One `get`, with what it may still cost."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._depth = 0

    def get(self, document: bytes, path: bytes) -> Value:
        self._enter()
        try:
            return self._get(document, path)
        finally:
            self._depth -= 1

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise PathTooCostly(f"a path that nests more than {MAX_DEPTH} deep")

    def _spend(self, size: int) -> None:
        self._budget -= size + 16
        if self._budget < 0:
            raise PathTooCostly("a path that multiplies the document")

    def _end(self, document: bytes, at: int) -> int:
        end = value_end(document, at)
        self._spend(end - at)
        return end

    def _get(self, document: bytes, path: bytes) -> Value:
        while True:
            self._spend(len(path))
            lead = path[:1] if len(path) > 1 else b""
            if lead in (b"@", b"!"):
                made = self._modified(document, path) if lead == b"@" else self._literal(path)
                if made is not None:
                    document, path = made
                    if path[:1] not in (b"|", b"."):
                        return parsed(document)
                    path = path[1:]
                    continue
            elif lead in (b"[", b"{"):
                pairs, rest = sub_paths(path)
                if pairs and rest[:1] in (b"", b"|", b"."):
                    built = self._multipath(document, lead, pairs)
                    if not rest:
                        return Value(JSON, built)
                    document, path = built, rest[1:]
                    continue
                # Not closed, or something glued to it: what is left is the path.
                path = rest
            walk = _Walk()
            if path[:2] == b"..":
                self._array(walk, document, 0, path[2:])
            elif (begin := _CONTAINER.search(document)) is not None:
                at = begin.start()
                self._spend(at)
                if document[at : at + 1] == b"{":
                    self._object(walk, document, at + 1, path)
                else:
                    self._array(walk, document, at + 1, path)
            if walk.pipe is None:
                return walk.value
            document, path = walk.value.raw, walk.pipe

    def _multipath(self, document: bytes, lead: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes:
        out: list[bytes] = []
        for name, path in pairs:
            value = self.get(document, path)
            if not value.exists:
                continue
            raw = value.raw or b"null"
            if lead == b"{":
                if name[:1] == b'"' and VALID_STRING.fullmatch(name):
                    key = name
                else:
                    key = quoted(name or last_name(path))
                raw = b"%b:%b" % (key, raw)
            self._spend(len(raw))
            out.append(raw)
        return lead + b",".join(out) + (b"}" if lead == b"{" else b"]")

    # Containers

    def _object(self, walk: _Walk, document: bytes, at: int, path: bytes) -> bool:
        """Look for the path among members; True: found, and it is `walk.value`."""
        self._enter()
        part = key_part(path)
        if part.rest is None and part.pipe is not None:
            walk.pipe = part.pipe
        found = False
        while True:
            at = next_value(document, at)
            if at < 0 or document[at : at + 1] != b'"':
                break
            end = self._end(document, at)
            key = unescape(document[at + 1 : end - 1])
            at = next_value(document, end)
            if at < 0:
                break
            if part.wild:
                self._spend(len(key) * len(part.name) // 8)
                hit = matches(key, part.name)
            else:
                hit = key == part.name
            if hit and part.rest is not None:
                lead = document[at : at + 1]
                if lead == b"{":
                    found = self._object(walk, document, at + 1, part.rest)
                elif lead == b"[":
                    found = self._array(walk, document, at + 1, part.rest)
                if found:
                    break
            end = self._end(document, at)
            if hit and part.rest is None:
                walk.value = value_of(document[at:end])
                found = True
                break
            if end == at:
                break
            at = end
        self._depth -= 1
        return found

    def _array(self, walk: _Walk, document: bytes, at: int, path: bytes) -> bool:
        """Look for the path among elements; True: found, and it is `walk.value`."""
        self._enter()
        part = index_part(path)
        if part.rest is None and part.pipe is not None:
            walk.pipe = part.pipe
        try:
            if part.query is not None:
                return self._matching(walk, document, at, part)
            if part.each is not None:
                return self._each(walk, document, at, part.each)
            if part.whole and part.name == b"#":
                walk.value = Value(NUMBER, b"%d" % sum(1 for _ in self._elements(document, at)))
                return True
            if part.whole:
                return False
            return self._nth(walk, document, at, part)
        finally:
            self._depth -= 1

    def _nth(self, walk: _Walk, document: bytes, at: int, part: Part) -> bool:
        if not part.name.isdigit() or len(part.name) > 18:
            return False
        number = int(part.name)
        while True:
            at = next_value(document, at)
            if at < 0:
                return False
            if not number and part.rest is not None:
                lead = document[at : at + 1]
                if lead == b"{":
                    return self._object(walk, document, at + 1, part.rest)
                return lead == b"[" and self._array(walk, document, at + 1, part.rest)
            end = self._end(document, at)
            if not number:
                walk.value = value_of(document[at:end])
                return True
            if end == at:
                return False
            at, number = end, number - 1

    def _elements(self, document: bytes, at: int) -> Iterator[bytes]:
        while True:
            at = next_value(document, at)
            if at < 0:
                return
            end = self._end(document, at)
            if end == at:
                return
            yield document[at:end]
            at = end

    def _each(self, walk: _Walk, document: bytes, at: int, path: bytes) -> bool:
        path, pipe = split_at_pipe(path)
        if pipe is not None:
            walk.pipe = pipe
        found = [self.get(element, path) for element in self._elements(document, at)]
        walk.value = Value(JSON, b"[%b]" % b",".join(v.raw for v in found if v.exists))
        return True

    def _matching(self, walk: _Walk, document: bytes, at: int, part: Part) -> bool:
        query, rest = part.query, part.rest
        assert query is not None
        every: list[bytes] = []
        for element in self._elements(document, at):
            value = value_of(element)
            probe = value
            if value.kind == JSON:
                probe = self.get(element, query.path)
            elif query.path:
                continue
            if query.operator in (b"%", b"!%"):
                self._spend(len(probe.raw) * len(query.operand) // 8)
            if not satisfies(query, probe):
                continue
            if rest is not None:
                rest, pipe = split_at_pipe(rest)
                if pipe is not None:
                    walk.pipe = pipe
                value = self.get(element, rest)
            if not part.every:
                walk.value = value
                return True
            if value.raw:
                every.append(value.raw)
        if part.every and not walk.value.exists:
            walk.value = Value(JSON, b"[%b]" % b",".join(every))
        return False

    # Modifiers

    def _literal(self, path: bytes) -> tuple[bytes, bytes] | None:
        """Return a literal and the rest of the path; None: it is none.

        A number or string takes all that follows, which then does not count.
        """
        rest = path[1:]
        if rest[:1] in (b"{", b"["):
            end = value_end(rest, 0)
            return rest[:end], rest[end:]
        word = re.split(rb"[.|]", rest, maxsplit=1)[0]
        if word in (b"true", b"false", b"null"):
            return word, rest[len(word) :]
        value = parsed(rest)
        return (rest, b"") if value.kind in (NUMBER, STRING) else None

    def _modified(self, document: bytes, path: bytes) -> tuple[bytes, bytes] | None:
        """Return the document after the modifier, and the rest of the path; None: no modifier."""
        match = re.match(rb"@([^:|.]*)", path)
        name = match.group(1) if match else b""
        modifier = _MODIFIERS.get(name)
        if modifier is None:
            return None
        rest = path[1 + len(name) :]
        argument = b""
        if rest[:1] == b":":
            rest = rest[1:]
            end = argument_end(rest)
            argument, rest = rest[:end], rest[end:]
        self._spend(len(document))
        out = modifier(self, document, argument)
        self._spend(len(out))
        return out, rest

    def _this(self, document: bytes, argument: bytes) -> bytes:
        return document

    def _ugly(self, document: bytes, argument: bytes) -> bytes:
        return b"".join(
            word if word[:1] == b'"' else re.sub(rb"[\x00-\x20]+", b"", word)
            for word in TOKEN.findall(document)
        )

    def _valid(self, document: bytes, argument: bytes) -> bytes:
        return document if is_valid(document) else b""

    def _reverse(self, document: bytes, argument: bytes) -> bytes:
        value = parsed(document)
        if value.raw[:1] == b"[":
            return b"[%b]" % b",".join(reversed(list(self._elements(value.raw, 1))))
        if value.raw[:1] == b"{":
            members = [b"%b:%b" % pair for pair in self._members(value.raw)]
            return b"{%b}" % b",".join(reversed(members))
        return document

    def _members(self, raw: bytes) -> Iterator[tuple[bytes, bytes]]:
        words = self._elements(raw, 1)
        for key in words:
            yield key, next(words, b"null")

    def _flatten(self, document: bytes, argument: bytes) -> bytes:
        value = parsed(document)
        if value.raw[:1] != b"[":
            return document
        deep = self.get(argument, b"deep").kind == TRUE if argument else False
        out: list[bytes] = []
        for element in self._elements(value.raw, 1):
            if element[:1] != b"[":
                out.append(element)
                continue
            inner = element
            if deep:
                self._enter()
                inner = self._flatten(element, argument)
                self._depth -= 1
            content = inner[1:-1].strip(b" \t\r\n")
            if content:
                out.append(content)
        return b"[%b]" % b",".join(out)

    def _join(self, document: bytes, argument: bytes) -> bytes:
        value = parsed(document)
        if value.raw[:1] != b"[":
            return document
        preserve = self.get(argument, b"preserve").kind == TRUE if argument else False
        objects = [e for e in self._elements(value.raw, 1) if e[:1] == b"{"]
        if preserve:
            return b"{%b}" % b",".join(e[1:-1] for e in objects)
        # A key stays where it came first and as it was written there; the last value wins.
        members: dict[bytes, tuple[bytes, bytes]] = {}
        for element in objects:
            for key, member in self._members(element):
                name = unescape(key[1:-1])
                members[name] = (members.get(name, (key,))[0], member)
        return b"{%b}" % b",".join(b"%b:%b" % pair for pair in members.values())

    def _keys(self, document: bytes, argument: bytes) -> bytes:
        value = parsed(document)
        if not value.exists:
            return b"[]"
        if value.raw[:1] == b"{":
            return b"[%b]" % b",".join(key for key, _ in self._members(value.raw))
        if value.raw[:1] == b"[":
            return b"[%b]" % b",".join(b"null" for _ in self._elements(value.raw, 1))
        return b"[null]"

    def _values(self, document: bytes, argument: bytes) -> bytes:
        value = parsed(document)
        if not value.exists:
            return b"[]"
        if value.raw[:1] == b"[":
            return document
        if value.raw[:1] == b"{":
            return b"[%b]" % b",".join(member for _, member in self._members(value.raw))
        return b"[%b]" % value.raw

    def _tostr(self, document: bytes, argument: bytes) -> bytes:
        return quoted(document)

    def _fromstr(self, document: bytes, argument: bytes) -> bytes:
        if not is_valid(document):
            return b""
        value = parsed(document)
        if value.kind == NULL:
            return b""
        return plain(value.raw) if value.kind == NUMBER else value.text

    def _group(self, document: bytes, argument: bytes) -> bytes:
        value = parsed(document)
        if value.raw[:1] != b"{":
            return b""
        rows: list[list[bytes]] = []
        for key, column in self._members(value.raw):
            if column[:1] != b"[":
                continue
            for number, cell in enumerate(self._elements(column, 1)):
                if number == len(rows):
                    rows.append([])
                rows[number].append(b"%b:%b" % (key, cell))
        return b"[%b]" % b",".join(b"{%b}" % b",".join(row) for row in rows)

    def _dig(self, document: bytes, argument: bytes) -> bytes:
        """Collect what the argument leads to at every place of the document, outer places first."""
        found: list[bytes] = []
        places = [parsed(document)]
        while places:
            place = places.pop()
            value = self.get(place.raw, argument)
            if value.exists:
                found.append(value.raw or b"null")
            if place.kind == JSON:
                if place.raw[:1] == b"{":
                    inner = [value_of(member) for _, member in self._members(place.raw)]
                else:
                    inner = [value_of(element) for element in self._elements(place.raw, 1)]
                places += reversed(inner)
        return b"[%b]" % b",".join(found)


_MODIFIERS = {
    b"pretty": _Evaluation._this,
    b"ugly": _Evaluation._ugly,
    b"reverse": _Evaluation._reverse,
    b"this": _Evaluation._this,
    b"flatten": _Evaluation._flatten,
    b"join": _Evaluation._join,
    b"valid": _Evaluation._valid,
    b"keys": _Evaluation._keys,
    b"values": _Evaluation._values,
    b"tostr": _Evaluation._tostr,
    b"fromstr": _Evaluation._fromstr,
    b"group": _Evaluation._group,
    b"dig": _Evaluation._dig,
}
