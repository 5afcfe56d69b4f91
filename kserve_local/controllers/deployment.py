"""Deployment -> Pods: keep as many as wanted, roll to a new template, replace what died.

Reads Deployments and their Pods; creates and deletes Pods, writes the Deployment's status. Copies
Kubernetes' Deployment controller with its ReplicaSets folded in: a ReplicaSet is only a name and a
hash here (`pod-template-hash`), which is what Pod names and condition messages show.

Decide apart from do: `plan` is pure. A Pod is "available" as soon as it is ready
(minReadySeconds 0).
"""

from __future__ import annotations

import asyncio
import copy
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kserve_local.aio import backoff
from kserve_local.api import validation_resources
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    condition_is,
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
from kserve_local.api.names import LOCAL_PREFIX
from kserve_local.api.reloads import template_without
from kserve_local.api.scheme import DEPLOYMENT, POD, SERVICE_ACCOUNT, key_of
from kserve_local.api.workloads import replicas_of
from kserve_local.controllers import knative_names as names
from kserve_local.controllers import pod_state
from kserve_local.errors import Conflict, Forbidden, KServeLocalError, NotFound
from kserve_local.interfaces.holds import NONE, Holds, deployment_group
from kserve_local.reconcile.controller import Watch, controlling, itself
from kserve_local.reconcile.result import Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

REPLACES = f"{LOCAL_PREFIX}/replaces"
"""Annotation (ours): how many dead Pods in a row this Pod comes after; spaces replacements."""

