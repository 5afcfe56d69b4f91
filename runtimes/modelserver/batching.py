"""Runs a model's calls one at a time, and computes requests that wait together in one call.

No request waits for company: the first runs in the event-loop turn it came in, with whatever else
came in that turn; what arrives while a call runs forms the next one. Calls expected to take long
run in a worker thread, so that the event loop goes on answering; short ones stay on the loop, where
a hand-over would cost more than the call. If a shared call fails, its requests run one by one, so
only the culprit's fails. The first shared calls are computed both ways; a model that answers a
request differently in company is never asked to share again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, thread_time
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

# Above this many expected seconds a call leaves the event loop.
THREAD_SECONDS = 0.005
# Shared calls that are also computed one by one, on the requests that came, before trust.
TRIALS = 3
# Rows in one shared call: bounds memory and what the last request in line waits for.
MAX_ROWS = 1024


class Job:
    """One call that waits for its model.

    Args:
        key: Jobs with equal keys may share a call; None: never.
        x: The input; for a keyed job an array whose first axis is the rows.
        compute: Takes `x` (or rows of several jobs stacked) and returns as many rows.

    A subclass overrides `done` and `failed`, which run on the event loop, and `abandoned`.
    """

    __slots__ = ("compute", "key", "rows", "seconds", "x")

    def __init__(self, key: Hashable | None, x: Any, compute: Callable[[Any], Any]) -> None:
        self.set(key, x, compute)

    def set(self, key: Hashable | None, x: Any, compute: Callable[[Any], Any]) -> None:
        """Set what the job is, for subclasses that know it only after they were made."""
        self.key = key
        self.x = x
        self.compute = compute
        self.rows: int = len(x) if hasattr(x, "__len__") else 1
        # How long the call took that answered this job (shared or not).
        self.seconds = 0.0

    @property
    def abandoned(self) -> bool:
        """Nobody waits for the answer any more."""
        return False

    def done(self, result: Any) -> None:
        """Take the result."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """Take the failure."""
        raise NotImplementedError


class _Cost:
    """What calls cost: a fixed part and a part per row, from what was seen."""

    __slots__ = ("_extra", "_floor", "_largest", "_rows")

    def __init__(self, seconds: float | None) -> None:
        self._floor = seconds
        self._extra = 0.0
        self._rows = 1.0
        self._largest = 16

    def expect(self, rows: int) -> float:
        """Return expected seconds; infinity (so it gets a thread) before anything is known, and for
        calls much larger than any seen.
        """
        if self._floor is None or rows > 8 * self._largest:
            return float("inf")
        return self._floor + rows * self._extra / self._rows

    def seen(self, rows: int, seconds: float) -> None:
        """Learn from a call; older ones fade."""
        self._largest = max(self._largest, rows)
        if self._floor is None or seconds < self._floor:
            self._floor = seconds
        else:
            self._floor += (seconds - self._floor) * 0.01
        self._extra = self._extra * 0.9 + (seconds - self._floor)
        self._rows = self._rows * 0.9 + rows


class Runner:
    """The queue in front of one model.

    Args:
        batching: False: every job has a call of its own.
        trials: How many shared calls are checked against calls alone.
        seconds: What a one-row call is known to take; None: the first call goes to the thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        batching: bool = True,
        trials: int = TRIALS,
        seconds: float | None = None,
        max_rows: int = MAX_ROWS,
        thread_seconds: float = THREAD_SECONDS,
    ) -> None:
        self._loop = loop
        self._name = name
        self._batching = batching
        self._trials = trials
        self._max_rows = max_rows
        self._thread_seconds = thread_seconds
        self._cost = {True: _Cost(seconds), False: _Cost(seconds)}
        self._waiting: deque[Job] = deque()
        self._scheduled = False
        self._running = False
        self._thread: ThreadPoolExecutor | None = None
        self.calls = 0
        self.shared_calls = 0

    def submit(self, job: Job) -> None:
        """Queue a job; it runs in this event-loop turn when the model is free."""
        self._waiting.append(job)
        if not self._scheduled and not self._running:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def close(self) -> None:
        """End the worker thread once its call is over."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    def _turn(self) -> None:
        self._scheduled = False
        if self._running:
            return
        jobs = self._take()
        if not jobs:
            return
        rows = sum(job.rows for job in jobs) if len(jobs) > 1 else jobs[0].rows
        if self._cost[jobs[0].key is None].expect(rows) > self._thread_seconds:
            self._running = True
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"predict-{self._name}")
            future = self._loop.run_in_executor(self._thread, _execute, jobs, self._trials > 0)
            future.add_done_callback(lambda done: self._thread_done(jobs, rows, done))
            return
        self._deliver(jobs, rows, _execute(jobs, self._trials > 0))
        self._next()

    def _thread_done(self, jobs: list[Job], rows: int, done: asyncio.Future[_Executed]) -> None:
        self._running = False
        if not done.cancelled():
            self._deliver(jobs, rows, done.result())
            self._next()

    def _next(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _take(self) -> list[Job]:
        """Return the oldest job and, in order, those that may share its call."""
        # A client that left has its call dropped here, before it costs anything.
        waiting = self._waiting
        while waiting and waiting[0].abandoned:
            waiting.popleft()
        if not waiting:
            return []
        first = waiting.popleft()
        jobs = [first]
        if first.key is None or not self._batching or not waiting:
            return jobs
        rows = first.rows
        passed: list[Job] = []
        while waiting and rows < self._max_rows:
            job = waiting.popleft()
            if job.key == first.key and rows + job.rows <= self._max_rows:
                if not job.abandoned:
                    jobs.append(job)
                    rows += job.rows
            else:
                passed.append(job)
        waiting.extendleft(reversed(passed))
        return jobs

    def _deliver(self, jobs: list[Job], rows: int, executed: _Executed) -> None:
        results, same, cost = executed
        if same is not None:
            self._trials -= 1
            if not same:
                self._batching = False
                logger.warning(
                    "model %s answers requests differently in company; it gets them one by one",
                    self._name,
                )
        self.calls += 1
        if len(jobs) > 1:
            self.shared_calls += 1
        self._cost[jobs[0].key is None].seen(rows, cost)
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, _Failure):
                job.failed(result.error)
            else:
                job.done(result)


class _Failure:
    """The exception of a job, apart from anything a model could return."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


