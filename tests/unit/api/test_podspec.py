"""The predictor's pod: control-plane.md 3.4, 3.5, 4.5, 7.3."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kserve_local.api import builtin, config, defaults
from kserve_local.api.runtime_selection import Selection, SelectionError, select
from kserve_local.controllers.podspec import (
    PodParts,
    merge_containers,
    predictor_pod,
    with_image_tag,
)
from kserve_local.errors import Invalid

CONFIG = config.parse(None)
RUNTIMES = builtin.cluster_serving_runtimes()
CONTAINERS = [o for o in builtin.builtin_objects() if o["kind"] == "ClusterStorageContainer"]
INTERNAL = "internal.serving.kserve.io/"


def isvc(predictor: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return defaults.default(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "iris", "namespace": "default", **metadata},
            "spec": {"predictor": predictor},
        },
        config=CONFIG,
    )


def model(name: str = "sklearn", **fields: Any) -> dict[str, Any]:
    return {"model": {"modelFormat": {"name": name}, "storageUri": "gs://b/m", **fields}}


def pod(obj: dict[str, Any], runtime: dict[str, Any] | None = None, **kwargs: Any) -> PodParts:
    selection: Selection | None = None
    if "model" in obj["spec"]["predictor"]:
        runtimes = [runtime] if runtime else RUNTIMES
        selection = select(obj, runtimes=(), cluster_runtimes=runtimes)
    before = copy.deepcopy(obj)
    parts = predictor_pod(obj, selection, config=CONFIG, storage_containers=CONTAINERS, **kwargs)
    assert obj == before, "the argument must not change"
    return parts


def custom_runtime(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterServingRuntime",
        "metadata": {"name": "mine"},
        "spec": {
            "supportedModelFormats": [{"name": "sklearn", "autoSelect": True}],
            "containers": list(containers),
            **spec,
        },
    }


def kserve_container(**fields: Any) -> dict[str, Any]:
    return {"name": "kserve-container", "image": "x:1", **fields}


def env_of(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def test_the_plain_sklearn_service() -> None:
    """Everything that a KServe user would see on the pod template."""
    parts = pod(isvc(model(), labels={"team": "a"}, annotations={"note": "b"}))
    (container,) = parts.spec["containers"]
    assert container["name"] == "kserve-container"
    assert container["image"] == "kserve/sklearnserver:latest"
    assert container["args"] == ["--model_name=iris", "--model_dir=/mnt/models", "--http_port=8080"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert container["env"] == [{"name": "INFERENCE_SERVICE_NAME", "value": "iris"}]
    assert parts.labels == {
        "team": "a",
        "serving.kserve.io/inferenceservice": "iris",
        "component": "predictor",
    }
    assert parts.annotations == {
        "prometheus.kserve.io/port": "8080",
        "prometheus.kserve.io/path": "/metrics",
        "note": "b",
        INTERNAL + "storage-initializer-sourceuri": "gs://b/m",
    }


class TestServerTypes:
    """control-plane.md 3.4."""

    @pytest.mark.parametrize(
        ("name", "model_class"),
        [
            ("sklearn", "mlserver_sklearn.SKLearnModel"),
            ("xgboost", "mlserver_xgboost.XGBoostModel"),
            ("lightgbm", "mlserver_lightgbm.LightGBMModel"),
            ("mlflow", "mlserver_mlflow.MLflowRuntime"),
        ],
    )
    def test_mlserver(self, name: str, model_class: str) -> None:
        """Label and environment."""
        parts = pod(isvc(model(name, protocolVersion="v2")))
        assert parts.labels["modelClass"] == model_class
        env = env_of(parts.spec["containers"][0])
        assert env["MLSERVER_MODEL_IMPLEMENTATION"] == model_class
        assert env["MLSERVER_MODEL_NAME"] == "iris"
        assert env["MLSERVER_MODEL_URI"] == "/mnt/models"

    def test_mlserver_keeps_given_variables_and_starts_empty_without_storage(self) -> None:
        """Added only if absent."""
        given = [{"name": "MLSERVER_MODEL_NAME", "value": "mine"}]
        env = env_of(pod(isvc(model(protocolVersion="v2", env=given))).spec["containers"][0])
        assert env["MLSERVER_MODEL_NAME"] == "mine"
        bare = isvc({"model": {"modelFormat": {"name": "sklearn"}, "protocolVersion": "v2"}})
        env = env_of(pod(bare).spec["containers"][0])
        assert env["MLSERVER_LOAD_MODELS_AT_STARTUP"] == "false"
        assert "MLSERVER_MODEL_NAME" not in env

    @pytest.mark.parametrize(
        ("protocol", "envelope", "version"),
        [
            (None, "kserve", "v1"),
            ("v1", "kserve", "v1"),
            ("v2", "kservev2", "v2"),
            ("grpc-v2", "kservev2", "grpc-v2"),
        ],
    )
    def test_torchserve(self, protocol: str | None, envelope: str, version: str) -> None:
        """Label, PROTOCOL_VERSION, and the placeholder that reads the label."""
        fields = {} if protocol is None else {"protocolVersion": protocol}
        parts = pod(isvc(model("pytorch", **fields)))
        assert parts.labels["serviceEnvelope"] == envelope
        env = env_of(parts.spec["containers"][0])
        assert env["TS_SERVICE_ENVELOPE"] == envelope
        assert env["PROTOCOL_VERSION"] == version

    def test_triton_without_storage(self) -> None:
        """Waits to be told what to load."""
        args = pod(isvc({"model": {"modelFormat": {"name": "triton"}}})).spec["containers"][0][
            "args"
        ]
        assert args[-1] == "--model-control-mode=explicit"
        with_storage = pod(isvc(model("triton"))).spec["containers"][0]["args"]
        assert "--model-control-mode=explicit" not in with_storage

    def test_the_service_keeps_none_of_it(self) -> None:
        """Defaults by server type are in memory only; `pod` checks that the object stays."""
        obj = isvc(model(protocolVersion="v2"))
        pod(obj)
        assert "modelClass" not in obj["metadata"].get("labels", {})


class TestMerge:
    """control-plane.md 3.5."""

    def test_args_are_concatenated_and_the_rest_is_overridden(self) -> None:
        """Runtime first; per key, per name, per path."""
        runtime = kserve_container(
            args=["--a"],
            command=["run"],
            env=[{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
            ports=[{"containerPort": 8080, "name": "h"}],
            volumeMounts=[{"mountPath": "/x", "name": "x"}],
            resources={"limits": {"cpu": "1", "memory": "2Gi"}},
            workingDir="/app",
        )
        own = {
            "args": ["--b"],
            "command": ["mine"],
            "env": [{"name": "B", "value": "2"}],
            "ports": [{"containerPort": 8080, "protocol": "TCP"}],
            "volumeMounts": [{"mountPath": "/x", "readOnly": True}],
            "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}},
            "image": "y:2",
            "name": "",
        }
        assert merge_containers(runtime, own) == {
            "name": "kserve-container",
            "image": "y:2",
            "args": ["--a", "--b"],
            "command": ["mine"],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "ports": [{"containerPort": 8080, "name": "h", "protocol": "TCP"}],
            "volumeMounts": [{"mountPath": "/x", "name": "x", "readOnly": True}],
            "resources": {"limits": {"cpu": "2", "memory": "2Gi"}, "requests": {"cpu": "1"}},
            "workingDir": "/app",
        }

    def test_the_services_kind_of_value_wins(self) -> None:
        """A merge may not leave both value and valueFrom."""
        source = {"secretKeyRef": {"name": "s", "key": "k"}}
        runtime = kserve_container(
            env=[{"name": "A", "value": "1"}, {"name": "B", "valueFrom": source}]
        )
        own = {"env": [{"name": "A", "valueFrom": source}, {"name": "B", "value": "2"}]}
        merged = merge_containers(runtime, own)["env"]
        assert merged == [{"name": "A", "valueFrom": source}, {"name": "B", "value": "2"}]

    def test_pod_level_fields(self) -> None:
        """Only the listed fields of the runtime count; hostIPC is dropped, tolerations replaced."""
        runtime = custom_runtime(
            kserve_container(),
            nodeSelector={"a": "1"},
            tolerations=[{"key": "t"}],
            volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            imagePullSecrets=[{"name": "pull"}],
            schedulerName="mine",
            hostIPC=True,
            dnsPolicy="Default",
        )
        spec = pod(
            isvc(
                {
                    **model(),
                    "nodeSelector": {"b": "2"},
                    "tolerations": [{"key": "u"}],
                    "volumes": [{"name": "extra", "emptyDir": {}}],
                    "serviceAccountName": "sa",
                    "initContainers": [{"name": "i", "image": "busybox"}],
                    "minReplicas": 2,
                    "labels": {"x": "y"},
                }
            ),
            runtime,
        ).spec
        assert spec["nodeSelector"] == {"a": "1", "b": "2"}
        assert spec["tolerations"] == [{"key": "u"}]
        assert sorted(v["name"] for v in spec["volumes"]) == ["extra", "shm"]
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        assert spec["initContainers"] == [{"name": "i", "image": "busybox"}]
        assert set(spec) == {
            "nodeSelector",
            "tolerations",
            "volumes",
            "imagePullSecrets",
            "schedulerName",
            "serviceAccountName",
            "initContainers",
            "containers",
        }

    def test_order_of_containers(self) -> None:
        """Predictor, transformer, the runtime's others, the service's others."""
        runtime = custom_runtime(
            {"name": "side", "image": "s"},
            {"name": "transformer-container", "image": "t", "args": ["--{{.Name}}"]},
            kserve_container(),
        )
        transformer = {"name": "transformer-container", "args": ["--own"]}
        containers = pod(
            isvc({**model(), "containers": [{"name": "more", "image": "m"}, transformer]}), runtime
        ).spec["containers"]
        assert [c["name"] for c in containers] == [
            "kserve-container",
            "transformer-container",
            "side",
            "more",
        ]
        assert containers[1]["image"] == "t"
        assert containers[1]["args"] == ["--iris", "--own"]
        assert all(env_of(c)["INFERENCE_SERVICE_NAME"] == "iris" for c in containers)

    @pytest.mark.parametrize(
        ("runtime", "predictor", "text"),
        [
            (
                custom_runtime(),
                model(),
                "no container configuration found in selected serving runtime",
            ),
            (
                custom_runtime({"name": "other"}),
                model(),
                "failed to find kserve-container in ServingRuntime containers",
            ),
            (
                custom_runtime(kserve_container(env=[{"value": "nameless"}])),
                model(env=[{"name": "A", "value": "1"}]),
                "failed to merge container. Detail: map: {'value': 'nameless'} does not contain "
                'declared merge key: "name"',
            ),
            (
                custom_runtime(kserve_container(args=["{{.Foo}}"])),
                model(),
                "failed to replace placeholders in serving runtime mine Container kserve-container",
            ),
            (
                custom_runtime(kserve_container(), volumes=[{"emptyDir": {}}]),
                {**model(), "volumes": [{"name": "v"}]},
                "failed to consolidate serving runtime PodSpecs. Detail: map: {'emptyDir': {}} "
                'does not contain declared merge key: "name"',
            ),
        ],
        ids=["no-containers", "no-kserve-container", "merge", "template", "pod-spec"],
    )
    def test_failures(self, runtime: dict[str, Any], predictor: dict[str, Any], text: str) -> None:
        """control-plane.md 3.3: reason InvalidPredictorSpec."""
        with pytest.raises(SelectionError) as caught:
            pod(isvc(predictor), runtime)
        assert caught.value.reason == "InvalidPredictorSpec"
        assert caught.value.failure == text
        assert caught.value.event_message.startswith(text)


GPU = {"limits": {"nvidia.com/gpu": "1"}}
MIG = {"limits": {"nvidia.com/mig-1g.5gb": "1"}}


@pytest.mark.parametrize(
    ("image", "version", "server", "resources", "result"),
    [
        ("a/b:1", "2", "", {}, "a/b:2"),
        ("a/b", "2", "", {}, "a/b:2"),
        ("host:5000/a/b", "2", "", {}, "host:5000/a/b:2"),
        ("a/b@sha256:00", "2", "", GPU, "a/b@sha256:00"),
        ("a/b:1", None, "torchserve", GPU, "a/b:1-gpu"),
        ("a/b:1", None, "tensorflow-serving", MIG, "a/b:1-gpu"),
        ("a/b:1-gpu", None, "huggingfaceserver", GPU, "a/b:1-gpu"),
        ("a/b", None, "huggingfaceserver", GPU, "a/b"),
        ("a/b:1", None, "sklearnserver", GPU, "a/b:1"),
        ("a/b:1", "2", "torchserve", GPU, "a/b:2"),
        ("vllm/vllm-openai:1", None, "vllmserver", {}, "vllm/vllm-openai-cpu:1"),
        ("vllm/vllm-openai-cpu:1", None, "vllmserver", {}, "vllm/vllm-openai-cpu:1"),
        ("vllm/vllm-openai:1", None, "vllmserver", GPU, "vllm/vllm-openai:1"),
        ("vllm/vllm-openai:1", "2", "vllmserver", {}, "vllm/vllm-openai:2"),
    ],
)
def test_image_tags(
    image: str, version: str | None, server: str, resources: dict[str, Any], result: str
) -> None:
    """control-plane.md 3.5, "Image tag"."""
    container = {"image": image, "resources": resources}
    tagged = with_image_tag(container, runtime_version=version, server_type=server)
    assert tagged["image"] == result


def test_labels_and_annotations_by_rising_priority() -> None:
    """Runtime, service, component, then KServe's own; the disallowed are left out."""
    runtime = custom_runtime(
        kserve_container(),
        labels={"a": "runtime", "b": "runtime", "component": "x"},
        annotations={"a": "runtime", "b": "runtime", "autoscaling.knative.dev/min-scale": "9"},
    )
    visibility = "networking.knative.dev/visibility"
    parts = pod(
        isvc(
            {**model(), "labels": {"c": "component"}, "annotations": {"c": "component"}},
            labels={"b": "isvc", "c": "isvc", visibility: "cluster-local"},
            annotations={
                "b": "isvc",
                "c": "isvc",
                "autoscaling.knative.dev/max-scale": "3",
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
                "serving.kserve.io/stop": "false",
            },
        ),
        runtime,
    )
    assert {k: parts.labels[k] for k in ("a", "b", "c", "component")} == {
        "a": "runtime",
        "b": "isvc",
        "c": "component",
        "component": "predictor",
    }
    assert visibility not in parts.labels
    assert parts.object_labels[visibility] == "cluster-local"
    assert parts.annotations == {
        "a": "runtime",
        "b": "isvc",
        "c": "component",
        "serving.kserve.io/stop": "false",
        INTERNAL + "storage-initializer-sourceuri": "gs://b/m",
    }


