"""Millions of latencies in little memory: counts in buckets that are half a percent wide."""

from __future__ import annotations

import math

_LEAST = 1e-6
_PER_E = 200
"""Buckets for each factor e."""


class Latencies:
    """Quantiles to within half a percent; the largest, and equal ones, exactly."""

    __slots__ = ("_counts", "_sums", "count", "largest", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sums: dict[int, float] = {}
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, values: list[float]) -> None:
        """Count these, in seconds."""
        if not values:
            return
        counts, sums, log = self._counts, self._sums, math.log
        for value in values:
            bucket = int(_PER_E * log(value / _LEAST)) if value > _LEAST else 0
            if bucket in counts:
                counts[bucket] += 1
                sums[bucket] += value
            else:
                counts[bucket] = 1
                sums[bucket] = value
        self.count += len(values)
        self.total += math.fsum(values)
        self.largest = max(self.largest, max(values))

    def quantile(self, share: float) -> float:
        """Return the mean of the bucket that the quantile is in; 0 without values."""
        rank, seen = share * self.count, 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return self._sums[bucket] / self._counts[bucket]
        return 0.0

    @property
    def mean(self) -> float:
        """The mean; 0 without values."""
        return self.total / self.count if self.count else 0.0
