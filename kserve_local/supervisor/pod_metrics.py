"""What Pods use, as Prometheus text, at `GET /apis/kserve-local.dev/v1/metrics`.

CPU and memory under the names of the kubelet's `/metrics/resource`, GPUs under those of NVIDIA's
DCGM exporter, so that a cluster's dashboards fit.

Source: kubernetes pkg/kubelet/metrics/collectors/resource_metrics.go; dcgm-exporter
etc/default-counters.csv (frame buffer in MiB, utilization in percent).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kserve_local.api import scheme
from kserve_local.api.meta import Object, name_of, namespace_of
from kserve_local.interfaces.backend import Usage
from kserve_local.interfaces.devices import Device, DeviceFigures
from kserve_local.store.store import Store
from kserve_local.supervisor.pod_usage import PodUsage

PATH = "/apis/kserve-local.dev/v1/metrics"
_MIB = 1 << 20


def routes(store: Store, usage: PodUsage) -> Sequence[BaseRoute]:
    """Return the route that the API server serves."""

    async def metrics(request: Request) -> Response:
        pods = sorted(store.list(scheme.POD.id), key=lambda p: (namespace_of(p), name_of(p)))
        used = await asyncio.gather(*(usage.of(pod) for pod in pods))
        held = [(pod, device) for pod in pods for device in usage.held_by(pod)]
        figures = await usage.figures()
        text = render(list(zip(pods, used, strict=True)), held, figures)
        return Response(text, media_type="text/plain; version=0.0.4")

    return [Route(PATH, metrics, methods=["GET"])]


def render(
    pods: Sequence[tuple[Object, Usage | None]],
    held: Sequence[tuple[Object, Device]],
    figures: Mapping[str, DeviceFigures],
) -> str:
    """Return the exposition. Pure.

    Args:
        pods: With what each uses; None: nothing runs.
        held: Which Pod has which GPU.
        figures: How busy the GPUs are, by id.
    """
    out: list[str] = []

    def family(name: str, kind: str, text: str, lines: Sequence[str]) -> None:
        out.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines))

    running = [(_labels(pod), used) for pod, used in pods if used is not None]
    family(
        "pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod.",
        [f"pod_cpu_usage_seconds_total{{{who}}} {used.cpu_seconds:.6f}" for who, used in running],
    )  # fmt: skip
    family(
        "pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes.",
        [f"pod_memory_working_set_bytes{{{who}}} {used.memory_bytes}" for who, used in running],
    )  # fmt: skip
    family(
        "kserve_local_pod_gpu", "gauge", "GPUs of Pods, simulated ones among them: always 1.",
        [
            f'kserve_local_pod_gpu{{{_gpu(d)},{_labels(pod)},simulated="{str(d.simulated).lower()}"'
            "} 1"
            for pod, d in held
        ],
    )  # fmt: skip
    real = [(f"{_gpu(d)},{_labels(pod)}", d, figures[d.id]) for pod, d in held if d.id in figures]
    family(
        "DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).",
        [f"DCGM_FI_DEV_FB_USED{{{who}}} {f.memory_used_bytes // _MIB}" for who, _, f in real],
    )  # fmt: skip
    family(
        "DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer memory free (in MiB).",
        [
            f"DCGM_FI_DEV_FB_FREE{{{who}}} {(d.memory_bytes - f.memory_used_bytes) // _MIB}"
            for who, d, f in real
            if d.memory_bytes
        ],
    )  # fmt: skip
    family(
        "DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).",
        [
            f"DCGM_FI_DEV_GPU_UTIL{{{who}}} {f.utilization}"
            for who, _, f in real
            if f.utilization is not None
        ],
    )  # fmt: skip
    return "\n".join(out) + "\n"


def _labels(pod: Object) -> str:
    # Names of objects hold nothing that needs escaping.
    return f'namespace="{namespace_of(pod)}",pod="{name_of(pod)}"'


def _gpu(device: Device) -> str:
    model = device.name.replace("\\", "\\\\").replace('"', '\\"')
    return f'gpu="{device.index}",UUID="{device.id}",modelName="{model}"'
