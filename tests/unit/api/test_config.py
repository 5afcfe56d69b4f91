"""The ConfigMap inferenceservice-config: control-plane.md section 12."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kserve_local.api import builtin, config
from kserve_local.errors import Invalid


def of(**keys: Any) -> config.InferenceServiceConfig:
    data = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()
    }
    return config.parse({"data": data})


def test_shipped_values() -> None:
    """Without a ConfigMap those that KServe ships."""
    shipped = config.parse(None)
    assert shipped == config.parse(builtin.config_map())
    assert shipped.default_deployment_mode == "Knative"
    assert shipped.resource.resources() == {
        "limits": {"cpu": "1", "memory": "2Gi"},
        "requests": {"cpu": "1", "memory": "2Gi"},
    }
    assert shipped.auto_mount_service_account_token is True
    assert shipped.storage_initializer.oci_mode == "modelcar"
    assert shipped.credentials.s3_secret_access_key_name == "AWS_SECRET_ACCESS_KEY"
    assert shipped.ingress.domain == "example.com"
    assert (shipped.batcher_max_batch_size, shipped.batcher_max_latency) == (32, 5000)


def test_an_empty_config_map() -> None:
    """Absent keys mean what KServe's code assumes, not what it ships."""
    empty = config.parse({"data": {}})
    assert empty.auto_mount_service_account_token is False
    assert empty.resource.resources() == {"limits": {}, "requests": {}}
    assert empty.credentials.s3_secret_access_key_name == "awsSecretAccessKey"
    assert empty.storage_initializer.oci_mode == ""
    assert config.parse({}) == empty


def test_lists_add_to_what_is_built_in() -> None:
    """Disallowed annotations and labels, GPU types."""
    parsed = of(
        inferenceService={
            "serviceAnnotationDisallowedList": ["a"],
            "serviceLabelDisallowedList": ["b"],
        },
        multiNode={"customGPUResourceTypeList": ["example.com/gpu"]},
        _example="not json, and ignored",
    )
    assert {
        "a",
        "modelFormat",
        "autoscaling.knative.dev/min-scale",
    } <= parsed.annotations_disallowed
    assert parsed.labels_disallowed == {"b", "networking.knative.dev/visibility"}
    assert parsed.gpu_resource_types[-1] == "example.com/gpu"
    assert "nvidia.com/gpu" in parsed.gpu_resource_types


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"deploy": {}}, "invalid deploy config, defaultDeploymentMode is required"),
        (
            {"deploy": {"defaultDeploymentMode": "Cloud"}},
            "invalid deployment mode. Supported modes are Knative, Standard and ModelMesh",
        ),
        ({"ingress": {}}, "invalid ingress config - ingressGateway is required"),
        (
            {"ingress": {"ingressGateway": "a/b", "pathTemplate": "/x"}},
            "invalid ingress config - ingressDomain is required if pathTemplate is given",
        ),
        ({"agent": "{"}, 'ConfigMap "kserve/inferenceservice-config": data.agent is no JSON'),
        ({"agent": "[]"}, 'ConfigMap "kserve/inferenceservice-config": data.agent must hold'),
        (
            {"storageInitializer": {"uidModelcar": "x"}},
            'ConfigMap "kserve/inferenceservice-config": data.storageInitializer',
        ),
    ],
)
def test_broken_config(keys: dict[str, Any], message: str) -> None:
    """KServe's words where it has some."""
    with pytest.raises(Invalid) as caught:
        of(**keys)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("annotation", "status", "mode"),
    [
        (None, "", "Knative"),
        ("Standard", "", "Standard"),
        ("RawDeployment", "", "Standard"),
        ("Cloud", "", "Knative"),
        ("Standard", "Knative", "Knative"),
        (None, "RawDeployment", "Standard"),
    ],
)
def test_deployment_mode_precedence(annotation: str | None, status: str, mode: str) -> None:
    """control-plane.md 2.6: status, then annotation, then the default."""
    assert config.parse(None).deployment_mode(annotation, status) == mode


def test_the_same_content_is_parsed_once() -> None:
    """Read on every reconcile and admission."""
    first = of(deploy={"defaultDeploymentMode": "Standard"})
    assert of(deploy={"defaultDeploymentMode": "Standard"}) is first
