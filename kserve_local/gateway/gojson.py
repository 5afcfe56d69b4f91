"""JSON as Go's encoding/json reads, writes and refuses it. Pure: no I/O.

A graph's router decodes answers into Go values and writes them anew, so what a client sees has
Go's marks: sorted keys, every number a float64, `<`, `>` and `&` escaped, and Go's words where
something cannot be read.
"""

from __future__ import annotations

import json
import re
from typing import Any

_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_ODD_BYTE = re.compile("[\udc80-\udcff]")
_BLANKS = re.compile(r"[ \t\r\n]*+")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*+)?")
_PLAIN_FROM, _PLAIN_TO = 1e-6, 1e21
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "bool"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
)


class GoJSONError(ValueError):
    """The text is encoding/json's."""


def decode(data: bytes) -> Any:
    """Return the value of `data`: numbers as float, bytes that are no UTF-8 as U+FFFD.

    Raises:
        GoJSONError: It is not JSON.
    """
    text = data.decode("utf-8", "surrogateescape")
    if not text.isascii():
        text = _ODD_BYTE.sub("\ufffd", text)
    try:
        return json.loads(text, parse_int=_float, parse_float=_float, parse_constant=_refuse)
    except RecursionError as error:
        raise GoJSONError("exceeded max depth") from error
    except GoJSONError:
        raise
    except ValueError as error:
        raise GoJSONError(syntax_error(data.decode("utf-8", "surrogateescape"))) from error


def decode_object(data: bytes) -> dict[str, Any] | None:
    """Return what `json.Unmarshal` into a map gives; None for `null`.

    Raises:
        GoJSONError: It is not JSON, or no object.
    """
    value = decode(data)
    if value is None or isinstance(value, dict):
        return value
    kind = next(name for type_, name in _KINDS if isinstance(value, type_))
    raise GoJSONError(
        f"json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
    )


def encode(value: Any) -> bytes:
    """Return `json.Marshal` of a decoded value.

    Raises:
        GoJSONError: It nests too deep.
    """
    out: list[str] = []
    try:
        _write(value, out)
    except RecursionError as error:
        raise GoJSONError("exceeded max depth") from error
    return "".join(out).encode("utf-8", "replace")


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise GoJSONError(f"json: cannot unmarshal number {text} into Go value of type float64")
    return number


def _refuse(text: str) -> float:
    raise ValueError(text)


def _write(value: Any, out: list[str]) -> None:
    if isinstance(value, str):
        out.append(_quoted(value))
    elif value is None:
        out.append("null")
    elif isinstance(value, bool):
        out.append("true" if value else "false")
    elif isinstance(value, float):
        out.append(_number(value))
    elif isinstance(value, list):
        out.append("[")
        for index, item in enumerate(value):
            if index:
                out.append(",")
            _write(item, out)
        out.append("]")
    else:
        out.append("{")
        # By bytes, as Go compares strings; UTF-8 keeps the order of code points.
        for index, key in enumerate(sorted(value)):
            out.append(f"{',' if index else ''}{_quoted(key)}:")
            _write(value[key], out)
        out.append("}")


_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
_ESCAPED = re.compile("[<>&\u2028\u2029]")
_HALF = re.compile("[\ud800-\udfff]")


def _quoted(text: str) -> str:
    whole = json.dumps(_HALF.sub("\ufffd", text), ensure_ascii=False)
    return _ESCAPED.sub(lambda match: _ESCAPES[match.group()], whole)


def _number(value: float) -> str:
    """Return a float64 as ECMAScript writes it, which Go follows."""
    if value == 0:
        return "-0" if str(value)[0] == "-" else "0"
    text = repr(value)
    digits, _, exponent = text.partition("e")
    if _PLAIN_FROM <= abs(value) < _PLAIN_TO:
        return _without_exponent(text) if exponent else digits.removesuffix(".0")
    sign = "-" if exponent.startswith("-") else "+"
    return f"{digits.removesuffix('.0')}e{sign}{exponent.lstrip('+-').lstrip('0')}"


def _without_exponent(text: str) -> str:
    from decimal import Decimal

    plain = format(Decimal(text), "f")
    return plain.rstrip("0").removesuffix(".") if "." in plain else plain


def syntax_error(text: str) -> str:
    """Return what Go says about the first wrong character of a text that is no JSON."""
    return _Scan(text).error()