DEFAULT_ACCOUNT = "default"
_EXCEEDED = "ProgressDeadlineExceeded"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one Deployment.

    Args:
        create: Pods to create now.
        delete: Names of Pods to delete, in this order.
        replaces: Dead Pods in a row before the ones to create.
        wait: Seconds until a replacement may be created; None: nothing is held back.
    """

    create: int = 0
    delete: tuple[str, ...] = ()
    replaces: int = 0
    wait: float | None = None


def replica_set(deployment: Object) -> tuple[str, str]:
    """Return the (synthetic) ReplicaSet's name and hash for the Deployment's template."""
    return _named(deployment, deployment["spec"]["template"])


def _named(deployment: Object, template: Mapping[str, Any]) -> tuple[str, str]:
    suffix = names.safe_suffix(int(names.digest(template)[:16], 16), 10)
    return f"{name_of(deployment)}-{suffix}", suffix


def plan(deployment: Object, pods: Sequence[Object], *, now: datetime) -> Plan:
    """Decide which Pods to create and delete. Pure.

    New Pods come first: an old one goes only when enough others are available, as
    `maxUnavailable` (default 25 %, rounded down) asks. Unready Pods go before ready ones.
    """
    want = replicas_of(deployment)
    _, current = replica_set(deployment)
    staying = [p for p in pods if not pod_state.is_terminating(p)]
    dead = [p for p in staying if pod_state.is_dead(p)]
    live = [p for p in staying if not pod_state.is_dead(p)]
    new = [p for p in live if labels_of(p).get(names.POD_TEMPLATE_HASH) == current]
    old = [p for p in live if labels_of(p).get(names.POD_TEMPLATE_HASH) != current]
    surge, unavailable = _strategy(deployment, want)

    delete = [name_of(p) for p in dead]
    surplus = sorted(new, key=_last_wanted)[: max(0, len(new) - want)]
    delete += [name_of(p) for p in surplus]

    ready = sum(1 for p in live if pod_state.is_ready(p) and p not in surplus)
    may_go = max(0, ready - (want - unavailable))
    # As Kubernetes counts it: more Pods than must serve, those aside that are only coming up.
    spare = len(live) - len(surplus) - (want - unavailable)
    spare -= sum(1 for p in new if not pod_state.is_ready(p) and p not in surplus)
    for pod in sorted(old, key=_last_wanted):
        if pod_state.is_ready(pod):
            if not may_go:
                continue
            may_go -= 1
        elif len(new) < want and surge == 0:
            continue  # keeps the place until a new one may take it
        elif pod_state.has_served(pod) and spare <= 0:
            continue  # comes back, maybe before a new one ever does
        else:
            spare -= 1
        delete.append(name_of(pod))

    room = want + surge - (len(live) - len(surplus))
    create = max(0, min(want - len(new), room))
    # How often Pods of another template died says nothing about this one.
    lost = [p for p in dead if labels_of(p).get(names.POD_TEMPLATE_HASH) == current]
    if not create or not lost:
        return Plan(create=create, delete=tuple(delete))
    failures = max(int(annotations_of(p).get(REPLACES, 0)) for p in lost) + 1
    youngest = max(parse_timestamp(p["metadata"]["creationTimestamp"]) for p in lost)
    wait = backoff(failures - 2, first=1.0, cap=60.0) if failures > 1 else 0.0
    left = wait - (now - youngest).total_seconds()
    if left > 0:
        # The dead Pods stay until then: they carry the count.
        kept = tuple(n for n in delete if n not in {name_of(p) for p in lost})
        return Plan(delete=kept, wait=left)
    return Plan(create=create, delete=tuple(delete), replaces=failures)


def _account_of(pod_spec: Mapping[str, Any]) -> str:
    return str(pod_spec.get("serviceAccountName") or DEFAULT_ACCOUNT)


def _strategy(deployment: Object, want: int) -> tuple[int, int]:
    strategy = deployment["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0, want
    rolling = strategy.get("rollingUpdate") or {}
    surge = _portion(rolling.get("maxSurge", "25%"), want, math.ceil)
    unavailable = _portion(rolling.get("maxUnavailable", "25%"), want, math.floor)
    return (1, 0) if surge == unavailable == 0 else (surge, unavailable)


def _portion(value: int | str, of: int, rounded: Callable[[float], int]) -> int:
    text = str(value)
    if text.endswith("%"):
        return rounded(of * float(text[:-1]) / 100)
    return int(text)


def _last_wanted(pod: Object) -> tuple[bool, float]:
    """Order of going: not ready before ready, younger before older."""
    created = parse_timestamp(pod["metadata"]["creationTimestamp"]).timestamp()
    return pod_state.is_ready(pod), -created


def pod_for(deployment: Object, *, replaces: int = 0) -> Object:
    """Return a Pod of the Deployment's template, before mutation."""
    name, suffix = replica_set(deployment)
    template = deployment["spec"]["template"]
    metadata = template.get("metadata") or {}
    annotations = dict(metadata.get("annotations") or {})
    if replaces:
        annotations[REPLACES] = str(replaces)
    random = names.safe_suffix(secrets.randbits(64), 5)
    return {
        "apiVersion": POD.api_version,
        "kind": POD.kind,
        "metadata": {
            "name": names.child_name(name, f"-{random}"),
            "generateName": f"{name}-",
            "namespace": namespace_of(deployment),
            "labels": {**(metadata.get("labels") or {}), names.POD_TEMPLATE_HASH: suffix},
            "annotations": annotations,
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": copy.deepcopy(template["spec"]),
    }


def plan_status(
    deployment: Object, pods: Sequence[Object], *, now: str, failure: str = "", holds: Holds = NONE
) -> dict[str, Any]:
    """Return the Deployment's status.

    Args:
        failure: Why a Pod could not be created, for ReplicaFailure.
        holds: When a debugger had stopped one of the Pods: the deadline does not run then.
    """
    before: Mapping[str, Any] = deployment.get("status") or {}
    want = replicas_of(deployment)
    _, current = replica_set(deployment)
    # Pods that a save asked for are no rollout: old ones serve on for as long as it takes, so
    # nothing is progressing and no deadline runs.
    rs_name, _ = _named(deployment, template_without(deployment))
    live = [p for p in pods if not pod_state.is_terminating(p) and not pod_state.is_dead(p)]
    updated = [p for p in live if labels_of(p).get(names.POD_TEMPLATE_HASH) == current]
    ready = [p for p in live if pod_state.is_ready(p)]
    updated_ready = sum(1 for p in updated if pod_state.is_ready(p))
    _, unavailable = _strategy(deployment, want)
    counts = {
        "replicas": len(live),
        "updatedReplicas": len(updated),
        "readyReplicas": len(ready),
        "availableReplicas": len(ready),
        "unavailableReplicas": max(0, max(want, len(live)) - len(ready)),
    }
    conditions = []
    if len(ready) >= want - unavailable:
        conditions.append(
            _condition(
                deployment,
                "Available",
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
                now=now,
            )
        )
    else:
        conditions.append(
            _condition(
                deployment,
                "Available",
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
                now=now,
            )
        )
    complete = len(updated) == want == updated_ready and len(live) == want
    left = time_left(deployment, now=now, holds=holds)
    conditions.append(
        _progressing(deployment, counts, rs_name, complete=complete, over=left == 0, now=now)
    )
    if failure:
        conditions.append(
            _condition(deployment, "ReplicaFailure", "True", "FailedCreate", failure, now=now)
        )
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        **{k: v for k, v in counts.items() if v},
        "conditions": conditions,
        **({"collisionCount": before["collisionCount"]} if "collisionCount" in before else {}),
    }


