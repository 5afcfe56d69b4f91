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
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import orjson

NULL, FALSE, NUMBER, STRING, TRUE, JSON = "Null", "False", "Number", "String", "True", "JSON"

MAX_DEPTH = 100
"""How deep a path may nest: components, queries, multipaths."""

# What one evaluation may scan and build: so many bytes, and so many for each byte of the document.
_SPARE = 8 * 1024 * 1024
_PER_BYTE = 32

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_SCALAR = re.compile(rb"[^\x00-\x20,\]}]*+")
# Between the brackets of a container only strings and brackets matter.
_INNER = re.compile(rb'[^"{}\[\]()]++|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|.', re.DOTALL)
_BLANKS = re.compile(rb"[\x00-\x20]*+")
# What no value begins with is passed over, as upstream does.
_GAP = re.compile(rb'[^"{}\[\]tfnN0-9+\-iI]*+')
_CONTAINER = re.compile(rb"[{\[]")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_VALID_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEX = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+")
_NOT_FINITE = re.compile(r"[+-]?(?:inf|infinity)|nan", re.IGNORECASE)
_ESCAPE = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_OPEN, _CLOSE = b"{[(", b"}])"


class PathTooCostly(ValueError):
    """The path asks for more work than any condition needs, or nests too deep."""


@dataclass(frozen=True, slots=True)
class Value:
    """What a path leads to.

    Args:
        kind: `Null` also where there is nothing; then `raw` is empty.
        raw: JSON text as it stands in the document, or was built.
    """

    kind: str = NULL
    raw: bytes = b""

    @property
    def exists(self) -> bool:
        """Whether something is there: presence, not truth."""
        return self.kind != NULL or bool(self.raw)

    @property
    def text(self) -> bytes:
        """A string without its quotes and escapes; everything else as it stands."""
        if self.kind != STRING:
            return self.raw
        return unescape(self.raw[1:-1] if len(self.raw) > 1 else b"")


_NOTHING = Value()


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


# Documents


def is_valid(document: bytes) -> bool:
    """Whether `document` is one JSON value. As upstream, bytes that are no UTF-8 may be in it."""
    try:
        orjson.loads(document)
    except orjson.JSONDecodeError:
        return _is_valid(document)
    except RecursionError:  # pragma: no cover  # orjson says JSONDecodeError today
        return _is_valid(document)
    return True


def _is_valid(document: bytes) -> bool:
    """Check without a stack of calls: for nesting and bytes that orjson does not take."""
    open_: list[int] = []
    at = _skip_json_blanks(document, 0)
    while True:
        # A value begins here.
        lead = document[at : at + 1]
        if lead in (b"{", b"["):
            open_.append(lead[0])
            at = _skip_json_blanks(document, at + 1)
            closing = b"}" if lead == b"{" else b"]"
            if document[at : at + 1] != closing:
                if lead == b"{":
                    at = _valid_key(document, at)
                    if at < 0:
                        return False
                continue
        elif lead == b'"':
            string = _VALID_STRING.match(document, at)
            if string is None:
                return False
            at = string.end()
        else:
            word = next(
                (w for w in (b"true", b"false", b"null") if document.startswith(w, at)), b""
            )
            number = None if word else _NUMBER.match(document, at)
            if not word and number is None:
                return False
            at = at + len(word) if number is None else number.end()
        # A value, or an empty container that is still open, has ended.
        while True:
            at = _skip_json_blanks(document, at)
            if not open_:
                return at == len(document)
            sign = document[at : at + 1]
            at += 1
            if sign == (b"}" if open_[-1] == 0x7B else b"]"):
                open_.pop()
                continue
            if sign != b",":
                return False
            at = _skip_json_blanks(document, at)
            if open_[-1] == 0x7B:
                at = _valid_key(document, at)
                if at < 0:
                    return False
            break


_JSON_BLANKS = re.compile(rb"[ \t\r\n]*+")


def _skip_json_blanks(document: bytes, at: int) -> int:
    match = _JSON_BLANKS.match(document, at)
    return match.end() if match else at


def _valid_key(document: bytes, at: int) -> int:
    """Return where the value of the member begins whose key begins at `at`; -1: no key."""
    key = _VALID_STRING.match(document, at)
    if key is None:
        return -1
    at = _skip_json_blanks(document, key.end())
    if document[at : at + 1] != b":":
        return -1
    return _skip_json_blanks(document, at + 1)


