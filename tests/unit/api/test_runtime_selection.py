"""Runtime selection: control-plane.md 3.1 to 3.3 and the table of 3.6."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api import builtin, config, defaults
from kserve_local.api.runtime_selection import (
    SelectionError,
    candidates,
    considered,
    lowest_protocol,
    select,
    server_type,
)

CONFIG = config.parse(None)
BUILT_IN = builtin.cluster_serving_runtimes()


def isvc(
    name: str,
    version: str | None = None,
    protocol: str | None = None,
    runtime: str | None = None,
    worker: bool = False,
) -> dict[str, Any]:
    model: dict[str, Any] = {"modelFormat": {"name": name}, "storageUri": "gs://b/m"}
    if version is not None:
        model["modelFormat"]["version"] = version
    if protocol is not None:
        model["protocolVersion"] = protocol
    if runtime is not None:
        model["runtime"] = runtime
    predictor = {"model": model, **({"workerSpec": {}} if worker else {})}
    obj = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "x", "namespace": "default"},
        "spec": {"predictor": predictor},
    }
    return defaults.default(obj, config=CONFIG)


def runtime(
    name: str,
    *formats: dict[str, Any],
    protocols: tuple[str, ...] = ("v1",),
    created: str = "2026-01-01T00:00:00Z",
    namespace: str = "",
    **spec: Any,
) -> dict[str, Any]:
    metadata = {"name": name, "creationTimestamp": created}
    if namespace:
        metadata["namespace"] = namespace
    return {
        "metadata": metadata,
        "spec": {
            "supportedModelFormats": list(formats),
            "protocolVersions": list(protocols),
            "containers": [{"name": "kserve-container"}],
            **spec,
        },
    }


def fmt(
    name: str = "sklearn",
    version: str | None = "1",
    priority: int | None = None,
    auto: bool = True,
) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "autoSelect": auto}
    if version is not None:
        entry["version"] = version
    if priority is not None:
        entry["priority"] = priority
    return entry


def chosen(
    *cluster: dict[str, Any],
    of: dict[str, Any] | None = None,
    local: tuple[dict[str, Any], ...] = (),
) -> str:
    return select(of or isvc("sklearn"), runtimes=local, cluster_runtimes=cluster).name


# control-plane.md 3.6, "Resulting auto-selection"; None: NoSupportingRuntime.
_TABLE: list[tuple[str, list[str | None], str | None, str | None, str | None]] = [
    ("sklearn", [None, "1"], "sklearnserver", "mlserver", None),
    ("sklearn", ["0"], None, "mlserver", None),
    ("xgboost", [None, "2"], "xgbserver", "mlserver", None),
    ("xgboost", ["1"], None, "mlserver", None),
    ("lightgbm", [None, "4"], "lgbserver", "mlserver", None),
    ("lightgbm", ["3"], None, "mlserver", None),
    ("tensorflow", [None, "1", "2"], "tensorflow-serving", "tritonserver", "tritonserver"),
    ("pytorch", [None], "torchserve", "torchserve", "torchserve"),
    ("onnx", [None, "1"], None, "tritonserver", "tritonserver"),
    ("tensorrt", [None, "8"], None, "tritonserver", "tritonserver"),
    ("mlflow", [None, "1", "2"], None, "mlserver", None),
    ("huggingface", [None], "huggingfaceserver", "huggingfaceserver", None),
    ("vLLM", [None], "vllmserver", "vllmserver", "vllmserver"),
    ("triton", [None], "tritonserver", "tritonserver", "tritonserver"),
    ("paddle", [None, "2"], "paddleserver", "paddleserver", None),
    ("pmml", [None, "3", "4"], "pmmlserver", "pmmlserver", None),
    ("autogluon", [None, "1"], "autogluonserver", "autogluonserver", None),
]
AUTO = [
    pytest.param(name, version, protocol, server, id=f"{name}-{version}-{protocol}")
    for name, versions, *servers in _TABLE
    for version in versions
    for protocol, server in zip(
        (None, "v1", "v2", "grpc-v2"), (servers[0], servers[0], *servers[1:]), strict=True
    )
    # The table's first column for these two is "unset", which the webhook makes v2.
    if not (name in ("triton", "vLLM") and protocol == "v1")
]


@pytest.mark.parametrize(("name", "version", "protocol", "server"), AUTO)
def test_auto_selection_of_the_default_install(
    name: str, version: str | None, protocol: str | None, server: str | None
) -> None:
    """The whole table of section 3.6, our own runtimes installed beside KServe's."""
    service = isvc(name, version, protocol)
    if server is None:
        with pytest.raises(SelectionError) as caught:
            select(service, runtimes=(), cluster_runtimes=BUILT_IN)
        assert caught.value.reason == "NoSupportingRuntime"
    else:
        selection = select(service, runtimes=(), cluster_runtimes=BUILT_IN)
        assert selection.name == f"kserve-{server}"
        assert selection.kind == "ClusterServingRuntime"
        assert selection.automatic


