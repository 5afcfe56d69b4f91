"""Request bodies of the right shape: zeros and empty texts for inputs that are declared. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kserve_local.modelfiles.graphs import Tensor

_WHOLE = ("INT", "UINT")
TEXT = "A text to try the model with."


def size(tensor: Tensor) -> int:
    """Return how many values a sample of an input has; open dimensions count as 1."""
    return math.prod(_shape(tensor))


def v2(inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return a V2 request of these inputs."""
    return {
        "inputs": [
            {
                "name": tensor.name,
                "shape": _shape(tensor),
                "datatype": tensor.datatype,
                "data": [_nothing(tensor.datatype)] * size(tensor),
            }
            for tensor in inputs
        ]
    }


def v1(inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return a V1 request of one instance: the first dimension is that of the instances."""
    rows = {t.name: _nested(_shape(t)[1:], _nothing(t.datatype)) for t in inputs}
    return {"instances": [next(iter(rows.values())) if len(rows) == 1 else rows]}


def table(columns: int) -> dict[str, Any]:
    """Return a V1 request of one row."""
    return {"instances": [[0.0] * columns]}


def texts(text: str = TEXT) -> dict[str, Any]:
    """Return a V1 request of one text."""
    return {"instances": [text]}


def chat(model: str) -> dict[str, Any]:
    """Return a chat completion request of OpenAI's API."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello in one sentence."}],
        "max_tokens": 32,
    }


def _shape(tensor: Tensor) -> list[int]:
    return [max(1, n) for n in tensor.shape]


def _nothing(datatype: str) -> Any:
    if datatype == "BYTES":
        return ""
    if datatype == "BOOL":
        return False
    return 0 if datatype.startswith(_WHOLE) else 0.0


def _nested(shape: Sequence[int], value: Any) -> Any:
    if not shape:
        return value
    return [_nested(shape[1:], value) for _ in range(shape[0])]
