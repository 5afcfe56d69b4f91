"""Runs as words and tables for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kserve_local.simulator.chart import clock
from kserve_local.simulator.result import Result

SWEEP_HEADER = (
    "ANSWERED", "ERRORS", "P50", "P95", "P99", "MAX", "READY", "MOST", "STARTED", "FROM ZERO",
    "HELD", "QUEUED", "REPLICA-S", "USED",
)  # fmt: skip
STEPS_HEADER = ("TIME", "REPLICAS", "READY", "WHY")
_MEANINGS = {503: "queue full", 504: "timed out"}


def lines(result: Result) -> list[tuple[str, str]]:
    """Return name and value of what matters of one run."""
    latency = ", ".join(f"{name} {took(value)}" for name, value in result.latency.items())
    mean = result.requests / result.duration if result.duration else 0.0
    answered = result.codes.get(200, 0)
    wrong = [
        f"{n} {_MEANINGS.get(code, 'failed')} ({code})"
        for code, n in result.codes.items()
        if code != 200
    ]
    started = f"{result.starts} replicas"
    if result.wakes:
        started += f", {result.wakes} time{'s' if result.wakes > 1 else ''} from zero"
    return [
        (
            "REQUESTS",
            f"{result.requests}, {mean:.4g}/s on average, {result.most_requests}/s at most",
        ),
        ("ANSWERED", ", ".join((f"{answered} ({share(answered, result.requests)})", *wrong))),
        ("LATENCY", latency if answered else "-"),
        (
            "REPLICAS",
            f"{result.least_ready} to {result.most_ready} ready, {result.mean_ready:.4g} on "
            f"average, {result.replica_seconds:.0f} replica-seconds",
        ),
        ("USED", f"{result.utilisation:.1%} of what ready replicas could carry"),
        ("STARTED", started),
        ("HELD", f"{result.waited} without a replica, at most {result.most_held} at a time"),
        ("QUEUED", f"at most {result.most_queued} for a free place"),
    ]


def steps(result: Result, most: int | None) -> tuple[list[tuple[str, ...]], int]:
    """Return the first rows of why replicas changed, and how many more there are."""
    found = result.steps
    shown = found if most is None else found[:most]
    rows: list[tuple[str, ...]] = [
        (
            clock(step.time),
            f"{step.before} -> {step.replicas}",
            str(step.ready),
            f"{step.reason}: {step.message}",
        )
        for step in shown
    ]
    return rows, len(found) - len(shown)


def sweep_row(result: Result) -> tuple[str, ...]:
    """Return one row of the comparison, in the order of `SWEEP_HEADER`."""
    latency: Mapping[str, float] = result.latency
    return (
        str(result.codes.get(200, 0)),
        str(result.errors),
        *(took(latency[name]) for name in ("p50", "p95", "p99", "max")),
        f"{result.mean_ready:.4g}",
        str(result.most_ready),
        str(result.starts),
        str(result.wakes),
        str(result.most_held),
        str(result.most_queued),
        f"{result.replica_seconds:.0f}",
        f"{result.utilisation:.1%}",
    )


def took(seconds: float) -> str:
    """Return `41.2ms` or `3.02s`."""
    return f"{seconds * 1000:.3g}ms" if seconds < 0.9995 else f"{seconds:.4g}s"


def share(part: int, whole: int) -> str:
    """Return a percentage that says 100 % only if it is all."""
    if part == whole:
        return "100%"
    return f"{min(part / whole, 0.99999):.3%}"


def named(settings: Mapping[str, str]) -> str:
    """Return `scaleTarget=5 window=60s`."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def columns(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the header of a comparison by these settings."""
    return (*(key.upper() for key in keys), *SWEEP_HEADER)