def unescape(text: bytes) -> bytes:
    """Return a JSON string's content with its escapes resolved; halves of pairs become U+FFFD."""
    if b"\\" not in text:
        return text
    out: list[bytes] = []
    at, high = 0, 0
    for match in _ESCAPE.finditer(text):
        word = match.group(1)
        code = int(word[1:], 16) if word[:1] == b"u" and len(word) == 5 else -1
        if high and (match.start() != at or not 0xDC00 <= code < 0xE000):
            out.append(b"\xef\xbf\xbd")
            high = 0
        out.append(text[at : match.start()])
        at = match.end()
        if code < 0:
            out.append(_ESCAPED.get(word, word))
        elif high:
            out.append(chr(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)).encode())
            high = 0
        elif 0xD800 <= code < 0xDC00:
            high = code
        elif 0xDC00 <= code < 0xE000:
            out.append(b"\xef\xbf\xbd")
        else:
            out.append(chr(code).encode())
    if high:
        out.append(b"\xef\xbf\xbd")
    out.append(text[at:])
    return b"".join(out)


def _quoted(text: bytes) -> bytes:
    """Return `text` as a JSON string, written as upstream does (`<`, `>` and `&` escaped)."""
    out = orjson.dumps(text.decode("utf-8", "replace")).replace(b"\x7f", b"\\u007f")
    for plain, escaped in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        out = out.replace(plain, escaped)
    return out.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


def _kind_of(raw: bytes) -> str:
    lead = raw[:1]
    if lead in (b"{", b"["):
        return JSON
    if lead == b'"':
        return STRING
    if lead == b"t":
        return TRUE
    if lead == b"f":
        return FALSE
    return NULL if raw[:2] == b"nu" else NUMBER


def _value(raw: bytes) -> Value:
    return Value(_kind_of(raw), raw)


def _parsed(document: bytes) -> Value:
    """Return the document itself as a value; containers keep whatever follows them."""
    blanks = _BLANKS.match(document)
    at = blanks.end() if blanks else 0
    lead = document[at : at + 1]
    if lead in (b"{", b"["):
        return Value(JSON, document[at:])
    if lead == b'"':
        match = _STRING.match(document, at)
        return Value(STRING, match.group() if match else b"")
    if not lead or lead not in b"+-0123456789iInNtf":
        return _NOTHING
    word = {b"t": b"true", b"f": b"false"}.get(
        lead, b"null" if document[at : at + 2] == b"nu" else b""
    )
    if word and not document.startswith(word, at):
        return _NOTHING
    return _value(document[at : _scalar_end(document, at)])


_LETTERS = re.compile(rb"[a-z]*+")


def _scalar_end(document: bytes, at: int) -> int:
    letters = document[at : at + 1] in (b"t", b"f", b"n")
    match = (_LETTERS if letters else _SCALAR).match(document, at)
    return match.end() if match else at


def _value_end(document: bytes, at: int) -> int:
    """Return where the value ends that begins at `at`; the end of the document if it does not."""
    lead = document[at : at + 1]
    if lead == b'"':
        match = _STRING.match(document, at)
        return match.end() if match else len(document)
    if lead not in (b"{", b"[", b"("):
        return _scalar_end(document, at)
    return _closing_end(document, at + 1)


def _closing_end(document: bytes, at: int) -> int:
    """Return where the container ends whose content begins at `at`."""
    depth = 1
    for token in _INNER.finditer(document, at):
        word = token.group()
        if word in (b"{", b"[", b"("):
            depth += 1
        elif word in (b"}", b"]", b")"):
            depth -= 1
            if not depth:
                return token.end()
    return len(document)


def _next_value(document: bytes, at: int) -> int:
    """Return where the next value of an array begins; -1: there is none."""
    gap = _GAP.match(document, at)
    at = gap.end() if gap else at
    return -1 if document[at : at + 1] in (b"", b"]", b"}") else at


# Paths


@dataclass(frozen=True, slots=True)
class _Part:
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
    query: _Query | None = None
    every: bool = False


@dataclass(frozen=True, slots=True)
class _Query:
    path: bytes
    operator: bytes
    operand: bytes


def _goes_through(rest: bytes) -> bool:
    """Whether a dot before `rest` means a pipe: a modifier or a multipath follows."""
    if rest[:1] in (b"[", b"{"):
        return True
    return rest[:1] == b"@" and re.split(rb"[.|:]", rest[1:], maxsplit=1)[0] in _MODIFIERS


def _after_dot(rest: bytes) -> tuple[bytes | None, bytes | None]:
    """Return (rest, pipe) for what follows a dot."""
    return (None, rest) if rest and _goes_through(rest) else (rest, None)


