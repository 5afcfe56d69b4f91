"""When requests come and how long each takes, out of a rate or a trace and a distribution."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from kserve_local.errors import UsageError
from kserve_local.simulator.durations import Distribution, Draw
from kserve_local.simulator.rate import Rate
from kserve_local.simulator.trace import Trace

Spacing = Literal["poisson", "even"]
_STEP = 1.0
"""Seconds in which a rate counts as constant; it is looked at in the middle of them."""
_MOST_REQUESTS = 1_000_000_000
_LONGEST = 366 * 24 * 3600.0
"""About an hour's work each. What is meant as more is a slip of the finger."""
_LOOKS = 100_000


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to simulate.

    Args:
        duration: Seconds in which requests come.
        rate: Requests a second; None: `trace` holds each of them.
        service: How long a replica works on one; None: the trace says it.
        spacing: Of a rate's requests: at random as independent users come, or even.
    """

    duration: float
    rate: Rate | None = None
    trace: Trace | None = None
    service: Distribution | None = None
    spacing: Spacing = "poisson"

    def arrivals(self, source: random.Random) -> Iterator[float]:
        """Return the times of arrival, rising, below `duration`."""
        if self.rate is not None:
            gap = _exponential(source) if self.spacing == "poisson" else None
            return _paced(self.rate, self.duration, gap)
        assert self.trace is not None
        end = self.duration
        return takewhile(lambda at: at <= end, self.trace.arrivals)

    def services(self, source: random.Random) -> Draw:
        """Return what gives the time that the next request in order of arrival takes."""
        if self.service is not None:
            return self.service.draws(source)
        assert self.trace is not None
        return iter(self.trace.services).__next__


def load_of(
    *,
    rate: Rate | None,
    trace: Trace | None,
    duration: float | None,
    service: Distribution | None,
    spacing: Spacing,
) -> Load:
    """Return the load that a rate or a trace makes; `service` wins over the trace's own times.

    Raises:
        UsageError: There is nothing that says how long requests take, or there are so many that
            the run would not end.
    """
    if trace is not None and trace.rate is not None:
        rate = trace.rate
    if service is None and (trace is None or not trace.services):
        raise UsageError(
            "how long a request takes is not said",
            hint="--service-time 50ms, or a column service_time in the trace",
        )
    if duration is None:
        duration = 3600.0 if trace is None else trace.duration
    if rate is not None:
        _check_size(rate, duration)
    return Load(duration, rate, trace, service, spacing)


def _check_size(rate: Rate, duration: float) -> None:
    # A long load is estimated: a year needs no look at each second.
    step = max(_STEP, duration / _LOOKS)
    expected = sum(rate((n + 0.5) * step) * step for n in range(round(duration / step)))
    if duration > _LONGEST or expected > _MOST_REQUESTS:
        raise UsageError(
            f"the load is too large: {expected:.3g} requests in {duration / 3600:.3g} hours; "
            f"{_MOST_REQUESTS:,} in {_LONGEST / 3600:.0f} are the most",
            hint="a lower --rate, or a shorter --duration",
        )


def _exponential(source: random.Random) -> Callable[[], float]:
    uniform, log = source.random, math.log
    return lambda: -log(1.0 - uniform())


def _paced(rate: Rate, duration: float, gap: Callable[[], float] | None) -> Iterator[float]:
    """Return arrivals whose rate is constant in every step; `gap` is theirs at 1 a second.

    A gap that does not end within a step goes on in the next one, at that one's rate.
    """
    left = gap() if gap else 0.0
    for step in range(math.ceil(duration / _STEP)):
        start = step * _STEP
        length = min(_STEP, duration - start)
        pace = rate(start + length / 2)
        room = pace * length
        while left < room:
            yield start + left / pace
            left += gap() if gap else 1.0
        left -= room
