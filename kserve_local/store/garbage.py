"""Garbage collection: what no owner keeps any more is deleted; deleted Namespaces are emptied.

Works from committed changes only and costs nothing while there are none. Copied from Kubernetes'
garbage collector: an object goes when none of the uids in its `ownerReferences` exists; a
Foreground deletion first deletes the dependents and waits for those with `blockOwnerDeletion`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING

from kserve_local.api import scheme
from kserve_local.api.meta import Key, Object, uid_of
from kserve_local.errors import Conflict, KServeLocalError, NotFound
from kserve_local.store.strategy import FOREGROUND

if TYPE_CHECKING:
    from kserve_local.store.store import Store, Write

logger = logging.getLogger(__name__)

_RETRY = 1.0
_AT_ONCE = 256


class GarbageCollector:
    """Deletes ownerless objects and the content of deleted Namespaces of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._dirty: dict[Key, None] = {}
        self._woken = asyncio.Event()
        for resource in scheme.BY_ID:
            for obj in store.list(resource):
                if obj["metadata"].get("ownerReferences") or _is_leaving(obj):
                    self._look_at(scheme.key_of(obj))
        store.on_commit(self._committed)

    async def run(self) -> None:
        """Collect for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            batch = list(self._dirty)[:_AT_ONCE]
            for key in batch:
                del self._dirty[key]
            if self._dirty:
                self._woken.set()
            results = await asyncio.gather(
                *(self._collect(key) for key in batch), return_exceptions=True
            )
            for key, result in zip(batch, results, strict=True):
                if isinstance(result, KServeLocalError):
                    # A conflict or a disk that is full right now: look again a little later.
                    logger.debug("garbage collection of %s: %s", key, result)
                    asyncio.get_running_loop().call_later(_RETRY, self._look_at, key)
                elif isinstance(result, Exception):
                    logger.error("garbage collection of %s failed", key, exc_info=result)
                elif isinstance(result, BaseException):
                    raise result

    def _look_at(self, key: Key) -> None:
        self._dirty[key] = None
        self._woken.set()

    def _committed(self, write: Write) -> None:
        obj = write.object
        owners = obj["metadata"].get("ownerReferences") or ()
        if write.type == "DELETED":
            for dependent in self._store.owned_by(uid_of(obj)):
                self._look_at(scheme.key_of(dependent))
            for reference in owners:
                owner = self._store.key_of_uid(reference.get("uid"))
                if owner is not None and self._leaves(owner):
                    self._look_at(owner)
            namespace = obj["metadata"].get("namespace")
            if namespace:
                key = Key(scheme.NAMESPACE.id, "", namespace)
                if self._leaves(key):
                    self._look_at(key)
        elif _is_leaving(obj) or any(
            self._store.key_of_uid(reference.get("uid")) is None for reference in owners
        ):
            self._look_at(scheme.key_of(obj))

    def _leaves(self, key: Key) -> bool:
        obj = self._store.find(key)
        return obj is not None and _is_leaving(obj)

    async def _collect(self, key: Key) -> None:
        obj = self._store.find(key)
        if obj is None:
            return
        if key.resource == scheme.NAMESPACE.id and _is_leaving(obj):
            await self._empty(key)
            return
        references = obj["metadata"].get("ownerReferences") or ()
        leaving = "deletionTimestamp" in obj["metadata"]
        if (
            references
            and not leaving
            and all(self._store.key_of_uid(r.get("uid")) is None for r in references)
        ):
            await self._delete([(key, uid_of(obj))])
        elif leaving and FOREGROUND in (obj["metadata"].get("finalizers") or ()):
            await self._delete_dependents_first(key, obj)

    async def _delete_dependents_first(self, key: Key, owner: Object) -> None:
        uid = uid_of(owner)
        dependents = self._store.owned_by(uid)
        await self._delete(
            (
                (scheme.key_of(d), uid_of(d))
                for d in dependents
                if "deletionTimestamp" not in d["metadata"]
            ),
            propagation="Foreground",
        )
        blocking = [
            reference
            for dependent in self._store.owned_by(uid)
            for reference in dependent["metadata"]["ownerReferences"]
            if reference.get("uid") == uid and reference.get("blockOwnerDeletion")
        ]
        if not blocking:
            await self._store.finalize(key, FOREGROUND)

    async def _empty(self, key: Key) -> None:
        content = [
            obj
            for kind in scheme.ALL
            if kind.namespaced
            for obj in self._store.list(kind.id, namespace=key.name)
        ]
        await self._delete(
            (scheme.key_of(obj), uid_of(obj))
            for obj in content
            if "deletionTimestamp" not in obj["metadata"]
        )
        left = any(
            self._store.list(kind.id, namespace=key.name) for kind in scheme.ALL if kind.namespaced
        )
        if not left:
            await self._store.finalize(key, "kubernetes")

    async def _delete(
        self, victims: Iterable[tuple[Key, str]], *, propagation: str = "Background"
    ) -> None:
        calls: list[Coroutine[object, object, Object]] = [
            self._store.delete(key, uid=uid, propagation=propagation) for key, uid in victims
        ]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException) and not _is_gone(result):
                raise result


def _is_leaving(obj: Object) -> bool:
    metadata = obj["metadata"]
    return "deletionTimestamp" in metadata and (
        obj["kind"] == "Namespace" or FOREGROUND in (metadata.get("finalizers") or ())
    )


def _is_gone(error: BaseException) -> bool:
    return isinstance(error, (NotFound, Conflict))
