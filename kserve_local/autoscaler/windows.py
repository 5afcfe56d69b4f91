"""Averages of a metric over the last seconds, in buckets of one second.

Two ways to average: linear (the default) and weighted exponential. What is recorded in the same
second adds up. A window keeps no buckets until something is recorded, so that an idle revision
costs little.

Source: traffic.md 1.2; knative/serving pkg/autoscaler/aggregation/bucketing.go.
"""

from __future__ import annotations

import math
from array import array

from kserve_local.interfaces.scaling import Aggregation

_MILLIONTH = 1e6
_LEAST_COEFFICIENT = 0.2
_COVERED = 0.9999
"""Share of the whole weight that falls into the window."""


class Window:
    """A ring of one-second buckets with a linear average.

    Args:
        length: Seconds, whole, at least 1.
    """

    __slots__ = ("_buckets", "_first", "_last", "_total", "length")

    def __init__(self, length: float) -> None:
        self.length = max(1, int(length))
        self._buckets: array[float] | None = None
        self._first = 0
        self._last: int | None = None
        self._total = 0.0

    def record(self, now: float, value: float) -> None:
        """Add `value` to the bucket of the second `now` is in; too old ones are dropped."""
        second = math.floor(now)
        last = self._last
        buckets = self._buckets
        if buckets is None or last is None or second - last >= self.length:
            # A silence as long as the window: it is young again.
            self._buckets = buckets = array("d", bytes(8 * self.length))
            self._first = self._last = second
            self._total = 0.0
        elif second > last:
            for missed in range(last + 1, second + 1):
                index = missed % self.length
                self._total -= buckets[index]
                buckets[index] = 0.0
            self._last = second
        elif last - second >= self.length:
            return
        elif second < self._first:
            self._first = second
        buckets[second % self.length] += value
        self._total += value

    def average(self, now: float) -> float:
        """Return the mean of the seconds that count, rounded to 6 decimals; 0 after a silence.

        A young window divides by its age; one read `d` seconds late leaves out the `d` oldest.
        """
        buckets, last = self._buckets, self._last
        if buckets is None or last is None:
            return 0.0
        late = math.floor(now) - last
        if late >= self.length:
            return 0.0
        age = last - self._first + 1
        if late <= 0:
            return _rounded(self._total / min(age, self.length))
        gone = sum(buckets[(last + i) % self.length] for i in range(1, late + 1))
        return _rounded((self._total - gone) / min(age, self.length - late))

    def is_empty(self, now: float) -> bool:
        """Nothing was recorded for longer than the window."""
        return self._last is None or math.floor(now) - self._last > self.length

    def release(self) -> None:
        """Give the buckets back; for a window that is empty."""
        self._buckets = None
        self._last = None
        self._total = 0.0

    def resize(self, length: float) -> None:
        """Change the length and keep the newest seconds that fit."""
        size = max(1, int(length))
        if size == self.length:
            return
        before, last, old = self._buckets, self._last, self.length
        self.length = size
        if before is None or last is None:
            return
        kept = min(size, old)
        self._buckets = array("d", bytes(8 * size))
        for second in range(last - kept + 1, last + 1):
            self._buckets[second % size] = before[second % old]
        self._first = last - old + 1
        self._total = math.fsum(self._buckets)


class WeightedWindow(Window):
    """The newest second weighs most, each older one a fixed share less; not normalised.

    Source: traffic.md 1.2.
    """

    __slots__ = ()

    @property
    def coefficient(self) -> float:
        """Weight of the newest second."""
        return max(_LEAST_COEFFICIENT, 1 - math.pow(1 - _COVERED, 1 / self.length))

    def average(self, now: float) -> float:
        """Return the weighted sum; 0 after a silence as long as the window."""
        buckets, last = self._buckets, self._last
        if buckets is None or last is None:
            return 0.0
        late = max(0, math.floor(now) - last)
        if late >= self.length:
            return 0.0
        coefficient = self.coefficient
        weight = coefficient * (1 - coefficient) ** late
        result = 0.0
        for i in range(self.length - late):
            result += buckets[(last - i) % self.length] * weight
            weight *= 1 - coefficient
        return result


def _rounded(value: float) -> float:
    """Return the value to 6 decimals: sums that should be 0 are, and ask for no replica."""
    return math.floor(value * _MILLIONTH + 0.5) / _MILLIONTH


def window(aggregation: Aggregation, length: float) -> Window:
    """Return an empty window that averages as the annotation says."""
    return WeightedWindow(length) if aggregation == "weighted-exponential" else Window(length)