def _progressing(
    deployment: Object,
    counts: Mapping[str, int],
    rs_name: str,
    *,
    complete: bool,
    over: bool,
    now: str,
) -> dict[str, Any]:
    before = get_condition(deployment, "Progressing") or {}
    status: Mapping[str, Any] = deployment.get("status") or {}
    same_template = f'"{rs_name}"' in str(before.get("message", ""))
    known = str(before.get("reason", "")) if same_template else ""
    if complete or known == "NewReplicaSetAvailable":
        reason, verdict = "NewReplicaSetAvailable", "True"
        message = f'ReplicaSet "{rs_name}" has successfully progressed.'
        return _condition(deployment, "Progressing", verdict, reason, message, now=now)
    moved = not known or any(
        counts[k] > int(status.get(k) or 0)
        for k in ("updatedReplicas", "readyReplicas", "availableReplicas")
    )
    if known and not moved and (known == _EXCEEDED or over):
        message = f'ReplicaSet "{rs_name}" has timed out progressing.'
        return _condition(deployment, "Progressing", "False", _EXCEEDED, message, now=now)
    if not known:
        reason, message = "NewReplicaSetCreated", f'Created new replica set "{rs_name}"'
    elif moved:
        reason, message = "ReplicaSetUpdated", f'ReplicaSet "{rs_name}" is progressing.'
    else:
        return dict(before)
    return _condition(deployment, "Progressing", "True", reason, message, now=now, moved=moved)


def time_left(deployment: Object, *, now: str, holds: Holds = NONE) -> float | None:
    """Return the seconds until the progress deadline, 0 when over, None while none runs."""
    progressing = get_condition(deployment, "Progressing") or {}
    if progressing.get("reason") not in ("NewReplicaSetCreated", "ReplicaSetUpdated"):
        return None
    deadline = deployment["spec"].get("progressDeadlineSeconds")
    if deadline is None:
        deadline = 600
    since = parse_timestamp(progressing["lastUpdateTime"]).timestamp()
    until = parse_timestamp(now).timestamp()
    group = deployment_group(namespace_of(deployment), name_of(deployment))
    stood = holds.stood(group, since, until)
    return float(max(0.0, deadline + stood - (until - since)))


def _condition(
    deployment: Object,
    type_: str,
    status: str,
    reason: str,
    message: str,
    *,
    now: str,
    moved: bool = False,
) -> dict[str, Any]:
    old = get_condition(deployment, type_) or {}
    same = old.get("status") == status and old.get("reason") == reason
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastUpdateTime": old["lastUpdateTime"]
        if same and not moved and old.get("message") == message
        else now,
        "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == status else now,
    }


