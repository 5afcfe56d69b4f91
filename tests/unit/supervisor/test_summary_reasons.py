"""What `status` says of a service that is not Ready: the most telling place wins."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api.headlines import headline
from kserve_local.controllers.observed import Observed
from kserve_local.controllers.pod_state import Failure
from kserve_local.supervisor.summary import _state, why

FAILED = {"reason": "ModelLoadFailed", "message": "no licence", "exitCode": 1}
TROUBLE = Observed("u", 2, True, "InternalError", "StorageURI not supported: ...")
FINE = Observed("u", 2, True)
REFUSED = {"reason": "Unhealthy", "message": "Readiness probe failed: connection refused"}


def isvc(model: dict[str, Any] | None = None, **conditions: tuple[str, str, str]) -> dict[str, Any]:
    listed = [
        {"type": t, "status": s, "reason": r, "message": m} for t, (s, r, m) in conditions.items()
    ]
    return {"status": {"conditions": listed, "modelStatus": model or {}}}


WAITS = ("Unknown", "RevisionMissing", "waiting")
NOT_CREATED = ("False", "Predictor ingress not created", "")


@pytest.mark.parametrize(
    ("service", "observed", "expected"),
    [
        (isvc(Ready=("True", "", "")), FINE, ("", "")),
        (isvc(Ready=("True", "", "")), None, ("", "")),
        # A serving revision hides nothing: what was asked for last is not there.
        (isvc(Ready=("True", "", "")), TROUBLE, ("InternalError", TROUBLE.message)),
        (
            isvc({"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": FAILED}),
            FINE,
            ("ModelLoadFailed", "no licence"),
        ),
        # The failure is the older spec's.
        (
            isvc({"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": FAILED}),
            TROUBLE,
            ("InternalError", TROUBLE.message),
        ),
        # Here both are of one pass, and the status has the better words.
        (
            isvc({"transitionStatus": "InvalidSpec", "lastFailureInfo": FAILED}),
            TROUBLE,
            ("ModelLoadFailed", "no licence"),
        ),
        # KServe keeps the failure after it is gone; it is no reason any more.
        (
            isvc({"transitionStatus": "UpToDate", "lastFailureInfo": FAILED}, Ready=WAITS),
            FINE,
            ("RevisionMissing", "waiting"),
        ),
        (
            isvc(
                Ready=NOT_CREATED,
                PredictorReady=("False", "RevisionMissing", "none is ready"),
                PredictorConfigurationReady=("False", "RevisionFailed", "no claim"),
            ),
            FINE,
            ("RevisionFailed", "no claim"),
        ),
        (
            isvc(
                Ready=NOT_CREATED,
                PredictorReady=("True", "", ""),
                TransformerReady=("False", "RevisionFailed", "no such image"),
            ),
            FINE,
            ("RevisionFailed", "no such image"),
        ),
        (
            isvc(Ready=NOT_CREATED, PredictorReady=("False", "ReconcileFailed", TROUBLE.message)),
            TROUBLE,
            ("ReconcileFailed", TROUBLE.message),
        ),
        (isvc(Ready=("Unknown", "", "")), TROUBLE, ("InternalError", TROUBLE.message)),
        (isvc(Ready=("False", "Stopped", "")), FINE, ("Stopped", "")),
    ],
)
def test_why(service: dict[str, Any], observed: Observed | None, expected: tuple[str, str]) -> None:
    assert why(service, observed) == expected


def test_a_failed_probe_is_told_where_nothing_else_is_known() -> None:
    waiting = isvc({"transitionStatus": "InProgress"}, Ready=WAITS)
    assert why(waiting, FINE, REFUSED) == ("Unhealthy", REFUSED["message"])
    assert why(isvc(Ready=("True", "", "")), FINE, REFUSED) == ("", "")
    stuck = Failure("ModelLoadFailed", "CreateContainerConfigError: no such key")
    assert why(waiting, FINE, REFUSED, stuck) == (stuck.reason, stuck.message)


def test_what_is_made_first_is_told_while_nothing_has_failed() -> None:
    building = "Building image sklearnserver: Collecting numpy"
    waiting = isvc({"transitionStatus": "InProgress"}, Ready=WAITS)
    assert why(waiting, FINE, None, None, building) == ("ContainerCreating", building)
    assert why(waiting, FINE, REFUSED, None, building) == ("Unhealthy", REFUSED["message"])
    assert why(isvc(Ready=("True", "", "")), FINE, None, None, building) == ("", "")


def test_a_service_that_was_ready_once_and_has_nobody_to_serve_says_why() -> None:
    """KServe leaves it Ready, whatever becomes of its Pods."""
    was_ready = isvc(Ready=("True", "", ""))
    stuck = Failure("ModelLoadFailed", "no model")
    assert why(was_ready, FINE, None, stuck) == ("", "")
    assert why(was_ready, FINE, None, stuck, absent=True) == ("ModelLoadFailed", "no model")


def test_a_component_that_gates_nothing_is_told_all_the_same() -> None:
    """Ready hangs on predictor and ingress; an explainer that failed does not show in it."""
    service = isvc(Ready=("True", "", ""), ExplainerReady=("False", "RevisionFailed", "boom"))
    assert why(service, FINE) == ("", "")
    assert why(service, FINE, absent=True) == ("RevisionFailed", "boom")
    assert _state({"status": "True"}, "RevisionFailed", served=True, wanted=True, failed=True) == (
        "Failed"
    )


@pytest.mark.parametrize(
    ("ready", "reason", "served", "wanted", "state"),
    [
        ("True", "", True, True, "Ready"),
        ("True", "ModelLoadFailed", True, True, "Ready"),  # the newer revision's
        ("True", "", False, False, "Zero"),
        ("True", "", False, True, "Loading"),
        ("True", "ModelLoadFailed", False, True, "Failed"),
        ("False", "X", False, True, "Failed"),
        ("Unknown", "", False, True, "Loading"),
        ("False", "Stopped", False, False, "Stopped"),
    ],
)
def test_only_who_wants_no_replica_is_at_zero(
    ready: str, reason: str, served: bool, wanted: bool, state: str
) -> None:
    assert _state({"status": ready}, reason, served=served, wanted=wanted) == state


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("one line", "one line"),
        (
            "2026-11-29 07:34:44.514 66 modelserver.serve ERROR [serve.py:_load():125] no licence",
            "no licence",
        ),
        ("usage: x\n  [--y]\nx: error: bad\nNext step: look", "x: error: bad"),
        ("Next step: look", "Next step: look"),
    ],
)
def test_the_headline_is_the_line_that_says_most(message: str, line: str) -> None:
    assert headline(message) == line


def test_a_service_of_standard_mode_that_starts_has_not_failed() -> None:
    """Its conditions say False from the first moment on."""
    conditions = [
        {
            "type": "PredictorReady",
            "status": "False",
            "reason": "MinimumReplicasUnavailable",
            "message": "Deployment does not have minimum availability.",
        },
        {"type": "Ready", "status": "False", "reason": "Predictor ingress not created"},
    ]
    isvc = {"metadata": {}, "status": {"conditions": conditions, "deploymentMode": "Standard"}}
    assert why(isvc, absent=True) == ("Predictor ingress not created", "")
    stuck = Failure("ModelLoadFailed", "no such file")
    assert why(isvc, stuck=stuck, absent=True) == ("ModelLoadFailed", "no such file")
