"""The way to zero: from a wanted 0 to a written 0. Pure.

A revision goes inactive first, which brings the activator into the path, and loses its last
replica only once requests are known to be caught there.

Source: traffic.md 1.6; knative/serving pkg/reconciler/autoscaling/kpa/scaler.go.
"""

from __future__ import annotations

from dataclasses import dataclass

from kserve_local.autoscaler.bounds import Activity
from kserve_local.interfaces.scaling import UNKNOWN, ScalingConfig

RECHECK = 3.0
"""Seconds from going inactive to the first look at what is left to do."""
PROBE_PERIOD = 1.0
ACTIVATION_BUFFER = 30.0
"""Seconds on top of the progress deadline, so that a failed start is reported before its end."""


@dataclass(frozen=True, slots=True)
class ZeroStep:
    """What to do about a wanted 0.

    Args:
        want: 0: on the way to zero, or there; 1: one replica stays for now; -1: leave as it is.
        write: `want` is to be written as the scale.
        again: When to look again; None: when something changes.
        reason / message: Why, as in `Decision`.
    """

    want: int
    write: bool
    again: float | None
    reason: str
    message: str


def step(
    activity: Activity,
    config: ScalingConfig,
    *,
    proxy_since: float | None,
    probed: bool,
    reachable: bool,
    now: float,
) -> ZeroStep:
    """Return the next step of a revision whose bounded desired count is 0.

    Args:
        proxy_since: When the activator came into the path; None: it is not.
        probed: A probe through the revision's address was answered by the activator. Not asked
            for when the target burst capacity is -1: the activator never leaves the path then.
    """
    if not config.scale_to_zero:
        return ZeroStep(1, True, None, "ScaleToZeroDisabled", "enable-scale-to-zero is false")
    if activity.status == "Activating":
        return _activating(activity, config, now)
    if activity.status == "Active":
        return _active(activity, config, now)
    return _inactive(activity, config, proxy_since, probed, reachable, now)


def _activating(activity: Activity, config: ScalingConfig, now: float) -> ZeroStep:
    end = activity.since + config.progress_deadline + ACTIVATION_BUFFER
    if now >= end:
        waited = f"{now - activity.since:.0f} s"
        return ZeroStep(0, True, None, "TimedOut", f"not ready after {waited}: given up")
    return ZeroStep(UNKNOWN, False, end, "Activating", "a start is under way and is let finish")


def _active(activity: Activity, config: ScalingConfig, now: float) -> ZeroStep:
    idle_at = activity.since + config.stable_window
    if now < idle_at:
        text = f"active for less than {config.stable_window:g} s: one replica stays"
        return ZeroStep(1, True, idle_at, "RecentlyActive", text)
    return _going(now + RECHECK)


def _going(again: float) -> ZeroStep:
    return ZeroStep(0, False, again, "GoingInactive", "no traffic: the activator takes over")


def _inactive(
    activity: Activity,
    config: ScalingConfig,
    proxy_since: float | None,
    probed: bool,
    reachable: bool,
    now: float,
) -> ZeroStep:
    if now < activity.since + RECHECK:
        return _going(activity.since + RECHECK)
    if config.target_burst_capacity != -1 and not probed:
        text = "the activator does not answer for the revision yet"
        return ZeroStep(0, False, now + PROBE_PERIOD, "ProbingActivator", text)
    retention = config.retention if reachable else 0.0
    zero = ZeroStep(0, True, None, "ScaledToZero", "no traffic, and the activator is in the path")
    if now >= activity.since + max(config.grace_period, retention):
        return zero
    if now < activity.since + retention:
        text = f"the last replica is kept for {retention:g} s"
        return ZeroStep(0, False, activity.since + retention, "Retention", text)
    if proxy_since is not None and now >= proxy_since + config.grace_period:
        return zero
    again = (now if proxy_since is None else proxy_since) + config.grace_period
    text = f"the activator has to be in the path for {config.grace_period:g} s first"
    return ZeroStep(0, False, again, "GracePeriod", text)
