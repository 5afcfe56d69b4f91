"""InferenceService -> a workload for each component, and the status that users read.

Reads InferenceServices, runtimes, storage containers, the ConfigMap `inferenceservice-config`, the
objects below and the predictor's newest Pods; writes the Knative Services and the Service `<isvc>`
(in Standard mode `isvc_standard` writes its own objects), the finalizer, Events, and the
InferenceService's status. Order of steps, what is written when a step fails, conditions and Events
are KServe v0.20's controller's (pkg/controller/v1beta1/inferenceservice; control-plane.md sections
3.3, 5, 6.1, 11).

Two things are faster than upstream: Pods and runtimes wake the reconcile, so that a failure is in
the status at once instead of at the next retry.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kserve_local.api import gaps, names, pod_autoscaler, validation
from kserve_local.api.config import InferenceServiceConfig, parse
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    condition_is,
    controller_of,
    labels_of,
    name_of,
    namespace_of,
    timestamp,
    uid_of,
    with_status,
)
from kserve_local.api.runtime_selection import SelectionError, next_step
from kserve_local.api.scheme import (
    CLUSTER_SERVING_RUNTIME,
    CLUSTER_STORAGE_CONTAINER,
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE,
    INFERENCE_SERVICE,
    INGRESS,
    KNATIVE_SERVICE,
    POD,
    SERVICE,
    SERVING_RUNTIME,
    TRAINED_MODEL,
    key_of,
)
from kserve_local.controllers import isvc_knative, isvc_parts, isvc_standard, isvc_status
from kserve_local.controllers.garbage import ISVC_FINALIZER, TRAINED_MODEL_PARENT
from kserve_local.controllers.isvc_knative import COMPONENTS, Component, components_of
from kserve_local.controllers.isvc_parts import Cluster, ReconcileFailed
from kserve_local.controllers.isvc_standard import StandardMode
from kserve_local.controllers.isvc_standard_status import StandardDraft
from kserve_local.controllers.isvc_status import StatusDraft
from kserve_local.controllers.observed import Observations
from kserve_local.controllers.pod_state import Failure
from kserve_local.controllers.revision import pods_of
from kserve_local.controllers.standard_apply import StandardSettings
from kserve_local.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    KServeLocalError,
    NotFound,
)
from kserve_local.reconcile.controller import Watch, controlling, itself, labelled
from kserve_local.reconcile.result import DONE, RETRY, Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

COMPONENT = "v1beta1Controllers"
"""`source.component` of the Events, as KServe's recorder is named."""

_NO_MESH = (
    "deploymentMode ModelMesh is not available in kserve-local; remove the annotation "
    f"{names.DEPLOYMENT_MODE} to run the service in Knative mode"
)


@dataclass(frozen=True, slots=True)
class _Made:
    """What was last computed for a component of a service, and from what."""

    inputs: tuple[object, ...]
    runtime_kind: str
    runtime_name: str
    wanted: Object


