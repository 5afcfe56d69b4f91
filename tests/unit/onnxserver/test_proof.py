"""Which ONNX models share calls: those that were seen to answer alike alone and in company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from modelserver.model import InferInput, InferRequest, RequestedOutput
from onnxserver.model import OnnxModel
from onnxserver.proof import rows_are_independent

FLOAT = TensorProto.FLOAT


def network(
    path: Path,
    nodes: list[Any],
    shape: list[Any],
    out: list[Any],
    init: list[Any] | None = None,
    type_: int = FLOAT,
) -> OnnxModel:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", type_, shape)],
        [helper.make_tensor_value_info("y", type_, out)],
        init or [],
    )
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    model = OnnxModel("m", path)
    model.load()
    return model


def dense(path: Path) -> OnnxModel:
    weights = np.random.default_rng(1).standard_normal((8, 3)).astype("float32")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["y"]),
    ]
    init = [numpy_helper.from_array(weights, "w")]
    return network(path, nodes, ["n", 8], ["n", 3], init)


def test_a_dense_network_shares_calls_and_changes_no_bit(tmp_path: Path) -> None:
    model = dense(tmp_path / "m.onnx")
    assert model.batchable
    assert model.only_output == "y"
    rows = np.random.default_rng(2).standard_normal((40, 8)).astype("float32")
    requests = [InferInput("x", [1, 8], "FP32", raw=row.tobytes()) for row in rows]
    prepared = [model.prepare(InferRequest("m", [tensor])) for tensor in requests]
    assert len({model.batch_key(x) for x in prepared}) == 1
    together = model.compute(np.concatenate(prepared))
    for at, x in enumerate(prepared):
        assert together[at : at + 1].tobytes() == model.compute(x).tobytes()


def test_a_shared_model_still_answers_both_protocols(tmp_path: Path) -> None:
    model = dense(tmp_path / "m.onnx")
    wanted = InferRequest("m", [InferInput("x", [1, 8], "FP32", [1.0] * 8)], "7")
    wanted.outputs = [RequestedOutput("y")]
    answer: Any = model.predict(wanted)
    (output,) = answer.outputs
    assert (output.name, output.datatype, output.shape) == ("y", "FP32", [1, 3])
    got = model.predict_v1({"instances": [[1.0] * 8]}, {})
    assert got == {"predictions": output.data.tolist()}
    empty = model.prepare(InferRequest("m", [InferInput("x", [0, 8], "FP32", [])]))
    assert model.batch_key(empty) is None
    assert model.compute(empty).shape == (0, 3)


@pytest.mark.parametrize(
    ("op", "shape", "out"),
    [
        (helper.make_node("Softmax", ["x"], ["y"], axis=0), ["n", 3], ["n", 3]),
        (helper.make_node("LpNormalization", ["x"], ["y"], axis=0), ["n", 3], ["n", 3]),
        (helper.make_node("Identity", ["x"], ["y"]), ["n", "m"], ["n", "m"]),
        (helper.make_node("Identity", ["x"], ["y"]), [1, 3], [1, 3]),
        (helper.make_node("Transpose", ["x"], ["y"]), ["n", 3], [3, "n"]),
    ],
)
def test_rows_that_see_each_other_get_calls_of_their_own(
    tmp_path: Path, op: Any, shape: list[Any], out: list[Any]
) -> None:
    model = network(tmp_path / "m.onnx", [op], shape, out)
    assert not model.batchable
    assert model.only_output is None


def test_several_threads_are_not_trusted_with_the_order_of_sums(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    dense(path)
    model = OnnxModel("m", path, threads=2)
    model.load()
    assert not model.batchable


def other_order(x: Any) -> Any:
    """A kernel that adds up the other way round for more than 16 rows."""
    total = np.zeros(len(x), np.float32)
    columns = range(x.shape[1])
    for column in columns if len(x) <= 16 else reversed(columns):
        total += x[:, column]
    return total


def refuses(x: Any) -> Any:
    if len(x) == 33:
        raise ValueError("not 33")
    return x


@pytest.mark.parametrize(
    ("run", "independent"),
    [
        (lambda x: x * 2, True),
        (other_order, False),
        (refuses, False),
        (lambda x: x[:1], False),
        (lambda x: x - x.mean(axis=0), False),
        (lambda x: np.sort(x, axis=0), False),
        (lambda x: x.astype("float64" if len(x) > 100 else "float32"), False),
    ],
)
def test_the_proof_compares_every_bit(run: Any, independent: bool) -> None:
    assert rows_are_independent(run, (12,), np.float32) is independent


def test_what_cannot_be_tried_is_not_proven() -> None:
    assert not rows_are_independent(lambda x: x, (3, 224, 224), np.float32)
    assert not rows_are_independent(lambda x: x, (3,), np.object_)