class DeploymentController:
    """Writes the last link: the Pods of a Deployment.

    Args:
        mutate: The Pod webhook: adds the storage initializer and what else KServe injects. Raises
            a KServeLocalError to refuse, which shows as ReplicaFailure.
    """

    name = "deployment"

    def __init__(
        self,
        store: Store,
        events: EventRecorder,
        *,
        mutate: Callable[[Object], Object] = lambda pod: pod,
        holds: Holds = NONE,
    ) -> None:
        self._holds = holds
        self._store = store
        self._events = events
        self._mutate = mutate
        self.watches = (
            Watch(DEPLOYMENT.id, itself),
            Watch(POD.id, controlling(DEPLOYMENT.id)),
            Watch(SERVICE_ACCOUNT.id, self._waiting_for),
        )

    def _waiting_for(self, account: Object) -> Iterator[Key]:
        """Yield the Deployments whose Pods could not be created for want of this ServiceAccount."""
        for deployment in self._store.list(DEPLOYMENT.id, namespace=namespace_of(account)):
            pod_spec = deployment["spec"]["template"]["spec"]
            failing = condition_is(deployment, "ReplicaFailure")
            if failing and _account_of(pod_spec) == name_of(account):
                yield key_of(deployment)

    async def reconcile(self, key: Key) -> Result:
        """Create and delete Pods as planned and say how it stands."""
        deployment = self._store.find(key)
        if deployment is None or deployment["metadata"].get("deletionTimestamp"):
            return Result()
        pods = self._store.owned_by(uid_of(deployment), POD.id)
        decided = plan(deployment, pods, now=datetime.now(UTC))
        failure = ""
        if decided.create:
            failure = await self._create(deployment, decided, pods)
        if decided.delete:
            await self._delete(deployment, decided, pods)
        # What was read before the writes is old now; the store answers from memory.
        deployment = self._store.find(key)
        if deployment is None:
            return Result()
        now = timestamp()
        pods = self._store.owned_by(uid_of(deployment), POD.id)
        status = plan_status(deployment, pods, now=now, failure=failure, holds=self._holds)
        written = await self._store.update_status(with_status(deployment, status))
        if failure:
            return Result(retry=True)
        left = time_left(written, now=now, holds=self._holds)
        waits = [w for w in (decided.wait, left) if w is not None]
        # The clock of the conditions has whole seconds: look just after the next one.
        return Result(requeue_after=min(waits) + 0.05) if waits else Result()

    async def _create(self, deployment: Object, decided: Plan, pods: Sequence[Object]) -> str:
        """Create Pods together; return why one could not be, empty if all were."""
        have = sum(1 for p in pods if not pod_state.is_terminating(p))
        wanted = []
        try:
            # On a cluster the Deployment itself is refused, and its Revision waits without a word.
            validation_resources.check(deployment)
            for _ in range(decided.create):
                pod = pod_for(deployment, replaces=decided.replaces)
                wanted.append(self._mutate(self._admit(pod)))
        except KServeLocalError as error:
            return await self._refused(deployment, error)
        results = await asyncio.gather(
            *(self._store.create(pod) for pod in wanted), return_exceptions=True
        )
        errors = [r for r in results if isinstance(r, BaseException)]
        created = len(results) - len(errors)
        if created:
            rs_name, _ = replica_set(deployment)
            await self._events.event(
                deployment,
                "Normal",
                "ScalingReplicaSet",
                f"Scaled up replica set {rs_name} from {have} to {have + created}",
                component="deployment-controller",
            )
        for failed in errors:
            if not isinstance(failed, KServeLocalError):
                raise failed
            return await self._refused(deployment, failed)
        return ""

    def _admit(self, pod: Object) -> Object:
        """Return the Pod as Kubernetes' ServiceAccount admission lets it in, before any webhook.

        One without pull secrets of its own gets its account's.

        Raises:
            Forbidden: Its ServiceAccount does not exist. Every Namespace has a `default` one.
        """
        namespace, name = namespace_of(pod), _account_of(pod["spec"])
        account = self._store.find(Key(SERVICE_ACCOUNT.id, namespace, name))
        pull = (account or {}).get("imagePullSecrets")
        if pull and not pod["spec"].get("imagePullSecrets"):
            pod = {**pod, "spec": {**pod["spec"], "imagePullSecrets": pull}}
        if name == DEFAULT_ACCOUNT or account is not None:
            return pod
        # The name is made from generateName after admission.
        raise Forbidden(
            f'pods "{pod["metadata"]["generateName"]}" is forbidden: error looking up service '
            f'account {namespace}/{name}: serviceaccount "{name}" not found'
        )

    async def _refused(self, deployment: Object, error: KServeLocalError) -> str:
        await self._events.event(
            deployment,
            "Warning",
            "FailedCreate",
            f"Error creating: {error}",
            component="replicaset-controller",
        )
        return str(error)

    async def _delete(self, deployment: Object, decided: Plan, pods: Sequence[Object]) -> None:
        by_name = {name_of(p): p for p in pods}
        going = [by_name[name] for name in decided.delete]
        alive = sum(1 for p in pods if not pod_state.is_terminating(p))
        results = await asyncio.gather(
            *(
                self._store.delete(Key(POD.id, namespace_of(p), name_of(p)), uid=uid_of(p))
                for p in going
            ),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, (NotFound, Conflict)):
                raise result
        if any(not pod_state.is_dead(p) for p in going):
            rs_name, _ = replica_set(deployment)
            await self._events.event(
                deployment,
                "Normal",
                "ScalingReplicaSet",
                f"Scaled down replica set {rs_name} from {alive} to {alive - len(going)}",
                component="deployment-controller",
            )
