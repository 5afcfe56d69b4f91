"""Pods that a debugger has stopped: they get no new requests, and limits of what waits stand. Pure.

A request waits for a stopped Pod if it is there, if it is at a Pod whose calls go there (a
transformer's), or if it is held and every replica is stopped. Its deadline is moved by each tick
that finds it so; all other requests go on as ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kserve_local.gateway.proxy import Exchange
    from kserve_local.gateway.upstream import EndpointState


class StoppedPods:
    """Which Pods stand; all names are `namespace/name`."""

    __slots__ = ("_stopped", "_waiting")

    def __init__(self) -> None:
        self._stopped: frozenset[str] = frozenset()
        self._waiting: frozenset[str] = frozenset()

    def replace(self, pods: Mapping[str, Collection[str]]) -> None:
        """Take what holds from now on.

        Args:
            pods: Each stopped Pod -> the Pods that may wait for an answer of its.
        """
        self._stopped = frozenset(pods)
        self._waiting = self._stopped.union(*pods.values())

    def __bool__(self) -> bool:
        return bool(self._stopped)

    def has(self, place: EndpointState) -> bool:
        """Whether this replica is stopped."""
        return bool(self._stopped) and place.name in self._stopped

    def is_waited_for(self, exchange: Exchange) -> bool:
        """Whether it is a stopped Pod that keeps a request from its answer."""
        place = exchange.place
        if place is not None:
            return place.name in self._waiting
        replicas = exchange.target.endpoints.values()
        return bool(replicas) and all(place.name in self._stopped for place in replicas)

    def move_deadlines(self, exchanges: Iterable[Exchange], seconds: float) -> None:
        """Give the requests that wait for a stopped Pod this much more time."""
        for exchange in exchanges:
            if self.is_waited_for(exchange):
                exchange.deadline += seconds
