"""`validate`: findings with their line, verdicts, runtime match, exit codes. No server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from kserve_local.api.manifest import load
from kserve_local.api.review import FileReport, review
from kserve_local.cli.main import cli
from kserve_local.errors import UsageError
from kserve_local.storage.local import missing_model

GOOD = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: iris
spec:
  predictor:
    model:
      modelFormat:
        name: sklearn
      storageUri: gs://bucket/model
"""
HEAD = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata:\n  name: iris\n"
MODEL = "spec:\n  predictor:\n    model:\n      modelFormat: {name: sklearn}\n"


def judged(text: str, **kwargs: Any) -> FileReport:
    return review({"f.yaml": load(text, "f.yaml")}, **kwargs)[0]


def marked_line(text: str) -> int:
    (line,) = [n for n, line in enumerate(text.splitlines(), 1) if line.endswith("# HERE")]
    return line


def run(*args: str) -> int:
    """Run the command as `main` does; click hands the exit code back."""
    code = cli.main(["validate", *args], standalone_mode=False)
    return code if isinstance(code, int) else 0


def test_a_good_service_has_no_findings() -> None:
    report = judged(GOOD)
    assert report.findings == ()
    assert (report.valid, report.schema_valid, report.objects) == (True, True, 1)


# Each case: the line that ends in `# HERE` is the one reported.
WRONG = {
    "required": (
        HEAD + "spec:\n  predictor:\n    model:\n      modelFormat: {} # HERE\n",
        "Required",
    ),
    "type": (
        HEAD + "spec:\n  predictor:\n    minReplicas: one # HERE\n",
        "must be of type integer",
    ),
    "enum": (
        HEAD + MODEL + "    scaleMetric: CPU # HERE\n",
        'supported values: "cpu", "memory", "concurrency", "rps"; did you mean "cpu"?',
    ),
    "name": (
        GOOD.replace("name: iris", "name: Iris # HERE"),
        "a lowercase RFC 1123 subdomain must consist of",
    ),
    "isvc name": (
        GOOD.replace("name: iris", "name: 1iris # HERE"),
        "a InferenceService name must consist of",
    ),
    "min above max": (
        HEAD + MODEL + "    minReplicas: 3 # HERE\n    maxReplicas: 2\n",
        "'MinReplicas' cannot be greater than MaxReplicas",
    ),
    "negative": (HEAD + MODEL + "    minReplicas: -1 # HERE\n", "cannot be less than 0"),
    "concurrency": (
        HEAD + MODEL + "    containerConcurrency: -1 # HERE\n",
        "parallelism cannot be less than 0",
    ),
    "logger": (
        HEAD + MODEL + "    logger: # HERE\n      url: http://x\n",
        "invalid logger type",
    ),
    "autoscaler class": (
        HEAD
        + "  annotations:\n    a: b\n    serving.kserve.io/autoscalerClass: kpa # HERE\n"
        + MODEL,
        "[kpa] is not a supported autoscaler class type",
    ),
    "PYTHONPATH": (
        HEAD
        + MODEL
        + "      env:\n      - name: A\n        value: b\n"
        + "      - name: PYTHONPATH # HERE\n        value: c\n",
        "setting PYTHONPATH in container",
    ),
    "container name": (
        HEAD + MODEL + "      name: mine # HERE\n",
        "the 'name' field is not allowed in standard predictor",
    ),
    "both sources": (
        HEAD + MODEL + "      storageUri: gs://a/b # HERE\n    storageUris:\n    - uri: gs://c/d\n",
        "Setting both StorageURI and StorageURIs is not supported.",
    ),
    "mount path": (
        HEAD + MODEL + "    storageUris:\n    - uri: gs://c/d\n      mountPath: /a/../b # HERE\n",
        "storage path cannot contain '..'",
    ),
    "no implementation": (
        HEAD + "spec:\n  predictor: # HERE\n    minReplicas: 1\n",
        "must be specified in PredictorSpec",
    ),
    "transformer without container": (
        HEAD + MODEL + "  transformer: # HERE\n    minReplicas: 1\n",
        "must be specified in TransformerSpec",
    ),
    "rps": (
        HEAD + MODEL + "    scaleMetric: rps\n    scaleTarget: 0 # HERE\n",
        "the target for rps should be greater than 1",
    ),
    "legacy framework": (
        HEAD
        + "spec:\n  predictor:\n    sklearn:\n      storageUri: gs://a/b\n"
        + "      env:\n      - value: x # HERE\n",
        "spec.predictor.sklearn.env[0].name: Required value",
    ),
    "not YAML": ("a: 1\nb: [1 # x\nc: 2 # HERE\n", "not YAML: "),
    "no kind": ("apiVersion: v1 # HERE\nmetadata: {}\n", "not a Kubernetes object: kind not set"),
    "not an object": ("- a # HERE\n", "not a Kubernetes object but array"),
    "old group": (
        "# x\napiVersion: serving.kubeflow.org/v1beta1 # HERE\nkind: InferenceService\n",
        'no matches for kind "InferenceService" in version "serving.kubeflow.org/v1beta1"; did you'
        ' mean apiVersion "serving.kserve.io/v1beta1"?',
    ),
    "misspelt kind": (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceServices # HERE\n",
        'did you mean "InferenceService"?',
    ),
    "CEL": (
        "apiVersion: serving.kserve.io/v1alpha2\nkind: LLMInferenceService\nmetadata: {name: a}\n"
        "spec: # HERE\n  model: {uri: hf://a/b}\n  replicas: 1\n"
        "  scaling: {maxReplicas: 2, wva: {hpa: {}}}\n",
        "replicas and scaling are mutually exclusive",
    ),
    "graph": (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\nmetadata: {name: g}\nspec:\n"
        "  nodes:\n    root:\n      routerType: Chain # HERE\n",
        'supported values: "Sequence", "Splitter", "Ensemble", "Switch"',
    ),
    "ConfigMap of the autoscaler": (
        "apiVersion: v1\nkind: ConfigMap\n"
        "metadata: {name: config-autoscaler, namespace: knative-serving}\n"
        "data:\n  enable-scale-to-zero: 'true'\n  stable-window: 5s # HERE\n",
        "validation failed: stable-window = 5s, must be in [6s; 1h0m0s] range",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_stands_at_its_line(case: str) -> None:
    """KServe's webhooks rarely name a field; we find the one that they mean."""
    text, part = WRONG[case]
    errors = [f for f in judged(text).findings if f.severity == "error" and f.source != "runtime"]
    assert len(errors) == 1, errors
    assert part in errors[0].message
    assert errors[0].line == marked_line(text)
    assert not judged(text).valid


WINDOW = "autoscaling.knative.dev/window"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + f"  annotations:\n    {WINDOW}: 5s # HERE\n" + MODEL, "6s <= 5s <= 1h0m0s"),
        (HEAD + MODEL + f"    annotations:\n      {WINDOW}: x # HERE\n", "invalid value: x"),
        (HEAD + MODEL + "    timeout: 601 # HERE\n", "expected 0 <= 601 <= 600: timeout"),
        (HEAD + MODEL + "    containerConcurrency: 1001 # HERE\n", "0 <= 1001 <= 1000"),
        (HEAD + MODEL + "    scaleTarget: 0 # HERE\n", "target 0 should be at least 0.01"),
        (HEAD + MODEL + "    canaryTrafficPercent: 101 # HERE\n", "0 <= 101 <= 100"),
        (
            HEAD
            + "  annotations:\n    autoscaling.knative.dev/activation-scale: '3' # HERE\n"
            + MODEL
            + "    maxReplicas: 2\n",
            "max-scale=2 is less than activation-scale=3",
        ),
    ],
)
def test_what_knative_refuses_later_is_told_now(text: str, message: str) -> None:
    """A cluster takes the service, and says so only in its status; so does `up`."""
    report = judged(text)
    (finding,) = (f for f in report.findings if f.source == "revision")
    assert finding.message.startswith("Knative refuses its revisions: ")
    assert message in finding.message
    assert (finding.severity, finding.line) == ("error", marked_line(text))
    assert report.valid


