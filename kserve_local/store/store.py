"""The store: typed objects in memory, SQLite as their journal, watches for everything that changes.

One asyncio loop owns it. Reads are synchronous and see committed state only. A write is checked
against the newest state at the moment it is called (queued writes included), queued for the journal
and returns once it is on disk; watchers see it then, too. resourceVersion is the journal's sequence
and grows with every change, deletions included. Rules copied from the Kubernetes API machinery:
optimistic concurrency, finalizers, graceful deletion of Pods, status apart from the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import orjson

from kserve_local.api import scheme
from kserve_local.api.meta import (
    Key,
    Object,
    WatchEvent,
    labels_of,
    timestamp,
    uid_of,
)
from kserve_local.api.scheme import ResourceType
from kserve_local.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    NotFound,
    QueueFull,
    ServiceUnavailable,
)
from kserve_local.store import events, garbage, strategy
from kserve_local.store.journal import Journal, Loaded, Record, load, locked
from kserve_local.store.watch import History, Watcher

logger = logging.getLogger(__name__)

Objects = list[Object]  # `list` inside the class is the method
HISTORY = 4096
WATCH_QUEUE = 8192
_MAX_QUEUED = 20_000


@dataclass(slots=True, eq=False)
class Write:
    """A queued or just committed change; `object` is the state after it (DELETED: the last)."""

    record: Record
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Object
    done: asyncio.Future[Object]


class Store:
    """All objects of a project. Make one with `open_store`."""

    def __init__(self, loaded: Loaded, *, history: int, watch_queue: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._journal: Journal | None = None
        self._epoch = 0
        self._sequence = self._committed = self._floor = loaded.sequence
        self._history_size = history
        self._watch_queue = watch_queue
        self._objects: dict[str, dict[tuple[str, str], Object]] = {r.id: {} for r in scheme.ALL}
        self._pending: dict[Key, Write] = {}
        self._queued: deque[Write] = deque()
        self._keys: dict[str, Key] = {}
        self._owned: dict[str, set[Key]] = {}
        self._histories: dict[str, History] = {}
        self._watchers: dict[str, set[Watcher]] = {}
        self._observers: list[Callable[[Write], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        for key, obj in loaded.objects:
            self._remember(key, obj)

    # -- reads ------------------------------------------------------------------------------------

    @property
    def resource_version(self) -> int:
        """The sequence of the newest committed change."""
        return self._committed

    def find(self, key: Key) -> Object | None:
        """Return the object, or None."""
        return self._objects[key.resource].get((key.namespace, key.name))

    def get(self, key: Key) -> Object:
        """Return the object.

        Raises:
            NotFound: In kubectl's words.
        """
        obj = self.find(key)
        if obj is None:
            raise _not_found(key)
        return obj

    def list(
        self,
        resource: str,
        *,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Objects:
        """Return the objects of one resource by namespace and name.

        Args:
            namespace: Only those there; None: all.
            labels: Only those that carry all of these.
        """
        found = self._objects[resource]
        chosen = [
            (place, obj)
            for place, obj in found.items()
            if (namespace is None or place[0] == namespace)
            and (not labels or labels.items() <= labels_of(obj).items())
        ]
        chosen.sort(key=lambda item: item[0])
        return [obj for _, obj in chosen]

    def count(self, resource: str) -> int:
        """Return how many objects of the resource there are."""
        return len(self._objects[resource])

    def owned_by(self, uid: str, resource: str | None = None) -> Objects:
        """Return the objects with an owner reference to that uid, by key."""
        keys = sorted(k for k in self._owned.get(uid, ()) if resource in (None, k.resource))
        return [self._objects[k.resource][k.namespace, k.name] for k in keys]

    def key_of_uid(self, uid: str) -> Key | None:
        """Return which object has that uid, if any."""
        return self._keys.get(uid)

    # -- writes -----------------------------------------------------------------------------------

    async def create(self, obj: Object, *, dry_run: bool = False) -> Object:
        """Store a new object and return it as stored.

        Fills uid, creationTimestamp, generation, resourceVersion, `generateName`; drops `status`
        of kinds with a status subresource. A new Namespace gets its `default` ServiceAccount in the
        same commit.

        Raises:
            AlreadyExists: The name is taken.
            Invalid: Name or metadata syntax.
            NotFound: No such kind.
        """
        kind = scheme.of(obj)
        metadata = obj.get("metadata") or {}
        namespace = (metadata.get("namespace") or "default") if kind.namespaced else ""
        name = str(metadata.get("name") or "")
        if not name and metadata.get("generateName"):
            name = strategy.generate_name(metadata["generateName"])
            while self._newest(Key(kind.id, namespace, name)) is not None:
                name = strategy.generate_name(metadata["generateName"])
        new = strategy.prepare_create(kind, obj, name, sequence=self._sequence + 1)
        key = Key(kind.id, namespace, name)
        if self._newest(key) is not None:
            raise AlreadyExists(f'{kind.id} "{name}" already exists')
        if dry_run:
            return _unwritten(new, None)
        writes = [self._submit(key, "ADDED", new)]
        account_key = Key(scheme.SERVICE_ACCOUNT.id, name, "default")
        if kind is scheme.NAMESPACE and self._newest(account_key) is None:
            account: Object = {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": name},
            }
            account = strategy.prepare_create(
                scheme.SERVICE_ACCOUNT, account, "default", sequence=self._sequence + 1
            )
            writes.append(self._submit(account_key, "ADDED", account))
        await asyncio.gather(*writes)
        return new

    async def update(self, obj: Object, *, dry_run: bool = False) -> Object:
        """Replace an object but for server-owned metadata and a status subresource.

        A write that changes nothing gives the object as it is, with its old resourceVersion.
        Removing the last finalizer of an object that is being deleted removes the object.

        Raises:
            NotFound: No such object.
            Conflict: Its resourceVersion or uid is another one than `obj` names.
            Invalid: An immutable field differs.
        """
        kind = scheme.of(obj)
        key = scheme.key_of(obj)
        old = self._require(key)
        _check_version(key, obj, old)
        new = strategy.prepare_update(kind, obj, old, sequence=self._sequence + 1)
        if dry_run:
            return _unwritten(new, old)
        if new is old:
            return await self._settled(key, old)
        metadata = new["metadata"]
        if (
            "deletionTimestamp" in metadata
            and not metadata.get("finalizers")
            and not metadata.get("deletionGracePeriodSeconds")
            and kind is not scheme.NAMESPACE
        ):
            return await self._submit(key, "DELETED", new)
        return await self._submit(key, "MODIFIED", new)

    async def update_status(self, obj: Object, *, dry_run: bool = False) -> Object:
        """Replace only `.status`; one that is equal is dropped. Returns the stored object.

        Raises:
            NotFound: No such object.
            Conflict: Its resourceVersion or uid is another one than `obj` names.
        """
        key = scheme.key_of(obj)
        old = self._require(key)
        _check_version(key, obj, old)
        strategy.check_uid(
            scheme.BY_ID[key.resource], key.name, obj["metadata"].get("uid"), uid_of(old)
        )
        if obj.get("status") == old.get("status"):
            return old if dry_run else await self._settled(key, old)
        metadata = {**old["metadata"], "resourceVersion": str(self._sequence + 1)}
        new = {**old, "metadata": metadata}
        new.pop("status", None)
        if obj.get("status") is not None:
            new["status"] = obj["status"]
        if dry_run:
            return _unwritten(new, old)
        return await self._submit(key, "MODIFIED", new)

    async def delete(
        self,
        key: Key,
        *,
        uid: str | None = None,
        resource_version: int | None = None,
        propagation: str = "Background",
        grace: float | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Delete an object, or mark it for deletion; return its last or marked state.

        It stays, marked with a deletionTimestamp, while it has finalizers, while (Foreground) its
        blocking dependents exist, while (Namespace) it has content, and (Pod that is scheduled or
        started, and not finished) until its node agent confirms with `grace=0`. Dependents of a
        removed object are collected in the background, or keep living without it (Orphan).

        Args:
            uid / resource_version: Preconditions.
            grace: Seconds; None: the Pod's terminationGracePeriodSeconds, 0: now.

        Raises:
            NotFound: No such object.
            Conflict: A precondition failed.
            BadRequest: Unknown propagation.
        """
        kind = scheme.BY_ID[key.resource]
        old = self._require(key)
        strategy.check_uid(kind, key.name, uid, uid_of(old))
        if resource_version is not None and str(resource_version) != _version(old):
            raise Conflict(
                f'Operation cannot be fulfilled on {kind.id} "{key.name}": Precondition failed: '
                f"ResourceVersion in precondition: {resource_version}, "
                f"ResourceVersion in object meta: {_version(old)}"
            )
        if propagation not in ("Background", "Foreground", "Orphan"):
            raise BadRequest(
                f'propagationPolicy: "{propagation}" is none of Background, Foreground, Orphan'
            )
        finalizers = list(old["metadata"].get("finalizers") or ())
        if propagation == "Foreground" and strategy.FOREGROUND not in finalizers:
            finalizers.append(strategy.FOREGROUND)
        elif propagation != "Foreground" and strategy.FOREGROUND in finalizers:
            finalizers.remove(strategy.FOREGROUND)
        seconds = _pod_grace(old, grace) if kind is scheme.POD else 0
        stays = bool(finalizers) or seconds > 0 or kind is scheme.NAMESPACE
        if propagation == "Orphan" and not dry_run:
            self._orphan(uid_of(old))
        if not stays:
            metadata = {**old["metadata"], "resourceVersion": str(self._sequence + 1)}
            gone = {**old, "metadata": metadata}
            if dry_run:
                return old
            return await self._submit(key, "DELETED", gone)
        at = timestamp(datetime.now(UTC) + timedelta(seconds=seconds))
        marked = strategy.mark_deleted(
            old, sequence=self._sequence + 1, at=at, grace=seconds, finalizers=finalizers
        )
        if kind is scheme.NAMESPACE:
            marked["status"] = {**(marked.get("status") or {}), "phase": "Terminating"}
        unchanged = {**marked["metadata"], "resourceVersion": _version(old)} == old["metadata"]
        if dry_run:
            return _unwritten(marked, old)
        if unchanged:
            return await self._settled(key, old)
        return await self._submit(key, "MODIFIED", marked)

    async def finalize(self, key: Key, finalizer: str) -> None:
        """Take one finalizer off an object that is being deleted; a missing object is fine.

        `kubernetes` on a Namespace is the one in its spec: taking it off removes the Namespace.
        """
        old = self._newest(key)
        if old is None or "deletionTimestamp" not in old["metadata"]:
            return
        finalizers = [f for f in old["metadata"].get("finalizers") or () if f != finalizer]
        metadata = {**old["metadata"], "resourceVersion": str(self._sequence + 1)}
        metadata.pop("finalizers", None)
        if finalizers:
            metadata["finalizers"] = finalizers
        new = {**old, "metadata": metadata}
        if key.resource == scheme.NAMESPACE.id and finalizer == "kubernetes":
            new["spec"] = {}
        elif key.resource == scheme.NAMESPACE.id:
            await self._submit(key, "MODIFIED", new)
            return
        waits = finalizers or metadata.get("deletionGracePeriodSeconds")
        await self._submit(key, "MODIFIED" if waits else "DELETED", new)

    # -- watches ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def watch(
        self, resource: str, *, namespace: str | None = None, since: int | None = None
    ) -> AsyncIterator[Watcher]:
        """Follow one resource from now on; nothing between entering and iterating is lost.

        Args:
            since: Changes after this resourceVersion; None: first an ADDED for everything there is.

        Raises:
            Gone: On entering: `since` is older than what is kept, or from another database. While
                iterating: the consumer fell too far behind. List again in both cases.
        """
        if since is None:
            first = [
                WatchEvent("ADDED", obj, int(_version(obj)))
                for obj in self.list(resource, namespace=namespace)
            ]
        else:
            # Older or newer than anything this database has given out: the caller saw another one.
            history = self._histories.get(resource) or History(self._floor, self._history_size)
            first = history.after(since if since <= self._committed else -1)
            if namespace is not None:
                first = [e for e in first if e.object["metadata"].get("namespace") == namespace]
        watcher = Watcher(namespace, first, self._watch_queue)
        watchers = self._watchers.setdefault(resource, set())
        watchers.add(watcher)
        try:
            yield watcher
        finally:
            watchers.discard(watcher)

    def on_commit(self, observer: Callable[[Write], None]) -> None:
        """Have every committed change told to `observer`, synchronously and in order."""
        self._observers.append(observer)

    def keep_running(self, work: Any, *, name: str) -> None:
        """Own a background coroutine until it ends or the store closes."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- inside -----------------------------------------------------------------------------------

    def _newest(self, key: Key) -> Object | None:
        pending = self._pending.get(key)
        if pending is None:
            return self.find(key)
        return None if pending.type == "DELETED" else pending.object

    def _require(self, key: Key) -> Object:
        obj = self._newest(key)
        if obj is None:
            raise _not_found(key)
        return obj

    async def settled(self, key: Key) -> Object | None:
        """Return the object once its queued writes are on disk: what to start over from after a
        Conflict.
        """
        pending = self._pending.get(key)
        if pending is not None:
            with contextlib.suppress(ServiceUnavailable):
                await asyncio.shield(pending.done)
        return self.find(key)

    async def _settled(self, key: Key, obj: Object) -> Object:
        """Return `obj` once the write that made it is on disk."""
        pending = self._pending.get(key)
        if pending is not None:
            await asyncio.shield(pending.done)
        return obj

    def _submit(
        self, key: Key, type_: Literal["ADDED", "MODIFIED", "DELETED"], obj: Object
    ) -> asyncio.Future[Object]:
        if self._journal is None:
            raise ServiceUnavailable("the store is closed")
        if len(self._queued) >= _MAX_QUEUED:
            raise QueueFull(f"{len(self._queued)} writes are waiting for the disk; try again later")
        body = None if type_ == "DELETED" else orjson.dumps(obj)
        self._sequence += 1
        assert int(_version(obj)) == self._sequence
        record = Record(self._epoch, self._sequence, key, body)
        write = Write(record, type_, obj, self._loop.create_future())
        self._pending[key] = write
        self._queued.append(write)
        self._journal.submit(record)
        return asyncio.shield(write.done)

    def _orphan(self, uid: str) -> None:
        for key in sorted(self._owned.get(uid, ())):
            old = self._newest(key)
            if old is None:
                continue
            metadata = {**old["metadata"], "resourceVersion": str(self._sequence + 1)}
            references = [r for r in metadata.pop("ownerReferences", ()) if r.get("uid") != uid]
            if references:
                metadata["ownerReferences"] = references
            self._submit(key, "MODIFIED", {**old, "metadata": metadata})

    def _reported(self, batch: Sequence[Record], error: Exception | None) -> None:
        """On the writer thread: hand the outcome to the loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._settle, len(batch), error)

    def _settle(self, count: int, error: Exception | None) -> None:
        if error is not None:
            # What is queued was computed from writes that never happened: all of it fails.
            logger.error("state database cannot be written: %s", error)
            failed, self._queued = self._queued, deque()
            self._pending.clear()
            self._epoch += 1
            for write in failed:
                if not write.done.done():
                    write.done.set_exception(
                        ServiceUnavailable(
                            f"the state database cannot be written: {error}; nothing was changed. "
                            f"Is the disk full?"
                        )
                    )
                    write.done.exception()
            return
        for _ in range(count):
            self._apply(self._queued.popleft())

    def _apply(self, write: Write) -> None:
        key, obj = write.record.key, write.object
        if self._pending.get(key) is write:
            del self._pending[key]
        previous = self._forget(key)
        if write.type != "DELETED":
            self._remember(key, obj)
        self._committed = write.record.sequence
        event = WatchEvent(write.type, obj, self._committed, previous)
        history = self._histories.get(key.resource)
        if history is None:
            history = self._histories[key.resource] = History(self._floor, self._history_size)
        history.append(event)
        for watcher in self._watchers.get(key.resource, ()):
            watcher.offer(event)
        for observer in self._observers:
            try:
                observer(write)
            except Exception:
                # It is on disk: whoever wrote it, and those in its batch, must hear of it.
                logger.exception("an observer failed at %s", key)
        if not write.done.done():
            write.done.set_result(obj)

    def _remember(self, key: Key, obj: Object) -> None:
        self._objects.setdefault(key.resource, {})[key.namespace, key.name] = obj
        self._keys[uid_of(obj)] = key
        for uid in _owner_uids(obj):
            self._owned.setdefault(uid, set()).add(key)

    def _forget(self, key: Key) -> Object | None:
        old = self._objects[key.resource].pop((key.namespace, key.name), None)
        if old is None:
            return None
        self._keys.pop(uid_of(old), None)
        for uid in _owner_uids(old):
            owned = self._owned.get(uid)
            if owned is not None:
                owned.discard(key)
                if not owned:
                    del self._owned[uid]
        return old


