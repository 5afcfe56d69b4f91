"""What the node agent decides, as a function of the Pod, what was seen, and the time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.controllers.pod_plan import (
    RESET_AFTER,
    Blocked,
    Record,
    Seen,
    backoff_delay,
    go_duration,
    plan_pod,
    records_of,
    restarted,
    seen_termination,
)
from kserve_local.controllers.pod_status import Running, Terminated, Waiting
from kserve_local.interfaces.backend import ContainerStatus, ReplicaStatus

NOW = 1_000_000.0


def a_pod(*, init: bool = False, policy: str = "", status: Any = None) -> Object:
    spec: dict[str, Any] = {"containers": [{"name": "kserve-container", "image": "i"}]}
    if init:
        spec["initContainers"] = [{"name": "storage-initializer", "image": "s"}]
    if policy:
        spec["restartPolicy"] = policy
    metadata = {"name": "iris", "namespace": "default", "uid": "u1"}
    return {"metadata": metadata, "spec": spec, "status": status or {}}


def replica(*containers: ContainerStatus) -> ReplicaStatus:
    return ReplicaStatus("u1", "default", "iris", "127.64.8.2", containers)


def ended(*, at: float = NOW, code: int = 1, reason: str = "Error") -> ContainerStatus:
    return ContainerStatus(
        "kserve-container", "terminated", pid=7, finished_at=at, exit_code=code, reason=reason
    )


def seen_with(status: ContainerStatus, record: Record | None = None, **more: Any) -> Seen:
    records = {"kserve-container": record or Record()}
    return Seen(host_ip="127.0.0.1", replica=replica(status), records=records, **more)


def main_state(status: Object) -> Any:
    return status["containerStatuses"][0]["state"]


def test_a_new_pod_is_created_at_once() -> None:
    plan = plan_pod(a_pod(), Seen(host_ip="127.0.0.1"), NOW)
    assert plan.create
    assert plan.status["phase"] == "Pending"
    assert main_state(plan.status) == {"waiting": {"reason": "ContainerCreating"}}


def test_init_containers_come_first() -> None:
    plan = plan_pod(a_pod(init=True), Seen(), NOW)
    assert (plan.initialize, plan.create) == ("storage-initializer", False)
    assert main_state(plan.status) == {"waiting": {"reason": "PodInitializing"}}


def test_while_an_init_container_runs_there_is_nothing_to_do() -> None:
    plan = plan_pod(a_pod(init=True), Seen(init={"storage-initializer": Running(NOW)}), NOW)
    assert (plan.initialize, plan.create, plan.again) == ("", False, None)


def test_after_the_init_containers_the_others_are_created() -> None:
    done = Terminated(0, "Completed", started_at=NOW, finished_at=NOW)
    plan = plan_pod(a_pod(init=True), Seen(init={"storage-initializer": done}), NOW)
    assert plan.create
    conditions = {c["type"]: c["status"] for c in plan.status["conditions"]}
    assert conditions["Initialized"] == "True"


def test_while_they_are_being_made_they_are_not_made_again() -> None:
    assert not plan_pod(a_pod(), Seen(creating=True), NOW).create


def test_a_container_that_never_served_shows_its_end_for_a_moment() -> None:
    """kubelet needs about a second to notice; every reader of the status sees why it ended."""
    plan = plan_pod(a_pod(), seen_with(ended()), NOW + 0.1)
    assert plan.restart == ()
    assert plan.again == pytest.approx(0.9)
    assert main_state(plan.status)["terminated"]["exitCode"] == 1
    assert plan_pod(a_pod(), seen_with(ended()), NOW + 1.0).restart == ("kserve-container",)


def test_a_container_that_was_serving_is_restarted_at_once() -> None:
    plan = plan_pod(a_pod(), seen_with(ended(), Record(was_ready=True)), NOW)
    assert plan.restart == ("kserve-container",)


def test_the_second_restart_backs_off() -> None:
    record = Record(restarts=1, attempts=1, restarted_at=NOW - 1)
    plan = plan_pod(a_pod(), seen_with(ended(), record), NOW + 2.0)
    assert plan.restart == ()
    assert plan.backing_off == ("kserve-container",)
    assert plan.again == pytest.approx(8.0)
    status = plan.status["containerStatuses"][0]
    assert status["state"]["waiting"] == {
        "reason": "CrashLoopBackOff",
        "message": (
            "back-off 10s restarting failed container=kserve-container pod=iris_default(u1)"
        ),
    }
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert status["restartCount"] == 1
    assert plan.status["phase"] == "Running"
    assert plan_pod(a_pod(), seen_with(ended(), record), NOW + 10.0).restart


def test_back_off_doubles_from_ten_seconds_to_five_minutes() -> None:
    assert [backoff_delay(n) for n in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert [go_duration(s) for s in (10, 80, 160, 300)] == ["10s", "1m20s", "2m40s", "5m0s"]


def test_a_long_run_starts_the_back_off_over() -> None:
    record = Record(restarts=5, attempts=5, restarted_at=NOW - RESET_AFTER - 1, was_ready=True)
    assert plan_pod(a_pod(), seen_with(ended(), record), NOW).restart == ("kserve-container",)
    again = restarted(record, seen_termination(ended(), "", now=NOW), now=NOW)
    assert (again.restarts, again.attempts, again.was_ready) == (6, 1, False)


@pytest.mark.parametrize(
    ("policy", "code", "phase", "restarts"),
    [
        ("Always", 0, "Running", True),
        ("OnFailure", 0, "Succeeded", False),
        ("OnFailure", 1, "Running", True),
        ("Never", 0, "Succeeded", False),
        ("Never", 1, "Failed", False),
    ],
)
def test_restart_policies(policy: str, code: int, phase: str, restarts: bool) -> None:
    reason = "Completed" if code == 0 else "Error"
    status = ended(code=code, reason=reason)
    plan = plan_pod(a_pod(policy=policy), seen_with(status, Record(was_ready=True)), NOW)
    assert bool(plan.restart) is restarts
    assert plan.status["phase"] == phase


def test_a_failed_init_container_backs_off_like_any_other() -> None:
    failed = Terminated(1, "Error", "404", started_at=NOW, finished_at=NOW)
    init = {"storage-initializer": failed}
    plan = plan_pod(a_pod(init=True), Seen(init=init), NOW)
    shown = plan.status["initContainerStatuses"][0]
    assert shown["state"]["terminated"]["message"] == "404"
    assert plan.initialize == ""
    record = Record(restarts=1, attempts=1, restarted_at=NOW - 1)
    records = {"storage-initializer": record}
    plan = plan_pod(a_pod(init=True), Seen(init=init, records=records), NOW + 1)
    shown = plan.status["initContainerStatuses"][0]
    assert shown["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert shown["lastState"]["terminated"]["message"] == "404"
    assert plan.again == pytest.approx(9.0)


def test_never_means_a_failed_init_container_fails_the_pod() -> None:
    failed = Terminated(1, "Error", started_at=NOW, finished_at=NOW)
    init = {"storage-initializer": failed}
    plan = plan_pod(a_pod(init=True, policy="Never"), Seen(init=init), NOW + 60)
    assert (plan.status["phase"], plan.initialize) == ("Failed", "")


def test_blocked_containers_say_why_and_are_tried_again() -> None:
    waiting = {"kserve-container": Waiting("CreateContainerConfigError", 'secret "x" not found')}
    plan = plan_pod(a_pod(), Seen(blocked=Blocked(waiting, retry_at=NOW + 2)), NOW)
    assert not plan.create
    assert plan.again == pytest.approx(2.0)
    assert main_state(plan.status) == {
        "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}
    }


def test_a_lost_replica_is_an_unknown_end_and_made_again() -> None:
    """As after a reboot of the machine."""
    running = ContainerStatus("kserve-container", "running", pid=7, started_at=NOW, ready=True)
    before = plan_pod(a_pod(), seen_with(running), NOW).status
    pod = a_pod(status=before)
    records = records_of(pod, now=NOW)
    plan = plan_pod(pod, Seen(records=records), NOW + 5)
    assert plan.create
    shown = main_state(plan.status)["terminated"]
    assert (shown["exitCode"], shown["reason"]) == (137, "ContainerStatusUnknown")


def test_a_pod_met_again_remembers_its_restarts() -> None:
    record = Record(restarts=3, attempts=3, restarted_at=NOW)
    status = plan_pod(a_pod(), seen_with(ended(), record), NOW + 1).status
    found = records_of(a_pod(status=status), now=NOW)["kserve-container"]
    assert (found.restarts, found.attempts) == (3, 3)
    assert found.last is not None
    assert found.last.exit_code == 1


def test_planning_twice_changes_nothing() -> None:
    """Equal statuses are dropped by the store, so watchers hear of changes only."""
    running = ContainerStatus("kserve-container", "running", pid=7, started_at=NOW, ready=True)
    first = plan_pod(a_pod(), seen_with(running), NOW)
    second = plan_pod(a_pod(status=first.status), seen_with(running), NOW + 100)
    assert second == replace(first)


def test_an_unschedulable_pod_does_nothing_else() -> None:
    plan = plan_pod(a_pod(init=True), Seen(unschedulable="0/1 nodes are available: x"), NOW)
    assert (plan.initialize, plan.create) == ("", False)
    assert plan.status["conditions"][0]["reason"] == "Unschedulable"


def test_a_container_that_was_never_begun_is_begun() -> None:
    """An adopted replica whose start was cut off half way."""
    status = ContainerStatus("kserve-container", "waiting")
    assert plan_pod(a_pod(), seen_with(status), NOW).restart == ("kserve-container",)