def test_annotations_that_do_not_reach_the_revision_are_not_judged() -> None:
    """KServe drops min-scale and max-scale, and an initial-scale that is no number."""
    text = HEAD + (
        "  annotations:\n    autoscaling.knative.dev/min-scale: many\n"
        "    autoscaling.knative.dev/initial-scale: '0'\n"
    )
    assert [f for f in judged(text + MODEL).findings if f.source == "revision"] == []


def test_unknown_fields_are_warnings_with_a_suggestion() -> None:
    text = GOOD.replace("      storageUri", "      storageuri: x # HERE\n      storageUri")
    report = judged(text)
    (finding,) = report.findings
    assert (finding.line, finding.column, finding.severity) == (marked_line(text), 7, "warning")
    assert finding.message == (
        'unknown field "storageuri" in spec.predictor.model; did you mean "storageUri"?'
    )
    assert finding.field == "spec.predictor.model.storageuri"
    assert finding.object == "InferenceService/iris"
    assert report.valid
    assert report.schema_valid


def test_repeated_fields_are_warnings_at_the_later_line() -> None:
    text = GOOD + "      storageUri: gs://other/model # HERE\n"
    (finding,) = judged(text).findings
    assert (finding.line, finding.severity) == (marked_line(text), "warning")
    assert "is given twice" in finding.message


