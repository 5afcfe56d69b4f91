"""The status of an InferenceService, computed in memory during one reconcile.

Pure: takes what the chain below says and gives the new `status`. Copies KServe v0.20's
InferenceServiceStatus (PropagateStatus, PropagateModelStatus, PropagateCrossComponentStatus) and
its controller's order of steps; control-plane.md section 5. What we add is text only: a next step
at the end of `lastFailureInfo.message`, and failures that KServe shows as Pending without a word
(an image that cannot be had, a kill for memory) fill `lastFailureInfo` too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from kserve_local.api.meta import Object, name_of, namespace_of
from kserve_local.api.names import PREDICTOR_CONTAINER
from kserve_local.controllers import pod_state
from kserve_local.controllers.isvc_knative import COMPONENTS, Component, components_of, entry_of
from kserve_local.controllers.pod_state import Failure
from kserve_local.reconcile.conditions import FALSE, TRUE, UNKNOWN, ConditionSet

READY = "Ready"
INGRESS_READY = "IngressReady"
PREDICTOR_READY = "PredictorReady"
STOPPED = "Stopped"
ROUTES_READY = "RoutesReady"
LATEST_DEPLOYMENT_READY = "LatestDeploymentReady"

READY_OF: Mapping[str, str] = {
    "predictor": PREDICTOR_READY,
    "transformer": "TransformerReady",
    "explainer": "ExplainerReady",
}
ROUTE_READY_OF: Mapping[str, str] = {
    "predictor": "PredictorRouteReady",
    "transformer": "TransformerRouteReady",
    "explainer": "ExplainerRoutesReady",
}
CONFIGURATION_READY_OF: Mapping[str, str] = {
    "predictor": "PredictorConfigurationReady",
    "transformer": "TransformerConfigurationReady",
    "explainer": "ExplainerConfigurationReady",
}

RECONCILE_FAILED = "ReconcileFailed"
"""Reason of a component whose Knative Service could not be written."""
NOT_AVAILABLE = "NotImplemented"
"""Reason (ours) for a part of the spec that kserve-local does not carry out yet."""


class StatusDraft:
    """One pass's status. Methods are called in KServe's order; `finish` gives the result."""

    def __init__(self, isvc: Object, *, now: str) -> None:
        self._isvc = isvc
        self._status: dict[str, Any] = copy.deepcopy(isvc.get("status") or {})
        self._components: dict[str, dict[str, Any]] = self._status.get("components") or {}
        self._model: dict[str, Any] = self._status.get("modelStatus") or {}
        self.conditions = ConditionSet(
            READY,
            (PREDICTOR_READY, INGRESS_READY),
            self._status.get("conditions") or (),
            now=now,
        )
        self.was_ready = self.conditions.is_true(READY)

    @property
    def component_url(self) -> str:
        """URL of the entry component, empty while unknown."""
        return str(self._components.get(self._entry, {}).get("url") or "")

    @property
    def component_address(self) -> str:
        """Cluster-local URL of the entry component, empty while unknown."""
        address = self._components.get(self._entry, {}).get("address") or {}
        return str(address.get("url") or "")

    @property
    def _entry(self) -> Component:
        return entry_of(self._isvc)

    def rolled_out(self, component: Component) -> str:
        """Return `latestRolledoutRevision` of a component, empty if none."""
        return str(self._components.get(component, {}).get("latestRolledoutRevision") or "")

    def created_revision(self, component: Component) -> str:
        """Return `latestCreatedRevision` of a component, empty if none."""
        return str(self._components.get(component, {}).get("latestCreatedRevision") or "")

    def mode(self, mode: str) -> None:
        """Set `deploymentMode`."""
        self._status["deploymentMode"] = mode

    def runtime(self, kind: str, name: str) -> None:
        """Set the field of the runtime in use and blank the other; no name blanks both."""
        for field, of in (
            ("servingRuntimeName", "ServingRuntime"),
            ("clusterServingRuntimeName", "ClusterServingRuntime"),
        ):
            if name and kind == of:
                self._status[field] = name
            else:
                self._status.pop(field, None)

    def component(self, component: Component, ksvc: Object) -> None:
        """Take over what the component's Knative Service says (5.8)."""
        source: Mapping[str, Any] = ksvc.get("status") or {}
        spec = self._components.setdefault(component, {})
        created = source.get("latestCreatedRevisionName") or ""
        ready = source.get("latestReadyRevisionName") or ""
        traffic: Sequence[Mapping[str, Any]] = source.get("traffic") or ()
        _put(spec, "latestCreatedRevision", created)
        for entry in traffic:
            if not entry.get("latestRevision") or entry.get("revisionName") != ready:
                continue
            percent = int(entry.get("percent") or 0)
            rolled_out = spec.get("latestRolledoutRevision") or ""
            if rolled_out != ready:
                if percent == 100:
                    _put(spec, "previousRolledoutRevision", rolled_out)
                    spec["latestRolledoutRevision"] = ready
            elif created == ready and percent < 100:
                total = sum(int(t.get("percent") or 0) for t in traffic if _of(t, ready))
                if total == 100 and spec.get("previousRolledoutRevision"):
                    # The split is over one revision: a rollback after promotion.
                    spec["latestRolledoutRevision"] = spec["previousRolledoutRevision"]
        _put(spec, "latestReadyRevision", ready)
        by_type = {c["type"]: c for c in source.get("conditions") or ()}
        if (by_type.get("Ready") or {}).get("status") == TRUE:
            for field in ("url", "address"):
                if source.get(field):
                    spec[field] = copy.deepcopy(source[field])
        self.conditions.copy(READY_OF[component], by_type.get("Ready"))
        self.conditions.copy(ROUTE_READY_OF[component], by_type.get("RoutesReady"))
        self.conditions.copy(CONFIGURATION_READY_OF[component], by_type.get("ConfigurationsReady"))
        _put(spec, "traffic", copy.deepcopy(list(traffic)))
        if source.get("observedGeneration"):
            self._status["observedGeneration"] = source["observedGeneration"]

    def not_available(self, component: Component, message: str) -> None:
        """Say that a component is accepted but not run here."""
        self.conditions.mark_false(READY_OF[component], NOT_AVAILABLE, message)

    def absent(self, component: Component) -> None:
        """Forget a component that the spec no longer has."""
        self._components.pop(component, None)
        for type_ in (READY_OF, ROUTE_READY_OF, CONFIGURATION_READY_OF):
            self.conditions.clear(type_[component])

    def model(self, pods: Sequence[Object], ksvc: Object | None) -> bool:
        """Set `modelStatus` from the newest revision's Pods (5.7).

        Returns:
            False when the pass must end without a write and look again in a second.
        """
        ready = sum(1 for pod in pods if pod_state.is_ready(pod))
        # KServe counts into what is there; zero is omitted, failedCopies is always written.
        self._model["copies"] = {"failedCopies": 0, **({"totalCopies": ready} if ready else {})}
        if not pods:
            conditions = ((ksvc or {}).get("status") or {}).get("conditions") or ()
            blocked = any(c.get("status") == FALSE for c in conditions)
            self._target("FailedToLoad" if blocked else "Pending")
            return True
        pod = pod_state.newest_first(pods)[0]
        for init in pod_state.model_inits(pod):
            if (init.get("state") or {}).get("running") is not None:
                if pod_state.last_terminated(init):
                    return False
                self._target("Loading")
                return True
            ended = pod_state.terminated(init)
            if pod_state.failed(ended):
                self._fail(pod_state.failure_of(pod))
                return True
        predictor = self._components.get("predictor", {})
        latest = predictor.get("latestCreatedRevision") == predictor.get("latestReadyRevision")
        if self.conditions.is_true(READY) and latest:
            self._target("Loaded")
            return True
        failure = pod_state.failure_of(pod)
        container = pod_state.container_status(pod, PREDICTOR_CONTAINER)
        if failure is not None and failure.exit_code is not None:
            self._fail(failure)
        elif failure is not None:
            # The cluster shows Pending here; the reason is ours to tell.
            self._target("Pending")
            self._info(failure)
        elif container is not None:
            self._target("Pending")
        return True

    def invalid_spec(self, failure: Failure) -> None:
        """The spec cannot be turned into a Pod (3.3). Conditions stay as they are."""
        self._model["transitionStatus"] = "InvalidSpec"
        states = self._model.setdefault("states", {"activeModelState": ""})
        states["targetModelState"] = "FailedToLoad"
        self._info(failure)

    def reconcile_failed(self, component: Component, message: str) -> None:
        """The component's Knative Service could not be written."""
        self._components.setdefault(component, {})
        self.conditions.mark_false(READY_OF[component], RECONCILE_FAILED, message)

    def running(self) -> None:
        """The service is not stopped."""
        # Not Unknown -> False in steps: the condition is there from the first pass on (5.2).
        self.conditions.mark_false(STOPPED)

    def cross_components(self) -> None:
        """Fold the components' route and configuration conditions (5.2)."""
        present = components_of(self._isvc)
        self._fold(ROUTES_READY, [ROUTE_READY_OF[c] for c in present])
        self._fold(LATEST_DEPLOYMENT_READY, [CONFIGURATION_READY_OF[c] for c in present])

    def ingress(self, *, url: str, address: str) -> None:
        """Set IngressReady, url and address as in Knative mode (5.4).

        Args:
            url: `status.url` once the entry component's URL is known.
            address: `status.address.url`.
        """
        spec = self._isvc["spec"]
        for component in COMPONENTS:
            if spec.get(component) is None:
                continue
            status = self.conditions.status(READY_OF[component])
            if status == TRUE:
                continue
            reason = f"{component.capitalize()} ingress not created"
            if status == FALSE:
                self.conditions.mark_false(INGRESS_READY, reason)
            else:
                self.conditions.mark_unknown(INGRESS_READY, reason)
            break
        if self.component_url:
            self._status["url"] = url
            self._status["address"] = {"url": address}
            self.conditions.mark_true(INGRESS_READY)

    def stop(self) -> None:
        """The stop annotation is set (5.9 G): what ran is gone, conditions say Stopped."""
        for field in ("url", "address", "components", "observedGeneration"):
            self._status.pop(field, None)
        self._components = {}
        self._model = {"transitionStatus": ""}
        spec = self._isvc["spec"]
        for component in READY_OF:
            for type_ in (ROUTE_READY_OF[component], CONFIGURATION_READY_OF[component]):
                self.conditions.clear(type_)
            if spec.get(component) is not None:
                self.conditions.mark_false(READY_OF[component], "Stopped")
        self.conditions.clear(ROUTES_READY)
        self.conditions.clear(LATEST_DEPLOYMENT_READY)
        self.conditions.mark_true(STOPPED)
        self.conditions.mark_false(INGRESS_READY, "Stopped")

    @property
    def failure(self) -> Mapping[str, Any] | None:
        """`lastFailureInfo` as it stands."""
        return self._model.get("lastFailureInfo")

    def finish(self) -> dict[str, Any]:
        """Return the status to write."""
        status = dict(self._status)
        if self._components:
            status["components"] = self._components
        if self._model:
            model = dict(self._model)
            model.setdefault("transitionStatus", "")
            status["modelStatus"] = model
        status["conditions"] = self.conditions.result()
        return status

    def _target(self, state: str) -> None:
        states = self._model.setdefault("states", {})
        states["targetModelState"] = state
        states.setdefault("activeModelState", "")
        match state:
            case "Loaded":
                states["activeModelState"] = "Loaded"
                self._model["transitionStatus"] = "UpToDate"
            case "FailedToLoad":
                self._model["transitionStatus"] = "BlockedByFailedLoad"
            case _:
                self._model["transitionStatus"] = "InProgress"

    def _fail(self, failure: Failure | None) -> None:
        self._target("FailedToLoad")
        if failure is not None:
            self._info(failure)

    def _info(self, failure: Failure) -> None:
        self._model["lastFailureInfo"] = failure.info()

    def _fold(self, type_: str, parts: Sequence[str]) -> None:
        status, reason = TRUE, ""
        for part in parts:
            found = self.conditions.status(part)
            if found != TRUE:
                # The last one is named, as upstream's loop does not stop at the first.
                status, reason = found or UNKNOWN, f"{part} not ready"
        match status:
            case "True":
                self.conditions.mark_true(type_)
            case "False":
                self.conditions.mark_false(type_, reason)
            case _:
                self.conditions.mark_unknown(type_, reason)


def knative_url(component_url: str, component: Component, *, scheme: str) -> str:
    """Return the service's URL: that of its entry component without `-<component>` (4.2).

    A host that contains `-default` loses `-<component>-default` instead, as KServe's leftover rule
    has it.
    """
    host = urlsplit(component_url).netloc
    suffix = f"-{component}-default" if "-default" in host else f"-{component}"
    return f"{scheme}://{host.replace(suffix, '', 1)}"


def cluster_address(isvc: Object) -> str:
    """Return `status.address.url` in Knative mode."""
    return f"http://{name_of(isvc)}.{namespace_of(isvc)}.svc.cluster.local"


def false_conditions(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the types of all False conditions, as the NotReady Event lists them (5.6)."""
    return [str(c["type"]) for c in conditions if c.get("status") == FALSE]


def _put(spec: dict[str, Any], field: str, value: object) -> None:
    if value:
        spec[field] = value
    else:
        spec.pop(field, None)


def _of(entry: Mapping[str, Any], revision: str) -> bool:
    return entry.get("revisionName") == revision
