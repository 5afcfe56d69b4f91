"""Status rules of the InferenceService: rollout bookkeeping and modelStatus, row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.controllers import isvc_status
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
    url = isvc_status.knative_url(draft.component_url, scheme="http")
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
    ("url", "expected"),
    [
        ("http://iris-predictor.default.example.com", "http://iris.default.example.com"),
        ("http://iris-v2-predictor.ns.example.com", "http://iris-v2.ns.example.com"),
        ("http://iris-transformer.ns.example.com", "http://iris.ns.example.com"),
        (
            "http://a-default-predictor.ns.example.com",
            "http://a-default-predictor.ns.example.com",
        ),
        ("http://a-predictor-default.ns.example.com", "http://a.ns.example.com"),
    ],
)
def test_url_of_the_service_from_its_component(url: str, expected: str) -> None:
    assert isvc_status.knative_url(url, scheme="http") == expected


def test_a_transformer_that_is_not_run_keeps_the_service_from_being_ready() -> None:
    before = isvc(transformer={"containers": [{"image": "t"}]})
    draft = StatusDraft(before, now=NOW)
    draft.running()
    draft.component("predictor", ksvc())
    draft.not_available("transformer", "not yet")
    draft.cross_components()
    draft.ingress(url="", address="")
    by_type = {c["type"]: c for c in draft.finish()["conditions"]}
    assert by_type["TransformerReady"]["severity"] == "Info"
    assert by_type["IngressReady"]["reason"] == "Transformer ingress not created"
    assert by_type["Ready"]["status"] == "False"