@pytest.mark.parametrize("extra", ["      foo: 1\n", "      storageUri: gs://other/model\n"])
def test_strict_makes_them_errors(extra: str) -> None:
    report = judged(GOOD + extra, strict=True)
    assert [f.severity for f in report.findings] == ["error"]
    assert not report.valid
    assert report.schema_valid


def test_what_the_mutating_webhook_heals_is_a_warning() -> None:
    """A plain number as a quantity breaks the CRD's schema but never reaches it on a cluster."""
    text = GOOD + "      resources:\n        limits:\n          cpu: 0.5 # HERE\n"
    report = judged(text)
    (finding,) = report.findings
    assert (finding.severity, finding.line) == ("warning", marked_line(text))
    assert "mutating webhook puts it right" in finding.message
    assert report.valid
    assert not report.schema_valid
    assert not judged(text, strict=True).valid


def test_no_webhook_heals_a_serving_runtime() -> None:
    text = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: r}\nspec:\n"
        "  containers:\n  - name: kserve-container\n    image: i\n    resources:\n"
        "      limits: {cpu: 0.5}\n"
    )
    assert not judged(text).valid


# --- storage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("gs://bucket/model", "ftp://x/y # HERE"),
        HEAD + MODEL + "    storageUris:\n    - uri: gs://a/b\n    - uri: ftp://x/y # HERE\n",
        HEAD
        + "spec:\n  predictor:\n    containers:\n    - name: kserve-container\n      image: i\n"
        + "      env:\n      - {name: A, value: b}\n      - name: STORAGE_URI\n"
        + "        value: ftp://x/y # HERE\n",
    ],
)
def test_a_source_that_the_controller_refuses_is_an_error(text: str) -> None:
    """In the controller's words, with the schemes there are; the API takes such a service."""
    report = judged(text)
    (finding,) = report.findings
    assert (finding.severity, finding.line) == ("error", marked_line(text))
    assert finding.message.startswith("StorageURI not supported: ")
    assert finding.message.endswith("StorageUri [ftp://x/y] is not supported")
    (step,) = finding.details
    assert step.startswith("Next step: ")
    assert "s3://" in step
    assert report.valid
    assert report.schema_valid


def test_a_storage_container_of_the_files_decides_too() -> None:
    text = GOOD.replace("gs://bucket", "ftp://bucket") + (
        "---\napiVersion: serving.kserve.io/v1alpha1\nkind: ClusterStorageContainer\n"
        "metadata: {name: mine}\nspec:\n  container: {name: storage-initializer, image: i}\n"
        "  supportedUriFormats: [{prefix: 'ftp://'}]\n"
    )
    assert judged(text).findings == ()


def test_a_local_model_is_looked_at_beside_its_file(tmp_path: Path) -> None:
    """Whether it is there is a warning: on a cluster the path lies inside a container."""
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.joblib").touch()

    def look_at(file: str, uri: str) -> str:
        assert file == "f.yaml"
        return missing_model(uri, tmp_path, {"gs://mirrored/": tmp_path / "full"})

    def said(uri: str) -> list[str]:
        text = GOOD.replace("gs://bucket/model", f"{uri} # HERE")
        findings = judged(text, look_at=look_at).findings
        assert all(f.severity == "warning" and f.line == marked_line(text) for f in findings)
        return [f.message for f in findings]

    for uri in ("./full", "full/model.joblib", f"file://{tmp_path}/full", "gs://mirrored/"):
        assert said(uri) == []
    assert said("s3://somewhere/else") == []
    gone = tmp_path / "gone"
    assert said("./gone") == [f'storageUri ./gone: "{gone}" does not exist']
    assert said(f"file://{gone}") == [f'storageUri file://{gone}: "{gone}" does not exist']
    assert said("gs://mirrored/gone") == [
        f'storageUri gs://mirrored/gone: "{tmp_path}/full/gone" does not exist'
    ]
    assert said("empty") == [f'storageUri empty: "{tmp_path}/empty" holds no files']


