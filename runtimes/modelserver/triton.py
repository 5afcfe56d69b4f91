"""Triton Inference Server's model repository on disk: folders, versions and `config.pbtxt`.

    <repository>/<model>/config.pbtxt          optional
    <repository>/<model>/<version>/model.onnx  the highest version number is served

Reads what a single-framework server needs of it; nothing is imported from Triton. Source: Triton
documentation, "Model Repository" and "Model Configuration".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelserver.errors import LoadError

# config.pbtxt data types -> Open Inference Protocol datatypes.
DATATYPES = {
    "TYPE_BOOL": "BOOL",
    "TYPE_UINT8": "UINT8",
    "TYPE_UINT16": "UINT16",
    "TYPE_UINT32": "UINT32",
    "TYPE_UINT64": "UINT64",
    "TYPE_INT8": "INT8",
    "TYPE_INT16": "INT16",
    "TYPE_INT32": "INT32",
    "TYPE_INT64": "INT64",
    "TYPE_FP16": "FP16",
    "TYPE_FP32": "FP32",
    "TYPE_FP64": "FP64",
    "TYPE_STRING": "BYTES",
}

_TOKEN = re.compile(r'\s+|#[^\n]*|("(?:\\.|[^"\\])*")|([A-Za-z_][\w./-]*)|([-+]?[\d.][\w.+-]*)|(.)')


@dataclass(frozen=True, slots=True)
class TritonModel:
    """One model of a repository.

    Args:
        path: The model file of the version served.
        inputs / outputs: Metadata entries `{"name", "datatype", "shape"}`, with the batch
            dimension; empty without a configuration.
    """

    name: str
    version: str
    path: Path
    inputs: tuple[dict[str, Any], ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()


def scan(repository: Path, files: Sequence[str], backends: Sequence[str]) -> list[TritonModel]:
    """Return the models of a repository that this server can load, by name.

    Args:
        files: Default model file names, e.g. `("model.onnx",)`.
        backends: `backend`/`platform` values of a configuration that this server stands in for.

    Raises:
        LoadError: A model folder has no usable version or file, or names another backend.
    """
    found = []
    for folder in sorted(p for p in repository.iterdir() if p.is_dir() and p.name[0] != "."):
        config = _config(folder)
        backend = str(config.get("backend") or config.get("platform") or "")
        if backend and backend not in backends:
            raise LoadError(
                f"model '{folder.name}' needs Triton's backend '{backend}'; "
                f"here: {', '.join(backends)}"
            )
        names = (
            [str(config["default_model_filename"])] if "default_model_filename" in config else []
        )
        version, path = _newest(folder, names or list(files))
        batched = int(config.get("max_batch_size", 0)) > 0
        found.append(
            TritonModel(
                name=str(config.get("name") or folder.name),
                version=version,
                path=path,
                inputs=_tensors(config, "input", batched),
                outputs=_tensors(config, "output", batched),
            )
        )
    if not found:
        raise LoadError(f"no model folder in the model repository {repository}")
    return found


def _newest(folder: Path, files: list[str]) -> tuple[str, Path]:
    versions = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    if not versions:
        raise LoadError(
            f"model '{folder.name}' has no version folder; expected {folder.name}/1/{files[0]}"
        )
    newest = versions[-1]
    for name in files:
        if (newest / name).exists():
            return newest.name, newest / name
    raise LoadError(f"model '{folder.name}' version {newest.name} has no {' or '.join(files)}")


def _tensors(config: dict[str, Any], key: str, batched: bool) -> tuple[dict[str, Any], ...]:
    entries = config.get(key, ())
    return tuple(
        {
            "name": str(e.get("name", "")),
            "datatype": DATATYPES.get(str(e.get("data_type", "")), ""),
            "shape": [*([-1] if batched else []), *map(int, _many(e.get("dims", ())))],
        }
        for e in _many(entries)
    )


def _many(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.pbtxt"
    if not path.is_file():
        return {}
    try:
        tokens = _tokens(path.read_text("utf-8"))
        return _message(tokens, end="")
    except (ValueError, UnicodeDecodeError) as error:
        raise LoadError(f"{folder.name}/config.pbtxt cannot be read: {error}") from error


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        token = match.group(1) or match.group(2) or match.group(3) or match.group(4)
        if token:
            yield token
    yield ""


def _message(tokens: Iterator[str], end: str) -> dict[str, Any]:
    """Read `key: value`, `key { ... }`, `key [ ... ]` up to `end`; repeated keys become a list."""
    out: dict[str, Any] = {}
    for token in tokens:
        if token == end:
            return out
        if token in (",", ";"):
            continue
        if not re.match(r"[A-Za-z_]", token):
            raise ValueError(f'unexpected "{token}"')
        following = next(tokens)
        if following == ":":
            following = next(tokens)
        value = _value(following, tokens)
        if token in out:
            value = [*_many(out[token]), *_many(value)]
        out[token] = value
    raise ValueError(f'"{end}" is missing')


def _value(token: str, tokens: Iterator[str]) -> Any:
    if token == "{":
        return _message(tokens, "}")
    if token == "[":
        items: list[Any] = []
        for item in tokens:
            if item == "]":
                return items
            if item != ",":
                items.append(_value(item, tokens))
        raise ValueError('"]" is missing')
    if token.startswith('"'):
        return token[1:-1].encode().decode("unicode_escape")
    if token == "":
        raise ValueError("the text ends too early")
    try:
        return int(token)
    except ValueError:
        return token
