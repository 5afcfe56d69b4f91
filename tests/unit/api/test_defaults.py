"""The eight effects of the mutating webhook, control-plane.md 2.4, by number."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from kserve_local.api import builtin, config, defaults

SHIPPED = config.parse(None)
MODE = "serving.kserve.io/deploymentMode"


def with_key(key: str, value: dict[str, Any] | None) -> config.InferenceServiceConfig:
    """The shipped configuration with one key replaced, or removed."""
    data = dict(builtin.config_map()["data"])
    data.pop(key)
    if value is not None:
        data[key] = json.dumps(value)
    return config.parse({"data": data})


def isvc(predictor: dict[str, Any], annotations: dict[str, str] | None = None, **spec: Any) -> Any:
    metadata: dict[str, Any] = {"name": "iris", "namespace": "default"}
    if annotations is not None:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": predictor, **spec},
    }


def default(obj: Any, cfg: config.InferenceServiceConfig = SHIPPED, **kwargs: Any) -> Any:
    before = copy.deepcopy(obj)
    result = defaults.default(obj, config=cfg, **kwargs)
    assert obj == before, "the argument must not change"
    return result


SKLEARN: dict[str, Any] = {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://b/m"}}


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("RawDeployment", "Standard"),
        ("Serverless", "Knative"),
        ("Knative", "Knative"),
        ("Standard", "Standard"),
    ],
)
def test_1_legacy_modes_are_rewritten(given: str, stored: str) -> None:
    """On the stored object."""
    result = default(isvc(SKLEARN, {MODE: given}))
    assert result["metadata"]["annotations"][MODE] == stored


@pytest.mark.parametrize(
    ("configured", "annotation"),
    [
        ("Serverless", None),
        ("Knative", None),
        ("RawDeployment", "Standard"),
        ("Standard", "Standard"),
        ("ModelMesh", "ModelMesh"),
    ],
)
def test_2_the_annotation_is_added_only_for_other_defaults_than_knative(
    configured: str, annotation: str | None
) -> None:
    """A Knative default leaves the object unannotated."""
    cfg = with_key("deploy", {"defaultDeploymentMode": configured})
    result = default(isvc(SKLEARN), cfg)
    assert result["metadata"]["annotations"].get(MODE) == annotation


@pytest.mark.parametrize("framework", ["sklearn", "xgboost", "pytorch", "pmml", "paddle"])
def test_3_a_framework_field_becomes_a_model(framework: str) -> None:
    """The whole extension spec moves; no runtime is set."""
    spec = {"storageUri": "gs://b/m", "args": ["--a"], "runtimeVersion": "1"}
    result = default(isvc({framework: spec, "minReplicas": 0}))["spec"]["predictor"]
    assert result == {"model": {"modelFormat": {"name": framework}, **spec}, "minReplicas": 0}


@pytest.mark.parametrize("framework", ["triton", "onnx", "huggingface"])
def test_3_some_framework_fields_mean_protocol_v2(framework: str) -> None:
    """Unless they say otherwise."""
    plain = default(isvc({framework: {"storageUri": "gs://b/m"}}))
    assert plain["spec"]["predictor"]["model"]["protocolVersion"] == "v2"
    given = default(isvc({framework: {"protocolVersion": "grpc-v2"}}))
    assert given["spec"]["predictor"]["model"]["protocolVersion"] == "grpc-v2"


def test_3_only_the_first_framework_field_counts_and_it_overwrites_model() -> None:
    """In the order sklearn, tensorflow, xgboost, ..."""
    predictor = {"xgboost": {"storageUri": "x"}, "sklearn": {"storageUri": "s"}, **SKLEARN}
    result = default(isvc(predictor))["spec"]["predictor"]
    assert result["model"] == {"modelFormat": {"name": "sklearn"}, "storageUri": "s"}
    assert result["xgboost"] == {"storageUri": "x"}
    assert "sklearn" not in result


def test_3_not_for_modelmesh_and_not_in_canaries() -> None:
    """ModelMesh predictors and canaries keep their fields."""
    mesh = default(isvc({"sklearn": {"storageUri": "s"}}, {MODE: "ModelMesh"}))
    assert mesh["spec"]["predictor"] == {"sklearn": {"storageUri": "s"}}
    canary = [{"predictor": {"name": "v2", "sklearn": {"storageUri": "t"}}, "trafficPercent": 5}]
    result = default(isvc(SKLEARN, {MODE: "Standard"}, canary=canary))
    assert result["spec"]["canary"] == canary


@pytest.mark.parametrize("name", ["triton", "vLLM"])
def test_4_these_formats_mean_protocol_v2(name: str) -> None:
    """Case matters: `vllm` is another format."""
    result = default(isvc({"model": {"modelFormat": {"name": name}}}))
    assert result["spec"]["predictor"]["model"]["protocolVersion"] == "v2"
    other = default(isvc({"model": {"modelFormat": {"name": name.upper()}}}))
    assert "protocolVersion" not in other["spec"]["predictor"]["model"]


def test_5_the_model_format_annotation() -> None:
    """Added once, the user's own stays."""
    assert default(isvc(SKLEARN))["metadata"]["annotations"] == {"modelFormat": "sklearn"}
    kept = default(isvc(SKLEARN, {"modelFormat": "mine"}))
    assert kept["metadata"]["annotations"] == {"modelFormat": "mine"}


