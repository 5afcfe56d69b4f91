"""ONNX models: what loads, what is said about files that do not, and values of every datatype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from modelserver import oip
from modelserver.errors import InvalidInput, LoadError
from modelserver.model import InferInput, InferRequest, RequestedOutput
from onnxserver.model import OnnxModel

IDENTITY = [helper.make_node("Identity", ["x"], ["y"])]
MATMUL = [helper.make_node("MatMul", ["x", "w"], ["y"])]
W = numpy_helper.from_array(np.ones((300, 2), "float32"), "w")
FLOAT = TensorProto.FLOAT


def write(
    path: Path,
    *,
    type_: int = FLOAT,
    shape: list[Any] | None = None,
    out: list[Any] | None = None,
    nodes: list[Any] = IDENTITY,
    init: list[Any] | None = None,
    opset: int = 17,
    ir: int = 8,
    **kwargs: Any,
) -> Path:
    shape = ["n"] if shape is None else shape
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", type_, shape)],
        [helper.make_tensor_value_info("y", type_, shape if out is None else out)],
        init or [],
    )
    opsets = [helper.make_opsetid("", opset)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=ir), str(path), **kwargs)
    return path


def load(path: Path) -> OnnxModel:
    model = OnnxModel("m", path)
    model.load()
    return model


def refusal(path: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(path)
    return str(caught.value)


def ask(model: OnnxModel, *inputs: InferInput, outputs: Any = None) -> Any:
    answer: Any = model.predict(InferRequest("m", list(inputs), outputs=outputs))
    return answer.outputs[0]


def test_an_opset_too_new_says_which_one_is_known(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "m.onnx", opset=99))
    assert "its opset 99 of ai.onnx is newer than onnxruntime" in text
    assert "export it with opset_version=" in text
    assert "Unsupported model IR version: 99" in refusal(write(tmp_path / "m.onnx", ir=99))


def test_missing_external_data_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        shape=["n", 300],
        out=["n", 2],
        nodes=MATMUL,
        init=[W],
        save_as_external_data=True,
        location="weights.data",
        size_threshold=0,
    )
    assert ask(load(path), InferInput("x", [1, 300], "FP32", [1.0] * 300)).data.tolist() == [
        [300.0, 300.0]
    ]
    (tmp_path / "weights.data").unlink()
    assert "its external data file weights.data is not beside it" in refusal(path)


def test_a_damaged_file_is_called_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", shape=["n", 300], out=["n", 2], nodes=MATMUL, init=[W])
    whole = path.read_bytes()
    for content, words in (
        (whole[:1000], "truncated or damaged (1000 bytes)"),
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        (b"<html>", "is no ONNX model (it begins with b'<html>')"),
    ):
        path.write_bytes(content)
        assert words in refusal(path)


def test_operators_nobody_knows_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conjure", ["x"], ["y"])]
    assert "Conjure" in refusal(write(tmp_path / "m.onnx", nodes=nodes))


def test_bfloat16_inputs_have_no_datatype(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "m.onnx", type_=TensorProto.BFLOAT16))
    assert "input 'x' is a tensor(bfloat16)" in text
    assert "Cast" in text


def test_fp16_travels_in_binary(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", type_=TensorProto.FLOAT16))
    raw = np.array([1, 2], np.float16).tobytes()
    request = InferRequest(
        "m",
        [InferInput("x", [2], "FP16", raw=raw)],
        outputs=[RequestedOutput("y", {"binary_data": True})],
    )
    body, length = oip.encode(model.predict(request), request)
    assert length is not None
    assert body[length:] == raw
    assert model.predict_v1({"instances": [1.5]}, {}) == {"predictions": [1.5]}


def test_text_goes_in_and_out(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", type_=TensorProto.STRING))
    assert ask(model, InferInput("x", [2], "BYTES", ["a", "é"])).data.tolist() == ["a", "é"]
    raw = b"\1\0\0\0a\2\0\0\0\xc3\xa9"
    assert ask(model, InferInput("x", [2], "BYTES", raw=raw)).data.tolist() == ["a", "é"]
    assert model.predict_v1({"instances": ["a"]}, {}) == {"predictions": ["a"]}
    with pytest.raises(InvalidInput, match="must be strings"):
        model.predict_v1({"instances": [1]}, {})


def test_scalars_and_empty_batches(tmp_path: Path) -> None:
    scalar = load(write(tmp_path / "s.onnx", shape=[]))
    assert ask(scalar, InferInput("x", [], "FP32", [5])).shape == []
    assert scalar.predict_v1({"inputs": 5}, {}) == {"predictions": 5.0}
    rows = load(write(tmp_path / "r.onnx", shape=["n", 3]))
    assert ask(rows, InferInput("x", [0, 3], "FP32", [])).shape == [0, 3]


def test_a_large_tensor_comes_back_whole(tmp_path: Path) -> None:
    large = np.random.default_rng(0).random((1000, 3000), np.float32)
    model = load(write(tmp_path / "m.onnx", shape=["n", 3000]))
    got = ask(model, InferInput("x", [1000, 3000], "FP32", raw=large.tobytes()))
    assert np.array_equal(got.data, large)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([InferInput("x", [2], "INT64", [1])], "input 'x': cannot reshape"),
        ([InferInput("x", [1], "INT64", ["a"])], "input 'x': "),
        ([InferInput("x", [1], "INT64", [1])] * 2, "input 'x' is given twice"),
        ([InferInput("x", [2], "INT64", raw=b"\0" * 9)], "input 'x': "),
    ],
)
def test_tensors_that_do_not_fit_name_the_input(
    tmp_path: Path, tensors: list[InferInput], words: str
) -> None:
    model = load(write(tmp_path / "m.onnx", type_=TensorProto.INT64))
    with pytest.raises(InvalidInput) as caught:
        ask(model, *tensors)
    assert words in str(caught.value)


@pytest.mark.parametrize("instances", [[1.5], [2**70], ["a"], [[1], [1, 2]], [None]])
def test_v1_values_that_would_change_are_refused(tmp_path: Path, instances: list[Any]) -> None:
    model = load(write(tmp_path / "m.onnx", type_=TensorProto.INT64))
    with pytest.raises(InvalidInput, match="input 'x'"):
        model.predict_v1({"instances": instances}, {})
    assert model.predict_v1({"instances": [2.0]}, {}) == {"predictions": [2]}
