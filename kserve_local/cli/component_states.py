"""How far each component of a service is, as its InferenceService tells. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kserve_local.api.inferenceservice import COMPONENTS
from kserve_local.api.meta import Object, condition_is, get_condition

_GIVEN_UP = ("ReconcileFailed", "FailedCreate", "ProgressDeadlineExceeded")
"""Reasons by which a component of Standard mode, which has no Configuration, has failed."""


@dataclass(frozen=True, slots=True)
class ComponentState:
    """One component.

    Args:
        revision: The newest one's number, empty before there is one.
        latest: Its whole name.
        is_current: The newest revision is Ready and takes the component's requests.
        failed: The newest revision cannot be had; then reason and message say why.
    """

    component: str
    revision: str
    latest: str
    is_current: bool
    failed: bool = False
    reason: str = ""
    message: str = ""


def states_of(isvc: Object) -> list[ComponentState]:
    """Return the components that the spec has, the predictor first."""
    told = (isvc.get("status") or {}).get("components") or {}
    found = []
    for component in COMPONENTS:
        if (isvc.get("spec") or {}).get(component) is None:
            continue
        status = told.get(component) or {}
        latest = str(status.get("latestCreatedRevision") or "")
        kind = component.capitalize()
        configuration = get_condition(isvc, f"{kind}ConfigurationReady") or {}
        own = get_condition(isvc, f"{kind}Ready") or {}
        if own.get("reason") in _GIVEN_UP:
            configuration = own
        current = latest == str(status.get("latestReadyRevision") or "")
        found.append(
            ComponentState(
                component=component,
                revision=latest.rpartition("-")[2],
                latest=latest,
                is_current=current and condition_is(isvc, f"{kind}Ready"),
                failed=configuration.get("status") == "False",
                reason=str(configuration.get("reason") or ""),
                message=str(configuration.get("message") or ""),
            )
        )
    return found


def revision_of_interest(isvc: Object) -> str:
    """Return the newest revision of the component that failed, else of the predictor."""
    states = states_of(isvc)
    failed = [s.latest for s in states if s.failed]
    return next(iter(failed), states[0].latest if states else "")
