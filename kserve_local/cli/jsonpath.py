"""kubectl's JSONPath templates: `{range .items[*]}{.metadata.name}{"\\n"}{end}`. Pure.

Written to kubectl's documented and observed behaviour: a missing field prints nothing, several
results of one action are joined by blanks, objects and lists are printed as JSON, `$` and `@` both
mean the current object. Meant more kindly than there: a lone `.a.b` without braces is a path,
`['a.b']` is one key whose dots need no backslash, keys may be quoted either way, and a `{range}`
without its `{end}` is an error. Libraries for JSONPath proper know neither templates nor `range`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from kserve_local.errors import UsageError


@dataclass(frozen=True, slots=True)
class _Field:
    name: str


@dataclass(frozen=True, slots=True)
class _Wildcard:
    pass


@dataclass(frozen=True, slots=True)
class _Descent:
    """`..`: the value, and everything below it."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """`[start:stop:step]`; `single` is `[start]`."""

    start: int | None
    stop: int | None
    step: int | None
    single: bool


@dataclass(frozen=True, slots=True)
class _Union:
    paths: tuple[_Path, ...]


@dataclass(frozen=True, slots=True)
class _Filter:
    """Elements whose `left` compares with `right`; without an operator, those that have `left`."""

    left: _Path
    operator: str
    right: _Path


@dataclass(frozen=True, slots=True)
class _Literal:
    value: Any


_Step = _Field | _Wildcard | _Descent | _Slice | _Union | _Filter | _Literal
_Path = tuple[_Step, ...]


@dataclass(frozen=True, slots=True)
class _Range:
    path: _Path
    body: tuple[_Piece, ...]


_Piece = str | _Path | _Range
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge,
}  # fmt: skip
_COMPARISON = re.compile(r"([^!<>=]+)([!<>=]+)(.+)")
_SLICE = re.compile(r"(-?\d*)(?::(-?\d*))?(?::(-?\d*))?")
_NUMBER = re.compile(r"[-+]?\d[\d.]*")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[0-7]{3}|.)")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_END_OF_NAME = frozenset(" \t\r\n.,[]$@{}")


class Template:
    """One parsed template.

    Args:
        text: As after `-o jsonpath=`.

    Raises:
        UsageError: It cannot be read.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if "{" not in text and text[:1] in (".", "$", "["):
            text = f"{{{text}}}"
        try:
            self._pieces = _nested(_Parser(text).pieces())
        except _Problem as problem:
            raise UsageError(
                f"jsonpath {self.text}: {problem}",
                hint="""as kubectl takes it: -o jsonpath='{.status.url}{"\\n"}'""",
            ) from problem

    def render(self, data: Any) -> str:
        """Return what kubectl prints for `data`.

        Raises:
            UsageError: A step does not fit what is there, e.g. an index beyond a list's end.
        """
        try:
            return "".join(_rendered(self._pieces, data))
        except _Problem as problem:
            raise UsageError(f"jsonpath {self.text}: {problem}") from problem


class _Problem(Exception):
    pass