def _owner_uids(obj: Object) -> tuple[str, ...]:
    """Return the uids of the owners. What an earlier version let in must not stop a start."""
    references = obj["metadata"].get("ownerReferences")
    if not isinstance(references, list):
        return ()
    uids = (r.get("uid") for r in references if isinstance(r, dict))
    return tuple(dict.fromkeys(uid for uid in uids if isinstance(uid, str)))


def _version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])


def _unwritten(obj: Object, old: Object | None) -> Object:
    """Return what a dry run answers: the object with the resourceVersion that it keeps."""
    metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    if old is not None:
        metadata["resourceVersion"] = _version(old)
    return {**obj, "metadata": metadata}


def _not_found(key: Key) -> NotFound:
    return NotFound(f'{key.resource} "{key.name}" not found')


def _check_version(key: Key, obj: Object, old: Object) -> None:
    given = (obj.get("metadata") or {}).get("resourceVersion")
    if given and str(given) != _version(old):
        raise Conflict(
            f'Operation cannot be fulfilled on {key.resource} "{key.name}": the object has been '
            f"modified; please apply your changes to the latest version and try again"
        )


def _pod_grace(pod: Object, grace: float | None) -> int:
    """Return the seconds a Pod may take to end; 0 when nothing runs that would have to."""
    status = pod.get("status") or {}
    spec = pod.get("spec") or {}
    runs = bool(spec.get("nodeName") or status.get("startTime"))
    if not runs or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    if grace is None:
        given = spec.get("terminationGracePeriodSeconds")
        return 30 if given is None else max(0, int(given))
    return max(0, int(grace))