def test_logger_batcher_and_storage_annotations() -> None:
    """control-plane.md 4.5, 8.2, 8.3, 7.5."""
    predictor = {
        "model": {
            "modelFormat": {"name": "sklearn"},
            "storage": {"key": "k", "path": "/models/a", "parameters": {"type": "s3", "a": "b"}},
            "confidential": {"enabled": True, "resourceId": "kbs:///a/b/c"},
        },
        "logger": {
            "url": "http://sink",
            "mode": "all",
            "metadataHeaders": ["A", "B"],
            "metadataAnnotations": ["x"],
        },
        "batcher": {"maxBatchSize": 8, "maxLatency": 100},
        "storageContainerName": "ignored-without-uri",
    }
    annotations = pod(isvc(predictor)).annotations
    internal = {
        key.removeprefix(INTERNAL): value
        for key, value in annotations.items()
        if key.startswith(INTERNAL)
    }
    assert internal == {
        "logger": "true",
        "logger-sink-url": "http://sink",
        "logger-mode": "all",
        "logger-metadata-headers": "A,B",
        "logger-metadata-annotations": "x",
        "batcher": "true",
        "batcher-max-batchsize": "8",
        "batcher-max-latency": "100",
        "storage-spec": "true",
        "storage-spec-key": "k",
        "storage-spec-param": '{"a":"b","type":"s3"}',
        "storage-initializer-sourceuri": "<scheme-placeholder>://models/a",
        "confidential-enabled": "true",
        "confidential-resource-id": "kbs:///a/b/c",
    }


