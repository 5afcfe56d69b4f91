"""What Pods use, for Prometheus and for `status -o wide`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kserve_local.cli.status import _gpus as column
from kserve_local.errors import NotFound
from kserve_local.interfaces.backend import Usage
from kserve_local.interfaces.devices import Device, DeviceFigures, DeviceInventory
from kserve_local.supervisor.pod_metrics import render
from kserve_local.supervisor.pod_usage import PodUsage
from kserve_local.supervisor.summary import _gpus as gpus_of
from tests.fakes.backend import FakeBackend

L4 = Device("GPU-a", 0, 'L4 "x"', 24 << 30)
SIMULATED = Device("simulated-1", 1, "simulated", simulated=True)
BUSY = {"GPU-a": DeviceFigures(2 << 30, 35), "GPU-other": DeviceFigures(1, 1)}


def pod(name: str, devices: str = "") -> dict[str, Any]:
    annotations = {"kserve-local.dev/devices": devices}
    return {"metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": annotations}}


class Meter:
    async def figures(self) -> Mapping[str, DeviceFigures]:
        return BUSY


def usage() -> PodUsage:
    return PodUsage(FakeBackend(), Meter(), DeviceInventory((L4, SIMULATED), present=True))


def test_cpu_memory_and_gpus_of_pods() -> None:
    one, waits = pod("one"), pod("waits")
    text = render([(one, Usage(1.5, 64)), (waits, None)], [(one, L4), (one, SIMULATED)], BUSY)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    who = 'gpu="0",UUID="GPU-a",modelName="L4 \\"x\\"",namespace="ns",pod="one"'
    assert lines == [
        'pod_cpu_usage_seconds_total{namespace="ns",pod="one"} 1.500000',
        'pod_memory_working_set_bytes{namespace="ns",pod="one"} 64',
        f'kserve_local_pod_gpu{{{who},simulated="false"}} 1',
        'kserve_local_pod_gpu{gpu="1",UUID="simulated-1",modelName="simulated",namespace="ns",'
        'pod="one",simulated="true"} 1',
        f"DCGM_FI_DEV_FB_USED{{{who}}} 2048",
        f"DCGM_FI_DEV_FB_FREE{{{who}}} 22528",
        f"DCGM_FI_DEV_GPU_UTIL{{{who}}} 35",
    ]


async def test_a_pod_that_has_ended_uses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = usage()

    async def gone(replica: str) -> Usage:
        raise NotFound("it has ended")

    monkeypatch.setattr(made.backend, "usage", gone)
    assert await made.of(pod("one")) is None


async def test_status_names_gpus_with_what_they_do() -> None:
    found = await gpus_of(
        [pod("one", "GPU-a"), pod("two", "simulated-1,GPU-gone"), pod("x")], usage()
    )
    assert [(g["pod"], g["id"], g["memoryUsed"], g["utilization"]) for g in found] == [
        ("one", "GPU-a", 2 << 30, 35),
        ("two", "simulated-1", None, None),
    ]
    assert column({"gpus": found}) == "0 (2.0/24G 35%), 1 (simulated)"
    assert column({"gpus": []}) == "-"
