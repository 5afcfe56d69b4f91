"""Durations and distributions as a user writes them: `50ms`, `exp(50ms)`, `lognormal(50ms,200ms)`.

A distribution is a value; `draws` gives it a source of randomness. Seconds inside.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kserve_local.api.validation_knative import parse_duration
from kserve_local.errors import UsageError

Draw = Callable[[], float]

EXAMPLES = (
    "50ms, exp(50ms), uniform(20ms,80ms), normal(50ms,10ms), lognormal(50ms,200ms) (median, p95), "
    "empirical(times.txt)"
)
_CALL = re.compile(r"([a-z]+)\((.*)\)", re.DOTALL)
_ARGUMENTS = {"exp": 1, "uniform": 2, "normal": 2, "lognormal": 2, "empirical": 1}
_P95 = 1.6448536269514722
"""Standard deviations from the median of a normal distribution to its 95th percentile."""


def seconds_of(text: str) -> float | None:
    """Return the seconds of `1.5`, `50ms`, `1m30s`; None if it is no duration."""
    text = text.strip()
    try:
        value: float | None = float(text)
    except ValueError:
        value = parse_duration(text)
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Distribution:
    """How long something takes.

    Args:
        text: As it was written.
        kind: `constant`, or the name of the distribution.
        parameters: Its arguments in seconds; of `empirical`: the values to draw from.
    """

    text: str
    kind: str
    parameters: tuple[float, ...]

    def draws(self, source: random.Random) -> Draw:
        """Return what gives one duration a call; never below 0."""
        one, two = (*self.parameters, 0.0, 0.0)[:2]
        match self.kind:
            case "exp":
                uniform, log = source.random, math.log
                return lambda: -one * log(1.0 - uniform())
            case "uniform":
                uniform, width = source.random, two - one
                return lambda: one + width * uniform()
            case "normal":
                gauss = source.gauss
                return lambda: max(0.0, gauss(one, two))
            case "lognormal":
                gauss, exp = source.gauss, math.exp
                mu, sigma = math.log(one), math.log(two / one) / _P95
                return lambda: exp(gauss(mu, sigma))
            case "empirical":
                uniform, values = source.random, array("d", self.parameters)
                count = len(values)
                return lambda: values[int(uniform() * count)]
        return lambda: one


def distribution(text: str, option: str) -> Distribution:
    """Read a distribution.

    Args:
        option: Where it was given, for the error.

    Raises:
        UsageError: It is none, or its file cannot be read.
    """
    written = text.strip()
    constant = seconds_of(written)
    if constant is not None:
        if constant < 0:
            raise _wrong(text, option, "it is less than nothing")
        return Distribution(written, "constant", (constant,))
    call = _CALL.fullmatch(written)
    if call is None or call[1] not in _ARGUMENTS:
        raise _wrong(text, option, "it is no duration and no distribution")
    kind = call[1]
    if kind == "empirical":
        return Distribution(written, kind, _values(Path(call[2].strip()), option))
    parameters = [seconds_of(part) for part in call[2].split(",")]
    if len(parameters) != _ARGUMENTS[kind]:
        raise _wrong(text, option, f"{kind} takes {_ARGUMENTS[kind]} durations")
    known = [p for p in parameters if p is not None and p >= 0]
    if len(known) != len(parameters):
        raise _wrong(text, option, "an argument is no duration")
    if kind == "uniform" and known[0] > known[1]:
        raise _wrong(text, option, "the first is the lower bound")
    if kind == "lognormal" and not 0 < known[0] <= known[1]:
        raise _wrong(
            text, option, "the median comes first and is above 0, then the 95th percentile"
        )
    return Distribution(written, kind, tuple(known))


def _values(path: Path, option: str) -> tuple[float, ...]:
    """Return the durations in a file, one a line; blank lines and those with # do not count."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(f'{option}: "{path}" cannot be read: {why}') from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        value = seconds_of(line)
        if value is None or value < 0:
            raise UsageError(f'{option}: {path}:{number}: "{line.strip()}" is no duration')
        found.append(value)
    if not found:
        raise UsageError(f"{option}: {path} holds no durations; write one a line, e.g. 50ms")
    return tuple(found)


def _wrong(text: str, option: str, why: str) -> UsageError:
    return UsageError(f'{option} "{text}": {why}', hint=f"write e.g. {EXAMPLES}")
