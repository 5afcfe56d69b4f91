"""Recorded traffic out of a file: one request a line, or a rate an interval. CSV or JSON lines.

Columns by name, in any order; others are left alone. Without a header the first column is the time
and the second, if any, how long the request took. Times are seconds or ISO 8601; dates, and seconds
or milliseconds since 1970, count from the first one.

    timestamp,service_time          timestamp,rate           {"timestamp": 0.0, "service_ms": 41}
    0.0,0.041                       0,10                     {"timestamp": 0.7, "service_ms": 38}
    0.7,0.038                       60,25
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kserve_local.errors import UsageError
from kserve_local.simulator.durations import seconds_of
from kserve_local.simulator.rate import Rate, stepped

_TIMES = ("timestamp", "time", "t", "ts", "arrival", "start")
_SERVICES = ("service_time", "service", "duration", "latency", "seconds")
_SERVICES_MS = ("service_time_ms", "service_ms", "duration_ms", "latency_ms", "ms")
_RATES = ("rate", "rps", "requests_per_second")
_COUNTS = ("requests", "count", "invocations")
_EPOCH, _EPOCH_MS = 1e8, 1e11
"""Numbers above are seconds, or milliseconds, since 1970: no trace is three years long."""
EXAMPLE = "timestamp,service_time\n0.0,0.041\n0.7,0.038"


@dataclass(frozen=True, slots=True)
class Trace:
    """What a file holds: requests, or how many there are when.

    Args:
        arrivals: Seconds, rising; empty: there is `rate`.
        services: Seconds that each request takes; empty: not in the file.
        rate: Requests a second.
        duration: Seconds from 0 to the last request, or to the end of the last interval.
    """

    arrivals: array[float]
    services: array[float]
    rate: Rate | None
    duration: float


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which cell of a row is what; a name, or a place in it."""

    time: str
    service: str = ""
    scale: float = 1.0
    rate: str = ""
    count: str = ""


class _Unreadable(Exception):
    """One line cannot be used; the argument says why."""


def read(path: Path, option: str) -> Trace:
    """Read a trace.

    Args:
        option: Where it was given, for the error.

    Raises:
        UsageError: The file cannot be read, or a line of it; file and line are named.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _trace(_rows(file, path, option), path, option)
    except OSError as error:
        raise UsageError(f'{option}: "{path}" cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UsageError(f'{option}: "{path}" is not text') from error


def _rows(lines: Iterable[str], path: Path, option: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Return line number and cells by name; nameless columns are called 0 and 1."""
    header: Sequence[str] | None = None
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("{"):
            try:
                found = json.loads(text)
            except ValueError as error:
                raise UsageError(f"{option}: {path}:{number}: not JSON: {error}") from error
            yield number, {str(k).lower(): str(v) for k, v in found.items() if v is not None}
            continue
        cells = next(csv.reader([text], skipinitialspace=True))
        if header is None:
            if _time(cells[0]) is None:
                header = [cell.strip().lower() for cell in cells]
                continue
            header = ("0", "1")
        yield number, dict(zip(header, cells, strict=False))


def _trace(rows: Iterator[tuple[int, dict[str, str]]], path: Path, option: str) -> Trace:
    columns: _Columns | None = None
    times, values = array("d"), array("d")
    for number, row in rows:
        try:
            if columns is None:
                columns = _columns(row)
            times.append(_number(row, columns.time, time=True))
            name = columns.service or columns.rate or columns.count
            if name:
                values.append(_number(row, name) * columns.scale)
        except _Unreadable as error:
            raise UsageError(f"{option}: {path}:{number}: {error}", hint=EXAMPLE) from error
    if columns is None:
        raise UsageError(f"{option}: {path} holds no requests", hint=EXAMPLE)
    _from_zero(times)
    if not (columns.rate or columns.count):
        return _requests(times, values)
    if len(times) < 2:
        raise UsageError(f"{option}: {path} holds one rate; two say how long an interval is")
    return _intervals(times, values, counts=bool(columns.count), path=path, option=option)


def _columns(row: Mapping[str, str]) -> _Columns:
    if "0" in row:
        return _Columns("0", "1" if "1" in row else "")

    def named(names: Sequence[str]) -> str:
        return next((n for n in names if n in row), "")

    time = named(_TIMES)
    if not time:
        raise _Unreadable(f"no column is called {', '.join(_TIMES[:-1])} or {_TIMES[-1]}")
    if found := named(_RATES):
        return _Columns(time, rate=found)
    if found := named(_COUNTS):
        return _Columns(time, count=found)
    if found := named(_SERVICES_MS):
        return _Columns(time, found, scale=1e-3)
    return _Columns(time, named(_SERVICES))


def _number(row: Mapping[str, str], name: str, *, time: bool = False) -> float:
    text = row.get(name, "").strip()
    value = _time(text) if time else seconds_of(text)
    if value is None:
        raise _Unreadable(f'"{text}" is no {"time" if time else "number"}')
    if not time and value < 0:
        raise _Unreadable(f"{text} is less than nothing")
    return value


def _time(text: str) -> float | None:
    value = seconds_of(text)
    if value is not None:
        return value / 1000 if value > _EPOCH_MS else value
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _from_zero(times: array[float]) -> None:
    first = min(times)
    if first > _EPOCH or first < 0:
        for at, time in enumerate(times):
            times[at] = time - first


def _requests(times: array[float], values: array[float]) -> Trace:
    if any(times[at] < times[at - 1] for at in range(1, len(times))):
        order = sorted(range(len(times)), key=times.__getitem__)
        times = array("d", (times[at] for at in order))
        values = array("d", (values[at] for at in order)) if values else values
    return Trace(times, values, None, times[-1])


def _intervals(
    times: array[float], values: array[float], *, counts: bool, path: Path, option: str
) -> Trace:
    ends = [*times[1:], 2 * times[-1] - times[-2]]
    if any(end <= start for start, end in zip(times, ends, strict=True)):
        raise UsageError(f"{option}: {path}: the times of the intervals must rise")
    rates = list(values)
    if counts:
        rates = [n / (e - s) for n, s, e in zip(values, times, ends, strict=True)]
    return Trace(array("d"), array("d"), stepped(list(times), rates), ends[-1])
