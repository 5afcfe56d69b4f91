"""Figures of one target: for the supervisor once a second, for Prometheus in total.

The request path only appends to a list; sorting, quantiles and buckets are worked out once a
period. Concurrency is time-weighted over the period, as in queue-proxy's reports.

Source: traffic.md sections 1.1 (reports), 3.6 (bounds of kn.serving.invocation.duration).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from kserve_local.interfaces.stats import RequestStat

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class TargetFigures:
    """Counts of one target.

    Attributes:
        requests: Arrived in this period.
        codes: Answers by status in all; 0: the client left before there was one.
        buckets: Cumulative counts at `BOUNDS` in all; then the count and the sum in seconds.
        failure: The last one of this period, in words; empty: none.
    """

    __slots__ = (
        "_busy",
        "_codes_seen",
        "_errors",
        "_folded",
        "_latencies",
        "_silent",
        "_since",
        "buckets",
        "codes",
        "count",
        "failure",
        "requests",
        "total",
    )

    def __init__(self, now: float) -> None:
        self.requests = 0
        self.failure = ""
        self.codes: dict[int, int] = {}
        self.buckets = [0] * len(BOUNDS)
        self.count = 0
        self.total = 0.0
        self._since = now
        self._busy = 0.0
        self._latencies: list[float] = []
        self._folded = 0
        self._errors = 0
        self._silent = True

    def done(self, started: float, now: float, status: int) -> None:
        """Count a request that ended at `now` (`perf_counter`)."""
        since = self._since
        self._busy += now - (started if started > since else since)
        self._latencies.append(now - started)
        codes = self.codes
        codes[status] = codes.get(status, 0) + 1
        if status >= 500:
            self._errors += 1

    def close_period(
        self, target: str, now: float, running: Iterable[float], *, held: int
    ) -> RequestStat | None:
        """Return the period's figures and start the next; None after a first silent one.

        Args:
            running: When each request still in flight or held arrived.
        """
        since, self._since = self._since, now
        period = max(now - since, 1e-6)
        arrivals = tuple(running)
        busy = self._busy + sum(now - max(started, since) for started in arrivals)
        self.fold()
        latencies = sorted(self._latencies)
        self._latencies = []
        self._folded = 0
        requests, self.requests = self.requests, 0
        errors, self._errors = self._errors, 0
        failure, self.failure = self.failure, ""
        self._busy = 0.0
        silent = not requests and not busy and not latencies
        if silent and self._silent:
            return None
        self._silent = silent
        return RequestStat(
            target=target,
            period=period,
            average_concurrency=busy / period,
            requests=requests,
            held=held,
            in_flight=len(arrivals),
            errors=errors,
            p50=_quantile(latencies, 0.50),
            p95=_quantile(latencies, 0.95),
            failure=failure,
        )

    @property
    def is_silent(self) -> bool:
        """Whether the last period was silent and told, and nothing has come or ended since."""
        return self._silent and not (self.requests or self._latencies)

    def pass_over(self, now: float) -> None:
        """Start a new period after a silent one; `close_period` for those `is_silent`."""
        self._since = now

    def fold(self) -> None:
        """Bring the totals up to date: at the end of a period, and for a scrape in between."""
        fresh = sorted(self._latencies[self._folded :])
        self._folded = len(self._latencies)
        for index, bound in enumerate(BOUNDS):
            self.buckets[index] += bisect_right(fresh, bound)
        self.count += len(fresh)
        self.total += sum(fresh)


def _quantile(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
