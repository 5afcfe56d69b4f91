"""`kubectl get` shows what it shows on a cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from kserve_local.api import scheme
from kserve_local.apiserver.durations import human
from kserve_local.apiserver.tables import pod_status, table

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)


def shown(kind: scheme.ResourceType, obj: dict[str, Any], *, wide: bool = False) -> dict[str, Any]:
    metadata = {"name": "x", "namespace": "n", "creationTimestamp": "2026-01-01T00:58:00Z"}
    made = table(
        kind.id,
        [{"metadata": {**metadata, **obj.pop("metadata", {})}, **obj}],
        include="Metadata",
        resource_version="5",
        now=NOW,
        api_version=kind.api_version,
    )
    columns = made["columnDefinitions"]
    cells = made["rows"][0]["cells"]
    assert len(columns) == len(cells)
    return {
        column["name"]: cell
        for column, cell in zip(columns, cells, strict=True)
        if wide or column["priority"] == 0
    }


def test_inference_services() -> None:
    traffic = [
        {"latestRevision": True, "percent": 20, "revisionName": "x-predictor-00002"},
        {"tag": "prev", "percent": 80, "revisionName": "x-predictor-00001"},
    ]
    status = {
        "url": "http://x.n.example.com",
        "conditions": [{"type": "Ready", "status": "True"}],
        "components": {"predictor": {"traffic": traffic}},
    }
    assert shown(scheme.INFERENCE_SERVICE, {"status": status}) == {
        "Name": "x",
        "URL": "http://x.n.example.com",
        "Ready": "True",
        "Prev": 80,
        "Latest": 20,
        "PrevRolledoutRevision": "x-predictor-00001",
        "LatestReadyRevision": "x-predictor-00002",
        "Age": "2m",
    }


def test_a_new_inference_service_has_empty_cells() -> None:
    cells = shown(scheme.INFERENCE_SERVICE, {})
    assert (cells["URL"], cells["Ready"], cells["Prev"]) == ("", "", None)


def test_runtimes_show_the_first_of_several_values() -> None:
    spec = {
        "supportedModelFormats": [{"name": "sklearn"}, {"name": "xgboost"}],
        "containers": [{"name": "kserve-container"}],
    }
    cells = shown(scheme.CLUSTER_SERVING_RUNTIME, {"spec": spec})
    assert cells == {
        "Name": "x",
        "Disabled": "",
        "ModelType": "sklearn",
        "Containers": "kserve-container",
        "Age": "2m",
    }


def test_kinds_without_columns_of_their_own_show_name_and_age() -> None:
    assert shown(scheme.LOCAL_MODEL_NODE, {}) == {"Name": "x", "Age": "2m"}


def test_deployments_and_pods() -> None:
    deployment = {"spec": {"replicas": 3}, "status": {"readyReplicas": 1, "updatedReplicas": 2}}
    assert shown(scheme.DEPLOYMENT, deployment) == {
        "Name": "x",
        "Ready": "1/3",
        "Up-to-date": 2,
        "Available": 0,
        "Age": "2m",
    }
    pod = {
        "spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "here"},
        "status": {
            "phase": "Running",
            "podIP": "127.64.0.2",
            "containerStatuses": [
                {
                    "name": "a",
                    "ready": True,
                    "restartCount": 2,
                    "state": {"running": {}},
                    "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:30Z"}},
                },
                {"name": "b", "ready": False, "restartCount": 0, "state": {"running": {}}},
            ],
        },
    }
    cells = shown(scheme.POD, pod, wide=True)
    assert (cells["Ready"], cells["Status"], cells["Restarts"]) == ("1/2", "Running", "2 (30s ago)")
    assert (cells["IP"], cells["Node"]) == ("127.64.0.2", "here")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Pending"}, "Pending"),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            "CrashLoopBackOff",
        ),
        (
            {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]},
            "OOMKilled",
        ),
        ({"containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}, "ExitCode:3"),
        (
            {
                "initContainerStatuses": [{"state": {"terminated": {"exitCode": 1}}}],
                "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}],
            },
            "Init:ExitCode:1",
        ),
        ({"initContainerStatuses": [{"state": {"running": {}}}]}, "Init:0/1"),
        (
            {"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            "Init:CrashLoopBackOff",
        ),
    ],
)
def test_pod_status_says_why_a_pod_does_not_run(status: dict[str, Any], expected: str) -> None:
    pod = {"metadata": {}, "spec": {}, "status": {"phase": "Pending", **status}}
    assert pod_status(pod) == expected


def test_a_pod_on_its_way_out_is_terminating() -> None:
    pod = {"metadata": {"deletionTimestamp": "t"}, "status": {"phase": "Running"}}
    assert pod_status(pod) == "Terminating"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (150, "2m30s"),
        (601, "10m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 300, "3h5m"),
        (10 * 3600, "10h"),
        (50 * 3600, "2d2h"),
        (9 * 86400, "9d"),
        (800 * 86400, "2y70d"),
        (-5, "<invalid>"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert human(seconds) == text