def test_multi_node_takes_the_runtime_with_a_worker() -> None:
    """And only that one."""
    assert chosen(*BUILT_IN, of=isvc("huggingface", worker=True)) == (
        "kserve-huggingfaceserver-multinode"
    )
    with pytest.raises(SelectionError):
        chosen(*BUILT_IN, of=isvc("sklearn", worker=True))


def test_names_and_versions_compare_letter_by_letter() -> None:
    """`vllm` is not `vLLM`, and 1 is not 1.0."""
    for service in (isvc("vllm"), isvc("sklearn", "1.0"), isvc("Sklearn")):
        with pytest.raises(SelectionError):
            chosen(*BUILT_IN, of=service)


class TestOrder:
    """control-plane.md 3.1, "Ordering"."""

    def test_1_namespaced_before_cluster(self) -> None:
        """Whatever the priorities."""
        local = runtime("local", fmt(priority=1), namespace="default")
        assert chosen(runtime("wide", fmt(priority=9)), local=(local,)) == "local"
        other = runtime("local", fmt(priority=1), namespace="elsewhere")
        assert chosen(runtime("wide", fmt(priority=9)), local=(other,)) == "wide"

    def test_2_lowest_protocol_then_newest_then_name(self) -> None:
        """Within a group and without priorities."""
        v1 = runtime("z", fmt(), protocols=("grpc-v2", "v1"))
        v2 = runtime("a", fmt(), protocols=("v2", "grpc-v1"))
        anything = runtime("b", fmt(), protocols=())
        v2_service = isvc("sklearn", protocol="v2")
        also = runtime("y", fmt(), protocols=("v1", "v2"))
        assert chosen(v2, anything, also, of=v2_service) == "y"
        assert chosen(anything, v1) == "z"
        assert chosen(anything, v2, of=v2_service) == "a"
        newer = runtime("m", fmt(), created="2026-02-01T00:00:00Z")
        assert chosen(runtime("a", fmt()), newer) == "m"
        assert chosen(runtime("b", fmt()), runtime("a", fmt())) == "a"

    def test_3_priority_beats_that_and_none_comes_last(self) -> None:
        """Highest first; the order above breaks ties."""
        low, high = runtime("a", fmt(priority=1)), runtime("b", fmt(priority=2))
        none = runtime("c", fmt(), created="2027-01-01T00:00:00Z")
        assert [
            r["metadata"]["name"]
            for r in candidates(isvc("sklearn"), runtimes=(), cluster_runtimes=(none, low, high))
        ] == ["b", "a", "c"]

    def test_3_the_priority_is_that_of_the_first_entry_of_the_format(self) -> None:
        """Even where another entry matches."""
        odd = runtime("odd", fmt(version="9", priority=9), fmt(version="1", priority=1))
        plain = runtime("plain", fmt(priority=5))
        assert chosen(odd, plain, of=isvc("sklearn", "1")) == "odd"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (runtime("r", fmt(), disabled=True), "disabled"),
        (runtime("r", fmt("xgboost")), "no sklearn"),
        (runtime("r", fmt("SKLearn")), "no sklearn, but SKLearn"),
        (runtime("r", fmt(auto=False)), "autoSelect is off"),
        (runtime("r", fmt(version="0")), "version 0 only"),
        (runtime("r", fmt(version="0"), fmt(version="2")), "versions 0 and 2 only"),
        (runtime("r", fmt(version=None)), "no versions listed"),
        (runtime("r", fmt(), protocols=("v2",)), "protocol v2 only"),
        (runtime("r", fmt(), multiModel=True), "for multi-model serving"),
        (runtime("r", fmt(), workerSpec={}), "for multi-node serving: needs a workerSpec"),
    ],
)
def test_considered_says_why_not(bad: dict[str, Any], why: str) -> None:
    """One line a runtime, and none of them is selected."""
    service = isvc("sklearn", "1")
    assert considered(service, (), (bad,)) == [("r", why)]
    with pytest.raises(SelectionError):
        chosen(bad, of=service)


def test_considered_puts_the_nearest_misses_first_and_leaves_matches_out() -> None:
    """A person reads the top."""
    misses = considered(isvc("onnx"), (), BUILT_IN)
    assert misses[:2] == [
        ("kserve-local-onnxserver", "autoSelect is off"),
        ("kserve-tritonserver", "protocol v2 and grpc-v2 only"),
    ]
    assert len(misses) == len(BUILT_IN)
    assert "kserve-sklearnserver" not in dict(considered(isvc("sklearn"), (), BUILT_IN))


