"""Requests that wait for capacity, first come first served. Pure: no I/O, no clock.

Two bounds, as a request waits for two different things: for a free place at a replica that runs
(`queue_depth`, upstream's activator keeps 10 000) or for the first replica (`held`, a setting of
ours, since one machine wakes slower than a cluster's memory fills).

Source: knative/serving pkg/queue/breaker.go, pkg/activator/net/throttler.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

QUEUE_DEPTH = 10_000
PER_PLACE = 10
"""Requests that queue-proxy lets wait for each that it lets run."""

W = TypeVar("W")


class Breaker(Generic[W]):
    """One target's waiting requests.

    Args:
        held: How many may wait while there is no replica at all.
        queue_depth: How many may wait for a free place.
    """

    __slots__ = ("held", "queue_depth", "waiting")

    def __init__(self, *, held: int, queue_depth: int = QUEUE_DEPTH) -> None:
        self.held = held
        self.queue_depth = queue_depth
        self.waiting: dict[W, None] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[W]:
        """Iterate over a copy, longest wait first."""
        return iter(list(self.waiting))

    def offer(self, waiter: W, *, replicas: bool) -> bool:
        """Queue `waiter`; False: the queue is full. `replicas`: there is at least one."""
        if len(self.waiting) >= (self.queue_depth if replicas else self.held):
            return False
        self.waiting[waiter] = None
        return True

    def give_back(self, waiter: W) -> None:
        """Queue `waiter` again, before all others: it had its turn and found nobody home."""
        self.waiting = {waiter: None, **self.waiting}

    def withdraw(self, waiter: W) -> bool:
        """Take `waiter` out (its client left, or its time is up); False: it was not waiting."""
        return self.waiting.pop(waiter, self) is None

    def first(self) -> W | None:
        """Return who waits longest."""
        return next(iter(self.waiting), None)