def test_multi_model_annotations() -> None:
    """Any `model` without storage, but Hugging Face's."""
    annotations = pod(isvc({"model": {"modelFormat": {"name": "sklearn"}}})).annotations
    assert annotations[INTERNAL + "agent"] == "true"
    assert annotations[INTERNAL + "configVolumeName"] == "modelconfig-iris-0"
    assert annotations[INTERNAL + "configMountPath"] == "/mnt/configs"
    assert annotations[INTERNAL + "modelDir"] == "/mnt/models"
    face = pod(isvc({"model": {"modelFormat": {"name": "huggingface"}}})).annotations
    assert INTERNAL + "agent" not in face


def test_custom_predictor() -> None:
    """STORAGE_URI is the source; nothing is merged and `{{ }}` stays."""
    container = {
        "name": "mine",
        "image": "x",
        "args": ["{{.Name}}"],
        "env": [{"name": "STORAGE_URI", "value": "s3://b/m"}],
    }
    parts = pod(isvc({"containers": [container], "serviceAccountName": "sa", "minReplicas": 1}))
    (made,) = parts.spec["containers"]
    assert made["name"] == "kserve-container"
    assert made["args"] == ["{{.Name}}"]
    assert env_of(made) == {"STORAGE_URI": "s3://b/m", "INFERENCE_SERVICE_NAME": "iris"}
    assert set(parts.spec) == {"containers", "serviceAccountName"}
    assert parts.annotations == {INTERNAL + "storage-initializer-sourceuri": "s3://b/m"}


