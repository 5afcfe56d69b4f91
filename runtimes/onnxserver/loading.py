"""From an `.onnx` file to a session of ONNX Runtime, or to a sentence that says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from modelserver.errors import LoadError

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
# Where ONNX Runtime says what it was doing before it says what went wrong.
_PREAMBLE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|^Load model from .*? failed:"
    r"|^\S*\.(?:cc|h):\d+ .*?(?=ONNX Runtime only|Unsupported model IR)",
    re.DOTALL,
)


def open_session(path: Path, threads: int) -> Any:
    """Return a session, on a GPU where ONNX Runtime has a provider for one.

    Args:
        threads: Threads inside one operator.

    Raises:
        LoadError: ONNX Runtime cannot load the file; the text says what to do about it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    have = onnxruntime.get_available_providers()
    gpu = [p for p in ("CUDAExecutionProvider", "ROCMExecutionProvider") if p in have]
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[*gpu, "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no public base class
        reason = explain(path, str(error), onnxruntime.__version__)
        raise LoadError(f"{path.name} is not a model ONNX Runtime can load: {reason}") from error


def explain(path: Path, error: str, version: str) -> str:
    """Return what is wrong with a file that ONNX Runtime refused, and what helps."""
    text = error.strip()
    while match := _PREAMBLE.match(text):
        text = text[match.end() :].strip()
    opset = re.search(r"Opset (\d+) is under development.*?support for domain (\S+) is till", text)
    limit = re.search(r"is till opset (\d+)", text)
    if opset and limit:
        return (
            f"its opset {opset.group(1)} of {opset.group(2)} is newer than onnxruntime {version} "
            f"knows (up to {limit.group(1)}); export it with opset_version={limit.group(1)} or "
            "install a newer onnxruntime"
        )
    if "Unsupported model IR version" in text:
        return f"{text}; save it with an older onnx package or install a newer onnxruntime"
    missing = re.search(r'External data path does not exist: "?([^"\n]+)', text)
    if missing:
        return (
            f"its external data file {Path(missing.group(1)).name} is not beside it; the model "
            "and its data files belong into one folder under the storageUri"
        )
    if "Protobuf parsing failed" in text or "No graph was found" in text:
        return f"{text.rstrip('.')}: {_damage(path)}"
    if "No opset import for domain" in text or "is not a registered function/op" in text:
        return f"{text.splitlines()[0]}; it uses operators that this ONNX Runtime does not have"
    return text


def _damage(path: Path) -> str:
    size = path.stat().st_size
    if size == 0:
        return "the file is empty"
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer, not the model; run git lfs pull"
    if start[:1] == b"\x08":  # field 1 of ModelProto, ir_version
        return f"the file is truncated or damaged ({size} bytes)"
    return f"the file is no ONNX model (it begins with {start[:8]!r})"
