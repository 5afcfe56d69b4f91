"""What holds outside the policy: min-scale, max-scale, initial-scale, and when a revision counts
as active. Pure.

Source: traffic.md 1.5; knative/serving pkg/reconciler/autoscaling/kpa/{scaler,kpa}.go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kserve_local.interfaces.scaling import ScalingConfig

QUEUED = ("Queued", "Requests to the target are being buffered as resources are provisioned.")
NO_TRAFFIC = ("NoTraffic", "The target is not receiving traffic.")
TIMED_OUT = ("TimedOut", "The target could not be activated.")

ActiveStatus = Literal["Activating", "Active", "Inactive"]


@dataclass(frozen=True, slots=True)
class Activity:
    """Where a revision stands (PodAutoscaler conditions `Active` and `ScaleTargetInitialized`).

    Args:
        status: Condition `Active`: Unknown, True, False.
        since: When it last changed.
        reason / message: Of the condition; empty while active.
        initialized: The initial scale was reached once.
    """

    status: ActiveStatus
    since: float
    reason: str = ""
    message: str = ""
    initialized: bool = False


def bounds(config: ScalingConfig, *, reachable: bool, initialized: bool) -> tuple[int, int]:
    """Return the fewest and the most replicas; 0 for the latter: no limit."""
    least = config.min_scale if reachable else 0
    if config.initial_scale > 1 and reachable and not initialized:
        least = max(least, config.initial_scale)
    return least, config.max_scale


def applied(desired: int, least: int, most: int) -> int:
    """Return the desired count within its bounds; the lower one wins over the upper one.

    They only cross while an initial-scale above max-scale holds.
    """
    if desired < least:
        return least
    return min(desired, most) if most else desired


def threshold(config: ScalingConfig, *, reachable: bool, initialized: bool) -> int:
    """Return how many ready replicas make a revision active; 0 if it starts at zero."""
    least = config.min_scale if reachable else 0
    return max(least, 1 if initialized else config.initial_scale)


def activity(
    before: Activity, want: int, ready: int, config: ScalingConfig, *, reachable: bool, now: float
) -> Activity:
    """Return where the revision stands, given what is wanted and what is there.

    Args:
        want: Replicas after bounds and the way to zero; -1: not known yet, or left as it is.
    """
    least = threshold(config, reachable=reachable, initialized=before.initialized)
    after = before if before.initialized or ready < least else replace(before, initialized=True)
    if want == 0 or least == 0:
        gave_up = before.status == "Activating" and least > 0
        return _turned(after, "Inactive", *(TIMED_OUT if gave_up else NO_TRAFFIC), now=now)
    if want < 0 and before.status == "Inactive":
        return after
    if ready < least:
        return _turned(after, "Activating", *QUEUED, now=now)
    return _turned(after, "Active", "", "", now=now)


def _turned(
    before: Activity, status: ActiveStatus, reason: str, message: str, *, now: float
) -> Activity:
    if before.status == status:
        if status == "Inactive" or before.reason == reason:
            return before
        return replace(before, reason=reason, message=message)
    return replace(before, status=status, since=now, reason=reason, message=message)