@pytest.mark.parametrize(
    "uri", ["gs://b", "models/iris", "/models", "modelscope://a/b", "https://h/f", "oci+fetch://x"]
)
def test_storage_schemes_that_are_accepted(uri: str) -> None:
    """control-plane.md 7.1."""
    annotations = pod(isvc(model(storageUri=uri))).annotations
    assert annotations[INTERNAL + "storage-initializer-sourceuri"] == uri


@pytest.mark.parametrize("uri", ["s4://b/m", "ftp://h/f", "oci+modelcar://x"])
def test_storage_schemes_that_are_not(uri: str) -> None:
    """The event's text; no SelectionError, so modelStatus stays untouched."""
    with pytest.raises(Invalid) as caught:
        pod(isvc(model(storageUri=uri)))
    assert not isinstance(caught.value, SelectionError)
    first, step = str(caught.value).splitlines()
    assert step.startswith("Next step: ")
    assert first == (
        "StorageURI not supported: storageUri, must be one of: [gs://, s3://, pvc://, file://, "
        "https://, http://, hdfs://, webhdfs://, oci://, oci+native://, oci+fetch://, hf://] or "
        "match https://{}.blob.core.windows.net/{}/{} or be an absolute or relative local path. "
        f"StorageUri [{uri}] is not supported"
    )


