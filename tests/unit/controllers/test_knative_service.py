"""Knative Service: when a Revision is made, where traffic goes, what the conditions say."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kserve_local.api.meta import Object, get_condition, name_of
from kserve_local.api.names import MANIFEST, SOURCE_URI
from kserve_local.controllers import gradual_rollout, isvc_knative
from kserve_local.controllers import knative_names as names
from kserve_local.controllers import knative_service as k

NOW = "2026-01-01T00:00:00Z"
HOSTS = k.Hosts("example.com")


def ksvc(image: str = "one", **spec: Any) -> Object:
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": "iris-predictor",
            "namespace": "default",
            "uid": "ksvc-uid",
            "generation": 1,
        },
        "spec": {
            "template": {
                "metadata": {"annotations": {"a": "b"}, "labels": {"component": "predictor"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
            "traffic": [{"latestRevision": True, "percent": 100}],
            **spec,
        },
    }


def stored(service: Object, existing: list[Object], ready: str = "True", **why: str) -> Object:
    made = k.plan_revision(service, existing, now=NOW)
    assert made is not None
    made["metadata"] |= {"uid": name_of(made), "generation": 1}
    made["status"] = {
        "observedGeneration": 1,
        "conditions": [{"type": "Ready", "status": ready, **why}],
    }
    return made


def condition(status: dict[str, Any], type_: str) -> tuple[str, str, str]:
    found = get_condition({"status": status}, type_) or {}
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def test_a_revision_holds_the_template_and_knatives_labels() -> None:
    made = stored(ksvc(), [])
    assert name_of(made) == "iris-predictor-00001"
    assert made["metadata"]["labels"][names.CONFIGURATION_GENERATION] == "1"
    assert made["metadata"]["labels"]["component"] == "predictor"
    assert made["spec"]["timeoutSeconds"] == 300
    assert made["spec"]["containerConcurrency"] == 0


def test_only_a_changed_template_makes_a_revision() -> None:
    one = stored(ksvc(), [])
    same = ksvc(traffic=[{"latestRevision": True, "percent": 10}])
    same["metadata"]["labels"] = {"new": "label"}
    assert k.plan_revision(same, [one], now=NOW) is None
    two = k.plan_revision(ksvc("two"), [one], now=NOW)
    assert two is not None
    assert name_of(two) == "iris-predictor-00002"


def from_file(manifest: str | None, uri: str, *more: str) -> Object:
    service = ksvc()
    template = service["spec"]["template"]
    template["metadata"]["annotations"] = {SOURCE_URI: uri} if uri else {}
    if manifest is not None:
        template["metadata"]["annotations"][MANIFEST] = manifest
    if more:
        template["spec"]["initContainers"] = [{"name": "storage-initializer", "args": [*more]}]
    return service


@pytest.mark.parametrize(
    ("uri", "more"), [("./model", ()), ("gs://b/m", ()), ("", ("model", "/mnt/models"))]
)
def test_the_file_of_a_template_makes_no_revision(uri: str, more: tuple[str, ...]) -> None:
    """`apply -f -`, `kubectl apply` and `up` send the same YAML with and without its name."""
    one = stored(from_file("iris.yaml", uri, *more), [])
    for manifest in (None, "other.yaml"):
        assert k.plan_revision(from_file(manifest, uri, *more), [one], now=NOW) is None


def test_another_folder_makes_a_revision_of_a_relative_source_only() -> None:
    sources: list[tuple[str, tuple[str, ...], bool]] = [
        ("./model", (), True),
        ("file://./model", (), True),
        ("", ("gs://b/m", "/a", "model", "/b"), True),
        ("gs://b/m", (), False),
        ("/abs/model", (), False),
        ("", ("gs://b/m", "/a"), False),
        ("", (), False),
    ]
    for uri, more, new in sources:
        one = stored(from_file("iris.yaml", uri, *more), [])
        made = k.plan_revision(from_file("sub/iris.yaml", uri, *more), [one], now=NOW)
        assert (made is not None) is new, (uri, more)


def test_going_back_to_an_older_template_is_a_new_revision() -> None:
    one = stored(ksvc(), [])
    two = stored(ksvc("two"), [one])
    three = k.plan_revision(ksvc(), [one, two], now=NOW)
    assert three is not None
    assert name_of(three) == "iris-predictor-00003"


def test_numbers_go_on_when_revisions_were_deleted() -> None:
    service = ksvc()
    service["status"] = {"latestCreatedRevisionName": "iris-predictor-00007"}
    made = k.plan_revision(service, [], now=NOW)
    assert made is not None
    assert name_of(made) == "iris-predictor-00008"


def test_long_names_are_cut_with_a_digest() -> None:
    name = names.revision_name("x" * 70, 1)
    assert len(name) == 63
    assert name.endswith("-00001")
    assert name != names.revision_name("x" * 71, 1)


def test_before_anything_is_ready_both_conditions_wait() -> None:
    waiting = stored(ksvc(), [], ready="Unknown", reason="Deploying")
    status = k.plan_status(ksvc(), [waiting], hosts=HOSTS, now=NOW)
    assert condition(status, "ConfigurationsReady") == ("Unknown", "", "")
    assert condition(status, "RoutesReady") == (
        "Unknown",
        "RevisionMissing",
        'Configuration "iris-predictor" is waiting for a Revision to become ready.',
    )
    assert condition(status, "Ready")[1] == "RevisionMissing"
    assert "traffic" not in status
    assert status["url"] == "http://iris-predictor.default.example.com"


def test_a_first_revision_that_failed() -> None:
    failed = stored(ksvc(), [], ready="False", reason="ExitCode1", message="Container failed")
    status = k.plan_status(ksvc(), [failed], hosts=HOSTS, now=NOW)
    assert condition(status, "ConfigurationsReady") == (
        "False",
        "RevisionFailed",
        'Revision "iris-predictor-00001" failed with message: Container failed.',
    )
    assert condition(status, "RoutesReady") == (
        "False",
        "RevisionMissing",
        'Configuration "iris-predictor" does not have any ready Revision.',
    )


def test_a_failed_update_keeps_traffic_on_the_last_ready_revision() -> None:
    one = stored(ksvc(), [])
    two = stored(ksvc("two"), [one], ready="False", message="m")
    status = k.plan_status(ksvc("two"), [one, two], hosts=HOSTS, now=NOW)
    assert status["latestCreatedRevisionName"] == "iris-predictor-00002"
    assert status["latestReadyRevisionName"] == "iris-predictor-00001"
    assert status["traffic"] == [
        {"latestRevision": True, "percent": 100, "revisionName": "iris-predictor-00001"}
    ]
    assert condition(status, "RoutesReady")[0] == "True"
    assert condition(status, "Ready")[:2] == ("False", "RevisionFailed")


def test_the_latest_ready_revision_never_goes_back() -> None:
    """A ready Revision that fails later stays the latest; an older ready one does not return."""
    one = stored(ksvc(), [])
    two = stored(ksvc("two"), [one])
    service = ksvc("two")
    service["status"] = k.plan_status(service, [one, two], hosts=HOSTS, now=NOW)
    broken = copy.deepcopy(two)
    broken["status"]["conditions"][0] |= {"status": "False", "message": "crash"}
    status = k.plan_status(service, [one, broken], hosts=HOSTS, now=NOW)
    assert status["latestReadyRevisionName"] == "iris-predictor-00002"
    assert status["traffic"][0]["revisionName"] == "iris-predictor-00002"


def test_a_readiness_of_another_generation_does_not_count() -> None:
    one = stored(ksvc(), [])
    one["metadata"]["generation"] = 2
    status = k.plan_status(ksvc(), [one], hosts=HOSTS, now=NOW)
    assert "latestReadyRevisionName" not in status


@pytest.mark.parametrize(
    ("ready", "status", "message"),
    [
        (None, "False", 'Revision "gone" referenced in traffic not found.'),
        ("False", "False", 'Revision "iris-predictor-00001" failed to become ready.'),
        ("Unknown", "Unknown", 'Revision "iris-predictor-00001" is not yet ready.'),
    ],
)
def test_a_named_target_that_cannot_take_traffic(
    ready: str | None, status: str, message: str
) -> None:
    one = stored(ksvc(), [], ready=ready or "True")
    two = stored(ksvc("two"), [one])
    target = "gone" if ready is None else name_of(one)
    traffic = [
        {"latestRevision": True, "percent": 10},
        {"latestRevision": False, "percent": 90, "revisionName": target, "tag": "prev"},
    ]
    got = k.plan_status(ksvc("two", traffic=traffic), [one, two], hosts=HOSTS, now=NOW)
    assert condition(got, "RoutesReady") == (status, "RevisionMissing", message)


def test_routing_states_keep_zero_percent_and_release_the_rest() -> None:
    one = stored(ksvc(), [])
    two = stored(ksvc("two"), [one])
    three = stored(ksvc("three"), [one, two], ready="Unknown")
    status = {
        "latestCreatedRevisionName": name_of(three),
        "traffic": [{"revisionName": name_of(two), "percent": 0}],
    }
    assert k.routing_states(status, [one, two, three]) == {
        name_of(one): k.RESERVE,
        name_of(two): k.ACTIVE,
        name_of(three): k.PENDING,
    }


def rolling(duration: str, *traffic: tuple[str, int], state: str = "") -> Object:
    """Return a Knative Service whose latest target has this traffic."""
    service = ksvc("two")
    service["metadata"]["annotations"] = {
        "serving.knative.dev/rollout-duration": duration,
        **({gradual_rollout.STATE: state} if state else {}),
    }
    service["status"] = {
        "latestReadyRevisionName": traffic[0][0],
        "traffic": [{"latestRevision": True, "revisionName": r, "percent": p} for r, p in traffic],
    }
    return service


def test_a_gradual_rollout_is_seen_in_traffic_and_conditions() -> None:
    """Behaviour 21's first steps, through the state that is kept in between."""
    one = stored(ksvc(), [])
    two = stored(ksvc("two"), [one])
    service = rolling("60s", (name_of(one), 100))
    seen = []
    for now in (1000.0, 1000.5, 1001.0, 1002.0):
        rollouts = k.plan_rollouts(service, [one, two], now=now)
        status = k.plan_status(service, [one, two], hosts=HOSTS, now=NOW, rollouts=rollouts)
        seen.append([(t["revisionName"], t["percent"]) for t in status["traffic"]])
        assert condition(status, "RoutesReady") == (
            "Unknown",
            "RolloutInProgress",
            "A gradual rollout of the latest revision(s) is in progress.",
        )
        assert condition(status, "Ready")[:2] == ("Unknown", "RolloutInProgress")
        assert all(t["latestRevision"] for t in status["traffic"])
        service["metadata"]["annotations"][gradual_rollout.STATE] = gradual_rollout.to_text(
            rollouts
        )
        service["status"] = status
    assert [dict(step)[name_of(two)] for step in seen] == [1, 1, 3, 5]
    assert all(sum(p for _, p in step) == 100 for step in seen)
    states = k.routing_states(service["status"], [one, two])
    assert set(states.values()) == {k.ACTIVE}
    # At its end, or when the annotation goes, one Revision has it all.
    del service["metadata"]["annotations"]["serving.knative.dev/rollout-duration"]
    assert k.plan_rollouts(service, [one, two], now=1003.0) == {}
    status = k.plan_status(service, [one, two], hosts=HOSTS, now=NOW)
    assert [(t["revisionName"], t["percent"]) for t in status["traffic"]] == [(name_of(two), 100)]
    assert condition(status, "Ready")[0] == "True"


