"""What comes out of a simulation, as values; `summary` says it in plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Change:
    """A moment at which replicas changed: how many there should be, or how many are ready.

    Args:
        time: Seconds since the first request could come.
        replicas: Those there should be from now on; `before`: until now.
        ready: Those that take requests now.
        reason / message: Why `replicas` is what it is, if it changed now; else empty.
    """

    time: float
    before: int
    replicas: int
    ready: int
    reason: str = ""
    message: str = ""

    @property
    def is_step(self) -> bool:
        """Whether the autoscaler changed its mind."""
        return self.replicas != self.before


@dataclass(frozen=True, slots=True)
class Bins:
    """The run in equal pieces, for a picture.

    Args:
        width: Seconds of one piece.
        requests: Requests a second that arrived in it.
        in_flight: Mean number that ran or waited.
        held: Largest number that waited, at the ends of its seconds.
    """

    width: float
    requests: Sequence[float]
    in_flight: Sequence[float]
    held: Sequence[int]


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Durations in seconds.

    Args:
        settings: What a sweep said for this run.
        requests: That arrived; each has one of `codes` in the end.
        latency: Of those answered with 200: `mean`, `p50`, `p95`, `p99`, `max`.
        most_requests: Largest number that arrived in one second.
        waited: Requests that found no replica.
        most_held / most_queued: Largest number that waited for one; for a free place.
        starts: Replicas started after the first ones; `wakes`: times that one came from zero.
        replica_seconds: From the start of each replica until it had no request any more.
        mean_ready / least_ready / most_ready: Replicas that take requests.
        utilisation: Of what ready replicas could carry (`total` of the settings), the share used.
    """

    settings: Mapping[str, str]
    duration: float
    requests: int
    codes: Mapping[int, int]
    latency: Mapping[str, float]
    most_requests: int
    waited: int
    most_held: int
    most_queued: int
    starts: int
    wakes: int
    replica_seconds: float
    mean_ready: float
    least_ready: int
    most_ready: int
    utilisation: float
    changes: tuple[Change, ...]
    bins: Bins

    @property
    def steps(self) -> tuple[Change, ...]:
        """The changes of the number wanted."""
        return tuple(c for c in self.changes if c.is_step)

    @property
    def errors(self) -> int:
        """Answers other than 200."""
        return sum(n for code, n in self.codes.items() if code != 200)


def summary(result: Result) -> dict[str, Any]:
    """Return the run as JSON values; times to a millisecond, latencies to a microsecond."""
    return {
        "settings": dict(result.settings),
        "duration": round(result.duration, 3),
        "requests": result.requests,
        "requestsPerSecond": {
            "mean": round(result.requests / result.duration, 3) if result.duration else 0.0,
            "max": result.most_requests,
        },
        "codes": {str(code): n for code, n in sorted(result.codes.items())},
        "latency": {name: round(value, 6) for name, value in result.latency.items()},
        "coldStarts": result.wakes,
        "replicasStarted": result.starts,
        "requestsHeld": result.waited,
        "heldMax": result.most_held,
        "queuedMax": result.most_queued,
        "ready": {
            "mean": round(result.mean_ready, 4),
            "min": result.least_ready,
            "max": result.most_ready,
        },
        "replicaSeconds": round(result.replica_seconds, 3),
        "utilisation": round(result.utilisation, 4),
        "steps": [
            {
                "time": round(c.time, 3),
                "from": c.before,
                "to": c.replicas,
                "ready": c.ready,
                "reason": c.reason,
                "message": c.message,
            }
            for c in result.steps
        ],
        "timeline": {
            "width": result.bins.width,
            "requestsPerSecond": [round(v, 3) for v in result.bins.requests],
            "inFlight": [round(v, 3) for v in result.bins.in_flight],
            "held": list(result.bins.held),
            "changes": [[round(c.time, 3), c.replicas, c.ready] for c in result.changes],
        },
    }
