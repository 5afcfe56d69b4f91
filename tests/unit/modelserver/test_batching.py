"""The queue in front of a model: sharing, order, failures, threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from modelserver.batching import Job, Runner


class Call(Job):
    """A job that keeps its outcome."""

    __slots__ = ("finished", "gone", "order", "outcome")

    def __init__(
        self, key: object, x: Any, compute: Callable[[Any], Any], order: list[Any]
    ) -> None:
        super().__init__(key, x, compute)
        self.order = order
        self.outcome: Any = None
        self.gone = False
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def abandoned(self) -> bool:
        return self.gone

    def done(self, result: Any) -> None:
        self._end(result)

    def failed(self, error: Exception) -> None:
        self._end(error)

    def _end(self, outcome: Any) -> None:
        self.outcome = outcome
        self.order.append(self)
        self.finished.set_result(None)


class Doubler:
    """Doubles rows, refuses negative ones, and remembers the sizes of its calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.order: list[Call] = []

    def __call__(self, x: Any) -> Any:
        self.calls.append(len(x))
        if (x < 0).any():
            raise ValueError("negative")
        return x * 2

    def job(self, *rows: float, key: object = "k") -> Call:
        return Call(key, np.array([[row] for row in rows]), self, self.order)


async def settle(*jobs: Call) -> None:
    """Wait until every job has its outcome."""
    await asyncio.gather(*(job.finished for job in jobs))


def runner(**options: Any) -> Runner:
    options = {"seconds": 0.0, "trials": 0, **options}
    return Runner(asyncio.get_running_loop(), "m", **options)


async def test_jobs_of_one_turn_share_a_call_and_get_their_own_rows() -> None:
    """The point of it all."""
    model = Doubler()
    queue = runner()
    jobs = [model.job(1), model.job(2, 3), model.job(4)]
    for job in jobs:
        queue.submit(job)
    await settle(*jobs)
    assert model.calls == [4]
    assert [job.outcome.ravel().tolist() for job in jobs] == [[2], [4, 6], [8]]


async def test_a_job_alone_runs_in_the_next_turn() -> None:
    """No request waits for company."""
    model = Doubler()
    queue = runner()
    job = model.job(1)
    queue.submit(job)
    await asyncio.sleep(0)
    assert job.outcome.tolist() == [[2]]


async def test_one_failing_row_fails_only_its_own_request() -> None:
    """After a failed shared call each request is computed by itself."""
    model = Doubler()
    queue = runner()
    jobs = [model.job(1), model.job(-1), model.job(2)]
    for job in jobs:
        queue.submit(job)
    await settle(*jobs)
    assert model.calls == [3, 1, 1, 1]
    assert jobs[0].outcome.tolist() == [[2]]
    assert isinstance(jobs[1].outcome, ValueError)
    assert jobs[2].outcome.tolist() == [[4]]


async def test_different_keys_never_share_and_the_oldest_goes_first() -> None:
    """What may not be stacked keeps its place in the queue."""
    model = Doubler()
    queue = runner()
    jobs = [
        model.job(1, key="a"),
        model.job(2, key="b"),
        model.job(3, key="a"),
        model.job(4, key=None),
        model.job(5, key="b"),
    ]
    for job in jobs:
        queue.submit(job)
    await settle(*jobs)
    assert [jobs.index(job) for job in model.order] == [0, 2, 1, 4, 3]
    assert model.calls == [2, 2, 1]


async def test_shared_calls_are_bounded() -> None:
    """A long queue is answered in several calls, a single large request in one of its own."""
    model = Doubler()
    queue = runner(max_rows=4)
    jobs = [model.job(1, 2, 3), model.job(4, 5), model.job(6), model.job(*range(9))]
    for job in jobs:
        queue.submit(job)
    await settle(*jobs)
    assert model.calls == [4, 2, 9]


async def test_switched_off_every_job_has_its_own_call() -> None:
    """`--enable_batching=false`."""
    model = Doubler()
    queue = runner(batching=False)
    jobs = [model.job(i) for i in range(3)]
    for job in jobs:
        queue.submit(job)
    await settle(*jobs)
    assert model.calls == [1, 1, 1]


