"""Carries out Standard mode's workloads: Deployment, Service and autoscaler in the store.

Reads and writes those three for an owner, an InferenceService or an InferenceGraph; what they look
like is `standard_objects`. Copies KServe's RawKubeReconciler: the Service first, then the
Deployment, then what scales it. The number of replicas is the autoscaler's; only class `none`
writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kserve_local.api import reloads
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    controller_of,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.scheme import (
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    SCALED_OBJECT,
    SERVICE,
    key_of,
)
from kserve_local.controllers import standard_objects
from kserve_local.controllers.isvc_parts import ReconcileFailed
from kserve_local.controllers.standard_objects import Workload
from kserve_local.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from kserve_local.store.store import Store

WORKLOAD_KINDS = (SERVICE, DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT)


@dataclass(frozen=True, slots=True)
class StandardSettings:
    """What a project says about Standard mode.

    Args:
        domain: Stands for the ConfigMap's ingressDomain where that is the shipped one.
        progress_deadline: Seconds until a rollout counts as failed.
        service_ip: The address of a Service; empty: there are none here.
    """

    domain: str = "example.com"
    progress_deadline: float = 600.0
    service_ip: Callable[[Key], str] = lambda key: ""


class StandardObjects:
    """Writes and deletes the objects of workloads."""

    def __init__(self, store: Store, settings: StandardSettings) -> None:
        self._store = store
        self._settings = settings

    async def apply(self, workload: Workload, config: InferenceServiceConfig) -> Object:
        """Bring a workload's objects to what is wanted; return its Deployment as stored.

        Raises:
            ReconcileFailed: The API server refuses one of them.
            AlreadyExists: One of that name is there and somebody else's.
            Conflict: What is left of a deleted owner's is still being collected.
        """
        key = Key(SERVICE.id, namespace_of(workload.owner), workload.name)
        address = "" if config.service_cluster_ip_none else self._settings.service_ip(key)
        await self.put(standard_objects.service(workload, cluster_ip=address or "None"))
        deployment = await self.put(
            standard_objects.deployment(
                workload, config, progress_deadline=self._settings.progress_deadline
            )
        )
        scalers = {
            standard_objects.HPA: lambda: standard_objects.hpa(workload),
            standard_objects.KEDA: lambda: standard_objects.scaled_object(workload, config),
        }
        make = scalers.get(workload.autoscaler)
        wanted = make() if make is not None else None
        for kind in (HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT):
            if wanted is not None and wanted["kind"] == kind.kind:
                await self.put(wanted)
                continue
            stale = self._store.find(Key(kind.id, namespace_of(workload.owner), workload.name))
            if stale is not None and _owner(stale) == uid_of(workload.owner):
                await self.delete(stale)
        return deployment

    async def put(self, wanted: Object) -> Object:
        """Create an object or bring it to what is wanted; return it as stored.

        Raises:
            As `apply`.
        """
        existing = self._store.find(key_of(wanted))
        if existing is None:
            with _refusals_told():
                return await self._store.create(_as_first_stored(wanted))
        owner, uid = _owner(existing), _owner(wanted)
        if owner != uid:
            if owner and self._store.key_of_uid(owner) is None:
                # What is left of a deleted owner of the same name; the collector is at it.
                raise Conflict(f'{existing["kind"]} "{name_of(existing)}" is being collected')
            raise AlreadyExists(
                f'{existing["kind"]} "{name_of(existing)}" exists and is not owned by '
                f"{_owner_name(wanted)}; delete it or rename the owner"
            )
        updated = merged(existing, wanted)
        if updated is existing:
            return existing
        with _refusals_told():
            if _address(updated) != _address(existing):
                # A Service keeps its address for life.
                await self.delete(existing)
                return await self._store.create(wanted)
            return await self._store.update(updated)

    async def remove_owned(
        self, owner: Object, resources: Collection[str], *, keep: Collection[str] = ()
    ) -> None:
        """Delete an owner's objects of these resources, but those with a name to keep."""
        for resource in resources:
            for obj in self._store.owned_by(uid_of(owner), resource):
                if name_of(obj) not in keep:
                    await self.delete(obj)

    async def delete(self, obj: Object) -> None:
        """Delete an object unless it is gone or another one by now."""
        with suppress(NotFound, Conflict):
            await self._store.delete(key_of(obj), uid=uid_of(obj))


def merged(existing: Object, wanted: Object) -> Object:
    """Return `existing` with what is wanted in it, or itself when nothing differs.

    Labels and annotations that others put on it stay, and so do a number of replicas that nobody
    asks for here and the Pods that a save asked for.
    """
    spec = wanted["spec"]
    if existing["kind"] == DEPLOYMENT.kind:
        spec = reloads.kept(existing, spec)
    if existing["kind"] == DEPLOYMENT.kind and "replicas" not in spec:
        kept = existing["spec"].get("replicas")
        spec = spec if kept is None else {**spec, "replicas": kept}
    labels = {**labels_of(existing), **labels_of(wanted)}
    annotations = {**annotations_of(existing), **annotations_of(wanted)}
    same = (
        existing["spec"] == spec
        and labels == dict(labels_of(existing))
        and annotations == dict(annotations_of(existing))
    )
    if same:
        return existing
    metadata: dict[str, Any] = {**existing["metadata"]}
    if labels:
        metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = annotations
    return {**existing, "metadata": metadata, "spec": spec}


def _as_first_stored(wanted: Object) -> Object:
    """Return a Deployment with the API server's default of one replica; anything else as it is."""
    if wanted["kind"] != DEPLOYMENT.kind or "replicas" in wanted["spec"]:
        return wanted
    return {**wanted, "spec": {**wanted["spec"], "replicas": 1}}


def _address(obj: Object) -> str:
    return str(obj["spec"].get("clusterIP") or "") if obj["kind"] == SERVICE.kind else ""


def _owner(obj: Object) -> str:
    return str((controller_of(obj) or {}).get("uid") or "")


def _owner_name(obj: Object) -> str:
    owner = controller_of(obj) or {}
    return f'{owner.get("kind")} "{owner.get("name")}"'


@contextmanager
def _refusals_told() -> Iterator[None]:
    try:
        yield
    except (Forbidden, Invalid) as error:
        raise ReconcileFailed(str(error)) from error
