"""Knative Service -> Revisions, traffic, and the conditions of its Configuration and Route.

Reads Knative Services and their Revisions; writes Revisions, the routing label on them, the
placeholder Service, and the Knative Service's status. A cluster has a Configuration and a Route in
between; here both are folded into the Knative Service, whose conditions read as on a cluster
(knative/serving pkg/reconciler/{service,configuration,route,labeler}, pkg/apis/serving/v1).

A new Revision is made when the template differs from that of the newest one; traffic and metadata
make none. `latestRevision: true` follows the newest Revision that is ready, at once or step by step
(`gradual_rollout`).
"""

from __future__ import annotations

import copy
import os.path
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    parse_timestamp,
    timestamp,
    uid_of,
    with_status,
)
from kserve_local.api.names import KNATIVE_VISIBILITY, MANIFEST, SOURCE_URI, STORAGE_INITIALIZER
from kserve_local.api.scheme import CONFIG_MAP, KNATIVE_SERVICE, REVISION, SERVICE, key_of
from kserve_local.controllers import garbage, gradual_rollout
from kserve_local.controllers import knative_names as names
from kserve_local.controllers.gradual_rollout import Rollout
from kserve_local.errors import AlreadyExists, Conflict, NotFound
from kserve_local.interfaces.holds import NONE, Holds, service_group
from kserve_local.reconcile.conditions import FALSE, TRUE, ConditionSet
from kserve_local.reconcile.controller import Watch, controlling, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

DEFAULT_TIMEOUT = 300
"""Knative's default `timeoutSeconds`."""

ACTIVE, RESERVE, PENDING = "active", "reserve", "pending"


@dataclass(frozen=True, slots=True)
class Hosts:
    """How a Knative Service is called.

    Args:
        domain: Knative's domain, `example.com`.
    """

    domain: str

    def url(self, ksvc: Object, tag: str = "") -> str:
        """Return the URL of the service or of one of its tags."""
        name = f"{tag}-{name_of(ksvc)}" if tag else name_of(ksvc)
        if labels_of(ksvc).get(KNATIVE_VISIBILITY) == "cluster-local":
            return f"http://{name}.{namespace_of(ksvc)}.svc.cluster.local"
        return f"http://{name}.{namespace_of(ksvc)}.{self.domain}"


def template_digest(template: Mapping[str, Any]) -> str:
    """Return what identifies a revision template.

    Which file it was read from is no part of that, but the folder where its sources start is.
    """
    metadata = template.get("metadata") or {}
    annotations = dict(metadata.get("annotations") or {})
    folder = os.path.dirname(annotations.pop(MANIFEST, ""))
    if folder and any(map(_is_relative, _sources(template))):
        annotations[MANIFEST] = folder
    return names.digest(
        {"metadata": {**metadata, "annotations": annotations}, "spec": template["spec"]}
    )


def _sources(template: Mapping[str, Any]) -> Iterator[str]:
    """Yield the storageUris of a revision template, where KServe's controller puts them."""
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    if annotations.get(SOURCE_URI):
        yield annotations[SOURCE_URI]
    for container in template["spec"].get("initContainers") or ():
        if container.get("name") == STORAGE_INITIALIZER:
            yield from (container.get("args") or ())[::2]


def _is_relative(uri: str) -> bool:
    path = uri.removeprefix("file://")
    return "://" not in path and not path.startswith("/")


def number_of(revision: Object) -> int:
    """Return the Revision's number, the Configuration's generation on a cluster."""
    return int(labels_of(revision).get(names.CONFIGURATION_GENERATION) or 0)


def newest(revisions: Sequence[Object]) -> Object | None:
    """Return the Revision made last, None if there is none."""
    return max(revisions, key=number_of, default=None)