def test_a_canary_may_be_rolled_out_gradually_too() -> None:
    one = stored(ksvc(), [])
    two = stored(ksvc("two"), [one])
    service = rolling("60s", (name_of(one), 100))
    service["spec"]["traffic"] = isvc_knative.traffic(10, rolled_out=name_of(one), tag_latest=False)
    rollouts = k.plan_rollouts(service, [one, two], now=1000.0)
    status = k.plan_status(service, [one, two], hosts=HOSTS, now=NOW, rollouts=rollouts)
    assert [(t["revisionName"], t["percent"], t.get("tag")) for t in status["traffic"]] == [
        (name_of(one), 9, None),
        (name_of(two), 1, None),
        (name_of(one), 90, "prev"),
    ]


def test_the_first_revision_needs_no_rollout() -> None:
    one = stored(ksvc(), [])
    service = ksvc()
    service["metadata"]["annotations"] = {"serving.knative.dev/rollout-duration": "60s"}
    (rollout,) = k.plan_rollouts(service, [one], now=1000.0).values()
    assert rollout.done
    waiting = stored(ksvc(), [], ready="Unknown")
    assert k.plan_rollouts(service, [waiting], now=1000.0) == {}


@pytest.mark.parametrize("state", ["", "{", '{"":{}}'])
def test_a_rollout_whose_state_is_lost_ends(state: str) -> None:
    one = stored(ksvc(), [])
    two = stored(ksvc("two"), [one])
    service = rolling("60s", (name_of(one), 60), (name_of(two), 40), state=state)
    rollouts = k.plan_rollouts(service, [one, two], now=1000.0)
    assert gradual_rollout.next_step(rollouts) is None
    status = k.plan_status(service, [one, two], hosts=HOSTS, now=NOW, rollouts=rollouts)
    assert [(t["revisionName"], t["percent"]) for t in status["traffic"]] == [(name_of(two), 100)]


