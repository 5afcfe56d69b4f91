"""traffic.md 1.6: how long it takes to zero, and what has to happen first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kserve_local.autoscaler.bounds import Activity
from kserve_local.autoscaler.config import scaling_config
from kserve_local.autoscaler.revision_scaler import Applied, RevisionScaler
from kserve_local.autoscaler.to_zero import step
from kserve_local.interfaces.scaling import ScalingConfig
from tests.unit.autoscaler.replay import stat

PREFIX = "autoscaling.knative.dev/"
LONG = 10_000


def annotated(**values: str) -> ScalingConfig:
    return scaling_config({PREFIX + key.replace("_", "-"): v for key, v in values.items()})


def idle(
    config: ScalingConfig,
    *,
    ready: int = 1,
    active_since: float = -LONG,
    probe_from: float = 0.0,
    until: float = 400.0,
    load: float = 1.0,
) -> dict[float, Applied]:
    """Return what was applied when, after the last sample at t=0: ticks and asked-for looks."""
    scaler = RevisionScaler(
        config,
        ready=ready,
        now=-300.0,
        activity=Activity("Active", active_since, initialized=True),
    )
    for second in range(-200, 1):
        scaler.record(stat(load), second)
        if second % 2 == 0:
            scaler.tick(ready, second)
            scaler.apply(ready, second)
    found: dict[float, Applied] = {}
    again: float | None = None
    now = 0.0
    while now < until:
        now = min(now + 2 - now % 2, again if again is not None else until)
        if now % 2 == 0:
            scaler.tick(ready, now)
        applied = scaler.apply(ready, now, probed=now >= probe_from)
        again = applied.again
        assert again is None or again > now
        found[now] = applied
        if applied.replicas is not None:
            ready = min(ready, applied.replicas)
        if ready == 0:
            break
    return found


def zero_at(found: dict[float, Applied]) -> float:
    return next(t for t, a in found.items() if a.replicas == 0)


def inactive_at(found: dict[float, Applied]) -> float:
    return next(t for t, a in found.items() if a.activity.status == "Inactive")


@pytest.mark.parametrize(
    ("config", "idle_at", "gone_at"),
    [
        (annotated(), 60, 63),
        (annotated(target_burst_capacity="0"), 60, 90),
        (annotated(target_burst_capacity="-1"), 60, 63),
        (annotated(scale_to_zero_pod_retention_period="2m"), 60, 180),
        (annotated(window="6s"), 6, 9),
    ],
    ids=["default", "tbc-0", "tbc-unlimited", "retention", "window-6s"],
)
def test_seconds_to_zero(config: ScalingConfig, idle_at: float, gone_at: float) -> None:
    found = idle(config)
    assert (inactive_at(found), zero_at(found)) == (idle_at, gone_at)
    assert found[gone_at].reason == "ScaledToZero"
    assert found[gone_at].mode == "Proxy"


def test_active_for_less_than_a_window_keeps_one() -> None:
    found = idle(annotated(), active_since=40.0)
    assert found[60].reason == "RecentlyActive"
    assert found[60].replicas == 1
    assert (inactive_at(found), zero_at(found)) == (100, 103)


def test_three_replicas_step_down_first() -> None:
    """With 3 idle ones the requests go straight to them; at 2 the activator is back."""
    found = idle(annotated(), ready=3, load=180.0)
    assert zero_at(found) == 63
    assert [a.mode for t, a in found.items() if t == 6] == ["Serve"]
    wants = {t: a.want for t, a in found.items()}
    assert wants[58] == 1
    assert found[60].mode == "Proxy"


def test_the_probe_has_to_reach_the_activator() -> None:
    """A second at a time; not asked for when the activator is always in the path."""
    found = idle(annotated(), probe_from=70.0)
    assert [t for t, a in found.items() if a.reason == "ProbingActivator"] == [
        63, 64, 65, 66, 67, 68, 69,
    ]  # fmt: skip
    assert zero_at(found) == 70
    assert zero_at(idle(annotated(target_burst_capacity="-1"), probe_from=LONG)) == 63


def test_zero_is_not_for_everyone() -> None:
    assert {a.replicas for a in idle(annotated(min_scale="1"), until=200).values()} == {1}
    kept = idle(replace(annotated(), scale_to_zero=False), until=200)
    assert kept[200].replicas == 1
    assert kept[200].reason == "ScaleToZeroDisabled"


def test_traffic_on_the_way_brings_it_back() -> None:
    scaler = RevisionScaler(
        annotated(), ready=1, now=0.0, activity=Activity("Active", -LONG, initialized=True)
    )
    for second in range(0, 62, 2):
        scaler.record(stat(0), second)
        scaler.tick(1, second)
    assert scaler.apply(1, 60.0).activity.status == "Inactive"
    assert scaler.arrived(61.5)
    scaler.tick(1, 61.5)
    applied = scaler.apply(1, 61.5)
    assert (applied.replicas, applied.activity.status) == (1, "Active")


def test_a_start_is_let_finish_and_given_up_in_the_end() -> None:
    config = replace(annotated(), progress_deadline=100.0)
    starting = Activity("Activating", 0.0, "Queued")

    def at(now: float) -> tuple[int, bool, float | None]:
        found = step(starting, config, proxy_since=0.0, probed=True, reachable=True, now=now)
        return found.want, found.write, found.again

    assert at(129) == (-1, False, 130)
    assert at(130) == (0, True, None)


def test_given_up_says_timed_out() -> None:
    scaler = RevisionScaler(annotated(), ready=0, now=0.0)
    assert scaler.apply(0, 0.0).want == -1
    last = scaler.apply(0, 630.0)
    assert (last.replicas, last.activity.reason) == (0, "TimedOut")


def test_unreachable_ignores_min_retention_and_delay() -> None:
    config = annotated(
        min_scale="2", scale_to_zero_pod_retention_period="10m", scale_down_delay="10m"
    )
    scaler = RevisionScaler(
        config,
        ready=1,
        now=-100.0,
        reachable=False,
        activity=Activity("Active", -LONG, initialized=True),
    )
    seen: dict[float, int | None] = {}
    for second in range(0, 66):
        scaler.record(stat(1 if second == 0 else 0), second)
        if second % 2 == 0:
            scaler.tick(1, second)
        if second % 2 == 0 or second == 63:
            seen[second] = scaler.apply(1, second).replicas
    assert seen[58] == 1
    assert seen[63] == 0
