"""The picture of one run as shapes, whatever draws them: requests above, replicas below, and why.

Every step of the autoscaler is a dot on the line of wanted replicas, in the colour of its reason
and with its words behind it (SVG shows them under the pointer); the largest steps have their reason
written below, as many as there is room for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kserve_local.simulator.result import Bins, Change, Result

Point = tuple[float, float]
WIDTH, HEIGHT = 1100, 860

_LEFT, _RIGHT = 64, WIDTH - 20
_TOP = (64, 290)
_BOTTOM = (330, 540)
_REASONS_AT = 574
_LABEL_ROOM = 16
"""Least pixels between two written reasons."""
_LABEL_LENGTH = 46
"""Most characters of one."""
INK, PALE, GRID = "#222222", "#666666", "#dddddd"
_REQUESTS, _IN_FLIGHT, _HELD = "#0072b2", "#56b4e9", "#d55e00"
_WANTED, _READY = "#222222", "#b8dcc8"
_PALETTE = ("#d55e00", "#009e73", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_TIMES = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """Straight pieces from point to point; `closed`: the area is filled instead."""

    points: tuple[Point, ...]
    color: str
    width: float = 1.0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle; `title` is what it stands for."""

    at: Point
    radius: float
    color: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Words, `at` the left, middle or right of their base line; `turned`: they read downwards."""

    at: Point
    text: str
    color: str = INK
    size: int = 12
    anchor: Literal["start", "middle", "end"] = "start"
    turned: bool = False


Shape = Line | Dot | Text


@dataclass(frozen=True, slots=True)
class _Panel:
    """Maps seconds and values to pixels."""

    top: int
    bottom: int
    duration: float
    most: float

    def at(self, time: float, value: float) -> Point:
        """Return the place of a value."""
        share = min(max(time / self.duration, 0.0), 1.0)
        x = _LEFT + share * (_RIGHT - _LEFT)
        return round(x, 1), round(self.bottom - value / self.most * (self.bottom - self.top), 1)


def picture(result: Result, title: str) -> list[Shape]:
    """Return the shapes of a run on a plane of `WIDTH` by `HEIGHT`, in the order to draw them."""
    duration = max(result.duration, 1.0)
    bins = result.bins
    load = _Panel(
        *_TOP, duration, _ceiling(max((*bins.requests, *bins.in_flight, *bins.held, 1.0)))
    )
    most = max(max(c.replicas, c.ready) for c in result.changes)
    replicas = _Panel(*_BOTTOM, duration, _ceiling(max(most, 1)))
    shapes: list[Shape] = [
        Text((_LEFT, 24), title, size=15),
        Text((_LEFT, 42), _subtitle(result), PALE),
    ]
    shapes += _axes(load, "requests")
    shapes += _axes(replicas, "replicas")
    if any(bins.held):
        shapes.append(_held(load, bins))
    shapes.append(Line(_middles(load, bins.width, bins.in_flight), _IN_FLIGHT, 1.2))
    shapes.append(Line(_middles(load, bins.width, bins.requests), _REQUESTS, 1.2))
    shapes += _legend(
        _TOP[0] - 8,
        [("requests a second", _REQUESTS), ("in flight", _IN_FLIGHT), ("held or queued", _HELD)],
    )
    shapes.append(_area(_stairs(replicas, result.changes, lambda c: c.ready), replicas, _READY))
    shapes.append(Line(tuple(_stairs(replicas, result.changes, lambda c: c.replicas)), _WANTED))
    shapes += _legend(_BOTTOM[0] - 8, [("wanted", _WANTED), ("ready", _READY)])
    return shapes + _steps(result, replicas)


def clock(seconds: float) -> str:
    """Return `1:02:03`, with tenths if there are any."""
    sign = "-" if seconds < 0 else ""
    tenths = round(abs(seconds) * 10)
    whole, rest = divmod(tenths, 10)
    text = f"{sign}{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{text}.{rest}" if rest else text


def _subtitle(result: Result) -> str:
    p50, p99 = (result.latency[name] * 1000 for name in ("p50", "p99"))
    parts = [
        f"{result.requests} requests",
        f"{result.errors} errors",
        f"p50 {p50:.4g} ms",
        f"p99 {p99:.4g} ms",
        f"{result.replica_seconds:.0f} replica-seconds",
        f"{result.wakes} times from zero",
    ]
    return " · ".join(parts)


def _ceiling(value: float) -> float:
    """Return the next number above that reads well."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(m * power for m in (1, 2, 2.5, 4, 5, 8, 10) if m * power >= value * 0.9999))


