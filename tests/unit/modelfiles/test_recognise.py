"""Each kind of model is told by its bytes, with what they say; what is none is left alone."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnx
import pytest
import torch
import xgboost
from onnx import TensorProto, helper, numpy_helper

from kserve_local.modelfiles.graphs import Tensor, onnx_data_files
from kserve_local.modelfiles.recognise import candidates, recognise

X, Y = np.random.default_rng(0).random((30, 5)), np.arange(30) % 2


def field(number: int, content: bytes) -> bytes:
    """Return a message's field of length-delimited content, shorter than 128 bytes."""
    assert len(content) < 128
    return bytes((number << 3 | 2, len(content))) + content


@pytest.mark.parametrize("suffix", [".json", ".ubj", ".bst", ".model"])
def test_xgboost(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    booster = xgboost.train({"verbosity": 0}, xgboost.DMatrix(X, label=Y), 2)
    as_json = suffix == ".json"
    path.write_bytes(booster.save_raw("json" if as_json else "ubj"))
    found = recognise(path)
    assert found is not None
    assert (found.format, found.kind) == ("xgboost", "json" if as_json else "ubj")
    assert (found.version, found.features) == (xgboost.__version__, 5)


def test_xgboosts_old_format_is_told_to_be_old(tmp_path: Path) -> None:
    path = tmp_path / "model.bst"
    path.write_bytes(b"binf" + bytes(100))
    found = recognise(path)
    assert found is not None
    assert found.warnings == ("its binary format is one that XGBoost 3.1 and newer do not read",)


@pytest.mark.parametrize("suffix", [".txt", ".bst"])
def test_lightgbm(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    lightgbm.train({"verbosity": -1}, lightgbm.Dataset(X, label=Y), 2).save_model(path)
    found = recognise(path)
    assert found is not None
    assert (found.format, found.version, found.features) == ("lightgbm", "4", 5)


def _onnx_model(**changes: Any) -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.ones((4, 4), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("label", TensorProto.STRING, [1]),
            *changes.get("inputs", ()),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    return helper.make_model(graph, ir_version=changes.get("ir_version", 8))


def test_onnx_inputs_are_read_without_the_library(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_onnx_model(), path)
    found = recognise(path)
    assert found is not None
    assert found.inputs == (Tensor("x", "FP32", (-1, 4)), Tensor("label", "BYTES", (1,)))


def test_weights_of_old_onnx_models_are_no_inputs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4])
    onnx.save(_onnx_model(ir_version=3, inputs=[weight]), path)
    found = recognise(path)
    assert found is not None
    assert [t.name for t in found.inputs] == ["x", "label"]


def test_files_of_onnx_weights_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_onnx_model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert onnx_data_files(path) == ("m.data",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript will go, says PyTorch
def test_pytorch_files_are_told_apart(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 2)
    with torch.no_grad():
        vars(torch.jit)["trace"](module, torch.zeros(1, 4)).save(str(tmp_path / "script.pt"))
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    torch.save(module.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    torch.save(module, tmp_path / "whole.pt")
    torch.export.save(torch.export.export(module, (torch.zeros(1, 4),)), tmp_path / "program.pt2")
    with zipfile.ZipFile(tmp_path / "net.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "net"}}))
    kinds = {m.path.name: m.kind for m in candidates(tmp_path)}
    assert kinds == {
        "script.pt": "torchscript", "weights.pth": "weights", "old.pth": "weights",
        "checkpoint.pt": "weights", "whole.pt": "module", "program.pt2": "export",
        "net.mar": "archive",
    }  # fmt: skip


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "q.gguf"
    keys = [
        _text("general.file_type") + struct.pack("<II", 4, 2),
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
    ]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys))
    found = recognise(path)
    assert found is not None
    assert (found.format, found.kind) == ("gguf", "llama")


def saved_model(folder: Path) -> Path:
    """Write a SavedModel with the signature (?, 4) of floats."""
    folder.mkdir(parents=True)
    shape = field(2, b"\x08" + b"\xff" * 9 + b"\x01") + field(2, b"\x08\x04")
    info = field(1, b"x:0") + b"\x10\x01" + field(3, shape)
    signature = field(1, field(1, b"x") + field(2, info))
    entry = field(1, b"serving_default") + field(2, signature)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01" + field(2, field(5, entry)))
    return folder


@pytest.mark.parametrize("below", ["", "1"])
def test_saved_models(below: str, tmp_path: Path) -> None:
    saved_model(tmp_path / "net" / below)
    (found,) = candidates(tmp_path / "net")
    assert (found.format, found.path) == ("tensorflow", tmp_path / "net")
    assert found.inputs == (Tensor("x", "FP32", (-1, 4)),)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text_generation"),
        ("BertForMaskedLM", "fill_mask"),
        ("DistilBertForSequenceClassification", "sequence_classification"),
        ("BertModel", "text_embedding"),
        ("Odd", ""),
    ],
)
def test_hugging_face_folders(architecture: str, task: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert candidates(tmp_path) == []
    (tmp_path / "tokenizer.json").write_text("{}")
    (found,) = candidates(tmp_path)
    assert (found.format, found.kind) == ("huggingface", task)
    assert len(found.warnings) == 1
    (tmp_path / "model.safetensors").touch()
    (found,) = candidates(tmp_path)
    assert found.warnings == ()


START = "if __name__ == '__main__':\n    kserve.ModelServer().start([{}])\n"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import kserve\nclass A(kserve.Model): pass\n" + START.format("A(args.name)"), ""),
        ("import kserve\nclass A(kserve.Model): pass\n" + START.format("A('iris')"), "iris"),
        ("from kserve import Model, ModelServer as S\nclass A(Model): pass\n"
         "S().start([A(name='iris')])\n", "iris"),
        ("import kserve as k\nclass A(k.Model): pass\nk.ModelServer().start([A(n)])\n", ""),
    ],
)  # fmt: skip
def test_custom_predictors_are_read_and_not_run(code: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(f"{code}\nraise SystemExit('was run')\n")
    (found,) = candidates(tmp_path)
    assert found.format == "custom"
    assert found.code is not None
    assert (found.code.name, found.code.model, found.warnings) == ("A", name, ())


def test_a_predictor_that_starts_no_server_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("from kserve import Model\nclass A(Model): pass\n")
    found = recognise(tmp_path / "m.py")
    assert found is not None
    assert "starts a kserve.ModelServer" in found.warnings[0]


NO_MODELS: dict[str, Callable[[Path], object]] = {
    "train.py": lambda p: p.write_text("class Model: pass\nclass A(Model): pass\n"),
    "broken.py": lambda p: p.write_text("class A(kserve.Model:\n"),
    "notes.txt": lambda p: p.write_text("tree\nnotes"),
    "request.json": lambda p: p.write_text('{"instances": [[1]]}'),
    "learner.json": lambda p: p.write_text('{"learners": []}'),
    "words.pkl": lambda p: joblib.dump({"a": 1}, p),
    "cut.onnx": lambda p: p.write_bytes(b"\x08\x08\x3a\xff\x01cut"),
    "text.onnx": lambda p: p.write_text("not a model"),
    "text.gguf": lambda p: p.write_text("not a model"),
    "text.pt": lambda p: p.write_text("not a model"),
    "zip.pt": lambda p: zipfile.ZipFile(p, "w").close(),
    "bad.mar": lambda p: p.write_bytes(b"PK"),
    "empty.bst": lambda p: p.touch(),
    ".hidden.joblib": lambda p: joblib.dump({}, p),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model_is_left_alone(name: str, tmp_path: Path) -> None:
    NO_MODELS[name](tmp_path / name)
    assert candidates(tmp_path) == []


def test_one_file_by_two_names_is_one_model(tmp_path: Path) -> None:
    """What `init` linked for a server that takes other extensions is no second model."""
    (tmp_path / "b.model").write_bytes(b"binf" + bytes(9))
    (tmp_path / "b.bst").hardlink_to(tmp_path / "b.model")
    assert [m.path.name for m in candidates(tmp_path)] == ["b.bst"]


def test_a_model_folder_is_looked_into(tmp_path: Path) -> None:
    saved_model(tmp_path / "model")
    (found,) = candidates(tmp_path)
    assert (found.format, found.path) == ("tensorflow", tmp_path / "model")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "b.bst").write_bytes(b"binf" + bytes(9))
    assert [m.format for m in candidates(tmp_path)] == ["tensorflow", "xgboost"]