# One result or `_Failure` per job; whether a trial found the same alone (None: there was none); and
# what the first call cost, in seconds.
_Executed = tuple[list[Any], bool | None, float]


def _execute(jobs: list[Job], trial: bool) -> _Executed:
    """Compute jobs in one call when there are several, else or if that fails one by one.

    Sets `seconds` on each job. With `trial`, several jobs are computed both ways, answered with the
    results alone, and compared.
    """
    started = perf_counter()
    cpu = thread_time()
    if len(jobs) == 1:
        return _alone(jobs), None, _cost_since(started, cpu)
    try:
        y = jobs[0].compute(np.concatenate([job.x for job in jobs]))
        if len(y) != sum(job.rows for job in jobs):
            raise ValueError("the model did not answer every row")
    except Exception:  # whatever it was, each job meets it (or not) by itself
        return _alone(jobs), None, _cost_since(started, cpu)
    cost = _cost_since(started, cpu)
    seconds = perf_counter() - started
    results = []
    start = 0
    for job in jobs:
        job.seconds = seconds
        results.append(y[start : start + job.rows])
        start += job.rows
    if not trial:
        return results, None, cost
    alone = _alone(jobs)
    return alone, all(map(_identical, results, alone)), cost


def _cost_since(started: float, cpu: float) -> float:
    """Return CPU seconds of this thread since then, so that a busy machine does not make calls look
    slow; wall seconds for calls that mostly wait (for a device, a service, other threads).
    """
    used = thread_time() - cpu
    elapsed = perf_counter() - started
    return elapsed if elapsed > 8 * used else used


def _alone(jobs: list[Job]) -> list[Any]:
    results: list[Any] = []
    for job in jobs:
        started = perf_counter()
        try:
            results.append(job.compute(job.x))
        except Exception as error:
            results.append(_Failure(error))
        job.seconds = perf_counter() - started
    return results


def _identical(a: Any, b: Any) -> bool:
    """Return whether two results are equal in type, shape and every bit."""
    if isinstance(b, _Failure):
        return False
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b)) if a.dtype.kind == "O" else a.tobytes() == b.tobytes()
