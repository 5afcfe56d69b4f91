"""The live autoscaler: the gateway's figures in, PodAutoscaler statuses out.

One `RevisionScaler` a Revision decides; this module gives it the time, the figures and the number
of ready replicas, and writes what it says. It is a `StatSink` for the gateway, a reconciler for the
engine (bounds, activity and the way to zero are looked at when something changed, as upstream's
PodAutoscaler reconciler does) and a task that ticks.

Its clock may run faster than real time (`autoscaling.speed`); all times here are in its seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from kserve_local.api import names, pod_autoscaler
from kserve_local.api.autoscaler_config import ClusterScaling, cluster_scaling
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    get_condition,
    labels_of,
    name_of,
    parse_timestamp,
    timestamp,
    uid_of,
    with_status,
)
from kserve_local.api.scheme import CONFIG_MAP, DEPLOYMENT, POD_AUTOSCALER, REVISION, key_of
from kserve_local.autoscaler import kpa
from kserve_local.autoscaler.bounds import NO_TRAFFIC, Activity
from kserve_local.autoscaler.config import autoscaler_class, scaling_config
from kserve_local.autoscaler.revision_scaler import Applied, RevisionScaler
from kserve_local.errors import Invalid
from kserve_local.interfaces.holds import Holds, scale_group
from kserve_local.interfaces.scaling import ScalingConfig
from kserve_local.interfaces.stats import RequestStat
from kserve_local.reconcile.conditions import TRUE, ConditionSet
from kserve_local.reconcile.controller import Watch, controlling, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

BY_HAND = "ByHand"
EVICTED = "Evicted"
UNROUTED = "Unrouted"
_ACTIVE, _INITIALIZED, _SKS = "Active", "ScaleTargetInitialized", "SKSReady"


@dataclass(slots=True)
class _Entry:
    """One Revision.

    Args:
        group: Whose clock it goes by (`interfaces.holds`).
        settings: What the scaler's configuration was made from.
        woken: A request came since `kserve-local scale NAME zero`.
    """

    uid: str
    group: str
    scaler: RevisionScaler
    settings: tuple[object, ...]
    ready: int
    woken: bool = False


class Autoscaler:
    """Decides for every Revision of Knative's own autoscaler class.

    Args:
        speed: Seconds of its clock in one real second.
        grace: In place of the cluster's `scale-to-zero-grace-period`; None: that.
        pinned: InferenceServices that keep a replica.
        clock: Real monotonic seconds.
        holds: Which Pods have a debugger attached: their Revisions keep their scale, and windows
            and grace periods stand.
        epoch: The clock of `holds`, seconds.
    """

    name = "autoscaler"

    def __init__(
        self,
        store: Store,
        events: EventRecorder,
        *,
        speed: float = 1.0,
        grace: float | None = None,
        pinned: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
        holds: Holds | None = None,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self._holds = holds or Holds()
        self._epoch = epoch
        self._store = store
        self._events = events
        self._speed = speed
        self._grace = grace
        self._pinned = pinned
        self._clock = clock
        self._entries: dict[Key, _Entry] = {}
        # Those with replicas or figures; the others cost nothing.
        self._awake: set[Key] = set()
        self._add: Callable[[Key], None] = lambda key: None
        self._cluster: tuple[Object | None, ClusterScaling] = (None, ClusterScaling())
        self.watches = (
            Watch(POD_AUTOSCALER.id, itself),
            Watch(DEPLOYMENT.id, _of_deployment),
            Watch(CONFIG_MAP.id, self._of_config),
        )

    def attach(self, add: Callable[[Key], None]) -> None:
        """Take the function that has a PodAutoscaler looked at."""
        self._add = add
        self._holds.listen(self._look_again)

    # Figures

    def record(self, stats: tuple[RequestStat, ...]) -> None:
        """Take the gateway's figures of one period."""
        for stat in stats:
            key = _key_of_target(stat.target)
            entry = self._entries.get(key)
            if entry is None or self._holds.is_held(entry.group):
                continue
            now = self._now(entry)
            self._awake.add(key)
            if entry.scaler.record(self._in_our_seconds(stat), now):
                self._tick(key, entry, now)

    def poke(self, target: str) -> None:
        """Take note of a request that found no replica."""
        key = _key_of_target(target)
        entry = self._entries.get(key)
        if entry is None:
            return
        now = self._now(entry)
        self._awake.add(key)
        entry.woken = True
        if entry.scaler.arrived(now):
            entry.scaler.tick(entry.ready, now)
        self._add(key)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(kpa.TICK / self._speed)
            for key in list(self._awake):
                entry = self._entries.get(key)
                if entry is None:
                    self._awake.discard(key)
                    continue
                if self._holds.is_held(entry.group):
                    continue
                try:
                    self._tick(key, entry, self._now(entry))
                except Exception:
                    # One odd Revision must not end it for all others.
                    logger.exception("cannot decide for %s", key)

    def _tick(self, key: Key, entry: _Entry, now: float) -> None:
        before = entry.scaler.decision
        after = entry.scaler.tick(entry.ready, now)
        if not entry.ready and entry.scaler.is_silent(now):
            self._awake.discard(key)
        if kpa.tells_more(before, after):
            self._add(key)

    def _now(self, entry: _Entry) -> float:
        return self._time(entry.group)

    def _time(self, group: str) -> float:
        """Return what the clock of a Revision shows, which stands while a debugger is attached."""
        now = self._epoch()
        held = now - self._holds.clock(group, now)
        return (self._clock() - held) * self._speed

    def _look_again(self, group: str) -> None:
        for key, entry in self._entries.items():
            if entry.group == group:
                self._add(key)

    def _in_our_seconds(self, stat: RequestStat) -> RequestStat:
        """Return the figures as of a period on our clock; rates stay what they really are."""
        if self._speed == 1.0:
            return stat
        faster = self._speed
        return replace(stat, period=stat.period * faster, requests=round(stat.requests * faster))

    # What is wanted

    async def reconcile(self, key: Key) -> Result:
        """Bring one PodAutoscaler's status up to date."""
        autoscaler = self._store.find(key)
        if autoscaler is None or autoscaler["metadata"].get("deletionTimestamp"):
            self._entries.pop(key, None)
            self._awake.discard(key)
            return DONE
        cluster = self._cluster_scaling()
        if autoscaler_class(annotations_of(autoscaler), cluster) != names.KPA_CLASS:
            return DONE
        now = self._time(_group_of(autoscaler))
        entry = self._entry(key, autoscaler, cluster, now)
        override = pod_autoscaler.override(autoscaler)
        woken = override == 0 and entry.woken
        if override is not None and (woken or not entry.scaler.reachable):
            # A newer revision took its traffic: what was asked for was about that.
            autoscaler = await self._without_override(autoscaler)
            override = None
        if override != 0:
            entry.woken = False
        applied = entry.scaler.apply(entry.ready, now)
        if not entry.scaler.reachable:
            applied = _unrouted(entry, applied, now)
        elif override is not None:
            why = pod_autoscaler.evicted(autoscaler)
            applied = _by_hand(entry, applied, override, now, why)
        status = _status(autoscaler, applied, entry.ready, now=timestamp())
        before = self._replicas(autoscaler)
        stored = await self._store.update_status(with_status(autoscaler, status))
        after = pod_autoscaler.replicas(stored)
        if after not in (before, pod_autoscaler.UNDECIDED) and before != pod_autoscaler.UNDECIDED:
            await self._events.event(
                autoscaler,
                "Normal",
                "Scaled",
                f"Scaled from {before} to {after}: {applied.message}",
                component="autoscaler",
            )
        if applied.again is None:
            return DONE
        return Result(requeue_after=max(0.0, applied.again - now) / self._speed)

    def _entry(self, key: Key, autoscaler: Object, cluster: ClusterScaling, now: float) -> _Entry:
        """Return the Revision's entry with what is known of it now."""
        ready = self._ready(autoscaler)
        entry = self._entries.get(key)
        limit = int(autoscaler["spec"].get("containerConcurrency") or 0)
        settings = (annotations_of(autoscaler), limit, cluster)
        if entry is None or entry.uid != uid_of(autoscaler):
            scaler = RevisionScaler(
                self._config(autoscaler, limit, cluster),
                ready=ready,
                now=now,
                activity=self._activity_before(autoscaler, now),
                reachable=_is_reachable(autoscaler),
            )
            entry = self._entries[key] = _Entry(
                uid_of(autoscaler), _group_of(autoscaler), scaler, settings, ready
            )
        elif entry.settings != settings:
            entry.settings = settings
            entry.scaler.reconfigure(self._config(autoscaler, limit, cluster))
        entry.ready = ready
        entry.scaler.reachable = _is_reachable(autoscaler)
        if ready:
            self._awake.add(key)
        return entry

    def _config(self, autoscaler: Object, limit: int, cluster: ClusterScaling) -> ScalingConfig:
        config = scaling_config(annotations_of(autoscaler), limit, cluster)
        if labels_of(autoscaler).get(names.ISVC_LABEL) in self._pinned:
            config = replace(config, min_scale=max(1, config.min_scale))
        if self._grace is not None:
            config = replace(config, grace_period=self._grace)
        return config

    def _cluster_scaling(self) -> ClusterScaling:
        """Return the ConfigMap's settings; while it cannot be read, those before."""
        found = self._store.find(pod_autoscaler.CLUSTER_CONFIG)
        if found is not self._cluster[0]:
            try:
                settings = cluster_scaling((found or {}).get("data") or {})
            except Invalid as error:
                logger.error("%s; what was set before holds", error.message)
                settings = self._cluster[1]
            self._cluster = (found, settings)
        return self._cluster[1]

    def _ready(self, autoscaler: Object) -> int:
        status = self._deployment(autoscaler).get("status") or {}
        return int(status.get("readyReplicas") or 0)

    def _replicas(self, autoscaler: Object) -> int:
        """Return the replicas before this decision: until there was one, what it started with."""
        decided = pod_autoscaler.replicas(autoscaler)
        if decided != pod_autoscaler.UNDECIDED:
            return decided
        spec = self._deployment(autoscaler).get("spec") or {}
        return int(spec.get("replicas", pod_autoscaler.UNDECIDED))

    def _deployment(self, autoscaler: Object) -> Object:
        target = autoscaler["spec"]["scaleTargetRef"]["name"]
        key = Key(DEPLOYMENT.id, autoscaler["metadata"]["namespace"], target)
        return self._store.find(key) or {}

    def _activity_before(self, autoscaler: Object, now: float) -> Activity | None:
        """Return where the Revision stood when the supervisor before us wrote its status."""
        condition = get_condition(autoscaler, _ACTIVE)
        if condition is None:
            return None
        ago = (datetime.now(UTC) - parse_timestamp(condition["lastTransitionTime"])).total_seconds()
        states: Mapping[str, Any] = {"True": "Active", "False": "Inactive"}
        return Activity(
            states.get(condition["status"], "Activating"),
            now - max(0.0, ago) * self._speed,
            str(condition.get("reason", "")),
            str(condition.get("message", "")),
            (get_condition(autoscaler, _INITIALIZED) or {}).get("status") == TRUE,
        )

    async def _without_override(self, autoscaler: Object) -> Object:
        metadata = autoscaler["metadata"]
        ours = (names.SCALE, names.EVICTED)
        kept = {k: v for k, v in annotations_of(autoscaler).items() if k not in ours}
        changed = {**autoscaler, "metadata": {**metadata, "annotations": kept}}
        return await self._store.update(changed)

    def _of_config(self, config: Object) -> Iterable[Key]:
        return list(self._entries) if key_of(config) == pod_autoscaler.CLUSTER_CONFIG else ()


