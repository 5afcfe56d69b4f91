"""The gateway's figures as Prometheus text, at `/-/metrics`.

Names follow Knative's where the gateway stands for queue-proxy and activator
(`kn_serving_invocation_duration_seconds` and its bounds); our own start with
`kserve_local_gateway_`.

Source: traffic.md section 3.6; Prometheus text format 0.0.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kserve_local.gateway.metrics import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kserve_local.gateway.proxy import Dataplane, TargetState

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_OWN = "kserve_local_gateway_"
_DURATION = "kn_serving_invocation_duration_seconds"


def render(plane: Dataplane, *, uptime: float) -> bytes:
    """Return the exposition of everything known now; `uptime` in seconds."""
    out: list[str] = []
    states = sorted(plane.targets.items())
    labels = {key: _labels(key) for key, _ in states}
    for state in plane.targets.values():
        state.figures.fold()

    def family(name: str, kind: str, text: str) -> None:
        out.append(f"# HELP {name} {text}")
        out.append(f"# TYPE {name} {kind}")

    family(f"{_OWN}requests_total", "counter", "Requests ended, by status; 0: the client left.")
    for key, state in states:
        for code, count in sorted(state.figures.codes.items()):
            out.append(f'{_OWN}requests_total{{{labels[key]},code="{code}"}} {count}')
    family(_DURATION, "histogram", "Seconds from arrival to the end of the answer.")
    for key, state in states:
        figures = state.figures
        for bound, count in zip(BOUNDS, figures.buckets, strict=True):
            out.append(f'{_DURATION}_bucket{{{labels[key]},le="{bound}"}} {count}')
        out.append(f'{_DURATION}_bucket{{{labels[key]},le="+Inf"}} {figures.count}')
        out.append(f"{_DURATION}_sum{{{labels[key]}}} {figures.total:.6f}")
        out.append(f"{_DURATION}_count{{{labels[key]}}} {figures.count}")
    gauges: tuple[tuple[str, str, Callable[[TargetState], int]], ...] = (
        ("in_flight", "Requests at a replica or held.", lambda s: len(s.in_flight)),
        ("held", "Requests waiting for a replica.", lambda s: len(s.breaker)),
        ("endpoints", "Replicas in the table.", lambda s: len(s.endpoints)),
        ("endpoints_usable", "Replicas that take connections.", lambda s: len(s.usable)),
    )
    for name, text, value in gauges:
        family(f"{_OWN}{name}", "gauge", text)
        out += [f"{_OWN}{name}{{{labels[key]}}} {value(state)}" for key, state in states]
    for name, kind, text, number in (
        ("client_connections", "gauge", "Open client connections.", len(plane.clients)),
        ("client_connections_total", "counter", "Client connections taken.", plane.connections),
        ("refusals_total", "counter", "Malformed requests, refused dials.", plane.refusals),
        ("table_version", "gauge", "Version of the route table.", plane.table.version),
        ("uptime_seconds", "gauge", "Seconds since start.", round(uptime, 3)),
    ):
        family(f"{_OWN}{name}", kind, text)
        out.append(f"{_OWN}{name} {number}")
    return ("\n".join(out) + "\n").encode()


def _labels(target: str) -> str:
    namespace, _, revision = target.partition("/")
    return f'namespace="{_escape(namespace)}",revision="{_escape(revision)}"'


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