def plan_revision(ksvc: Object, revisions: Sequence[Object], *, now: str) -> Object | None:
    """Return the Revision to create, None if the newest one was made from this template."""
    template = ksvc["spec"]["template"]
    digest = template_digest(template)
    latest = newest(revisions)
    if latest is not None and annotations_of(latest).get(names.TEMPLATE_HASH) == digest:
        return None
    number = 1 + max(number_of(latest) if latest else 0, _last_number(ksvc))
    name = names.revision_name(name_of(ksvc), number)
    metadata = template.get("metadata") or {}
    spec: dict[str, Any] = {
        "containerConcurrency": 0,
        "timeoutSeconds": DEFAULT_TIMEOUT,
        "enableServiceLinks": False,
        **copy.deepcopy(template["spec"]),
    }
    return {
        "apiVersion": REVISION.api_version,
        "kind": REVISION.kind,
        "metadata": {
            "name": name,
            "namespace": namespace_of(ksvc),
            "labels": {
                **(metadata.get("labels") or {}),
                names.CONFIGURATION: name_of(ksvc),
                names.CONFIGURATION_GENERATION: str(number),
                names.CONFIGURATION_UID: uid_of(ksvc),
                names.ROUTING_STATE: PENDING,
                names.SERVICE: name_of(ksvc),
                names.SERVICE_UID: uid_of(ksvc),
            },
            "annotations": {
                **(metadata.get("annotations") or {}),
                names.ROUTING_STATE_MODIFIED: now,
                names.TEMPLATE_HASH: digest,
            },
            "ownerReferences": [owner_reference(ksvc)],
        },
        "spec": spec,
    }


def _last_number(ksvc: Object) -> int:
    """Return the number of the last Revision that the status remembers, should it be deleted."""
    name = str((ksvc.get("status") or {}).get("latestCreatedRevisionName") or "")
    tail = name.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


def plan_rollouts(ksvc: Object, revisions: Sequence[Object], *, now: float) -> dict[str, Rollout]:
    """Return how the traffic of each `latestRevision` target is divided, by tag.

    Empty while traffic moves at once: without a duration, or before the first Revision is ready.

    Args:
        now: Epoch seconds.
    """
    duration = gradual_rollout.duration_of(annotations_of(ksvc))
    ready = latest_ready(ksvc, revisions)
    if not duration or not ready:
        return {}
    there = {name_of(r) for r in revisions}
    before = {
        **gradual_rollout.from_traffic((ksvc.get("status") or {}).get("traffic") or ()),
        **gradual_rollout.from_text(annotations_of(ksvc).get(gradual_rollout.STATE, "")),
    }
    percents: dict[str, int] = {}
    for target in traffic_targets(ksvc):
        if not target.get("revisionName"):
            tag = str(target.get("tag") or "")
            percents[tag] = percents.get(tag, 0) + int(target.get("percent") or 0)
    found = {}
    for tag, percent in percents.items():
        known = gradual_rollout.without(before.get(tag), there)
        rollout = gradual_rollout.follow(known, percent, ready, now=now)
        # The gateway has a table within milliseconds: it follows the first percent at once.
        found[tag] = gradual_rollout.observe_ready(rollout, duration, now=now)
    return found


def plan_status(
    ksvc: Object,
    revisions: Sequence[Object],
    *,
    hosts: Hosts,
    now: str,
    rollouts: Mapping[str, Rollout] | None = None,
) -> dict[str, Any]:
    """Return the Knative Service's status.

    Args:
        rollouts: `plan_rollouts`; None: traffic moves at once.
    """
    before: Mapping[str, Any] = ksvc.get("status") or {}
    by_name = {name_of(r): r for r in revisions}
    conditions = ConditionSet(
        "Ready", ("ConfigurationsReady", "RoutesReady"), before.get("conditions") or (), now=now
    )
    created = newest(revisions)
    ready_name = latest_ready(ksvc, revisions)
    _configuration(conditions, created, ready_name)
    traffic = _route(conditions, ksvc, by_name, ready_name, hosts, rollouts or {})
    status: dict[str, Any] = {
        "observedGeneration": ksvc["metadata"]["generation"],
        "url": hosts.url(ksvc),
        "address": {"url": f"http://{name_of(ksvc)}.{namespace_of(ksvc)}.svc.cluster.local"},
        "conditions": conditions.result(),
    }
    if created is not None:
        status["latestCreatedRevisionName"] = name_of(created)
    if ready_name:
        status["latestReadyRevisionName"] = ready_name
    if traffic:
        status["traffic"] = traffic
    return status


