"""onnxserver and torchserver on small models made here: both protocols, metadata, bad input."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch

from tests.integration.project import wait_until


class Server:
    """A model server process on a free port."""

    def __init__(self, *args: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *args, f"--http_port={self.port}"],
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        wait_until(lambda: self.process.poll() is not None or self._answers(), timeout=90)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = Request(url, data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    def close(self) -> str:
        self.process.terminate()
        return self.process.communicate(timeout=30)[1]


def tensor(name: str, shape: list[int], datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def save_onnx(path: Path) -> None:
    """Write a model with two inputs and two outputs: sum and product of float vectors."""
    from onnx import TensorProto, helper, save

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])

    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Mul", ["a", "b"], ["product"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("a"), value("b")], [value("sum"), value("product")]
    )
    opset = helper.make_opsetid("", 17)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))


@pytest.fixture(scope="module")
def onnx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("repository")
    save_onnx(folder / "calc" / "1" / "model.onnx")
    server = Server("onnxserver", f"--model_repository={folder}", "--layout=triton")
    yield server
    server.close()


TWO = [tensor("a", [2], "FP32", [1, 2]), tensor("b", [2], "FP32", [3, 4])]


def test_onnx_metadata_comes_from_the_model(onnx_server: Server) -> None:
    status, got = onnx_server.call("/v2/models/calc")
    assert status == 200
    assert got["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1]}


def test_onnx_computes_only_what_is_asked_for(onnx_server: Server) -> None:
    body = {"inputs": TWO, "outputs": [{"name": "product"}]}
    status, got = onnx_server.call("/v2/models/calc/infer", body)
    assert status == 200
    assert [(o["name"], o["data"]) for o in got["outputs"]] == [("product", [3.0, 8.0])]


def test_onnx_v1_rows_are_objects(onnx_server: Server) -> None:
    body = {"instances": [{"a": 1, "b": 3}, {"a": 2, "b": 4}]}
    assert onnx_server.call("/v1/models/calc:predict", body) == (
        200,
        {"predictions": [{"sum": 4.0, "product": 3.0}, {"sum": 6.0, "product": 8.0}]},
    )


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([tensor("x", [1], "FP32", [1])], "unexpected inference input 'x' for model 'calc'"),
        ([tensor("a", [1], "FP64", [1])], "data-type is 'FP64', but model 'calc' expects 'FP32'"),
        ([tensor("a", [1, 1], "FP32", [1])], "Expected [-1], got [1,1]"),
        ([tensor("a", [1], "FP32", [1])], "missing: b"),
    ],
)
def test_onnx_bad_input_says_what_is_expected(
    onnx_server: Server, inputs: list[Any], words: str
) -> None:
    status, got = onnx_server.call("/v2/models/calc/infer", {"inputs": inputs})
    assert status == 400
    assert words in got["error"]


def test_a_file_that_is_no_onnx_model_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    server = Server("onnxserver", f"--model_dir={tmp_path}")
    assert server.process.returncode == 1
    assert "is not a model ONNX Runtime can load" in server.close()


NETWORK = """
import torch

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x, offset=None):
        y = x * self.factor
        return y if offset is None else (y + offset, y)
"""


def save_state(folder: Path) -> None:
    (folder / "network.py").write_text(NETWORK)
    torch.save({"factor": torch.tensor(3.0)}, folder / "model.pt")


@pytest.fixture(scope="module")
def torch_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("state")
    save_state(folder)
    server = Server("torchserver", "--model_name=scale", f"--model_dir={folder}")
    yield server
    server.close()


def test_a_state_dict_is_served_with_its_class_file(torch_server: Server) -> None:
    body = {"instances": [[1.0, 2.0]]}
    got = torch_server.call("/v1/models/scale:predict", body)
    assert got == (200, {"predictions": [[3.0, 6.0]]})


def test_torch_inputs_go_by_name_where_names_fit(torch_server: Server) -> None:
    inputs = [tensor("offset", [1], "FP32", [1]), tensor("x", [1], "FP32", [2])]
    status, got = torch_server.call("/v2/models/scale/infer", {"inputs": inputs})
    assert status == 200
    assert [(o["name"], o["data"]) for o in got["outputs"]] == [
        ("output-0", [7.0]),
        ("output-1", [6.0]),
    ]


def test_torch_takes_no_text(torch_server: Server) -> None:
    body = {"inputs": [tensor("x", [1], "BYTES", ["a"])]}
    status, got = torch_server.call("/v2/models/scale/infer", body)
    assert (status, got) == (400, {"error": "input 'x': a PyTorch model takes no BYTES"})


def test_an_exported_program_is_served_through_tritons_layout(tmp_path: Path) -> None:
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    exported = torch.export.export(torch.nn.Flatten(), (torch.ones(2, 2, 2),))
    torch.export.save(exported, folder / "model.pt2")
    config = 'input { name: "IN" data_type: TYPE_FP32 dims: [2, 2] }\n'
    config += 'output { name: "OUT" data_type: TYPE_FP32 dims: [4] }\nmax_batch_size: 2\n'
    (tmp_path / "net" / "config.pbtxt").write_text(config)
    server = Server("torchserver", f"--model_repository={tmp_path}")
    try:
        body = {"inputs": [tensor("IN", [2, 2, 2], "FP32", list(range(8)))]}
        status, got = server.call("/v2/models/net/infer", body)
        assert status == 200
        assert (got["outputs"][0]["name"], got["outputs"][0]["shape"]) == ("OUT", [2, 4])
    finally:
        server.close()


def test_weights_without_a_class_say_what_is_missing(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "model.pt")
    server = Server("torchserver", f"--model_dir={tmp_path}")
    assert server.process.returncode == 1
    assert "holds only weights; the folder needs exactly one .py file" in server.close()
