"""Model files of every kind, and what is said about those that are none."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelserver.errors import InvalidInput, LoadError
from modelserver.model import InferInput, InferRequest
from torchserver.loading import load_module
from torchserver.model import TorchModel

NETWORK = """
import torch
class Net(torch.nn.Module):
    def __init__(self, size=2):
        super().__init__()
        self.layer = torch.nn.Linear(size, 1)
    def forward(self, x):
        return self.layer(x)
"""


def script(module: torch.nn.Module, path: Path, example: torch.Tensor) -> Path:
    jit: Any = vars(torch.jit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as such
        jit["save"](jit["trace"](module, example), path)
    return path


def state(folder: Path) -> dict[str, Any]:
    (folder / "net.py").write_text(NETWORK)
    return {"layer.weight": torch.tensor([[1.0, 2.0]]), "layer.bias": torch.tensor([0.5])}


def load(path: Path) -> Any:
    return load_module(path, "cpu", None, "")


def refusal(path: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_finds_its_class(tmp_path: Path, wrapped: bool) -> None:
    weights = state(tmp_path)
    torch.save({"state_dict": weights, "epoch": 3} if wrapped else weights, tmp_path / "m.pt")
    assert load(tmp_path / "m.pt")(torch.tensor([[1.0, 1.0]])).item() == 3.5
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_in_the_former_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save(state(tmp_path), path, _use_new_zipfile_serialization=False)
    assert load(path)(torch.tensor([[1.0, 1.0]])).item() == 3.5


def test_a_truncated_file_is_called_so(tmp_path: Path) -> None:
    path = script(torch.nn.Linear(2, 1), tmp_path / "m.pt", torch.ones(1, 2))
    path.write_bytes(path.read_bytes()[:1000])
    assert "the file is truncated (it ends after 1000 bytes" in refusal(path)
    for name in ("m.pt2", "m.pth"):
        path = path.rename(tmp_path / name)
        assert "truncated" in refusal(path)
    torch.save(state(tmp_path), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        (b"<html>not found</html>", "it is no PyTorch file"),
    ],
)
@pytest.mark.parametrize("name", ["m.pt", "m.pt2"])
def test_what_is_no_model_is_told_by_its_beginning(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


class Unsafe:
    """Code that a pickle would run."""

    def __reduce__(self) -> Any:
        return (open, ("/tmp/never-written-by-this-test", "w"))


@pytest.mark.parametrize("new", [True, False])
def test_a_pickled_module_is_not_run_and_the_safe_way_is_named(tmp_path: Path, new: bool) -> None:
    torch.save(torch.nn.Linear(2, 1), tmp_path / "m.pt", _use_new_zipfile_serialization=new)
    text = refusal(tmp_path / "m.pt")
    assert "a pickle of Python objects (torch.nn.modules.linear.Linear)" in text
    assert "torch.save(model.state_dict(), ...)" in text


def test_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Unsafe()))
    assert "truncated or damaged" in refusal(tmp_path / "m.pt") or "pickle" in refusal(
        tmp_path / "m.pt"
    )
    assert not Path("/tmp/never-written-by-this-test").exists()


def test_a_tensor_is_no_model(tmp_path: Path) -> None:
    torch.save(torch.ones(1), tmp_path / "m.pt")
    assert "holds a Tensor, not a model" in refusal(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import torch\nclass A(torch.nn.Module): pass\nclass B(torch.nn.Module): pass", "A, B"),
        ("x = 1", "torch.nn.Module classes there: none"),
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("import torch\nclass A(torch.nn.Module):\n def __init__(self, n): pass", "A() without"),
        ("import torch\nclass A(torch.nn.Module): pass", "does not fit A"),
    ],
)
def test_a_wrong_class_file_says_what_is_wrong(tmp_path: Path, source: str, words: str) -> None:
    torch.save(state(tmp_path), tmp_path / "m.pt")
    (tmp_path / "net.py").write_text(source)
    assert words in refusal(tmp_path / "m.pt")


# -- requests ----------------------------------------------------------------------------------


def model(path: Path, module: torch.nn.Module, *example: torch.Tensor) -> TorchModel:
    torch.export.save(torch.export.export(module.eval(), example), path)
    made = TorchModel("m", path)
    made.load()
    return made


class Sum(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"sum": a + b, "half": (a + b).to(torch.bfloat16) / 2}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    path = tmp_path_factory.mktemp("sum") / "m.pt2"
    return model(path, Sum(), torch.ones(2), torch.ones(2))


def test_v1_names_the_inputs_of_a_model_with_several(two: TorchModel) -> None:
    wanted = {"predictions": {"sum": [4.0, 6.0], "half": [2.0, 3.0]}}
    rows = [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert two.predict_v1({"instances": rows}, {}) == wanted
    assert two.predict_v1({"inputs": {"a": [1, 2], "b": [3, 4]}}, {}) == wanted


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"instances": [{"a": 1, "b": 1}, {"a": 1}]}, "every row must hold a, b"),
        ({"instances": [{"x": 1}]}, "takes a, b; got x"),
        ({"instances": "abc"}, "to be a list"),
        ({"instances": [[1], [1, 2]]}, "ragged"),
        ({"instances": [["a"]]}, "must hold numbers"),
        ([], "must be a JSON object"),
    ],
)
def test_v1_bodies_that_do_not_fit_are_the_clients_fault(
    two: TorchModel, body: Any, words: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        two.predict_v1(body, {})
    assert words in str(caught.value)


def test_bfloat16_comes_out_as_fp32(two: TorchModel) -> None:
    inputs = [InferInput(n, [2], "FP32", [1, 2]) for n in "ab"]
    outputs = two.predict(InferRequest("m", inputs)).outputs
    assert [(o.name, o.datatype) for o in outputs] == [("sum", "FP32"), ("half", "FP32")]


def test_data_and_shape_that_do_not_fit_name_the_input(two: TorchModel) -> None:
    with pytest.raises(InvalidInput, match="input 'a'"):
        two.predict(InferRequest("m", [InferInput("a", [3], "FP32", [1])]))


def test_scalars_empty_batches_and_large_tensors(tmp_path: Path) -> None:
    made = TorchModel("m", script(torch.nn.ReLU(), tmp_path / "m.pt", torch.ones(1)))
    made.load()

    def ask(shape: list[int], raw: bytes) -> Any:
        return made.predict(InferRequest("m", [InferInput("x", shape, "FP32", raw=raw)])).outputs[0]

    assert ask([], np.float32(-1).tobytes()).shape == []
    assert ask([0, 3], b"").shape == [0, 3]
    large = np.arange(3_000_000, dtype=np.float32)
    assert np.array_equal(ask([3_000_000], large.tobytes()).data, large)


def test_whole_numbers_reach_a_model_of_class_ids(tmp_path: Path) -> None:
    embed = torch.nn.Embedding(3, 1, _weight=torch.tensor([[0.0], [1.0], [2.0]]))
    made = model(tmp_path / "m.pt2", embed, torch.zeros(2, dtype=torch.int64))
    for _ in range(2):
        assert made.predict_v1({"instances": [1, 2]}, {}) == {"predictions": [[1.0], [2.0]]}
