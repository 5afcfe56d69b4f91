"""An InferenceService of Standard mode: its workloads, canaries and ingress in the store.

Reads the service, runtimes, storage containers and the objects below; writes Deployments, Services,
autoscalers, and the Ingress or HTTPRoutes. Order of steps and what a failure leaves behind are
KServe v0.20's (components/*.go; control-plane.md 5.5, 6.2). The controller does the status.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.scheme import DEPLOYMENT, HTTP_ROUTE, INGRESS, POD, SERVICE, key_of
from kserve_local.controllers import isvc_canary, isvc_ingress, isvc_parts
from kserve_local.controllers.isvc_knative import Component, components_of, entry_of, service_name
from kserve_local.controllers.isvc_parts import Cluster, ReconcileFailed
from kserve_local.controllers.isvc_standard_status import StandardDraft, route_problem, waited_for
from kserve_local.controllers.podspec import PodParts
from kserve_local.controllers.standard_apply import (
    WORKLOAD_KINDS,
    StandardObjects,
    StandardSettings,
)
from kserve_local.controllers.standard_objects import Workload
from kserve_local.errors import AlreadyExists, Forbidden, Invalid
from kserve_local.store.store import Store

OWNED = tuple(kind.id for kind in (*WORKLOAD_KINDS, INGRESS, HTTP_ROUTE))
"""Resources that a service of this mode owns."""


@dataclass(frozen=True, slots=True)
class _Made:
    """What was last built of a component, and from what."""

    inputs: tuple[object, ...]
    parts: PodParts
    runtime: tuple[str, str]


class StandardMode:
    """Carries out one service's spec, component by component."""

    def __init__(self, store: Store, settings: StandardSettings) -> None:
        self._store = store
        self._settings = settings
        self._objects = StandardObjects(store, settings)
        self._made: dict[tuple[Key, str], _Made] = {}

    def forget(self, key: Key) -> None:
        """The service is gone."""
        for made in [m for m in self._made if m[0] == key]:
            del self._made[made]

    def config(self, config: InferenceServiceConfig) -> InferenceServiceConfig:
        """Return the configuration as it holds in this project."""
        return isvc_ingress.with_domain(config, self._settings.domain)

    async def component(
        self, isvc: Object, component: Component, draft: StandardDraft, cluster: Cluster
    ) -> Object:
        """Bring one component's objects to what the spec asks for; return its Deployment.

        Raises:
            SelectionError: No runtime fits; belongs into modelStatus.
            Invalid: The storage cannot be used, or a canary cannot be built.
            ReconcileFailed: An object cannot be written; belongs into the component's condition.
        """
        name = service_name(isvc, component)
        parts = self._build(isvc, component, cluster, name, draft)
        if component == "predictor":
            await self._canaries(isvc, draft, cluster)
        try:
            # KServe makes the URL with the workload, so that a name which is too long fails here.
            url = isvc_ingress.url_of(name, isvc, cluster.config.ingress)
            workload = _workload(isvc, name, parts, isvc["spec"][component])
            if component == "predictor":
                workload = _with_room(workload, isvc, draft.ready_canaries)
            deployment = await self._objects.apply(workload, cluster.config)
        except (Forbidden, Invalid, AlreadyExists) as error:
            raise ReconcileFailed(f"fails to reconcile {component}: {error}") from error
        draft.workload(component, deployment, url)
        return deployment

    def _build(
        self,
        isvc: Object,
        component: Component,
        cluster: Cluster,
        name: str,
        draft: StandardDraft | None = None,
    ) -> PodParts:
        """Return a component's Pod, built anew when an input changed.

        Args:
            draft: Is told the predictor's runtime.
        """
        # Objects are never changed in place, so comparing them is comparing references first.
        inputs = (uid_of(isvc), isvc["spec"], labels_of(isvc), annotations_of(isvc), cluster)
        key = (key_of(isvc), name)
        made = self._made.get(key)
        if made is None or made.inputs != inputs:
            selection = isvc_parts.chosen(isvc, cluster) if component == "predictor" else None
            runtime = (selection.kind, selection.name) if selection is not None else ("", "")
            if draft is not None and component == "predictor":
                draft.runtime(*runtime)
            parts = isvc_parts.build(isvc, component, cluster, selection)
            made = self._made[key] = _Made(inputs, parts, runtime)
        if draft is not None and component == "predictor":
            draft.runtime(*made.runtime)
        return made.parts

    async def _canaries(self, isvc: Object, draft: StandardDraft, cluster: Cluster) -> None:
        """Bring the canaries' objects to what is wanted, say how they stand, remove others."""
        canaries = isvc_canary.canaries_of(isvc)
        ready = set()
        for canary, entry in zip(canaries, isvc["spec"].get("canary") or (), strict=True):
            alone = isvc_canary.with_canary(isvc, entry)
            try:
                parts = self._build(alone, "predictor", cluster, canary.workload)
                component = {"minReplicas": canary.replicas}
                workload = _workload(isvc, canary.workload, parts, component)
                deployment = await self._objects.apply(workload, cluster.config)
            except (Forbidden, Invalid, AlreadyExists) as error:
                raise Invalid(
                    f"fails to reconcile canary deployments: fails to build resources for canary "
                    f"{canary.name}: {error}"
                ) from error
            if int((deployment.get("status") or {}).get("availableReplicas") or 0) > 0:
                ready.add(canary.name)
        draft.canaries(canaries, ready)
        keep = {service_name(isvc, "predictor"), *(c.workload for c in canaries)}
        await self._remove(isvc, "predictor", keep)

    async def _remove(self, isvc: Object, component: str, keep: Collection[str]) -> None:
        for kind in WORKLOAD_KINDS:
            for obj in self._store.owned_by(uid_of(isvc), kind.id):
                its = labels_of(obj).get(names.COMPONENT_LABEL) == component
                if its and name_of(obj) not in keep:
                    self._made.pop((key_of(isvc), name_of(obj)), None)
                    await self._objects.delete(obj)

    async def remove_absent(self, isvc: Object, draft: StandardDraft) -> None:
        """Delete the objects of components that the spec no longer has.

        A cluster lets them run on, unreachable by the service's own name.
        """
        for component in ("transformer", "explainer"):
            if component not in components_of(isvc):
                draft.absent(component)
                await self._remove(isvc, component, ())

    async def stop(self, isvc: Object) -> None:
        """Delete everything that the service owns, configuration apart."""
        await self._objects.remove_owned(isvc, OWNED)

    def pods(self, isvc: Object) -> list[Object]:
        """Return the stable predictor's Pods."""
        key = Key(DEPLOYMENT.id, namespace_of(isvc), service_name(isvc, "predictor"))
        deployment = self._store.find(key)
        return [] if deployment is None else self._store.owned_by(uid_of(deployment), POD.id)

    async def ingress(
        self, isvc: Object, draft: StandardDraft, config: InferenceServiceConfig
    ) -> None:
        """Write the Ingress or the HTTPRoutes once the components are ready, and say how it stands.

        Raises:
            Invalid: A host cannot be made.
        """
        settings = config.ingress
        services = {name_of(s): s for s in self._store.owned_by(uid_of(isvc), SERVICE.id)}
        if isvc_ingress.is_internal(isvc, settings):
            await self._objects.remove_owned(isvc, (INGRESS.id, HTTP_ROUTE.id))
        elif settings.enable_gateway_api:
            await self._objects.remove_owned(isvc, (INGRESS.id,))
            if not await self._http_routes(isvc, draft, config, services):
                return
        else:
            await self._objects.remove_owned(isvc, (HTTP_ROUTE.id,))
            if draft.waits_for(waited_for(components_of(isvc), http_routes=False)):
                return
            await self._objects.put(isvc_ingress.ingress(isvc, config))
        entry = services.get(service_name(isvc, entry_of(isvc)))
        if entry is None:
            return
        draft.reachable(
            url=isvc_ingress.url_of(name_of(isvc), isvc, settings, scheme=settings.url_scheme),
            address=isvc_ingress.address_of(isvc, entry, headless=config.service_cluster_ip_none),
        )

    async def _http_routes(
        self,
        isvc: Object,
        draft: StandardDraft,
        config: InferenceServiceConfig,
        services: dict[str, Object],
    ) -> bool:
        """Write the HTTPRoutes that can be written; return whether all are there and served."""
        canaries = isvc_canary.shares(isvc, draft.ready_canaries)
        present = waited_for(components_of(isvc), http_routes=True)
        ready = [c for c in present if not draft.waits_for((c,))]
        allowed = {names.component_name(name_of(isvc), c) for c in ready}
        if len(ready) == len(present):
            allowed.add(name_of(isvc))
        wanted = isvc_ingress.http_routes(isvc, config, services, canaries)
        for route in wanted:
            if name_of(route) in allowed:
                await self._objects.put(route)
        await self._objects.remove_owned(isvc, (HTTP_ROUTE.id,), keep={name_of(r) for r in wanted})
        for route, title in zip(
            wanted,
            (*(c.capitalize() for c in components_of(isvc)), "InferenceService"),
            strict=True,
        ):
            stored = self._store.find(key_of(route))
            if stored is None:
                draft.no_ingress(f"{title} Deployment NotReady", f"{title} HTTPRoute not created")
                return False
            problem = route_problem(stored)
            if problem is not None:
                draft.no_ingress(problem[0], f"{title} {problem[1]}")
                return False
        return True


def _workload(isvc: Object, name: str, parts: PodParts, component: Any) -> Workload:
    return Workload(
        owner=isvc,
        name=name,
        # The list of disallowed labels is Knative mode's alone.
        labels=parts.object_labels,
        annotations=parts.annotations,
        pod=parts.spec,
        component=component,
    )


def _with_room(workload: Workload, isvc: Object, ready: Collection[str]) -> Workload:
    """Return the stable workload with as many replicas less as ready canaries have."""
    least = isvc_canary.stable_minimum(isvc, ready)
    if least is None:
        return workload
    return replace(workload, component={**workload.component, "minReplicas": least})


def is_settled(deployment: Object) -> bool:
    """Whether the Deployment has rolled out the spec that it has, or has given up on it."""
    seen = (deployment.get("status") or {}).get("observedGeneration")
    progressing = get_condition(deployment, "Progressing") or {}
    over = progressing.get("status") == "False" or (
        progressing.get("reason") == "NewReplicaSetAvailable"
    )
    return over and bool(seen == deployment["metadata"].get("generation"))