def _axes(panel: _Panel, name: str) -> list[Shape]:
    shapes: list[Shape] = [Text((_LEFT, panel.top - 8), name, PALE)]
    parts = 4 if panel.most >= 4 else max(1, int(panel.most))
    for part in range(parts + 1):
        value = panel.most * part / parts
        x, y = panel.at(0, value)
        shapes.append(Line(((x, y), (_RIGHT, y)), GRID))
        shapes.append(Text((x - 6, y + 4), f"{value:g}", PALE, 11, "end"))
    step = next((s for s in _TIMES if panel.duration / s <= 12), 86400.0)
    step *= max(1, math.ceil(panel.duration / step / 12))
    for number in range(int(panel.duration // step) + 1):
        x, y = panel.at(number * step, 0)
        shapes.append(Line(((x, y), (x, y + 4)), PALE))
        shapes.append(Text((x, y + 17), clock(number * step), PALE, 11, "middle"))
    return shapes


def _legend(y: int, entries: Sequence[tuple[str, str]], x: float = _LEFT + 90) -> list[Shape]:
    shapes: list[Shape] = []
    for text, color in entries:
        shapes.append(Dot((x, y - 4), 4, color))
        shapes.append(Text((x + 9, y), text, PALE, 11))
        x += 26 + 6.2 * len(text)
    return shapes


def _held(panel: _Panel, bins: Bins) -> Line:
    corners = [
        panel.at((i + side) * bins.width, n) for i, n in enumerate(bins.held) for side in (0, 1)
    ]
    return _area(corners, panel, _HELD)


def _middles(panel: _Panel, width: float, values: Sequence[float]) -> tuple[Point, ...]:
    return tuple(panel.at((i + 0.5) * width, value) for i, value in enumerate(values))


def _stairs(
    panel: _Panel, changes: Sequence[Change], value: Callable[[Change], int]
) -> list[Point]:
    """Return the corners of a number that stays from change to change."""
    points: list[Point] = []
    before = max(i for i, change in enumerate(changes) if i == 0 or change.time <= 0)
    for change in changes[before:]:
        corner = panel.at(change.time, value(change))
        if points and points[-1][1] != corner[1]:
            points.append((corner[0], points[-1][1]))
        if not points or points[-1] != corner:
            points.append(corner)
    points.append((_RIGHT, points[-1][1]))
    return points


def _area(points: list[Point], panel: _Panel, color: str) -> Line:
    left, right = points[0][0], points[-1][0]
    return Line(((left, panel.bottom), *points, (right, panel.bottom)), color, closed=True)


def _steps(result: Result, panel: _Panel) -> list[Shape]:
    """Return the dots, what their colours mean, and the reasons there is room for."""
    steps = [s for s in result.steps if 0 <= s.time <= result.duration]
    counts: dict[str, int] = {}
    for step in steps:
        counts[step.reason] = counts.get(step.reason, 0) + 1
    order = sorted(counts, key=lambda reason: (-counts[reason], reason))
    colors = {reason: _PALETTE[min(i, len(_PALETTE) - 1)] for i, reason in enumerate(order)}
    shapes: list[Shape] = [
        Dot(
            panel.at(step.time, step.replicas),
            3,
            colors[step.reason],
            f"{clock(step.time)}  {step.before} -> {step.replicas}  {step.reason}: {step.message}",
        )
        for step in steps
    ]
    taken: list[float] = []
    for step in sorted(steps, key=lambda s: (-abs(s.replicas - s.before), s.time)):
        x, _ = panel.at(step.time, 0)
        if any(abs(x - other) < _LABEL_ROOM for other in taken):
            continue
        taken.append(x)
        shapes.append(Line(((x, _BOTTOM[1]), (x, _REASONS_AT - 8)), GRID))
        text = f"{step.before} -> {step.replicas} {step.reason}: {step.message}"
        text = text if len(text) <= _LABEL_LENGTH else f"{text[: _LABEL_LENGTH - 3]}..."
        shapes.append(Text((x - 4, _REASONS_AT - 4), text, colors[step.reason], 11, turned=True))
    named = [(f"{reason} ({counts[reason]})", colors[reason]) for reason in order]
    return shapes + _legend(HEIGHT - 8, named, _LEFT + 4.0)
