"""Extended resources are whole, and limits are requests: in the API server's words."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api.manifest import load
from kserve_local.api.review import review
from kserve_local.api.validation_resources import check, is_extended
from kserve_local.errors import Invalid

GPU = "nvidia.com/gpu"


def pod(**resources: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "resources": resources}]},
    }


@pytest.mark.parametrize(
    "resources",
    [
        {"limits": {GPU: 1}},
        {"limits": {GPU: "2"}, "requests": {GPU: 2}},
        {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m", "memory": "1.5Gi"}},
        {"limits": {"cpu": "1"}, "requests": {"example.kubernetes.io/x": "0.5"}},
    ],
)
def test_what_a_cluster_takes(resources: dict[str, Any]) -> None:
    check(pod(**resources))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (
            {"limits": {GPU: "500m"}},
            f'limits[{GPU}]: Invalid value: "500m": must be an integer',
        ),
        (
            {"limits": {GPU: 2}, "requests": {GPU: 1}},
            f'requests: Invalid value: "1": must be equal to {GPU} limit of 2',
        ),
        (
            {"requests": {GPU: 1}},
            "limits: Required value: Limit must be set for non overcommitable resources",
        ),
    ],
)
def test_what_a_cluster_refuses(resources: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid) as refused:
        check(pod(**resources))
    text = f"spec.containers[0].resources.{message}"
    assert str(refused.value) == f'Pod "p" is invalid: {text}'
    assert [f"{c.field}: {c.message}" for c in refused.value.causes] == [text]


def test_a_deployment_is_checked_as_its_pods_are() -> None:
    template = {"spec": pod(limits={GPU: "0.5"})["spec"]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"template": template},
    }
    with pytest.raises(Invalid, match=r"spec\.template\.spec\.containers\[0\]") as refused:
        check(deployment)
    assert str(refused.value).startswith('Deployment.apps "d" is invalid: ')


def test_native_resources_are_not_extended() -> None:
    names = (GPU, "cpu", "hugepages-2Mi", "kubernetes.io/x", "attachable.kubernetes.io/y")
    assert [is_extended(n) for n in names] == [True, False, False, False, False]


YAML = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: iris}}
spec:
  predictor:
    model:
      modelFormat: {{name: sklearn}}
      storageUri: gs://bucket/model
      resources:
        limits: {{{limits}}}
"""


@pytest.mark.parametrize(
    ("limits", "severity", "words"),
    [
        ("nvidia.com/gpu: 500m", "error", "must be an integer"),
        ("nvidia.com/mig-1g.5gb: 1", "note", "MIG slices are not offered; the Pod stays Pending"),
    ],
)
def test_validate_tells_before_anything_runs(limits: str, severity: str, words: str) -> None:
    (report,) = review({"a.yaml": load(YAML.format(limits=limits), "a.yaml")})
    (finding,) = report.findings
    assert (finding.severity, finding.line, finding.refuses) == (severity, 10, False)
    assert words in finding.message


def test_validate_says_nothing_of_whole_gpus() -> None:
    (report,) = review({"a.yaml": load(YAML.format(limits="nvidia.com/gpu: 1"), "a.yaml")})
    assert report.findings == ()
