"""The ConfigMap `knative-serving/config-autoscaler`: what holds for every revision. Pure.

Read by the autoscaler and by Knative's webhook, which refuses an edit that could not be used.
Source: traffic.md 1.8; knative/serving pkg/autoscaler/config/config.go; knative/pkg
webhook/configmaps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from kserve_local.api import names
from kserve_local.api.meta import Object, name_of, namespace_of
from kserve_local.api.pod_autoscaler import CLUSTER_CONFIG
from kserve_local.api.validation_knative import parse_duration
from kserve_local.errors import Forbidden, Invalid

LEAST_TARGET = 0.01
_SHORTEST_WINDOW, _LONGEST_WINDOW = 6.0, 3600.0
_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ClusterScaling:
    """What holds for every revision that does not say otherwise. Durations in seconds.

    Args:
        target_utilization: Fraction of `concurrency_target` to aim at.
        panic_window_percentage / panic_threshold_percentage: In percent.
        activator_capacity: Requests that one activator is meant for; has no effect here, where
            there is one.
        max_scale_limit: Largest max-scale that a revision may ask for; 0: none.
    """

    target_utilization: float = 0.7
    concurrency_target: float = 100.0
    rps_target: float = 200.0
    target_burst_capacity: float = 211.0
    stable_window: float = 60.0
    panic_window_percentage: float = 10.0
    panic_threshold_percentage: float = 200.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    scale_to_zero: bool = True
    grace_period: float = 30.0
    retention: float = 0.0
    scale_down_delay: float = 0.0
    autoscaler_class: str = names.KPA_CLASS
    activator_capacity: float = 100.0
    initial_scale: int = 1
    allow_zero_initial_scale: bool = False
    min_scale: int = 0
    max_scale: int = 0
    max_scale_limit: int = 0


DEFAULTS = ClusterScaling()


def cluster_scaling(data: Mapping[str, str]) -> ClusterScaling:
    """Return the settings in a ConfigMap's data; keys that are not known are left alone.

    Raises:
        Invalid: The first value that cannot be used, in Knative's words.
    """
    try:
        return _read(data)
    except _Unusable as error:
        where = f"{CLUSTER_CONFIG.namespace}/{CLUSTER_CONFIG.name}"
        raise Invalid(f'ConfigMap "{where}": {error}') from error


def check(config_map: Object) -> list[str]:
    """Return the warnings (none) for a ConfigMap that may be stored; most are none of ours.

    Raises:
        Forbidden: It is the autoscaler's, and has a value that cannot be used.
    """
    if (namespace_of(config_map), name_of(config_map)) == (
        CLUSTER_CONFIG.namespace,
        CLUSTER_CONFIG.name,
    ):
        try:
            _read(config_map.get("data") or {})
        except _Unusable as error:
            raise Forbidden(f"validation failed: {error}") from error
    return []


class _Unusable(Exception):
    """A value cannot be used; Knative's words for it."""


def _read(data: Mapping[str, str]) -> ClusterScaling:
    read = _Reader(data)
    fraction = read.number("container-concurrency-target-percentage", DEFAULTS.target_utilization)
    config = ClusterScaling(
        target_utilization=fraction / 100 if fraction > 1 else fraction,
        concurrency_target=read.number(
            "container-concurrency-target-default", DEFAULTS.concurrency_target
        ),
        rps_target=read.number("requests-per-second-target-default", DEFAULTS.rps_target),
        target_burst_capacity=read.number("target-burst-capacity", DEFAULTS.target_burst_capacity),
        stable_window=read.duration("stable-window", DEFAULTS.stable_window),
        panic_window_percentage=read.number(
            "panic-window-percentage", DEFAULTS.panic_window_percentage
        ),
        panic_threshold_percentage=read.number(
            "panic-threshold-percentage", DEFAULTS.panic_threshold_percentage
        ),
        max_scale_up_rate=read.number("max-scale-up-rate", DEFAULTS.max_scale_up_rate),
        max_scale_down_rate=read.number("max-scale-down-rate", DEFAULTS.max_scale_down_rate),
        scale_to_zero=read.flag("enable-scale-to-zero", DEFAULTS.scale_to_zero),
        grace_period=read.duration("scale-to-zero-grace-period", DEFAULTS.grace_period),
        retention=read.duration("scale-to-zero-pod-retention-period", DEFAULTS.retention),
        scale_down_delay=read.duration("scale-down-delay", DEFAULTS.scale_down_delay),
        autoscaler_class=data.get("pod-autoscaler-class", DEFAULTS.autoscaler_class),
        activator_capacity=read.number("activator-capacity", DEFAULTS.activator_capacity),
        initial_scale=read.integer("initial-scale", DEFAULTS.initial_scale),
        allow_zero_initial_scale=read.flag(
            "allow-zero-initial-scale", DEFAULTS.allow_zero_initial_scale
        ),
        min_scale=read.integer("min-scale", DEFAULTS.min_scale),
        max_scale=read.integer("max-scale", DEFAULTS.max_scale),
        max_scale_limit=read.integer("max-scale-limit", DEFAULTS.max_scale_limit),
    )
    for broken, text in _rules(config):
        if broken:
            raise _Unusable(text)
    return config


