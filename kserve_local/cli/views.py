"""How an InferenceService or InferenceGraph stands, as a progress line shows it. Pure.

The words for a state are KServe's conditions and model states.
"""

from __future__ import annotations

from dataclasses import dataclass

from kserve_local.api import scheme
from kserve_local.api.meta import Object, condition_is, get_condition
from kserve_local.cli.component_states import states_of

FAILED = frozenset({"BlockedByFailedLoad", "InvalidSpec"})
NOT_IMPLEMENTED = "NotImplemented"
"""Why a condition is False for a part of the spec that is not run here: no wait changes that."""
_TELLING = ("PredictorConfigurationReady", "PredictorReady")


@dataclass(frozen=True, slots=True)
class View:
    """One service as a progress line shows it."""

    state: str
    text: str
    reason: str = ""
    message: str = ""


def view(isvc: Object) -> View:
    """Return the state (`Ready`, `Failed`, `Loading`, `Pending`, `Stopped`) and words for it."""
    if is_graph(isvc):
        return _graph_view(isvc)
    status = isvc.get("status") or {}
    model = status.get("modelStatus") or {}
    parts = states_of(isvc)
    predictor = parts[0] if parts else None
    shown = f"rev {predictor.revision}" if predictor and predictor.revision else ""
    if condition_is(isvc, "Stopped"):
        return View("Stopped", "stopped")
    failure = model.get("lastFailureInfo") or {}
    if model.get("transitionStatus") in FAILED:
        reason, message = str(failure.get("reason", "")), str(failure.get("message", ""))
        if not reason and not message:
            # A Pod that may not even be made is told by conditions alone, as on a cluster.
            reason, message = _condition_that_says(isvc)
        return View("Failed", f"{reason or 'failed'} {shown}".rstrip(), reason, message)
    if condition_is(isvc, "Ready") and all(part.is_current for part in parts):
        return View("Ready", "Ready")
    ready = get_condition(isvc, "Ready") or {}
    reason, message = str(ready.get("reason", "")), str(ready.get("message", ""))
    for part in parts:
        # Of a service that is Ready the predictor is, whatever else is not.
        if part.failed and (part is not predictor or ready.get("status") == "False"):
            reason, message = part.reason or reason, part.message or message
            whose = shown if part is predictor else f"{part.component} rev {part.revision}"
            return View("Failed", f"{reason} {whose}".rstrip(), reason, message)
    for condition in status.get("conditions") or ():
        if condition.get("status") == "False" and condition.get("reason") == NOT_IMPLEMENTED:
            return View("Failed", NOT_IMPLEMENTED, NOT_IMPLEMENTED, str(condition.get("message")))
    state = (model.get("states") or {}).get("targetModelState") or "Pending"
    words = {"Pending": "starting", "Loading": "fetching the model"}.get(state, state.lower())
    if predictor is not None and predictor.is_current:
        for part in parts[1:]:
            if part.revision and not part.is_current:
                text = f"{part.component} rev {part.revision} · starting"
                return View("Loading", text, reason, message)
    return View("Loading", f"predictor {shown} · {words}" if shown else words, reason, message)


def is_graph(obj: Object) -> bool:
    """Whether it is an InferenceGraph, not an InferenceService."""
    return bool(obj.get("kind") == scheme.INFERENCE_GRAPH.kind)


def _graph_view(graph: Object) -> View:
    ready = get_condition(graph, "Ready") or {}
    if condition_is(graph, "Stopped"):
        return View("Stopped", "stopped")
    if ready.get("status") == "True":
        return View("Ready", "Ready")
    reason, message = str(ready.get("reason", "")), str(ready.get("message", ""))
    if ready.get("status") == "False":
        return View("Failed", reason or "failed", reason, message)
    return View("Loading", "waiting for its services" if not ready else "starting", reason, message)


def _condition_that_says(isvc: Object) -> tuple[str, str]:
    """Return reason and message of the condition that explains why a service is not Ready."""
    found = [get_condition(isvc, type_) or {} for type_ in (*_TELLING, "Ready")]
    told = next((c for c in found if c.get("status") == "False" and c.get("message")), {})
    return str(told.get("reason") or ""), str(told.get("message") or "")
