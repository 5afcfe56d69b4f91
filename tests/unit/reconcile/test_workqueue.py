"""The work queue: dedup, one worker a key, delays, backoff."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from kserve_local.api.meta import Key
from kserve_local.reconcile.workqueue import HOT, WorkQueue

A, B = Key("pods", "default", "a"), Key("pods", "default", "b")


async def test_a_key_added_twice_is_handed_out_once() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.add(A)
    queue.add(B)
    assert [await queue.get(), await queue.get()] == [A, B]
    assert len(queue) == 0


async def test_a_key_in_work_waits_for_its_worker() -> None:
    """Two workers must never hold the same key; the second look comes after the first."""
    queue = WorkQueue()
    queue.add(A)
    assert await queue.get() == A
    queue.add(A)
    assert len(queue) == 0
    queue.done(A)
    assert await queue.get() == A
    queue.done(A)
    assert queue.idle


async def test_of_two_delays_the_earlier_counts() -> None:
    queue = WorkQueue()
    queue.add_after(A, 3600)
    queue.add_after(A, 0.001)
    async with asyncio.timeout(5):
        assert await queue.get() == A
    queue.done(A)
    assert queue.idle


async def test_a_later_delay_does_not_push_an_earlier_one_back() -> None:
    queue = WorkQueue()
    queue.add_after(A, 0.001)
    queue.add_after(A, 3600)
    async with asyncio.timeout(5):
        assert await queue.get() == A


async def test_adding_now_replaces_a_delay() -> None:
    queue = WorkQueue()
    queue.add_after(A, 3600)
    queue.add(A)
    assert await queue.get() == A
    queue.done(A)
    assert queue.idle


async def test_failures_wait_longer_each_time_until_forgotten() -> None:
    queue = WorkQueue(first=1.0, cap=5.0)
    waits = [queue.add_failed(A) for _ in range(5)]
    assert all(earlier < later for earlier, later in itertools.pairwise(waits[:3]))
    assert 5.0 <= waits[-1] <= 5.5
    queue.forget(A)
    assert queue.add_failed(A) < 1.2
    queue.close()


async def test_a_cancelled_waiter_passes_its_turn_on() -> None:
    queue = WorkQueue()
    first = asyncio.create_task(queue.get())
    second = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    first.cancel()
    async with asyncio.timeout(5):
        assert await second == A
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_waiters_cancelled_together_leave_a_working_queue() -> None:
    queue = WorkQueue()
    waiters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add(A)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    async with asyncio.timeout(5):
        assert await queue.get() == A


async def test_a_key_that_fails_for_ever_cannot_spin_on_its_own_events() -> None:
    """A failing reconcile that writes an Event each time asked for itself a thousand times a
    second; what changes still gets its look soon, just not at once.
    """
    queue = WorkQueue()
    for _ in range(HOT):
        queue.add_failed(A)
    queue.add(A)
    assert len(queue) == 0
    async with asyncio.timeout(5):
        assert await queue.get() == A
    queue.forget(A)
    queue.add(A)
    queue.done(A)
    assert len(queue) == 1
