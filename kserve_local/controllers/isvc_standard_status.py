"""What differs in the status of an InferenceService of Standard mode. Pure.

Copies KServe v0.20 (PropagateRawStatus, the canaries' part of components/predictor.go, the ingress
reconcilers; control-plane.md 5.3, 5.4, 6.2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kserve_local.api.meta import Object, get_condition
from kserve_local.controllers import isvc_canary
from kserve_local.controllers.isvc_canary import Canary
from kserve_local.controllers.isvc_knative import COMPONENTS, Component
from kserve_local.controllers.isvc_status import INGRESS_READY, READY_OF, StatusDraft
from kserve_local.reconcile.conditions import FALSE, TRUE, UNKNOWN

CANARY_READY = "CanaryPredictorReady"
NO_ROUTE = "HttpRouteNotReady"
NO_PARENTS = "ParentStatusNotAvailable"


STILL_COMING = ("", "MinimumReplicasUnavailable")
"""Reasons of a component that is not ready, also where nothing is wrong with it."""


def component_condition(deployment: Object) -> tuple[str, str, str]:
    """Return status, reason and message of a component from its Deployment's conditions.

    Later rules override earlier ones.
    """
    found = (FALSE, "", "")
    available = get_condition(deployment, "Available") or {}
    progressing = get_condition(deployment, "Progressing") or {}
    failed = get_condition(deployment, "ReplicaFailure") or {}

    def told(status: str, condition: Mapping[str, Any]) -> tuple[str, str, str]:
        return status, str(condition.get("reason", "")), str(condition.get("message", ""))

    if available.get("status") == TRUE:
        found = told(TRUE, available)
    if progressing.get("status") == FALSE:
        if progressing.get("message"):
            found = told(FALSE, progressing)
    elif progressing.get("status") == TRUE:
        if progressing.get("reason") == "NewReplicaSetAvailable":
            found = told(TRUE, progressing)
        elif available.get("status") != TRUE:
            found = told(UNKNOWN, progressing)
    if available.get("status") == FALSE:
        found = told(FALSE, available)
    if failed.get("status") == TRUE:
        found = told(FALSE, failed)
    return found


def route_problem(route: Object | None) -> tuple[str, str] | None:
    """Return reason and message of an HTTPRoute that is not served; None: it is."""
    parents = ((route or {}).get("status") or {}).get("parents") or ()
    if not parents:
        return NO_PARENTS, NO_ROUTE
    for parent in parents:
        for condition in parent.get("conditions") or ():
            if condition.get("status") == FALSE:
                return str(condition.get("reason", "")), str(condition.get("message", ""))
    return None


class StandardDraft(StatusDraft):
    """One pass's status of a service of Standard mode."""

    @property
    def ready_canaries(self) -> frozenset[str]:
        """Names of the canaries that take requests."""
        statuses = self._status.get("canaryStatuses") or ()
        return frozenset(str(s["name"]) for s in statuses if s.get("ready"))

    @property
    def is_blocked(self) -> bool:
        """Whether the newest Pod's model cannot be loaded."""
        return self._model.get("transitionStatus") == "BlockedByFailedLoad"

    def workload(self, component: Component, deployment: Object, url: str) -> None:
        """Take over what a component's Deployment says.

        Args:
            url: The component's, shown once it is ready.
        """
        spec = self._components.setdefault(component, {})
        status, reason, message = component_condition(deployment)
        type_ = READY_OF[component]
        if status == TRUE:
            spec["url"] = url
            self.conditions.mark_true(type_, reason, message)
        elif status == FALSE:
            self.conditions.mark_false(type_, reason, message)
        else:
            self.conditions.mark_unknown(type_, reason, message)
        seen = (deployment.get("status") or {}).get("observedGeneration")
        if seen:
            self._status["observedGeneration"] = seen

    def canaries(self, canaries: Sequence[Canary], ready: Collection[str]) -> None:
        """Set how the canaries stand."""
        if not canaries:
            self._status.pop("canaryStatuses", None)
            self.conditions.clear(CANARY_READY)
            return
        self._status["canaryStatuses"] = isvc_canary.statuses(canaries, ready)
        if all(c.name in ready for c in canaries):
            self.conditions.mark_true(CANARY_READY, "AllCanariesReady")
        else:
            self.conditions.mark_false(CANARY_READY, "CanariesNotReady")

    def stop(self) -> None:
        """The stop annotation is set; canaries are stopped, too."""
        super().stop()
        self._status.pop("canaryStatuses", None)
        if self._isvc["spec"].get("canary"):
            self.conditions.mark_false(CANARY_READY, "Stopped")
        else:
            self.conditions.clear(CANARY_READY)

    def waits_for(self, components: Sequence[Component]) -> bool:
        """Say that the ingress waits for the first of these that is not ready; False: for none."""
        for component in components:
            if not self.conditions.is_true(READY_OF[component]):
                reason = f"{component.capitalize()} ingress not created"
                self.conditions.mark_false(INGRESS_READY, reason)
                return True
        return False

    def no_ingress(self, reason: str, message: str) -> None:
        """The ingress is not there or not served."""
        self.conditions.mark_false(INGRESS_READY, reason, message)

    def reachable(self, *, url: str, address: str) -> None:
        """The service can be called, or is meant to be called from inside only."""
        self.conditions.mark_true(INGRESS_READY)
        self._status["url"] = url
        self._status["address"] = {"url": address}


def waited_for(present: Collection[Component], *, http_routes: bool) -> tuple[Component, ...]:
    """Return the components that must be ready before the ingress is written, in order.

    An Ingress with a transformer does not wait for an explainer.
    """
    if http_routes:
        order: tuple[Component, ...] = ("predictor", "transformer", "explainer")
        return tuple(c for c in order if c in present)
    second: Component = "transformer" if "transformer" in present else "explainer"
    return tuple(c for c in COMPONENTS if c in present and c in ("predictor", second))
