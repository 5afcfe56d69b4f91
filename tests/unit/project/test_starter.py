"""What `init` writes for each kind of model, and that it writes all of it or nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kserve_local.api.manifest import load
from kserve_local.api.review import review
from kserve_local.errors import UsageError
from kserve_local.modelfiles.graphs import Tensor
from kserve_local.modelfiles.predictor_code import PredictorCode
from kserve_local.modelfiles.recognise import Recognised
from kserve_local.project import starter_files
from kserve_local.project.starter import dns_label, name_for, plan
from kserve_local.project.starter_predictors import Starter

FOLDER = Path("/work/flowers")


def model(form: str, path: str, kind: str = "", **more: Any) -> Recognised:
    return Recognised(form, FOLDER / path, kind, "it says so", **more)


MODELS = {
    "sklearn": model("sklearn", "iris.joblib", "SVC", version="1.3.2", features=4),
    "old sklearn": model("sklearn", "my model.pkl", "SVC", version="0.24.1"),
    "texts": model("sklearn", "words.pkl", "Pipeline", text=True),
    "xgboost": model("xgboost", "b.json", "json", version="2.1.4", features=2),
    "xgboost .model": model("xgboost", "b.model", "ubj", version="3.0.0", features=2),
    "lightgbm": model("lightgbm", "b.txt", "text", version="4", features=3),
    "onnx": model("onnx", "net.onnx", inputs=(Tensor("x", "FP32", (-1, 3)),)),
    "onnx of no help": model("onnx", "net.onnx", inputs=(Tensor("x", "", ()),)),
    "torchscript": model("pytorch", "net.pt", "torchscript"),
    "archive": model("pytorch", "net.mar", "archive"),
    "tensorflow": model("tensorflow", "net", "SavedModel"),
    "generation": model("huggingface", "qwen", "text_generation"),
    "masks": model("huggingface", "bert", "fill_mask"),
    "classes": model("huggingface", "bert", "sequence_classification"),
    "gguf": model("gguf", "qwen2.5-0.5b.gguf", "qwen2"),
    "custom": model("custom", "model.py", "A",
                    code=PredictorCode(FOLDER / "model.py", "A", "", True)),
}  # fmt: skip


def planned(kind: str) -> Starter:
    return plan(MODELS[kind], FOLDER, name_for(MODELS[kind], FOLDER))


def predictor_of(starter: Starter) -> Any:
    return yaml.safe_load(starter.files["inferenceservice.yaml"])["spec"]["predictor"]


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_written_is_right_for_a_cluster(kind: str) -> None:
    """KServe's webhooks take it, and a runtime of a fresh installation fits."""
    starter = planned(kind)
    documents = load(starter.files["inferenceservice.yaml"], "f.yaml")
    (report,) = review({"f.yaml": documents})
    assert [f for f in report.findings if f.severity == "error"] == []
    assert yaml.safe_load(starter.files["kserve-local.yaml"])["backend"] == "auto"
    json.loads(starter.files["request.json"])
    assert [line.split()[0] for line in starter.said].count("format") == 1
    assert starter.said[-1].startswith("request  request.json: ")


def test_a_version_is_written_only_where_a_runtime_has_it() -> None:
    formats = {k: predictor_of(planned(k))["model"]["modelFormat"] for k in MODELS if k not in
               ("gguf", "custom")}  # fmt: skip
    assert formats["sklearn"] == {"name": "sklearn", "version": "1"}
    assert formats["old sklearn"] == {"name": "sklearn"}
    assert formats["xgboost"] == {"name": "xgboost", "version": "2"}
    assert formats["xgboost .model"] == {"name": "xgboost"}
    assert formats["lightgbm"] == {"name": "lightgbm", "version": "4"}


def test_files_are_used_where_they_are_or_placed_as_the_server_wants_them() -> None:
    uris = {k: predictor_of(planned(k))["model"]["storageUri"] for k in MODELS if k not in
            ("gguf", "custom")}  # fmt: skip
    assert uris["sklearn"] == "./iris.joblib"
    assert uris["old sklearn"] == "./my model.pkl"
    assert (uris["lightgbm"], planned("lightgbm").links) == ("./b.bst", {"b.bst": FOLDER / "b.txt"})
    assert planned("xgboost .model").links == {"b.ubj": FOLDER / "b.model"}
    assert uris["onnx"] == "./model-repository"
    assert planned("onnx").links == {"model-repository/net/1/model.onnx": FOLDER / "net.onnx"}
    assert planned("archive").links == {"torchserve/model-store/net.mar": FOLDER / "net.mar"}
    properties = planned("archive").files["torchserve/config/config.properties"]
    assert '"marName":"net.mar"' in properties


def test_weights_beside_an_onnx_model_come_along() -> None:
    starter = plan(MODELS["onnx"], FOLDER, "net", ("net.data",))
    assert starter.links["model-repository/net/1/net.data"] == FOLDER / "net.data"