RESOURCES = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}


def test_6_a_custom_predictor_is_named_and_gets_resources() -> None:
    """One container is renamed; of several only an unnamed first one."""
    one = default(isvc({"containers": [{"name": "mine", "image": "x"}]}))
    assert one["spec"]["predictor"]["containers"] == [
        {"name": "kserve-container", "image": "x", "resources": RESOURCES}
    ]
    two = default(isvc({"containers": [{"name": "a"}, {"name": "b"}]}))["spec"]["predictor"]
    assert [c["name"] for c in two["containers"]] == ["a", "b"]
    assert two["containers"][0]["resources"] == RESOURCES
    assert "resources" not in two["containers"][1]


def test_6_given_resources_stay() -> None:
    """Only what is missing is filled, per resource."""
    container = {"name": "c", "resources": {"limits": {"memory": "8Gi", "nvidia.com/gpu": "1"}}}
    result = default(isvc({"containers": [container]}))["spec"]["predictor"]["containers"][0]
    assert result["resources"] == {
        "limits": {"cpu": "1", "memory": "8Gi", "nvidia.com/gpu": "1"},
        "requests": {"cpu": "1", "memory": "2Gi"},
    }


def test_6_transformer_and_explainer_containers_are_always_renamed() -> None:
    """Also when there are several."""
    pods = {"containers": [{"name": "a"}, {"name": "b"}]}
    result = default(isvc(SKLEARN, transformer=pods, explainer=pods))["spec"]
    for component in ("transformer", "explainer"):
        names = [c["name"] for c in result[component]["containers"]]
        assert names == ["kserve-container", "b"]
        assert result[component]["containers"][0]["resources"] == RESOURCES


def test_6_art_gets_name_version_and_resources() -> None:
    """Version from `explainers.art.defaultImageVersion`."""
    result = default(isvc(SKLEARN, explainer={"art": {"type": "SquareAttack"}}))["spec"]
    assert result["explainer"]["art"] == {
        "type": "SquareAttack",
        "name": "kserve-container",
        "runtimeVersion": "latest",
        "resources": RESOURCES,
    }


def test_6_a_model_and_a_component_without_implementation_stay() -> None:
    """The runtime brings a model's resources; validation refuses the rest."""
    result = default(isvc(SKLEARN, transformer={"minReplicas": 1}))["spec"]
    assert result == {"predictor": SKLEARN, "transformer": {"minReplicas": 1}}


def cache(name: str, uri: str, *groups: str, namespace: str = "") -> Any:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"metadata": metadata, "spec": {"sourceModelUri": uri, "nodeGroups": list(groups)}}