class InferenceServiceController:
    """Writes the next link: the workloads of an InferenceService, and its status.

    Args:
        observed: Where it tells what became of each spec.
        standard: What Standard mode needs to know of the project.
    """

    name = "inferenceservice"

    def __init__(
        self,
        store: Store,
        events: EventRecorder,
        observed: Observations | None = None,
        standard: StandardSettings | None = None,
    ) -> None:
        self._store = store
        self._events = events
        self._observed = observed or Observations()
        self._standard = StandardMode(store, standard or StandardSettings())
        self._made: dict[tuple[Key, Component], _Made] = {}
        self._said: dict[Key, tuple[str, Any]] = {}
        self.watches = (
            Watch(INFERENCE_SERVICE.id, itself),
            Watch(KNATIVE_SERVICE.id, controlling(INFERENCE_SERVICE.id)),
            Watch(SERVICE.id, controlling(INFERENCE_SERVICE.id)),
            Watch(DEPLOYMENT.id, controlling(INFERENCE_SERVICE.id)),
            Watch(INGRESS.id, controlling(INFERENCE_SERVICE.id)),
            Watch(HTTP_ROUTE.id, controlling(INFERENCE_SERVICE.id)),
            Watch(POD.id, labelled(INFERENCE_SERVICE.id, names.ISVC_LABEL)),
            Watch(SERVING_RUNTIME.id, self._users),
            Watch(CLUSTER_SERVING_RUNTIME.id, self._users),
        )

    def _users(self, runtime: Object) -> Iterable[Key]:
        """Map a runtime to the services that use it, and to those still without one."""
        field = (
            "servingRuntimeName"
            if runtime["kind"] == SERVING_RUNTIME.kind
            else "clusterServingRuntimeName"
        )
        namespace = namespace_of(runtime) or None
        for isvc in self._store.list(INFERENCE_SERVICE.id, namespace=namespace):
            status = isvc.get("status") or {}
            model = status.get("modelStatus") or {}
            uses = status.get(field) == name_of(runtime)
            if uses or model.get("transitionStatus") == "InvalidSpec":
                yield key_of(isvc)

    async def reconcile(self, key: Key) -> Result:
        """Bring the workloads to what the spec asks for and say how the service stands."""
        isvc = self._store.find(key)
        if isvc is None:
            for component in COMPONENTS:
                self._made.pop((key, component), None)
            self._standard.forget(key)
            self._said.pop(key, None)
            self._observed.forget(key)
            return DONE
        if isvc["metadata"].get("deletionTimestamp"):
            return await self._finalize(isvc)
        if annotations_of(isvc).get(names.DISABLE_AUTO_UPDATE) == "true" and condition_is(
            isvc, isvc_status.READY
        ):
            self._observed.carried_out(isvc)
            return DONE
        isvc = await self._with_finalizer(isvc)
        try:
            config = parse(
                self._store.find(Key(CONFIG_MAP.id, names.KSERVE_NAMESPACE, names.CONFIG_MAP))
            )
        except Invalid as error:
            return await self._internal_error(isvc, error)
        mode = config.deployment_mode(
            annotations_of(isvc).get(names.DEPLOYMENT_MODE),
            (isvc.get("status") or {}).get("deploymentMode") or "",
        )
        if mode == names.STANDARD_MODE:
            return await self._in_standard_mode(isvc, self._standard.config(config))
        draft = StatusDraft(isvc, now=timestamp())
        if mode == names.KNATIVE_MODE:
            draft.mode(mode)
        if isvc_knative.is_stopped(isvc):
            return await self._stop(isvc, draft)
        draft.running()
        if mode != names.KNATIVE_MODE:
            return await self._refuse(isvc, draft, _NO_MESH)
        below: list[Object] = []
        for component in components_of(isvc):
            try:
                ksvc = await self._apply(isvc, component, draft, config)
            except Conflict:
                raise
            except KServeLocalError as error:
                return await self._failed(isvc, component, draft, error)
            draft.component(component, ksvc)
            below.append(ksvc)
            if component == "predictor" and not draft.model(self._pods(isvc, draft), ksvc):
                self._observed.carried_out(isvc, settled=False)
                return Result(requeue_after=1.0)
        await self._remove_others(isvc, draft, keep={name_of(ksvc) for ksvc in below})
        draft.cross_components()
        await self._ingress(isvc, draft, config)
        await self._write(isvc, draft)
        self._observed.carried_out(isvc, settled=all(map(_is_observed, below)))
        return DONE

    async def _in_standard_mode(self, isvc: Object, config: InferenceServiceConfig) -> Result:
        """One pass of Standard mode, in KServe's order."""
        mode = self._standard
        draft = StandardDraft(isvc, now=timestamp())
        draft.mode(names.STANDARD_MODE)
        if isvc_knative.is_stopped(isvc):
            await mode.stop(isvc)
            draft.stop()
            await self._write(isvc, draft)
            self._observed.carried_out(isvc)
            return DONE
        draft.running()
        cluster = self._cluster(isvc, config)
        below: list[Object] = []
        for component in components_of(isvc):
            try:
                below.append(await mode.component(isvc, component, draft, cluster))
            except Conflict:
                raise
            except KServeLocalError as error:
                return await self._failed(isvc, component, draft, error)
            if component == "predictor" and not draft.model(mode.pods(isvc), None):
                self._observed.carried_out(isvc, settled=False)
                return Result(requeue_after=1.0)
        await mode.remove_absent(isvc, draft)
        try:
            await mode.ingress(isvc, draft, config)
        except Conflict:
            raise
        except KServeLocalError as error:
            await self._write(isvc, draft)
            return await self._internal_error(
                isvc, Forbidden(f"fails to reconcile ingress: {error}")
            )
        await self._write(isvc, draft)
        await self._say_of_spec(isvc)
        settled = draft.is_blocked or all(map(isvc_standard.is_settled, below))
        self._observed.carried_out(isvc, settled=settled)
        return DONE

    async def _say_of_spec(self, isvc: Object) -> None:
        """Say once a spec what of it has no effect here."""
        spec = (uid_of(isvc), isvc["metadata"].get("generation"))
        if self._said.get(key_of(isvc)) == spec:
            return
        self._said[key_of(isvc)] = spec
        for component in components_of(isvc):
            await self._say_left_out(isvc, component)

    def _cluster(self, isvc: Object, config: InferenceServiceConfig) -> Cluster:
        return Cluster(
            config,
            self._store.list(CLUSTER_STORAGE_CONTAINER.id),
            self._store.list(SERVING_RUNTIME.id, namespace=namespace_of(isvc)),
            self._store.list(CLUSTER_SERVING_RUNTIME.id),
        )

    # -- steps ------------------------------------------------------------------------------------

    async def _apply(
        self,
        isvc: Object,
        component: Component,
        draft: StatusDraft,
        config: InferenceServiceConfig,
    ) -> Object:
        """Create or update a component's Knative Service; return it as stored.

        Raises:
            SelectionError: No runtime fits; belongs into modelStatus.
            Invalid: The storage cannot be used.
            ReconcileFailed: The API server or Knative's webhook refuses it.
        """
        wanted = self._wanted(isvc, component, draft, config)
        existing = self._store.find(key_of(wanted))
        if existing is None:
            with _refusals_told(component):
                self._review(wanted, None, config)
                created = await self._store.create(wanted)
            await self._event(
                isvc, "Normal", "Created", f'Created Knative Service "{name_of(created)}"'
            )
            await self._say_left_out(isvc, component)
            return created
        owner = str((controller_of(existing) or {}).get("uid") or "")
        if owner != uid_of(isvc):
            if owner and self._store.key_of_uid(owner) is None:
                # What is left of a deleted service of the same name; the collector is at it.
                raise Conflict(f'Knative Service "{name_of(existing)}" is being collected')
            raise AlreadyExists(
                f'Knative Service "{name_of(existing)}" exists and is not owned by InferenceService'
                f' "{name_of(isvc)}"; delete it or rename the InferenceService'
            )
        updated = _merged(existing, wanted)
        if updated is existing:
            return existing
        with _refusals_told(component):
            self._review(updated, existing, config)
            stored = await self._store.update(updated)
        await self._say_left_out(isvc, component)
        return stored

    async def _say_left_out(self, isvc: Object, component: Component) -> None:
        for sentence in gaps.left_out_of(isvc, component):
            await self._event(isvc, "Warning", isvc_status.NOT_AVAILABLE, sentence)

    def _review(self, ksvc: Object, old: Object | None, config: InferenceServiceConfig) -> None:
        """Ask Knative's webhook, which a controller's write passes too."""
        validation.validate(ksvc, old=old, config=config, lookup=self._lookup)

    def _lookup(self, resource: str, namespace: str | None) -> Sequence[Object]:
        return self._store.list(resource, namespace=namespace)

    def _wanted(
        self,
        isvc: Object,
        component: Component,
        draft: StatusDraft,
        config: InferenceServiceConfig,
    ) -> Object:
        """Return the Knative Service that the spec asks for, computed anew when an input changed.

        Most reconciles are woken from below and find the spec as it was.
        """
        containers = self._store.list(CLUSTER_STORAGE_CONTAINER.id)
        rolled_out = draft.rolled_out(component)
        is_predictor = component == "predictor"
        runtimes: Sequence[Object] = ()
        cluster_runtimes: Sequence[Object] = ()
        if is_predictor:
            runtimes = self._store.list(SERVING_RUNTIME.id, namespace=namespace_of(isvc))
            cluster_runtimes = self._store.list(CLUSTER_SERVING_RUNTIME.id)
        allow_zero = pod_autoscaler.may_start_at_zero(
            self._store.find(pod_autoscaler.CLUSTER_CONFIG)
        )
        # Objects are never changed in place, so comparing them is comparing references first.
        inputs = (
            uid_of(isvc),
            isvc["spec"],
            labels_of(isvc),
            annotations_of(isvc),
            config,
            allow_zero,
            rolled_out,
            runtimes,
            cluster_runtimes,
            containers,
        )
        key = (key_of(isvc), component)
        made = self._made.get(key)
        if made is None or made.inputs != inputs:
            cluster = Cluster(config, containers, runtimes, cluster_runtimes)
            selection = isvc_parts.chosen(isvc, cluster) if is_predictor else None
            kind, name = (selection.kind, selection.name) if selection else ("", "")
            if is_predictor:
                draft.runtime(kind, name)
            parts = isvc_parts.build(isvc, component, cluster, selection)
            wanted = isvc_knative.knative_service(
                isvc,
                component,
                parts,
                rolled_out=rolled_out,
                allow_zero=allow_zero,
            )
            made = self._made[key] = _Made(inputs, kind, name, wanted)
        if is_predictor:
            draft.runtime(made.runtime_kind, made.runtime_name)
        return made.wanted

    async def _remove_others(
        self, isvc: Object, draft: StatusDraft, *, keep: Collection[str]
    ) -> None:
        """Delete the Knative Services of what the spec no longer has: a transformer, an explainer,
        an earlier `predictor.name`.

        A cluster lets them run on, unreachable by the service's own name.
        """
        for component in COMPONENTS:
            if component not in components_of(isvc):
                draft.absent(component)
        for ksvc in self._store.owned_by(uid_of(isvc), KNATIVE_SERVICE.id):
            component_label = labels_of(ksvc).get(names.COMPONENT_LABEL)
            if component_label in COMPONENTS and name_of(ksvc) not in keep:
                await self._delete(ksvc)

    def _pods(self, isvc: Object, draft: StatusDraft) -> list[Object]:
        revision = draft.created_revision("predictor")
        return pods_of(self._store, namespace_of(isvc), revision) if revision else []

    async def _ingress(
        self, isvc: Object, draft: StatusDraft, config: InferenceServiceConfig
    ) -> None:
        ingress = config.ingress
        address = isvc_status.cluster_address(isvc)
        entry = isvc_knative.entry_of(isvc)
        url = isvc_status.knative_url(draft.component_url, entry, scheme=ingress.url_scheme)
        if ingress.disable_istio_virtual_host:
            url, address = draft.component_url, draft.component_address
        else:
            if ingress.path_template:
                path = (
                    ingress.path_template.replace("{{ .Namespace }}", namespace_of(isvc))
                    .replace("{{ .Name }}", name_of(isvc))
                    .strip()
                )
                url = f"{ingress.url_scheme}://{ingress.domain}{path}"
            await self._external_service(isvc)
        draft.ingress(url=url, address=address)

    async def _external_service(self, isvc: Object) -> None:
        if self._store.find(Key(SERVICE.id, namespace_of(isvc), name_of(isvc))) is None:
            try:
                await self._store.create(isvc_knative.external_service(isvc))
            except AlreadyExists:
                return

    async def _stop(self, isvc: Object, draft: StatusDraft) -> Result:
        for resource in (KNATIVE_SERVICE.id, SERVICE.id):
            for obj in self._store.owned_by(uid_of(isvc), resource):
                await self._delete(obj)
        draft.stop()
        await self._write(isvc, draft)
        self._observed.carried_out(isvc)
        return DONE

    async def _refuse(self, isvc: Object, draft: StatusDraft, message: str) -> Result:
        """Say that the whole service is of a kind that is not run yet.

        The mode is not written into the status, where it would win over the annotation for good.
        """
        draft.not_available("predictor", message)
        await self._write(isvc, draft)
        self._observed.carried_out(isvc)
        if not _says(isvc, isvc_status.PREDICTOR_READY, message):
            await self._event(isvc, "Warning", isvc_status.NOT_AVAILABLE, message)
        return DONE

    async def _failed(
        self, isvc: Object, component: Component, draft: StatusDraft, error: KServeLocalError
    ) -> Result:
        """A component's step failed: an Event, for a bad spec the model status, and a retry.

        The components after it wait for that, as upstream.
        """
        if isinstance(error, SelectionError):
            draft.invalid_spec(Failure(error.reason, self._with_step(isvc, error)))
        elif isinstance(error, ReconcileFailed):
            draft.reconcile_failed(component, str(error))
        await self._write(isvc, draft)
        return await self._internal_error(isvc, error)

    async def _internal_error(self, isvc: Object, error: KServeLocalError) -> Result:
        self._observed.failed(isvc, "InternalError", str(error))
        await self._event(isvc, "Warning", "InternalError", str(error))
        return RETRY

    def _with_step(self, isvc: Object, error: SelectionError) -> str:
        """Return KServe's message and, as every failure here has, what to do next."""
        runtimes = self._store.list(SERVING_RUNTIME.id, namespace=namespace_of(isvc))
        step = next_step(
            isvc,
            error,
            runtimes=runtimes,
            cluster_runtimes=self._store.list(CLUSTER_SERVING_RUNTIME.id),
        )
        return f"{error.failure}\nNext step: {step}" if step else error.failure

    async def _write(self, isvc: Object, draft: StatusDraft) -> None:
        status = draft.finish()
        await self._store.update_status(with_status(isvc, status))
        is_ready = draft.conditions.is_true(isvc_status.READY)
        if is_ready and not draft.was_ready:
            await self._event(
                isvc,
                "Normal",
                "InferenceServiceReady",
                f"InferenceService [{name_of(isvc)}] is Ready",
            )
        elif draft.was_ready and draft.conditions.status(isvc_status.READY) == "False":
            failed = ", ".join(isvc_status.false_conditions(status["conditions"]))
            await self._event(
                isvc,
                "Warning",
                "InferenceServiceNotReady",
                f"InferenceService [{name_of(isvc)}] is no longer Ready because of: {failed}",
            )
        failure = draft.failure
        known = ((isvc.get("status") or {}).get("modelStatus") or {}).get("lastFailureInfo")
        if failure is not None and failure != known and failure["reason"] == "ModelLoadFailed":
            await self._event(isvc, "Warning", failure["reason"], failure["message"])

    # -- metadata and deletion --------------------------------------------------------------------

    async def _with_finalizer(self, isvc: Object) -> Object:
        finalizers = isvc["metadata"].get("finalizers") or []
        if ISVC_FINALIZER in finalizers:
            return isvc
        metadata = {**isvc["metadata"], "finalizers": [*finalizers, ISVC_FINALIZER]}
        return await self._store.update({**isvc, "metadata": metadata})

    async def _finalize(self, isvc: Object) -> Result:
        if ISVC_FINALIZER in (isvc["metadata"].get("finalizers") or ()):
            for model in self._store.list(
                TRAINED_MODEL.id,
                namespace=namespace_of(isvc),
                labels={TRAINED_MODEL_PARENT: name_of(isvc)},
            ):
                await self._delete(model)
            await self._store.finalize(key_of(isvc), ISVC_FINALIZER)
        return DONE

    async def _delete(self, obj: Object) -> None:
        try:
            await self._store.delete(key_of(obj), uid=uid_of(obj))
        except (NotFound, Conflict):
            return

    async def _event(self, isvc: Object, type_: Any, reason: str, message: str) -> None:
        await self._events.event(isvc, type_, reason, message, component=COMPONENT)


