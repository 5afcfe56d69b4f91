"""Handlers of archives: found, imported, initialized and called as TorchServe does."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modelserver.errors import InferenceError, InvalidInput, LoadError
from modelserver.model import InferInput, InferRequest
from torchserver.archive import MANIFEST, Unpacked
from torchserver.torchserve import ArchiveModel, open_store

CLASS = """
import os
class Handler:
    def initialize(self, context):
        self.folder = context.system_properties["model_dir"]
        self.config = context.model_yaml_config
        assert os.path.samefile(os.getcwd(), self.folder)
    def handle(self, data, context):
        return [len(data), self.config, context.get_request_header(0, "explain"),
                context.get_request_id(0) is not None]
"""
BASE = """
from ts.torch_handler.base_handler import BaseHandler
from ts.handler_utils.timer import timed
class Doubling(BaseHandler):
    @timed
    def postprocess(self, data):
        return [2 * v for v in super().postprocess(data)]
"""
NETWORK = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        return x * self.scale
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("TS_SERVICE_ENVELOPE",):
        monkeypatch.delenv(name, raising=False)
    made = Store(tmp_path)
    yield made
    made.unpacked.close()


class Store:
    """A model store in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "model-store"
        self.folder.mkdir()
        self.config = folder / "config.properties"
        self.config.write_text("load_models=all\nservice_envelope=kserve\n")
        self.unpacked = Unpacked(folder)

    def add(self, name: str, handler: str, files: dict[str, str | bytes], **model: str) -> None:
        manifest = {"model": {"modelName": name, "handler": handler, **model}}
        with zipfile.ZipFile(self.folder / f"{name}.mar", "w") as archive:
            archive.writestr(MANIFEST, json.dumps(manifest))
            for file, content in files.items():
                archive.writestr(file, content)

    def open(self) -> list[ArchiveModel]:
        models = open_store(self.folder, self.config, self.unpacked)
        for model in models:
            model.load()
        return models

    def one(self, handler: str, files: dict[str, str | bytes], **model: str) -> ArchiveModel:
        self.add("net", handler, files, **model)
        return self.open()[0]


def predictions(model: ArchiveModel, *rows: Any) -> Any:
    return model.predict_v1({"instances": list(rows)}, {})["predictions"]