def latest_ready(ksvc: Object, revisions: Sequence[Object]) -> str:
    """Return the newest ready Revision, not older than the one that was latest before."""
    before = str((ksvc.get("status") or {}).get("latestReadyRevisionName") or "")
    floor = next((number_of(r) for r in revisions if name_of(r) == before), 0)
    ready = [r for r in revisions if is_revision_ready(r) and number_of(r) >= floor]
    latest = newest(ready)
    if latest is not None:
        return name_of(latest)
    return before if floor else ""


def is_revision_ready(revision: Object) -> bool:
    """Whether the Revision is Ready for the spec it has."""
    status = revision.get("status") or {}
    condition = get_condition(revision, "Ready")
    return (
        condition is not None
        and condition["status"] == TRUE
        and status.get("observedGeneration") == revision["metadata"].get("generation")
    )


def _configuration(conditions: ConditionSet, created: Object | None, ready_name: str) -> None:
    if created is None:
        conditions.mark_unknown("ConfigurationsReady")
        return
    ready = get_condition(created, "Ready") or {}
    if ready.get("status") == FALSE:
        conditions.mark_false(
            "ConfigurationsReady",
            "RevisionFailed",
            f'Revision "{name_of(created)}" failed with message: {ready.get("message", "")}.',
        )
    elif ready_name == name_of(created):
        conditions.mark_true("ConfigurationsReady")
    else:
        conditions.mark_unknown("ConfigurationsReady")


def _route(
    conditions: ConditionSet,
    ksvc: Object,
    revisions: Mapping[str, Object],
    ready_name: str,
    hosts: Hosts,
    rollouts: Mapping[str, Rollout],
) -> list[dict[str, Any]]:
    """Resolve the traffic block; the first target that cannot be resolved is the Route's reason."""
    resolved = []
    for target in traffic_targets(ksvc):
        entry: dict[str, Any] = {
            "latestRevision": bool(target.get("latestRevision")),
            "percent": int(target.get("percent") or 0),
        }
        if target.get("revisionName"):
            problem = _revision_problem(revisions.get(target["revisionName"]), target)
            entry["revisionName"] = target["revisionName"]
        else:
            problem = _configuration_problem(conditions, ksvc, ready_name)
            entry["revisionName"] = ready_name
        if problem is not None:
            status, message = problem
            mark = conditions.mark_false if status == FALSE else conditions.mark_unknown
            mark("RoutesReady", "RevisionMissing", message)
            # What was routed before stays, as the Route keeps its last good assignment.
            return copy.deepcopy(list((ksvc.get("status") or {}).get("traffic") or ()))
        if target.get("tag"):
            entry["tag"] = target["tag"]
            entry["url"] = hosts.url(ksvc, target["tag"])
        resolved += _divided(entry, None if target.get("revisionName") else rollouts)
    if all(rollout.done for rollout in rollouts.values()):
        conditions.mark_true("RoutesReady")
    else:
        conditions.mark_unknown("RoutesReady", gradual_rollout.REASON, gradual_rollout.MESSAGE)
    return resolved


def _divided(entry: dict[str, Any], rollouts: Mapping[str, Rollout] | None) -> list[dict[str, Any]]:
    """Return a target's entry for each Revision of its rollout, as Knative's Route shows them."""
    rollout = (rollouts or {}).get(str(entry.get("tag") or ""))
    if rollout is None or rollout.done:
        return [entry]
    return [{**entry, "revisionName": s.revision, "percent": s.percent} for s in rollout.shares]


