"""How many replicas: what a policy sees, by which settings, and what it says.

Values only, and the `ScalingPolicy` protocol. The live loop (asyncio) and the simulator (virtual
clock) hand the same values to the same policy. Times are seconds on one clock of the caller's;
counts are replicas.

Source: traffic.md 1.3, 1.4, 1.8, 1.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

UNKNOWN = -1
"""A desired count that says: nothing is known yet, leave the replicas as they are."""

Metric = Literal["concurrency", "rps"]
Aggregation = Literal["linear", "weighted-exponential"]


@dataclass(frozen=True, slots=True)
class ScalingConfig:
    """One revision's settings: annotations, `containerConcurrency` and ConfigMap put together.

    Args:
        metric: What is averaged: requests in flight, or requests that arrive in a second.
        target: What one replica should carry on average; `total` times the utilization.
        total: What one replica can carry.
        stable_window / panic_window: Seconds, whole.
        panic_threshold: Panic at so many times the replicas that are ready.
        max_scale_up_rate / max_scale_down_rate: At most times, or at least divided by, per tick.
        target_burst_capacity: Spare slots below which the activator stays in the path; 0: only at
            zero; -1: always.
        activation_scale: Fewest replicas while there is traffic; below 2: no such rule.
        scale_down_delay: Seconds for which the largest desired count is kept.
        min_scale / max_scale / initial_scale: Bounds outside the policy; `max_scale` 0: none.
        scale_to_zero: False: one replica stays.
        grace_period: Seconds in which the activator must have been in the path before zero.
        retention: Least seconds from inactive to zero; 0: no such rule.
        progress_deadline: Seconds a start may take before it is given up.
    """

    metric: Metric = "concurrency"
    target: float = 70.0
    total: float = 100.0
    stable_window: float = 60.0
    panic_window: float = 6.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    target_burst_capacity: float = 211.0
    activation_scale: int = 0
    scale_down_delay: float = 0.0
    aggregation: Aggregation = "linear"
    min_scale: int = 0
    max_scale: int = 0
    initial_scale: int = 1
    scale_to_zero: bool = True
    grace_period: float = 30.0
    retention: float = 0.0
    progress_deadline: float = 600.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a revision at a tick.

    Args:
        stable / panic: Averages of the metric over the two windows, all replicas together.
        ready: Replicas that are ready and not ending; may be 0.
        reachable: A route refers to the revision.
    """

    stable: float
    panic: float
    ready: int
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy wants, before min-scale, max-scale and scale to zero.

    Args:
        desired: Replicas; `UNKNOWN` before the first figures.
        excess_burst_capacity: Slots left when a burst of the target's size comes; below 0 the
            activator belongs in the path.
        panic: The policy is in panic.
        reason: One word for programs (`kpa` lists them).
        message: The same in words, with the numbers.
        seen: What it was decided on; None before the first figures.
    """

    desired: int
    excess_burst_capacity: int
    panic: bool
    reason: str
    message: str
    seen: Observation | None = None


S = TypeVar("S")


class ScalingPolicy(Protocol[S]):
    """Says how many replicas a revision should have. Pure: no clock, no I/O, no logging.

    `S` is what the policy remembers from tick to tick: an immutable value.
    """

    def start(self, config: ScalingConfig, *, ready: int, now: float) -> tuple[S, Decision]:
        """Return what a new revision, or one after a restart, begins with."""

    def decide(
        self, state: S, seen: Observation, config: ScalingConfig, *, now: float
    ) -> tuple[S, Decision]:
        """Return what is remembered, and what is wanted, after one tick."""