@contextmanager
def _refusals_told(component: Component) -> Iterator[None]:
    """Turn what the API server or a webhook says about a Knative Service into KServe's words."""
    try:
        yield
    except (Forbidden, Invalid) as error:
        raise ReconcileFailed(
            f"fails to reconcile {component}: fails to reconcile knative service: {error}"
        ) from error


def _is_observed(ksvc: Object) -> bool:
    seen = (ksvc.get("status") or {}).get("observedGeneration")
    return bool(seen == ksvc["metadata"].get("generation"))


def _merged(existing: Object, wanted: Object) -> Object:
    """Return `existing` with what KServe manages replaced, or itself when nothing differs.

    Labels and annotations that others put on the Knative Service stay; of the latter those that
    KServe takes from the InferenceService go with it.
    """
    labels = {**labels_of(existing), **labels_of(wanted)}
    others = {k: v for k, v in annotations_of(existing).items() if k != names.ROLLOUT_DURATION}
    annotations = {**others, **annotations_of(wanted)}
    same = (
        existing["spec"] == wanted["spec"]
        and labels == dict(labels_of(existing))
        and annotations == dict(annotations_of(existing))
    )
    if same:
        return existing
    metadata: dict[str, Any] = {**existing["metadata"], "labels": labels}
    if annotations or annotations_of(existing):
        metadata["annotations"] = annotations
    return {**existing, "metadata": metadata, "spec": wanted["spec"]}


def _says(isvc: Object, type_: str, message: str) -> bool:
    conditions: Iterable[Mapping[str, Any]] = (isvc.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == type_ and c.get("message") == message for c in conditions)