def traffic_targets(ksvc: Object) -> Sequence[Mapping[str, Any]]:
    """Return `spec.traffic`, Knative's default of all to the latest when it is empty."""
    return ksvc["spec"].get("traffic") or ({"latestRevision": True, "percent": 100},)


def _configuration_problem(
    conditions: ConditionSet, ksvc: Object, ready_name: str
) -> tuple[str, str] | None:
    if ready_name:
        return None
    name = name_of(ksvc)
    if conditions.status("ConfigurationsReady") == FALSE:
        return FALSE, f'Configuration "{name}" does not have any ready Revision.'
    return "Unknown", f'Configuration "{name}" is waiting for a Revision to become ready.'


def _revision_problem(revision: Object | None, target: Mapping[str, Any]) -> tuple[str, str] | None:
    name = target["revisionName"]
    if revision is None:
        return FALSE, f'Revision "{name}" referenced in traffic not found.'
    match (get_condition(revision, "Ready") or {}).get("status"):
        case "True":
            return None
        case "False":
            return FALSE, f'Revision "{name}" failed to become ready.'
        case _:
            return "Unknown", f'Revision "{name}" is not yet ready.'


def routing_states(status: Mapping[str, Any], revisions: Sequence[Object]) -> dict[str, str]:
    """Return each Revision's routing state: active when traffic names it, percent 0 included.

    The newest one is pending until it was routed; everything else is in reserve and may go
    (traffic.md 4.2, 4.6).
    """
    routed = {entry.get("revisionName") for entry in status.get("traffic") or ()}
    created = status.get("latestCreatedRevisionName")
    states = {}
    for revision in revisions:
        name = name_of(revision)
        if name in routed:
            states[name] = ACTIVE
        elif name == created:
            states[name] = PENDING
        else:
            states[name] = RESERVE
    return states


