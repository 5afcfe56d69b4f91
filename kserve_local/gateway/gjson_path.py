"""GJSON paths as text: their first component, queries, multipaths. Pure.

Every function reads the beginning of a path, since what the rest means hangs on what the
beginning leads to. Source: SYNTAX.md of tidwall/gjson, and its answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from kserve_local.gateway.gjson_document import (
    STRING_TEXT,
    closing_end,
    parsed,
    unescape,
    value_end,
)

MODIFIERS = frozenset(
    (b"pretty", b"ugly", b"reverse", b"this", b"flatten", b"join", b"valid", b"keys", b"values")
) | frozenset((b"tostr", b"fromstr", b"group", b"dig"))


@dataclass(frozen=True, slots=True)
class Part:
    """The first component of a path.

    Args:
        name: A key, with its escapes resolved, or an index.
        wild: The key is a pattern.
        rest: What follows a dot; None: nothing does.
        pipe: What the result goes through; None: nothing.
        whole: In an array: `#`, the array as a whole.
        each: In an array: `#.rest`, for every element.
        query / every: `#(...)`; `#(...)#`.
    """

    name: bytes
    wild: bool = False
    rest: bytes | None = None
    pipe: bytes | None = None
    whole: bool = False
    each: bytes | None = None
    query: Query | None = None
    every: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    path: bytes
    operator: bytes
    operand: bytes


def _goes_through(rest: bytes) -> bool:
    """Whether a dot before `rest` means a pipe: a modifier or a multipath follows."""
    if rest[:1] in (b"[", b"{"):
        return True
    return rest[:1] == b"@" and re.split(rb"[.|:]", rest[1:], maxsplit=1)[0] in MODIFIERS


def _after_dot(rest: bytes) -> tuple[bytes | None, bytes | None]:
    """Return (rest, pipe) for what follows a dot."""
    return (None, rest) if rest and _goes_through(rest) else (rest, None)


@lru_cache(maxsize=1024)
def key_part(path: bytes) -> Part:
    """Return the first component as an object reads it."""
    name = bytearray()
    wild = False
    at = 0
    while at < len(path):
        sign = path[at : at + 1]
        if sign == b"\\":
            name += path[at + 1 : at + 2]
            at += 2
            continue
        if sign == b".":
            rest, pipe = _after_dot(path[at + 1 :])
            return Part(bytes(name), wild, rest, pipe)
        if sign == b"|":
            return Part(bytes(name), wild, None, path[at + 1 :])
        wild = wild or sign in (b"*", b"?")
        name += sign
        at += 1
    return Part(bytes(name), wild)


@lru_cache(maxsize=1024)
def index_part(path: bytes) -> Part:
    """Return the first component as an array reads it."""
    query: Query | None = None
    whole = every = False
    at = 0
    while at < len(path):
        sign = path[at : at + 1]
        if sign == b"|":
            return Part(path[:at], pipe=path[at + 1 :], whole=whole, query=query, every=every)
        if sign == b".":
            rest: bytes | None = path[at + 1 :]
            pipe = None
            if not whole:
                rest, pipe = _after_dot(path[at + 1 :])
            return Part(path[:at], rest=rest, pipe=pipe, whole=whole, query=query, every=every)
        if sign == b"#":
            whole = True
            if at == 0 and path[1:2] == b".":
                return Part(b"#", whole=True, each=path[2:])
            if at == 0 and path[1:2] in (b"(", b"["):
                found = _query(path)
                if found is None:
                    # Upstream asks for anything then, which only scalars are.
                    return Part(path, whole=True, query=Query(b"", b"", b""))
                query, at = found
                every = path[at : at + 1] == b"#"
                continue
        at += 1
    return Part(path, whole=whole, query=query, every=every)


_OPERATORS = (b"==", b"=", b"!=", b"!%", b"!", b"<=", b"<", b">=", b">", b"%")


def _query(path: bytes) -> tuple[Query, int] | None:
    """Read `#(...)` at the beginning of `path`; None where it does not end."""
    depth, at = 1, 2
    operator_at = operand_at = -1
    escaped = False
    while at < len(path):
        sign = path[at : at + 1]
        if depth == 1 and operator_at < 0 and sign in b"!=<>%":
            operator_at = at
            two = path[at : at + 2]
            at += 2 if two in _OPERATORS else 1
            operand_at = at
            continue
        if sign == b"\\":
            at += 2
            continue
        if sign in (b"[", b"("):
            depth += 1
        elif sign in (b"]", b")"):
            depth -= 1
            if not depth:
                break
        elif sign == b'"':
            end = STRING_TEXT.match(path, at)
            stop = end.end() if end else len(path)
            if stop - at < 2 or path[stop - 1 : stop] != b'"':
                return None
            escaped = escaped or b"\\" in path[at:stop]
            at = stop
            continue
        at += 1
    if depth or at >= len(path):
        return None
    if operator_at < 0:
        return Query(_trim(path[2:at]), b"", b""), at + 1
    operand = _trim(path[operand_at:at])
    if path[operator_at:operand_at] == b"!":
        # No operator, but the path ends here, if anything follows.
        return Query(_trim(path[2 : operator_at if operand else at]), b"", b""), at + 1
    if len(operand) >= 2 and operand[:1] == b'"' == operand[-1:]:
        operand = unescape(operand[1:-1]) if escaped else operand[1:-1]
    operator = path[operator_at:operand_at]
    operator = b"=" if operator == b"==" else operator
    return Query(_trim(path[2:operator_at]), operator, operand), at + 1


def _trim(text: bytes) -> bytes:
    return text.strip(b" \t\r\n\v\f")


def split_at_pipe(path: bytes) -> tuple[bytes, bytes | None]:
    """Return (path, pipe) of what follows `#.`, where the pipe takes the collected array."""
    if b"|" not in path:
        return path, None
    if path[:1] == b"{":
        # Upstream takes what follows the brace for an opening sign, unless it is a quote.
        end = value_end(path, 1) if path[1:2] == b'"' else closing_end(path, 2)
        if path[end : end + 1] == b"|":
            return path[:end], path[end + 1 :]
        return path, None
    at = 0
    while at < len(path):
        sign = path[at : at + 1]
        if sign == b"\\":
            at += 2
            continue
        if sign == b"." and path[at + 1 : at + 2] == b"#":
            at += 2
            at = value_end(path, at) if path[at : at + 1] in (b"[", b"(") else at + 1
            continue
        if sign == b"|":
            return path[:at], path[at + 1 :]
        at += 1
    return path, None


def sub_paths(path: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Read a multipath at the beginning of `path`: (name, path) pairs and what follows it.

    No pairs and nothing more where it does not end.
    """
    found: list[tuple[bytes, bytes]] = []
    depth, start, colon, at = 1, 1, 0, 1
    in_modifier = False

    def add(end: int) -> None:
        name = path[start:colon] if colon else b""
        found.append((name, path[colon + 1 if colon else start : end]))

    while at < len(path):
        sign = path[at : at + 1]
        if sign == b"\\":
            at += 1
        elif sign == b"@":
            in_modifier = in_modifier or path[at - 1 : at] in (b".", b"|")
        elif sign == b":":
            if depth == 1 and not colon and not in_modifier:
                colon = at
        elif sign == b"," and depth == 1:
            add(at)
            start, colon, in_modifier = at + 1, 0, False
        elif sign == b'"':
            match = STRING_TEXT.match(path, at)
            at = match.end() - 1 if match else len(path)
        elif sign in (b"[", b"(", b"{"):
            depth += 1
        elif sign in (b"]", b")", b"}"):
            depth -= 1
            if not depth:
                add(at)
                return found, path[at + 1 :]
        at += 1
    return [], b""


def last_name(path: bytes) -> bytes:
    """Return the key under which a multipath puts what `path` leads to."""
    for at in range(len(path) - 1, -1, -1):
        if path[at : at + 1] in (b"|", b".") and (at == 0 or path[at - 1 : at] != b"\\"):
            path = path[at + 1 :]
            break
    return b"_" if re.search(rb"[\x00-\x1f\[\]{}()#|!]", path) else path


def argument_end(rest: bytes) -> int:
    """Return where a modifier's argument ends: one JSON value, or all up to a pipe."""
    if rest[:1] in (b"{", b"[", b'"') and parsed(rest).exists:
        return value_end(rest, 0)
    at = 0
    while at < len(rest) and rest[at : at + 1] != b"|":
        at = value_end(rest, at) if rest[at : at + 1] in (b"{", b"[", b'"', b"(") else at + 1
    return at