def test_7_a_local_model_cache_is_matched() -> None:
    """A namespaced cache wins; the node group decides; a sub path matches."""
    cfg = with_key("localModel", {"enabled": True})
    held = {
        "localmodelcaches.serving.kserve.io": [cache("wide", "gs://b/m/", "gpu1", "gpu2")],
        "localmodelnamespacecaches.serving.kserve.io": [
            cache("near", "gs://b/m", "gpu3", namespace="default")
        ],
    }

    def lookup(resource: str, namespace: str | None) -> Any:
        return held.get(resource, [])

    near = default(isvc(SKLEARN), cfg, lookup=lookup)["metadata"]
    assert near["labels"] == {
        "internal.serving.kserve.io/localmodel": "near",
        "internal.serving.kserve.io/localmodel-namespace": "default",
    }
    prefix = "internal.serving.kserve.io/localmodel-"
    assert near["annotations"][prefix + "pvc-name"] == "near-gpu3"
    assert near["annotations"][prefix + "sourceuri"] == "gs://b/m"

    grouped = isvc(SKLEARN, {"serving.kserve.io/nodegroup": "gpu2"})
    wide = default(grouped, cfg, lookup=lookup)["metadata"]
    assert wide["labels"] == {"internal.serving.kserve.io/localmodel": "wide"}
    assert wide["annotations"][prefix + "pvc-name"] == "wide-gpu2"

    below = {"model": {**SKLEARN["model"], "storageUri": "gs://b/m/sub"}}
    assert default(isvc(below), cfg, lookup=lookup)["metadata"]["labels"]
    beside = {"model": {**SKLEARN["model"], "storageUri": "gs://b/mm"}}
    assert "labels" not in default(isvc(beside), cfg, lookup=lookup)["metadata"]

    disabled = isvc(SKLEARN, {"serving.kserve.io/disable-localmodel": "false"})
    assert "labels" not in default(disabled, cfg, lookup=lookup)["metadata"]
    assert "labels" not in default(isvc(SKLEARN), lookup=lookup)["metadata"]
    # A match that no longer holds is taken back.
    moved = {**near, "annotations": {**near["annotations"], "serving.kserve.io/nodegroup": "x"}}
    again = default({**isvc(SKLEARN), "metadata": moved}, cfg, lookup=lookup)["metadata"]
    assert again["labels"] == {}
    assert prefix + "pvc-name" not in again["annotations"]


def test_8_tokens_are_disabled_where_security_says_so() -> None:
    """An absent key means false; a set field stays."""
    component = {"containers": [{"name": "c"}]}
    obj = isvc(
        {**SKLEARN, "automountServiceAccountToken": True},
        transformer=component,
        explainer=component,
    )
    for cfg in (with_key("security", None), with_key("security", {})):
        result = default(obj, cfg)["spec"]
        assert result["predictor"]["automountServiceAccountToken"] is True
        assert result["transformer"]["automountServiceAccountToken"] is False
        assert result["explainer"]["automountServiceAccountToken"] is False
    assert "automountServiceAccountToken" not in default(obj)["spec"]["transformer"]


def test_defaulting_twice_changes_nothing_more() -> None:
    """It runs on every update."""
    obj = isvc(
        {"onnx": {"storageUri": "gs://b/m"}},
        transformer={"containers": [{"name": "t", "image": "x"}]},
    )
    once = default(obj)
    assert default(once) == once


def test_other_kinds_pass_through() -> None:
    """The very same object."""
    obj = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    assert defaults.default(obj, config=SHIPPED) is obj


def test_llm_inference_service() -> None:
    """llm.md 1.3: model name, routing group label, empty container lists; nothing else."""
    obj = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "qwen", "namespace": "default"},
        "spec": {
            "model": {"uri": "hf://a/b"},
            "template": {},
            "prefill": {"worker": {"containers": [{"name": "main"}]}},
            "router": {"route": {"group": "g", "weight": 1}, "scheduler": {"template": {}}},
        },
    }
    result = default(obj)
    assert result["metadata"]["labels"] == {"serving.kserve.io/routing-group": "g"}
    assert result["spec"] == {
        "model": {"uri": "hf://a/b", "name": "qwen"},
        "template": {"containers": []},
        "prefill": {"worker": {"containers": [{"name": "main"}]}},
        "router": {
            "route": {"group": "g", "weight": 1},
            "scheduler": {"template": {"containers": []}},
        },
    }
    gone = copy.deepcopy(result)
    del gone["spec"]["router"]["route"]
    assert default(gone)["metadata"]["labels"] == {}
