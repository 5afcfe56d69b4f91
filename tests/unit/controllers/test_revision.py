"""Revision: its Deployment, and conditions in Knative's words."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api.meta import Object, get_condition
from kserve_local.api.names import SCALE
from kserve_local.controllers import knative_names as names
from kserve_local.controllers import revision as r

NOW = "2026-01-01T00:00:00Z"


def revision(
    state: str = "active", status: dict[str, Any] | None = None, **annotations: str
) -> Object:
    obj: Object = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Revision",
        "metadata": {
            "name": "iris-predictor-00001",
            "namespace": "default",
            "uid": "rev-uid",
            "generation": 1,
            "labels": {
                names.CONFIGURATION: "iris-predictor",
                names.SERVICE: "iris-predictor",
                names.ROUTING_STATE: state,
                "serving.kserve.io/inferenceservice": "iris",
            },
            "annotations": {
                "autoscaling.knative.dev/min-scale": "1",
                **{f"autoscaling.knative.dev/{k.replace('_', '-')}": v
                   for k, v in annotations.items()},
                names.TEMPLATE_HASH: "x",
                "kserve-local.dev/manifest": "iris.yaml",
            },
        },
        "spec": {
            "containerConcurrency": 2,
            "timeoutSeconds": 60,
            "enableServiceLinks": False,
            "containers": [{"name": "kserve-container", "image": "sk"}],
        },
    }  # fmt: skip
    if status is not None:
        obj["status"] = status
    return obj


def deployed(replicas: int = 1, available: int = 0, **conditions: dict[str, Any]) -> Object:
    return {
        "spec": {"replicas": replicas},
        "status": {
            "availableReplicas": available,
            "conditions": [{"type": t, **c} for t, c in conditions.items()],
        },
    }


def pod(container: dict[str, Any]) -> Object:
    return {
        "metadata": {"name": "p", "creationTimestamp": NOW},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "kserve-container", **container}],
        },
    }


def condition(status: dict[str, Any], type_: str) -> tuple[str, str, str]:
    found = get_condition({"status": status}, type_) or {}
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


@pytest.mark.parametrize(
    ("state", "annotations", "replicas"),
    [
        ("active", {}, 1),
        ("pending", {}, 1),
        ("reserve", {}, 0),
        ("active", {"min_scale": "0"}, 1),
        ("active", {"min_scale": "3"}, 3),
        ("active", {"min_scale": "0", "initial_scale": "2"}, 2),
        ("active", {"initial_scale": "5", "max_scale": "2"}, 2),
        ("active", {"initial_scale": "no number"}, 1),
        ("active", {"min_scale": "0", "initial_scale": "0"}, 0),
    ],
)
def test_what_a_revision_starts_with(
    state: str, annotations: dict[str, str], replicas: int
) -> None:
    assert r.replicas(revision(state, **annotations), None) == replicas


@pytest.mark.parametrize(
    ("state", "desired", "override", "replicas"),
    [
        ("active", 4, "", 4),
        ("active", 0, "", 0),
        ("active", -1, "", 1),
        ("reserve", 4, "", 0),
        ("reserve", 2, "2", 0),
        ("reserve", 0, "0", 0),
        ("active", 0, "0", 0),
    ],
)
def test_replicas_are_the_autoscalers(
    state: str, desired: int, override: str, replicas: int
) -> None:
    autoscaler: Object = {
        "metadata": {"annotations": {SCALE: override} if override else {}},
        "status": {"annotations": {"kserve-local.dev/replicas": str(desired)}},
    }
    assert r.replicas(revision(state), autoscaler) == replicas


@pytest.mark.parametrize(
    ("state", "reach"), [("active", "Reachable"), ("reserve", "Unreachable"), ("pending", None)]
)
def test_the_autoscaler_is_what_a_cluster_shows(state: str, reach: str | None) -> None:
    made = r.autoscaler_for(revision(state, target="5"))
    assert (made["apiVersion"], made["kind"]) == (
        "autoscaling.internal.knative.dev/v1alpha1",
        "PodAutoscaler",
    )
    assert made["metadata"]["name"] == "iris-predictor-00001"
    assert made["metadata"]["annotations"] == {
        "autoscaling.knative.dev/min-scale": "1",
        "autoscaling.knative.dev/target": "5",
    }
    assert names.ROUTING_STATE not in made["metadata"]["labels"]
    assert made["spec"].get("reachability") == reach
    assert made["spec"]["containerConcurrency"] == 2
    assert made["spec"]["scaleTargetRef"]["name"] == "iris-predictor-00001-deployment"


def test_the_deployment_is_what_a_cluster_shows() -> None:
    made = r.deployment_for(revision(), replicas=1, progress_deadline=600.0)
    assert made["metadata"]["name"] == "iris-predictor-00001-deployment"
    spec = made["spec"]
    assert spec["progressDeadlineSeconds"] == 600
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    labels = spec["template"]["metadata"]["labels"]
    assert labels[names.REVISION] == "iris-predictor-00001"
    assert labels[names.REVISION_UID] == "rev-uid"
    assert labels["app"] == "iris-predictor-00001"
    assert names.ROUTING_STATE not in labels
    annotations = spec["template"]["metadata"]["annotations"]
    assert annotations["kserve-local.dev/manifest"] == "iris.yaml"
    assert names.TEMPLATE_HASH not in annotations
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_the_pod_changes_with_the_revision_only_not_with_its_routing() -> None:
    one = r.deployment_for(revision("active"), replicas=1, progress_deadline=600)
    two = r.deployment_for(revision("reserve"), replicas=1, progress_deadline=600)
    assert one["spec"]["template"] == two["spec"]["template"]


def test_the_serving_container_gets_what_queue_proxy_would_do() -> None:
    spec = r.pod_spec(revision())
    (container,) = spec["containers"]
    assert container["ports"] == [{"name": "user-port", "containerPort": 8080, "protocol": "TCP"}]
    assert container["readinessProbe"]["tcpSocket"] == {"port": 8080}
    assert {e["name"]: e["value"] for e in container["env"]} == {
        "PORT": "8080",
        "K_REVISION": "iris-predictor-00001",
        "K_CONFIGURATION": "iris-predictor",
        "K_SERVICE": "iris-predictor",
    }
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert spec["terminationGracePeriodSeconds"] == 60
    assert "containerConcurrency" not in spec
    assert "timeoutSeconds" not in spec


def test_collocation_serves_from_the_container_with_ports() -> None:
    obj = revision()
    obj["spec"]["containers"].append(
        {
            "name": "transformer-container",
            "image": "t",
            "ports": [{"containerPort": 9000}],
            "readinessProbe": {"httpGet": {"path": "/ready"}},
            "env": [{"name": "PORT", "value": "1"}],
        }
    )
    predictor, transformer = r.pod_spec(obj)["containers"]
    assert "readinessProbe" not in predictor
    assert transformer["readinessProbe"]["httpGet"] == {"path": "/ready", "port": 9000}
    assert transformer["env"][0] == {"name": "PORT", "value": "1"}
    assert [e["name"] for e in transformer["env"]].count("PORT") == 1


def test_deploying_then_ready_then_idle() -> None:
    status = r.plan_status(revision(), deployed(), [], now=NOW)
    assert condition(status, "Ready")[:2] == ("Unknown", "Deploying")
    assert condition(status, "Active")[:2] == ("Unknown", "Queued")
    status = r.plan_status(revision(status=status), deployed(1, 1), [], now=NOW)
    assert condition(status, "Ready") == ("True", "", "")
    assert condition(status, "Active")[0] == "True"
    assert (status["actualReplicas"], status["desiredReplicas"]) == (1, 1)
    status = r.plan_status(revision("reserve", status), deployed(0, 0), [], now=NOW)
    assert condition(status, "Ready")[0] == "True"
    assert condition(status, "Active") == (
        "False",
        "NoTraffic",
        "The target is not receiving traffic.",
    )


def test_an_exiting_container_is_unhealthy_with_its_exit_code() -> None:
    crash = pod(
        {
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 3, "message": "no model"}},
        }
    )
    status = r.plan_status(revision(), deployed(), [crash], now=NOW)
    assert condition(status, "ContainerHealthy") == (
        "False",
        "ExitCode3",
        "Container failed with: no model",
    )
    assert condition(status, "Ready") == ("False", "ExitCode3", "Container failed with: no model")
    restarting = pod(
        {
            "state": {"running": {"startedAt": NOW}},
            "lastState": {"terminated": {"exitCode": 3, "message": "no model"}},
        }
    )
    status = r.plan_status(revision(status=status), deployed(), [restarting], now=NOW)
    assert condition(status, "ContainerHealthy")[0] == "False"
    status = r.plan_status(revision(status=status), deployed(1, 1), [restarting], now=NOW)
    assert condition(status, "Ready")[0] == "True"


def test_a_fresh_pod_begins_anew_after_a_failed_one() -> None:
    failed = pod({"state": {"terminated": {"exitCode": 1, "message": "no model"}}})
    status = r.plan_status(revision(), deployed(), [failed], now=NOW)
    status = r.plan_status(revision(status=status), deployed(), [], now=NOW)
    assert condition(status, "ContainerHealthy")[0] == "False"
    fresh = pod({"state": {"waiting": {"reason": "ContainerCreating"}}})
    status = r.plan_status(revision(status=status), deployed(), [fresh], now=NOW)
    assert condition(status, "Ready")[:2] == ("Unknown", "Deploying")


def test_an_exit_without_words_still_says_something() -> None:
    crash = pod({"state": {"terminated": {"exitCode": 0}}})
    status = r.plan_status(revision(), deployed(), [crash], now=NOW)
    assert condition(status, "ContainerHealthy")[1:] == (
        "ExitCode0",
        "Container failed with: container exited with no error",
    )


def test_the_deadline_makes_resources_unavailable() -> None:
    late = {
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": 'ReplicaSet "x" has timed out progressing.',
    }
    waiting = pod(
        {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}}}
    )
    silent = pod({"state": {"waiting": {"reason": "PodInitializing"}}})
    status = r.plan_status(revision(), deployed(Progressing=late), [silent], now=NOW)
    assert condition(status, "Ready") == ("False", late["reason"], late["message"])
    status = r.plan_status(revision(), deployed(Progressing=late), [waiting], now=NOW)
    assert condition(status, "ResourcesAvailable") == (
        "False",
        "CreateContainerConfigError",
        "no secret",
    )


def test_a_pod_that_cannot_be_placed_says_why() -> None:
    unplaced = pod({"state": {"waiting": {"reason": "ContainerCreating"}}})
    unplaced["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        }
    ]
    status = r.plan_status(revision(), deployed(), [unplaced], now=NOW)
    assert condition(status, "Ready")[1] == "Unschedulable"


def test_refused_pods_fail_the_revision() -> None:
    refused = {"status": "True", "reason": "FailedCreate", "message": "secret not found"}
    status = r.plan_status(revision(), deployed(ReplicaFailure=refused), [], now=NOW)
    assert condition(status, "Ready") == ("False", "FailedCreate", "secret not found")


def test_an_image_that_cannot_be_had_fails_the_revision_at_once() -> None:
    state = {"waiting": {"reason": "ErrImagePull", "message": "no Docker engine"}}
    missing = pod({"image": "me/model:1", "state": state})
    status = r.plan_status(revision(), deployed(), [missing], now=NOW)
    assert condition(status, "Ready") == (
        "False",
        "ContainerMissing",
        'Unable to fetch image "me/model:1": no Docker engine',
    )
