"""From what the gateway reports to one revision's windows. Pure.

The gateway is activator and queue-proxy in one: it reports each revision once a second, in flight
or held, so a request is counted once. Three rules of the cluster stay:

* The first request after a silence counts at once, as 1, and is taken off the next report: that is
  what makes waking up immediate (the activator's immediate stat).
* A revision with ready replicas has a figure each second, 0 when idle (scraped Pods); one without
  has only what the activator reports.
* A late report (the machine was busy) stands for all the seconds that it covers.

Source: traffic.md 1.1; knative/serving pkg/activator/handler/concurrency_reporter.go.
"""

from __future__ import annotations

import math

from kserve_local.autoscaler.windows import window
from kserve_local.interfaces.scaling import ScalingConfig
from kserve_local.interfaces.stats import RequestStat

_SHORTEST_PERIOD = 0.5
"""A report over less than this is an extra one; two longer ones never mean the same second."""


class Sampler:
    """The two windows of one revision's metric."""

    __slots__ = ("_early", "_known", "_last", "_rps", "_scraped", "_scrapes", "panic", "stable")

    def __init__(self, config: ScalingConfig) -> None:
        self._rps = config.metric == "rps"
        self._scrapes = config.target_burst_capacity != -1
        self.stable = window(config.aggregation, config.stable_window)
        self.panic = window(config.aggregation, config.panic_window)
        self._known = False
        self._early = 0
        self._last: int | None = None
        self._scraped: int | None = None

    def arrived(self, now: float) -> bool:
        """Count a request that came after a silence; False if there was none."""
        if self._known:
            return False
        self._known = True
        self._early = 1
        self._add(math.floor(now), 1.0)
        return True

    def record(self, stat: RequestStat, now: float) -> bool:
        """Add one periodic report; return whether it tells of requests in flight."""
        early, self._early = self._early, 0
        busy = self._known and not early
        concurrency = max(stat.average_concurrency - early, 0.0)
        # A revision that fell silent is forgotten, unless a request just came.
        self._known = stat.average_concurrency > 0
        rate = (stat.requests - early) / max(stat.period, 1.0)
        share = stat.period if stat.period < _SHORTEST_PERIOD else 1.0
        value = rate if self._rps else concurrency * share
        first, second = self._seconds(stat.period, now, busy=busy)
        for covered in range(max(first, second - self.stable.length + 1), second + 1):
            self._add(covered, value)
        return concurrency > 0

    def scrape(self, ready: int, now: float) -> None:
        """Add what idle replicas say, for the seconds that ended since the last call.

        Not for the one that is under way: its report is still to come, and until then a 0 would
        stand for the traffic in it.
        """
        if ready == 0 or not self._scrapes:
            self._scraped = None
            return
        second = math.floor(now) - 1
        since = second if self._scraped is None else self._scraped
        for missed in range(max(since, second - self.stable.length) + 1, second + 1):
            self._add(missed, 0.0)
        self._scraped = second

    def averages(self, now: float) -> tuple[float, float] | None:
        """Return the stable and the panic average; None when there are no figures."""
        if self.stable.is_empty(now):
            self.stable.release()
            self.panic.release()
            # The activator is always in the path then: no report means no request.
            return None if self._scrapes else (0.0, 0.0)
        return self.stable.average(now), self.panic.average(now)

    def reconfigure(self, config: ScalingConfig) -> None:
        """Take new settings; what was seen stays as far as it fits."""
        fresh = Sampler(config)
        if type(fresh.stable) is type(self.stable) and fresh._rps == self._rps:
            self.stable.resize(config.stable_window)
            self.panic.resize(config.panic_window)
        else:
            self.stable, self.panic = fresh.stable, fresh.panic
        self._rps, self._scrapes = fresh._rps, fresh._scrapes

    def _seconds(self, period: float, now: float, *, busy: bool) -> tuple[int, int]:
        """Return the first and the last second that a report is for; `busy`: as was the one before.

        Timers that drift would otherwise double one second and leave another one empty: of two
        reports in one second the other is the next one's, and a second that none came in belongs
        to the one after it. (After a silence it may really have been empty.)
        """
        second = math.floor(now)
        first = second - max(1, round(period)) + 1
        if period >= _SHORTEST_PERIOD:
            if self._last == second:
                first, second = first + 1, second + 1
            elif busy and self._last is not None and self._last + 2 == first:
                first -= 1
            self._last = second
        return first, second

    def _add(self, second: int, value: float) -> None:
        self.stable.record(second, value)
        self.panic.record(second, value)
