"""traffic.md 1.3, 1.8, 1.9: targets, the ConfigMap, annotations."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api.autoscaler_config import DEFAULTS, ClusterScaling, cluster_scaling
from kserve_local.autoscaler.config import autoscaler_class, scaling_config
from kserve_local.errors import Invalid
from kserve_local.interfaces.scaling import ScalingConfig

PREFIX = "autoscaling.knative.dev/"


def annotated(**values: str) -> dict[str, str]:
    return {PREFIX + key.replace("_", "-"): value for key, value in values.items()}


@pytest.mark.parametrize(
    ("annotations", "limit", "expected"),
    [
        ({}, 0, (70, 100)),
        ({}, 10, (7, 10)),
        ({}, 1, (0.7, 1)),
        ({"target": "1"}, 0, (0.7, 1)),
        ({"target": "100"}, 10, (7, 10)),
        ({}, 3, (2.0999999999999996, 3)),
        ({"metric": "rps"}, 0, (140, 200)),
        ({"metric": "rps", "target": "5"}, 0, (3.5, 5)),
        ({"metric": "rps", "target": "50"}, 10, (35, 50)),
        ({"target": "10", "target_utilization_percentage": "50"}, 0, (5, 10)),
        ({"target": "0.01", "target_utilization_percentage": "1"}, 0, (0.01, 0.01)),
    ],
)
def test_target(annotations: dict[str, str], limit: int, expected: tuple[float, float]) -> None:
    config = scaling_config(annotated(**annotations), limit)
    assert (config.target, config.total) == pytest.approx(expected, rel=1e-15)


def test_nothing_given_is_what_the_dataclass_says() -> None:
    """Both state upstream's defaults; they must not drift apart."""
    assert scaling_config({}) == ScalingConfig()
    assert cluster_scaling({}) == DEFAULTS


ALL: dict[str, tuple[str, str, Any]] = {
    "target-burst-capacity": ("-1", "target_burst_capacity", -1),
    "min-scale": ("2", "min_scale", 2),
    "max-scale": ("9", "max_scale", 9),
    "initial-scale": ("4", "initial_scale", 4),
    "activation-scale": ("3", "activation_scale", 3),
    "window": ("1m30s", "stable_window", 90),
    "panic-window-percentage": ("50", "panic_window", 30),
    "panic-threshold-percentage": ("150", "panic_threshold", 1.5),
    "scale-down-delay": ("30s", "scale_down_delay", 30),
    "scale-to-zero-pod-retention-period": ("1m0.5s", "retention", 60.5),
    "metric-aggregation-algorithm": ("weightedExponential", "aggregation", "weighted-exponential"),
}


@pytest.mark.parametrize("key", ALL)
def test_every_annotation_has_its_field(key: str) -> None:
    text, field, value = ALL[key]
    assert getattr(scaling_config({PREFIX + key: text}), field) == value


@pytest.mark.parametrize("key", [key for key in ALL if "-" in key and key != "activation-scale"])
def test_camel_case_is_understood_and_loses(key: str) -> None:
    text, field, value = ALL[key]
    head, *rest = key.split("-")
    alias = PREFIX + head + "".join(part.capitalize() for part in rest)
    assert getattr(scaling_config({alias: text}), field) == value
    both = scaling_config({alias: "7", PREFIX + key: text})
    assert getattr(both, field) == value


def test_progress_deadline_comes_from_another_group() -> None:
    annotations = {"serving.knative.dev/progress-deadline": "90s"}
    assert scaling_config(annotations).progress_deadline == 90


def test_zero_initial_scale_only_where_the_cluster_allows_it() -> None:
    asked = annotated(initial_scale="0")
    assert scaling_config(asked).initial_scale == 1
    allowed = cluster_scaling({"allow-zero-initial-scale": "true"})
    assert scaling_config(asked, 0, allowed).initial_scale == 0


