"""Deployment: which Pods come and go, and what its conditions say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kserve_local.api.meta import Object, get_condition, name_of, parse_timestamp, timestamp
from kserve_local.api.names import CODE
from kserve_local.api.reloads import with_digest
from kserve_local.controllers import deployment as d
from kserve_local.interfaces.holds import Holds, deployment_group

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def deployment(replicas: int = 1, image: str = "one", **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "iris", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {
            "replicas": replicas,
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": "iris"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
            **spec,
        },
    }


def pod(
    owner: Object,
    name: str,
    *,
    ready: bool = True,
    phase: str = "Running",
    age: float = 60.0,
    **annotations: str,
) -> Object:
    made = d.pod_for(owner)
    made["metadata"] |= {
        "name": name,
        "creationTimestamp": timestamp(NOW - timedelta(seconds=age)),
        "annotations": annotations,
    }
    made["status"] = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    return made


def going(made: Object) -> Object:
    made["metadata"]["deletionTimestamp"] = timestamp(NOW)
    return made


def test_missing_pods_are_created_all_at_once() -> None:
    assert d.plan(deployment(3), [], now=NOW) == d.Plan(create=3)


def test_a_terminating_pod_counts_as_gone() -> None:
    wanted = deployment(1)
    assert d.plan(wanted, [going(pod(wanted, "a"))], now=NOW).create == 1


def test_scaling_down_takes_unready_then_young_pods() -> None:
    wanted = deployment(1)
    pods = [
        pod(wanted, "old", age=90),
        pod(wanted, "young", age=10),
        pod(wanted, "unready", ready=False, age=99),
    ]
    assert d.plan(wanted, pods, now=NOW).delete == ("unready", "young")


def test_scale_to_zero_deletes_everything() -> None:
    wanted = deployment(0)
    assert d.plan(wanted, [pod(wanted, "a")], now=NOW) == d.Plan(delete=("a",))


def test_a_new_template_comes_up_before_the_old_goes() -> None:
    """maxUnavailable 0: the old Pod stays until the new one is ready."""
    old, new = deployment(1, "one"), deployment(1, "two")
    before = pod(old, "old")
    assert d.plan(new, [before], now=NOW) == d.Plan(create=1)
    starting = pod(new, "new", ready=False)
    assert d.plan(new, [before, starting], now=NOW) == d.Plan()
    assert d.plan(new, [before, pod(new, "new")], now=NOW) == d.Plan(delete=("old",))


def test_a_rollout_of_many_never_has_too_few_or_too_many() -> None:
    old, new = deployment(4, "one"), deployment(4, "two")
    pods = [pod(old, f"old{n}") for n in range(4)]
    for step in range(20):
        decided = d.plan(new, pods, now=NOW)
        if decided == d.Plan():
            break
        pods = [p for p in pods if name_of(p) not in decided.delete]
        pods += [pod(new, f"new{step}-{n}") for n in range(decided.create)]
        assert 4 <= len(pods) <= 5
    assert all(name_of(p).startswith("new") for p in pods)
    assert len(pods) == 4


def test_a_recreate_strategy_takes_the_old_first() -> None:
    old = deployment(1, "one")
    new = deployment(1, "two", strategy={"type": "Recreate"})
    assert d.plan(new, [pod(old, "old")], now=NOW) == d.Plan(delete=("old",))


def test_a_dead_pod_is_replaced_at_once_the_first_time() -> None:
    wanted = deployment(1)
    decided = d.plan(wanted, [pod(wanted, "dead", phase="Failed")], now=NOW)
    assert decided == d.Plan(create=1, delete=("dead",), replaces=1)


def test_pods_that_die_one_after_the_other_are_replaced_more_and_more_slowly() -> None:
    wanted = deployment(1)
    dead = pod(wanted, "dead", phase="Failed", age=3, **{d.REPLACES: "4"})
    decided = d.plan(wanted, [dead], now=NOW)
    assert decided == d.Plan(wait=5.0)
    assert d.plan(wanted, [dead], now=NOW + timedelta(seconds=5)) == d.Plan(
        create=1, delete=("dead",), replaces=5
    )


def condition(status: dict[str, Any], type_: str) -> tuple[str, str]:
    found = get_condition({"status": status}, type_) or {}
    return found.get("status", ""), found.get("reason", "")


def at(seconds: float) -> str:
    return timestamp(NOW + timedelta(seconds=seconds))


def test_conditions_of_a_rollout_from_start_to_success() -> None:
    wanted = deployment(1)
    rs_name, _ = d.replica_set(wanted)
    status = d.plan_status(wanted, [], now=at(0))
    assert condition(status, "Available") == ("False", "MinimumReplicasUnavailable")
    assert condition(status, "Progressing") == ("True", "NewReplicaSetCreated")
    wanted["status"] = status
    status = d.plan_status(wanted, [pod(wanted, "a", ready=False)], now=at(1))
    assert condition(status, "Progressing") == ("True", "ReplicaSetUpdated")
    assert status["unavailableReplicas"] == 1
    wanted["status"] = status
    status = d.plan_status(wanted, [pod(wanted, "a")], now=at(2))
    assert condition(status, "Available") == ("True", "MinimumReplicasAvailable")
    progressing = get_condition({"status": status}, "Progressing") or {}
    assert progressing["reason"] == "NewReplicaSetAvailable"
    assert progressing["message"] == f'ReplicaSet "{rs_name}" has successfully progressed.'
    assert progressing["lastTransitionTime"] == at(0)
    assert status["readyReplicas"] == status["availableReplicas"] == 1


def test_the_progress_deadline_is_later_by_the_time_at_a_breakpoint() -> None:
    wanted = deployment(1, progressDeadlineSeconds=10)
    stuck = [pod(wanted, "a", ready=False)]
    wanted["status"] = d.plan_status(wanted, stuck, now=at(0))
    holds = Holds()
    group = deployment_group(wanted["metadata"]["namespace"], wanted["metadata"]["name"])
    holds.stop("pod", [group], now=parse_timestamp(at(2)).timestamp())
    assert d.time_left(wanted, now=at(50), holds=holds) == 8.0
    holds.go_on("pod", [group], now=parse_timestamp(at(52)).timestamp())
    assert d.time_left(wanted, now=at(58), holds=holds) == 2.0
    status = d.plan_status(wanted, stuck, now=at(58), holds=holds)
    assert condition(status, "Progressing")[0] == "True"
    status = d.plan_status(wanted, stuck, now=at(60), holds=holds)
    assert condition(status, "Progressing") == ("False", "ProgressDeadlineExceeded")


def test_a_rollout_that_does_not_move_times_out_and_stays_so() -> None:
    wanted = deployment(1, progressDeadlineSeconds=10)
    stuck = [pod(wanted, "a", ready=False)]
    wanted["status"] = d.plan_status(wanted, stuck, now=at(0))
    assert d.time_left(wanted, now=at(4)) == 6.0
    assert condition(d.plan_status(wanted, stuck, now=at(9)), "Progressing")[0] == "True"
    status = d.plan_status(wanted, stuck, now=at(10))
    assert condition(status, "Progressing") == ("False", "ProgressDeadlineExceeded")
    wanted["status"] = status
    again = d.plan_status(wanted, stuck, now=at(99))
    assert again == status
    assert d.time_left(wanted, now=at(99)) is None
    late = d.plan_status(wanted, [pod(wanted, "a")], now=at(100))
    assert condition(late, "Progressing") == ("True", "NewReplicaSetAvailable")


def test_a_finished_rollout_is_not_undone_by_a_restart() -> None:
    wanted = deployment(1, progressDeadlineSeconds=10)
    wanted["status"] = d.plan_status(wanted, [pod(wanted, "a")], now=at(0))
    status = d.plan_status(wanted, [pod(wanted, "a", ready=False)], now=at(50))
    assert condition(status, "Progressing") == ("True", "NewReplicaSetAvailable")
    assert condition(status, "Available")[0] == "False"


def test_a_refused_pod_is_a_replica_failure() -> None:
    status = d.plan_status(deployment(1), [], now=at(0), failure="admission said no")
    found = get_condition({"status": status}, "ReplicaFailure") or {}
    assert (found["reason"], found["message"]) == ("FailedCreate", "admission said no")


def test_pod_names_and_labels_show_the_replica_set() -> None:
    wanted = deployment(1)
    rs_name, suffix = d.replica_set(wanted)
    made = d.pod_for(wanted)
    assert name_of(made).startswith(f"{rs_name}-")
    assert len(name_of(made)) == len(rs_name) + 6
    assert made["metadata"]["labels"]["pod-template-hash"] == suffix
    assert made["metadata"]["ownerReferences"][0]["name"] == "iris"


def test_long_names_stay_within_63_characters() -> None:
    wanted = deployment(1)
    wanted["metadata"]["name"] = "m" * 60
    assert len(name_of(d.pod_for(wanted))) <= 63


@pytest.mark.parametrize(("surge", "unavailable", "extra"), [("0%", 0, 1), (2, 0, 2)])
def test_surge_is_at_least_one_when_nothing_may_be_unavailable(
    surge: str | int, unavailable: int, extra: int
) -> None:
    strategy = {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    old, new = deployment(4, "one"), deployment(4, "two", strategy=strategy)
    assert d.plan(new, [pod(old, f"o{n}") for n in range(4)], now=NOW).create == extra


def unready(made: Object, since: datetime) -> Object:
    """Return the Pod as one that was Ready once and is not since then."""
    conditions = made["status"]["conditions"] = [
        {"type": "Initialized", "status": "True"},
        {"type": "Ready", "status": "False"},
    ]
    conditions[0]["lastTransitionTime"] = made["metadata"]["creationTimestamp"]
    conditions[1]["lastTransitionTime"] = timestamp(since)
    return made


def test_a_newer_template_replaces_a_pod_that_does_not_come_up_and_keeps_the_serving_one() -> None:
    """Pods die on their way with the template of before, which says nothing about this one."""
    serving, broken, fixed = (with_digest(deployment(), CODE, digest) for digest in "abc")
    pods = [pod(serving, "serving"), pod(broken, "broken", ready=False, age=1)]
    assert d.plan(fixed, pods, now=NOW) == d.Plan(delete=("broken",))
    pods[1] = going(pods[1])
    assert d.plan(fixed, pods, now=NOW) == d.Plan(create=1)
    dead = pod(broken, "dead", phase="Failed", age=1, **{d.REPLACES: "9"})
    assert d.plan(fixed, [pods[0], dead], now=NOW) == d.Plan(create=1, delete=("dead",))


def test_the_last_pod_that_served_is_not_given_up_for_one_that_does_not_come_up() -> None:
    serving, broken = (with_digest(deployment(), CODE, digest) for digest in "ab")
    was = unready(pod(serving, "serving"), NOW)
    coming = pod(broken, "broken", ready=False, age=1)
    assert d.plan(broken, [was, coming], now=NOW) == d.Plan()
    assert d.plan(broken, [was, pod(broken, "works")], now=NOW) == d.Plan(delete=("serving",))
    # One that never served has nothing to keep it.
    first = pod(serving, "first", ready=False)
    assert d.plan(broken, [first, coming], now=NOW) == d.Plan(delete=("first",))


def test_scaling_while_new_pods_do_not_come_up() -> None:
    serving, broken = (with_digest(deployment(2), CODE, digest) for digest in "ab")
    pods = [pod(serving, "one"), pod(serving, "two", age=9), pod(broken, "new", ready=False)]
    assert d.plan(broken, pods, now=NOW) == d.Plan()
    more = {**broken, "spec": {**broken["spec"], "replicas": 3}}
    assert d.plan(more, pods, now=NOW) == d.Plan(create=1)
    fewer = {**broken, "spec": {**broken["spec"], "replicas": 1}}
    assert d.plan(fewer, pods, now=NOW) == d.Plan(delete=("two",))
    none = {**broken, "spec": {**broken["spec"], "replicas": 0}}
    assert set(d.plan(none, pods, now=NOW).delete) == {"one", "two", "new"}


@pytest.mark.parametrize("annotations", [{}, {"a": "b"}, None])
def test_pods_that_a_save_asked_for_are_no_rollout(annotations: dict[str, str] | None) -> None:
    wanted = deployment(progressDeadlineSeconds=10)
    if annotations is not None:
        wanted["spec"]["template"]["metadata"]["annotations"] = annotations
    serving = pod(wanted, "serving")
    before = d.plan_status(wanted, [serving], now=at(0))
    wanted = with_digest({**wanted, "status": before}, CODE, "b")
    status = d.plan_status(wanted, [serving], now=at(1))
    assert status["conditions"] == before["conditions"]
    assert "updatedReplicas" not in status
    wanted["status"] = status
    assert d.time_left(wanted, now=at(2)) is None
    status = d.plan_status(wanted, [serving, pod(wanted, "new", ready=False)], now=at(99))
    assert status["conditions"] == before["conditions"]
