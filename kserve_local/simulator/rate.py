"""Requests a second as an expression of the time: `50+40*sin(2*pi*t/1h)`, `step(0:10,10m:200)`.

A small language of its own: numbers (with `s`, `m`, `h`, `d` behind them: seconds), `t`, `pi`, `e`,
`+ - * / % **`, brackets, the functions below, `step(time:rate, ...)` and `ramp(time:rate, ...)`.
Nothing else can be said in it, so that an expression may come from anywhere.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import NoReturn

from kserve_local.errors import UsageError

Rate = Callable[[float], float]
"""From seconds since the start to requests a second."""

EXAMPLES = "100, 50+40*sin(2*pi*t/1h), step(0:10,10m:200), ramp(0:0,1h:100)"
_MOST_NESTED = 40
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<unit>ms|[smhd])?(?![\w.])"
    r"|(?P<name>[A-Za-z_]+)|(?P<sign>\*\*|[-+*/%(),:]))"
)
_CONSTANTS = {"pi": math.pi, "e": math.e}
_FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {
    "sin": (1, math.sin),
    "cos": (1, math.cos),
    "exp": (1, math.exp),
    "sqrt": (1, math.sqrt),
    "abs": (1, abs),
    "floor": (1, math.floor),
    "min": (2, min),
    "max": (2, max),
}


def rate(text: str, option: str) -> Rate:
    """Return the function that an expression says; negative values count as 0.

    Args:
        option: Where it was given, for the error.

    Raises:
        UsageError: It is no expression. Calling the function: it has no value at that time.
    """
    expression = _Parser(text, option).whole()

    def value(t: float) -> float:
        try:
            found = expression(t)
        except (ArithmeticError, ValueError) as error:
            raise _wrong(text, option, f"at t={t:g} it has no value: {error}") from error
        if not isinstance(found, (int, float)) or not math.isfinite(found):
            raise _wrong(text, option, f"at t={t:g} it has no value")
        return max(0.0, found)

    value(0.0)
    return value


def stepped(times: list[float], rates: list[float]) -> Rate:
    """Return each rate from its time to the next; before the first: 0."""
    return lambda t: rates[at - 1] if (at := bisect.bisect_right(times, t)) else 0.0


def _ramped(times: list[float], rates: list[float]) -> Rate:
    def value(t: float) -> float:
        at = bisect.bisect_right(times, t)
        if not at:
            return rates[0]
        if at == len(times):
            return rates[-1]
        share = (t - times[at - 1]) / (times[at] - times[at - 1])
        return rates[at - 1] + share * (rates[at] - rates[at - 1])

    return value


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str, option: str) -> None:
        self._text, self._option = text, option
        self._tokens: list[tuple[str, float]] = []
        self._at = 0
        self._depth = 0
        at = 0
        while text[at:].strip():
            token = _TOKEN.match(text, at)
            if token is None:
                self._fail(f'"{text[at:].strip()[:10]}" cannot be read')
            at = token.end()
            if token["number"]:
                scale = _UNITS[token["unit"]] if token["unit"] else 1.0
                self._tokens.append(("number", float(token["number"]) * scale))
            else:
                self._tokens.append((token["name"] or token["sign"], 0.0))

    def whole(self) -> Rate:
        found = self._sum()
        if self._peek():
            self._fail(f'"{self._peek()}" is one too many')
        return found

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self, *signs: str) -> str:
        found = self._peek()
        if found not in signs:
            return ""
        self._at += 1
        return found

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            self._fail(
                f'"{sign}" is missing' + (f' before "{self._peek()}"' if self._peek() else "")
            )

    def _sum(self) -> Rate:
        self._depth += 1
        if self._depth > _MOST_NESTED:
            self._fail("it is nested too deeply")
        found = self._product()
        while sign := self._take("+", "-"):
            found = _plus(found, self._product()) if sign == "+" else _minus(found, self._product())
        self._depth -= 1
        return found

    def _product(self) -> Rate:
        found = self._signed()
        while sign := self._take("*", "/", "%"):
            right = self._signed()
            found = {"*": _times, "/": _over, "%": _modulo}[sign](found, right)
        return found

    def _signed(self) -> Rate:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        found = self._power()
        return _minus(lambda t: 0.0, found) if negative else found

    def _power(self) -> Rate:
        base = self._atom()
        if not self._take("**"):
            return base
        self._depth += 1
        if self._depth > _MOST_NESTED:
            self._fail("it is nested too deeply")
        exponent = self._signed()
        self._depth -= 1
        return lambda t: base(t) ** exponent(t)

    def _atom(self) -> Rate:
        if self._take("("):
            inner = self._sum()
            self._expect(")")
            return inner
        kind = self._peek()
        if not kind:
            self._fail("it ends too early")
        value = self._tokens[self._at][1]
        self._at += 1
        if kind == "number":
            return lambda t: value
        if kind == "t":
            return lambda t: t
        if kind in _CONSTANTS:
            constant = _CONSTANTS[kind]
            return lambda t: constant
        if kind in ("step", "ramp"):
            times, rates = self._points(kind)
            return stepped(times, rates) if kind == "step" else _ramped(times, rates)
        if kind in _FUNCTIONS:
            return self._call(kind)
        names = ", ".join(("t", *_CONSTANTS, *_FUNCTIONS, "step", "ramp"))
        if kind.isalpha():
            self._fail(f'"{kind}" is unknown; there are {names}')
        self._fail(f'a number is missing before "{kind}"')

    def _call(self, name: str) -> Rate:
        count, function = _FUNCTIONS[name]
        self._expect("(")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._expect(")")
        if len(arguments) != count and not (count == 2 and len(arguments) > 2):
            self._fail(f"{name} takes {count} value{'s' if count > 1 else ''}")
        if len(arguments) == 1:
            only = arguments[0]
            return lambda t: function(only(t))
        return lambda t: function(*(argument(t) for argument in arguments))

    def _points(self, name: str) -> tuple[list[float], list[float]]:
        self._expect("(")
        times, rates = [], []
        while True:
            when = self._sum()
            self._expect(":")
            much = self._sum()
            try:
                times.append(when(0.0))
                rates.append(much(0.0))
            except (ArithmeticError, ValueError) as error:
                self._fail(f"a point of {name} has no value: {error}")
            if not self._take(","):
                break
        self._expect(")")
        if any(later <= before for before, later in pairwise(times)):
            self._fail(f"the times in {name} must rise")
        return times, rates

    def _fail(self, why: str) -> NoReturn:
        raise _wrong(self._text, self._option, why)


def _plus(left: Rate, right: Rate) -> Rate:
    return lambda t: left(t) + right(t)


def _minus(left: Rate, right: Rate) -> Rate:
    return lambda t: left(t) - right(t)


def _times(left: Rate, right: Rate) -> Rate:
    return lambda t: left(t) * right(t)


def _over(left: Rate, right: Rate) -> Rate:
    return lambda t: left(t) / right(t)


def _modulo(left: Rate, right: Rate) -> Rate:
    return lambda t: left(t) % right(t)


def _wrong(text: str, option: str, why: str) -> UsageError:
    return UsageError(f'{option} "{text}": {why}', hint=f"write e.g. {EXAMPLES}")
