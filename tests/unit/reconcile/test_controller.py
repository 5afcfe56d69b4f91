"""The engine: watches become keys, failures stay their own, everything stops when told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from kserve_local.aio import running
from kserve_local.api.meta import Key, Object, WatchEvent
from kserve_local.errors import Conflict, Gone
from kserve_local.reconcile.controller import Engine, Watch, controlling, itself, labelled
from kserve_local.reconcile.result import DONE, RETRY, Result


def pod(name: str, **metadata: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", **metadata},
    }


class FakeStore:
    """Watches that yield what a test puts in."""

    def __init__(self) -> None:
        self.feeds: dict[str, asyncio.Queue[WatchEvent | Exception]] = {}
        self.opened = 0
        self.thrice = asyncio.Event()

    def feed(self, resource: str) -> asyncio.Queue[WatchEvent | Exception]:
        return self.feeds.setdefault(resource, asyncio.Queue())

    def put(self, obj: Object) -> None:
        self.feed("pods").put_nowait(WatchEvent("MODIFIED", obj, 1))

    @asynccontextmanager
    async def watch(
        self, resource: str, *, namespace: str | None = None, since: int | None = None
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        self.opened += 1
        if self.opened >= 3:
            self.thrice.set()

        async def events() -> AsyncIterator[WatchEvent]:
            while True:
                item = await self.feed(resource).get()
                if isinstance(item, Exception):
                    raise item
                yield item

        yield events()


class Looks:
    """A reconciler that notes what it was asked to look at."""

    name = "looks"

    def __init__(self, answer: Callable[[Key, int], Result] = lambda key, n: DONE) -> None:
        self.watches: Sequence[Watch] = (Watch("pods", itself),)
        self.seen: list[str] = []
        self.news = asyncio.Event()
        self._answer = answer

    async def reconcile(self, key: Key) -> Result:
        self.seen.append(key.name)
        self.news.set()
        return self._answer(key, self.seen.count(key.name))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.seen) < count:
                self.news.clear()
                await self.news.wait()


async def test_one_raising_reconcile_stops_nobody_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(key: Key, n: int) -> Result:
        if key.name == "bad" and n < 3:
            raise RuntimeError("broken reconcile")
        return DONE

    store, looks = FakeStore(), Looks(answer)
    async with running(Engine(store, [looks]).run(), name="engine"):
        store.put(pod("bad"))
        store.put(pod("good"))
        await looks.until(4)
    assert looks.seen.count("bad") == 3
    assert looks.seen.count("good") == 1
    assert "broken reconcile" in caplog.text


@pytest.mark.parametrize("first", [Conflict("stale"), RETRY, Result(requeue_after=0.001)])
async def test_conflict_retry_and_requeue_come_again(first: Result | Exception) -> None:
    def answer(key: Key, n: int) -> Result:
        if n > 1:
            return DONE
        if isinstance(first, Exception):
            raise first
        return first

    store, looks = FakeStore(), Looks(answer)
    async with running(Engine(store, [looks]).run(), name="engine"):
        store.put(pod("a"))
        await looks.until(2)
    assert looks.seen == ["a", "a"]


async def test_a_watch_that_fell_behind_starts_over() -> None:
    store, looks = FakeStore(), Looks()
    async with running(Engine(store, [looks]).run(), name="engine"):
        store.feed("pods").put_nowait(Gone("too old"))
        store.put(pod("a"))
        await looks.until(1)
    assert store.opened == 2


async def test_a_mapper_that_raises_loses_only_its_own_event() -> None:
    def mapper(obj: Object) -> list[Key]:
        if obj["metadata"]["name"] == "odd":
            raise KeyError("labels")
        return list(itself(obj))

    store, looks = FakeStore(), Looks()
    looks.watches = (Watch("pods", mapper),)
    async with running(Engine(store, [looks]).run(), name="engine"):
        store.put(pod("odd"))
        store.put(pod("a"))
        await looks.until(1)
    assert looks.seen == ["a"]


async def test_no_more_reconciles_at_a_time_than_workers() -> None:
    active, most = 0, 0

    class Slow(Looks):
        async def reconcile(self, key: Key) -> Result:
            nonlocal active, most
            active += 1
            most = max(most, active)
            for _ in range(3):
                await asyncio.sleep(0)
            active -= 1
            return await super().reconcile(key)

    store, slow = FakeStore(), Slow()
    async with running(Engine(store, [slow], workers=3).run(), name="engine"):
        for n in range(20):
            store.put(pod(f"p{n}"))
        await slow.until(20)
    assert most == 3


async def test_something_outside_the_store_can_wake_a_reconciler() -> None:
    class Woken(Looks):
        def attach(self, add: Callable[[Key], None]) -> None:
            self.add = add

    store, woken = FakeStore(), Woken()
    async with running(Engine(store, [woken]).run(), name="engine"):
        woken.add(Key("pods", "default", "x"))
        await woken.until(1)
    assert woken.seen == ["x"]


def test_owners_and_labels_name_the_key_to_look_at() -> None:
    owner = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "d",
        "uid": "1",
        "controller": True,
    }
    child = pod("p", ownerReferences=[owner], labels={"app": "x"})
    assert list(controlling("deployments.apps")(child)) == [Key("deployments.apps", "default", "d")]
    assert list(controlling("pods")(child)) == []
    assert list(controlling("pods")(pod("orphan"))) == []
    assert list(labelled("services", "app")(child)) == [Key("services", "default", "x")]
    assert list(labelled("services", "none")(child)) == []


async def test_everything_is_looked_at_again_at_each_resync() -> None:
    store, looks = FakeStore(), Looks()
    async with running(Engine(store, [looks], resync=0.01).run(), name="engine"):
        async with asyncio.timeout(5):
            await store.thrice.wait()
        store.put(pod("a"))
        await looks.until(1)