@pytest.mark.parametrize("extra", [0, 1])
def test_a_name_that_leaves_no_room_for_the_knative_service_is_an_error(extra: int) -> None:
    """KServe's controller fails at it; the API takes the InferenceService itself."""
    text = GOOD.replace("name: iris", f"name: {'a' * (53 + extra)} # HERE")
    report = judged(text)
    assert [f.line for f in report.findings] == [marked_line(text)] * extra
    assert [f.details for f in report.findings] == [
        ("Next step: a name of at most 53 characters",)
    ] * extra
    assert report.valid


@pytest.mark.parametrize("extra", [0, 1])
def test_a_name_too_long_for_standard_modes_host_is_told(extra: int) -> None:
    """Its label is NAME-predictor-NAMESPACE."""
    mode = "serving.kserve.io/deploymentMode: Standard"
    name = "a" * (45 + extra)
    text = GOOD.replace("name: iris", f"name: {name}\n  annotations: {{{mode}}}")
    (report,) = review({"f.yaml": load(text)})
    told = [f.details for f in report.findings if "too long" in f.message]
    assert told == [("Next step: a name of at most 45 characters",)] * extra


# --- runtimes --------------------------------------------------------------------------------


def test_without_a_runtime_every_one_considered_is_listed() -> None:
    text = GOOD.replace("name: sklearn", 'name: xgboost # HERE\n        version: "3"')
    report = judged(text)
    (finding,) = report.findings
    assert finding.severity == "error"
    assert finding.line == marked_line(text)
    assert finding.message == "no runtime fits modelFormat xgboost/3"
    assert finding.details[:2] == (
        "kserve-mlserver  versions 1 and 2 only",
        "version 2 only: kserve-predictiveserver, kserve-xgbserver",
    )
    assert re.fullmatch("no xgboost: kserve-[a-z]+(, kserve-[a-z-]+){10,}", finding.details[2])
    assert finding.details[3:] == ('Next step: set modelFormat.version: "2" (kserve-xgbserver)',)
    # The API takes such a service; it only never becomes ready.
    assert report.valid
    assert report.schema_valid


@pytest.mark.parametrize(
    ("written", "meant"), [("sklern", "sklearn"), ("SKLearn", "sklearn"), ("vllm", "vLLM")]
)
def test_a_format_that_no_runtime_knows_gets_a_suggestion(written: str, meant: str) -> None:
    (finding,) = judged(GOOD.replace("name: sklearn", f"name: {written}")).findings
    assert finding.message == (f'no runtime fits modelFormat {written}; did you mean "{meant}"?')
    assert len(finding.details) <= 2  # what all runtimes say is said once


@pytest.mark.parametrize(
    ("model", "step"),
    [
        (
            "modelFormat: {name: onnx}",
            "set protocolVersion: v2 (kserve-tritonserver) or runtime: kserve-local-onnxserver",
        ),
        (
            "modelFormat: {name: sklearn}\n      runtime: kserve-xgbserver",
            "remove runtime (kserve-sklearnserver is selected then), or set ",
        ),
        (
            "modelFormat: {name: sklearn}\n      protocolVersion: grpc-v1",
            "set protocolVersion: v1 (kserve-sklearnserver) or protocolVersion: v2 (",
        ),
    ],
)
def test_the_next_step_is_one_that_works(model: str, step: str) -> None:
    """Each has been tried: following it leaves nothing to say about the runtime."""
    text = HEAD + f"spec:\n  predictor:\n    model:\n      storageUri: gs://a/b\n      {model}\n"
    (finding,) = judged(text).findings
    assert finding.details[-1].startswith(f"Next step: {step}")


def test_a_runtime_given_along_is_found() -> None:
    text = GOOD.replace("name: sklearn", "name: mine") + (
        "---\napiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\n"
        "metadata: {name: my-runtime}\nspec:\n"
        "  supportedModelFormats: [{name: mine, autoSelect: true}]\n"
        "  containers: [{name: kserve-container, image: i}]\n"
    )
    assert judged(text).findings == ()