class _Scan:
    """One look for the first wrong character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def error(self) -> str:
        """Return Go's words, or an empty text for JSON after all."""
        try:
            self._document()
        except _Wrong as wrong:
            return str(wrong)
        return ""

    def _fail(self, where: str) -> _Wrong:
        if self._at >= len(self._text):
            # Inside a number, a word or an escape Go's scanner takes the end for a blank.
            if (" literal" in where or "escape" in where) and "string literal" not in where:
                return _Wrong(f"invalid character ' ' {where}")
            return _Wrong("unexpected end of JSON input")
        return _Wrong(f"invalid character {_shown(self._text[self._at])} {where}")

    def _next(self) -> str:
        blanks = _BLANKS.match(self._text, self._at)
        self._at = blanks.end() if blanks else self._at
        return self._text[self._at : self._at + 1]

    def _document(self) -> None:
        open_: list[str] = []
        while True:
            sign = self._next()
            if sign and sign in "{[":
                open_.append(sign)
                self._at += 1
                closing = "}" if sign == "{" else "]"
                if self._next() != closing:
                    if sign == "{":
                        self._key()
                    continue
            else:
                self._scalar(sign)
            while True:
                sign = self._next()
                if not open_:
                    if sign:
                        raise self._fail("after top-level value")
                    return
                inside = open_[-1] == "{"
                if sign == ("}" if inside else "]"):
                    open_.pop()
                    self._at += 1
                    continue
                if sign != ",":
                    raise self._fail(
                        "after object key:value pair" if inside else "after array element"
                    )
                self._at += 1
                if inside:
                    self._key()
                break

    def _key(self) -> None:
        if self._next() != '"':
            raise self._fail("looking for beginning of object key string")
        self._string()
        if self._next() != ":":
            raise self._fail("after object key")
        self._at += 1

    def _string(self) -> None:
        match = _STRING.match(self._text, self._at)
        self._at = match.end() if match else self._at
        sign = self._text[self._at : self._at + 1]
        if sign == '"':
            self._at += 1
            return
        if sign != "\\":
            raise self._fail("in string literal")
        self._at += 1
        if self._text[self._at : self._at + 1] != "u":
            raise self._fail("in string escape code")
        self._at += 1
        while self._text[self._at : self._at + 1] in tuple("0123456789abcdefABCDEF"):
            self._at += 1
        raise self._fail("in \\u hexadecimal character escape")

    def _scalar(self, sign: str) -> None:
        if sign == '"':
            self._string()
        elif sign and sign in "-0123456789":
            self._number(sign)
        elif sign and sign in "tfn":
            word = {"t": "true", "f": "false", "n": "null"}[sign]
            for letter in word:
                if self._text[self._at : self._at + 1] != letter:
                    raise self._fail(f"in literal {word} (expecting {_shown(letter)})")
                self._at += 1
        else:
            raise self._fail("looking for beginning of value")

    def _number(self, sign: str) -> None:
        match = _INTEGER.match(self._text, self._at)
        begun, self._at = self._at, match.end() if match else self._at
        if sign == "-" and self._at == begun + 1:
            raise self._fail("in numeric literal")
        if self._text[self._at : self._at + 1] == ".":
            self._at += 1
            self._digits("after decimal point in numeric literal")
        if self._text[self._at : self._at + 1] in ("e", "E"):
            self._at += 1
            if self._text[self._at : self._at + 1] in ("+", "-"):
                self._at += 1
            self._digits("in exponent of numeric literal")

    def _digits(self, where: str) -> None:
        begun = self._at
        while self._text[self._at : self._at + 1] in tuple("0123456789"):
            self._at += 1
        if self._at == begun:
            raise self._fail(where)


class _Wrong(Exception):
    """Where a text stops being JSON."""


def _shown(sign: str) -> str:
    """Return a character, or its first byte, as Go quotes it in an error."""
    if sign == "'":
        return r"'\''"
    if sign == '"':
        return "'\"'"
    byte = sign.encode("utf-8", "surrogateescape")[0]
    if byte in b"\a\b\f\n\r\t\v\\":
        return "'\\" + "abfnrtv\\"[b"\a\b\f\n\r\t\v\\".index(byte)] + "'"
    if byte < 0x20 or byte == 0x7F:
        return f"'\\x{byte:02x}'"
    return f"'{chr(byte)}'" if byte < 0x80 or byte > 0xA0 else f"'\\u{byte:04x}'"
