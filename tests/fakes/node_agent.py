"""A node agent without processes: makes Pods run, become ready, fail, and go away in the store.

Does what `controllers.pod` does as seen from the API: status writes and the confirmation of a
deletion. Tests say per storageUri or image what should happen, and may hold Pods back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kserve_local.api.meta import Key, Object, name_of, namespace_of, timestamp, uid_of
from kserve_local.errors import NotFound
from kserve_local.store.store import Store

Verdict = Callable[[Object], dict[str, Any] | None]


def running(pod: Object, address: str) -> dict[str, Any]:
    """Return the status of a Pod that serves."""
    now = timestamp()
    return {
        "phase": "Running",
        "podIP": address,
        "startTime": now,
        "conditions": [
            {"type": t, "status": "True", "lastTransitionTime": now}
            for t in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "containerStatuses": [
            {
                "name": c["name"],
                "ready": True,
                "restartCount": 0,
                "image": c.get("image", ""),
                "state": {"running": {"startedAt": now}},
                "lastState": {},
            }
            for c in pod["spec"]["containers"]
        ],
    }


def storage_failed(pod: Object, message: str) -> dict[str, Any]:
    """Return the status of a Pod whose storage initializer ended with an error."""
    now = timestamp()
    return {
        "phase": "Pending",
        "startTime": now,
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
            {"type": "Initialized", "status": "False", "lastTransitionTime": now},
            {"type": "Ready", "status": "False", "lastTransitionTime": now},
        ],
        "initContainerStatuses": [
            {
                "name": "storage-initializer",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {"reason": "Error", "exitCode": 1, "message": message}},
                "lastState": {},
            }
        ],
        "containerStatuses": [
            {
                "name": c["name"],
                "ready": False,
                "restartCount": 0,
                "state": {"waiting": {"reason": "PodInitializing"}},
                "lastState": {},
            }
            for c in pod["spec"]["containers"]
        ],
    }


def crashed(
    pod: Object, message: str, *, code: int = 1, reason: str = "Error", looping: bool = True
) -> dict[str, Any]:
    """Return the status of a Pod whose container exits at start."""
    now = timestamp()
    ended = {"terminated": {"reason": reason, "exitCode": code, "message": message}}
    waiting = {
        "waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed"}
    }
    return {
        "phase": "Running",
        "podIP": "127.64.0.9",
        "startTime": now,
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
        "containerStatuses": [
            {
                "name": c["name"],
                "ready": False,
                "restartCount": 1,
                "state": waiting if looping else ended,
                "lastState": ended if looping else {},
            }
            for c in pod["spec"]["containers"]
        ],
    }


class FakeNodeAgent:
    """Watches Pods and answers with statuses.

    Args:
        store: The store.
        verdict: Gives the status of a new Pod; None leaves it Pending. Default: it runs.
    """

    def __init__(self, store: Store, verdict: Verdict | None = None) -> None:
        self._store = store
        self._verdict = verdict
        self._number = 1
        self._done: set[str] = set()

    def address(self) -> str:
        """Return an address that no other Pod got."""
        self._number += 1
        return f"127.64.{self._number >> 8}.{self._number & 255}"

    async def run(self) -> None:
        """Serve until cancelled."""
        async with self._store.watch("pods") as events:
            async for event in events:
                if event.type == "DELETED":
                    continue
                await self._look(event.object)

    async def _look(self, pod: Object) -> None:
        key = Key("pods", namespace_of(pod), name_of(pod))
        if pod["metadata"].get("deletionTimestamp"):
            try:
                await self._store.delete(key, uid=uid_of(pod), grace=0)
            except NotFound:
                return
            return
        if uid_of(pod) in self._done:
            return
        self._done.add(uid_of(pod))
        status = self._verdict(pod) if self._verdict is not None else running(pod, self.address())
        if status is not None:
            await self.set_status(pod, status)

    async def set_status(self, pod: Object, status: dict[str, Any]) -> None:
        """Write a Pod's status as the node agent would."""
        metadata = {k: v for k, v in pod["metadata"].items() if k != "resourceVersion"}
        try:
            await self._store.update_status({**pod, "metadata": metadata, "status": status})
        except NotFound:
            return


@asynccontextmanager
async def node_agent(store: Store, verdict: Verdict | None = None) -> AsyncIterator[FakeNodeAgent]:
    """Run a fake node agent while the block lasts."""
    agent = FakeNodeAgent(store, verdict)
    task = asyncio.create_task(agent.run(), name="fake-node-agent")
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