def test_a_runtime_that_is_not_there_gets_a_suggestion() -> None:
    text = GOOD + "      runtime: kserve-sklearnservr # HERE\n"
    (finding,) = judged(text).findings
    assert finding.line == marked_line(text)
    assert 'did you mean "kserve-sklearnserver"?' in finding.message


def test_our_own_runtimes_are_not_on_a_cluster() -> None:
    from kserve_local.api import builtin

    ours = next(r for r in builtin.cluster_serving_runtimes() if builtin.is_local_only(r))
    name = ours["metadata"]["name"]
    model_format = ours["spec"]["supportedModelFormats"][0]["name"]
    text = (
        GOOD.replace("name: sklearn", f"name: {model_format}") + f"      runtime: {name} # HERE\n"
    )
    protocols = ours["spec"].get("protocolVersions")
    if protocols:
        text += f"      protocolVersion: {protocols[0]}\n"
    (finding,) = judged(text).findings
    assert (finding.severity, finding.line) == ("warning", marked_line(text))
    assert "a cluster has no such runtime" in finding.message


def test_the_same_object_twice_is_a_warning() -> None:
    files = {"a.yaml": load(GOOD, "a.yaml"), "b.yaml": load(GOOD, "b.yaml")}
    first, second = review(files)
    assert first.findings == ()
    assert [f.message for f in second.findings] == [
        "InferenceService/iris is also in a.yaml:1; kubectl keeps the last one, kserve-local "
        "up refuses both"
    ]


def test_other_peoples_kinds_are_left_alone() -> None:
    report = judged("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n")
    assert [f.severity for f in report.findings] == ["warning"]
    assert report.valid
    assert report.schema_valid


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n",
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: []\nspec: 1\n",
        HEAD + "spec: []\n",
        HEAD + "spec:\n  predictor: 1\n",
        HEAD + "spec:\n  predictor:\n    model: []\n",
        HEAD + "spec:\n  predictor:\n    containers: {}\n",
        HEAD + "spec:\n  predictor:\n    containers: [1, null, {}]\n",
        HEAD + "  annotations: 5\n  labels: [a]\nspec:\n  predictor: {sklearn: null}\n",
        HEAD.replace("iris", "[a]") + MODEL,
        HEAD + "spec:\n  predictor: {model: {}, containers: [{name: kserve-container}]}\n",
    ],
)
def test_however_broken_a_service_is_it_gets_a_verdict(text: str) -> None:
    report = judged(text)
    assert not report.valid
    assert all(f.line >= 1 and f.column >= 1 for f in report.findings)


# --- the command -----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_good_file_exits_0(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "isvc.yaml").write_text(GOOD)
    assert run("isvc.yaml") == 0
    assert capsys.readouterr().out == "1 object, 0 errors, 0 warnings\n"


def test_errors_exit_3_and_name_file_line_and_column(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "isvc.yaml").write_text(
        GOOD.replace("        name: sklearn", "        nam: sklearn")
    )
    assert run("isvc.yaml") == 3
    assert capsys.readouterr().out.splitlines() == [
        "isvc.yaml:8:7 error spec.predictor.model.modelFormat.name: Required value",
        'isvc.yaml:9:9 warning unknown field "nam" in spec.predictor.model.modelFormat; did you'
        ' mean "name"?',
        "1 object, 1 error, 1 warning (exit 3)",
    ]


def test_warnings_alone_exit_0_unless_strict(project: Path) -> None:
    (project / "isvc.yaml").write_text(GOOD + "      foo: 1\n")
    assert run("isvc.yaml") == 0
    assert run("--strict", "isvc.yaml") == 3


def test_no_runtime_exits_3_and_prints_why(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "isvc.yaml").write_text(GOOD.replace("sklearn", "caffe"))
    assert run() == 3
    out = capsys.readouterr().out
    assert "isvc.yaml:9:9 error no runtime fits modelFormat caffe\n" in out
    assert re.search(r"^    no caffe: .*, kserve-sklearnserver, ", out, re.MULTILINE)