def _of_deployment(deployment: Object) -> Iterable[Key]:
    for key in controlling(REVISION.id)(deployment):
        yield Key(POD_AUTOSCALER.id, key.namespace, key.name)


def _key_of_target(target: str) -> Key:
    namespace, _, name = target.partition("/")
    return Key(POD_AUTOSCALER.id, namespace, name)


def _group_of(autoscaler: Object) -> str:
    target = autoscaler["spec"]["scaleTargetRef"]["name"]
    return scale_group(autoscaler["metadata"]["namespace"], str(target))


def _is_reachable(autoscaler: Object) -> bool:
    return bool(autoscaler["spec"].get("reachability") != pod_autoscaler.UNREACHABLE)


def _by_hand(entry: _Entry, applied: Applied, count: int, now: float, evicted: str) -> Applied:
    """Return what holds instead while a user has set the number of replicas.

    Args:
        evicted: Why the memory budget did so; empty: it was a user.
    """
    text = evicted or "kserve-local scale"
    if count:
        return replace(
            applied, want=count, replicas=count, again=None, reason=BY_HAND, message=text
        )
    reason = EVICTED if evicted else BY_HAND
    return _at_zero(entry, applied, now, reason, f"{text}, until the next request")


def _unrouted(entry: _Entry, applied: Applied, now: float) -> Applied:
    """Return what holds for a Revision that no route refers to: it goes to zero at once.

    What was decided for its traffic is forgotten: a rollback begins at min-scale again.
    """
    scaler = entry.scaler
    scaler.decision = replace(scaler.decision, desired=0)
    return _at_zero(entry, applied, now, UNROUTED, "no route refers to the revision")


