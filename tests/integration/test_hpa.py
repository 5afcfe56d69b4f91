"""The HPA's controller on a real store: what it measures, writes and says.

The busy Pods' processor time is that of real processes; the HPA's clock runs 15 times as fast.
"""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from kserve_local.api.meta import Key, Object, get_condition
from kserve_local.interfaces.backend import Usage
from tests.fakes.node_agent import node_agent, running
from tests.integration.standard_world import CLASS, has, standard
from tests.integration.test_chain import ISVC, World, is_loaded, world

HPAS = "horizontalpodautoscalers.autoscaling"
DEPLOYMENTS = "deployments.apps"
NAME = "sklearn-iris-predictor"


class Processes:
    """A process for each Pod: the first is busy, the others sleep."""

    def __init__(self) -> None:
        self.of: dict[str, asyncio.subprocess.Process] = {}
        self._lock = asyncio.Lock()

    async def meter(self, uid: str) -> Usage | None:
        async with self._lock:
            if uid not in self.of:
                code = "import time; time.sleep(1e6)" if self.of else "while True: pass"
                self.of[uid] = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        found = psutil.Process(self.of[uid].pid)
        times = found.cpu_times()
        return Usage(times.user + times.system, found.memory_info().rss)

    async def end(self) -> None:
        for process in self.of.values():
            process.kill()
        await asyncio.gather(*(process.wait() for process in self.of.values()))


@asynccontextmanager
async def scaled(path: Path, meter: Any = None) -> AsyncIterator[World]:
    """A chain that measures, with Pods that have been ready for long."""
    processes = Processes()
    number = iter(range(2, 250))

    def long_since(pod: Object) -> dict[str, Any]:
        status = copy.deepcopy(running(pod, f"127.64.0.{next(number)}"))
        status["startTime"] = "2026-01-01T00:00:00Z"
        for condition in status["conditions"]:
            condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        return status

    try:
        async with (
            world(path, meter=meter or processes.meter, speed=15.0) as w,
            node_agent(w.store, long_since),
        ):
            yield w
    finally:
        await processes.end()


def size(count: int) -> Any:
    return lambda deployment: deployment["spec"]["replicas"] == count


def current(hpa: Object) -> int:
    return int((hpa.get("status") or {}).get("currentReplicas") or 0)


async def test_a_busy_pod_gets_company(tmp_path: Path) -> None:
    """Work for one core at a target of 2 % of one; never above maxReplicas."""
    async with scaled(tmp_path) as w:
        await w.apply(standard(maxReplicas=3, scaleTarget=2, **container(cpu="1")))
        await w.until(DEPLOYMENTS, NAME, size(3))
        assert await w.event("SuccessfulRescale") == (
            "New size: 3; reason: cpu resource utilization (percentage of request) above target"
        )
        hpa = await w.until(
            HPAS, NAME, lambda h: (h.get("status") or {}).get("currentReplicas") == 3
        )
        (metric,) = hpa["status"]["currentMetrics"]
        assert metric["resource"]["name"] == "cpu"
        assert metric["resource"]["current"]["averageUtilization"] > 0
        await w.until(HPAS, NAME, has("ScalingActive", "True", "ValidMetricFound"))
        await w.until(ISVC, "sklearn-iris", is_loaded)


def container(**requests: str) -> dict[str, Any]:
    model = {
        "modelFormat": {"name": "sklearn"},
        "storageUri": "gs://kfserving/iris",
        "resources": {"requests": requests},
    }
    return {"model": model}


async def test_memory_scales_by_what_pods_hold(tmp_path: Path) -> None:
    async def heavy(uid: str) -> Usage:
        return Usage(0.0, 300 << 20)

    async with scaled(tmp_path, heavy) as w:
        metrics = [
            {
                "type": "Resource",
                "resource": {
                    "name": "memory",
                    "target": {"type": "AverageValue", "averageValue": "100Mi"},
                },
            }
        ]
        await w.apply(standard(maxReplicas=2, autoScaling={"metrics": metrics}))
        await w.until(DEPLOYMENTS, NAME, size(2))
        hpa = await w.until(HPAS, NAME, has("ScalingLimited", "True", "TooManyReplicas"))
        (metric,) = hpa["status"]["currentMetrics"]
        assert metric["resource"]["current"] == {"averageValue": str(300 << 20)}


async def test_without_a_request_it_says_why_nothing_scales(tmp_path: Path) -> None:
    async with scaled(tmp_path) as w:
        isvc = standard(maxReplicas=3)
        isvc["spec"]["predictor"] = {
            "containers": [{"name": "kserve-container", "image": "i"}],
            "maxReplicas": 3,
        }
        await w.apply(isvc)
        hpa = await w.until(HPAS, NAME, has("ScalingActive", "False", "FailedGetResourceMetric"))
        assert "missing request for cpu in container kserve-container of Pod" in (
            get_condition(hpa, "ScalingActive") or {}
        ).get("message", "")
        assert "invalid metrics (1 invalid out of 1)" in await w.event(
            "FailedComputeMetricsReplicas"
        )


async def test_an_hpa_of_the_users_own_scales_what_kserve_leaves_to_it(tmp_path: Path) -> None:
    """Class `external`."""
    async with scaled(tmp_path) as w:
        await w.apply(standard(annotations={CLASS: "external"}, **container(cpu="1")))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}
        await w.store.create(
            {
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "mine", "namespace": "default"},
                "spec": {"scaleTargetRef": ref, "minReplicas": 2, "maxReplicas": 4},
            }
        )
        await w.until(DEPLOYMENTS, NAME, size(2))
        assert w.store.get(Key(HPAS, "default", "mine"))


async def test_an_hpa_without_its_deployment_says_so(tmp_path: Path) -> None:
    async with scaled(tmp_path) as w:
        ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gone"}
        await w.store.create(
            {
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "mine", "namespace": "default"},
                "spec": {"scaleTargetRef": ref, "maxReplicas": 4},
            }
        )
        await w.until(HPAS, "mine", has("AbleToScale", "False", "FailedGetScale"))