@lru_cache(maxsize=1024)
def _key_part(path: bytes) -> _Part:
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
            return _Part(bytes(name), wild, rest, pipe)
        if sign == b"|":
            return _Part(bytes(name), wild, None, path[at + 1 :])
        wild = wild or sign in (b"*", b"?")
        name += sign
        at += 1
    return _Part(bytes(name), wild)


@lru_cache(maxsize=1024)
def _index_part(path: bytes) -> _Part:
    """Return the first component as an array reads it."""
    query: _Query | None = None
    whole = every = False
    at = 0
    while at < len(path):
        sign = path[at : at + 1]
        if sign == b"|":
            return _Part(path[:at], pipe=path[at + 1 :], whole=whole, query=query, every=every)
        if sign == b".":
            rest: bytes | None = path[at + 1 :]
            pipe = None
            if not whole:
                rest, pipe = _after_dot(path[at + 1 :])
            return _Part(path[:at], rest=rest, pipe=pipe, whole=whole, query=query, every=every)
        if sign == b"#":
            whole = True
            if at == 0 and path[1:2] == b".":
                return _Part(b"#", whole=True, each=path[2:])
            if at == 0 and path[1:2] in (b"(", b"["):
                found = _query(path)
                if found is None:
                    # Upstream asks for anything then, which only scalars are.
                    return _Part(path, whole=True, query=_Query(b"", b"", b""))
                query, at = found
                every = path[at : at + 1] == b"#"
                continue
        at += 1
    return _Part(path, whole=whole, query=query, every=every)


_OPERATORS = (b"==", b"=", b"!=", b"!%", b"!", b"<=", b"<", b">=", b">", b"%")


def _query(path: bytes) -> tuple[_Query, int] | None:
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
            end = _STRING.match(path, at)
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
        return _Query(_trim(path[2:at]), b"", b""), at + 1
    operand = _trim(path[operand_at:at])
    if path[operator_at:operand_at] == b"!":
        # No operator, but the path ends here, if anything follows.
        return _Query(_trim(path[2 : operator_at if operand else at]), b"", b""), at + 1
    if len(operand) >= 2 and operand[:1] == b'"' == operand[-1:]:
        operand = unescape(operand[1:-1]) if escaped else operand[1:-1]
    operator = path[operator_at:operand_at]
    operator = b"=" if operator == b"==" else operator
    return _Query(_trim(path[2:operator_at]), operator, operand), at + 1


def _trim(text: bytes) -> bytes:
    return text.strip(b" \t\r\n\v\f")


def _split_at_pipe(path: bytes) -> tuple[bytes, bytes | None]:
    """Return (path, pipe) of what follows `#.`, where the pipe takes the collected array."""
    if b"|" not in path:
        return path, None
    if path[:1] == b"{":
        # Upstream takes what follows the brace for an opening sign, unless it is a quote.
        end = _value_end(path, 1) if path[1:2] == b'"' else _closing_end(path, 2)
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
            at = _value_end(path, at) if path[at : at + 1] in (b"[", b"(") else at + 1
            continue
        if sign == b"|":
            return path[:at], path[at + 1 :]
        at += 1
    return path, None