def kind_of(resource: str) -> ResourceType:
    """Return the resource type of a `Key.resource`.

    Raises:
        NotFound: No such resource.
    """
    kind = scheme.BY_ID.get(resource)
    if kind is None:
        raise NotFound(f'the server doesn\'t have a resource type "{resource}"')
    return kind


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    history: int = HISTORY,
    watch_queue: int = WATCH_QUEUE,
    collect: bool = True,
) -> AsyncIterator[Store]:
    """Open the store in the SQLite file `path`, made if missing, and keep it while the block lasts.

    Args:
        history: Changes kept per resource for watches that resume.
        watch_queue: Changes a watcher may be behind.
        collect: Run garbage collection, namespace deletion and Event expiry.

    Raises:
        StateLocked: Another process owns the file.
        StateDamaged: It is damaged or newer than this program; it was left untouched.
    """
    with locked(path):
        loaded = await asyncio.to_thread(load, path)
        store = Store(loaded, history=history, watch_queue=watch_queue)
        journal = Journal(path, store._reported)
        await asyncio.to_thread(journal.open)
        store._journal = journal
        try:
            if collect:
                collector = garbage.GarbageCollector(store)
                store.keep_running(collector.run(), name="garbage-collector")
                store.keep_running(events.expire(store), name="event-expiry")
            yield store
        finally:
            tasks = list(store._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            store._journal = None
            for watchers in store._watchers.values():
                for watcher in watchers:
                    watcher.close()
            await asyncio.to_thread(journal.close)
            await asyncio.sleep(0)  # let the last batch's report run before the loop may close