def weights(tmp_path: Path, what: Any) -> bytes:
    path = tmp_path / "saved.pt"
    if isinstance(what, torch.nn.Module):
        jit: Any = vars(torch.jit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as such
            jit["save"](jit["trace"](what, torch.ones(1)), path)
    else:
        torch.save(what, path)
    return path.read_bytes()


def test_a_class_gets_the_workers_context_and_the_requests(store: Store) -> None:
    files: dict[str, str | bytes] = {"handler.py": CLASS, "m.yaml": "batch: 2\n"}
    model = store.one("handler.py", files, configFile="m.yaml")
    assert predictions(model, 1, 2) == [2, {"batch": 2}, None, True]
    explained = model.explain_v1({"instances": [1]}, {})
    assert explained["explanations"][2] == "True"


def test_a_function_is_called_once_without_data_to_initialize(store: Store) -> None:
    code = (
        "seen = []\ndef run(data, context):\n    seen.append(data)\n    return list(map(str, seen))"
    )
    model = store.one("h.py:run", {"h.py": code})
    assert predictions(model, 5) == ["None", "[5]"]


def test_functions_in_a_module_of_the_archive_are_found(store: Store) -> None:
    files: dict[str, str | bytes] = {
        "h.py": "from helper import f\ndef handle(data, context):\n    return data and f(data)",
        "helper.py": "def f(rows):\n    import late\n    return [r + late.N for r in rows]",
        "late.py": "N = 1",
    }
    assert predictions(store.one("h.py", files), 1, 2) == [2, 3]
    assert "helper" not in sys.modules


def test_two_archives_may_use_the_same_file_names(store: Store) -> None:
    for name in ("a", "b"):
        code = "from helper import N\ndef handle(data, context):\n    return [N]"
        store.add(name, "h.py", {"h.py": code, "helper.py": f"N = {name!r}"})
    assert [predictions(m, 1) for m in store.open()] == [["a"], ["b"]]


def test_base_handler_serves_torchscript(store: Store, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"w.pt": weights(tmp_path, torch.nn.Flatten(0))}
    model = store.one("base_handler", files, serializedFile="w.pt")
    assert predictions(model, [1.0, 2.0], [3.0, 4.0]) == [1.0, 2.0, 3.0, 4.0]


def test_a_subclass_of_base_handler_runs_a_class_file_with_weights(
    store: Store, tmp_path: Path
) -> None:
    state = weights(tmp_path, {"scale": torch.tensor([3.0])})
    files: dict[str, str | bytes] = {"h.py": BASE, "net.py": NETWORK, "w.pt": state}
    model = store.one("h.py", files, serializedFile="w.pt", modelFile="net.py")
    assert predictions(model, 1.0, 2.0) == [6.0, 12.0]


def test_v2_goes_through_the_same_handler(store: Store) -> None:
    store.config.write_text("load_models=all\nservice_envelope=kservev2\n")
    code = "def handle(data, context):\n    return data and [sum(d['data']) for d in data]"
    model = store.one("h.py", {"h.py": code}, modelVersion="3")
    inputs = [InferInput("a", [2], "INT64", [1, 2]), InferInput("b", [1], "INT64", [7])]
    got = model.predict(InferRequest("net", inputs, "id"))
    assert (got["id"], got["model_version"]) == ("id", "3")
    assert [(o["name"], o["data"]) for o in got["outputs"]] == [("a", [3]), ("b", [7])]


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("raise ValueError('bad row')", InferenceError, "Prediction failed: ValueError: bad row"),
        ("raise PredictionException('no', 422)", InvalidInput, "422 no"),
        ("raise PredictionException('no', 500)", InferenceError, "500 no"),
        ("context.set_response_status(507, 'full')", InferenceError, "507 full"),
    ],
)
def test_what_a_handler_fails_with_is_told(
    store: Store, code: str, error: type[Exception], words: str
) -> None:
    text = "from ts.utils.util import PredictionException\n"
    text += f"def handle(data, context):\n    if data:\n        {code}\n    return [1]"
    model = store.one("h.py", {"h.py": text})
    with pytest.raises(error) as caught:
        predictions(model, 1)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("handler", "files", "words"),
    [
        (
            "h.py",
            {},
            "no file of the archive, and of TorchServe's own handlers there is here: base",
        ),
        ("image_classifier", {}, "ts.torch_handler.image_classifier has no counterpart"),
        ("h.py", {"h.py": "import ts.metrics.metric"}, "ts.metrics has no counterpart"),
        ("h.py", {"h.py": "import no_such_module"}, "Put no_such_module into a requirements file"),
        ("h.py", {"h.py": "1/0"}, "h.py cannot be imported: ZeroDivisionError"),
        ("h.py", {"h.py": "x = 1"}, "exactly one class; classes there: none"),
        ("h.py", {"h.py": "class A: pass\nclass B: pass"}, "classes there: A, B"),
        ("h.py", {"h.py": "class A: pass"}, "class A has no initialize()"),
        ("h.py:go", {"h.py": "x = 1"}, "h.py has no function 'go'"),
        ("h.py", {"h.py": "def handle(d, c): raise OSError('disk')"}, "failed: OSError: disk"),
        ("h.py", {"h.py": "def handle(d, c): import gone"}, "Put gone into a requirements file"),
    ],
)
def test_a_handler_that_cannot_start_says_why(
    store: Store, handler: str, files: dict[str, str | bytes], words: str
) -> None:
    with pytest.raises(LoadError) as caught:
        store.one(handler, files)
    assert words in str(caught.value)
    assert "net.mar" in str(caught.value)


def test_weights_without_a_class_file_name_the_archivers_option(
    store: Store, tmp_path: Path
) -> None:
    files: dict[str, str | bytes] = {"w.pt": weights(tmp_path, {"scale": torch.ones(1)})}
    with pytest.raises(LoadError, match="--model-file"):
        store.one("base_handler", files, serializedFile="w.pt")


def test_weights_that_do_not_fit_name_class_and_file(store: Store, tmp_path: Path) -> None:
    state = weights(tmp_path, {"other": torch.ones(1)})
    files: dict[str, str | bytes] = {"h.py": BASE, "net.py": NETWORK, "w.pt": state}
    with pytest.raises(LoadError, match=r"w\.pt does not fit Net"):
        store.one("h.py", files, serializedFile="w.pt", modelFile="net.py")
