"""JSON documents as bytes, the way GJSON looks at them: valid or not, where values end, what a
string holds. Pure.

Broken documents have answers too, the ones that upstream's scanner gives where it matters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

NULL, FALSE, NUMBER, STRING, TRUE, JSON = "Null", "False", "Number", "String", "True", "JSON"

STRING_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_SCALAR = re.compile(rb"[^\x00-\x20,\]}]*+")
# Between the brackets of a container only strings and brackets matter.
TOKEN = re.compile(rb'[^"{}\[\]()]++|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|.', re.DOTALL)
_BLANKS = re.compile(rb"[\x00-\x20]*+")
# What no value begins with is passed over, as upstream does.
_GAP = re.compile(rb'[^"{}\[\]tfnN0-9+\-iI]*+')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
VALID_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_ESCAPE = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


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


NOTHING = Value()


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
            string = VALID_STRING.match(document, at)
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
    key = VALID_STRING.match(document, at)
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


def quoted(text: bytes) -> bytes:
    """Return `text` as a JSON string, written as upstream does (`<`, `>` and `&` escaped)."""
    out = orjson.dumps(text.decode("utf-8", "replace")).replace(b"\x7f", b"\\u007f")
    for plain, escaped in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        out = out.replace(plain, escaped)
    return out.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


def kind_of(raw: bytes) -> str:
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


def value_of(raw: bytes) -> Value:
    return Value(kind_of(raw), raw)


def parsed(document: bytes) -> Value:
    """Return the document itself as a value; containers keep whatever follows them."""
    blanks = _BLANKS.match(document)
    at = blanks.end() if blanks else 0
    lead = document[at : at + 1]
    if lead in (b"{", b"["):
        return Value(JSON, document[at:])
    if lead == b'"':
        match = STRING_TEXT.match(document, at)
        return Value(STRING, match.group() if match else b"")
    if not lead or lead not in b"+-0123456789iInNtf":
        return NOTHING
    word = {b"t": b"true", b"f": b"false"}.get(
        lead, b"null" if document[at : at + 2] == b"nu" else b""
    )
    if word and not document.startswith(word, at):
        return NOTHING
    return value_of(document[at : _scalar_end(document, at)])


_LETTERS = re.compile(rb"[a-z]*+")


def _scalar_end(document: bytes, at: int) -> int:
    letters = document[at : at + 1] in (b"t", b"f", b"n")
    match = (_LETTERS if letters else _SCALAR).match(document, at)
    return match.end() if match else at


def value_end(document: bytes, at: int) -> int:
    """Return where the value ends that begins at `at`; the end of the document if it does not."""
    lead = document[at : at + 1]
    if lead == b'"':
        match = STRING_TEXT.match(document, at)
        return match.end() if match else len(document)
    if lead not in (b"{", b"[", b"("):
        return _scalar_end(document, at)
    return closing_end(document, at + 1)


def closing_end(document: bytes, at: int) -> int:
    """Return where the container ends whose content begins at `at`."""
    depth = 1
    for token in TOKEN.finditer(document, at):
        word = token.group()
        if word in (b"{", b"[", b"("):
            depth += 1
        elif word in (b"}", b"]", b")"):
            depth -= 1
            if not depth:
                return token.end()
    return len(document)


def next_value(document: bytes, at: int) -> int:
    """Return where the next value of an array begins; -1: there is none."""
    gap = _GAP.match(document, at)
    at = gap.end() if gap else at
    return -1 if document[at : at + 1] in (b"", b"]", b"}") else at
