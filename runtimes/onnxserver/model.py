"""One ONNX model behind `Model`: tensors in by name, tensors out by name, computed by ONNX Runtime.

Names, datatypes and shapes come from the model file and are the metadata answer. Inputs are
checked against them first, in Triton's words, because ONNX Runtime's own errors name neither the
request's tensor nor what was expected.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modelserver import tensors
from modelserver.errors import InferenceError, InvalidInput, LoadError
from modelserver.model import InferOutput, InferRequest, InferResponse, RowModel
from modelserver.repository import one_model_file
from onnxserver.loading import DATATYPES, open_session
from onnxserver.proof import rows_are_independent

logger = logging.getLogger(__name__)

EXTENSIONS = (".onnx",)


class _Call(NamedTuple):
    """One request's tensors, the outputs it wants, and how V1 writes them."""

    names: list[str]
    feed: dict[str, Any]
    by_column: bool = False


class _Answer(NamedTuple):
    call: _Call
    arrays: list[Any]


class OnnxModel(RowModel):
    """An `.onnx` file.

    Args:
        name: Model name in paths.
        path: The file, or the folder with no other `.onnx` file; external tensor data lies beside.
        threads: Threads inside one operator.
        version: What answers say, from a Triton repository.
    """

    platform = "onnxruntime_onnx"

    def __init__(
        self, name: str, path: Path, *, threads: int = 1, version: str | None = None
    ) -> None:
        super().__init__(name)
        self.path = path
        self.threads = threads
        self.version = version
        self._session: Any = None
        self._inputs: dict[str, tuple[str, list[int]]] = {}
        self._outputs: dict[str, tuple[str, list[int]]] = {}

    def load(self) -> bool:
        """Open the session, on a GPU where ONNX Runtime has a provider for one.

        Raises:
            LoadError: No model file, several, or one that ONNX Runtime cannot load.
        """
        path = one_model_file(self.path, EXTENSIONS)
        self._session = open_session(path, self.threads)
        self._inputs = {i.name: _tensor(i) for i in self._session.get_inputs()}
        self._outputs = {
            o.name: _tensor(o) for o in self._session.get_outputs() if o.type in DATATYPES
        }
        for node in self._session.get_inputs():
            if node.type not in DATATYPES:
                raise LoadError(
                    f"{path.name}: input '{node.name}' is a {node.type}, which has no datatype in "
                    "the Open Inference Protocol; add a Cast to FP32 at the model's entry"
                )
        left_out = [
            f"{o.name} ({o.type})" for o in self._session.get_outputs() if o.type not in DATATYPES
        ]
        if not self._outputs:
            raise LoadError(
                f"{path.name}: no output has a datatype of the Open Inference Protocol: "
                f"{', '.join(left_out)}"
            )
        if left_out:
            logger.warning("model %s: outputs left out: %s", self.name, ", ".join(left_out))
        self._share()
        self.ready = True
        return True

    def _share(self) -> None:
        """Let requests share a call if that is shown to change no bit of any answer.

        Candidates have one input and one output of numbers, both with a free first dimension.
        """
        self.batchable, self.only_output = False, None
        if len(self._inputs) != 1 or len(self._outputs) != 1 or self.threads != 1:
            return
        ((source, (datatype, shape)),) = self._inputs.items()
        ((target, (out_type, out_shape)),) = self._outputs.items()
        if "BYTES" in (datatype, out_type) or shape[:1] != [-1] or out_shape[:1] != [-1]:
            return
        session, row = self._session, tuple(shape[1:])

        def run(rows: Any) -> Any:
            return session.run([target], {source: rows})[0]

        if -1 not in row and rows_are_independent(run, row, tensors.dtype_of(datatype)):
            self.batchable = True
            if self.version is None:
                self.only_output = target

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

    def prepare(self, request: InferRequest) -> Any:
        """Return the request's tensors, checked; for a model that shares calls its only array.

        Raises:
            InvalidInput: Unknown, repeated or missing inputs, another datatype or shape.
        """
        feed: dict[str, Any] = {}
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
            if tensor.name in feed:
                raise InvalidInput(f"input '{tensor.name}' is given twice")
            try:
                array = tensor.as_numpy()
            except (ValueError, TypeError, OverflowError, struct.error) as error:
                raise InvalidInput(f"input '{tensor.name}': {error}") from error
            feed[tensor.name] = self._shaped(tensor.name, array)
        names = [o.name for o in request.outputs or ()]
        for name in names:
            if name not in self._outputs:
                raise InvalidInput(f"Unexpected inference output '{name}' for model '{self.name}'")
        return self._prepared(_Call(list(dict.fromkeys(names)) or list(self._outputs), feed))

    def prepare_v1(self, payload: Any, headers: Mapping[str, str]) -> Any:
        """Return a V1 request's tensors, as TensorFlow Serving takes them: rows under `instances`,
        columns under `inputs`.

        Raises:
            InvalidInput: The body is something else, or does not fit.
        """
        if not isinstance(payload, dict):
            raise InvalidInput("the request body must be a JSON object")
        feed = self._feed_v1(payload)
        return self._prepared(_Call(list(self._outputs), feed, "inputs" in payload))

    def _prepared(self, call: _Call) -> Any:
        missing = [n for n in self._inputs if n not in call.feed]
        if missing:
            raise InvalidInput(
                f"expected {len(self._inputs)} inputs but got {len(call.feed)} inputs for model "
                f"'{self.name}'; missing: {', '.join(missing)}"
            )
        return next(iter(call.feed.values())) if self.batchable else call

    def compute(self, x: Any) -> Any:
        """Run the session; only the requested outputs are computed."""
        call = (
            x if isinstance(x, _Call) else _Call(list(self._outputs), {next(iter(self._inputs)): x})
        )
        try:
            arrays: list[Any] = self._session.run(call.names, call.feed)
        except Exception as error:  # onnxruntime's errors share no public base class
            raise InferenceError(str(error)) from error
        return _Answer(call, arrays) if call is x else arrays[0]

    def batch_key(self, x: Any) -> Hashable | None:
        """Return what shared calls have in common; empty requests stay alone."""
        return None if isinstance(x, _Call) or not len(x) else (x.dtype.num, x.shape[1:])

    def respond(self, request: InferRequest, y: Any) -> InferResponse:
        """Return the V2 answer."""
        if isinstance(y, _Answer):
            named = zip(y.call.names, y.arrays, strict=True)
        else:
            named = zip(self._outputs, [y], strict=True)
        outputs = [InferOutput(n, a.shape, self._outputs[n][0], a) for n, a in named]
        return InferResponse(self.name, outputs, id=request.id, model_version=self.version)

    def respond_v1(self, y: Any) -> dict[str, Any]:
        """Return the V1 answer: one output alone is a list of rows, several are an object per row,
        or of columns where the request held columns.
        """
        if not isinstance(y, _Answer):
            return {"predictions": y.tolist()}
        names, arrays = y.call.names, [a.tolist() for a in y.arrays]
        if len(names) == 1:
            return {"predictions": arrays[0]}
        if y.call.by_column:
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
        return {n: self._shaped(n, self._array_v1(n, v)) for n, v in columns.items()}

    def _array_v1(self, name: str, values: Any) -> Any:
        """Return JSON values as the input's array; what would lose something is refused."""
        datatype = self._inputs[name][0]
        dtype = tensors.dtype_of(datatype)
        try:
            if dtype.kind == "O":
                array = np.array(values, dtype=object)
                if any(not isinstance(item, str) for item in array.ravel()):
                    raise ValueError("the values must be strings")
                return array
            given = np.array(values)
            if given.size and given.dtype.kind not in "iufb":
                raise ValueError("the values must be numbers")
            array = given.astype(dtype)
            if dtype.kind in "iub" and given.size and not np.array_equal(array, given):
                raise ValueError(f"the values do not fit {datatype}")
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidInput(f"input '{name}': {error}") from error
        return array

    def _shaped(self, name: str, array: Any) -> Any:
        shape = self._inputs[name][1]
        if not shape:
            # A scalar, or any rank: ONNX Runtime does not tell the two apart.
            return array
        fits = len(shape) == array.ndim and all(
            want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise InvalidInput(
                f"unexpected shape for input '{name}' for model '{self.name}'. "
                f"Expected {_text(shape)}, got {_text(array.shape)}"
            )
        return array


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