def test_config_map_sets_what_revisions_do_not() -> None:
    cluster = cluster_scaling(
        {
            "_example": "not read",
            "container-concurrency-target-percentage": "0.5",
            "container-concurrency-target-default": "10",
            "requests-per-second-target-default": "20",
            "stable-window": "30s",
            "max-scale-up-rate": "10",
            "max-scale-down-rate": "1.5",
            "enable-scale-to-zero": "False",
            "scale-to-zero-grace-period": "10s",
            "scale-to-zero-pod-retention-period": "5s",
            "scale-down-delay": "6s",
            "target-burst-capacity": "0",
            "initial-scale": "2",
            "min-scale": "1",
            "max-scale": "5",
            "max-scale-limit": "5",
            "pod-autoscaler-class": "hpa.autoscaling.knative.dev",
        }
    )
    assert scaling_config({}, 0, cluster) == ScalingConfig(
        target=5,
        total=10,
        stable_window=30,
        panic_window=3,
        max_scale_up_rate=10,
        max_scale_down_rate=1.5,
        target_burst_capacity=0,
        scale_down_delay=6,
        min_scale=1,
        max_scale=5,
        initial_scale=2,
        scale_to_zero=False,
        grace_period=10,
        retention=5,
    )
    assert scaling_config(annotated(min_scale="0"), 0, cluster).min_scale == 0
    assert autoscaler_class({}, cluster) == "hpa.autoscaling.knative.dev"
    assert autoscaler_class({PREFIX + "class": "x"}, cluster) == "x"


WRONG = [
    ("scale-to-zero-grace-period", "0s", "scale-to-zero-grace-period must be positive, was: 0s"),
    ("scale-down-delay", "-1s", "scale-down-delay cannot be negative, was: -1s"),
    (
        "scale-down-delay",
        "1500ms",
        "scale-down-delay = 1.5s, must be specified with at most second precision",
    ),
    (
        "scale-to-zero-pod-retention-period",
        "-1m",
        "scale-to-zero-pod-retention-period cannot be negative, was: -1m0s",
    ),
    (
        "target-burst-capacity",
        "-2",
        "target-burst-capacity must be either non-negative or -1 (for unlimited), was: -2.000000",
    ),
    (
        "container-concurrency-target-percentage",
        "101",
        "container-concurrency-target-percentage = 1.010000 is outside of valid range of (0, 100]",
    ),
    (
        "container-concurrency-target-default",
        "0.001",
        "container-concurrency-target-percentage and container-concurrency-target-default yield "
        "target concurrency of 0.0007, can't be less than 0.01",
    ),
    (
        "requests-per-second-target-default",
        "0",
        "requests-per-second-target-default must be at least 0.01, was: 0",
    ),
    ("activator-capacity", "0.5", "activator-capacity = 0.5, must be at least 1"),
    ("max-scale-up-rate", "1", "max-scale-up-rate = 1, must be greater than 1.0"),
    ("max-scale-down-rate", "1", "max-scale-down-rate = 1, must be greater than 1.0"),
    ("stable-window", "5s", "stable-window = 5s, must be in [6s; 1h0m0s] range"),
    ("stable-window", "2h", "stable-window = 2h0m0s, must be in [6s; 1h0m0s] range"),
    (
        "panic-window-percentage",
        "0",
        "panic-window-percentage = 0, must be in [1, 100] interval",
    ),
    (
        "initial-scale",
        "0",
        "initial-scale = 0, must be at least 0 (or at least 1 when allow-zero-initial-scale is "
        "false)",
    ),
    ("max-scale", "-1", "max-scale = -1, must be in [0, max-scale-limit(0)] range"),
    ("max-scale-limit", "3", "max-scale = 0, must be in [1, max-scale-limit(3)] range"),
    ("min-scale", "-1", "min-scale = -1, must be at least 0"),
    (
        "max-scale",
        "x",
        'failed to parse data: failed to parse "max-scale": strconv.ParseInt: parsing "x": '
        "invalid syntax",
    ),
    (
        "stable-window",
        "60",
        'failed to parse data: failed to parse "stable-window": time: invalid duration "60"',
    ),
]


@pytest.mark.parametrize(("key", "text", "said"), WRONG)
def test_config_map_is_checked_in_knatives_words(key: str, text: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        cluster_scaling({key: text})
    assert str(caught.value) == f'ConfigMap "knative-serving/config-autoscaler": {said}'


def test_min_above_max() -> None:
    with pytest.raises(Invalid, match=r"min-scale \(3\) must be less than max-scale \(2\)"):
        cluster_scaling({"min-scale": "3", "max-scale": "2"})


def test_values_that_do_not_parse_count_as_not_given() -> None:
    wrong = annotated(window="x", min_scale="-1", target="nan", max_scale="1.5")
    assert scaling_config(wrong, 0, ClusterScaling()) == ScalingConfig()
