"""A revision's `ScalingConfig`: its annotations and `containerConcurrency` on top of the cluster's
settings (`api.autoscaler_config`). Pure.

Source: traffic.md 1.3, 1.9; knative/serving
pkg/reconciler/autoscaling/resources/{target,metric}.go.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from kserve_local.api import names
from kserve_local.api.autoscaler_config import (
    DEFAULTS,
    LEAST_TARGET,
    ClusterScaling,
    number_of,
)
from kserve_local.api.validation_knative import parse_duration, value_of
from kserve_local.interfaces.scaling import Aggregation, Metric, ScalingConfig

_RPS_UTILIZATION = 0.7
_MAX_INT32 = 2**31 - 1

T = TypeVar("T", int, float)


def autoscaler_class(annotations: Mapping[str, str], cluster: ClusterScaling = DEFAULTS) -> str:
    """Return which autoscaler a revision is for; ours is `names.KPA_CLASS`."""
    return annotations.get(names.AUTOSCALING_CLASS) or cluster.autoscaler_class


def scaling_config(
    annotations: Mapping[str, str],
    container_concurrency: int = 0,
    cluster: ClusterScaling = DEFAULTS,
) -> ScalingConfig:
    """Return a revision's settings.

    Args:
        annotations: Of the revision. Values that do not parse count as not given: admission
            (`api.validation_knative`) has refused them before.
        container_concurrency: Requests that one replica takes at a time; 0: no limit.
    """
    metric: Metric = "rps" if annotations.get(names.AUTOSCALING_METRIC) == "rps" else "concurrency"
    target, total = _target(annotations, metric, container_concurrency, cluster)
    window = _given(annotations, "window", parse_duration, cluster.stable_window)
    percentage = _given(
        annotations, "panic-window-percentage", number_of, cluster.panic_window_percentage
    )
    threshold = _given(
        annotations, "panic-threshold-percentage", number_of, cluster.panic_threshold_percentage
    )
    return ScalingConfig(
        metric=metric,
        target=target,
        total=total,
        stable_window=window,
        panic_window=panic_window(window, percentage),
        panic_threshold=threshold / 100,
        max_scale_up_rate=cluster.max_scale_up_rate,
        max_scale_down_rate=cluster.max_scale_down_rate,
        target_burst_capacity=_given(
            annotations, "target-burst-capacity", number_of, cluster.target_burst_capacity
        ),
        activation_scale=_count(annotations.get(names.ACTIVATION_SCALE, "")) or 0,
        scale_down_delay=_given(
            annotations, "scale-down-delay", parse_duration, cluster.scale_down_delay
        ),
        aggregation=_aggregation(annotations),
        min_scale=_given(annotations, "min-scale", _count, cluster.min_scale),
        max_scale=_given(annotations, "max-scale", _count, cluster.max_scale),
        initial_scale=_initial_scale(annotations, cluster),
        scale_to_zero=cluster.scale_to_zero,
        grace_period=cluster.grace_period,
        retention=_given(
            annotations, "scale-to-zero-pod-retention-period", parse_duration, cluster.retention
        ),
        progress_deadline=_progress_deadline(annotations),
    )


def panic_window(window: float, percentage: float) -> float:
    """Return the panic window in whole seconds, half up, at least 1."""
    return float(max(1, math.floor(window * percentage / 100 + 0.5)))


def _target(
    annotations: Mapping[str, str], metric: Metric, limit: int, cluster: ClusterScaling
) -> tuple[float, float]:
    """Return (target, total): what one replica should carry, and what it can."""
    if metric == "rps":
        total, utilization = cluster.rps_target, _RPS_UTILIZATION
    else:
        total = float(limit) if limit > 0 else cluster.concurrency_target
        utilization = cluster.target_utilization
    wanted = _given(annotations, "target", number_of, 0.0)
    if wanted > 0:
        total = min(wanted, limit) if metric == "concurrency" and limit > 0 else wanted
    percentage = _given(annotations, "target-utilization-percentage", number_of, 0.0)
    if percentage > 0:
        utilization = percentage / 100
    return max(LEAST_TARGET, total * utilization), total


def _aggregation(annotations: Mapping[str, str]) -> Aggregation:
    found = value_of(annotations, "metric-aggregation-algorithm")
    weighted = found is not None and found[1] in ("weighted-exponential", "weightedExponential")
    return "weighted-exponential" if weighted else "linear"


def _initial_scale(annotations: Mapping[str, str], cluster: ClusterScaling) -> int:
    wanted = _given(annotations, "initial-scale", _count, cluster.initial_scale)
    return wanted if wanted or cluster.allow_zero_initial_scale else cluster.initial_scale


def _progress_deadline(annotations: Mapping[str, str]) -> float:
    given = parse_duration(annotations.get(names.PROGRESS_DEADLINE, ""))
    return given if given is not None and given > 0 else ScalingConfig().progress_deadline


def _given(
    annotations: Mapping[str, str], key: str, parse: Callable[[str], T | None], default: T
) -> T:
    found = value_of(annotations, key)
    value = None if found is None else parse(found[1])
    return default if value is None else value


def _count(text: str) -> int | None:
    if not re.fullmatch(r"[+-]?[0-9]+", text) or not 0 <= int(text) <= _MAX_INT32:
        return None
    return int(text)