def placeholder(ksvc: Object) -> Object:
    """Return the Service that gives the Knative Service its cluster-local name.

    ExternalName to the local gateway, as on a cluster; there our gateway tells services apart by
    Host, so one address serves all of them.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name_of(ksvc),
            "namespace": namespace_of(ksvc),
            "labels": {**labels_of(ksvc), names.ROUTE: name_of(ksvc)},
            "ownerReferences": [owner_reference(ksvc)],
        },
        "spec": {
            "type": "ExternalName",
            "externalName": names.LOCAL_GATEWAY,
            "sessionAffinity": "None",
            "ports": [{"name": "http2", "port": 80, "protocol": "TCP", "targetPort": 80}],
        },
    }


class KnativeServiceController:
    """Writes the next link: Revisions of a Knative Service, and its status.

    Args:
        domain: Knative's domain for public hosts.
        clock: Epoch seconds, for gradual rollouts.
    """

    name = "knative-service"
    watches = (
        Watch(KNATIVE_SERVICE.id, itself),
        Watch(REVISION.id, controlling(KNATIVE_SERVICE.id)),
        Watch(SERVICE.id, controlling(KNATIVE_SERVICE.id)),
    )

    def __init__(
        self,
        store: Store,
        events: EventRecorder,
        *,
        domain: str,
        clock: Callable[[], float] = time.time,
        holds: Holds = NONE,
    ) -> None:
        self._holds = holds
        self._store = store
        self._events = events
        self._hosts = Hosts(domain)
        self._clock = clock

    async def reconcile(self, key: Key) -> Result:
        """Make the Revision that the template asks for, route, and say how it stands."""
        ksvc = self._store.find(key)
        if ksvc is None or ksvc["metadata"].get("deletionTimestamp"):
            return DONE
        now = timestamp()
        revisions = self._store.owned_by(uid_of(ksvc), REVISION.id)
        wanted = plan_revision(ksvc, revisions, now=now)
        if wanted is not None:
            created = await self._create_revision(ksvc, wanted)
            revisions = [*revisions, created]
        await self._create_placeholder(ksvc)
        group = service_group(key.namespace, key.name)
        seconds = self._holds.clock(group, self._clock())
        rollouts = plan_rollouts(ksvc, revisions, now=seconds)
        # Before the status: a step that is not remembered must not be seen.
        await self._remember(ksvc, gradual_rollout.to_text(rollouts))
        status = plan_status(ksvc, revisions, hosts=self._hosts, now=now, rollouts=rollouts)
        await self._write_status(ksvc, status)
        states = routing_states(status, revisions)
        await self._label(revisions, states, now=now)
        surplus = garbage.surplus_revisions(
            [r for r in revisions if states[name_of(r)] == RESERVE],
            str(status.get("latestReadyRevisionName") or ""),
            retention=self._retention(),
            now=parse_timestamp(now),
        )
        for revision in surplus:
            await _gone(self._store.delete(key_of(revision), uid=uid_of(revision)))
        due = gradual_rollout.next_step(rollouts)
        return DONE if due is None else Result(requeue_after=max(0.0, due - seconds))

    async def _remember(self, ksvc: Object, rollouts: str) -> None:
        """Keep the state of gradual rollouts with the Knative Service."""
        annotations = dict(annotations_of(ksvc))
        if annotations.pop(gradual_rollout.STATE, "") == rollouts:
            return
        if rollouts:
            annotations[gradual_rollout.STATE] = rollouts
        metadata = {**ksvc["metadata"], "annotations": annotations}
        await self._store.update({**ksvc, "metadata": metadata})

    def _retention(self) -> garbage.Retention:
        key = Key(CONFIG_MAP.id, garbage.CONFIG_NAMESPACE, garbage.CONFIG_NAME)
        return garbage.retention(self._store.find(key))

    async def _create_revision(self, ksvc: Object, wanted: Object) -> Object:
        created = await self._store.create(wanted)
        await self._events.event(
            ksvc,
            "Normal",
            "Created",
            f'Created Revision "{name_of(created)}"',
            component="configuration-controller",
        )
        return created

    async def _create_placeholder(self, ksvc: Object) -> None:
        if self._store.find(Key(SERVICE.id, namespace_of(ksvc), name_of(ksvc))) is not None:
            return
        try:
            await self._store.create(placeholder(ksvc))
        except AlreadyExists:
            return

    async def _write_status(self, ksvc: Object, status: dict[str, Any]) -> None:
        before: Mapping[str, Any] = ksvc.get("status") or {}
        await self._store.update_status(with_status(ksvc, status))
        was, created = before.get("latestReadyRevisionName"), status.get("latestReadyRevisionName")
        if created and created != was:
            await self._events.event(
                ksvc,
                "Normal",
                "LatestReadyUpdate",
                f'LatestReadyRevisionName updated to "{created}"',
                component="configuration-controller",
            )
        failed = get_condition({"status": status}, "ConfigurationsReady") or {}
        known = get_condition(ksvc, "ConfigurationsReady") or {}
        if failed.get("status") == FALSE and known.get("message") != failed.get("message"):
            latest = status["latestCreatedRevisionName"]
            which = "Ready" if latest == created else "Created"
            await self._events.event(
                ksvc,
                "Warning",
                f"Latest{which}Failed",
                f'Latest {which.lower()} revision "{latest}" has failed',
                component="configuration-controller",
            )

    async def _label(
        self, revisions: Sequence[Object], states: Mapping[str, str], *, now: str
    ) -> None:
        for revision in revisions:
            state = states[name_of(revision)]
            if labels_of(revision).get(names.ROUTING_STATE) == state:
                continue
            metadata = {
                **revision["metadata"],
                "labels": {**labels_of(revision), names.ROUTING_STATE: state},
                "annotations": {
                    **annotations_of(revision),
                    names.ROUTING_STATE_MODIFIED: now,
                },
            }
            await self._store.update({**revision, "metadata": metadata})


async def _gone(deletion: Any) -> None:
    try:
        await deletion
    except (NotFound, Conflict):
        return
