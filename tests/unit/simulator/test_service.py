"""Settings out of YAML, and said differently for one run."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.errors import Invalid, NotFound, UsageError
from kserve_local.simulator.service import Service, service_of, terms_of, with_setting

PREFIX = "autoscaling.knative.dev/"


def isvc(name: str = "iris", *, annotations: Any = None, **predictor: Any) -> dict[str, Any]:
    return {
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations or {}},
        "spec": {"predictor": predictor},
    }


def config_map(**data: str) -> dict[str, Any]:
    return {
        "kind": "ConfigMap",
        "metadata": {"name": "config-autoscaler", "namespace": "knative-serving"},
        "data": {key.replace("_", "-"): value for key, value in data.items()},
    }


def test_without_yaml_all_is_kserve_s_default() -> None:
    terms = terms_of(Service())
    assert (terms.limit, terms.timeout, terms.initial) == (0, 300, 1)
    assert (terms.scaling.target, terms.scaling.min_scale, terms.scaling.max_scale) == (70, 1, 0)


def test_fields_annotations_and_the_cluster_s_config_count() -> None:
    service = service_of(
        [
            config_map(stable_window="30s", max_scale_down_rate="4"),
            isvc(
                annotations={PREFIX + "target-burst-capacity": "0", PREFIX + "min-scale": "7"},
                minReplicas=2, maxReplicas=9, scaleTarget=4, containerConcurrency=5, timeout=20,
                annotations_of_component=None,
            ),
        ],
        None,
        None,
    )  # fmt: skip
    terms = terms_of(service)
    scaling = terms.scaling
    assert service.name == "default/iris predictor"
    assert (terms.limit, terms.timeout, terms.initial) == (5, 20, 2)
    assert (scaling.min_scale, scaling.max_scale, scaling.total) == (2, 9, 4)
    assert (scaling.target_burst_capacity, scaling.stable_window) == (0, 30)
    assert scaling.max_scale_down_rate == 4


def test_one_of_several_is_named() -> None:
    objects = [isvc("a", scaleTarget=1), isvc("b", scaleTarget=2)]
    assert service_of(objects, "b", None).fields == {"scaleTarget": 2}
    with pytest.raises(UsageError, match=r"which one\? There are a, b"):
        service_of(objects, None, None)
    with pytest.raises(NotFound, match='no InferenceService "c" in the files; there are: a, b'):
        service_of(objects, "c", None)
    with pytest.raises(NotFound, match="no transformer"):
        service_of(objects, "a", "transformer")


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ({"serving.kserve.io/deploymentMode": "RawDeployment"}, "Standard mode"),
        ({PREFIX + "class": "hpa.autoscaling.knative.dev"}, "class hpa"),
    ],
)
def test_what_another_autoscaler_scales_is_refused(annotations: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        terms_of(service_of([isvc(annotations=annotations)], None, None))


@pytest.mark.parametrize(
    "fields",
    [
        {"minReplicas": 3, "maxReplicas": 2},
        {"scaleMetric": "cpu"},
        {"containerConcurrency": 1001},
        {"timeout": 601},
    ],
)
def test_what_a_cluster_would_refuse_is_invalid(fields: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="iris"):
        terms_of(service_of([isvc(**fields)], None, None))


def test_a_pinned_service_and_a_grace_of_the_project_count() -> None:
    terms = terms_of(Service(fields={"minReplicas": 0}, pinned=True, grace=5.0))
    assert (terms.scaling.min_scale, terms.scaling.grace_period) == (1, 5)


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("minReplicas", "3", "min_scale", 3),
        ("scaleTarget", "10", "total", 10),
        ("scaleMetric", "rps", "metric", "rps"),
        ("target", "2.5", "total", 2.5),
        ("window", "20s", "stable_window", 20),
        (PREFIX + "window", "20s", "stable_window", 20),
        ("initial-scale", "3", "initial_scale", 3),
        ("stable-window", "20s", "stable_window", 20),
        ("max-scale-up-rate", "2", "max_scale_up_rate", 2),
        ("enable-scale-to-zero", "false", "scale_to_zero", False),
        ("scale-to-zero-grace-period", "5s", "grace_period", 5),
    ],
)
def test_a_setting_may_be_said_differently(
    key: str, value: str, field: str, expected: object
) -> None:
    service = with_setting(Service(fields={"scaleTarget": 7}), key, value, "--sweep")
    assert getattr(terms_of(service).scaling, field) == expected


def test_an_unknown_setting_is_told_with_what_is_near() -> None:
    with pytest.raises(UsageError, match=r'--sweep: .*"scaletarget"; did you mean "scaleTarget"'):
        with_setting(Service(), "scaletarget", "1", "--sweep")


def test_a_field_that_is_a_number_takes_no_word() -> None:
    with pytest.raises(UsageError, match='minReplicas "few" is no whole number'):
        with_setting(Service(), "minReplicas", "few", "--sweep")
