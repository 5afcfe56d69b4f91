"""Watches resume inside the kept history, say Gone outside it, and never block the store."""

from __future__ import annotations

import pytest

from kserve_local.api.meta import WatchEvent
from kserve_local.errors import Gone
from kserve_local.store.watch import History, Watcher


def change(version: int, namespace: str = "default") -> WatchEvent:
    obj = {"metadata": {"namespace": namespace, "name": f"o{version}"}}
    return WatchEvent("MODIFIED", obj, version)


def versions(events: list[WatchEvent] | None) -> list[int]:
    return [event.resource_version for event in events or ()]


def test_history_gives_what_came_after() -> None:
    history = History(floor=0, size=10)
    for version in (3, 5, 9):
        history.append(change(version))
    assert versions(history.after(0)) == [3, 5, 9]
    assert versions(history.after(4)) == [5, 9]
    assert history.after(9) == []


def test_history_says_gone_for_what_it_forgot() -> None:
    """A watcher must never miss a change without being told."""
    history = History(floor=0, size=2)
    for version in (3, 5, 9):
        history.append(change(version))
    assert versions(history.after(3)) == [5, 9]
    with pytest.raises(Gone, match=r"too old resource version: 2 \(3\)"):
        history.after(2)


def test_history_after_a_restart_knows_nothing_before_it() -> None:
    history = History(floor=100, size=2)
    assert history.after(100) == []
    with pytest.raises(Gone):
        history.after(99)


async def test_watcher_takes_all_that_is_queued() -> None:
    watcher = Watcher(None, [change(1)], limit=10)
    watcher.offer(change(2))
    assert versions(await watcher.take(0)) == [1, 2]
    assert await watcher.take(0) == []


async def test_watcher_sees_only_its_namespace() -> None:
    watcher = Watcher("a", (), limit=10)
    watcher.offer(change(1, "b"))
    watcher.offer(change(2, "a"))
    assert versions(await watcher.take(None)) == [2]


async def test_watcher_that_falls_behind_is_ended_with_gone() -> None:
    """Half a stream would look like a whole one; the watcher has to list again."""
    watcher = Watcher(None, (), limit=2)
    for version in (1, 2, 3):
        watcher.offer(change(version))
    with pytest.raises(Gone):
        await anext(watcher)


async def test_initial_events_do_not_count_as_falling_behind() -> None:
    watcher = Watcher(None, [change(v) for v in range(1, 6)], limit=1)
    watcher.offer(change(6))
    assert versions(await watcher.take(0)) == [1, 2, 3, 4, 5, 6]


async def test_closed_watcher_delivers_the_rest_and_ends() -> None:
    watcher = Watcher(None, (), limit=5)
    watcher.offer(change(1))
    watcher.close()
    assert [event.resource_version async for event in watcher] == [1]
    assert await watcher.take(None) is None