async def test_a_model_that_loses_rows_is_not_trusted_with_shared_calls() -> None:
    """Answers must never be given to the wrong request."""

    def lossy(x: Any) -> Any:
        return x[:1]

    order: list[Any] = []
    queue = runner()
    jobs = [Call("k", np.array([[float(i)]]), lossy, order) for i in range(3)]
    for job in jobs:
        queue.submit(job)
    await settle(*jobs)
    assert [job.outcome.tolist() for job in jobs] == [[[0.0]], [[1.0]], [[2.0]]]


async def test_jobs_of_clients_that_left_are_not_computed() -> None:
    """Their answer has nowhere to go."""
    model = Doubler()
    queue = runner()
    jobs = [model.job(1), model.job(2), model.job(3)]
    jobs[0].gone = jobs[1].gone = True
    for job in jobs:
        queue.submit(job)
    await settle(jobs[2])
    assert model.calls == [1]
    assert jobs[0].outcome is None


async def test_slow_calls_leave_the_event_loop_and_what_waits_is_shared() -> None:
    """While a call runs in its thread the loop goes on, and the next call takes all that came."""
    release = threading.Event()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    threads: list[int] = []
    model = Doubler()

    def slow(x: Any) -> Any:
        threads.append(threading.get_ident())
        loop.call_soon_threadsafe(started.set)
        release.wait(10)
        return model(x)

    queue = runner(seconds=1.0)
    first = Call("k", np.array([[1.0]]), slow, model.order)
    queue.submit(first)
    await started.wait()
    others = [Call("k", np.array([[float(i)]]), slow, model.order) for i in range(2, 12)]
    for job in others:
        queue.submit(job)
    await asyncio.sleep(0)
    assert first.outcome is None
    release.set()
    await settle(first, *others)
    queue.close()
    assert model.calls == [1, 10]
    assert threads[0] != threading.get_ident()


@pytest.mark.parametrize("seconds", [None, 0.0])
async def test_a_call_of_unknown_cost_gets_a_thread(seconds: float | None) -> None:
    """So the first prediction of an unknown model cannot stop health checks."""
    threads: list[int] = []
    order: list[Any] = []

    def compute(x: Any) -> Any:
        threads.append(threading.get_ident())
        return x

    queue = runner(seconds=seconds)
    job = Call("k", np.zeros((1, 1)), compute, order)
    queue.submit(job)
    await settle(job)
    queue.close()
    assert (threads == [threading.get_ident()]) is (seconds is not None)


async def test_a_call_much_larger_than_any_seen_gets_a_thread() -> None:
    """What small calls cost says little about a huge one."""
    threads: list[int] = []
    order: list[Any] = []

    def compute(x: Any) -> Any:
        threads.append(threading.get_ident())
        return x

    queue = runner()
    for rows in (1, 5000):
        job = Call("k", np.zeros((rows, 1)), compute, order)
        queue.submit(job)
        await settle(job)
    queue.close()
    assert threads[0] == threading.get_ident()
    assert threads[1] != threading.get_ident()


async def share(queue: Runner, compute: Callable[[Any], Any]) -> list[Any]:
    """Submit two jobs in one turn and return their results."""
    jobs = [
        Call("k", np.array([[1.0], [2.0]]), compute, []),
        Call("k", np.array([[3.0]]), compute, []),
    ]
    for job in jobs:
        queue.submit(job)
    await settle(*jobs)
    return [job.outcome.tolist() for job in jobs]


async def test_the_first_shared_calls_are_checked_and_then_trusted() -> None:
    """A trial computes together and alone, on the requests that really came."""
    model = Doubler()
    queue = runner(trials=2)
    for _ in range(3):
        assert await share(queue, model) == [[[2.0], [4.0]], [[6.0]]]
    assert model.calls == [3, 2, 1, 3, 2, 1, 3]


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x - x.mean(),
        lambda x: np.nextafter(x, len(x)),
        lambda x: x if len(x) < 3 else x.astype(np.float32),
        lambda x: np.array([str(len(x))] * len(x), dtype=np.object_),
    ],
    ids=["mean of the call", "one unit in the last place", "another type", "text"],
)
async def test_a_model_whose_rows_depend_on_their_company_never_shares_again(
    compute: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Already the first clients get the answers that they would have got alone."""
    alone = [compute(np.array([[1.0], [2.0]])).tolist(), compute(np.array([[3.0]])).tolist()]
    queue = runner(trials=3)
    assert await share(queue, compute) == alone
    assert "answers requests differently in company" in caplog.text
    assert queue.shared_calls == 1
    assert await share(queue, compute) == alone
    assert queue.shared_calls == 1
