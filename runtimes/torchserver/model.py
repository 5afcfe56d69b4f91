"""One PyTorch module behind `Model`: tensors in by position or name, out by position or key.

Output names are `output-0`, `output-1`, ... or the keys of a dict that the module returns; a Triton
configuration may rename both sides.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelserver.errors import InferenceError, InvalidInput
from modelserver.model import InferOutput, InferRequest, InferResponse, Model
from modelserver.repository import one_model_file
from torchserver.loading import EXTENSIONS, load_module


class TorchModel(Model):
    """A module loaded from `path`.

    Args:
        name: Model name in paths.
        path: TorchScript, torch.export or state dict file, or the folder with no other.
        class_file / class_name: See `loading.load_module`.
        inputs / outputs: Names in order, from a Triton configuration; empty: as the module has it.
        version: What answers say, from a Triton repository.
    """

    platform = "pytorch"

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        class_file: Path | None = None,
        class_name: str = "",
        inputs: tuple[dict[str, Any], ...] = (),
        outputs: tuple[dict[str, Any], ...] = (),
        version: str | None = None,
    ) -> None:
        super().__init__(name)
        self.path = path
        self._class_file = class_file
        self._class_name = class_name
        self._inputs = inputs
        self._outputs = outputs
        self._version = version
        self._module: Any = None
        self._parameters: tuple[str, ...] = ()
        self._device = "cpu"
        self._floating = "float32"
        # What whole JSON numbers become; learnt from the first call.
        self._whole = "float32"

    def load(self) -> bool:
        """Load the module onto the GPU that the Pod was given, else the CPU.

        Raises:
            LoadError: No model file, several, or one that cannot be loaded.
        """
        import torch

        use_allowed_threads()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        path = one_model_file(self.path, EXTENSIONS)
        self._module = load_module(path, self._device, self._class_file, self._class_name)
        self._parameters = _forward_parameters(self._module)
        first = next((p for p in _parameters(self._module) if p.is_floating_point()), None)
        if first is not None and first.dtype != torch.bfloat16:
            self._floating = str(first.dtype).removeprefix("torch.")
        self._whole = self._floating
        self.ready = True
        return True

    def unload(self) -> None:
        """Let go of the module and of the GPU memory it held."""
        super().unload()
        self._module = None
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def input_types(self) -> list[dict[str, Any]]:
        """Return the configured inputs; a module alone does not tell datatypes and shapes."""
        return list(self._inputs)

    def output_types(self) -> list[dict[str, Any]]:
        """Return the configured outputs."""
        return list(self._outputs)

    def predict(self, request: InferRequest) -> InferResponse:
        """Answer a V2 request.

        Inputs whose names are all parameters of `forward` (or of the configuration) go by name,
        others in the order given.
        """
        tensors = {}
        for tensor in request.inputs:
            if tensor.datatype == "BYTES":
                raise InvalidInput(f"input '{tensor.name}': a PyTorch model takes no BYTES")
            if tensor.name in tensors:
                raise InvalidInput(f"input '{tensor.name}' is given twice")
            try:
                tensors[tensor.name] = tensor.as_numpy()
            except (ValueError, TypeError, OverflowError) as error:
                raise InvalidInput(f"input '{tensor.name}': {error}") from error
        order = [i["name"] for i in self._inputs]
        if order:
            unknown = [n for n in tensors if n not in order]
            if unknown or len(tensors) != len(order):
                raise InvalidInput(
                    f"model '{self.name}' takes the inputs {', '.join(order)}; "
                    f"got {', '.join(tensors) or 'none'}"
                )
            result = self._call([tensors[n] for n in order], {})
        elif tensors and set(tensors) <= set(self._parameters):
            result = self._by_name(tensors)
        else:
            result = self._call(list(tensors.values()), {})
        named = self._named(result)
        outputs = [InferOutput.of(n, a) for n, a in named.items()]
        return InferResponse(self.name, outputs, id=request.id, model_version=self._version)

    def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any]:
        """Answer a V1 request: `instances` is the first argument, or objects with one value an
        argument; `inputs` may hold whole arguments by name. Numbers come in the module's dtype.
        """
        if not isinstance(payload, dict):
            raise InvalidInput("the request body must be a JSON object")
        rows = payload["inputs"] if "inputs" in payload else payload.get("instances")
        columns: dict[str, Any] = {}
        if isinstance(rows, dict) and "inputs" in payload:
            columns = rows
        elif not isinstance(rows, list):
            raise InvalidInput('Expected "instances" to be a list')
        elif rows and all(isinstance(row, dict) for row in rows):
            names = list(rows[0])
            if any(row.keys() != rows[0].keys() for row in rows):
                raise InvalidInput(f"every row must hold {', '.join(names)}")
            columns = {n: [row[n] for row in rows] for n in names}
        if columns:
            result = self._numbers({n: _numeric(n, v) for n, v in columns.items()})
        else:
            result = self._numbers({"": _numeric("instances", rows)})
        named = self._named(result)
        if len(named) == 1:
            return {"predictions": next(iter(named.values())).tolist()}
        return {"predictions": {n: a.tolist() for n, a in named.items()}}

    def _numbers(self, arrays: dict[str, Any]) -> Any:
        """Call with JSON numbers: in the module's dtype, or whole ones as they are (class ids,
        tokens) where the module wants them so.
        """
        unknown = [n for n in arrays if n and self._parameters and n not in self._parameters]
        if unknown:
            raise InvalidInput(
                f"model '{self.name}' takes {', '.join(self._parameters)}; got {unknown[0]}"
            )

        def call(whole: str) -> Any:
            made = {
                n: a.astype(whole if a.dtype.kind in "iub" else self._floating)
                for n, a in arrays.items()
            }
            return self._call([made[""]], {}) if "" in made else self._by_name(made)

        if all(a.dtype.kind == "f" for a in arrays.values()):
            return call(self._floating)
        try:
            return call(self._whole)
        except InferenceError:
            other = "int64" if self._whole != "int64" else self._floating
            result = call(other)
            self._whole = other
            return result

    def _by_name(self, arrays: dict[str, Any]) -> Any:
        first = self._parameters[: len(arrays)]
        if set(arrays) == set(first):
            # By position even so: an exported program knows no keywords but those it was made with.
            return self._call([arrays[n] for n in first], {})
        return self._call([], arrays)

    def _call(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        import torch

        def tensor(array: Any) -> Any:
            # A request's buffer is read-only; torch warns unless it gets memory of its own.
            return torch.from_numpy(np.array(array, copy=True)).to(self._device)

        try:
            with torch.inference_mode():
                return self._module(
                    *[tensor(a) for a in args], **{n: tensor(a) for n, a in kwargs.items()}
                )
        except Exception as error:  # a module's forward may raise anything
            raise InferenceError(str(error)) from error

    def _named(self, result: Any) -> dict[str, Any]:
        if isinstance(result, Mapping):
            items = [(str(n), v) for n, v in result.items()]
        elif isinstance(result, (list, tuple)):
            items = [(f"output-{i}", v) for i, v in enumerate(result)]
        else:
            items = [("output-0", result)]
        names = [o["name"] for o in self._outputs]
        if names and not isinstance(result, Mapping):
            items = [(n, v) for n, (_, v) in zip(names, items, strict=False)]
        out = {}
        for name, value in items:
            if not hasattr(value, "detach"):
                raise InferenceError(
                    f"the model's output '{name}' is a {type(value).__name__}, not a tensor"
                )
            value = value.detach().cpu()
            out[name] = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        return out


def _numeric(name: str, values: Any) -> Any:
    try:
        array = np.array(values)
    except ValueError as error:
        raise InvalidInput(f'"{name}" is ragged: {error}') from error
    if array.dtype.kind not in "iufb":
        raise InvalidInput(f'"{name}" must hold numbers')
    return array


def use_allowed_threads() -> None:
    """Let PyTorch use the threads that the Pod's CPU limit allows (`OMP_NUM_THREADS`), else one a
    core; a replica forked from a zygote would keep the zygote's single one.
    """
    import torch

    text = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(int(text) if text.isdigit() and int(text) > 0 else _cores())


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return os.cpu_count() or 1


def _parameters(module: Any) -> Any:
    try:
        return list(module.parameters())
    except AttributeError:
        return []


def _forward_parameters(module: Any) -> tuple[str, ...]:
    """Return the names of `forward`'s arguments, as far as the module tells."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        return tuple(a.name for a in schema.arguments if a.name != "self")
    try:
        found = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD)
