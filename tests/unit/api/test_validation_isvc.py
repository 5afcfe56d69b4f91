"""One test per row of control-plane.md 2.5, by the row's number, and the canary rules of 6.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kserve_local.api import config, defaults, validation
from kserve_local.errors import Forbidden

CONFIG = config.parse(None)
WEBHOOK = "inferenceservice.kserve-webhook-server.validator"
STANDARD = {"serving.kserve.io/deploymentMode": "Standard"}
MULTI_NODE = {**STANDARD, "serving.kserve.io/autoscalerClass": "none"}
MODEL: dict[str, Any] = {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://b/m"}
LLM: dict[str, Any] = {"modelFormat": {"name": "huggingface"}, "storageUri": "pvc://c/m"}


def isvc(
    predictor: Mapping[str, Any] | None = None,
    *,
    name: str = "iris",
    annotations: Mapping[str, str] | None = None,
    status: Mapping[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default", "annotations": dict(annotations or {})},
        "spec": {
            "predictor": dict(predictor if predictor is not None else {"model": MODEL}),
            **spec,
        },
        "status": dict(status or {}),
    }


def admit(obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    """Default and validate, as the API server does."""
    obj = defaults.default(obj, config=CONFIG)
    return validation.validate(obj, old=old, config=CONFIG, lookup=lambda resource, ns: [])


def refusal(obj: dict[str, Any], old: dict[str, Any] | None = None) -> str:
    with pytest.raises(Forbidden) as caught:
        admit(obj, old)
    prefix = f'admission webhook "{WEBHOOK}" denied the request: '
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def model(**fields: Any) -> dict[str, Any]:
    return {"model": {**MODEL, **fields}}


def env(name: str, value: str = "x") -> list[dict[str, str]]:
    return [{"name": name, "value": value}]


def multi_node(worker: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return isvc({"model": {**LLM, **fields}, "workerSpec": worker}, annotations=MULTI_NODE)


def uris(*entries: tuple[str, str], **predictor: Any) -> dict[str, Any]:
    listed = [{"uri": uri, "mountPath": path} for uri, path in entries]
    sklearn = {"modelFormat": {"name": "sklearn"}}
    return isvc({"model": sklearn, "storageUris": listed, **predictor})


NAME_TEXT = (
    'the InferenceService "{}" is invalid: a InferenceService name must consist of lower case '
    "alphanumeric characters or '-', and must start with alphabetical character. (e.g. "
    '"my-name" or "abc-123", regex used for validation is \'[a-z]([-a-z0-9]*[a-z0-9])?\')'
)
PYTHONPATH_TEXT = (
    'the InferenceService "iris" is invalid: setting PYTHONPATH in container "{}" is not allowed '
    "for security reasons"
)
INVALID = 'the InferenceService "iris" is invalid: '
GPU_TEXT = (
    INVALID + "Unknown GPU resource type. Set 'serving.kserve.io/gpu-resource-types' annotation to "
    "use custom gpu resource type"
)
PREDICTOR_TEXT = (
    "exactly one of [Name, SKLearn, XGBoost, Tensorflow, PyTorch, Triton, ONNX, HuggingFace, PMML, "
    "LightGBM, Paddle, Model, StorageUris, StorageContainerName, WorkerSpec, PodSpec] must be "
    "specified in PredictorSpec"
)
PERCENTS = (
    "storageUri, must be one of: [s3://, hdfs://, webhdfs://] or match "
    "https://{{}}.blob.core.windows.net/{{}}/{{}} or be an absolute or relative local path. "
    "StorageUri [{}] is not supported"
)


def container(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "x", **fields}


ROWS: list[Any] = [
    pytest.param(isvc(name="Iris"), NAME_TEXT.format("Iris"), id="1"),
    pytest.param(isvc(name="1ris"), NAME_TEXT.format("1ris"), id="1-starts-with-digit"),
    pytest.param(isvc(name="iris-"), NAME_TEXT.format("iris-"), id="1-ends-with-dash"),
    pytest.param(
        isvc(annotations={"serving.kserve.io/autoscalerClass": "kpa"}),
        "[kpa] is not a supported autoscaler class type",
        id="2",
    ),
    pytest.param(
        isvc({"containers": [container("a", env=env("PYTHONPATH"))]}),
        PYTHONPATH_TEXT.format("kserve-container"),
        id="3-container",
    ),
    pytest.param(
        isvc({**model(), "initContainers": [container("i", env=env("PYTHONPATH"))]}),
        PYTHONPATH_TEXT.format("i"),
        id="3-init-container",
    ),
    pytest.param(isvc(model(env=env("PYTHONPATH"))), PYTHONPATH_TEXT.format(""), id="3-model"),
    pytest.param(
        isvc({"sklearn": {"storageUri": "gs://b/m", "env": env("PYTHONPATH")}}),
        PYTHONPATH_TEXT.format(""),
        id="3-framework",
    ),
    pytest.param(
        multi_node({"containers": [container("worker-container", env=env("PYTHONPATH"))]}),
        PYTHONPATH_TEXT.format("worker-container"),
        id="3-worker",
    ),
    pytest.param(
        isvc(transformer={"containers": [container("t", env=env("PYTHONPATH"))]}),
        PYTHONPATH_TEXT.format("kserve-container"),
        id="3-transformer",
    ),
    pytest.param(
        isvc(explainer={"containers": [container("e", env=env("PYTHONPATH"))]}),
        PYTHONPATH_TEXT.format("kserve-container"),
        id="3-explainer",
    ),
    pytest.param(
        isvc(explainer={"art": {"type": "SquareAttack", "env": env("PYTHONPATH")}}),
        PYTHONPATH_TEXT.format("kserve-container"),
        id="3-art",
    ),
    pytest.param(
        multi_node({"containers": [container("worker-container"), container("b")]}),
        INVALID + "setting multiple containers in workerSpec is not allowed",
        id="4-several-containers",
    ),
    pytest.param(
        multi_node({}, env=env("PIPELINE_PARALLEL_SIZE")),
        INVALID + "setting PIPELINE_PARALLEL_SIZE in environment variables is not allowed",
        id="4-pipeline-env",
    ),
    pytest.param(
        multi_node({}, env=env("TENSOR_PARALLEL_SIZE")),
        INVALID + "setting TENSOR_PARALLEL_SIZE in environment variables is not allowed",
        id="4-tensor-env",
    ),
    pytest.param(
        multi_node({}, resources={"limits": {"cpu": "1", "example.com/gpu": "1"}}),
        GPU_TEXT,
        id="4-unknown-gpu",
    ),
    pytest.param(
        multi_node(
            {
                "containers": [
                    container("worker-container", resources={"requests": {"rdma/roce_gdr": 1}})
                ]
            }
        ),
        GPU_TEXT,
        id="4-unknown-gpu-worker",
    ),
    pytest.param(
        isvc(
            {"model": {"modelFormat": {"name": "huggingface"}}, "workerSpec": {}},
            annotations=MULTI_NODE,
        ),
        INVALID + "StorageURI must be set for multinode enabled",
        id="4-no-storage",
    ),
    pytest.param(
        multi_node({}, storageUri="gs://b/m"),
        INVALID + "Multinode only supports 'pvc' and 'oci' Storage Protocol(gs)",
        id="4-storage-scheme",
    ),
    pytest.param(
        isvc(
            {"model": LLM, "workerSpec": {}},
            annotations={**STANDARD, "serving.kserve.io/autoscalerClass": "hpa"},
        ),
        INVALID + "Multinode only supports 'none' autoscaler(hpa)",
        id="4-autoscaler",
    ),
    pytest.param(
        multi_node({"pipelineParallelSize": 0}),
        INVALID + "WorkerSpec.PipelineParallelSize cannot be less than 1(0)",
        id="4-pipeline-size",
    ),
    pytest.param(
        multi_node({"tensorParallelSize": -1}),
        INVALID + "WorkerSpec.TensorParallelSize cannot be less than 1(-1)",
        id="4-tensor-size",
    ),
    pytest.param(
        isvc(
            {**model(), "containers": [container("transformer-container", env=env("STORAGE_URI"))]}
        ),
        "storage uri should not be specified in transformer container",
        id="5",
    ),
    pytest.param(
        isvc(model(name="mine")),
        "the 'name' field is not allowed in standard predictor",
        id="6-model",
    ),
    pytest.param(
        isvc({"xgboost": {"storageUri": "gs://b/m", "name": "mine"}}),
        "the 'name' field is not allowed in standard predictor",
        id="6-framework",
    ),
    pytest.param(
        isvc({**model(), "storageUris": [{"uri": "gs://b/n"}]}),
        "Setting both StorageURI and StorageURIs is not supported.",
        id="7-both",
    ),
    pytest.param(
        isvc(
            transformer={
                "containers": [container("t", env=env("STORAGE_URI", "gs://a"))],
                "storageUris": [{"uri": "gs://b"}],
            }
        ),
        "Setting both StorageURI and StorageURIs is not supported.",
        id="7-both-transformer",
    ),
    pytest.param(
        isvc(
            explainer={
                "art": {"type": "SquareAttack", "storageUri": "gs://a"},
                "storageUris": [{"uri": "gs://b"}],
            }
        ),
        "Setting both StorageURI and StorageURIs is not supported.",
        id="7-both-explainer",
    ),
    pytest.param(uris(("", "/mnt/a")), "storage URI cannot be empty", id="7-empty-uri"),
    pytest.param(uris(("gs://b", "/")), "storage path cannot be empty", id="7-root"),
    pytest.param(
        uris(("gs://b", "mnt/a")), "storage path must be absolute: mnt/a", id="7-relative"
    ),
    pytest.param(
        uris(("gs://b", "/mnt/../a")),
        "storage path cannot contain '..' for security reasons: /mnt/../a",
        id="7-traversal",
    ),
    pytest.param(
        uris(("gs://b", "/a/x"), ("gs://c", "/b/y")),
        "storage paths must have a common parent directory. Current paths: [/a/x /b/y] have no "
        "common parent beyond root",
        id="7-no-common-parent",
    ),
    pytest.param(
        uris(("gs://b", "/a/x"), ("gs://c", "/a/y"), ("pvc://p", "/mnt/p"), ("pvc://q", "/mnt/p")),
        "PVC storage paths must be unique",
        id="7-claims-share-a-path",
    ),
    pytest.param(
        isvc({"model": {"modelFormat": {"name": "sklearn"}, "confidential": {"enabled": True}}}),
        "confidential model serving requires storageUri to be set",
        id="8-storage",
    ),
    pytest.param(
        isvc(model(confidential={"enabled": True, "resourceId": "kbs://x"})),
        'spec.predictor.confidential.resourceId: Invalid value: "kbs://x": must be in the format '
        "kbs:///<repo>/<type>/<tag>",
        id="8-resource",
    ),
    pytest.param(isvc({}), PREDICTOR_TEXT, id="9-none"),
    pytest.param(
        isvc({**model(), "containers": [container("kserve-container")]}),
        PREDICTOR_TEXT,
        id="9-model-and-container",
    ),
    pytest.param(
        isvc(transformer={"minReplicas": 1}),
        "exactly one of [PodSpec, ComponentExtensionSpec] must be specified in TransformerSpec",
        id="9-transformer",
    ),
    pytest.param(
        isvc(explainer={"art": {"type": "SquareAttack"}, "containers": [container("c")]}),
        "exactly one of [ART, PodSpec, ComponentExtensionSpec] must be specified in ExplainerSpec",
        id="9-explainer",
    ),
    pytest.param(
        isvc({"containers": [container("c", env=env("PROTOCOL", "grpc"))]}),
        "invalid protocol v1, v2. Must be one of [grpc]",
        id="9-protocol",
    ),
    pytest.param(
        isvc(
            explainer={
                "art": {
                    "type": "SquareAttack",
                    "storageUri": "gs://b/m",
                    "storage": {"key": "k"},
                }
            }
        ),
        PERCENTS.format("gs://b/m"),
        id="9-storage-spec",
    ),
    pytest.param(
        isvc({**model(), "containerConcurrency": -1}),
        "parallelism cannot be less than 0",
        id="9-concurrency",
    ),
    pytest.param(
        isvc({**model(), "minReplicas": -1}), "'MinReplicas' cannot be less than 0", id="9-min"
    ),
    pytest.param(
        isvc({**model(), "maxReplicas": -1}), "'MaxReplicas' cannot be less than 0", id="9-max"
    ),
    pytest.param(
        isvc({**model(), "minReplicas": 3, "maxReplicas": 2}),
        "'MinReplicas' cannot be greater than MaxReplicas",
        id="9-min-over-max",
    ),
    pytest.param(
        isvc({**model(), "logger": {"url": "http://sink"}}),
        "invalid logger type",
        id="9-logger-mode-omitted",
    ),
    pytest.param(
        isvc({**model(), "logger": {"mode": "all", "storage": {"path": "p", "key": "k"}}}),
        "invalid logger storage configuration",
        id="9-logger-storage",
    ),
    pytest.param(
        isvc({**model(), "scaleMetric": "memory"}),
        "[memory] is not a supported metric",
        id="9-autoscaling",
    ),
    pytest.param(
        isvc(canary=[{"predictor": {"name": "v2", **model()}, "trafficPercent": 10}]),
        "canary is only supported in Standard deployment mode",
        id="10",
    ),
]


@pytest.mark.parametrize(("obj", "message"), ROWS)
def test_row(obj: dict[str, Any], message: str) -> None:
    """Each row's message, word for word, with the API server's wrapper around it."""
    assert refusal(obj) == message


def test_u1_the_mode_in_status_cannot_be_changed() -> None:
    """Row U1; the legacy spelling in the annotation is normalised first."""
    old = isvc(status={"deploymentMode": "Knative"})
    new = isvc(annotations={"serving.kserve.io/deploymentMode": "RawDeployment"})
    expected = "update rejected: deploymentMode cannot be changed from 'Knative' to 'Standard'"
    assert refusal(new, old) == expected
    unknown = isvc(annotations={"serving.kserve.io/deploymentMode": "Cloud"})
    assert refusal(unknown, old).endswith("from 'Knative' to 'Cloud'")
    assert admit(unknown) == []
    assert admit(isvc(annotations={"serving.kserve.io/deploymentMode": "Serverless"}), old) == []


def test_u2_a_new_predictor_name_needs_a_new_model() -> None:
    """Row U2."""
    old = isvc()
    expected = "predictor.name change requires a model change (e.g. storageUri)"
    assert refusal(isvc({**model(), "name": "v2"}), old) == expected
    assert admit(isvc({**model(storageUri="gs://b/other"), "name": "v2"}), old) == []


def test_an_object_on_its_way_out_is_accepted_as_it_is() -> None:
    """Finalizers must be removable from objects that break newer rules."""
    obj = isvc({})
    obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert admit(obj, isvc()) == []


def test_the_first_failure_wins() -> None:
    """The name is looked at before the replicas."""
    bad = isvc({**model(), "minReplicas": -1}, name="Bad")
    assert refusal(bad) == NAME_TEXT.format("Bad")


@pytest.mark.parametrize(
    "obj",
    [
        isvc(),
        isvc({**model(), "containers": [container("transformer-container")]}),
        isvc({"containers": [container("kserve-container"), container("transformer-container")]}),
        isvc({"triton": {"storageUri": "gs://b/m"}}),
        isvc({**model(), "minReplicas": 0, "maxReplicas": 0}),
        isvc({**model(), "logger": {"mode": "request", "url": "http://sink"}}),
        multi_node({"containers": [container("worker-container")]}),
        multi_node({}, resources={"limits": {"nvidia.com/gpu": "1", "ephemeral-storage": "1Gi"}}),
        uris(("gs://b", "/mnt/a"), ("gs://c", "/mnt/b"), ("pvc://p", "/data")),
        uris(("pvc://p", "/data"), ("pvc://q", "/data")),
    ],
    ids=[
        "model",
        "collocation",
        "custom-collocation",
        "framework",
        "scale-to-zero",
        "logger",
        "multi-node",
        "gpu",
        "storage-uris",
        "claims-alone-may-share",
    ],
)
def test_accepted(obj: dict[str, Any]) -> None:
    """What the rules leave alone."""
    assert admit(obj) == []


def test_custom_gpu_types_come_from_the_annotation() -> None:
    """Row 4: the annotation adds names; it must be a JSON array."""
    obj = multi_node({}, resources={"limits": {"example.com/gpu": "1"}})
    obj["metadata"]["annotations"]["serving.kserve.io/gpu-resource-types"] = '["example.com/gpu"]'
    assert admit(obj) == []
    obj["metadata"]["annotations"]["serving.kserve.io/gpu-resource-types"] = "example.com/gpu"
    assert refusal(obj) == (
        "invalid GPU format(example.com/gpu) for serving.kserve.io/gpu-resource-types annotation: "
        "must be a valid JSON array"
    )


@pytest.mark.parametrize(
    ("uri", "word"), [("oci://r/i", "OCI"), ("pvc://c/m", "PVC")], ids=["oci", "pvc"]
)
def test_row_8_warns_where_confidential_does_nothing(uri: str, word: str) -> None:
    """Warnings, not errors."""
    warnings = admit(isvc(model(storageUri=uri, confidential={"enabled": True})))
    assert len(warnings) == 1
    assert warnings[0].startswith(f"confidential has no effect with {word} URIs; ")


def canary(name: str = "v2", percent: int = 10, **fields: Any) -> dict[str, Any]:
    return {
        "predictor": {"name": name, **model(storageUri="gs://b/2"), **fields},
        "trafficPercent": percent,
    }


CANARY: list[Any] = [
    ([canary("")], {}, "canary[0] predictor.name is required"),
    ([canary(), canary()], {}, 'canary predictor.name "v2" is duplicated'),
    (
        [canary("v1")],
        {"name": "v1"},
        'canary predictor.name "v1" conflicts with stable predictor name',
    ),
    (
        [canary(percent=101)],
        {},
        'canary "v2" trafficPercent must be between 0 and 100, got 101',
    ),
    (
        [canary(percent=60), canary("v3", 60)],
        {},
        "sum of canary trafficPercent values (120) must be <= 100",
    ),
    ([canary(model=None)], {}, f'canary "v2" predictor: {PREDICTOR_TEXT}'),
    (
        [canary(containerConcurrency=-1)],
        {},
        'canary "v2" predictor: parallelism cannot be less than 0',
    ),
    (
        [canary(workerSpec={})],
        {},
        'canary "v2" must not set workerSpec (multi-node is not yet supported for canary)',
    ),
    (
        [canary(maxReplicas=2)],
        {},
        'canary "v2" must not set maxReplicas (canary uses fixed replicas)',
    ),
    (
        [canary(scaleTarget=2)],
        {},
        'canary "v2" must not set scaleTarget (canary uses fixed replicas)',
    ),
    (
        [canary(scaleMetric="cpu")],
        {},
        'canary "v2" must not set scaleMetric (canary uses fixed replicas)',
    ),
    (
        [canary(autoScaling={})],
        {},
        'canary "v2" must not set autoScaling (canary uses fixed replicas)',
    ),
    (
        [canary(minReplicas=3)],
        {"minReplicas": 2},
        'canary "v2" minReplicas (3) must not exceed stable predictor minReplicas (2)',
    ),
]


@pytest.mark.parametrize(("canaries", "stable", "message"), CANARY)
def test_canary_rules(canaries: list[Any], stable: dict[str, Any], message: str) -> None:
    """control-plane.md 6.2, in its order."""
    obj = isvc({**model(), **stable}, annotations=STANDARD, canary=canaries)
    assert refusal(obj) == message


def test_canary_needs_a_model_to_compare_with() -> None:
    """A custom predictor without STORAGE_URI has no stable model."""
    obj = isvc({"containers": [container("c")]}, annotations=STANDARD, canary=[canary()])
    assert refusal(obj).startswith("canary requires a stable predictor with a model")
    assert admit(isvc(annotations=STANDARD, canary=[canary(minReplicas=1)])) == []