def test_cluster_local_services_have_no_public_url() -> None:
    service = ksvc()
    service["metadata"]["labels"] = {"networking.knative.dev/visibility": "cluster-local"}
    assert HOSTS.url(service) == "http://iris-predictor.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("canary", "rolled_out", "expected"),
    [
        (None, "", [(100, "")]),
        (None, "r1", [(100, "")]),
        (10, "", [(100, "")]),
        (10, "r1", [(10, ""), (90, "r1")]),
        (0, "r1", [(0, ""), (100, "r1")]),
        (100, "r1", [(100, "")]),
    ],
)
def test_traffic_of_a_canary(
    canary: int | None, rolled_out: str, expected: list[tuple[int, str]]
) -> None:
    block = isvc_knative.traffic(canary, rolled_out=rolled_out, tag_latest=False)
    assert [(t["percent"], t.get("revisionName", "")) for t in block] == expected
    assert [t.get("tag") for t in block[1:]] == ["prev"] * len(block[1:])


def test_tag_routing_names_the_latest() -> None:
    assert isvc_knative.traffic(None, rolled_out="", tag_latest=True) == [
        {"latestRevision": True, "percent": 100, "tag": "latest"}
    ]


def test_scaling_fields_become_annotations() -> None:
    component = {"minReplicas": 0, "maxReplicas": 3, "scaleTarget": 5, "scaleMetric": "rps"}
    given = {"autoscaling.knative.dev/initial-scale": "0", "autoscaling.knative.dev/window": "30s"}
    assert isvc_knative.template_annotations(component, given) == {
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/min-scale": "0",
        "autoscaling.knative.dev/max-scale": "3",
        "autoscaling.knative.dev/target": "5",
        "autoscaling.knative.dev/metric": "rps",
        "autoscaling.knative.dev/window": "30s",
    }
    zero = isvc_knative.template_annotations(component, given, allow_zero=True)
    assert zero["autoscaling.knative.dev/initial-scale"] == "0"
    assert isvc_knative.template_annotations({"maxReplicas": 0}, {}) == {
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
        "autoscaling.knative.dev/min-scale": "1",
    }