def _at_zero(entry: _Entry, applied: Applied, now: float, reason: str, message: str) -> Applied:
    """Return that there is no replica, without the way of an idle Revision to there."""
    scaler = entry.scaler
    stands = scaler.activity
    if (stands.status, stands.reason) != ("Inactive", NO_TRAFFIC[0]):
        since = stands.since if stands.status == "Inactive" else now
        told, text = NO_TRAFFIC
        scaler.activity = replace(stands, status="Inactive", since=since, reason=told, message=text)
    return replace(
        applied,
        activity=scaler.activity,
        want=0,
        replicas=0,
        mode="Proxy",
        again=None,
        reason=reason,
        message=message,
    )


def _status(autoscaler: Object, applied: Applied, ready: int, *, now: str) -> dict[str, Any]:
    """Return the PodAutoscaler's status."""
    before: Mapping[str, Any] = autoscaler.get("status") or {}
    told = dict(before.get("annotations") or {})
    if applied.replicas is not None and str(applied.replicas) != told.get(pod_autoscaler.REPLICAS):
        told[pod_autoscaler.REPLICAS] = str(applied.replicas)
        told[pod_autoscaler.WHY] = f"{applied.reason}: {applied.message}"
    told[pod_autoscaler.MODE] = applied.mode
    conditions = ConditionSet(
        "Ready", (_ACTIVE, _INITIALIZED, _SKS), before.get("conditions") or (), now=now
    )
    stands = applied.activity
    conditions.mark_true(_SKS)
    if stands.initialized:
        conditions.mark_true(_INITIALIZED)
    else:
        conditions.mark_unknown(_INITIALIZED)
    if stands.status == "Active":
        conditions.mark_true(_ACTIVE)
    elif stands.status == "Inactive":
        conditions.mark_false(_ACTIVE, stands.reason, stands.message)
    else:
        conditions.mark_unknown(_ACTIVE, stands.reason, stands.message)
    name = name_of(autoscaler)
    want = applied.want if applied.want >= 0 else before.get("desiredScale", applied.want)
    return {
        "annotations": told,
        "observedGeneration": autoscaler["metadata"]["generation"],
        "conditions": conditions.result(),
        "desiredScale": want,
        "actualScale": ready,
        "serviceName": name,
        "metricsServiceName": f"{name}-private",
    }
