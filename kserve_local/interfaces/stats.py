"""What crosses from the gateway to the supervisor: per-target statistics once a second, pokes, and
how long who poked had to wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RequestStat:
    """One target (revision) in one period.

    Args:
        target: `Target.id`.
        period: Length in seconds.
        average_concurrency: Time-weighted mean of requests in flight or held.
        requests: Requests that arrived.
        in_flight: Requests in flight or held at the end of the period.
        held: Requests waiting for a replica at the end of the period.
        errors: Answers with status 500 or above.
        p50 / p95: Seconds to the end of the answer; 0.0 without answers.
        failure: The last failure in words (`gateway.failures`); empty: none.
    """

    target: str
    period: float
    average_concurrency: float
    requests: int
    held: int = 0
    in_flight: int = 0
    errors: int = 0
    p50: float = 0.0
    p95: float = 0.0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Woken:
    """The end of the request that waited longest for a target's first replica.

    Args:
        pod: Which Pod answered, `namespace/name`; empty: it was not answered.
        arrived / answered: Seconds of the machine's monotonic clock, as in `time.monotonic`.
    """

    target: str
    pod: str
    arrived: float
    answered: float


class StatSink(Protocol):
    """Takes the gateway's figures; called on the supervisor's loop, must not block."""

    def record(self, stats: tuple[RequestStat, ...]) -> None: ...

    def poke(self, target: str) -> None:
        """A request found no replica of `target`."""
