"""One tick of Knative's pod autoscaler: from averages to a desired count. Pure.

It satisfies `interfaces.scaling.ScalingPolicy`. Bounds (min-scale, max-scale) and the way to zero
are applied afterwards (`bounds`, `to_zero`).

Reasons: `NoFigures` (nothing seen yet), `Idle` (no traffic), `Stable` (the long window asks for
it), `Panic` (the short one does), `PanicHold` (nothing shrinks while in panic), `ScaleUpRate` and
`ScaleDownRate` (one tick may not go further), `ActivationScale`, `ScaleDownDelay`.

Source: traffic.md 1.4; knative/serving pkg/autoscaler/scaling/{autoscaler,multiscaler}.go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kserve_local.interfaces.scaling import UNKNOWN, Decision, Observation, ScalingConfig

TICK = 2.0
"""Seconds from one decision to the next."""


@dataclass(frozen=True, slots=True)
class KpaState:
    """What is remembered from tick to tick.

    Args:
        panic_since: When the panic threshold was last exceeded; None: no panic.
        max_panic_pods: Largest count wanted in this panic.
        delayed: Slots of `TICK` seconds with what was desired then, oldest first, values falling:
            the first is the largest of the last `scale_down_delay` seconds.
    """

    panic_since: float | None = None
    max_panic_pods: int = 0
    delayed: tuple[tuple[int, int], ...] = ()


def start(config: ScalingConfig, *, ready: int, now: float) -> tuple[KpaState, Decision]:
    """Return the state and the decision that a revision begins with.

    More than one ready replica means that we know nothing of a revision which had traffic: it
    starts in panic, so that it keeps what it has until a window has been seen.
    """
    state = KpaState(now, ready) if ready > 1 else KpaState()
    burst = config.target_burst_capacity
    excess = int(burst) if burst in (0, -1) else int(config.initial_scale * config.total - burst)
    return state, Decision(UNKNOWN, excess, ready > 1, "NoFigures", "no figures yet")


def decide(
    state: KpaState, seen: Observation, config: ScalingConfig, *, now: float
) -> tuple[KpaState, Decision]:
    """Return the state and the decision after one tick with figures."""
    ready = max(1, seen.ready)
    most = math.ceil(config.max_scale_up_rate * ready)
    least = math.floor(ready / config.max_scale_down_rate) if seen.reachable else 0
    raw_stable = math.ceil(seen.stable / config.target)
    raw_panic = math.ceil(seen.panic / config.target)
    stable = _wanted(raw_stable, least, most, config.activation_scale)
    panic = _wanted(raw_panic, least, most, config.activation_scale)

    since, held = state.panic_since, state.max_panic_pods
    if raw_panic / ready >= config.panic_threshold:
        since = now
    elif since is not None and since + config.stable_window < now:
        since, held = None, 0

    desired = stable
    if since is not None:
        desired = held = max(stable, panic, held)

    before_delay, delayed = desired, state.delayed
    if seen.reachable and config.scale_down_delay > 0:
        delayed, desired = _delay(delayed, desired, config.scale_down_delay, now)

    reason, message = _why(
        seen, config, raw_stable, raw_panic, stable, panic, before_delay, desired, since
    )
    return KpaState(since, held, delayed), Decision(
        desired, _excess_burst_capacity(seen, config), since is not None, reason, message, seen
    )


def tells_more(before: Decision, after: Decision) -> bool:
    """Whether a decision changes what is applied: its count, or the sign of the burst capacity."""
    return before.desired != after.desired or (before.excess_burst_capacity < 0) != (
        after.excess_burst_capacity < 0
    )


def _wanted(raw: int, least: int, most: int, activation_scale: int) -> int:
    wanted = min(max(raw, least), most)
    return max(wanted, activation_scale) if activation_scale > 1 and raw > 0 else wanted


def _excess_burst_capacity(seen: Observation, config: ScalingConfig) -> int:
    burst = config.target_burst_capacity
    if burst == 0:
        return 0
    if burst < 0:
        return -1
    return math.floor(seen.ready * config.total - burst - seen.panic)


def _delay(
    before: tuple[tuple[int, int], ...], desired: int, delay: float, now: float
) -> tuple[tuple[tuple[int, int], ...], int]:
    """Return the slots that still matter with this one, and the largest desired count in them."""
    slot = math.floor(now / TICK)
    oldest = slot - math.ceil(delay / TICK)
    kept = tuple(entry for entry in before if entry[0] > oldest and entry[1] > desired)
    slots = (*kept, (slot, desired))
    return slots, slots[0][1]


def _why(
    seen: Observation,
    config: ScalingConfig,
    raw_stable: int,
    raw_panic: int,
    stable: int,
    panic: int,
    before_delay: int,
    desired: int,
    panic_since: float | None,
) -> tuple[str, str]:
    if desired > before_delay:
        delay = config.scale_down_delay
        return "ScaleDownDelay", f"{before_delay} would do, {desired} kept for {delay:g} s"
    by_panic = panic_since is not None and panic > stable
    if panic_since is not None and desired > max(stable, panic):
        return "PanicHold", f"{max(stable, panic)} would do, {desired} kept while in panic"
    raw, value = (raw_panic, panic) if by_panic else (raw_stable, stable)
    average = seen.panic if by_panic else seen.stable
    window = config.panic_window if by_panic else config.stable_window
    unit = "requests a second" if config.metric == "rps" else "in flight"
    load = f"{average:.4g} {unit} over {window:g} s, {config.target:.4g} a replica: {raw}"
    if value < raw:
        return "ScaleUpRate", f"{load}; {value} is the most that one step may reach"
    if value > raw:
        if raw > 0 and value == config.activation_scale:
            return "ActivationScale", f"{load}; activation-scale is {value}"
        return "ScaleDownRate", f"{load}; {value} is the least that one step may reach"
    if desired == 0:
        return "Idle", f"nothing {unit} over {window:g} s" if not average else load
    return ("Panic" if by_panic else "Stable"), load