class _Parser:
    """Reads a template, or (`path`) the inside of one action."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pieces(self) -> list[str | tuple[str, _Path]]:
        """Return texts and actions, each action as (`range`, `end` or "", path)."""
        found: list[str | tuple[str, _Path]] = []
        while self.at < len(self.text):
            start = self.text.find("{", self.at)
            if start != self.at:
                end = start if start >= 0 else len(self.text)
                found.append(self.text[self.at : end])
                self.at = end
                continue
            self.at += 1
            word = self._keyword()
            found.append((word, self.path("}")))
        return found

    def path(self, end: str = "") -> _Path:
        """Return the steps up to `end`, which is read too; without one, up to the text's end."""
        steps: list[_Step] = []
        while True:
            rest = self.text[self.at :]
            if not rest or rest[0] in "\r\n":
                if end or rest:
                    raise _Problem("unclosed action")
                return tuple(steps)
            if end and rest.startswith(end):
                self.at += 1
                return tuple(steps)
            steps.extend(self._step(rest))

    def _step(self, rest: str) -> Sequence[_Step]:
        first = rest[0]
        if first in " \t@$":
            self.at += 1
            return ()
        if rest.startswith("[?("):
            return (self._filter(),)
        if first == "[":
            return (self._bracket(),)
        if rest.startswith(".."):
            self.at += 2
            following = self.text[self.at : self.at + 1]
            named = following == "*" or following == "_" or following.isalnum()
            return (_Descent(), self._field()) if named else (_Descent(),)
        if first == ".":
            self.at += 1
            return (self._field(),)
        if first in "\"'":
            return (_Literal(self._quoted()),)
        if number := _NUMBER.match(rest):
            self.at += number.end()
            return (_Literal(_number(number[0])),)
        if first.isalnum() or first == "_":
            word = self._name()
            if word not in ("true", "false"):
                raise _Problem(f'unrecognized identifier "{word}" (a field begins with a dot)')
            return (_Literal(word == "true"),)
        raise _Problem(f'unrecognized character "{first}" in an action')

    def _keyword(self) -> str:
        """Return `range` or `end` if the action begins with it, and pass over it."""
        begun = self.at
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1
        word = self._name()
        if word in ("range", "end"):
            return word
        self.at = begun
        return ""

    def _name(self) -> str:
        """Read up to what ends a name; a backslash takes the next character as it is."""
        found = ""
        while self.at < len(self.text) and self.text[self.at] not in _END_OF_NAME:
            if self.text[self.at] == "\\":
                self.at += 1
            found += self.text[self.at : self.at + 1]
            self.at += 1
        return found

    def _field(self) -> _Step:
        name = self._name()
        return _Wildcard() if name == "*" else _Field(name)

    def _quoted(self) -> str:
        quote, begun = self.text[self.at], self.at + 1
        end = _closing(self.text, begun, quote)
        self.at = end + 1
        return _ESCAPE.sub(_unescaped, self.text[begun:end])

    def _bracket(self) -> _Step:
        inside = self._inside("]", "array")
        parts = _split(inside)
        if len(parts) > 1:
            return _Union(tuple((_bracketed(part),) for part in parts))
        return _bracketed(inside)

    def _filter(self) -> _Step:
        self.at += 2
        inside = self._inside(")", "filter")
        if self.text[self.at : self.at + 1] != "]":
            raise _Problem("a filter ends with )]")
        self.at += 1
        if not (found := _COMPARISON.fullmatch(inside)):
            return _Filter(_Parser(inside).path(), "", ())
        left, operator, right = found.groups()
        if operator not in _OPERATORS:
            raise _Problem(f"unrecognized filter operator {operator}")
        return _Filter(_Parser(left).path(), operator, _Parser(right).path())

    def _inside(self, end: str, what: str) -> str:
        """Return what stands between the bracket here and its `end`, and pass over both."""
        begun = self.at = self.at + 1
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == end:
                self.at += 1
                return self.text[begun : self.at - 1]
            self.at = _closing(self.text, self.at + 1, char) if char in "\"'" else self.at
            self.at += 1
        raise _Problem(f"unterminated {what}")


def _closing(text: str, at: int, quote: str) -> int:
    while at < len(text) and text[at] != quote:
        at += 2 if text[at] == "\\" else 1
    if at >= len(text):
        raise _Problem("unterminated quoted string")
    return at


def _split(text: str) -> list[str]:
    """Return the parts between commas outside quotes."""
    parts, begun, at = [], 0, 0
    while at < len(text):
        if text[at] in "\"'":
            at = _closing(text, at + 1, text[at])
        elif text[at] == ",":
            parts.append(text[begun:at])
            begun = at + 1
        at += 1
    return [part.strip() for part in (*parts, text[begun:])]


def _bracketed(text: str) -> _Step:
    if text == "*":
        return _Slice(None, None, None, single=False)
    if len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]:
        return _Field(re.sub(r"\\(.)", r"\1", text[1:-1]))
    found = _SLICE.fullmatch(text)
    if not text or not found or "-" in found.groups():
        raise _Problem(f"invalid array index {text}")
    start, stop, step = (int(part) if part else None for part in found.groups())
    return _Slice(start, stop, step, single=":" not in text)


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    if len(code) == 3 and code.isdigit():
        return chr(int(code, 8))
    if len(code) > 1:
        return chr(int(code[1:], 16))
    return _ESCAPES.get(code, code)


