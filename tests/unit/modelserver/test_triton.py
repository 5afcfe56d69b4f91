"""Triton's model repository layout as our servers read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelserver.errors import LoadError
from modelserver.triton import scan

CONFIG = """
# a comment
name: "digits"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] },
  { name: "y", data_type: TYPE_STRING, dims: 1 }
]
output { name: "z" data_type: TYPE_INT64 dims: [ 10 ] }
instance_group [{ kind: KIND_CPU count: 2 }]
parameters: { key: "k" value: { string_value: "a \\"quoted\\" word" } }
"""


def repository(tmp_path: Path, config: str | None = CONFIG) -> Path:
    for version in ("1", "3", "20"):
        (tmp_path / "model" / version).mkdir(parents=True)
        (tmp_path / "model" / version / "model.onnx").touch()
    if config is not None:
        (tmp_path / "model" / "config.pbtxt").write_text(config)
    return tmp_path


def test_the_highest_version_is_served_under_the_configured_name(tmp_path: Path) -> None:
    (model,) = scan(repository(tmp_path), ["model.onnx"], ["onnxruntime_onnx"])
    assert (model.name, model.version, model.path.parent.name) == ("digits", "20", "20")
    assert model.inputs == (
        {"name": "x", "datatype": "FP32", "shape": [-1, 3, -1]},
        {"name": "y", "datatype": "BYTES", "shape": [-1, 1]},
    )
    assert model.outputs == ({"name": "z", "datatype": "INT64", "shape": [-1, 10]},)


def test_a_configuration_is_optional(tmp_path: Path) -> None:
    (model,) = scan(repository(tmp_path, None), ["model.onnx"], [])
    assert (model.name, model.inputs) == ("model", ())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('backend: "python"', "needs Triton's backend 'python'"),
        ('name: "a', "config.pbtxt cannot be read"),
        ("input [ { ", "config.pbtxt cannot be read"),
        ('default_model_filename: "other.onnx"', "has no other.onnx"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path: Path, config: str, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        scan(repository(tmp_path, config), ["model.onnx"], ["onnxruntime"])


def test_a_folder_without_versions_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(LoadError, match=r"expected m/1/model\.onnx"):
        scan(tmp_path, ["model.onnx"], [])
