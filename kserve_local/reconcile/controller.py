"""The engine that runs reconcilers: watches -> keys -> work queues -> bounded workers.

Reads watches of the store; writes nothing itself. Knows no kinds. One watch a resource type feeds
all controllers; each controller has a queue of its own, so a slow one holds up nobody else. A
reconcile that raises is logged and retried with exponential backoff, and nothing else notices.
Level-triggered: an event only names what to look at. Copies controller-runtime's shape.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kserve_local.api.meta import Key, Object, WatchEvent, controller_of, labels_of, namespace_of
from kserve_local.api.scheme import by_kind, key_of
from kserve_local.errors import AlreadyExists, Conflict, Gone, KServeLocalError
from kserve_local.log import context
from kserve_local.reconcile.result import Result
from kserve_local.reconcile.workqueue import WorkQueue

logger = logging.getLogger(__name__)

RESYNC = 36_000.0
"""Seconds between two looks at everything, as controller-runtime's default: a safety net only."""

WORKERS = 16
"""Reconciles of one controller at a time; they mostly wait for the store's commit."""


class Watchable(Protocol):
    """What the engine needs of the store."""

    def watch(
        self, resource: str, *, namespace: str | None = None, since: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        """Yield changes; with `since=None` everything first, as ADDED."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Which keys to look at when an object of `resource` changed."""

    resource: str
    keys: Callable[[Object], Iterable[Key]]


class Reconciler(Protocol):
    """One control loop. `reconcile` reads what is, compares with what is wanted, and acts."""

    @property
    def name(self) -> str:
        """For logs and task names."""

    @property
    def watches(self) -> Sequence[Watch]:
        """What wakes it."""

    async def reconcile(self, key: Key) -> Result:
        """Bring the world closer to what `key` wants. Running it twice changes nothing."""


def itself(obj: Object) -> Iterable[Key]:
    """Map an object to its own key."""
    return (key_of(obj),)


def controlling(resource: str) -> Callable[[Object], Iterable[Key]]:
    """Return the mapper from an object to its controlling owner, if that is a `resource`."""

    def keys(obj: Object) -> Iterable[Key]:
        ref = controller_of(obj)
        if ref is None:
            return ()
        if by_kind(ref["apiVersion"], ref["kind"]).id != resource:
            return ()
        return (Key(resource, namespace_of(obj), ref["name"]),)

    return keys


def labelled(resource: str, label: str) -> Callable[[Object], Iterable[Key]]:
    """Return the mapper from an object to the `resource` its label names in the same namespace."""

    def keys(obj: Object) -> Iterable[Key]:
        name = labels_of(obj).get(label)
        return (Key(resource, namespace_of(obj), name),) if name else ()

    return keys


@runtime_checkable
class Attachable(Protocol):
    """A reconciler that also hears of things outside the store, e.g. of processes that ended."""

    def attach(self, add: Callable[[Key], None]) -> None:
        """Take the function that has a key looked at; called once, before the engine runs."""


class Engine:
    """Runs controllers until cancelled.

    Args:
        store: Where watches come from.
        controllers: Each gets its own queue and workers.
    """

    def __init__(
        self,
        store: Watchable,
        controllers: Sequence[Reconciler],
        *,
        workers: int = WORKERS,
        resync: float = RESYNC,
    ) -> None:
        self._store = store
        self._queues = [(controller, WorkQueue()) for controller in controllers]
        for controller, queue in self._queues:
            if isinstance(controller, Attachable):
                controller.attach(queue.add)
        self._workers = workers
        self._resync = resync

    @property
    def idle(self) -> bool:
        """Whether no key waits, runs or is delayed, in any controller."""
        return all(queue.idle for _, queue in self._queues)

    async def run(self) -> None:
        """Serve all controllers until cancelled."""
        resources: dict[str, list[tuple[WorkQueue, Watch]]] = {}
        for controller, queue in self._queues:
            for watch in controller.watches:
                resources.setdefault(watch.resource, []).append((queue, watch))
        try:
            async with asyncio.TaskGroup() as tasks:
                for resource, listeners in resources.items():
                    tasks.create_task(self._pump(resource, listeners), name=f"watch-{resource}")
                for controller, queue in self._queues:
                    for n in range(self._workers):
                        tasks.create_task(_work(controller, queue), name=f"{controller.name}-{n}")
        finally:
            for _, queue in self._queues:
                queue.close()

    async def _pump(self, resource: str, listeners: Sequence[tuple[WorkQueue, Watch]]) -> None:
        """Turn one watch into keys. The watch is opened anew when it is too old, and each resync.

        A new watch begins with everything there is, so nothing that happened between is missed;
        objects deleted between are found by the reconciles of their owners.
        """
        while True:
            try:
                async with asyncio.timeout(self._resync), self._store.watch(resource) as events:
                    async for event in events:
                        if event.type != "BOOKMARK":
                            _dispatch(event.object, listeners)
                    # The store ended the watch by itself: it is closing. Do not spin on it.
                    await asyncio.sleep(1.0)
            except TimeoutError:
                logger.debug("resync of %s", resource)
            except Gone:
                logger.info("watch of %s fell behind and starts over", resource)


def _dispatch(obj: Object, listeners: Sequence[tuple[WorkQueue, Watch]]) -> None:
    for queue, watch in listeners:
        try:
            for key in watch.keys(obj):
                queue.add(key)
        except Exception:
            # A mapper that trips over one odd object must not end the watch for all others.
            logger.exception("cannot map %s to keys", obj.get("metadata", {}).get("name"))


async def _work(controller: Reconciler, queue: WorkQueue) -> None:
    while True:
        key = await queue.get()
        try:
            with context(controller=controller.name, object=str(key)):
                await _reconcile_once(controller, queue, key)
        finally:
            queue.done(key)


async def _reconcile_once(controller: Reconciler, queue: WorkQueue, key: Key) -> None:
    try:
        result = await controller.reconcile(key)
    except (Conflict, AlreadyExists) as error:
        # Somebody wrote in between, or what was there is still being collected: look again.
        wait = queue.add_failed(key)
        logger.debug("again in %.1f s: %s", wait, error)
    except KServeLocalError as error:
        wait = queue.add_failed(key)
        logger.warning("reconcile failed, again in %.1f s: %s", wait, error)
    except Exception:
        wait = queue.add_failed(key)
        logger.exception("reconcile raised, again in %.1f s", wait)
    else:
        if result.retry:
            queue.add_failed(key)
            return
        queue.forget(key)
        if result.requeue_after is not None:
            queue.add_after(key, result.requeue_after)


async def run(store: Watchable, controllers: Sequence[Reconciler]) -> None:
    """Serve the controllers until cancelled."""
    await Engine(store, controllers).run()