def number_of(text: str) -> float | None:
    """Return the finite number that the text is; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class _Reader:
    """Reads values of a ConfigMap; what does not parse is named as Go names it."""

    def __init__(self, data: Mapping[str, str]) -> None:
        self._data = data

    def number(self, key: str, default: float) -> float:
        text = self._data.get(key)
        if text is None:
            return default
        value = number_of(text)
        if value is None:
            raise _unparsed(key, f'strconv.ParseFloat: parsing "{text}": invalid syntax')
        return value

    def integer(self, key: str, default: int) -> int:
        text = self._data.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise _unparsed(key, f'strconv.ParseInt: parsing "{text}": invalid syntax')
        if not -_MAX_INT32 - 1 <= int(text) <= _MAX_INT32:
            raise _unparsed(key, f'strconv.ParseInt: parsing "{text}": value out of range')
        return int(text)

    def duration(self, key: str, default: float) -> float:
        text = self._data.get(key)
        if text is None:
            return default
        value = parse_duration(text)
        if value is None:
            raise _unparsed(key, f'time: invalid duration "{text}"')
        return value

    def flag(self, key: str, default: bool) -> bool:
        text = self._data.get(key)
        return default if text is None else text.lower() == "true"


def _rules(c: ClusterScaling) -> tuple[tuple[bool, str], ...]:
    """Return each rule of Knative's as (is broken, text), in its order."""
    product = c.target_utilization * c.concurrency_target
    least_max = 1 if c.max_scale_limit > 0 else 0
    precision = "must be specified with at most second precision"
    return (
        (
            c.grace_period <= 0,
            f"scale-to-zero-grace-period must be positive, was: {_go(c.grace_period)}",
        ),
        (
            c.scale_down_delay < 0,
            f"scale-down-delay cannot be negative, was: {_go(c.scale_down_delay)}",
        ),
        (
            c.scale_down_delay % 1 != 0,
            f"scale-down-delay = {_go(c.scale_down_delay)}, {precision}",
        ),
        (
            c.retention < 0,
            f"scale-to-zero-pod-retention-period cannot be negative, was: {_go(c.retention)}",
        ),
        (
            c.target_burst_capacity < 0 and c.target_burst_capacity != -1,
            "target-burst-capacity must be either non-negative or -1 (for unlimited), was: "
            f"{c.target_burst_capacity:f}",
        ),
        (
            not 0 < c.target_utilization <= 1,
            f"container-concurrency-target-percentage = {c.target_utilization:f} is outside of "
            "valid range of (0, 100]",
        ),
        (
            product < LEAST_TARGET,
            "container-concurrency-target-percentage and container-concurrency-target-default "
            f"yield target concurrency of {product:g}, can't be less than {LEAST_TARGET}",
        ),
        (
            c.rps_target < LEAST_TARGET,
            f"requests-per-second-target-default must be at least {LEAST_TARGET}, was: "
            f"{c.rps_target:g}",
        ),
        (
            c.activator_capacity < 1,
            f"activator-capacity = {c.activator_capacity:g}, must be at least 1",
        ),
        (
            c.max_scale_up_rate <= 1,
            f"max-scale-up-rate = {c.max_scale_up_rate:g}, must be greater than 1.0",
        ),
        (
            c.max_scale_down_rate <= 1,
            f"max-scale-down-rate = {c.max_scale_down_rate:g}, must be greater than 1.0",
        ),
        (
            not _SHORTEST_WINDOW <= c.stable_window <= _LONGEST_WINDOW,
            f"stable-window = {_go(c.stable_window)}, must be in [6s; 1h0m0s] range",
        ),
        (c.stable_window % 1 != 0, f"stable-window = {_go(c.stable_window)}, {precision}"),
        (
            not 1 <= c.panic_window_percentage <= 100,
            f"panic-window-percentage = {c.panic_window_percentage:g}, must be in [1, 100] "
            "interval",
        ),
        (
            c.initial_scale < 0 or (c.initial_scale == 0 and not c.allow_zero_initial_scale),
            f"initial-scale = {c.initial_scale}, must be at least 0 (or at least 1 when "
            "allow-zero-initial-scale is false)",
        ),
        (c.min_scale < 0, f"min-scale = {c.min_scale}, must be at least 0"),
        (
            c.max_scale < least_max or 0 < c.max_scale_limit < c.max_scale,
            f"max-scale = {c.max_scale}, must be in [{least_max}, "
            f"max-scale-limit({c.max_scale_limit})] range",
        ),
        (c.max_scale_limit < 0, f"max-scale-limit = {c.max_scale_limit}, must be at least 0"),
        (
            0 < c.max_scale < c.min_scale,
            f"min-scale ({c.min_scale}) must be less than max-scale ({c.max_scale})",
        ),
    )


def _go(seconds: float) -> str:
    """Return a duration as Go prints it: `1h0m0s`, `500ms`."""
    if seconds < 0:
        return "-" + _go(-seconds)
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text


def _unparsed(key: str, why: str) -> _Unusable:
    return _Unusable(f'failed to parse data: failed to parse "{key}": {why}')
