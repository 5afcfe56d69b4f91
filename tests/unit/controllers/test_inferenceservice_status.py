"""Status rules of the InferenceService: rollout bookkeeping and modelStatus, row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.controllers import isvc_knative, isvc_status
from kserve_local.controllers.isvc_knative import Component
from kserve_local.controllers.isvc_status import StatusDraft
from kserve_local.controllers.pod_state import Failure

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T00:01:00Z"
ONE, TWO = "iris-predictor-00001", "iris-predictor-00002"


def isvc(status: dict[str, Any] | None = None, **spec: Any) -> Object:
    obj: Object = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "default", "generation": 1},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}}}, **spec},
    }
    if status is not None:
        obj["status"] = status
    return obj


def ksvc(
    created: str = ONE,
    ready: str = ONE,
    traffic: list[dict[str, Any]] | None = None,
    **conditions: str,
) -> Object:
    states = {"ConfigurationsReady": "True", "RoutesReady": "True", "Ready": "True", **conditions}
    status: dict[str, Any] = {
        "observedGeneration": 1,
        "url": "http://iris-predictor.default.example.com",
        "address": {"url": "http://iris-predictor.default.svc.cluster.local"},
        "latestCreatedRevisionName": created,
        "latestReadyRevisionName": ready,
        "traffic": traffic
        if traffic is not None
        else [{"latestRevision": True, "percent": 100, "revisionName": ready}],
        "conditions": [{"type": t, "status": s} for t, s in states.items()],
    }
    return {"metadata": {"name": "iris-predictor", "namespace": "default"}, "status": status}


def pod(
    *,
    name: str = "p",
    created: str = NOW,
    ready: bool = False,
    init: dict[str, Any] | None = None,
    main: dict[str, Any] | None = None,
) -> Object:
    status: dict[str, Any] = {
        "phase": "Running" if ready else "Pending",
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    if init is not None:
        status["initContainerStatuses"] = [{"name": "storage-initializer", **init}]
    if main is not None:
        status["containerStatuses"] = [{"name": "kserve-container", **main}]
    return {"metadata": {"name": name, "creationTimestamp": created}, "status": status}


def ended(message: str = "boom", code: int = 1, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"reason": reason, "exitCode": code, "message": message}}


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff"}}
RUNNING: dict[str, Any] = {"running": {}}


def draft_with(service: Object, status: dict[str, Any] | None = None) -> StatusDraft:
    draft = StatusDraft(isvc(status), now=NOW)
    draft.component("predictor", service)
    return draft


def pass_over(before: Object, service: Object, pods: list[Object], *, now: str = NOW) -> Object:
    """One whole pass as the controller makes it."""
    draft = StatusDraft(before, now=now)
    draft.mode("Knative")
    draft.running()
    draft.component("predictor", service)
    assert draft.model(pods, service)
    draft.cross_components()
    url = isvc_status.knative_url(draft.component_url, "predictor", scheme="http")
    draft.ingress(url=url, address=isvc_status.cluster_address(before))
    return {**before, "status": draft.finish()}


def test_a_pass_that_changes_nothing_gives_the_same_status_at_any_time() -> None:
    """Also while Ready is recomputed several times within the pass: no write, no new time."""
    ready = [pod(ready=True, main={"state": RUNNING, "ready": True})]
    first = pass_over(isvc(), ksvc(), ready)
    second = pass_over(first, ksvc(), ready, now=LATER)
    third = pass_over(second, ksvc(), ready, now=LATER)
    assert second["status"]["modelStatus"]["transitionStatus"] == "UpToDate"
    assert third["status"] == second["status"]
    waiting = ksvc(ready="", traffic=[], ConfigurationsReady="Unknown", RoutesReady="Unknown",
                   Ready="Unknown")  # fmt: skip
    stuck = pass_over(isvc(), waiting, [])
    assert pass_over(stuck, waiting, [], now=LATER)["status"] == stuck["status"]


def test_loaded_comes_one_reconcile_after_ready() -> None:
    ready = [pod(ready=True, main={"state": RUNNING})]
    first = pass_over(isvc(), ksvc(), ready)
    assert first["status"]["modelStatus"]["states"]["targetModelState"] == "Pending"
    second = pass_over(first, ksvc(), ready)
    assert second["status"]["modelStatus"]["states"] == {
        "targetModelState": "Loaded",
        "activeModelState": "Loaded",
    }


def test_scaled_to_zero_stays_ready_with_a_pending_model() -> None:
    """Worked example D."""
    ready = [pod(ready=True, main={"state": RUNNING})]
    loaded = pass_over(pass_over(isvc(), ksvc(), ready), ksvc(), ready)
    zero = pass_over(loaded, ksvc(), [])
    assert zero["status"]["modelStatus"] == {
        "copies": {"failedCopies": 0},
        "states": {"activeModelState": "Loaded", "targetModelState": "Pending"},
        "transitionStatus": "InProgress",
    }
    assert zero["status"]["conditions"] == loaded["status"]["conditions"]
    assert zero["status"]["components"] == loaded["status"]["components"]


@pytest.mark.parametrize(
    ("pods", "target", "transition"),
    [
        ([], "Pending", "InProgress"),
        ([pod(init={"state": RUNNING})], "Loading", "InProgress"),
        ([pod(init={"state": ended()})], "FailedToLoad", "BlockedByFailedLoad"),
        ([pod(init={"state": BACK_OFF, "lastState": ended()})], "FailedToLoad",
         "BlockedByFailedLoad"),
        ([pod(main={"state": ended()})], "FailedToLoad", "BlockedByFailedLoad"),
        ([pod(main={"state": BACK_OFF, "lastState": ended()})], "FailedToLoad",
         "BlockedByFailedLoad"),
        ([pod(main={"state": ended("", 137, "OOMKilled")})], "FailedToLoad",
         "BlockedByFailedLoad"),
        ([pod(main={"state": RUNNING})], "Pending", "InProgress"),
        ([pod(main={"state": {"waiting": {"reason": "PodInitializing"}}})], "Pending",
         "InProgress"),
    ],
)  # fmt: skip
def test_model_states(pods: list[Object], target: str, transition: str) -> None:
    service = ksvc(ready="", traffic=[], Ready="Unknown", RoutesReady="Unknown",
                   ConfigurationsReady="Unknown")  # fmt: skip
    draft = draft_with(service)
    assert draft.model(pods, service)
    model = draft.finish()["modelStatus"]
    assert model["states"]["targetModelState"] == target
    assert model["transitionStatus"] == transition
    if target == "FailedToLoad":
        assert model["lastFailureInfo"]["reason"] == "ModelLoadFailed"
        assert model["lastFailureInfo"]["message"]


def test_no_pods_and_a_false_condition_is_a_failed_load() -> None:
    service = ksvc(ready="", traffic=[], Ready="False", RoutesReady="False")
    draft = draft_with(service)
    draft.model([], service)
    model = draft.finish()["modelStatus"]
    assert model["transitionStatus"] == "BlockedByFailedLoad"
    assert "lastFailureInfo" not in model


def test_a_restarting_storage_initializer_asks_for_another_look() -> None:
    """Between two failures it runs for a moment; the status must not flap to Loading."""
    service = ksvc(ready="", traffic=[])
    draft = draft_with(service)
    assert not draft.model([pod(init={"state": RUNNING, "lastState": ended()})], service)


def test_newest_pod_counts_and_ties_go_by_name() -> None:
    service = ksvc(ready="", traffic=[], Ready="Unknown", RoutesReady="Unknown",
                   ConfigurationsReady="Unknown")  # fmt: skip
    draft = draft_with(service)
    old = pod(name="a", main={"state": ended("old")})
    new = pod(name="b", created=LATER, main={"state": RUNNING})
    draft.model([old, new], service)
    assert draft.finish()["modelStatus"]["states"]["targetModelState"] == "Pending"


def test_last_failure_survives_recovery_and_an_image_that_cannot_be_had_is_told() -> None:
    waiting = {"state": {"waiting": {"reason": "ErrImagePull", "message": "no Docker engine"}}}
    service = ksvc(ready="", traffic=[], Ready="Unknown", RoutesReady="Unknown",
                   ConfigurationsReady="Unknown")  # fmt: skip
    draft = draft_with(service)
    draft.model([pod(main=waiting)], service)
    status = draft.finish()
    assert status["modelStatus"]["states"]["targetModelState"] == "Pending"
    assert status["modelStatus"]["lastFailureInfo"] == {
        "reason": "ModelLoadFailed",
        "message": "ErrImagePull: no Docker engine",
    }
    ready = [pod(ready=True, main={"state": RUNNING})]
    after = pass_over(pass_over(isvc(status), ksvc(), ready), ksvc(), ready)
    assert after["status"]["modelStatus"]["transitionStatus"] == "UpToDate"
    assert "lastFailureInfo" in after["status"]["modelStatus"]


def test_invalid_spec_changes_no_condition() -> None:
    draft = StatusDraft(isvc(), now=NOW)
    draft.running()
    before = copy.deepcopy(draft.conditions.result())
    draft.invalid_spec(Failure("RuntimeDisabled", "Specified runtime is disabled"))
    status = draft.finish()
    assert status["conditions"] == before
    assert status["modelStatus"] == {
        "transitionStatus": "InvalidSpec",
        "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
        "lastFailureInfo": {
            "reason": "RuntimeDisabled",
            "message": "Specified runtime is disabled",
        },
    }


def split(latest: str, percent: int, previous: str) -> list[dict[str, Any]]:
    return [
        {"latestRevision": True, "percent": percent, "revisionName": latest},
        {
            "latestRevision": False,
            "percent": 100 - percent,
            "revisionName": previous,
            "tag": "prev",
        },
    ]


def rolled(latest: str, previous: str = "") -> dict[str, Any]:
    predictor = {"latestRolledoutRevision": latest, "previousRolledoutRevision": previous}
    return {"components": {"predictor": {k: v for k, v in predictor.items() if v}}}


@pytest.mark.parametrize(
    ("before", "service", "latest", "previous"),
    [
        # First rollout, promotion, a running canary.
        ({}, ksvc(), ONE, None),
        (rolled(ONE), ksvc(TWO, TWO), TWO, ONE),
        (rolled(ONE), ksvc(TWO, TWO, split(TWO, 10, ONE)), ONE, None),
        # Rollback after promotion: the split is over one revision, then over two.
        (rolled(TWO, ONE), ksvc(TWO, TWO, split(TWO, 0, TWO)), ONE, ONE),
        (rolled(ONE, ONE), ksvc(TWO, TWO, split(TWO, 0, ONE)), ONE, ONE),
        # Nothing to go back to, and a newest revision that is not ready.
        (rolled(ONE), ksvc(ONE, ONE, split(ONE, 20, ONE)), ONE, None),
        (rolled(ONE, "x"), ksvc(TWO, ONE, split(ONE, 20, ONE)), ONE, "x"),
    ],
)
def test_rollout_bookkeeping(
    before: dict[str, Any], service: Object, latest: str, previous: str | None
) -> None:
    draft = draft_with(service, before)
    predictor = draft.finish()["components"]["predictor"]
    assert predictor.get("latestRolledoutRevision") == latest
    assert predictor.get("previousRolledoutRevision") == previous


@pytest.mark.parametrize(
    ("url", "entry", "expected"),
    [
        ("iris-predictor.default.example.com", "predictor", "iris.default.example.com"),
        ("iris-v2-predictor.ns.example.com", "predictor", "iris-v2.ns.example.com"),
        ("iris-transformer.ns.example.com", "transformer", "iris.ns.example.com"),
        ("my-predictor-transformer.ns.d", "transformer", "my-predictor.ns.d"),
        ("a-default-predictor.ns.d", "predictor", "a-default-predictor.ns.d"),
        ("a-predictor-default.ns.d", "predictor", "a.ns.d"),
    ],
)
def test_url_of_the_service_from_its_entry_component(
    url: str, entry: Component, expected: str
) -> None:
    assert isvc_status.knative_url(f"http://{url}", entry, scheme="http") == f"http://{expected}"


BESIDE: dict[str, Any] = {"transformer": {"containers": [{"image": "t"}]}, "explainer": {"art": {}}}


def component_ksvc(component: str, status: str, reason: str = "") -> Object:
    """A Knative Service whose conditions all have the same status."""
    name = f"iris-{component}"
    types = ("Ready", "RoutesReady", "ConfigurationsReady")
    return {
        "metadata": {"name": name, "generation": 1},
        "status": {
            "observedGeneration": 1,
            "url": f"http://{name}.default.example.com",
            "address": {"url": f"http://{name}.default.svc.cluster.local"},
            "conditions": [{"type": t, "status": status, "reason": reason} for t in types],
        },
    }


def draft_of(*states: str) -> tuple[StatusDraft, dict[str, dict[str, Any]]]:
    """A pass over predictor, transformer and explainer in these states, and its conditions."""
    draft = StatusDraft(isvc(**BESIDE), now=NOW)
    draft.running()
    for component, state in zip(isvc_knative.COMPONENTS, states, strict=True):
        draft.component(component, component_ksvc(component, state))
    draft.cross_components()
    url = isvc_status.knative_url(draft.component_url, "transformer", scheme="http")
    draft.ingress(url=url, address="http://iris.default.svc.cluster.local")
    return draft, {c["type"]: c for c in draft.finish()["conditions"]}


def test_a_service_of_three_components_is_ready_by_its_transformers_url() -> None:
    draft, by_type = draft_of("True", "True", "True")
    status = draft.finish()
    assert status["url"] == "http://iris.default.example.com"
    assert set(status["components"]) == {"predictor", "transformer", "explainer"}
    assert {t for t, c in by_type.items() if c["status"] == "True"} == {
        "Ready", "IngressReady", "RoutesReady", "LatestDeploymentReady",
        "PredictorReady", "PredictorRouteReady", "PredictorConfigurationReady",
        "TransformerReady", "TransformerRouteReady", "TransformerConfigurationReady",
        "ExplainerReady", "ExplainerRoutesReady", "ExplainerConfigurationReady",
    }  # fmt: skip
    assert all(by_type[t]["severity"] == "Info" for t in ("TransformerReady", "ExplainerReady"))


@pytest.mark.parametrize(
    ("states", "ingress", "folded"),
    [
        # Ready hangs on predictor and ingress only; a component's own URL, which a Knative Service
        # has once it was Ready, is what the ingress waits for.
        (
            ("True", "Unknown", "Unknown"),
            ("Unknown", "Transformer"),
            ("Unknown", "ExplainerRoutes"),
        ),
        (("True", "False", "True"), ("False", "Transformer"), ("False", "TransformerRoute")),
        (("False", "Unknown", "False"), ("False", "Predictor"), ("False", "ExplainerRoutes")),
        (("Unknown", "False", "Unknown"), ("Unknown", "Predictor"), ("Unknown", "ExplainerRoutes")),
    ],
)
def test_which_component_the_summing_conditions_name(
    states: tuple[str, ...], ingress: tuple[str, str], folded: tuple[str, str]
) -> None:
    """The ingress names the first that is not Ready, RoutesReady the last one."""
    _, by_type = draft_of(*states)
    found = by_type["IngressReady"]
    expected = (ingress[0], f"{ingress[1]} ingress not created")
    assert (found["status"], found["reason"]) == expected
    found = by_type["RoutesReady"]
    assert (found["status"], found["reason"]) == (folded[0], f"{folded[1]}Ready not ready")


def test_an_explainer_that_is_not_ready_leaves_a_service_with_a_url_ready() -> None:
    """Only predictor and ingress gate Ready, and the ingress is once the entry has a URL."""
    _, by_type = draft_of("True", "True", "False")
    assert by_type["ExplainerReady"]["status"] == "False"
    assert (by_type["IngressReady"]["status"], by_type["Ready"]["status"]) == ("True", "True")


def test_a_stopped_service_says_so_for_each_component() -> None:
    draft, _ = draft_of("True", "True", "True")
    draft.stop()
    status = draft.finish()
    by_type = {c["type"]: c for c in status["conditions"]}
    for type_ in ("PredictorReady", "TransformerReady", "ExplainerReady", "IngressReady"):
        assert (by_type[type_]["status"], by_type[type_]["reason"]) == ("False", "Stopped")
    assert "ExplainerRoutesReady" not in by_type
    assert "components" not in status


def test_what_the_spec_has_no_more_leaves_the_status() -> None:
    before = draft_of("True", "True", "True")[0].finish()
    draft = StatusDraft({**isvc(), "status": before}, now=NOW)
    draft.component("predictor", component_ksvc("predictor", "True"))
    for component in ("transformer", "explainer"):
        draft.absent(component)
    draft.cross_components()
    status = draft.finish()
    assert set(status["components"]) == {"predictor"}
    assert not [c for c in status["conditions"] if c["type"].startswith(("Trans", "Expl"))]