def test_storage_uri_and_storage_path_together() -> None:
    """Refused by the controller."""
    with pytest.raises(Invalid, match="must provide only one of storageUri and storage\\.path"):
        pod(isvc(model(storage={"path": "a"})))


class TestStorageUris:
    """control-plane.md 7.3."""

    def predictor(self, *entries: tuple[str, str]) -> dict[str, Any]:
        uris = [{"uri": uri, "mountPath": path} for uri, path in entries]
        return {"model": {"modelFormat": {"name": "sklearn"}}, "storageUris": uris}

    def test_one_init_container_for_all_and_claims_mounted_whole(self) -> None:
        """One emptyDir at the common parent; a claim's sub-path is ignored."""
        parts = pod(
            isvc(
                self.predictor(
                    ("gs://b/a", "/mnt/models/a"),
                    ("s3://b/b", "/mnt/models/b"),
                    ("pvc://claim/sub", "/data"),
                )
            )
        )
        (init,) = parts.spec["initContainers"]
        assert init["name"] == "storage-initializer"
        assert init["image"] == "kserve/storage-initializer:latest"
        assert init["args"] == ["gs://b/a", "/mnt/models/a", "s3://b/b", "/mnt/models/b"]
        assert init["volumeMounts"] == [{"name": "mnt-models", "mountPath": "/mnt/models"}]
        assert init["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert parts.spec["volumes"] == [
            {"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "mnt-models", "emptyDir": {}},
        ]
        assert parts.spec["containers"][0]["volumeMounts"] == [
            {"name": "claim", "mountPath": "/data", "readOnly": True},
            {"name": "mnt-models", "mountPath": "/mnt/models", "readOnly": True},
        ]
        assert INTERNAL + "storage-initializer-sourceuri" not in parts.annotations
        assert INTERNAL + "agent" not in parts.annotations

    def test_limits(self) -> None:
        """Too many OCI sources; a storage container for one source only."""
        many = self.predictor(*((f"oci://r/{i}", f"/mnt/m/{i}") for i in range(11)))
        with pytest.raises(Invalid, match=r"too many OCI sources \(11\); maximum is 10 per pod"):
            pod(isvc(many))
        single = copy.deepcopy(CONTAINERS[0])
        single["spec"]["supportsMultiModelDownload"] = False
        obj = isvc(self.predictor(("gs://b/a", "/mnt/models")))
        selection = select(obj, runtimes=(), cluster_runtimes=RUNTIMES)
        with pytest.raises(Invalid, match='storage container "default" does not support'):
            predictor_pod(obj, selection, config=CONFIG, storage_containers=[single])
