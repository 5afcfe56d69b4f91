"""How long each Pod's start took, phase by phase: from the node agent and the gateway to the user.

The node agent hands over a Pod that became Ready with the stamps of its start. The last phase ends
at the gateway: when its table names the Pod, or, where a request waited for it, with that
request's answer. What comes out is an annotation of the Pod, an Event, and what `status` shows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kserve_local.api import names, start_phases
from kserve_local.api.meta import (
    Object,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    timestamp,
    uid_of,
)
from kserve_local.api.scheme import key_of
from kserve_local.api.start_phases import Start
from kserve_local.controllers.pod_work import KUBELET
from kserve_local.errors import KServeLocalError
from kserve_local.interfaces.stats import RequestStat, Woken
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

LISTING = 60.0
"""Seconds in which the gateway must name a Pod that is Ready, or its start is not told."""
ANSWER = 600.0
"""Seconds that the first answer may take; a slower one is no part of the start."""
REMEMBERED = 2000
"""Components whose last start is remembered beyond its Pod."""
REASON = "ColdStart"


@dataclass(frozen=True, slots=True)
class _Told:
    pod: str
    at: str
    start: Start


class ColdStarts:
    """Tells of starts. A `StatSink`, for the pokes.

    Args:
        listed: Returns when the gateway sends requests to a Pod, in monotonic seconds.
    """

    def __init__(
        self, store: Store, recorder: EventRecorder, listed: Callable[[str], Awaitable[float]]
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._listed = listed
        self._tasks: asyncio.TaskGroup | None = None
        # Revisions (`namespace/name`) of which the gateway holds requests.
        self._awaited: dict[str, asyncio.Future[Woken]] = {}
        self._last: dict[tuple[str, str, str], _Told] = {}

    async def run(self) -> None:
        """Tell of starts until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.get_running_loop().create_future()

    # What is heard

    def record(self, stats: tuple[RequestStat, ...]) -> None:
        """Nothing: figures are no part of a start."""

    def poke(self, target: str) -> None:
        """Take note that a request waits."""
        if target not in self._awaited:
            self._awaited[target] = asyncio.get_running_loop().create_future()

    def woken(self, woken: Woken) -> None:
        """Take note that the request that waited longest has its answer."""
        awaited = self._awaited.pop(woken.target, None)
        if awaited is not None and not awaited.done():
            awaited.set_result(woken)

    def started(self, pod: Object, begins: Mapping[str, float]) -> None:
        """Tell of the start of a Pod that has become Ready, as soon as all of it is known."""
        if self._tasks is not None:
            self._tasks.create_task(self._guarded(pod, begins), name=f"start-{name_of(pod)}")

    # What is told

    async def _guarded(self, pod: Object, begins: Mapping[str, float]) -> None:
        try:
            await self._tell(pod, begins)
        except Exception:
            # What a start took is worth telling, not the supervisor's end.
            logger.exception("the start of %s cannot be told", name_of(pod))

    async def _tell(self, pod: Object, begins: Mapping[str, float]) -> None:
        namespace, name = namespace_of(pod), name_of(pod)
        whole = f"{namespace}/{name}"
        awaited = self._awaited.get(f"{namespace}/{labels_of(pod).get(names.REVISION_LABEL)}")
        try:
            async with asyncio.timeout(LISTING):
                end = await self._listed(whole)
        except TimeoutError:
            return
        stamps = dict(begins)
        if awaited is not None:
            try:
                async with asyncio.timeout(ANSWER):
                    woken = await asyncio.shield(awaited)
            except TimeoutError:
                woken = None
            if woken is not None and woken.pod == whole:
                end = woken.answered
                if woken.arrived < begins["resolve"]:
                    stamps["decide"] = woken.arrived
        start = start_phases.start_of(stamps, end)
        labels = labels_of(pod)
        service = labels.get(names.ISVC_LABEL, "")
        if service:
            of = (namespace, service, labels.get(names.COMPONENT_LABEL, ""))
            self._last.pop(of, None)
            if len(self._last) >= REMEMBERED:
                del self._last[next(iter(self._last))]
            self._last[of] = _Told(name, timestamp(), start)
        await self._write(pod, start)

    async def _write(self, pod: Object, start: Start) -> None:
        newest = self._store.find(key_of(pod))
        if newest is None or uid_of(newest) != uid_of(pod):
            return
        annotations = {**annotations_of(newest), names.START: start_phases.written(start)}
        metadata = {**newest["metadata"], "annotations": annotations}
        try:
            await self._store.update({**newest, "metadata": metadata})
        except KServeLocalError as error:
            logger.info("the start of %s is told by its Event only: %s", name_of(pod), error)
        await self._recorder.event(pod, "Normal", REASON, start.told(), component=KUBELET)

    # What `status` shows

    def last(self, namespace: str, service: str, component: str) -> dict[str, Any] | None:
        """Return the component's last start for `status --json`; None: none since `up`."""
        told = self._last.get((namespace, service, component))
        return None if told is None else shown_start(told.pod, told.at, told.start)


def shown_start(pod: str, at: str, start: Start) -> dict[str, Any]:
    """Return `lastStart` of `status --json`."""
    return {"pod": pod, "at": at, "seconds": start.total / 1e6, "phases": start.seconds()}
