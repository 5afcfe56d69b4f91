"""Deployment: from any mixture of Pods, with Pods failing at random, the rollout ends right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.api.meta import Object, labels_of, name_of, timestamp
from kserve_local.controllers import deployment as d
from kserve_local.controllers import pod_state

START = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW = "old", "new"


def deployment(image: str, replicas: int, surge: int, unavailable: int) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "iris", "namespace": "default", "uid": "u", "generation": 1},
        "spec": {
            "replicas": replicas,
            "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {"metadata": {}, "spec": {"containers": [{"image": image}]}},
        },
    }


def pod(owner: Object, name: str, condition: str, now: datetime, replaces: int = 0) -> Object:
    made = d.pod_for(owner, replaces=replaces)
    made["metadata"] |= {"name": name, "creationTimestamp": timestamp(now)}
    return become(made, condition, now)


def become(made: Object, condition: str, now: datetime) -> Object:
    status: dict[str, Any] = {
        "phase": "Failed" if condition == "dead" else "Running",
        "conditions": [{"type": "Ready", "status": str(condition == "ready")}],
    }
    metadata = dict(made["metadata"])
    if condition == "going":
        metadata["deletionTimestamp"] = timestamp(now)
    return {**made, "metadata": metadata, "status": status}


CONDITIONS = st.sampled_from(["ready", "unready", "dead", "going"])


@settings(max_examples=60, deadline=None)
@given(
    replicas=st.integers(0, 4),
    surge=st.integers(0, 2),
    unavailable=st.integers(0, 2),
    before=st.lists(st.tuples(st.sampled_from([OLD, NEW]), CONDITIONS), max_size=7),
    fate=st.lists(st.sampled_from(["ready", "ready", "unready", "dead"]), min_size=1, max_size=12),
)
def test_any_start_ends_with_just_the_wanted_pods(
    replicas: int, surge: int, unavailable: int, before: list[tuple[str, str]], fate: list[str]
) -> None:
    old = deployment(OLD, replicas, surge, unavailable)
    new = deployment(NEW, replicas, surge, unavailable)
    surge, unavailable = (1, 0) if surge == unavailable == 0 else (surge, unavailable)
    now = START
    pods = [
        pod(old if which == OLD else new, f"p{n}", condition, now)
        for n, (which, condition) in enumerate(before)
    ]
    count = len(pods)
    fates = iter(fate)
    for _ in range(200):
        decided = d.plan(new, pods, now=now)
        live = [p for p in pods if not pod_state.is_terminating(p) and not pod_state.is_dead(p)]
        ready = [p for p in live if pod_state.is_ready(p)]
        kept = [p for p in ready if name_of(p) not in decided.delete]
        staying = [p for p in live if name_of(p) not in decided.delete]
        # Never fewer ready ones than allowed because of us, never more Pods than allowed.
        assert len(kept) >= min(len(ready), replicas - unavailable)
        assert not decided.create or len(staying) + decided.create <= replicas + surge
        assert len(set(decided.delete)) == len(decided.delete)
        now += timedelta(seconds=decided.wait or 1)
        pods = [p for p in pods if name_of(p) not in decided.delete]
        pods = [p for p in pods if not pod_state.is_terminating(p)]
        pods = [
            become(p, next(fates, "ready"), now)
            if not pod_state.is_ready(p) and not pod_state.is_dead(p)
            else p
            for p in pods
        ]
        for _ in range(decided.create):
            count += 1
            pods.append(pod(new, f"p{count}", "unready", now, decided.replaces))
    _, current = d.replica_set(new)
    assert [labels_of(p)["pod-template-hash"] for p in pods] == [current] * replicas
    assert all(pod_state.is_ready(p) for p in pods)
    assert d.plan(new, pods, now=now) == d.Plan()
