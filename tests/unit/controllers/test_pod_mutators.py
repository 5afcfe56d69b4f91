"""The pod webhook: the storage initializer as KServe injects it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from kserve_local.api import builtin
from kserve_local.api.config import parse
from kserve_local.api.meta import Object
from kserve_local.controllers.pod_mutators import mutate
from kserve_local.errors import Forbidden

CONFIG = parse(builtin.config_map())
URI = "gs://kfserving-examples/models/sklearn/1.0/model"
INTERNAL = "internal.serving.kserve.io"


def pod_of(source: str | None = URI, **metadata: Any) -> Object:
    annotations = dict(metadata.pop("annotations", {}))
    if source is not None:
        annotations[f"{INTERNAL}/storage-initializer-sourceuri"] = source
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "iris",
            "namespace": "default",
            "labels": {"serving.kserve.io/inferenceservice": "iris"},
            "annotations": annotations,
            **metadata,
        },
        "spec": {"containers": [{"name": "kserve-container", "image": "kserve/sklearnserver"}]},
    }


def objects(**by_resource: list[Object]) -> Any:
    default = [o for o in builtin.builtin_objects() if o["kind"] == "ClusterStorageContainer"]

    def lookup(resource: str, namespace: str | None) -> Sequence[Object]:
        if resource.startswith("clusterstoragecontainers"):
            return [*by_resource.get("storage", []), *default]
        if resource.startswith("clusterservingruntimes"):
            return [o for o in builtin.builtin_objects() if o["kind"] == "ClusterServingRuntime"]
        assert namespace == "default"
        return by_resource.get(resource, [])

    return lookup


def mutated(pod: Object, **by_resource: list[Object]) -> Any:
    before = copy.deepcopy(pod)
    result = mutate(pod, config=CONFIG, lookup=objects(**by_resource))
    assert pod == before, "the Pod that was given must stay as it is"
    return result["spec"]


def test_a_storage_uri_gets_an_init_container() -> None:
    spec = mutated(pod_of())
    (initializer,) = spec["initContainers"]
    assert initializer["name"] == "storage-initializer"
    assert initializer["image"] == "kserve/storage-initializer:latest"
    assert initializer["args"] == [URI, "/mnt/models"]
    assert initializer["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert initializer["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
    assert {e["name"] for e in initializer["env"]} == {
        "HF_HUB_ENABLE_HF_TRANSFER",
        "HF_XET_HIGH_PERFORMANCE",
        "HF_XET_NUM_CONCURRENT_RANGE_GETS",
    }
    volume = "kserve-provision-location"
    assert initializer["volumeMounts"] == [{"name": volume, "mountPath": "/mnt/models"}]
    assert spec["volumes"] == [{"name": volume, "emptyDir": {}}]
    assert spec["containers"][0]["volumeMounts"] == [
        {"name": volume, "mountPath": "/mnt/models", "readOnly": True}
    ]


def test_the_readonly_annotation_makes_the_model_writable() -> None:
    spec = mutated(pod_of(annotations={"storage.kserve.io/readonly": "false"}))
    assert spec["containers"][0]["volumeMounts"][0]["readOnly"] is False


def test_a_collocated_transformer_sees_the_model_too() -> None:
    pod = pod_of()
    pod["spec"]["containers"] += [{"name": "transformer-container"}, {"name": "sidecar"}]
    mounts = [c.get("volumeMounts") for c in mutated(pod)["containers"]]
    assert mounts[0] == mounts[1]
    assert mounts[2] is None


def test_other_pods_are_left_alone() -> None:
    assert "initContainers" not in mutated(pod_of(None))
    pod = pod_of(labels={})
    assert mutate(pod, config=CONFIG, lookup=objects()) is pod


def test_a_claim_is_mounted_without_init_container() -> None:
    spec = mutated(pod_of("pvc://models/iris/1"))
    assert "initContainers" not in spec
    assert spec["volumes"] == [
        {
            "name": "kserve-pvc-source",
            "persistentVolumeClaim": {"claimName": "models", "readOnly": False},
        }
    ]
    assert spec["containers"][0]["volumeMounts"] == [
        {
            "name": "kserve-pvc-source",
            "mountPath": "/mnt/models",
            "subPath": "iris/1",
            "readOnly": True,
        }
    ]


def test_a_custom_predictors_storage_uri_points_at_the_model() -> None:
    pod = pod_of()
    pod["spec"]["containers"][0]["env"] = [{"name": "STORAGE_URI", "value": URI}]
    assert mutated(pod)["containers"][0]["env"] == [{"name": "STORAGE_URI", "value": "/mnt/models"}]


def test_credentials_of_the_service_account_reach_the_init_container() -> None:
    pod = pod_of("hf://org/model")
    pod["spec"]["serviceAccountName"] = "sa"
    account = {"metadata": {"name": "sa"}, "secrets": [{"name": "hf"}]}
    secret = {"metadata": {"name": "hf"}, "stringData": {"HF_TOKEN": "t0ken"}}
    spec = mutated(pod, serviceaccounts=[account], secrets=[secret])
    entry = next(e for e in spec["initContainers"][0]["env"] if e["name"] == "HF_TOKEN")
    assert entry["valueFrom"]["secretKeyRef"] == {"name": "hf", "key": "HF_TOKEN"}
    assert "t0ken" not in str(spec)


def test_an_init_container_made_by_the_controller_gets_them_too() -> None:
    """storageUris: the controller injects, the webhook adds the credentials."""
    pod = pod_of(None)
    pod["spec"]["initContainers"] = [{"name": "storage-initializer", "args": ["hf://a/b", "/m"]}]
    account = {"metadata": {"name": "default"}, "secrets": [{"name": "hf"}]}
    secret = {"metadata": {"name": "hf"}, "stringData": {"HF_TOKEN": "t"}}
    spec = mutated(pod, serviceaccounts=[account], secrets=[secret])
    assert [e["name"] for e in spec["initContainers"][0]["env"]] == ["HF_TOKEN"]
    assert len(spec["initContainers"]) == 1


def test_a_missing_secret_is_refused_in_the_webhooks_words() -> None:
    account = {"metadata": {"name": "default"}, "secrets": [{"name": "gone"}]}
    with pytest.raises(Forbidden) as refused:
        mutated(pod_of(), serviceaccounts=[account])
    assert str(refused.value) == (
        'admission webhook "inferenceservice.kserve-webhook-server.pod-mutator" denied the '
        'request: Secret "gone" not found'
    )


def test_a_storage_block_is_resolved() -> None:
    pod = pod_of(
        "<scheme-placeholder>://iris",
        annotations={
            f"{INTERNAL}/storage-spec": "true",
            f"{INTERNAL}/storage-spec-key": "minio",
        },
    )
    entry = '{"type": "s3", "bucket": "models"}'
    secret = {"metadata": {"name": "storage-config"}, "stringData": {"minio": entry}}
    initializer = mutated(pod, secrets=[secret])["initContainers"][0]
    assert initializer["args"][0] == "s3://models/iris"
    assert any(e["name"] == "STORAGE_CONFIG" for e in initializer["env"])


def storage_container(name: str, prefix: str, **spec: Any) -> Object:
    container = {"name": "storage-initializer", "image": f"{name}:1", "env": [{"name": "E"}]}
    formats = [{"prefix": prefix}]
    return {
        "metadata": {"name": name},
        "spec": {"container": container, "supportedUriFormats": formats, **spec},
    }


def test_a_matching_storage_container_is_merged_over_the_default() -> None:
    spec = mutated(pod_of("models://x"), storage=[storage_container("mine", "models://")])
    initializer = spec["initContainers"][0]
    assert initializer["image"] == "mine:1"
    assert initializer["args"] == ["models://x", "/mnt/models"]
    assert {"E", "HF_HUB_ENABLE_HF_TRANSFER"} <= {e["name"] for e in initializer["env"]}


def test_a_named_storage_container_must_fit() -> None:
    pod = pod_of(annotations={f"{INTERNAL}/storage-container-name": "mine"})
    with pytest.raises(Forbidden, match='"mine" does not support storageUri "gs://'):
        mutated(pod, storage=[storage_container("mine", "models://")])
    with pytest.raises(Forbidden, match='"mine" not found'):
        mutated(pod)


def test_mutating_twice_changes_nothing() -> None:
    once = mutate(pod_of(), config=CONFIG, lookup=objects())
    assert mutate(once, config=CONFIG, lookup=objects()) == once


def test_the_runtime_is_noted_for_the_projects_settings() -> None:
    """`runtimes:` in kserve-local.yaml is keyed by its name."""
    pod = pod_of(labels={"serving.kserve.io/inferenceservice": "iris", "component": "predictor"})
    noted = "kserve-local.dev/runtime"

    def of(service: Object) -> Any:
        lookup = objects(**{"inferenceservices.serving.kserve.io": [service]})
        return mutate(pod, config=CONFIG, lookup=lookup)["metadata"]["annotations"].get(noted)

    metadata = {"name": "iris", "namespace": "default"}
    spec = {"predictor": {"model": {"modelFormat": {"name": "sklearn"}}}}
    assert of({"metadata": metadata, "status": {"servingRuntimeName": "mine"}}) == "mine"
    # The Pod may come before the status of its service says which runtime was chosen.
    assert of({"metadata": metadata, "spec": spec}) == "kserve-sklearnserver"
    before = {"clusterServingRuntimeName": "kserve-xgbserver"}
    assert of({"metadata": metadata, "spec": spec, "status": before}) == "kserve-sklearnserver"
    other = {"predictor": {"model": {"modelFormat": {"name": "no-such-format"}}}}
    assert of({"metadata": metadata, "spec": other}) is None
