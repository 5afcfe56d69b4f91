"""One run: a virtual clock, the real autoscaler, and pretended replicas. Read this first.

What the live loop does by timers and events happens here by a heap of moments: figures every
second (`record`), a tick every other one, replicas that become ready, and looks that the autoscaler
asked for (`Applied.again`). Between two moments `RequestPath.advance` lets requests come and go. As
in the worked examples, the figures of a second are there when its tick comes.

Assumed: the gateway knows of a replica at the moment it is ready, a start never fails, and how long
a request takes does not depend on how many others its replica has.

Source: traffic.md 1.1, 1.4 to 1.7; `autoscaler.loop` is the same with real time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from heapq import heappop, heappush

from kserve_local.autoscaler import kpa
from kserve_local.autoscaler.bounds import NO_TRAFFIC, Activity
from kserve_local.autoscaler.revision_scaler import Applied, RevisionScaler
from kserve_local.interfaces.scaling import ScalingConfig
from kserve_local.interfaces.stats import RequestStat
from kserve_local.simulator.durations import Distribution
from kserve_local.simulator.load import Load
from kserve_local.simulator.path import Replica, RequestPath
from kserve_local.simulator.result import Bins, Change, Result
from kserve_local.simulator.service import Terms

PERIOD = 1.0
"""Seconds between two reports of the gateway."""
_TELL_EVERY = 60.0
_MOST_BINS = 600
_TARGET = "simulated"

# What happens at a moment; of several at the same one, in this order.
_READY, _SECOND, _AGAIN = range(3)


def simulate(
    terms: Terms,
    load: Load,
    cold_start: Distribution,
    *,
    held: int,
    seed: int = 0,
    idle_before: float = 0.0,
    from_zero: bool = False,
    settings: Mapping[str, str] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Return what becomes of the load.

    Args:
        cold_start: Seconds from the wish for a replica until it takes requests.
        held: Requests that may wait while there is no replica.
        seed: Equal seeds give equal runs, and the same requests under other settings.
        idle_before: Seconds without requests between the service's being ready and the load.
        from_zero: The service was scaled to zero before.
        settings: What to call this run.
        progress: Called now and then with the share of the time that has passed.
    """
    simulation = _Simulation(terms, load, cold_start, held, seed, idle_before, from_zero)
    if progress is not None:
        simulation.progress = progress
    return simulation.run(settings or {})


