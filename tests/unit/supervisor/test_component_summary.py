"""Components in `status`: which one a reason is about, and which hop failed a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kserve_local.api.scheme import POD_AUTOSCALER
from kserve_local.controllers.isvc_knative import Component
from kserve_local.interfaces.stats import RequestStat
from kserve_local.store.store import open_store
from kserve_local.supervisor.component_summary import Part, blamed, failing_hops, given_up
from kserve_local.supervisor.stats import Stats
from kserve_local.supervisor.summary import failing_steps


def part(component: Component, **more: Any) -> Part:
    values: dict[str, Any] = {
        "name": f"iris-{component}", "pods": (), "revisions": ({"name": "r", "replicas": 1},),
        "wanted": True, "served": True, "failed": False, "unhealthy": None, "stuck": None,
        "preparing": "", "reason": "", "message": "", "url": "", "memory": 0, "rps": 0.0,
        "p95": 0.0, "failure": None, "last_start": None, **more,
    }  # fmt: skip
    return Part(component=component, **values)


def test_states() -> None:
    assert part("predictor").state == "Ready"
    assert part("predictor", served=False).state == "Loading"
    assert part("predictor", served=False, wanted=False).state == "Zero"
    assert part("predictor", served=False, wanted=False, revisions=()).state == "Loading"
    assert part("predictor", failed=True).state == "Failed"


def test_a_reason_is_the_components_whose_it_is() -> None:
    parts = [part("predictor"), part("transformer", reason="R", message="boom")]
    assert blamed(parts, "R", "boom") == "transformer"
    assert blamed(parts, "Predictor ingress not created", "") == ""
    assert blamed(parts, "", "") == ""
    assert blamed(parts[1:], "R", "boom") == ""


def test_failing_hops_are_told_from_the_model_outwards() -> None:
    parts = [
        part("predictor", failure=(2.0, "POST /x was answered with 404")),
        part("transformer", failure=(1.0, "POST /y was answered with 500")),
        part("explainer"),
    ]
    (line,) = failing_hops(parts, "iris")
    assert line == (
        "a request failed 1 s ago. predictor: POST /x was answered with 404; transformer: POST /y "
        "was answered with 500. See kserve-local logs iris --component predictor or --component "
        "transformer"
    )
    assert failing_hops(parts[:1], "iris") == []
    assert failing_hops([part("predictor"), part("transformer")], "iris") == []


def test_a_failure_is_remembered_for_a_minute() -> None:
    now = 100.0
    stats = Stats(lambda: now)
    stat = RequestStat("default/r", 1.0, 0.0, 1)
    assert stats.failure("default/r") is None
    stats.record((RequestStat("default/r", 1.0, 0.0, 1, failure="boom"),))
    now = 110.0
    stats.record((stat,))
    assert stats.failure("default/r") == (10.0, "boom")
    now = 161.0
    assert stats.failure("default/r") is None


def test_a_graphs_failed_request_is_told() -> None:
    now = [100.0]
    stats = Stats(lambda: now[0])
    assert failing_steps(["default/g-00001"], "g", stats) == []
    told = "POST / was answered with 500"
    stats.record((RequestStat("default/g-00001", 1.0, 0.0, 1, failure=told),))
    now[0] += 5
    assert failing_steps(["default/g-00002", "default/g-00001"], "g", stats) == [
        f"a request failed 5 s ago. {told}. See kserve-local predict g @FILE --trace"
    ]


async def test_a_start_that_was_given_up_is_told_at_zero(tmp_path: Path) -> None:
    """Its Pods are gone, and with them all that says why there is none."""
    iris = {"metadata": {"name": "iris", "namespace": "default"}}
    async with open_store(tmp_path / "state.db", collect=False) as store:
        for name, reason in (("one", "TimedOut"), ("two", "NoTraffic")):
            made = await store.create(
                {
                    "apiVersion": POD_AUTOSCALER.api_version,
                    "kind": POD_AUTOSCALER.kind,
                    "metadata": {"name": name, "namespace": "default"},
                }
            )
            active = {"type": "Active", "status": "False", "reason": reason}
            await store.update_status({**made, "status": {"conditions": [active]}})
        (line,) = given_up(store, iris, [{"name": n} for n in ("one", "two", "three")])
    assert line.startswith("one is at zero because its last start was given up")
