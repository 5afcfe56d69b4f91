"""What `up` and `wait` make of a service of several components."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.cli.component_states import revision_of_interest, states_of
from kserve_local.cli.views import view


def service(ready: str = "True", **components: str) -> dict[str, Any]:
    """A service whose predictor is Ready; a component's word: ready, starting, updating, failed."""
    conditions: list[dict[str, Any]] = [{"type": "Ready", "status": ready}]
    told: dict[str, Any] = {}
    for component, word in {"predictor": "ready", **components}.items():
        name = f"iris-{component}-0000"
        told[component] = {
            "latestCreatedRevision": f"{name}{2 if word == 'updating' else 1}",
            "latestReadyRevision": f"{name}1" if word in ("ready", "updating") else "",
        }
        kind = component.capitalize()
        status = {"ready": "True", "failed": "False"}.get(word, "Unknown")
        failure = {"reason": "RevisionFailed", "message": "boom"} if word == "failed" else {}
        conditions += [
            {"type": type_, "status": status, **failure}
            for type_ in (f"{kind}Ready", f"{kind}ConfigurationReady")
        ]
    return {
        "spec": {c: {} for c in told},
        "status": {
            "conditions": conditions,
            "components": told,
            "modelStatus": {
                "transitionStatus": "UpToDate",
                "states": {"targetModelState": "Loaded"},
            },
        },
    }


@pytest.mark.parametrize(
    ("isvc", "state", "text"),
    [
        (service(), "Ready", "Ready"),
        (service(transformer="ready", explainer="ready"), "Ready", "Ready"),
        # KServe says Ready when predictor and ingress are; the rest of what was asked for is waited
        # for all the same.
        (service(explainer="starting"), "Loading", "explainer rev 00001 · starting"),
        (service(transformer="updating"), "Loading", "transformer rev 00002 · starting"),
        (
            service(ready="Unknown", transformer="starting"),
            "Loading",
            "transformer rev 00001 · starting",
        ),
        (service(explainer="failed"), "Failed", "RevisionFailed explainer rev 00001"),
        (
            service(ready="False", transformer="failed"),
            "Failed",
            "RevisionFailed transformer rev 00001",
        ),
        (
            service(ready="Unknown", predictor="starting", transformer="starting"),
            "Loading",
            "predictor rev 00001 · loaded",
        ),
    ],
)
def test_a_service_is_ready_with_all_its_components(
    isvc: dict[str, Any], state: str, text: str
) -> None:
    seen = view(isvc)
    assert (seen.state, seen.text) == (state, text)
    assert seen.message == ("boom" if state == "Failed" else "")


def test_the_log_that_is_shown_is_the_failed_components() -> None:
    failed = service(transformer="ready", explainer="failed")
    assert revision_of_interest(failed) == "iris-explainer-00001"
    assert revision_of_interest(service(transformer="ready")) == "iris-predictor-00001"
    assert revision_of_interest({}) == ""
    assert [s.component for s in states_of(failed)] == ["predictor", "transformer", "explainer"]
