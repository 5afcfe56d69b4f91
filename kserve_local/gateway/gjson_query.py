"""What a GJSON query compares: texts, patterns, numbers as Go reads them, truth. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from kserve_local.gateway.gjson_document import FALSE, NULL, NUMBER, STRING, TRUE, Value
from kserve_local.gateway.gjson_path import Query

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEX = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+")
_NOT_FINITE = re.compile(r"[+-]?(?:inf|infinity)|nan", re.IGNORECASE)


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


def number_of(text: bytes) -> float:
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


def plain(raw: bytes) -> bytes:
    """Return a JSON number as upstream's text of it: no exponent, no needless zeros."""
    if raw.removeprefix(b"-").isdigit():
        return raw
    text = format(Decimal(repr(number_of(raw))), "f")
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
        return value.kind == TRUE or (value.kind == NUMBER and number_of(value.raw) != 0)
    if word == b"false":
        if value.kind == STRING:
            return value.text.lower() in _FALSE_WORDS
        return value.kind in (NULL, FALSE) or (value.kind == NUMBER and number_of(value.raw) == 0)
    return None


def satisfies(query: Query, value: Value) -> bool:
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
        return _compare(number_of(value.raw), operator, number_of(operand))
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
