"""What `status` counts as a replica."""

from __future__ import annotations

from typing import Any

from kserve_local.interfaces.backend import ContainerStatus, ReplicaStatus
from kserve_local.supervisor import component_summary


def pod(uid: str, **metadata: Any) -> dict[str, Any]:
    labels = {"serving.knative.dev/revision": "iris-predictor-00001"}
    return {"metadata": {"name": f"pod-{uid}", "uid": uid, "labels": labels, **metadata}}


def test_a_pod_on_its_way_out_is_no_replica_any_more() -> None:
    """It may serve its last requests for long; its process is still shown."""
    pods = [pod("a"), pod("b", deletionTimestamp="2026-01-01T00:00:00Z")]
    running = {
        p["metadata"]["uid"]: ReplicaStatus(
            p["metadata"]["uid"], "default", p["metadata"]["name"], "127.64.0.2",
            (ContainerStatus("c", "running", pid=7, ready=True),),
        )
        for p in pods
    }  # fmt: skip
    [found] = component_summary._revisions("predictor", {}, pods, running)
    assert (found["replicas"], found["pods"], found["pids"]) == (1, ["pod-a", "pod-b"], [7, 7])
