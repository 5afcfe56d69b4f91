"""What is told about fields and kinds that have no effect; of the rest nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.gaps import VERSION, left_out
from kserve_local.api.manifest import load
from kserve_local.api.review import review
from kserve_local.controllers.standins import is_known
from kserve_local.settings import ImageSource


def service(annotations: dict[str, str] | None = None, **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://bucket/model"}
    return {
        "metadata": {"name": "iris", "annotations": annotations or {}},
        "spec": {"predictor": {"model": model, **predictor}},
    }


@pytest.mark.parametrize(
    "isvc",
    [
        service(),
        service(minReplicas=2),
        service(hostNetwork=False, hostname="a", subdomain="b", securityContext={"fsGroup": 1}),
        service(minReplicas=0),
        service(minReplicas=2, maxReplicas=3, scaleTarget=1, scaleMetric="rps"),
        service(maxReplicas=1, containerConcurrency=1, timeout=5, canaryTrafficPercent=10),
        service(model={"modelFormat": {"name": "huggingface"}}),
        service(logger={"mode": "all"}, batcher={"maxBatchSize": 4}),
    ],
)
def test_nothing_to_say(isvc: dict[str, Any]) -> None:
    assert left_out(isvc) == []


@pytest.mark.parametrize(
    ("isvc", "words"),
    [
        (
            service({"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"}),
            "stays at minReplicas",
        ),
        (service(logger={"mode": "all", "url": "abfs://c@a/p"}), "objects are not written"),
        (service(workerSpec={}), "workerSpec"),
        (service(hostNetwork=True), "hostNetwork: it has no effect here"),
        (service(hostPID=True), "hostPID"),
        (service(shareProcessNamespace=True), "shareProcessNamespace"),
        (service(dnsConfig={"nameservers": ["1.1.1.1"]}), "dnsConfig"),
        (service(securityContext={"sysctls": [{"name": "a", "value": "1"}]}), "sysctls"),
        (
            service(
                containers=[{"name": "x", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]
            ),
            "hooks preStop",
        ),
        (service(model={"modelFormat": {"name": "sklearn"}}), "multi-model"),
    ],
)
def test_what_has_no_effect_is_said(isvc: dict[str, Any], words: str) -> None:
    (sentence,) = left_out(isvc)
    assert words in sentence


def test_a_transformer_is_run_and_its_own_fields_are_said_to_be_its_own() -> None:
    isvc = service(minReplicas=1)
    isvc["spec"]["transformer"] = {"containers": [{"image": "t"}], "hostPID": True}
    isvc["spec"]["explainer"] = {"containers": [{"image": "e"}]}
    (sentence,) = left_out(isvc)
    assert sentence.startswith("transformer: hostPID")


def test_a_runtime_without_a_stand_in_is_noted_where_it_is_chosen() -> None:
    """It works on a cluster, and here where a container engine answers."""
    text = HEAD + "spec:\n  predictor:\n    model:\n      storageUri: s3://a/b\n      {}\n"
    sentence = (
        f"kserve-local {VERSION} has no stand-in for kserve-huggingfaceserver; it runs in Docker"
        " only"
    )
    mapped = {"kserve/huggingfaceserver": ImageSource(Path())}
    for model, line in (
        ("modelFormat: {name: huggingface}", 9),
        ("modelFormat: {name: huggingface}\n      runtime: kserve-huggingfaceserver", 10),
    ):
        files = {"f.yaml": load(text.format(model), "f.yaml")}
        (report,) = review(files, stands_in=lambda image: is_known(image, {}))
        (note,) = report.findings
        assert (note.severity, note.line, note.message) == ("note", line, sentence)
        assert report.valid
        (report,) = review(files, stands_in=lambda image: is_known(image, mapped))
        assert report.findings == ()


@pytest.mark.parametrize(
    ("form", "noted"),
    [
        ("sklearn", False), ("xgboost", False), ("pytorch", False), ("triton", False),
        ("pmml", True), ("paddle", True), ("tensorflow", True),
    ],
)  # fmt: skip
def test_what_has_a_stand_in_is_not_noted(form: str, noted: bool) -> None:
    text = HEAD + f"spec:\n  predictor:\n    {form}:\n      storageUri: s3://a/b\n"
    (report,) = review(
        {"f.yaml": load(text, "f.yaml")}, stands_in=lambda image: is_known(image, {})
    )
    assert bool(report.findings) is noted


HEAD = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: iris\n"
MODEL = "spec:\n  predictor:\n    sklearn:\n      storageUri: s3://a/b\n"
CONTAINER = "    containers: [{name: kserve-container, image: i}]\n"
SERVING = "apiVersion: serving.kserve.io/v1alpha1\n"
# Each case: notes stand at the lines that end in `# HERE`, and nothing else is said.
NOTED = {
    "nothing": HEAD + MODEL,
    "transformer, explainer": (
        HEAD
        + MODEL
        + f"  transformer:\n{CONTAINER}    hostPID: true # HERE\n"
        + f"  explainer:\n{CONTAINER}    hostIPC: true # HERE\n"
    ),
    "logger, batcher": (
        HEAD + MODEL + "    logger:\n      mode: all\n    batcher:\n      maxBatchSize: 4\n"
    ),
    "logger to Azure": (
        HEAD + MODEL + "    logger:\n      mode: all\n      url: abfs://c@a/p # HERE\n"
    ),
    "replicas": HEAD + MODEL + "    minReplicas: 0\n    maxReplicas: 3\n",
    "mode": (
        HEAD
        + "  annotations:\n    serving.kserve.io/deploymentMode: ModelMesh # HERE\n"
        + MODEL
        + "    logger: {mode: all}\n"
    ),
    "Standard mode": (
        HEAD
        + "  annotations:\n    serving.kserve.io/deploymentMode: RawDeployment\n"
        + MODEL
        + "    minReplicas: 0\n    maxReplicas: 3\n    scaleTarget: 60\n    scaleMetric: cpu\n"
    ),
    "KEDA": (
        HEAD
        + "  annotations:\n    serving.kserve.io/deploymentMode: Standard\n"
        + "    serving.kserve.io/autoscalerClass: keda\n"
        + MODEL
        + "    autoScaling:\n      metrics:\n"
        + "      - type: Resource\n        resource: {name: cpu, target: {type: Utilization,"
        + " averageUtilization: 50}}\n"
        + "      - type: External # HERE\n        external: {metric: {backend: prometheus, query:"
        + " q, serverAddress: http://p}, target: {type: Value, value: '5'}}\n"
    ),
    "Standard graph": (
        f"{SERVING}kind: InferenceGraph\nmetadata:\n  name: g\n"
        "  annotations:\n    serving.kserve.io/deploymentMode: Standard\n"
        "spec: {nodes: {root: {routerType: Sequence, steps: [{serviceName: a}]}}, minReplicas: 0}\n"
    ),
    "no storage": HEAD + "spec:\n  predictor:\n    sklearn: # HERE\n      protocolVersion: v1\n",
    "Azure": HEAD + MODEL.replace("s3://a/b", "https://x.blob.core.windows.net/y/b # HERE"),
    "HDFS": (
        HEAD + "spec:\n  predictor:\n    model: {modelFormat: {name: sklearn}}\n    storageUris:\n"
        "    - uri: gs://a/b\n    - uri: hdfs://a/b # HERE\n      mountPath: /mnt/models/b\n"
    ),
    "graph's mode": (
        f"{SERVING}kind: InferenceGraph\nmetadata:\n  name: g\n"
        "  annotations:\n    serving.kserve.io/deploymentMode: ModelMesh # HERE\n"
        "spec: {nodes: {root: {routerType: Sequence, steps: [{serviceName: a}]}}}\n"
    ),
    "graph's replicas": (
        f"{SERVING}kind: InferenceGraph\nmetadata: {{name: g}}\nspec:\n"
        "  nodes: {root: {routerType: Sequence, steps: [{serviceName: a}]}}\n"
        "  minReplicas: 0\n  maxReplicas: 3\n"
    ),
    "LLM": (
        "apiVersion: serving.kserve.io/v1alpha2\nkind: LLMInferenceService # HERE\n"
        "metadata: {name: a}\nspec: {model: {uri: hf://a/b}}\n"
    ),
    "LLM config": (
        "apiVersion: serving.kserve.io/v1alpha2\nkind: LLMInferenceServiceConfig\n"
        "metadata: {name: a}\nspec: {model: {uri: hf://a/b}}\n"
    ),
}


@pytest.mark.parametrize("case", NOTED)
@pytest.mark.parametrize("strict", [False, True])
def test_validate_notes_it_at_its_line(case: str, strict: bool) -> None:
    """Not even `--strict` makes it more: a cluster runs it."""
    text = NOTED[case]
    (report,) = review({"f.yaml": load(text)}, strict=strict)
    expected = [n for n, line in enumerate(text.splitlines(), 1) if line.endswith("# HERE")]
    assert [f.line for f in report.findings] == expected, report.findings
    for finding in report.findings:
        assert (finding.severity, finding.source) == ("note", "gap")
        assert finding.message.startswith("kserve-local 0.1 does not run this yet: ")
    assert (report.valid, report.schema_valid) == (True, True)


def test_what_a_mirror_holds_is_fetched() -> None:
    (report,) = review({"f.yaml": load(NOTED["HDFS"])}, mirrors=["hdfs://a/"])
    assert report.findings == ()


def test_an_art_explainer_is_noted_where_no_image_of_it_is_mapped() -> None:
    text = HEAD + MODEL + "  explainer:\n    art:\n      type: SquareAttack\n"
    files = {"f.yaml": load(text)}
    (report,) = review(files, stands_in=lambda image: is_known(image, {}))
    (note,) = report.findings
    assert (note.severity, note.field) == ("note", "spec.explainer.art")
    assert note.message == (
        f"kserve-local {VERSION} has no stand-in for ART explanations; they run in Docker only"
    )
    mapped = {"kserve/art-explainer": ImageSource(Path())}
    (report,) = review(files, stands_in=lambda image: is_known(image, mapped))
    assert report.findings == ()
