"""Which replica takes a request: the activator's three policies. Pure: no I/O, no clock.

The policy depends on containerConcurrency (CC) alone, as upstream: none: the less busy of two
drawn at random; 1 to 3: the first with a free place, so that replicas fill one by one; 4 and
more: round robin over those with a free place.

Source: knative/serving pkg/activator/net/lb_policy.go, traffic.md section 2.3.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Place(Protocol):
    """What a policy looks at."""

    in_flight: int


P = TypeVar("P", bound=Place)


class Balancer:
    """Picks among a target's usable replicas.

    Args:
        concurrency: containerConcurrency; 0: none.
        draw: Source of randomness; seed it to repeat a run.
    """

    __slots__ = ("_concurrency", "_cursor", "_draw")

    def __init__(self, concurrency: int, draw: random.Random) -> None:
        self._concurrency = concurrency
        self._draw = draw
        self._cursor = 0

    def pick(self, places: Sequence[P]) -> P | None:
        """Return a replica with a free place, or None. `places` are in address order."""
        count = len(places)
        limit = self._concurrency
        if not limit:
            if count == 1:
                return places[0]
            if not count:
                return None
            first = int(self._draw.random() * count)
            second = int(self._draw.random() * (count - 1))
            second += second >= first
            one, two = places[first], places[second]
            return two if two.in_flight < one.in_flight else one
        if limit <= 3:
            return next((p for p in places if p.in_flight < limit), None)
        for step in range(count):
            at = (self._cursor + step) % count
            if places[at].in_flight < limit:
                self._cursor = at + 1
                return places[at]
        return None
