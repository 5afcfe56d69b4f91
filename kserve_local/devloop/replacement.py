"""New replicas for what was saved, followed until they serve; why they do not is told.

A later save of the same takes the place of one that is still followed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

from kserve_local.api.meta import Key
from kserve_local.devloop.activity import Activity
from kserve_local.devloop.workloads import Workloads

Name = tuple[str, str]
After = Callable[[Collection[Name], float], None]
"""Called with the (namespace, name) of services that serve what was saved, and when that was (Unix
time)."""
_PATIENCE = 600.0
"""Seconds that new replicas are followed; a Deployment gives up after as long."""
_LOOK = 0.5


class Replacements:
    """Starts new replicas: one for code and models, which may be of the same Deployment."""

    def __init__(
        self,
        workloads: Workloads,
        activity: Activity,
        after: After,
    ) -> None:
        self._workloads = workloads
        self._activity = activity
        self._after = after
        self._latest: dict[Key, int] = {}
        self._count = 0

    async def start(
        self,
        deployments: Collection[Key],
        annotation: str,
        digest: str,
        services: Sequence[Name],
        *,
        reason: str,
        what: str,
        why: str,
        begun: float,
    ) -> None:
        """Start new replicas behind the old ones; return once they were asked for.

        Args:
            reason: Of the Event that says so.
            what: What was saved, e.g. `model.py`.
            begun: `time.monotonic()` at the save.
        """
        text = f"{what}: new replicas{why}"
        self._activity.add("replacing", text, services=services)
        self._count += 1
        self._activity.replacing.add(self._count)
        for deployment in sorted(deployments):
            self._latest[deployment] = self._count
            await self._workloads.replace(deployment, annotation, digest)
        for namespace, service in services:
            await self._workloads.tell(namespace, service, "Normal", reason, text)
        self._activity.follow(
            self._follow(deployments, self._count, services, what, begun), name="replacement"
        )

    async def _follow(
        self,
        deployments: Collection[Key],
        number: int,
        services: Sequence[Name],
        what: str,
        begun: float,
    ) -> None:
        try:
            await self._until_served(deployments, number, services, what, begun)
        finally:
            self._activity.replacing.discard(number)

    async def _until_served(
        self,
        deployments: Collection[Key],
        number: int,
        services: Sequence[Name],
        what: str,
        begun: float,
    ) -> None:
        told: set[str] = set()
        left = set(deployments)
        while left and time.monotonic() - begun < _PATIENCE:
            if any(self._latest.get(deployment) != number for deployment in deployments):
                return
            found = await asyncio.gather(
                *(self._workloads.replaced(deployment, patience=_LOOK) for deployment in left)
            )
            left -= {d for d, done in zip(list(left), found, strict=True) if done}
            if left:
                await self._tell_failing(services, told)
                if told:
                    # Nobody need wait for what has failed; the next save may mend it.
                    self._activity.replacing.discard(number)
        if left or any(self._latest.get(deployment) != number for deployment in deployments):
            return
        took = time.monotonic() - begun
        text = f"{what} serves"
        self._activity.add("replaced", text, services=services, ms=round(took * 1000))
        self._after(services, time.time() - took)

    async def _tell_failing(self, services: Sequence[Name], told: set[str]) -> None:
        for namespace, service in services:
            for text in await self._workloads.failing(namespace, service):
                if text not in told:
                    told.add(text)
                    self._activity.add("refused", text, services=[(namespace, service)])
                    await self._workloads.tell(namespace, service, "Warning", "ReloadFailed", text)
