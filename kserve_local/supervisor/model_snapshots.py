"""Takes the snapshots of model files away that no Pod uses any more.

Reads Pods and Deployments, and at the start what Pods of an earlier supervisor were given; removes
folders of `<state>/models`. `storage.snapshots` makes them and says which may go.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from kserve_local.api.meta import controller_of, uid_of
from kserve_local.api.scheme import DEPLOYMENT, POD
from kserve_local.controllers.init_containers import recall
from kserve_local.errors import Gone
from kserve_local.storage.snapshots import Snapshots
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

SETTLE = 1.0
"""Seconds in which more Pods may go, as they do together."""


class SnapshotGarbage:
    """Follows the Pods of one project.

    Args:
        volumes: `run/volumes`, with a folder for each Pod.
    """

    def __init__(self, store: Store, snapshots: Snapshots, volumes: Path) -> None:
        self._store = store
        self._snapshots = snapshots
        self._volumes = volumes
        self._owners: dict[str, str] = {}
        self._gone = asyncio.Event()

    async def begin(self) -> None:
        """Take note of what Pods have, before any new one is given something."""
        await asyncio.to_thread(self._meet)

    async def run(self) -> None:
        """Look at once, and after Pods or workloads are gone, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for resource in (POD.id, DEPLOYMENT.id):
                tasks.create_task(self._follow(resource))
            while True:
                pods = {uid_of(pod) for pod in self._store.list(POD.id)}
                coming = {uid for uid, owner in self._owners.items() if self._is_there(owner)}
                await asyncio.to_thread(self._snapshots.collect, pods, coming)
                for uid in self._owners.keys() - pods - coming:
                    del self._owners[uid]
                await self._gone.wait()
                await asyncio.sleep(SETTLE)
                self._gone.clear()

    def _meet(self) -> None:
        self._snapshots.clean()
        for pod in self._store.list(POD.id):
            contents = recall(self._volumes / uid_of(pod)).values()
            self._snapshots.meet(uid_of(pod), [c.path for some in contents for c in some])

    def _is_there(self, uid: str) -> bool:
        return self._store.key_of_uid(uid) is not None

    async def _follow(self, resource: str) -> None:
        while True:
            try:
                async with self._store.watch(resource) as events:
                    async for event in events:
                        if event.type == "DELETED":
                            self._gone.set()
                        elif event.type == "ADDED" and resource == POD.id:
                            owner = controller_of(event.object) or {}
                            self._owners[uid_of(event.object)] = str(owner.get("uid") or "")
            except Gone:
                # Something may have been missed.
                self._gone.set()
