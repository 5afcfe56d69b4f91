"""One ONNX model behind `Model`: tensors in by name, tensors out by name, computed by ONNX Runtime.

Names, datatypes and shapes come from the model file and are the metadata answer. Inputs are
checked against them first, in Triton's words, because ONNX Runtime's own errors name neither the
request's tensor nor what was expected.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelserver import tensors
from modelserver.errors import InferenceError, InvalidInput, LoadError
from modelserver.model import InferOutput, InferRequest, InferResponse, Model
from modelserver.repository import one_model_file

EXTENSIONS = (".onnx",)

# ONNX Runtime's type names -> Open Inference Protocol datatypes.
DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxModel(Model):
    """An `.onnx` file.

    Args:
        name: Model name in paths.
        path: The file, or the folder with no other `.onnx` file; external tensor data lies beside.
        threads: Threads inside one operator.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, name: str, path: Path, *, threads: int = 1) -> None:
        super().__init__(name)
        self.path = path
        self.threads = threads
        self._session: Any = None
        self._inputs: dict[str, tuple[str, list[int]]] = {}
        self._outputs: dict[str, tuple[str, list[int]]] = {}

    def load(self) -> bool:
        """Open the session, on a GPU where ONNX Runtime has a provider for one.

        Raises:
            LoadError: No model file, several, or one that ONNX Runtime cannot load.
        """
        import onnxruntime

        path = one_model_file(self.path, EXTENSIONS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        have = onnxruntime.get_available_providers()
        gpu = [p for p in ("CUDAExecutionProvider", "ROCMExecutionProvider") if p in have]
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[*gpu, "CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no public base class
            raise LoadError(f"{path.name} is not a model ONNX Runtime can load: {error}") from error
        self._inputs = {i.name: _tensor(i) for i in self._session.get_inputs()}
        self._outputs = {
            o.name: _tensor(o) for o in self._session.get_outputs() if o.type in DATATYPES
        }
        self.ready = True
        return True

    def unload(self) -> None:
        """Close the session."""
        super().unload()
        self._session = None

    def input_types(self) -> list[dict[str, Any]]:
        """Return the model's inputs; a dynamic dimension is -1."""
        return [{"name": n, "datatype": d, "shape": s} for n, (d, s) in self._inputs.items()]

    def output_types(self) -> list[dict[str, Any]]:
        """Return the model's outputs; a dynamic dimension is -1."""
        return [{"name": n, "datatype": d, "shape": s} for n, (d, s) in self._outputs.items()]

    def predict(self, request: InferRequest) -> InferResponse:
        """Answer a V2 request; only the requested outputs are computed."""
        feed = {}
        for tensor in request.inputs:
            wanted = self._inputs.get(tensor.name)
            if wanted is None:
                raise InvalidInput(
                    f"unexpected inference input '{tensor.name}' for model '{self.name}'; "
                    f"it takes {', '.join(self._inputs)}"
                )
            if tensor.datatype != wanted[0]:
                raise InvalidInput(
                    f"inference input '{tensor.name}' data-type is '{tensor.datatype}', "
                    f"but model '{self.name}' expects '{wanted[0]}'"
                )
            feed[tensor.name] = self._shaped(tensor.name, tensor.as_numpy())
        names = [o.name for o in request.outputs or ()]
        for name in names:
            if name not in self._outputs:
                raise InvalidInput(f"Unexpected inference output '{name}' for model '{self.name}'")
        names = list(dict.fromkeys(names)) or list(self._outputs)
        arrays = self._run(names, feed)
        outputs = [
            InferOutput(name, array.shape, self._outputs[name][0], array)
            for name, array in zip(names, arrays, strict=True)
        ]
        return InferResponse(self.name, outputs, id=request.id)

    def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any]:
        """Answer a V1 request as TensorFlow Serving does: rows under `instances`, columns under
        `inputs`; one output alone is a list of rows, several are an object per row.
        """
        if not isinstance(payload, dict):
            raise InvalidInput("the request body must be a JSON object")
        feed = self._feed_v1(payload)
        names = list(self._outputs)
        arrays = [a.tolist() for a in self._run(names, feed)]
        if len(names) == 1:
            return {"predictions": arrays[0]}
        if "inputs" in payload:
            return {"predictions": dict(zip(names, arrays, strict=True))}
        return {
            "predictions": [dict(zip(names, row, strict=True)) for row in zip(*arrays, strict=True)]
        }

    def _feed_v1(self, payload: dict[str, Any]) -> dict[str, Any]:
        columns = payload.get("inputs")
        if columns is None:
            rows = payload.get("instances")
            if not isinstance(rows, list) or not rows:
                raise InvalidInput('"instances" must be a list with at least one row')
            if isinstance(rows[0], dict):
                missing = [n for n in self._inputs if any(n not in row for row in rows)]
                if missing:
                    raise InvalidInput(f"every row must hold {', '.join(missing)}")
                columns = {n: [row[n] for row in rows] for n in self._inputs}
            else:
                columns = rows
        if not isinstance(columns, dict):
            if len(self._inputs) != 1:
                names = ", ".join(self._inputs)
                raise InvalidInput(f"model '{self.name}' takes several inputs; name them: {names}")
            columns = {next(iter(self._inputs)): columns}
        unknown = [n for n in columns if n not in self._inputs]
        if unknown:
            raise InvalidInput(
                f"unexpected inference input '{unknown[0]}' for model '{self.name}'; "
                f"it takes {', '.join(self._inputs)}"
            )
        return {
            n: self._shaped(n, np.array(v, dtype=tensors.dtype_of(self._inputs[n][0])))
            for n, v in columns.items()
        }

    def _shaped(self, name: str, array: Any) -> Any:
        shape = self._inputs[name][1]
        fits = len(shape) == array.ndim and all(
            want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise InvalidInput(
                f"unexpected shape for input '{name}' for model '{self.name}'. "
                f"Expected {_text(shape)}, got {_text(array.shape)}"
            )
        return array

    def _run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        missing = [n for n in self._inputs if n not in feed]
        if missing:
            raise InvalidInput(
                f"expected {len(self._inputs)} inputs but got {len(feed)} inputs for model "
                f"'{self.name}'; missing: {', '.join(missing)}"
            )
        try:
            arrays: list[Any] = self._session.run(names, feed)
        except Exception as error:  # onnxruntime's errors share no public base class
            raise InferenceError(str(error)) from error
        return arrays


def _tensor(node: Any) -> tuple[str, list[int]]:
    """Return (datatype, shape) of a session's input or output node."""
    datatype = DATATYPES.get(node.type, "")
    shape = [d if isinstance(d, int) and d > 0 else -1 for d in node.shape or ()]
    return datatype, shape


def _text(shape: Any) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def default_threads() -> int:
    """Return the threads that the Pod's CPU limit allows (`OMP_NUM_THREADS`), else all cores."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else os.cpu_count() or 1
