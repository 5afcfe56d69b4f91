"""A revision in virtual time: one sample a second, one tick at every even second.

The convention of traffic.md 1.11: the sample of second t is recorded, then at even t one tick runs;
a new replica is ready `start` seconds after the decision; scaling down is immediate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kserve_local.autoscaler.revision_scaler import RevisionScaler
from kserve_local.interfaces.scaling import Decision, ScalingConfig
from kserve_local.interfaces.stats import RequestStat

Load = Callable[[int], float]


def stat(concurrency: float, requests: int = 0, period: float = 1.0) -> RequestStat:
    """Return one report of the gateway."""
    return RequestStat("default/iris-00001", period, concurrency, requests)


@dataclass
class Step:
    """One tick."""

    decision: Decision
    stable: float
    panic: float
    ready: int
    applied: int


def replay(
    config: ScalingConfig,
    load: Load,
    *,
    until: int,
    start: int = 4,
    ready: int = 1,
    warm: float | None = 0.0,
    least: int = 0,
    reachable: bool = True,
    first: int = 1,
    calm: bool = False,
) -> dict[int, Step]:
    """Return what each tick up to `until` saw and decided.

    Args:
        load: Requests in flight, or for the metric rps arriving, in each second.
        warm: What the windows are filled with; None: nothing, they are empty.
        least: min-scale, applied outside the decider.
        calm: The decider is an old one: it does not start in panic.
    """
    rps = config.metric == "rps"
    scaler = RevisionScaler(
        config, ready=min(ready, 1) if calm else ready, now=float(first - 1), reachable=reachable
    )

    def report(second: int, value: float) -> None:
        scaler.record(stat(value, int(value) if rps else 0), float(second))

    if warm is not None:
        for second in range(first - int(config.stable_window), first):
            report(second, warm)
    steps: dict[int, Step] = {}
    coming: list[int] = []
    for second in range(first, until + 1):
        ready += sum(1 for at in coming if at <= second)
        coming = [at for at in coming if at > second]
        if ready or load(second):
            report(second, load(second))
        if second % 2:
            continue
        decision = scaler.tick(ready, float(second))
        assert decision.seen is not None
        most = config.max_scale or 10**9
        applied = min(max(decision.desired, least), most)
        steps[second] = Step(decision, decision.seen.stable, decision.seen.panic, ready, applied)
        more = applied - ready - len(coming)
        coming += [second + start] * max(0, more)
        if more < 0:
            ready = min(ready, applied)
            coming = coming[: max(0, applied - ready)]
    return steps


def changes(steps: dict[int, Step]) -> list[tuple[int, int]]:
    """Return (t, desired) where desired changed, the first included."""
    found: list[tuple[int, int]] = []
    for second, step in steps.items():
        if not found or found[-1][1] != step.decision.desired:
            found.append((second, step.decision.desired))
    return found


def calm_at(steps: dict[int, Step]) -> int:
    """Return the first tick out of panic after one in panic."""
    panicking = False
    for second, step in steps.items():
        if panicking and not step.decision.panic:
            return second
        panicking = step.decision.panic
    raise AssertionError("panic never ends")
