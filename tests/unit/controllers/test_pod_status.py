"""A Pod's status in Kubernetes' own shape."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.controllers.pod_status import (
    ContainerView,
    Running,
    State,
    Terminated,
    View,
    Waiting,
    phase_of,
    pod_status,
    qos_class,
    terminated_from_json,
)

T0 = 1_700_000_000.0
ENDED = Terminated(1, "Error", "why", started_at=T0, finished_at=T0 + 1)
DONE = Terminated(0, "Completed", started_at=T0, finished_at=T0 + 1)


def view(state: State, *, last: Terminated | None = None, **more: Any) -> View:
    container = ContainerView("kserve-container", "img", state, last=last)
    more.setdefault("init", ())
    return View(containers=(container,), ip="127.64.8.2", host_ip="127.0.0.1", **more)


def status_of(seen: View, old: Any = None, now: float = T0) -> dict[str, Any]:
    pod = {"metadata": {"name": "iris"}, "spec": {"containers": [{}]}, "status": old or {}}
    return pod_status(pod, seen, now=now)


def condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    return next(c for c in status["conditions"] if c["type"] == type_)


def test_a_ready_pod_looks_as_on_a_cluster() -> None:
    status = status_of(view(Running(T0, ready=True, pid=7)))
    assert status["phase"] == "Running"
    assert status["podIPs"] == [{"ip": "127.64.8.2"}]
    assert [c["type"] for c in status["conditions"]] == [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ]
    assert {c["status"] for c in status["conditions"]} == {"True"}
    assert status["containerStatuses"] == [
        {
            "name": "kserve-container",
            "state": {"running": {"startedAt": "2023-11-14T22:13:20Z"}},
            "lastState": {},
            "ready": True,
            "restartCount": 0,
            "image": "img",
            "imageID": "",
            "started": True,
        }
    ]


def test_an_unready_pod_names_its_containers() -> None:
    ready = condition(status_of(view(Running(T0))), "Ready")
    assert ready["reason"] == "ContainersNotReady"
    assert ready["message"] == "containers with unready status: [kserve-container]"


def test_times_of_conditions_move_with_their_status_only() -> None:
    first = status_of(view(Running(T0)))
    same = status_of(view(Running(T0)), first, now=T0 + 60)
    assert same == first
    ready = status_of(view(Running(T0, ready=True)), first, now=T0 + 60)
    assert condition(ready, "Ready")["lastTransitionTime"] == "2023-11-14T22:14:20Z"
    assert condition(ready, "PodScheduled")["lastTransitionTime"] == "2023-11-14T22:13:20Z"
    assert ready["startTime"] == first["startTime"]


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (view(Waiting("ContainerCreating")), "Pending"),
        (view(Waiting("CrashLoopBackOff"), last=ENDED), "Running"),
        (view(ENDED), "Running"),
        (view(ENDED, final=True), "Failed"),
        (view(DONE, final=True), "Succeeded"),
        (view(Running(T0), init=(ContainerView("i", "x", DONE),)), "Running"),
        (view(Waiting("PodInitializing"), init=(ContainerView("i", "x", ENDED),)), "Pending"),
    ],
)
def test_phases(seen: View, phase: str) -> None:
    assert phase_of(seen) == phase


def test_an_unschedulable_pod_has_one_condition() -> None:
    status = status_of(view(Waiting("x"), unschedulable="0/1 nodes are available: 1 Insufficient"))
    assert [c["type"] for c in status["conditions"]] == ["PodScheduled"]
    assert "containerStatuses" not in status


def test_a_termination_survives_its_json() -> None:
    status = status_of(view(ENDED))
    found = terminated_from_json(status["containerStatuses"][0]["state"])
    assert found == ENDED
    assert terminated_from_json({}) is None


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ({}, "BestEffort"),
        ({"limits": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
def test_quality_of_service(resources: dict[str, Any], qos: str) -> None:
    assert qos_class({"spec": {"containers": [{"resources": resources}]}}) == qos
