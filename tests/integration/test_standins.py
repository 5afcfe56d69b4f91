"""KServe's own runtimes, as its YAML selects them, served by our stand-ins under `kserve-local up`.

One project holds all services: what each serves, what it is called, and what is said about those
that nothing here can serve.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.integration.project import SAMPLES, Project, of_processes, project, sample

# In Docker images stand in, or those that are named run (test_docker_images).
pytestmark = of_processes

IRIS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
V2 = {
    "inputs": [{"name": "input-0", "shape": [2, 4], "datatype": "FP32", "data": IRIS[0] + IRIS[1]}]
}
HANDLER = """
class Summing:
    def initialize(self, context):
        self.offset = int(open(context.system_properties["model_dir"] + "/offset").read())
    def handle(self, data, context):
        rows = [row["data"] if isinstance(row, dict) else row for row in data]
        return [sum(row) + self.offset for row in rows]
"""
SNAPSHOT = {"models": {"summing": {"1.0": {"defaultVersion": True, "marName": "summing.mar"}}}}


def service(name: str, **predictor: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": predictor},
    }


def model(format_: str, uri: str, **more: Any) -> dict[str, Any]:
    return {"modelFormat": {"name": format_}, "storageUri": uri, **more}


MLSERVER = {"protocolVersion": "v2", "runtime": "kserve-mlserver"}
SERVICES = [
    service("sklearn", model=model("sklearn", "./sklearn", **MLSERVER)),
    service("xgboost", model=model("xgboost", "./xgboost", **MLSERVER)),
    service("lightgbm", model=model("lightgbm", "./lightgbm", **MLSERVER)),
    service("settings", model=model("sklearn", "./settings", **MLSERVER)),
    service("mlflow", model=model("mlflow", "./sklearn", protocolVersion="v2")),
    service("predictive", model=model("sklearn", "./sklearn", runtime="kserve-predictiveserver")),
    service("onnx-legacy", onnx={"storageUri": "./triton-onnx"}),
    service("onnx-v2", model=model("onnx", "./triton-onnx", protocolVersion="v2")),
    service("onnx-plain", onnx={"storageUri": "./onnx"}),
    service("triton-torch", model=model("triton", "./triton-torch")),
    service("mixed", model=model("triton", "./mixed")),
    service("archive", pytorch={"storageUri": "./torchserve"}),
    service("archive-v2", pytorch={"storageUri": "./torchserve", "protocolVersion": "v2"}),
    service("torch-plain", pytorch={"storageUri": "./torch"}),
]  # fmt: skip
REFUSED = {"mlflow", "onnx-plain", "mixed", "torch-plain"}


def lay_out(folder: Path) -> None:
    """Write models and manifest of the project."""
    for name in ("sklearn", "xgboost", "lightgbm", "onnx", "torch"):
        made = sample(f"{name}-iris", folder / "samples" / name)
        shutil.copytree(made / "model", folder / name)
    settings = folder / "settings"
    settings.mkdir()
    shutil.copy(folder / "sklearn" / "model.joblib", settings / "weights.joblib")
    content = {"name": "renamed", "parameters": {"uri": "./weights.joblib"}}
    content["implementation"] = "mlserver_sklearn.SKLearnModel"
    (settings / "model-settings.json").write_text(json.dumps(content))
    for repository in ("triton-onnx", "mixed"):
        version = folder / repository / "iris" / "1"
        version.mkdir(parents=True)
        shutil.copy(folder / "onnx" / "model.onnx", version / "model.onnx")
    for repository in ("triton-torch", "mixed"):
        version = folder / repository / "net" / "3"
        version.mkdir(parents=True)
        exported = torch.export.export(torch.nn.Flatten(), (torch.ones(2, 4),))
        torch.export.save(exported, version / "model.pt2")
        (version / "model.pt2").rename(version / "model.pt")
    store = folder / "torchserve" / "model-store"
    store.mkdir(parents=True)
    manifest = {"model": {"modelName": "summing", "handler": "h.py", "modelVersion": "1.0"}}
    with zipfile.ZipFile(store / "summing.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("h.py", HANDLER)
        archive.writestr("offset", "100")
    (folder / "torchserve" / "config").mkdir()
    (folder / "torchserve" / "config" / "config.properties").write_text(
        "inference_address=http://0.0.0.0:8085\nenable_envvars_config=true\n"
        f"model_store=/mnt/models/model-store\nmodel_snapshot={json.dumps(SNAPSHOT)}\n"
    )
    (folder / "services.yaml").write_text(yaml.safe_dump_all(SERVICES))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("standins") / "p"
    folder.mkdir()
    lay_out(folder)
    with project(folder) as p:
        p.up("-f", "services.yaml", check=4)
        yield p


def why(p: Project, name: str) -> str:
    """Return every message of the service's conditions and of its predictor's failure."""
    status = p.isvc(name)["status"]
    info = (status.get("modelStatus") or {}).get("lastFailureInfo") or {}
    texts = [str(c.get("message", "")) for c in status.get("conditions") or ()]
    return "\n".join([*texts, str(info.get("message", ""))])


def infer(p: Project, name: str, body: Any, model_name: str = "") -> dict[str, Any]:
    path = f"/v2/models/{model_name or name}/infer"
    status, answer = p.call(path, body, host=f"{name}.default.example.com")
    assert status == 200, answer
    return dict(answer)


def test_everything_is_ready_but_what_nothing_here_serves(served: Project) -> None:
    services = served.json("status")["services"]
    assert {s["name"] for s in services if not s["ready"]} == REFUSED
    assert len(services) == len(SERVICES)


@pytest.mark.parametrize("name", ["sklearn", "xgboost", "lightgbm"])
def test_mlservers_models_answer_under_the_services_name(served: Project, name: str) -> None:
    answer = infer(served, name, V2)
    assert answer["model_name"] == name
    (output,) = answer["outputs"]
    assert (output["name"], output["parameters"]) == ("predict", {"content_type": "np"})
    assert output["shape"] == [2, len(output["data"]) // 2]
    pod = json.loads(served.run("get", "pods", "-o", "json").stdout)
    images = [c["image"] for i in pod["items"] for c in i["spec"]["containers"]]
    assert any("mlserver" in image for image in images)


def test_model_settings_name_the_model_and_its_file(served: Project) -> None:
    assert infer(served, "settings", V2, "renamed")["outputs"][0]["data"] == [1, 1]


def test_an_mlserver_model_without_stand_in_says_which_have_one(served: Project) -> None:
    text = why(served, "mlflow")
    assert "mlserver_mlflow.MLflowRuntime has no stand-in" in text
    assert "mlserver_sklearn.SKLearnModel" in text


def test_predictiveserver_is_chosen_by_name(served: Project) -> None:
    status, answer = served.call("/v1/models/predictive:predict", {"instances": IRIS})
    assert (status, answer) == (200, {"predictions": [1, 1]})


@pytest.mark.parametrize("name", ["onnx-legacy", "onnx-v2"])
def test_onnx_is_served_from_tritons_layout(served: Project, name: str) -> None:
    asked = json.loads((SAMPLES / "onnx-iris" / "request.json").read_text())
    answer = infer(served, name, asked, "iris")
    assert (answer["model_name"], answer["model_version"]) == ("iris", "1")
    assert answer["outputs"]


def test_a_plain_onnx_file_gets_tritons_layout_and_the_local_way_out(served: Project) -> None:
    text = why(served, "onnx-plain")
    assert "Triton expects NAME/1/model.onnx below the storageUri" in text
    assert "runtime: kserve-local-onnxserver" in text


def test_torch_is_served_from_tritons_layout(served: Project) -> None:
    answer = infer(served, "triton-torch", V2, "net")
    assert answer["model_version"] == "3"
    assert answer["outputs"][0]["shape"] == [2, 4]


def test_a_repository_of_two_kinds_names_the_models(served: Project) -> None:
    assert "mixes model.onnx ('iris') and model.pt ('net')" in why(served, "mixed")


def test_a_torchserve_archive_answers_v1(served: Project) -> None:
    body = {"instances": [{"data": [1, 2]}, [3]]}
    status, answer = served.call(
        "/v1/models/summing:predict", body, host="archive.default.example.com"
    )
    assert (status, answer) == (200, {"predictions": [103, 103]})


def test_a_torchserve_archive_answers_v2(served: Project) -> None:
    body = {"inputs": [{"name": "x", "shape": [2], "datatype": "INT64", "data": [1, 2]}]}
    answer = infer(served, "archive-v2", body, "summing")
    assert (answer["model_name"], answer["model_version"]) == ("summing", "1.0")
    assert answer["outputs"] == [
        {"name": "x", "shape": [1], "datatype": "INT64", "parameters": None, "data": [103]}
    ]


def test_a_plain_torch_file_gets_torchserves_layout_and_the_local_way_out(served: Project) -> None:
    text = why(served, "torch-plain")
    assert "model-store/NAME.mar and config/config.properties" in text
    assert "kserve-local-torchserver" in text


def test_using_a_stand_in_is_an_event(served: Project) -> None:
    events = json.loads(served.run("get", "events", "-o", "json").stdout)["items"]
    told = [e["message"] for e in events if e["reason"] == "StandIn"]
    assert "torchserver of kserve-local stands in for image pytorch/torchserve-kfs:0.9.0" in told