def test_up_says_it_in_the_same_words_and_goes_on(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster takes a model that no runtime fits; its status tells (control-plane.md 3.3)."""
    (project / "isvc.yaml").write_text(GOOD.replace("sklearn", "caffe"))
    run()
    *found, total = capsys.readouterr().out.splitlines()
    assert total == "1 object, 1 error, 0 warnings (exit 3)"
    assert cli.main(["up", "--dry-run"], standalone_mode=False) == 0
    told = capsys.readouterr()
    assert told.out == "InferenceService iris\n"
    lines = [line.strip() for line in told.err.splitlines()]
    assert lines[1].split(maxsplit=2) == ["!", "validate", "1 object, 1 error, 0 warnings"]
    assert lines[2:-1] == [line.strip() for line in found]
    assert cli.main(["up", "--dry-run", "--json"], standalone_mode=False) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == found[:1]


def test_the_envelope(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "bad.yaml").write_text(HEAD + "spec: {}\n")
    (project / "good.yaml").write_text(GOOD)
    assert run("--json", "good.yaml", "bad.yaml") == 3
    envelope = json.loads(capsys.readouterr().out)
    assert (envelope["schemaVersion"], envelope["command"]) == (1, "validate")
    assert envelope["status"] == "error"
    assert envelope["error"]["category"] == "VALIDATION"
    good, bad = envelope["data"]["files"]
    assert good == {"path": "good.yaml", "valid": True, "schema_valid": True, "findings": []}
    assert (bad["path"], bad["valid"], bad["schema_valid"]) == ("bad.yaml", False, False)
    assert bad["findings"] == [
        {
            "line": 5,
            "column": 1,
            "severity": "error",
            "object": "InferenceService/iris",
            "field": "spec.predictor",
            "message": "spec.predictor: Required value",
        }
    ]


def test_a_folder_is_searched_for_what_is_ours(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "k8s" / "deep").mkdir(parents=True)
    (project / "k8s" / "deep" / "a.yml").write_text(GOOD)
    (project / "k8s" / "b.json").write_text(json.dumps(load(GOOD.replace("iris", "b"))[0].object))
    (project / "k8s" / "values.yaml").write_text("replicas: 1\n")
    (project / "k8s" / "ingress.yaml").write_text("apiVersion: x.io/v1\nkind: Ingress\n")
    (project / "k8s" / "chart.yaml").write_text(f"{{{{ if x }}}}\n{GOOD}")
    (project / "k8s" / "notes.txt").write_text(GOOD)
    (project / ".hidden").mkdir()
    (project / ".hidden" / "c.yaml").write_text(GOOD)
    assert run("--json") == 0
    files = json.loads(capsys.readouterr().out)["data"]["files"]
    assert [file["path"] for file in files] == ["k8s/b.json", "k8s/deep/a.yml"]


def test_a_broken_file_of_ours_in_a_folder_is_reported(project: Path) -> None:
    (project / "a.yaml").write_text(GOOD + "   bad: [\n")
    assert run() == 3


def test_a_path_that_is_not_there_is_wrong_usage(project: Path) -> None:
    with pytest.raises(UsageError, match=r'"nope\.yaml" does not exist') as caught:
        run("nope.yaml")
    assert caught.value.exit_code == 2


def test_binary_and_huge_files_are_findings_not_crashes(project: Path) -> None:
    (project / "a.yaml").write_bytes(b"\xff\xfe\x00a")
    assert run("a.yaml") == 3


def test_unknown_flags_are_wrong_usage(project: Path) -> None:
    with pytest.raises(click.UsageError):
        run("--nope")


def test_notes_are_counted_and_change_no_exit_code(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "isvc.yaml").write_text(GOOD + "    hostIPC: true\n")
    note = (
        "isvc.yaml:11:5 note kserve-local 0.1 does not run this yet: hostIPC: it has no effect "
        "here; the Pod does not share the machine's IPC"
    )
    assert run("--strict") == 0
    assert capsys.readouterr().out.splitlines() == [note, "1 object, 0 errors, 0 warnings, 1 note"]
    assert run("--json") == 0
    told = json.loads(capsys.readouterr().out)
    (finding,) = told["data"]["files"][0]["findings"]
    assert (finding["severity"], finding["field"]) == ("note", "spec.predictor.hostIPC")
    assert told["warnings"] == []
    assert cli.main(["up", "--dry-run"], standalone_mode=False) == 0
    assert note in capsys.readouterr().err
