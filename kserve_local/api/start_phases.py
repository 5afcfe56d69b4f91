"""The phases of one Pod's start, and how they are told. Pure.

Each phase ends where the next one begins, so they add up to the time from the first stamp to the
last one, whatever happened in between. Times are counted in whole microseconds: sums are exact.

decide       from the arrival of the request that found no replica, at the gateway, until the node
             agent sees the Pod: poke, autoscaler, Revision, Deployment
resolve      until the first init container begins: scheduling, GPUs, what runs for each image
download     storage initializer, model images, init containers; until all is known of what to run
environment  virtual environment or image: found, built, pulled
start        process forked or container made, until its program begins
load         the program: imports, model, listening; until the Pod's readiness probes say yes
warm         status, routes, the gateway's table; where a request waited, until it has its answer

`decide` is there only where a request waited for this Pod before there was one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of

PHASES = ("decide", "resolve", "download", "environment", "start", "load", "warm")
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Start:
    """How long each phase of a start took, in microseconds; `PHASES`' order, those that it had."""

    phases: Mapping[str, int]

    @property
    def total(self) -> int:
        """Microseconds from the first stamp to the last."""
        return sum(self.phases.values())

    def seconds(self) -> dict[str, float]:
        """Return the phases in seconds."""
        return {phase: taken / _MICRO for phase, taken in self.phases.items()}

    def told(self) -> str:
        """Return all of it in one line: `Started in 62 ms: resolve 3, download 0, ...`.

        The rounded figures add up, too.
        """
        return f"Started in {sum(self._milliseconds().values())} ms: {self._words()}"

    def full(self) -> str:
        """Return all of it for a table: `62ms (resolve 3, download 0, ...)`."""
        return f"{sum(self._milliseconds().values())}ms ({self._words()})"

    def _words(self) -> str:
        return ", ".join(f"{phase} {share}" for phase, share in self._milliseconds().items())

    def brief(self) -> str:
        """Return total and the two longest phases: `62ms (load 31, start 12)`."""
        shares = self._milliseconds()
        longest = sorted(shares, key=lambda phase: -shares[phase])[:2]
        words = ", ".join(f"{phase} {shares[phase]}" for phase in longest if shares[phase])
        total = f"{sum(shares.values())}ms"
        return f"{total} ({words})" if words else total

    def _milliseconds(self) -> dict[str, int]:
        ends = [0]
        for taken in self.phases.values():
            ends.append(ends[-1] + taken)
        rounded = [round(end / 1000) for end in ends]
        return dict(zip(self.phases, (b - a for a, b in pairwise(rounded)), strict=True))


def start_of(begins: Mapping[str, float], end: float) -> Start:
    """Return the phases between the stamps.

    Args:
        begins: When each phase began, seconds of one monotonic clock. A phase without a stamp took
            no time; one that seems to begin before the one before it (stamps of two processes) or
            after `end` is cut.
        end: When the last one ended.
    """
    last = round(end * _MICRO)
    stamps = {p: min(round(begins[p] * _MICRO), last) for p in PHASES if p in begins}
    if not stamps:
        return Start({})
    first = PHASES.index(next(iter(stamps)))
    taken = dict.fromkeys(PHASES[first:], 0)
    at, going_on = stamps[PHASES[first]], PHASES[first]
    for phase in taken:
        if phase in stamps:
            begin = max(at, stamps[phase])
            taken[going_on] += begin - at
            at, going_on = begin, phase
    taken[going_on] += last - at
    return Start(taken)


def of_pod(pod: Object) -> Start | None:
    """Return what is written down at a Pod; None: nothing, or nothing that can be read."""
    text = annotations_of(pod).get(names.START)
    if not text:
        return None
    try:
        start = from_seconds(json.loads(text))
    except (ValueError, TypeError):
        return None
    return start if start.phases else None


def from_seconds(phases: Mapping[str, float]) -> Start:
    """Return the start whose phases took so many seconds."""
    return Start({p: round(float(phases[p]) * _MICRO) for p in PHASES if p in phases})


def written(start: Start) -> str:
    """Return the annotation's value: phase -> seconds."""
    return json.dumps(start.seconds())