def _sub_paths(path: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
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
            match = _STRING.match(path, at)
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


def _last_name(path: bytes) -> bytes:
    """Return the key under which a multipath puts what `path` leads to."""
    for at in range(len(path) - 1, -1, -1):
        if path[at : at + 1] in (b"|", b".") and (at == 0 or path[at - 1 : at] != b"\\"):
            path = path[at + 1 :]
            break
    return b"_" if re.search(rb"[\x00-\x1f\[\]{}()#|!]", path) else path


# Comparisons


@lru_cache(maxsize=256)
def _pattern(glob: bytes) -> re.Pattern[str]:
    """Return a regular expression for `*`, `?` and `\\` that never goes back behind a match."""
    pieces: list[list[str]] = [[]]
    text = glob.decode("utf-8", "surrogateescape")
    at = 0
    while at < len(text):
        sign = text[at]
        if sign == "*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append([])
        elif sign == "?":
            pieces[-1].append(".")
        elif sign == "\\":
            at += 1
            pieces[-1].append(re.escape(text[at : at + 1]))
        else:
            pieces[-1].append(re.escape(sign))
        at += 1
    first, *others = ["".join(piece) for piece in pieces]
    if not others:
        return re.compile(first, re.DOTALL)
    between = "".join(f"(?>.*?{piece})" for piece in others[:-1])
    return re.compile(f"{first}{between}.*{others[-1]}", re.DOTALL)


def matches(text: bytes, glob: bytes) -> bool:
    """Whether a whole text fits a pattern of `*` and `?`; `\\` takes the next sign as it is."""
    return _pattern(glob).fullmatch(text.decode("utf-8", "surrogateescape")) is not None


def _number(text: bytes) -> float:
    """Return what Go's ParseFloat gives, 0 for what is no number."""
    word = text.decode("latin-1")
    if _DECIMAL.fullmatch(word) or _NOT_FINITE.fullmatch(word):
        return float(word)
    if _HEX.fullmatch(word):
        try:
            return float.fromhex(word)
        except OverflowError:
            return float("-inf") if word[0] == "-" else float("inf")
    return 0.0


def _plain(raw: bytes) -> bytes:
    """Return a JSON number as upstream's text of it: no exponent, no needless zeros."""
    if raw.removeprefix(b"-").isdigit():
        return raw
    text = format(Decimal(repr(_number(raw))), "f")
    return (text.rstrip("0").removesuffix(".") if "." in text else text).encode()


def _compare(left: object, operator: bytes, right: object) -> bool:
    if operator == b"=":
        return left == right
    if operator == b"!=":
        return left != right
    if operator == b"<":
        return left < right  # type: ignore[operator,no-any-return]  # two of one type
    if operator == b"<=":
        return left <= right  # type: ignore[operator,no-any-return]
    if operator == b">":
        return left > right  # type: ignore[operator,no-any-return]
    return operator == b">=" and left >= right  # type: ignore[operator]


_TRUE_WORDS = (b"1", b"t", b"true")
_FALSE_WORDS = (b"0", b"f", b"false")


def _as_truth(value: Value, word: bytes) -> bool | None:
    """Return what `~word` makes of a value; None: there is no such word."""
    if word == b"*":
        return value.exists
    if word == b"null":
        return value.kind == NULL
    if word == b"true":
        if value.kind == STRING:
            return value.text.lower() in _TRUE_WORDS
        return value.kind == TRUE or (value.kind == NUMBER and _number(value.raw) != 0)
    if word == b"false":
        if value.kind == STRING:
            return value.text.lower() in _FALSE_WORDS
        return value.kind in (NULL, FALSE) or (value.kind == NUMBER and _number(value.raw) == 0)
    return None


def _satisfies(query: _Query, value: Value) -> bool:
    operand = query.operand
    if operand[:1] == b"~":
        truth = _as_truth(value, operand[1:])
        if truth is None:
            return False
        value, operand = Value(TRUE if truth else FALSE, b"~"), b"true"
    if not value.exists:
        return False
    operator = query.operator
    if not operator:
        return True
    if value.kind == STRING:
        text = value.text
        if operator in (b"%", b"!%"):
            return matches(text, operand) == (operator == b"%")
        return _compare(text, operator, operand)
    if value.kind == NUMBER:
        return _compare(_number(value.raw), operator, _number(operand))
    if value.kind == TRUE:
        return (
            (operand == b"true")
            if operator == b"="
            else (operand != b"true")
            if operator == b"!="
            else (operand == b"false")
            if operator == b">"
            else operator == b">="
        )
    if value.kind == FALSE:
        return (
            (operand == b"false")
            if operator == b"="
            else (operand != b"false")
            if operator == b"!="
            else (operand == b"true")
            if operator == b"<"
            else operator == b"<="
        )
    return False


class _Walk:
    """One way through a document: what was found, and what it goes through then."""

    __slots__ = ("pipe", "value")

    def __init__(self) -> None:
        self.value = _NOTHING
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
        end = _value_end(document, at)
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
                        return _parsed(document)
                    path = path[1:]
                    continue
            elif lead in (b"[", b"{"):
                pairs, rest = _sub_paths(path)
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
                if name[:1] == b'"' and _VALID_STRING.fullmatch(name):
                    key = name
                else:
                    key = _quoted(name or _last_name(path))
                raw = b"%b:%b" % (key, raw)
            self._spend(len(raw))
            out.append(raw)
        return lead + b",".join(out) + (b"}" if lead == b"{" else b"]")

    # Containers

    def _object(self, walk: _Walk, document: bytes, at: int, path: bytes) -> bool:
        """Look for the path among members; True: found, and it is `walk.value`."""
        self._enter()
        part = _key_part(path)
        if part.rest is None and part.pipe is not None:
            walk.pipe = part.pipe
        found = False
        while True:
            at = _next_value(document, at)
            if at < 0 or document[at : at + 1] != b'"':
                break
            end = self._end(document, at)
            key = unescape(document[at + 1 : end - 1])
            at = _next_value(document, end)
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
                walk.value = _value(document[at:end])
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
        part = _index_part(path)
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

    def _nth(self, walk: _Walk, document: bytes, at: int, part: _Part) -> bool:
        if not part.name.isdigit() or len(part.name) > 18:
            return False
        number = int(part.name)
        while True:
            at = _next_value(document, at)
            if at < 0:
                return False
            if not number and part.rest is not None:
                lead = document[at : at + 1]
                if lead == b"{":
                    return self._object(walk, document, at + 1, part.rest)
                return lead == b"[" and self._array(walk, document, at + 1, part.rest)
            end = self._end(document, at)
            if not number:
                walk.value = _value(document[at:end])
                return True
            if end == at:
                return False
            at, number = end, number - 1

    def _elements(self, document: bytes, at: int) -> Iterator[bytes]:
        while True:
            at = _next_value(document, at)
            if at < 0:
                return
            end = self._end(document, at)
            if end == at:
                return
            yield document[at:end]
            at = end

    def _each(self, walk: _Walk, document: bytes, at: int, path: bytes) -> bool:
        path, pipe = _split_at_pipe(path)
        if pipe is not None:
            walk.pipe = pipe
        found = [self.get(element, path) for element in self._elements(document, at)]
        walk.value = Value(JSON, b"[%b]" % b",".join(v.raw for v in found if v.exists))
        return True

    def _matching(self, walk: _Walk, document: bytes, at: int, part: _Part) -> bool:
        query, rest = part.query, part.rest
        assert query is not None
        every: list[bytes] = []
        for element in self._elements(document, at):
            value = _value(element)
            probe = value
            if value.kind == JSON:
                probe = self.get(element, query.path)
            elif query.path:
                continue
            if query.operator in (b"%", b"!%"):
                self._spend(len(probe.raw) * len(query.operand) // 8)
            if not _satisfies(query, probe):
                continue
            if rest is not None:
                rest, pipe = _split_at_pipe(rest)
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
            end = _value_end(rest, 0)
            return rest[:end], rest[end:]
        word = re.split(rb"[.|]", rest, maxsplit=1)[0]
        if word in (b"true", b"false", b"null"):
            return word, rest[len(word) :]
        value = _parsed(rest)
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
            end = _argument_end(rest)
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
            for word in _INNER.findall(document)
        )

    def _valid(self, document: bytes, argument: bytes) -> bytes:
        return document if is_valid(document) else b""

    def _reverse(self, document: bytes, argument: bytes) -> bytes:
        value = _parsed(document)
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
        value = _parsed(document)
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
        value = _parsed(document)
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
        value = _parsed(document)
        if not value.exists:
            return b"[]"
        if value.raw[:1] == b"{":
            return b"[%b]" % b",".join(key for key, _ in self._members(value.raw))
        if value.raw[:1] == b"[":
            return b"[%b]" % b",".join(b"null" for _ in self._elements(value.raw, 1))
        return b"[null]"

    def _values(self, document: bytes, argument: bytes) -> bytes:
        value = _parsed(document)
        if not value.exists:
            return b"[]"
        if value.raw[:1] == b"[":
            return document
        if value.raw[:1] == b"{":
            return b"[%b]" % b",".join(member for _, member in self._members(value.raw))
        return b"[%b]" % value.raw

    def _tostr(self, document: bytes, argument: bytes) -> bytes:
        return _quoted(document)

    def _fromstr(self, document: bytes, argument: bytes) -> bytes:
        if not is_valid(document):
            return b""
        value = _parsed(document)
        if value.kind == NULL:
            return b""
        return _plain(value.raw) if value.kind == NUMBER else value.text

    def _group(self, document: bytes, argument: bytes) -> bytes:
        value = _parsed(document)
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
        places = [_parsed(document)]
        while places:
            place = places.pop()
            value = self.get(place.raw, argument)
            if value.exists:
                found.append(value.raw or b"null")
            if place.kind == JSON:
                if place.raw[:1] == b"{":
                    inner = [_value(member) for _, member in self._members(place.raw)]
                else:
                    inner = [_value(element) for element in self._elements(place.raw, 1)]
                places += reversed(inner)
        return b"[%b]" % b",".join(found)


def _argument_end(rest: bytes) -> int:
    """Return where a modifier's argument ends: one JSON value, or all up to a pipe."""
    if rest[:1] in (b"{", b"[", b'"') and _parsed(rest).exists:
        return _value_end(rest, 0)
    at = 0
    while at < len(rest) and rest[at : at + 1] != b"|":
        at = _value_end(rest, at) if rest[at : at + 1] in (b"{", b"[", b'"', b"(") else at + 1
    return at


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
