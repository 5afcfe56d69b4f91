"""What the integration tests of Standard mode share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kserve_local.api.meta import Object, get_condition
from tests.integration.test_chain import iris

MODE = "serving.kserve.io/deploymentMode"
CLASS = "serving.kserve.io/autoscalerClass"


def standard(
    name: str = "sklearn-iris", *, annotations: dict[str, str] | None = None, **predictor: Any
) -> Object:
    """Return an InferenceService of Standard mode."""
    isvc = iris(name, **predictor)
    isvc["metadata"]["annotations"] = {MODE: "Standard", **(annotations or {})}
    return isvc


def condition(obj: Object, type_: str) -> dict[str, Any]:
    """Return a condition without its time, empty if it is not there."""
    found = get_condition(obj, type_) or {}
    return {k: v for k, v in found.items() if k != "lastTransitionTime"}


def has(type_: str, status: str, reason: str = "") -> Callable[[Object], bool]:
    """Return whether an object has a condition like that."""

    def holds(obj: Object) -> bool:
        found = get_condition(obj, type_) or {}
        return found.get("status") == status and reason in ("", found.get("reason"))

    return holds