def test_considered_of_an_explicit_runtime() -> None:
    """autoSelect does not matter then; an unknown name lists them all."""
    assert considered(isvc("onnx", runtime="kserve-local-onnxserver"), (), BUILT_IN) == []
    assert considered(isvc("onnx", "2", runtime="kserve-local-onnxserver"), (), BUILT_IN) == [
        ("kserve-local-onnxserver", "version 1 only")
    ]
    assert considered(isvc("onnx", "1", "grpc-v2", "kserve-local-onnxserver"), (), BUILT_IN) == [
        ("kserve-local-onnxserver", "protocol v1 and v2 only")
    ]
    assert len(considered(isvc("onnx", runtime="nobody"), (), BUILT_IN)) == len(BUILT_IN)


class TestExplicit:
    """control-plane.md 3.2."""

    def test_ignores_auto_select_multi_model_and_worker(self) -> None:
        """But finds the namespaced one first."""
        odd = runtime("odd", fmt(auto=False), multiModel=True, workerSpec={})
        service = isvc("sklearn", runtime="odd")
        assert chosen(odd, of=service) == "odd"
        local = runtime("odd", fmt(), namespace="default")
        found = select(service, runtimes=(local,), cluster_runtimes=(odd,))
        assert (found.kind, found.automatic) == ("ServingRuntime", False)

    @pytest.mark.parametrize(
        ("service", "reason", "message", "event"),
        [
            (
                isvc("sklearn", runtime="nobody"),
                "RuntimeNotRecognized",
                "Waiting for runtime to become available",
                "No ServingRuntimes or ClusterServingRuntimes with the name: nobody",
            ),
            (
                isvc("sklearn", runtime="off"),
                "RuntimeDisabled",
                "Specified runtime is disabled",
                "specified runtime off is disabled",
            ),
            (
                isvc("sklearn", protocol="v2", runtime="plain"),
                "NoSupportingRuntime",
                "Specified runtime does not support specified protocol version",
                "specified runtime plain does not support specified protocol version",
            ),
            (
                isvc("sklearn", "7", runtime="plain"),
                "NoSupportingRuntime",
                "Specified runtime does not support specified framework/version",
                "specified runtime plain does not support specified framework/version",
            ),
            (
                isvc("mlflow"),
                "NoSupportingRuntime",
                "No runtime found to support specified framework/version",
                "no runtime found to support predictor with model type: {mlflow <nil>}",
            ),
        ],
        ids=["unknown", "disabled", "protocol", "format", "nothing-matches"],
    )
    def test_failures(self, service: dict[str, Any], reason: str, message: str, event: str) -> None:
        """control-plane.md 3.3: reason and message for modelStatus, text for the Event."""
        cluster = (runtime("plain", fmt()), runtime("off", fmt(), disabled=True))
        with pytest.raises(SelectionError) as caught:
            select(service, runtimes=(), cluster_runtimes=cluster)
        error = caught.value
        assert (error.reason, error.failure, error.event_message) == (reason, message, event)
        assert str(error) == event


def test_protocol_of_the_selection() -> None:
    """Given, else the server type's own, else the lowest listed (control-plane.md 3.4)."""

    def protocol(name: str, given: str | None = None, picked: str | None = None) -> str:
        service = isvc(name, protocol=given, runtime=picked)
        return select(service, runtimes=(), cluster_runtimes=BUILT_IN).protocol

    assert protocol("sklearn") == "v1"
    assert protocol("sklearn", "v2") == "v2"
    assert protocol("sklearn", picked="kserve-mlserver") == "v2"
    assert protocol("pytorch") == "v1"
    assert protocol("onnx", picked="kserve-tritonserver") == "v2"
    lone = runtime("lone", fmt(), protocols=("grpc-v2", "v2"))
    service = isvc("sklearn", runtime="lone")
    assert select(service, runtimes=(), cluster_runtimes=(lone,)).protocol == "v2"
    assert lowest_protocol(runtime("r", protocols=())) is None


def test_server_type_by_annotation_then_by_built_in_name() -> None:
    """control-plane.md 3.4, first sentence."""
    assert all(server_type(r) for r in BUILT_IN)
    assert server_type({"metadata": {"name": "kserve-mlserver"}}) == "mlserver"
    assert server_type({"metadata": {"name": "mine"}}) == ""
    annotated = {"serving.kserve.io/server-type": "tritonserver"}
    mine = {"metadata": {"name": "kserve-mlserver", "annotations": annotated}}
    assert server_type(mine) == "tritonserver"
