"""What the framework servers (scikit-learn, XGBoost, LightGBM) share: how rows get in and out.

Inputs and outputs follow KServe's `get_predict_input` and `get_predict_response`: V1 takes lists,
strings and tables, V2 the first tensor or, with parameter `content_type: "pd"`, a table of all;
there is one output, `output-0`. A server that stands in for MLServer calls it `predict` and writes
it as MLServer's NumPy codec does: a vector becomes a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelserver.errors import DataPlaneError, InferenceError
from modelserver.model import InferOutput, InferRequest, InferResponse, RowModel

_FLOATS: dict[str, np.dtype[Any]] = {"FP32": np.dtype(np.float32), "FP64": np.dtype(np.float64)}


class FrameworkModel(RowModel):
    """A model read from files in a folder, predicting on rows; its one output is `output-0`.

    Args:
        folder: Holds exactly one model file; or the file itself.
    """

    only_output: str | None = "output-0"

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.folder = folder
        if self.answers == "mlserver":
            self.only_output = None

    def columns(self) -> list[str] | None:
        """Return the columns to pick from tables, in order; None: as they come."""
        return None

    def call(self, x: Any) -> Any:
        """Predict with the framework; errors may be anything."""
        raise NotImplementedError

    def prepare(self, request: InferRequest) -> Any:
        try:
            return v2_input(request)
        except Exception as error:
            raise InferenceError(str(error)) from error

    def prepare_v1(self, payload: Any, headers: Mapping[str, str]) -> Any:
        try:
            return v1_input(payload, self.columns())
        except Exception as error:
            raise InferenceError(str(error)) from error

    def compute(self, x: Any) -> Any:
        try:
            return self.call(x)
        except DataPlaneError:
            raise
        except Exception as error:
            raise InferenceError(str(error)) from error

    def respond(self, request: InferRequest, y: Any) -> InferResponse:
        if not isinstance(y, np.ndarray):
            y = np.asarray(y)
        if self.answers == "mlserver":
            column = y.reshape(-1, 1) if y.ndim == 1 else y
            output = InferOutput.of("predict", column, {"content_type": "np"})
            return InferResponse(self.name, [output], request.id)
        return InferResponse(self.name, [InferOutput.of("output-0", y)], request.id)

    def respond_v1(self, y: Any) -> dict[str, Any]:
        return {"predictions": y.tolist() if hasattr(y, "tolist") else y}


def v1_input(payload: Any, columns: list[str] | None) -> Any:
    """Return what a V1 payload means to a framework: an array, a list of strings or a table.

    Raises:
        KeyError: Neither `inputs` nor `instances`.
        ValueError: A table of scalars, and whatever numpy and pandas say.
    """
    if not isinstance(payload, dict):
        return None
    instances = payload["inputs"] if "inputs" in payload else payload["instances"]
    if len(instances) == 0:
        return np.array(instances)
    first = instances[0]
    if isinstance(first, str):
        return instances
    if isinstance(first, dict) or (
        isinstance(first, list) and len(first) != 0 and isinstance(first[0], dict)
    ):
        import pandas as pd  # only tables need it

        return pd.concat([pd.DataFrame(item, columns=columns) for item in instances], axis=0)
    return np.array(instances)


def v2_input(request: InferRequest) -> Any:
    """Return the first tensor as an array (text: a flat list), or with `content_type: "pd"` all as
    a table.

    Raises:
        IndexError: The request has no inputs.
        InvalidInput, ValueError, ...: The data do not fit, see `InferInput.as_numpy`.
    """
    parameters = request.parameters
    if parameters and str(parameters.get("content_type", "")).lower() == "pd":
        import pandas as pd  # only tables need it

        return pd.DataFrame({tensor.name: tensor.as_numpy() for tensor in request.inputs})
    tensor = request.inputs[0]
    data = tensor.data
    if tensor.datatype in _FLOATS and data is not None:
        # What `as_numpy` does, without its cases.
        return np.array(data, _FLOATS[tensor.datatype]).reshape(tensor.shape)
    if tensor.datatype == "BYTES" and data and isinstance(data[0], str):
        return data
    x = tensor.as_numpy()
    if tensor.datatype == "BYTES" and x.size and tensor.raw is not None and not request.from_grpc:
        return x.ravel().tolist()
    return x