class _Simulation:
    def __init__(
        self,
        terms: Terms,
        load: Load,
        cold_start: Distribution,
        held: int,
        seed: int,
        idle_before: float,
        from_zero: bool,
    ) -> None:
        def source(what: str) -> random.Random:
            # One for each purpose: other settings then meet the very same requests.
            return random.Random(f"{seed} {what}")

        self.progress: Callable[[float], None] = lambda share: None
        self._duration = load.duration
        self._config = terms.scaling
        self._start = start = -kpa.TICK * math.ceil(idle_before / kpa.TICK)
        self._cold_start = cold_start.draws(source("cold start"))
        self._path = RequestPath(
            load.arrivals(source("arrivals")),
            load.services(source("service")),
            limit=terms.limit,
            timeout=terms.timeout,
            held=held,
            draw=random.Random(f"{seed} balancer"),
            start=start,
        )
        self._moments: list[tuple[float, int, int, Replica | None]] = []
        self._counter = 0
        self._again = math.inf
        self._replicas: list[Replica] = []
        self._starting: list[Replica] = []
        self._wanted = 0 if from_zero else terms.initial
        self._first = self._wanted
        self._wakes = 0
        self._changes: list[Change] = []
        self._bin = max(1, math.ceil(load.duration / _MOST_BINS))
        bins = max(1, math.ceil(load.duration / self._bin))
        self._requests, self._busy, self._held = [0] * bins, [0.0] * bins, [0] * bins
        self._most_requests = 0
        self._scaler = (
            _asleep(self._config, start)
            if from_zero
            else RevisionScaler(self._config, ready=0, now=start)
        )

    def run(self, settings: Mapping[str, str]) -> Result:
        """Run to the end of the load and the answer to its last request."""
        path, moments = self._path, self._moments
        now = self._start
        for _ in range(self._wanted):
            replica = Replica(len(self._replicas), now)
            self._replicas.append(replica)
            path.add(replica, now)
        self._changes.append(Change(now, self._wanted, self._wanted, len(path.usable)))
        self._apply(now)
        self._at(now + PERIOD, _SECOND)
        while now < self._duration or path.in_flight or path.next_arrival < math.inf:
            now = min(moments[0][0], path.next_limit)
            if path.advance(now):
                self._poke(path.poked_at)
                now = path.poked_at
                continue
            path.expire(now)
            while moments[0][0] <= now:
                _, what, _, coming = heappop(moments)
                if what == _READY:
                    assert coming is not None
                    self._ready(coming, now)
                elif what == _AGAIN:
                    self._again = math.inf
                    self._apply(now)
                else:
                    self._second(now)
        path.close_period(_TARGET, now)
        return self._result(settings)

    def _at(self, time: float, what: int, replica: Replica | None = None) -> None:
        self._counter += 1
        heappush(self._moments, (time, what, self._counter, replica))

    # The autoscaler, as its live loop calls it

    def _second(self, now: float) -> None:
        """A report of the gateway, and every other time a tick."""
        path = self._path
        stat = path.close_period(_TARGET, now)
        if stat is not None:
            self._note(now, stat.requests, stat.average_concurrency)
            if self._scaler.record(stat, now):
                self._tick(now)
        if path.wants_replica(now):
            self._poke(now)
        if now % kpa.TICK == 0:
            self._tick(now)
        if now % _TELL_EVERY == 0 and now > 0:
            self.progress(min(1.0, now / self._duration))
        self._at(self._next_second(now), _SECOND)

    def _next_second(self, now: float) -> float:
        """Return when the next report comes; none does while nothing is there and nothing comes."""
        path = self._path
        following = now + PERIOD
        if self._replicas_now() or path.in_flight or self._moments:
            return following
        if not self._scaler.is_silent(now):
            return following
        awake = float(math.floor(min(path.next_arrival, self._duration)))
        if awake < following:
            return following
        path.skip(awake)
        return awake + PERIOD

    def _replicas_now(self) -> int:
        return len(self._path.usable) + len(self._starting)

    def _poke(self, now: float) -> None:
        if self._scaler.arrived(now):
            self._scaler.tick(len(self._path.usable), now)
        self._apply(now)

    def _tick(self, now: float) -> None:
        before = self._scaler.decision
        after = self._scaler.tick(len(self._path.usable), now)
        if kpa.tells_more(before, after):
            self._apply(now)

    def _apply(self, now: float) -> None:
        """Carry out what the autoscaler says, until it says the same again."""
        while True:
            ready, activity = len(self._path.usable), self._scaler.activity
            applied = self._scaler.apply(ready, now)
            self._path.direct = applied.mode == "Serve"
            if applied.again is not None and applied.again < self._again:
                self._again = applied.again
                self._at(max(now, applied.again), _AGAIN)
            if applied.replicas is not None and applied.replicas != self._wanted:
                self._scale(applied, now)
            if len(self._path.usable) == ready and self._scaler.activity == activity:
                return

    # Replicas

    def _scale(self, applied: Applied, now: float) -> None:
        wanted, before = applied.replicas, self._wanted
        assert wanted is not None
        if not self._replicas_now() and wanted and now <= self._duration:
            self._wakes += 1
        self._wanted = wanted
        for _ in range(wanted - self._replicas_now()):
            replica = Replica(len(self._replicas), now)
            self._replicas.append(replica)
            self._starting.append(replica)
            self._at(now + self._cold_start(), _READY, replica)
        # As `controllers.deployment` chooses: those not ready before ready ones, then the youngest.
        for _ in range(self._replicas_now() - wanted):
            if self._starting:
                replica = self._starting.pop()
                replica.left = replica.ended = now
            else:
                self._path.remove(max(self._path.usable, key=lambda r: r.number), now)
        self._changes.append(
            Change(now, before, wanted, len(self._path.usable), applied.reason, applied.message)
        )

    def _ready(self, replica: Replica, now: float) -> None:
        if replica.left is not None:
            return
        self._starting.remove(replica)
        self._path.add(replica, now)
        self._changes.append(Change(now, self._wanted, self._wanted, len(self._path.usable)))
        self._apply(now)

    # What comes out

    def _note(self, now: float, requests: int, concurrency: float) -> None:
        self._most_requests = max(self._most_requests, requests)
        at = math.ceil(now / self._bin) - 1
        if 0 <= at < len(self._requests):
            self._requests[at] += requests
            self._busy[at] += concurrency
            self._held[at] = max(self._held[at], len(self._path.breaker))

    def _result(self, settings: Mapping[str, str]) -> Result:
        path, end = self._path, self._duration
        ready_seconds = sum(_within(r.ready, r.left, end) for r in self._replicas)
        total = self._config.total * ready_seconds
        used = path.arrived if self._config.metric == "rps" else path.work
        latencies = path.latencies
        changes = [c for c in self._changes if c.time <= end]
        counts = _ready_counts(changes, end)
        return Result(
            settings=dict(settings),
            duration=end,
            requests=path.arrived,
            codes={code: n for code, n in sorted(path.codes.items()) if n},
            latency={
                "mean": latencies.mean,
                **{f"p{q}": latencies.quantile(q / 100) for q in (50, 95, 99)},
                "max": latencies.largest,
            },
            most_requests=self._most_requests,
            waited=path.waited,
            most_held=path.most_held,
            most_queued=path.most_queued,
            starts=sum(r.started <= end for r in self._replicas) - self._first,
            wakes=self._wakes,
            replica_seconds=sum(_within(r.started, r.ended, end) for r in self._replicas),
            mean_ready=ready_seconds / end if end else 0.0,
            least_ready=min(counts),
            most_ready=max(counts),
            utilisation=used / total if total else 0.0,
            changes=tuple(changes),
            bins=Bins(
                float(self._bin),
                [n / self._bin for n in self._requests],
                [n / self._bin for n in self._busy],
                self._held,
            ),
        )


def _asleep(config: ScalingConfig, now: float) -> RevisionScaler:
    """Return a scaler that went to zero long ago."""
    past = now - 2 * config.stable_window - config.grace_period - config.retention
    activity = Activity("Inactive", past, *NO_TRAFFIC, True)
    scaler = RevisionScaler(config, ready=0, now=past, activity=activity)
    scaler.record(RequestStat(_TARGET, PERIOD, 0.0, 0), past)
    scaler.tick(0, past)
    return scaler


def _within(since: float | None, until: float | None, end: float) -> float:
    """Return the seconds of a life that lie between 0 and the end."""
    if since is None:
        return 0.0
    last = end if until is None else min(until, end)
    return max(0.0, last - max(since, 0.0))


def _ready_counts(changes: list[Change], end: float) -> list[int]:
    """Return the numbers of ready replicas that there were from 0 to the end."""
    before = [c.ready for c in changes if c.time <= 0.0][-1:]
    return before + [c.ready for c in changes if 0.0 < c.time < end]
