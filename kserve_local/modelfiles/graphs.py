"""ONNX models and TensorFlow SavedModels: the inputs that their protobuf files declare.

Source: onnx.proto (ModelProto, GraphProto, ValueInfoProto, TypeProto), TensorFlow's
saved_model.proto and meta_graph.proto (SignatureDef, TensorInfo), types.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kserve_local.modelfiles.protobuf import Damaged, Message

_ONNX = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64",
    8: "BYTES", 9: "BOOL", 10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64",
}  # fmt: skip
_TENSORFLOW = {
    1: "FP32", 2: "FP64", 3: "INT32", 4: "UINT8", 5: "INT16", 6: "INT8", 7: "BYTES", 9: "INT64",
    10: "BOOL", 17: "UINT16", 19: "FP16", 22: "UINT32", 23: "UINT64",
}  # fmt: skip
SAVED_MODEL = "saved_model.pb"
_SERVING = "serving_default"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input in the Open Inference Protocol's words; -1 is a dimension that is open."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def onnx_inputs(path: Path) -> tuple[Tensor, ...] | None:
    """Return the inputs of an ONNX model, None if the file is none."""
    try:
        with path.open("rb") as file:
            model = Message.of(file)
            version, graph = model.number(1), model.first(7)
            if not version or version > 100 or graph is None:
                return None
            # Up to IR version 3 weights are inputs, too.
            weights = {w.text(8) for w in graph.messages(5)} if version < 4 else set()
            found = [_onnx_tensor(value) for value in graph.messages(11)]
            return tuple(t for t in found if t.name not in weights)
    except Damaged:
        return None


def _onnx_tensor(value: Message) -> Tensor:
    kind = value.first(2)
    tensor = kind.first(1) if kind is not None else None
    if tensor is None:
        return Tensor(value.text(1), "", ())
    shape = tensor.first(2)
    dimensions = [d.number(1) for d in shape.messages(1)] if shape is not None else []
    sizes = tuple(-1 if d is None else d for d in dimensions)
    return Tensor(value.text(1), _ONNX.get(tensor.number(1) or 0, ""), sizes)


def onnx_data_files(path: Path) -> tuple[str, ...]:
    """Return the files, relative to the model's, that hold weights of an ONNX model."""
    found: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            graph = Message.of(file).first(7)
            for weight in graph.messages(5) if graph is not None else ():
                entries = {e.text(1): e.text(2) for e in weight.messages(13)}
                if entries.get("location"):
                    found[entries["location"]] = None
    except Damaged:
        return ()
    return tuple(found)


def saved_model_inputs(folder: Path) -> tuple[Tensor, ...]:
    """Return the inputs of a SavedModel's serving signature, empty where it names none."""
    try:
        with (folder / SAVED_MODEL).open("rb") as file:
            signatures: dict[str, Message] = {}
            for graph in Message.of(file).messages(2):
                signatures |= _entries(graph, 5)
            signature = signatures.get(_SERVING)
            if signature is None:
                return ()
            return tuple(_info(n, t) for n, t in sorted(_entries(signature, 1).items()))
    except (Damaged, OSError):
        return ()


def _entries(message: Message, number: int) -> Mapping[str, Message]:
    """Return a map field."""
    found = {}
    for entry in message.messages(number):
        value = entry.first(2)
        if value is not None:
            found[entry.text(1)] = value
    return found


def _info(name: str, info: Message) -> Tensor:
    shape = info.first(3)
    sizes = []
    for dimension in shape.messages(2) if shape is not None else ():
        size = dimension.number(1) or 0
        sizes.append(-1 if size >= 1 << 63 else size)
    return Tensor(name, _TENSORFLOW.get(info.number(2) or 0, ""), tuple(sizes))
