"""`init` on models as they are saved, and what it writes served and called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pytest
import torch
import xgboost
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from tests.integration.project import SAMPLES, Project, project

X, Y = load_iris(return_X_y=True)
NET = """import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)
"""


def _sklearn(folder: Path) -> None:
    joblib.dump(LogisticRegression(max_iter=500).fit(X, Y), folder / "iris.joblib", compress=3)


def _xgboost(folder: Path) -> None:
    booster = xgboost.train({"verbosity": 0}, xgboost.DMatrix(X, label=Y), 3)
    booster.save_model(folder / "iris.ubj")


def _lightgbm(folder: Path) -> None:
    booster = lightgbm.train({"verbosity": -1}, lightgbm.Dataset(X, label=Y), 3)
    booster.save_model(folder / "iris.txt")


def _onnx(folder: Path) -> None:
    model = LogisticRegression(max_iter=500).fit(X, Y)
    graph = to_onnx(model, X[:1].astype(np.float32), options={"zipmap": False})
    (folder / "iris.onnx").write_bytes(graph.SerializeToString())


def _torchscript(folder: Path) -> None:
    with torch.no_grad():
        traced = vars(torch.jit)["trace"](torch.nn.Linear(4, 2), torch.zeros(1, 4))
    traced.save(str(folder / "iris.pt"))


def _weights(folder: Path) -> None:
    (folder / "net.py").write_text(NET)
    state = {f"layer.{name}": value for name, value in torch.nn.Linear(4, 2).state_dict().items()}
    torch.save(state, folder / "iris.pth")


def _custom(folder: Path) -> None:
    shutil.copy(SAMPLES / "custom-model" / "model.py", folder / "model.py")


MODELS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # name -> (how the model is made, its format, how `predict` comes by a request)
    "sklearn": (_sklearn, "sklearn", "from request.json"),
    "xgboost": (_xgboost, "xgboost", "from request.json"),
    "lightgbm": (_lightgbm, "lightgbm", "from request.json"),
    "onnx": (_onnx, "onnx", "made from the model's metadata"),
    "torchscript": (_torchscript, "pytorch", "from request.json"),
    "weights": (_weights, "pytorch", "from request.json"),
    "custom": (_custom, "custom", "from request.json"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript will go, says PyTorch
@pytest.mark.parametrize("kind", MODELS)
def test_what_init_writes_is_served_and_answers(kind: str, tmp_path: Path) -> None:
    make, form, origin = MODELS[kind]
    folder = tmp_path / "iris"
    with project(folder) as own:
        make(folder)
        made = own.json("init")
        assert (made["name"], made["format"], made["runsHere"]) == ("iris", form, True)
        assert "kserve-local up" in made["next"]
        own.run("validate")
        own.up()
        done = own.run("predict", "iris")
        assert done.stderr.startswith("sent: {")
        assert done.stderr.endswith(f"({origin})\n")
        assert json.loads(done.stdout).keys() & {"predictions", "outputs"}
        assert own.run("predict", "iris", "@request.json").stderr == ""
        if kind == "onnx":
            _tells_of_unknown_models_and_makes_requests_of_any_protocol(own)


def _tells_of_unknown_models_and_makes_requests_of_any_protocol(own: Project) -> None:
    said = own.run("predict", "iris", "@request.json", "--model", "irsi", check=9).stderr
    assert "models served: iris\n" in said
    assert "kserve-local predict iris --model iris ..." in said
    over_grpc = own.json("predict", "iris", "--protocol", "grpc")
    assert over_grpc["sent"]["origin"] == "made from the model's metadata"
    assert [o["shape"] for o in over_grpc["body"]["outputs"]] == [[1], [1, 3]]
    v1 = own.run("predict", "iris", "--protocol", "v1", "--print-curl").stdout
    assert '{"instances": [[0.0, 0.0, 0.0, 0.0]]}' in v1


def test_predict_without_data_or_a_sample_says_what_to_do(tmp_path: Path) -> None:
    with project(tmp_path / "iris") as own:
        _sklearn(own.folder)
        own.run("init")
        (own.folder / "request.json").unlink()
        own.up()
        said = own.run("predict", "iris", check=2).stderr
        assert "iris does not describe its inputs, and there is no request.json" in said
        assert "kserve-local predict iris @request.json" in said
        unknown = own.run("predict", "irsi", check=11).stderr
        assert 'inferenceservices.serving.kserve.io "irsi" not found' in unknown


def _tree(folder: Path) -> dict[str, Any]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }  # fmt: skip


def test_several_models_are_listed_and_one_is_asked_for(tmp_path: Path) -> None:
    own = Project(tmp_path)
    _sklearn(tmp_path)
    _xgboost(tmp_path)
    before = _tree(tmp_path)
    said = own.run("init", check=2).stderr
    assert "holds 2 models; name one" in said
    assert "kserve-local init --from iris.joblib" in said
    assert "kserve-local init --from iris.ubj" in said
    assert _tree(tmp_path) == before
    assert own.json("init", "--from", "iris.ubj")["format"] == "xgboost"


def test_no_file_is_overwritten_and_nothing_is_written_beside_one(tmp_path: Path) -> None:
    own = Project(tmp_path)
    _lightgbm(tmp_path)
    (tmp_path / "request.json").write_text("mine")
    before = _tree(tmp_path)
    said = own.run("init", check=2).stderr
    assert "request.json is there already" in said
    assert "--force" in said
    assert _tree(tmp_path) == before
    own.run("init", "--force")
    assert json.loads((tmp_path / "request.json").read_text()) == {"instances": [[0.0] * 4]}
    assert (tmp_path / "iris.bst").samefile(tmp_path / "iris.txt")


def test_wrong_use_is_told(tmp_path: Path) -> None:
    own = Project(tmp_path)
    assert "no model that is known" in own.run("init", check=2).stderr
    assert "does not exist" in own.run("init", "--from", "gone", check=2).stderr
    (tmp_path / "notes.txt").write_text("a tree\n")
    assert "no model that is known" in own.run("init", "--from", "notes.txt", check=2).stderr
    _sklearn(tmp_path)
    said = own.run("init", "--name", "My_Model", check=2).stderr
    assert "kserve-local init --name my-model" in said
    assert own.json("init", "new", "--from", "iris.joblib", "--name", "mine")["name"] == "mine"
    assert str(tmp_path / "iris.joblib") in (tmp_path / "new/inferenceservice.yaml").read_text()


def test_a_model_of_another_scikit_learn_is_told_at_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Project(tmp_path)
    monkeypatch.setattr("sklearn.base.__version__", "1.3.2")
    _sklearn(tmp_path)
    monkeypatch.undo()
    said = "iris.joblib was saved with scikit-learn 1.3.2; runtime has "
    assert f"warning: {said}" in own.run("init").stderr
    lines = (tmp_path / "inferenceservice.yaml").read_text().splitlines()
    line = next(n for n, text in enumerate(lines, 1) if "storageUri" in text and "#" not in text)
    for flags in ((), ("--deep",)):
        done = own.run("validate", *flags)
        assert f"inferenceservice.yaml:{line}:7 warning {said}" in done.stdout
