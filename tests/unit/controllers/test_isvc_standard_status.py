"""A component's condition from its Deployment's (control-plane.md 5.3)."""

from __future__ import annotations

import pytest

from kserve_local.controllers.isvc_standard_status import (
    component_condition,
    route_problem,
    waited_for,
)

UP = ("Available", "True", "MinimumReplicasAvailable", "has minimum availability")
DOWN = ("Available", "False", "MinimumReplicasUnavailable", "does not have it")
DONE = ("Progressing", "True", "NewReplicaSetAvailable", "has successfully progressed")
MOVES = ("Progressing", "True", "ReplicaSetUpdated", "is progressing")
LATE = ("Progressing", "False", "ProgressDeadlineExceeded", "has timed out")
REFUSED = ("ReplicaFailure", "True", "FailedCreate", "no such account")
Entry = tuple[str, str, str, str]


@pytest.mark.parametrize(
    ("conditions", "status", "told"),
    [
        ((), "False", None),
        ((UP,), "True", UP),
        ((UP, DONE), "True", DONE),
        ((UP, MOVES), "True", UP),
        ((MOVES,), "Unknown", MOVES),
        ((DOWN, MOVES), "False", DOWN),
        ((DOWN, DONE), "False", DOWN),
        ((DOWN, LATE), "False", DOWN),
        ((UP, LATE), "False", LATE),
        ((DOWN, MOVES, REFUSED), "False", REFUSED),
    ],
)
def test_a_components_condition(
    conditions: tuple[Entry, ...], status: str, told: Entry | None
) -> None:
    fields = ("type", "status", "reason", "message")
    deployment = {
        "metadata": {},
        "status": {"conditions": [dict(zip(fields, c, strict=True)) for c in conditions]},
    }
    wanted = (status, *told[2:]) if told else (status, "", "")
    assert component_condition(deployment) == wanted


def test_an_http_route_is_served_or_says_why_not() -> None:
    assert route_problem({"status": {}}) == ("ParentStatusNotAvailable", "HttpRouteNotReady")
    condition = {"type": "Accepted", "status": "False", "reason": "R", "message": "m"}
    parents = [{"conditions": [condition]}]
    assert route_problem({"status": {"parents": parents}}) == ("R", "m")
    condition["status"] = "True"
    assert route_problem({"status": {"parents": parents}}) is None


def test_what_an_ingress_waits_for() -> None:
    everything = ("predictor", "transformer", "explainer")
    assert waited_for(everything, http_routes=True) == everything
    assert waited_for(everything, http_routes=False) == ("predictor", "transformer")
    assert waited_for(("predictor", "explainer"), http_routes=False) == ("predictor", "explainer")
