"""Short ways to simulate: a service by its fields, requests by when they come and how long."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.simulator.durations import distribution
from kserve_local.simulator.load import Load
from kserve_local.simulator.result import Result
from kserve_local.simulator.service import Service, Terms, terms_of
from kserve_local.simulator.simulation import simulate
from kserve_local.simulator.trace import Trace

PREFIX = "autoscaling.knative.dev/"


def terms(
    annotations: Mapping[str, str] | None = None,
    cluster: Mapping[str, str] | None = None,
    **fields: Any,
) -> Terms:
    """Return the settings of a service with these; annotations without their prefix."""
    full = {PREFIX + key: value for key, value in (annotations or {}).items()}
    return terms_of(Service(fields=fields, annotations=full, cluster=cluster or {}))


def requests(calls: Sequence[tuple[float, float]], duration: float) -> Load:
    """Return a load of (arrival, seconds of work) each."""
    trace = Trace(
        array("d", (at for at, _ in calls)), array("d", (took for _, took in calls)), None, duration
    )
    return Load(duration, trace=trace)


def constant(
    count: int, since: float, until: float, *, each: float = 1.0
) -> list[tuple[float, float]]:
    """Return requests of `each` seconds that keep so many in flight."""
    rounds = round((until - since) / each)
    return [(since + i * each, each) for i in range(rounds) for _ in range(count)]


def run(
    wanted: Terms,
    calls: Sequence[tuple[float, float]],
    duration: float,
    *,
    cold: str = "4s",
    held: int = 100,
    **more: Any,
) -> Result:
    """Simulate."""
    return simulate(
        wanted, requests(calls, duration), distribution(cold, "--cold-start"), held=held, **more
    )


def steps(result: Result) -> list[tuple[float, int]]:
    """Return (time, replicas from then on) of each step."""
    return [(step.time, step.replicas) for step in result.steps]
