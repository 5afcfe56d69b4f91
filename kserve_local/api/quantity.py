"""Kubernetes resource quantities (`500m`, `2Gi`, `1e3`) as numbers, and numbers as quantities."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from kserve_local.errors import Invalid

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_SUFFIXES: dict[str, Decimal] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}
_MESSAGE = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)


def parse(text: str | int | float) -> Decimal:
    """Return a quantity's value in its base unit (cores, bytes).

    Raises:
        Invalid: Not a quantity; Kubernetes' own words.
    """
    found = _QUANTITY.fullmatch(str(text).strip())
    if found is None:
        raise Invalid(_MESSAGE)
    number, suffix = found[1], found[2] or ""
    if suffix in _SUFFIXES:
        return Decimal(number) * _SUFFIXES[suffix]
    return Decimal(f"{number}{suffix}")


_COLLOQUIAL = re.compile(
    r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGTPE])(i?)(?:b|bytes?)?|(m|milli)?(?:cores?|cpus?)|b|bytes?)\s*",
    re.IGNORECASE,
)


def meant(text: str) -> tuple[str, ...]:
    """Return the quantities that `2GB`, `512 mb` or `1 core` may stand for, none if unclear."""
    match = _COLLOQUIAL.fullmatch(text)
    if match is None:
        return ()
    number, unit, binary, milli = match.groups()
    if unit is None:
        return (f"{number}m" if milli else number,)
    decimal = "k" if unit in "kK" else unit.upper()
    exact = f"{number}{unit.upper()}i"
    return (exact,) if binary else (f"{number}{decimal}", exact)


def is_quantity(text: str | int | float) -> bool:
    """Whether the text is a quantity."""
    return _QUANTITY.fullmatch(str(text).strip()) is not None


def to_bytes(text: str | int | float) -> int:
    """Return a memory or storage quantity in whole bytes, rounded up."""
    return int(parse(text).to_integral_value(rounding=ROUND_CEILING))


def to_cores(text: str | int | float) -> float:
    """Return a cpu quantity in cores."""
    return float(parse(text))


def canonical(number: float | Decimal) -> str:
    """Return a plain number as Kubernetes writes it: `0.5` -> `500m`, `2.0` -> `2`.

    Nothing below a billionth is kept; Kubernetes rounds it up as well.
    """
    value = Decimal(str(number))
    for suffix, exponent in (("", 0), ("m", 3), ("u", 6), ("n", 9)):
        scaled = value.scaleb(exponent)
        if scaled == scaled.to_integral_value():
            return f"{int(scaled)}{suffix}"
    return f"{int(value.scaleb(9).to_integral_value(rounding=ROUND_CEILING))}n"
