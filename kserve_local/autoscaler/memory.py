"""Keeps all replicas within `resourcesBudget.memory`: `budget`'s decisions, carried out.

Reads what Pods hold (`Backend.usage`), the gateway's figures (a `StatSink`) and PodAutoscalers;
writes their annotation `scale: "0"`, with the reason in another one, which the autoscaler carries
out and the next request takes off. A service is evicted as a whole: all components, all revisions.

A Pod counts with what it is expected to hold until it is ready, then with what it holds. Expected
is the most that a Pod of its Revision or, without one, of its service was seen to hold, else its
memory request, else its limit, else `budget.DEFAULT_NEED`. Figures are not kept beyond the
supervisor's life.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from kserve_local.api import names
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    condition_is,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.scheme import INFERENCE_SERVICE, POD, POD_AUTOSCALER, key_of
from kserve_local.api.workloads import asked_of
from kserve_local.autoscaler import budget
from kserve_local.autoscaler.budget import Holder
from kserve_local.errors import Conflict, KServeLocalError, NotFound
from kserve_local.interfaces.backend import Backend
from kserve_local.interfaces.holds import NONE, Holds, memory_group
from kserve_local.interfaces.memory import Refusal
from kserve_local.interfaces.stats import RequestStat
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

OFTEN, SELDOM = 0.25, 2.0
"""Seconds between two looks: while somebody waits or starts, and otherwise."""
TRIES = 10
FRESH = 3.0
"""Periods after which a report of figures says nothing about now any more."""


@dataclass(slots=True)
class _Pod:
    """A Pod that holds memory, or room for it; `scales`: a PodAutoscaler says how many."""

    key: Key
    service: str
    revision: str
    memory: int
    scales: bool
    ready: bool = False
    leaving: bool = False


@dataclass(slots=True)
class _Use:
    """How a service is used: when last, and as of when it had requests."""

    last: float
    requests: int = 0
    seen: float = 0.0
    period: float = 1.0


@dataclass(slots=True)
class _Start:
    """A Pod that waits: since when, and what is being freed for it."""

    since: float
    service: str
    promised: int = 0


class MemoryBudget:
    """The `MemoryGate` of a project with a budget.

    Args:
        limit: The budget, bytes.
        pinned: InferenceServices that never go.
        clock: Monotonic seconds.
        holds: Which services have a debugger attached: they do not go.
    """

    def __init__(
        self,
        limit: int,
        store: Store,
        events: EventRecorder,
        backend: Backend,
        *,
        pinned: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
        holds: Holds = NONE,
    ) -> None:
        self._holds = holds
        self._limit = limit
        self._store = store
        self._events = events
        self._backend = backend
        self._pinned = pinned
        self._clock = clock
        self._pods: dict[str, _Pod] = {}
        self._starts: dict[str, _Start] = {}
        self._use: dict[str, _Use] = {}
        self._peaks: dict[str, int] = {}
        self._evicted: dict[str, float] = {}
        self._wake: Callable[[], None] = lambda: None
        self._look = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    # The node agent's side

    def attach(self, wake: Callable[[], None]) -> None:
        """See `MemoryGate.attach`."""
        self._wake = wake

    def reserve(self, pod: Object) -> Refusal | None:
        """See `MemoryGate.reserve`."""
        uid = uid_of(pod)
        if uid in self._pods:
            return None
        service = service_of(pod)
        need = self._expected(pod)
        start = self._starts.get(uid)
        if start is None:
            start = self._starts[uid] = _Start(self._clock(), service)
        others = sum(s.promised for other, s in self._starts.items() if other != uid)
        holders = self._holders()
        verdict = budget.decide(need, self._limit, holders, service=service, promised=others)
        if verdict.answer == "start":
            del self._starts[uid]
            self._hold(pod, need)
            return None
        if verdict.answer == "never":
            # It keeps nobody waiting.
            del self._starts[uid]
        elif verdict.evict:
            start.promised = need
            self._send_away(verdict.evict, service, need)
        self._look.set()
        told = budget.told(need, self._limit, holders, verdict)
        text = f"0/1 nodes are available: 1 Insufficient memory: {told}"
        if verdict.answer == "never":
            return Refusal(text, "never")
        going = bool(verdict.evict) or any(h.leaving for h in holders)
        return Refusal(text, "clearing" if going else "stuck")

    def keep(self, pod: Object) -> None:
        """See `MemoryGate.keep`."""
        self._hold(pod, self._expected(pod))

    def release(self, uid: str) -> bool:
        """See `MemoryGate.release`."""
        waited = self._starts.pop(uid, None)
        found = self._pods.pop(uid, None)
        return found is not None or waited is not None

    def _hold(self, pod: Object, memory: int) -> None:
        service = service_of(pod)
        key = Key(POD.id, namespace_of(pod), name_of(pod))
        name = labels_of(pod).get(names.REVISION_LABEL, "")
        scales = self._store.find(Key(POD_AUTOSCALER.id, key.namespace, name)) is not None
        revision = f"{key.namespace}/{name}"
        self._pods[uid_of(pod)] = _Pod(key, service, revision, memory, scales)
        self._used(service)
        self._look.set()

    def _expected(self, pod: Object) -> int:
        revision = f"{namespace_of(pod)}/{labels_of(pod).get(names.REVISION_LABEL, '')}"
        seen = self._peaks.get(revision) or self._peaks.get(_component_of(pod))
        return seen or said_to_need(pod) or budget.DEFAULT_NEED

    # The gateway's side

    def record(self, stats: tuple[RequestStat, ...]) -> None:
        """Take note of who has requests."""
        now = self._clock()
        changed = False
        for stat in stats:
            service = self._service_of_target(stat.target)
            if service is None:
                continue
            use = self._use.setdefault(service, _Use(now))
            if stat.requests or stat.in_flight:
                use.last = now
            changed = changed or bool(use.requests) != bool(stat.in_flight)
            use.requests, use.seen, use.period = stat.in_flight, now, stat.period
        if changed and self._starts:
            self._wake()

    def poke(self, target: str) -> None:
        """A request waits: until the next report it counts as one."""
        service = self._service_of_target(target)
        if service is not None:
            use = self._used(service)
            use.requests, use.seen = max(1, use.requests), self._clock()

    def _used(self, service: str) -> _Use:
        now = self._clock()
        use = self._use.setdefault(service, _Use(now))
        use.last = now
        return use

    def _service_of_target(self, target: str) -> str | None:
        namespace, _, name = target.partition("/")
        autoscaler = self._store.find(Key(POD_AUTOSCALER.id, namespace, name))
        return None if autoscaler is None else service_of(autoscaler)

    # What holds

    def _holders(self) -> list[Holder]:
        now = self._clock()
        by_service: dict[str, list[_Pod]] = {}
        for pod in self._pods.values():
            by_service.setdefault(pod.service, []).append(pod)
        found = []
        for service, pods in by_service.items():
            use = self._use.get(service) or _Use(0.0)
            fresh = now - use.seen < FRESH * max(use.period, OFTEN)
            found.append(
                Holder(
                    service,
                    sum(p.memory for p in pods),
                    use.last,
                    stays=self._why_it_stays(service, pods),
                    busy=bool(use.requests) and fresh,
                    starting=any(not p.ready and not p.leaving for p in pods),
                    leaving=sum(p.memory for p in pods if p.leaving or service in self._evicted),
                )
            )
        return found

    def _why_it_stays(self, service: str, pods: Sequence[_Pod]) -> str:
        if service.partition("/")[2] in self._pinned:
            return "pinned"
        if self._holds.is_held(memory_group(service)):
            return "being debugged"
        return "" if all(p.scales for p in pods) else "in Standard mode, which knows no zero"

    async def run(self) -> None:
        """Measure, and keep within the budget, until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            while True:
                self._look.clear()
                try:
                    await self._measure()
                except Exception:
                    logger.exception("memory cannot be measured")
                gone = budget.overflow(self._limit, self._holders())
                self._send_away(gone, "", 0)
                if self._starts:
                    self._wake()
                starting = any(not p.ready for p in self._pods.values())
                wait = OFTEN if self._starts or starting else SELDOM
                try:
                    async with asyncio.timeout(wait):
                        await self._look.wait()
                    await asyncio.sleep(OFTEN / 5)
                except TimeoutError:
                    pass

    async def _measure(self) -> None:
        """Bring what is known of the Pods up to date."""
        for uid, known in list(self._pods.items()):
            pod = self._store.find(known.key)
            there = pod is not None and uid_of(pod) == uid
            known.leaving = not there or bool((pod or {})["metadata"].get("deletionTimestamp"))
            if not there or known.leaving:
                continue
            try:
                used = (await self._backend.usage(uid)).memory_bytes
            except KServeLocalError:
                continue  # nothing runs yet, or its engine does not answer
            assert pod is not None
            known.ready = condition_is(pod, "Ready")
            known.memory = used if known.ready else max(used, known.memory)
            for name in (known.revision, _component_of(pod)):
                self._peaks[name] = max(used, self._peaks.get(name, 0))
        running = {p.service for p in self._pods.values()}
        now = self._clock()
        # Once its Pods are told to go they say so themselves; an eviction that came to nothing
        # (a request took it back) is none any more.
        self._evicted = {
            s: since for s, since in self._evicted.items() if s in running and now - since < SELDOM
        }

    # Who goes

    def _send_away(self, services: tuple[str, ...], whose: str, need: int) -> None:
        for service in services:
            if service in self._evicted or self._tasks is None:
                continue
            self._evicted[service] = self._clock()
            why = f"room for {whose}" if whose else "all together hold more than the budget"
            job = self._evict(service, f"evicted: {why} (resourcesBudget.memory)")
            self._tasks.create_task(job, name=f"evict-{service}")

    async def _evict(self, service: str, why: str) -> None:
        try:
            await self._scale_to_zero(service, why)
        except KServeLocalError as error:
            # The disk is full, say; the next look decides anew.
            logger.warning("%s was not evicted: %s", service, error)

    async def _scale_to_zero(self, service: str, why: str) -> None:
        namespace, _, name = service.partition("/")
        logger.info("%s is %s", service, why)
        for autoscaler in self._store.list(POD_AUTOSCALER.id, namespace=namespace):
            if service_of(autoscaler) == service:
                await self._bring_to_zero(key_of(autoscaler), why)
        isvc = self._store.find(Key(INFERENCE_SERVICE.id, namespace, name))
        if isvc is not None:
            text = f"Scaled to zero until the next request, {why}"
            await self._events.event(isvc, "Normal", "Evicted", text, component="memory-budget")

    async def _bring_to_zero(self, key: Key, why: str) -> None:
        for _ in range(TRIES):
            autoscaler = await self._store.settled(key)
            if autoscaler is None:
                return
            given = {names.SCALE: "0", names.EVICTED: why}
            annotations = {**annotations_of(autoscaler), **given}
            metadata = {**autoscaler["metadata"], "annotations": annotations}
            try:
                await self._store.update({**autoscaler, "metadata": metadata})
            except Conflict:
                continue  # its status was written just then
            except NotFound:
                pass
            return
        logger.warning("%s was not evicted: it changes all the time", key)


def service_of(obj: Object) -> str:
    """Return the InferenceService (`namespace/name`) that a Pod or PodAutoscaler belongs to; for
    others the object's own name.
    """
    name = labels_of(obj).get(names.ISVC_LABEL) or name_of(obj)
    return f"{namespace_of(obj)}/{name}"


def _component_of(pod: Object) -> str:
    return f"{service_of(pod)}/{labels_of(pod).get(names.COMPONENT_LABEL, '')}"


def said_to_need(pod: Object) -> int:
    """Return the bytes that a Pod's containers request together, their limits where they request
    nothing; 0: it does not say.
    """
    containers = (pod.get("spec") or {}).get("containers") or ()
    return int(sum((asked_of(c, "memory") or Decimal(0) for c in containers), Decimal(0)))