def test_an_onnx_model_in_a_repository_is_used_where_it_is() -> None:
    starter = plan(model("onnx", "repository/other/3/model.onnx"), FOLDER, "mine")
    assert predictor_of(starter)["model"]["storageUri"] == "./repository"
    assert starter.links == {}
    assert starter.warnings == [
        "Triton calls the model other, as its folder: kserve-local predict mine --model other"
    ]


def test_requests_have_the_shape_that_the_model_tells_or_say_that_they_are_a_guess() -> None:
    def request(kind: str) -> Any:
        return json.loads(planned(kind).files["request.json"])

    assert request("sklearn") == {"instances": [[0.0] * 4]}
    assert isinstance(request("texts")["instances"][0], str)
    assert request("onnx")["inputs"][0]["shape"] == [1, 3]
    assert request("generation")["messages"]
    guesses = {k for k in MODELS if "A guess:" in planned(k).said[-1]}
    assert guesses == {
        "old sklearn", "onnx of no help", "torchscript", "archive", "tensorflow", "custom",
    }  # fmt: skip


def test_what_has_no_program_here_says_so() -> None:
    assert {k for k in MODELS if planned(k).not_here} == {
        "tensorflow", "generation", "masks", "classes", "gguf",
    }  # fmt: skip


def test_a_model_that_its_code_names_is_called_so() -> None:
    code = PredictorCode(FOLDER / "model.py", "A", "Iris", True)
    named = model("custom", "model.py", "A", code=code)
    assert name_for(named, FOLDER) == "iris"
    starter = plan(named, FOLDER, "iris")
    assert "args" not in predictor_of(starter)["containers"][0]
    assert starter.warnings == [
        'model.py calls its model "Iris": kserve-local predict iris --model Iris'
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("iris.joblib", "iris"),
        ("My_Model v2.joblib", "my-model-v2"),
        ("model.joblib", "flowers"),
        ("model/model-2.pkl", "flowers"),
        ("models/iris/model.bst", "iris"),
        ("20240101.pkl", "flowers"),
        (f"{'a' * 80}.pkl", "a" * 40),
    ],
)
def test_names_come_from_what_is_not_called_model(path: str, name: str) -> None:
    assert name_for(model("sklearn", path), FOLDER) == name


def test_a_name_that_nothing_is_left_of_is_model() -> None:
    assert dns_label("123_") == ""
    nothing = Recognised("sklearn", Path("/1/model.pkl"), "", "")
    assert name_for(nothing, Path("/1")) == "model"


# -- writing ---------------------------------------------------------------------------------------


def starter_of(folder: Path) -> Starter:
    (folder / "b.txt").write_text("weights")
    return Starter(
        "b", files={"a.yaml": "a: 1\n", "deep/er/c": "c"}, links={"deep/b.bst": folder / "b.txt"}
    )


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_all_files_are_written_and_none_is_left_over(tmp_path: Path) -> None:
    written = starter_files.write(starter_of(tmp_path), tmp_path)
    assert written == ["a.yaml", "deep/er/c", "deep/b.bst"]
    assert contents(tmp_path) == {
        "a.yaml": "a: 1\n", "deep/er/c": "c", "deep/b.bst": "weights", "b.txt": "weights",
    }  # fmt: skip
    assert (tmp_path / "deep/b.bst").samefile(tmp_path / "b.txt")


@pytest.mark.parametrize("there", ["a.yaml", "deep/b.bst"])
def test_a_file_that_is_there_is_not_replaced_without_force(there: str, tmp_path: Path) -> None:
    starter = starter_of(tmp_path)
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=there):
        starter_files.write(starter, tmp_path)
    assert contents(tmp_path) == before
    starter_files.write(starter, tmp_path, force=True)
    assert contents(tmp_path)[there] != "mine"


def test_a_link_that_leads_nowhere_is_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"a\.yaml"):
        starter_files.write(starter_of(tmp_path), tmp_path)


def test_a_folder_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(UsageError, match=r"a\.yaml"):
        starter_files.write(starter_of(tmp_path), tmp_path, force=True)


def test_writing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it fails at the very end, with some files in their places."""
    starter = starter_of(tmp_path)
    before = contents(tmp_path)
    real, calls = os.replace, iter([None, None, OSError(28, "No space left on device")])

    def replace(source: Path, target: Path) -> None:
        if (error := next(calls)) is not None:
            raise error
        real(source, target)

    monkeypatch.setattr("kserve_local.project.starter_files.os.replace", replace)
    with pytest.raises(UsageError, match="No space left"):
        starter_files.write(starter, tmp_path)
    assert contents(tmp_path) == before
    assert not (tmp_path / "deep").exists()


def test_a_folder_is_placed_whole(tmp_path: Path) -> None:
    (tmp_path / "net" / "variables").mkdir(parents=True)
    (tmp_path / "net" / "variables" / "v").write_text("v")
    starter = Starter("n", links={"model-repository/1": tmp_path / "net"})
    starter_files.write(starter, tmp_path)
    assert (tmp_path / "model-repository/1/variables/v").read_text() == "v"
