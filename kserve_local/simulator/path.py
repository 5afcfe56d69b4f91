"""A request's way from its arrival to its answer, in virtual time: the gateway without bytes.

The gateway's own `Breaker` and `Balancer` decide. Through the activator (mode Proxy) a request goes
to a replica with a free place or waits; on the direct path (Serve) whoever chooses knows nothing of
limits, and each replica has queue-proxy's queue.

A request that goes straight to a replica is one entry in a heap, ordered by when it will be
answered; one that waits is a tuple in a breaker. So a day of millions stays cheap: `advance` is the
only code that each request passes.

Source: traffic.md 2.2 to 2.5, 3.2.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush

from kserve_local.gateway.activator import Verdict, judge, poke_due
from kserve_local.gateway.balancer import Balancer
from kserve_local.gateway.breaker import PER_PLACE, Breaker
from kserve_local.interfaces.stats import RequestStat
from kserve_local.simulator.durations import Draw
from kserve_local.simulator.latency import Latencies

ANSWERED, QUEUE_FULL, TIMED_OUT = 200, 503, 504
_DIGITS = 9

Waiter = tuple[float, int, float]
"""Arrival, number in order of arrival, seconds of work."""


class Replica:
    """One replica. Times are None until they come.

    Attributes:
        in_flight: Requests that run or wait in it.
        queue: queue-proxy's; made when it is needed.
        watched: It is leaving or has a queue: the end of each request matters.
        left: When it stopped getting requests; `ended`: when the last one was answered.
    """

    __slots__ = ("ended", "in_flight", "left", "number", "queue", "ready", "started", "watched")

    def __init__(self, number: int, started: float) -> None:
        self.number = number
        self.started = started
        self.in_flight = 0
        self.queue: Breaker[Waiter] | None = None
        self.watched = False
        self.ready: float | None = None
        self.left: float | None = None
        self.ended: float | None = None


class RequestPath:
    """All requests of one revision.

    Args:
        arrivals: When requests come, rising.
        service: How long the next one takes.
        limit: containerConcurrency; 0: none.
        timeout: Seconds that a request may take in all, at least 1.
        held: How many may wait while there is no replica.
        draw: For the choice among replicas.

    Attributes:
        usable: Replicas that take requests, oldest first.
        direct: The activator is out of the path.
        codes: Answers by status.
        waited: Requests that found no replica.
        most_held / most_queued: Largest number that waited for a replica; for a free place.
        work: Seconds that replicas spent on requests.
    """

    def __init__(
        self,
        arrivals: Iterable[float],
        service: Draw,
        *,
        limit: int,
        timeout: float,
        held: int,
        draw: random.Random,
        start: float,
    ) -> None:
        self._arrivals: Iterator[float] = iter(arrivals)
        self._service = service
        self._limit = limit
        self._timeout = timeout
        self._balancer = Balancer(limit, draw)
        self._spread = Balancer(0, draw)
        self.breaker: Breaker[Waiter] = Breaker(held=held)
        self.usable: list[Replica] = []
        self.direct = False
        self.codes: dict[int, int] = {}
        self.latencies = Latencies()
        self.waited = 0
        self.most_held = 0
        self.most_queued = 0
        self.work = 0.0
        # (answered at, number, replica, arrival, status); the last entry never comes.
        self._running: list[tuple[float, int, Replica, float, int]] = [
            (math.inf, 0, Replica(-1, start), 0.0, 0)
        ]
        self._limits: deque[tuple[float, Breaker[Waiter], Waiter, Replica | None]] = deque()
        self._in_queues = 0
        self._next = next(self._arrivals, math.inf)
        self._poked = -math.inf
        # Of the period: arrivals and ends, and the sum of their times, the former with a minus.
        self._since = start
        self._number = self._ended = 0
        self._number_before = self._ended_before = 0
        self._area = 0.0
        self._fresh: list[float] = []
        self._silent = True

    @property
    def next_arrival(self) -> float:
        """When the next request comes; inf: no more do."""
        return self._next

    @property
    def arrived(self) -> int:
        """Requests so far."""
        return self._number

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return self._number - self._ended

    def advance(self, until: float) -> bool:
        """Let everything before `until` happen.

        Returns:
            Whether the autoscaler is to be poked: a request found no replica at `poked_at`, and
            nothing after it has happened yet.
        """
        running = self._running
        breaker = self.breaker
        usable = self.usable
        service = self._service
        arrivals = self._arrivals
        timeout = self._timeout
        fresh = self._fresh
        pick = self._balancer.pick
        queued = bool(self.direct and self._limit)
        arrival, number, ended = self._next, self._number, 0
        area = work = 0.0
        poke = False
        while True:
            end = running[0][0]
            if end <= arrival:
                if end >= until:
                    break
                _, _, replica, since, status = heappop(running)
                replica.in_flight -= 1
                area += end
                ended += 1
                if status == ANSWERED:
                    fresh.append(end - since)
                else:
                    self._count(status)
                if breaker.waiting or replica.watched:
                    self._freed(replica, end)
                continue
            if arrival >= until:
                break
            number += 1
            area -= arrival
            seconds = service()
            place = None if queued or breaker.waiting else pick(usable)
            if place is not None:
                place.in_flight += 1
                if seconds <= timeout:
                    entry = (arrival + seconds, number, place, arrival, ANSWERED)
                else:
                    seconds = timeout
                    entry = (arrival + timeout, number, place, arrival, TIMED_OUT)
                work += seconds
                heappush(running, entry)
            elif queued and usable:
                self._enqueue((arrival, number, seconds))
            else:
                poke = self._hold((arrival, number, seconds))
            arrival = next(arrivals, math.inf)
            if poke:
                break
        self._next, self._number = arrival, number
        self._ended += ended
        self._area += area
        self.work += work
        return poke

    @property
    def poked_at(self) -> float:
        """When the autoscaler was last to be told of a request that found no replica."""
        return self._poked

    def _hold(self, waiter: Waiter) -> bool:
        """Queue the request at the activator, or refuse it; return whether to poke."""
        now = waiter[0]
        listed = len(self.usable)
        if not self.breaker.offer(waiter, replicas=bool(listed)):
            self._refuse(now)
            return False
        self._limits.append((now + self._timeout, self.breaker, waiter, None))
        if judge("zero", listed=listed) is not Verdict.WAKE:
            self.most_queued = max(self.most_queued, len(self.breaker) + self._in_queues)
            return False
        self.waited += 1
        self.most_held = max(self.most_held, len(self.breaker))
        return self._poke_is_due(now)

    def _poke_is_due(self, now: float) -> bool:
        if not poke_due(self._poked, now):
            return False
        self._poked = now
        return True

    def wants_replica(self, now: float) -> bool:
        """Whether requests still wait for a first replica, and the autoscaler is to be told."""
        return bool(self.breaker.waiting) and not self.usable and self._poke_is_due(now)

    def _enqueue(self, waiter: Waiter) -> None:
        """Hand the request to a replica chosen without knowing how busy its places are."""
        now = waiter[0]
        replica = self._spread.pick(self.usable)
        assert replica is not None
        if replica.in_flight < self._limit:
            replica.in_flight += 1
            self._run(replica, waiter, now)
            return
        if replica.queue is None:
            replica.queue = Breaker(held=0, queue_depth=PER_PLACE * self._limit)
            replica.watched = True
        if not replica.queue.offer(waiter, replicas=True):
            self._refuse(now)
            return
        replica.in_flight += 1
        self._in_queues += 1
        self.most_queued = max(self.most_queued, len(self.breaker) + self._in_queues)
        self._limits.append((now + self._timeout, replica.queue, waiter, replica))

    def _run(self, replica: Replica, waiter: Waiter, now: float) -> None:
        """Begin the work on a request that is counted as in flight there."""
        arrival, number, seconds = waiter
        end, limit = now + seconds, arrival + self._timeout
        status = ANSWERED
        if end > limit:
            end, status = limit, TIMED_OUT
        self.work += end - now
        heappush(self._running, (end, number, replica, arrival, status))

    def _freed(self, replica: Replica, now: float) -> None:
        """Let the next one have the place of a request that ended."""
        queue = replica.queue
        if queue is not None and (waiter := queue.first()) is not None:
            queue.withdraw(waiter)
            self._in_queues -= 1
            self._run(replica, waiter, now)
        elif replica.left is not None and not replica.in_flight:
            replica.ended = now
        if self.breaker.waiting:
            self.release(now)

    def release(self, now: float) -> None:
        """Let waiting requests go, in order, as long as a replica has a place."""
        breaker = self.breaker
        while (waiter := breaker.first()) is not None:
            replica = self._balancer.pick(self.usable)
            if replica is None:
                return
            breaker.withdraw(waiter)
            replica.in_flight += 1
            self._run(replica, waiter, now)

    def add(self, replica: Replica, now: float) -> None:
        """A replica is ready."""
        replica.ready = now
        self.usable.append(replica)
        self.usable.sort(key=lambda r: r.number)
        self.release(now)

    def remove(self, replica: Replica, now: float) -> None:
        """A replica gets no more requests; those that it has it answers."""
        self.usable.remove(replica)
        replica.left = now
        replica.watched = True
        if not replica.in_flight:
            replica.ended = now

    # Time limits

    @property
    def next_limit(self) -> float:
        """When the time of a request that waits is up, at the latest; inf: none waits."""
        limits = self._limits
        while limits and limits[0][2] not in limits[0][1].waiting:
            limits.popleft()
        return limits[0][0] if limits else math.inf

    def expire(self, now: float) -> None:
        """Answer those whose time is up by now."""
        while self.next_limit <= now:
            limit, breaker, waiter, replica = self._limits.popleft()
            breaker.withdraw(waiter)
            self._count(TIMED_OUT)
            self._area += limit
            self._ended += 1
            if replica is not None:
                replica.in_flight -= 1
                self._in_queues -= 1

    def _refuse(self, now: float) -> None:
        self._count(QUEUE_FULL)
        self._area += now
        self._ended += 1

    def _count(self, status: int) -> None:
        self.codes[status] = self.codes.get(status, 0) + 1

    # Figures

    def close_period(self, target: str, now: float) -> RequestStat | None:
        """Return the period's figures and start the next; None after a first silent one.

        As `gateway.metrics.TargetFigures`, without a list of what runs: the concurrency is the area
        under the number in flight.
        """
        since, self._since = self._since, now
        before = self._number_before - self._ended_before
        after = self._number - self._ended
        requests = self._number - self._number_before
        ended = self._ended - self._ended_before
        busy = 0.0
        if before or requests:
            busy = round(self._area + after * now - before * since, _DIGITS)
        self._area = 0.0
        self._number_before, self._ended_before = self._number, self._ended
        self.codes[ANSWERED] = self.codes.get(ANSWERED, 0) + len(self._fresh)
        self.latencies.add(self._fresh)
        self._fresh.clear()
        silent = not requests and not ended and not before
        if silent and self._silent:
            return None
        self._silent = silent
        period = max(now - since, 1e-6)
        return RequestStat(
            target, period, max(0.0, busy) / period, requests, held=len(self.breaker)
        )

    def skip(self, now: float) -> None:
        """Nothing happens until `now`: the period begins there."""
        self._since = now