def _number(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise _Problem(f"cannot parse number {text}") from error


def _nested(flat: Sequence[str | tuple[str, _Path]]) -> tuple[_Piece, ...]:
    """Put what stands between `{range}` and `{end}` inside its range."""
    open_: list[tuple[_Path, list[_Piece]]] = [((), [])]
    for piece in flat:
        if isinstance(piece, str):
            open_[-1][1].append(piece)
            continue
        word, path = piece
        if word == "range":
            open_.append((path, []))
        elif word == "end":
            if len(open_) == 1:
                raise _Problem("not in range, nothing to end")
            over, body = open_.pop()
            open_[-1][1].append(_Range(over, tuple(body)))
        else:
            open_[-1][1].append(path)
    if len(open_) > 1:
        raise _Problem("a {range} has no {end}")
    return tuple(open_[0][1])


def _rendered(pieces: Sequence[_Piece], data: Any) -> list[str]:
    found = []
    for piece in pieces:
        if isinstance(piece, str):
            found.append(piece)
        elif isinstance(piece, _Range):
            for value in _walk(piece.path, [data]):
                found += _rendered(piece.body, value)
        else:
            found.append(" ".join(map(_text, _walk(piece, [data]))))
    return found


def _walk(path: _Path, values: list[Any]) -> list[Any]:
    for step in path:
        values = _taken(step, values)
    return values


def _taken(step: _Step, values: list[Any]) -> list[Any]:
    """Return what one step makes of the values before it."""
    match step:
        case _Literal(value):
            return [value]
        case _Union(paths):
            return [found for path in paths for found in _walk(path, values)]
        case _Field(name):
            return [v[name] for v in values if isinstance(v, dict) and name in v]
        case _Wildcard():
            return [child for v in values for child in _children(v)]
        case _Descent():
            return [found for v in values for found in _below(v)]
        case _Slice():
            return [found for v in values if v is not None for found in _sliced(step, v)]
        case _Filter():
            return [found for v in values for found in _listed(v) if _passes(step, found)]


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _below(value: Any) -> list[Any]:
    children = _children(value)
    if not children:
        return [value] if isinstance(value, str) and value else []
    return [value, *(found for child in children for found in _below(child))]


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Problem(f"{_type(value)} is not array or slice")
    return value


def _sliced(step: _Slice, value: Any) -> list[Any]:
    """Return a part of a list; unlike Python, beyond its ends there is an error."""
    items = _listed(value)
    length = len(items)
    start = step.start or 0
    start += length if start < 0 else 0
    if step.single:
        stop = start + 1
    else:
        stop = length if step.stop is None else step.stop
        stop += length if stop < 0 else 0
    if start == stop:
        return []
    for index, allowed in ((start, 0 <= start < length), (stop - 1, 0 <= stop <= length)):
        if not allowed:
            raise _Problem(f"array index out of bounds: index {index}, length {length}")
    if start > stop:
        raise _Problem(f"starting index {start} is greater than ending index {stop}")
    if step.step is not None and step.step <= 0:
        raise _Problem("step must be > 0")
    return items[start : stop : step.step or 1]


def _passes(step: _Filter, element: Any) -> bool:
    left = _walk(step.left, [element])
    if not step.operator:
        return bool(left)
    right = _walk(step.right, [element])
    if not left or not right:
        return False
    if len(left) > 1 or len(right) > 1:
        raise _Problem("can only compare one element at a time")
    if _type(left[0]) != _type(right[0]) or isinstance(left[0], dict | list | None):
        raise _Problem(f"incompatible types: {_type(left[0])} {step.operator} {_type(right[0])}")
    return _OPERATORS[step.operator](left[0], right[0])


def _type(value: Any) -> str:
    names = ((bool, "boolean"), (int | float, "number"), (str, "string"), (dict, "map"))
    found = (name for type_, name in names if isinstance(value, type_))
    return next(found, "null" if value is None else "array")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = json.dumps(_whole(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # As Go's encoder does, so that the text may stand in HTML.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _whole(value: Any) -> Any:
    """Return the value with whole floats as integers: Go prints no `.0`."""
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e21
    return int(value) if is_whole else value
