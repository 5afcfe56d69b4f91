"""Which model files are found, and what framework inputs become."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelserver.cli import make_parser
from modelserver.errors import LoadError
from modelserver.framework import v1_input, v2_input
from modelserver.model import InferInput, InferRequest, Model
from modelserver.repository import local_path, open_models

EXTENSIONS = (".joblib", ".pkl")


class Named(Model):
    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.folder = folder


def test_one_file_makes_a_single_model_server(tmp_path: Path) -> None:
    """Under --model_name; other files beside it do not matter."""
    (tmp_path / "model.pkl").touch()
    (tmp_path / "readme.txt").touch()
    models, repository = open_models(str(tmp_path), "iris", EXTENSIONS, Named)
    assert [m.name for m in models] == ["iris"]
    assert repository is None


def test_several_files_end_the_start(tmp_path: Path) -> None:
    """With both names."""
    (tmp_path / "a.pkl").touch()
    (tmp_path / "b.joblib").touch()
    with pytest.raises(
        LoadError, match="More than one model file is detected, Only one is allowed"
    ):
        open_models(str(tmp_path), "iris", EXTENSIONS, Named)


def test_sub_directories_are_models(tmp_path: Path) -> None:
    """--model_name is unused then, and only their names can be loaded."""
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    models, repository = open_models(str(tmp_path), "iris", EXTENSIONS, Named)
    assert [m.name for m in models] == ["a", "b"]
    assert repository is not None
    for name in ("..", ".", "", "c", "a/../b"):
        with pytest.raises(LoadError):
            repository.create(name)


def test_an_empty_folder_is_a_server_without_models(tmp_path: Path) -> None:
    """So is one with files of another extension."""
    (tmp_path / "model.txt").touch()
    models, _ = open_models(str(tmp_path), "iris", EXTENSIONS, Named)
    assert models == []


def test_missing_folders_and_remote_ones_are_errors(tmp_path: Path) -> None:
    """The words say what to do."""
    with pytest.raises(LoadError, match="does not exist"):
        open_models(str(tmp_path / "no"), "iris", EXTENSIONS, Named)
    with pytest.raises(LoadError, match="storage initializer"):
        local_path("s3://bucket/model")
    assert local_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


def test_v1_rows_strings_and_tables() -> None:
    """The kinds of V1 input KServe's servers know."""
    assert v1_input({"instances": [[1, 2]], "inputs": [[3, 4]]}, None).tolist() == [[3, 4]]
    assert v1_input({"instances": ["a", "b"]}, None) == ["a", "b"]
    table = v1_input({"instances": [{"b": [1], "a": [2]}, {"b": [3], "a": [4]}]}, ["a", "b"])
    assert table.values.tolist() == [[2, 1], [4, 3]]
    nested = v1_input({"instances": [[{"a": 1}, {"a": 2}]]}, None)
    assert nested["a"].tolist() == [1, 2]
    with pytest.raises(KeyError):
        v1_input({}, None)
    with pytest.raises(ValueError, match="scalar values"):
        v1_input({"instances": [{"a": 1}]}, None)


def test_v2_first_tensor_or_a_table_of_all() -> None:
    """`content_type: pd` is KServe's word for a table."""
    inputs = [InferInput("a", [2], "INT32", [1, 2]), InferInput("b", [2], "BYTES", ["x", "y"])]
    assert v2_input(InferRequest("m", inputs)).tolist() == [1, 2]
    assert v2_input(InferRequest("m", inputs[1:])) == ["x", "y"]
    table = v2_input(InferRequest("m", inputs, parameters={"content_type": "pd"}))
    assert table.to_dict("list") == {"a": [1, 2], "b": ["x", "y"]}


def test_batching_switch_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runtimes whose arguments cannot be changed."""
    assert make_parser().parse_args([]).enable_batching == "auto"
    assert make_parser().parse_args(["--enable_batching=False"]).enable_batching == "false"
    monkeypatch.setenv("KSERVE_LOCAL_ENABLE_BATCHING", "false")
    assert make_parser().parse_args([]).enable_batching == "false"


@pytest.mark.parametrize("text", ["y", "YES", "t", "true", "on", "1"])
def test_boolean_arguments(text: str) -> None:
    """KServe's spellings."""
    assert make_parser().parse_args([f"--enable_grpc={text}"]).enable_grpc is True
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--enable_grpc=maybe"])
