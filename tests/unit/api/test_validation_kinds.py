"""The webhooks of the other kinds: runtimes, graphs, trained models, caches, Knative Services."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api import config, validation
from kserve_local.errors import Forbidden

CONFIG = config.parse(None)
SERVING = "serving.kserve.io/v1alpha1"


def obj(kind: str, spec: dict[str, Any], *, api: str = SERVING, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": "new", "namespace": "default", **metadata},
        "spec": spec,
    }


def admit(
    new: dict[str, Any],
    *existing: dict[str, Any],
    old: dict[str, Any] | None = None,
    delete: bool = False,
) -> list[str]:
    def lookup(resource: str, namespace: str | None) -> list[dict[str, Any]]:
        return [
            o
            for o in existing
            if resource.startswith(o["kind"].lower())
            and (namespace is None or o["metadata"].get("namespace") == namespace)
        ]

    if delete:
        return validation.validate_deletion(new, config=CONFIG, lookup=lookup)
    return validation.validate(new, old=old, config=CONFIG, lookup=lookup)


def refusal(new: dict[str, Any], *existing: dict[str, Any], **kwargs: Any) -> str:
    with pytest.raises(Forbidden) as caught:
        admit(new, *existing, **kwargs)
    head, _, message = str(caught.value).partition(" denied the request: ")
    assert head.startswith('admission webhook "')
    return message


def fmt(
    name: str = "sklearn", version: str = "1", priority: int | None = 1, auto: bool = True
) -> Any:
    entry: dict[str, Any] = {"name": name, "version": version, "autoSelect": auto}
    return entry if priority is None else {**entry, "priority": priority}


def runtime(
    *formats: Any, kind: str = "ServingRuntime", name: str = "new", **spec: Any
) -> dict[str, Any]:
    base = {
        "supportedModelFormats": list(formats) or [fmt()],
        "protocolVersions": ["v1"],
        "containers": [{"name": "kserve-container"}],
    }
    return obj(kind, {**base, **spec}, name=name)


class TestRuntimes:
    """control-plane.md 3.3, last part."""

    def test_same_priority(self) -> None:
        """Existing first, then new; format names compare without case."""
        existing = runtime(name="old")
        assert refusal(runtime(fmt("SKLearn")), existing) == (
            "same priority assigned for the model format SKLearn in the servingruntimes old and "
            "new in namespace default"
        )
        cluster = runtime(kind="ClusterServingRuntime", name="old")
        assert refusal(runtime(kind="ClusterServingRuntime"), cluster) == (
            "same priority assigned for the model format sklearn in the clusterservingruntimes old "
            "and new"
        )

    @pytest.mark.parametrize(
        "new",
        [
            runtime(fmt(priority=2)),
            runtime(fmt(priority=None)),
            runtime(fmt(version="2")),
            runtime(fmt(auto=False)),
            runtime(protocolVersions=["v2"]),
            runtime(multiModel=True),
            runtime(disabled=True),
            runtime(name="old"),
        ],
    )
    def test_no_conflict(self, new: dict[str, Any]) -> None:
        """Any of these makes them different enough."""
        assert admit(new, runtime(name="old")) == []

    def test_different_priorities_in_one_runtime(self) -> None:
        """Looked at only where another runtime of the kind exists already."""
        torn = runtime(fmt(priority=1), fmt(version="2", priority=2))
        assert admit(torn) == []
        other = runtime(fmt("xgboost"), name="old")
        assert refusal(torn, other) == (
            "different priorities assigned for the model format sklearn under the servingruntime "
            "new"
        )
        cluster = runtime(
            fmt(priority=1), fmt(version="2", priority=2), kind="ClusterServingRuntime"
        )
        other = runtime(fmt("xgboost"), kind="ClusterServingRuntime", name="old")
        assert refusal(cluster, other).endswith("under the clusterservingruntime new")

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({}, "removing workerSpec where it already exists is not allowed"),
            (
                {"workerSpec": {"containers": [{"name": "a"}, {"name": "b"}]}},
                "setting multiple containers in workerSpec is not allowed",
            ),
            (
                {"workerSpec": {"containers": [], "pipelineParallelSize": 0}},
                "the WorkerSpec.PipelineParallelSize cannot be less than 1(0)",
            ),
            (
                {"workerSpec": {"containers": [], "tensorParallelSize": 0}},
                "the WorkerSpec.TensorParallelSize cannot be less than 1(0)",
            ),
            (
                {
                    "workerSpec": {"containers": []},
                    "containers": [
                        {"name": "kserve-container", "env": [{"name": "TENSOR_PARALLEL_SIZE"}]}
                    ],
                },
                "setting TENSOR_PARALLEL_SIZE in environment variables is not allowed",
            ),
            (
                {
                    "workerSpec": {
                        "containers": [
                            {"name": "worker-container", "resources": {"limits": {"x/y": 1}}}
                        ]
                    }
                },
                "unknown GPU resource type in a container(worker-container)",
            ),
        ],
    )
    def test_multi_node(self, spec: dict[str, Any], message: str) -> None:
        """Compared with the runtime of the same name that exists."""
        existing = runtime(workerSpec={"containers": []})
        assert refusal(runtime(**spec), existing) == f"the ServingRuntime new is invalid: {message}"

    def test_python_path(self) -> None:
        """In containers and workers."""
        bad = {"name": "c", "env": [{"name": "PYTHONPATH", "value": "/x"}]}
        text = (
            'the ClusterServingRuntime "new" is invalid: setting PYTHONPATH in container "c" is '
            "not allowed for security reasons"
        )
        kind = "ClusterServingRuntime"
        assert refusal(runtime(kind=kind, containers=[bad])) == text
        assert refusal(runtime(kind=kind, workerSpec={"containers": [bad]})) == text


def graph(nodes: dict[str, Any], name: str = "graph") -> dict[str, Any]:
    return obj("InferenceGraph", {"nodes": nodes}, name=name)


def node(*steps: dict[str, Any], router: str = "Sequence") -> dict[str, Any]:
    return {"routerType": router, "steps": list(steps)}


A = {"serviceName": "a"}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            graph({"root": node(A)}, name="Graph"),
            'The InferenceGraph "Graph" is invalid: a InferenceGraph name must consist of lower '
            "case alphanumeric characters or '-', and must start with alphabetical character. "
            '(e.g. "my-name" or "abc-123", regex used for validation is '
            "'[a-z]([-a-z0-9]*[a-z0-9])?')",
        ),
        (
            graph({"first": node(A)}),
            "root node not found, InferenceGraph needs a node with name 'root' as the root node of "
            "the graph",
        ),
        (
            graph({"root": node({**A, "name": "s"}, {**A, "name": "s"})}),
            'Node "root" of InferenceGraph "graph" contains more than one step with name "s"',
        ),
        (
            graph({"root": node(A, {"name": "s"})}),
            'Step 1 ("s") in node "root" of InferenceGraph "graph" does not specify an inference '
            "target",
        ),
        (
            graph({"root": node({**A, "serviceUrl": "http://x"})}),
            'Step 0 ("") in node "root" of InferenceGraph "graph" specifies more than one of '
            "nodeName, serviceName, serviceUrl",
        ),
        (
            graph({"root": node({**A, "weight": 50}, A, router="Splitter")}),
            "InferenceGraph[graph] Node[root] Route[a] missing the 'Weight'",
        ),
        (
            graph({"root": node({**A, "weight": 90}, router="Splitter")}),
            "InferenceGraph[graph] Node[root] splitter node: the sum of traffic weights for all "
            "routing targets should be 100",
        ),
    ],
)
def test_inference_graph(new: dict[str, Any], message: str) -> None:
    """control-plane.md 9.1, in its order."""
    assert refusal(new) == message


def test_inference_graph_does_not_check_references() -> None:
    """Missing nodes, cycles and empty step lists pass."""
    nodes = {"root": node({"nodeName": "nowhere"}), "empty": {"routerType": "Ensemble"}}
    assert admit(graph(nodes)) == []


def trained(memory: str = "1Gi", uri: str = "gs://b/m", name: str = "my-Model_1") -> dict[str, Any]:
    model = {"storageUri": uri, "framework": "sklearn", "memory": memory}
    return obj("TrainedModel", {"inferenceService": "x", "model": model}, name=name)


def test_trained_model() -> None:
    """control-plane.md 10."""
    assert admit(trained()) == []
    assert refusal(trained(name="a.b")) == (
        'the Trained Model "a.b" is invalid: a Trained Model name must consist of alphanumeric '
        "characters, '_', or '-'. (e.g. \"my-Name\" or \"abc_123\", regex used for validation is "
        "'^[a-zA-Z0-9_-]+$')"
    )
    assert refusal(trained(uri="hf://a/b")) == (
        'the Trained Model "my-Model_1" storageUri field is invalid. The storage uri must start '
        "with one of the prefixes: s3://, gs://, https://, http://. (the storage uri given is "
        '"hf://a/b")'
    )
    assert refusal(trained("2Gi"), old=trained()) == (
        'the Trained Model "my-Model_1" memory field is immutable. The memory was "1Gi" but it is '
        'updated to "2Gi"'
    )
    assert admit(trained("1024Mi"), old=trained()) == []


def cache(name: str, kind: str = "LocalModelCache", **status: Any) -> dict[str, Any]:
    made = obj(kind, {"sourceModelUri": "gs://b/m", "nodeGroups": ["g"]}, name=name)
    return {**made, "status": status}


class TestLocalModels:
    """llm.md 5.5."""

    def test_one_cluster_cache_a_uri(self) -> None:
        """Another of the same name is the object itself."""
        assert refusal(cache("b"), cache("a")) == (
            "LocalModelCache a has the same StorageURI gs://b/m"
        )
        assert admit(cache("a"), cache("a")) == []

    def test_node_groups_of_a_namespaced_cache(self) -> None:
        """The cluster kind does not look."""
        namespaced = cache("a", "LocalModelNamespaceCache")
        assert refusal(namespaced).startswith("NodeGroup g not found: ")
        assert admit(namespaced, obj("LocalModelNodeGroup", {}, name="g")) == []

    def test_deletion_while_used(self) -> None:
        """A service in status that still carries the label."""
        user = {"name": "iris", "namespace": "default"}
        label = "internal.serving.kserve.io/localmodel"
        service = obj("InferenceService", {}, name="iris", labels={label: "a"})
        used = cache("a", inferenceServices=[user])
        assert refusal(used, service, delete=True) == (
            "LocalModelCache a is being used by InferenceService iris"
        )
        moved_on = obj("InferenceService", {}, name="iris", labels={label: "b"})
        assert admit(used, moved_on, delete=True) == []
        near = cache("a", "LocalModelNamespaceCache", llmInferenceServices=[user])
        labels = {label: "a", f"{label}-namespace": "default"}
        llm = obj("LLMInferenceService", {}, name="iris", labels=labels)
        assert refusal(near, llm, delete=True) == (
            "LocalModelNamespaceCache default/a is being used by LLMInferenceService default/iris"
        )


def ksvc(annotations: dict[str, str] | None = None, **parts: Any) -> dict[str, Any]:
    template = {
        "metadata": {"annotations": annotations or {}},
        "spec": {"containers": [{"image": "x"}], **parts.pop("pod", {})},
    }
    spec = {"template": template, **parts}
    return obj("Service", spec, api="serving.knative.dev/v1")


PREFIX = "autoscaling.knative.dev/"
PATH = "spec.template.metadata.annotations.autoscaling.knative.dev/"


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        ({"class": "x.knative.dev"}, f"invalid value: x.knative.dev: {PATH}class"),
        ({"metric": "cpu"}, f"invalid value: cpu: {PATH}metric"),
        ({"target": "0"}, f"target 0 should be at least 0.01: {PATH}target"),
        ({"target": "x"}, f"invalid value: x: {PATH}target"),
        (
            {"target-utilization-percentage": "0"},
            f"expected 1 <= 0 <= 100: {PATH}target-utilization-percentage",
        ),
        ({"targetBurstCapacity": "-2"}, f"invalid value: -2: {PATH}targetBurstCapacity"),
        ({"min-scale": "-1"}, f"expected 0 <= -1 <= 2147483647: {PATH}min-scale"),
        ({"minScale": "x"}, f"invalid value: x: {PATH}minScale"),
        (
            {"min-scale": "2", "max-scale": "1"},
            f"max-scale=1 is less than min-scale=2: {PATH}max-scale, {PATH}min-scale",
        ),
        (
            {"initial-scale": "0"},
            f"invalid value: 0: {PATH}initial-scale=0 not allowed by cluster",
        ),
        (
            {"initialScale": "-1"},
            f"invalid value: -1: {PATH}initialScale must be greater than 0",
        ),
        (
            {"activation-scale": "1"},
            f"activation-scale=1 must be greater than 1: {PATH}activation-scale",
        ),
        (
            {"activation-scale": "2", "min-scale": "3"},
            f"min-scale=3 is greater than activation-scale=2: {PATH}activation-scale",
        ),
        (
            {"activation-scale": "5", "max-scale": "3"},
            f"max-scale=3 is less than activation-scale=5: {PATH}activation-scale",
        ),
        ({"activation-scale": "x"}, f"invalid value: x: {PATH}activation-scale"),
        (
            {"min-scale": "2147483648"},
            f"expected 0 <= 2147483648 <= 2147483647: {PATH}min-scale",
        ),
        ({"window": "5s"}, f"expected 6s <= 5s <= 1h0m0s: {PATH}window"),
        (
            {"window": "10s500ms"},
            f"must be specified with at most second precision: {PATH}window",
        ),
        ({"window": "60"}, f"invalid value: 60: {PATH}window"),
        (
            {"panic-window-percentage": "101"},
            f"expected 1 <= 101 <= 100: {PATH}panic-window-percentage",
        ),
        (
            {"panic-threshold-percentage": "100"},
            f"expected 110 <= 100 <= 1000: {PATH}panic-threshold-percentage",
        ),
        ({"scale-down-delay": "2h"}, f"expected 0s <= 2h <= 1h0m0s: {PATH}scale-down-delay"),
        (
            {"class": "kpa.autoscaling.knative.dev", "metric-aggregation-algorithm": "mean"},
            f"invalid value: mean: {PATH}metric-aggregation-algorithm",
        ),
    ],
)
def test_knative_autoscaling_annotations(annotations: dict[str, str], problem: str) -> None:
    """traffic.md 1.9."""
    service = ksvc({PREFIX + key: value for key, value in annotations.items()})
    assert refusal(service) == f"validation failed: {problem}"


def test_knative_accepts() -> None:
    """Kebab-case wins over camelCase; HPA takes any metric; the cluster may allow zero."""
    good = {
        "minScale": "x",
        "min-scale": "0",
        "max-scale": "0",
        "target": "0.01",
        "target-burst-capacity": "-1",
        "activation-scale": "2",
        "window": "1m30s",
        "scale-to-zero-pod-retention-period": "1m0.5s",
        "class": "kpa.autoscaling.knative.dev",
        "metric-aggregation-algorithm": "weighted-exponential",
    }
    assert admit(ksvc({PREFIX + key: value for key, value in good.items()})) == []
    hpa = {"class": "hpa.autoscaling.knative.dev", "metric": "anything"}
    assert admit(ksvc({PREFIX + key: value for key, value in hpa.items()})) == []
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "config-autoscaler", "namespace": "knative-serving"},
        "data": {"allow-zero-initial-scale": "true", "max-scale-limit": "5"},
    }
    assert admit(ksvc({PREFIX + "initial-scale": "0"}), settings) == []
    limited = refusal(ksvc({PREFIX + "max-scale": "6"}), settings)
    assert limited.endswith(f"expected 1 <= 6 <= 5: {PATH}max-scale")
    unlimited = refusal(ksvc({PREFIX + "max-scale": "0"}), settings)
    assert unlimited.endswith(f"max-scale=0 (unlimited), must be less than 5: {PATH}max-scale")


def test_knative_names_everything_at_once() -> None:
    """Sorted by message; what is wrong in the same way is said once, for all paths."""
    wrong = {"target": "x", "panicWindowPercentage": "x", "window": "5s"}
    assert refusal(ksvc({PREFIX + key: value for key, value in wrong.items()})) == (
        f"validation failed: expected 6s <= 5s <= 1h0m0s: {PATH}window\n"
        f"invalid value: x: {PATH}panicWindowPercentage, {PATH}target"
    )


def test_knative_service_level_rules() -> None:
    """Annotations in the wrong place, limits of the revision, traffic."""
    misplaced = ksvc()
    misplaced["metadata"]["annotations"] = {PREFIX + "min-scale": "1"}
    assert refusal(misplaced).endswith(
        'autoscaling annotations must be put under "spec.template.metadata.annotations" to work'
    )
    assert refusal(ksvc(pod={"timeoutSeconds": 1200})).endswith(
        "expected 0 <= 1200 <= 600: spec.template.spec.timeoutSeconds"
    )
    assert refusal(ksvc(pod={"containerConcurrency": 1001})).endswith(
        "expected 0 <= 1001 <= 1000: spec.template.spec.containerConcurrency"
    )
    traffic = [{"latestRevision": True, "percent": 50}, {"revisionName": "a", "percent": 40}]
    assert refusal(ksvc(traffic=traffic)) == (
        "validation failed: Traffic targets sum to 90, want 100: spec.traffic"
    )
    twice = [{"percent": 50, "tag": "a"}, {"percent": 50, "tag": "a"}]
    assert 'Multiple definitions for "a"' in refusal(ksvc(traffic=twice))
    assert admit(ksvc(traffic=[{"percent": 100, "tag": "prev"}])) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("three hours", "invalid value: three hours: "),
        ("1500ms", "rollout-duration=1500ms is not at second precision: "),
        ("-60s", "rollout-duration=-60s must be positive: "),
    ],
)
def test_a_gradual_rollout_needs_a_duration_in_seconds(text: str, problem: str) -> None:
    key = "serving.knative.dev/rollout-duration"
    service = ksvc()
    service["metadata"]["annotations"] = {key: text}
    assert refusal(service) == f"validation failed: {problem}metadata.annotations.{key}"
    for good in ("", "0s", "90s", "1h30m"):
        service["metadata"]["annotations"] = {key: good, "serving.knative.dev/rolloutDuration": "x"}
        assert admit(service) == []


def test_kinds_without_a_webhook_pass() -> None:
    """Core kinds and Kubernetes Services."""
    assert admit({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}) == []
    assert admit(obj("ClusterStorageContainer", {})) == []
    assert admit(obj("InferenceGraph", {}), delete=True) == []
