"""How a model of each format is served: its predictor, what a cluster needs, a request. Pure.

Where KServe's server does not take the file as it lies, it is placed as that wants it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kserve_local.modelfiles import sample_requests
from kserve_local.modelfiles.graphs import Tensor
from kserve_local.modelfiles.recognise import Recognised

# Versions that a runtime of KServe 0.20 says it takes; others are left out, which fits any runtime.
_VERSIONS = {"sklearn": "1", "xgboost": "2", "lightgbm": "4"}
_SCHEMA_ONLY = "A guess: the model file does not tell what requests look like."
_REPOSITORY = "model-repository"


@dataclass(slots=True)
class Starter:
    """What is to be written.

    Args:
        name: Of the InferenceService.
        files: Path below the project's folder -> text.
        links: Path below the project's folder -> the file or folder whose content belongs there.
        said: What was guessed and why, a line each.
        warnings: What will be in the way.
        not_here: Why this machine cannot serve it without a container engine, empty if it can.
    """

    name: str
    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, Path] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_here: str = ""


@dataclass(frozen=True, slots=True)
class Predictor:
    """How a model is served.

    Args:
        lines: Of YAML, the content of `predictor`.
        comments: What to change for a cluster.
        request: A sample.
        guess: What of the sample is guessed, empty if nothing.
        config: Lines for kserve-local.yaml.
    """

    lines: tuple[str, ...]
    comments: tuple[str, ...]
    request: Mapping[str, Any]
    guess: str = ""
    config: tuple[str, ...] = ()


def _uri(path: Path, folder: Path) -> str:
    """Return a storageUri that starts at the manifest."""
    if path == folder or folder in path.parents:
        return f"./{path.relative_to(folder)}"
    return str(path)


def _model(
    model: Recognised, uri: str, *, version: str = "", more: tuple[str, ...] = ()
) -> tuple[str, ...]:
    versions = (f"    version: {json.dumps(version)}",) if version else ()
    return (
        "model:",
        "  modelFormat:",
        f"    name: {model.format}",
        *versions,
        *(f"  {line}" for line in more),
        f"  storageUri: {json.dumps(uri) if re.search(r'[^A-Za-z0-9_./-]', uri) else uri}",
    )


def _mirror(starter: Starter, uri: str) -> tuple[str, ...]:
    """Return commented settings that let the cluster's YAML run here."""
    return (
        "",
        "# Once the YAML names your bucket, its content can still come from here:",
        "# storage:",
        "#   mirrors:",
        f'#     "gs://YOUR-BUCKET/{starter.name}": {uri}',
    )


_BUCKET = (
    "For a cluster: copy the model to a bucket and name that in storageUri (gs://, s3://, pvc://)."
)


def _placed(starter: Starter, folder: Path, target: str, source: Path, why: str) -> str:
    """Put a file where the server takes it; return its storageUri."""
    starter.links[target] = source
    starter.said.append(f"model    {source.name} is also at {target}: {why}")
    return f"./{target}"


def _tabular(
    model: Recognised, folder: Path, starter: Starter, extra_files: tuple[str, ...]
) -> Predictor:
    path = model.path
    suffix = path.suffix.lower()
    uri = _uri(path, folder)
    if model.format == "lightgbm" and suffix != ".bst":
        target = f"{path.stem}.bst"
        uri = _placed(starter, folder, target, path, "KServe's server takes .bst files only")
    elif model.format == "xgboost" and suffix == ".model":
        target = f"{path.stem}.{'bst' if model.kind == 'binary' else model.kind}"
        uri = _placed(
            starter, folder, target, path, "KServe's server takes .bst, .json and .ubj files"
        )
    else:
        starter.said.append(f"model    {uri} is used where it is")
    known = _VERSIONS.get(model.format, "")
    version = known if model.version.partition(".")[0] == known else ""
    if model.text:
        request, guess = sample_requests.texts(), "one text, which the model's first step reads"
    elif model.features:
        columns = f"{model.features} column{'' if model.features == 1 else 's'}"
        request, guess = sample_requests.table(model.features), f"one row of {columns} of zeros"
    else:
        request, guess = sample_requests.table(1), f"one row of one zero. {_SCHEMA_ONLY}"
    return Predictor(
        _model(model, uri, version=version), (_BUCKET,), request, guess, _mirror(starter, uri)
    )


def _onnx(
    model: Recognised, folder: Path, starter: Starter, extra_files: tuple[str, ...]
) -> Predictor:
    root = _REPOSITORY
    parts = model.path.parts
    if len(parts) > 3 and parts[-1] == "model.onnx" and parts[-2].isdecimal():
        uri = _uri(model.path.parent.parent.parent, folder)
        starter.said.append(f"model    {uri} is a model repository already, used where it is")
        if parts[-3] != starter.name:
            starter.warnings.append(
                f"Triton calls the model {parts[-3]}, as its folder: "
                f"kserve-local predict {starter.name} --model {parts[-3]}"
            )
    else:
        place = f"{root}/{starter.name}/1"
        for extra in extra_files:
            starter.links[f"{place}/{extra}"] = model.path.parent / extra
        why = "Triton, which serves ONNX on a cluster, wants NAME/VERSION/model.onnx"
        _placed(starter, folder, f"{place}/model.onnx", model.path, why)
        uri = f"./{root}"
    usable = bool(model.inputs) and all(t.datatype for t in model.inputs)
    inputs = model.inputs if usable else (Tensor("input", "FP32", (1, 1)),)
    comments = (
        "A cluster serves this by Triton, which wants a model repository: NAME/VERSION/model.onnx.",
        "Here a program of kserve-local's takes its place.",
        _BUCKET,
    )
    lines = _model(model, uri, version="1", more=("protocolVersion: v2",))
    guess = "" if usable else f"one number. {_SCHEMA_ONLY}"
    return Predictor(lines, comments, sample_requests.v2(inputs), guess, _mirror(starter, uri))


def _torch(
    model: Recognised, folder: Path, starter: Starter, extra_files: tuple[str, ...]
) -> Predictor:
    if model.kind == "archive":
        return _torchserve(model, folder, starter)
    uri = _uri(model.path, folder)
    code = sorted(model.path.parent.glob("*.py")) if model.kind == "weights" else []
    if len(code) == 1:
        if model.path.parent == folder:
            for file in (model.path, code[0]):
                uri = _placed(
                    starter, folder, f"model/{file.name}", file,
                    "weights and the file of their class have to lie alone",
                )  # fmt: skip
            uri = "./model"
        else:
            uri = _uri(model.path.parent, folder)
    else:
        starter.said.append(f"model    {uri} is used where it is")
    comments = (
        "The runtime is one of kserve-local's, for a plain PyTorch file. A cluster has no such:",
        "there, pack the model by torch-model-archiver, lay it out for TorchServe",
        "(model-store/NAME.mar, config/config.properties) and delete the line `runtime`.",
        _BUCKET,
    )
    more = ("runtime: kserve-local-torchserver", "protocolVersion: v2")
    request = sample_requests.v2([Tensor("input-0", "FP32", (1, 4))])
    guess = f"one FP32 tensor of shape [1, 4]. {_SCHEMA_ONLY}"
    return Predictor(_model(model, uri, more=more), comments, request, guess, _mirror(starter, uri))


def _torchserve(model: Recognised, folder: Path, starter: Starter) -> Predictor:
    """Lay out TorchServe's model store, as its runtime wants it."""
    root = "torchserve"
    target = f"{root}/model-store/{starter.name}.mar"
    _placed(starter, folder, target, model.path, "TorchServe wants a model store and its settings")
    entry = {
        "1.0": {
            "defaultVersion": True, "marName": f"{starter.name}.mar", "minWorkers": 1,
            "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 10, "responseTimeout": 120,
        }
    }  # fmt: skip
    snapshot = {"name": "startup.cfg", "modelCount": 1, "models": {starter.name: entry}}
    starter.files[f"{root}/config/config.properties"] = "\n".join(
        (
            "inference_address=http://0.0.0.0:8085",
            "management_address=http://0.0.0.0:8085",
            "metrics_address=http://0.0.0.0:8082",
            "enable_envvars_config=true",
            "install_py_dep_per_model=true",
            "model_store=/mnt/models/model-store",
            f"model_snapshot={json.dumps(snapshot, separators=(',', ':'))}",
            "",
        )
    )
    uri = f"./{root}"
    return Predictor(
        _model(model, uri),
        ("A cluster serves this by TorchServe; here a program of kserve-local's takes its place.",
         _BUCKET),
        sample_requests.table(4),
        f"one row of four zeros. {_SCHEMA_ONLY}",
        _mirror(starter, uri),
    )  # fmt: skip


def _tensorflow(
    model: Recognised, folder: Path, starter: Starter, extra_files: tuple[str, ...]
) -> Predictor:
    path = model.path
    if (path / "saved_model.pb").is_file() and not path.name.isdecimal():
        _placed(
            starter, folder, f"{_REPOSITORY}/1", path,
            "TensorFlow Serving wants a folder for each version",
        )  # fmt: skip
        uri = f"./{_REPOSITORY}"
    else:
        uri = _uri(path.parent if path.name.isdecimal() else path, folder)
        starter.said.append(f"model    {uri} is used where it is")
    starter.not_here = "TensorFlow Serving has no program here; a cluster runs its image"
    usable = bool(model.inputs) and all(t.datatype for t in model.inputs)
    request = sample_requests.v1(model.inputs) if usable else sample_requests.table(1)
    guess = "" if usable else f"one row of one zero. {_SCHEMA_ONLY}"
    comments = ("A cluster serves this by TensorFlow Serving.", _BUCKET)
    return Predictor(_model(model, uri), comments, request, guess, _mirror(starter, uri))


def _huggingface(
    model: Recognised, folder: Path, starter: Starter, extra_files: tuple[str, ...]
) -> Predictor:
    uri = _uri(model.path, folder)
    starter.said.append(f"model    {uri} is used where it is")
    starter.not_here = "KServe's huggingfaceserver has no program here; a cluster runs its image"
    request: Mapping[str, Any]
    if model.kind in ("text_generation", "text2text_generation"):
        request = sample_requests.chat(starter.name)
        guess = "a chat for /openai/v1/chat/completions"
    elif model.kind == "fill_mask":
        request = sample_requests.texts("The capital of France is [MASK].")
        guess = "one text with a [MASK]"
    else:
        request, guess = sample_requests.texts(), "one text"
    comments = (
        "A cluster serves this by KServe's huggingfaceserver, models of text by vLLM.",
        _BUCKET,
    )
    return Predictor(_model(model, uri), comments, request, guess, _mirror(starter, uri))


def _gguf(
    model: Recognised, folder: Path, starter: Starter, extra_files: tuple[str, ...]
) -> Predictor:
    uri = _uri(model.path, folder)
    starter.said.append(f"model    {uri} is used where it is")
    starter.not_here = "llama.cpp has no program here; a cluster runs its image"
    lines = (
        "containers:",
        "  - name: kserve-container",
        "    image: ghcr.io/ggml-org/llama.cpp:server",
        "    args:",
        f"      - --model=/mnt/models/{model.path.name}",
        f"      - --alias={starter.name}",
        "      - --host=0.0.0.0",
        "      - --port=8080",
        "    env:",
        "      - name: STORAGE_URI",
        f"        value: {json.dumps(uri)}",
        "    ports:",
        "      - containerPort: 8080",
        "        protocol: TCP",
    )
    comments = (
        "KServe 0.20 has no runtime for GGUF, so this is llama.cpp's own server as a container;",
        "KServe fetches what STORAGE_URI names into /mnt/models.",
        _BUCKET.replace("storageUri", "STORAGE_URI"),
    )
    guess = "a chat for /v1/chat/completions"
    return Predictor(
        lines, comments, sample_requests.chat(starter.name), guess, _mirror(starter, uri)
    )


def _custom(
    model: Recognised, folder: Path, starter: Starter, extra_files: tuple[str, ...]
) -> Predictor:
    code = model.code
    assert code is not None
    image = f"example/{starter.name}:dev"
    context = _uri(code.path.parent, folder).removesuffix("/.").rstrip("/") or "."
    args = () if code.model else (f"    args: [--model_name={starter.name}]",)
    if code.model and code.model != starter.name:
        starter.warnings.append(
            f'{code.path.name} calls its model "{code.model}": '
            f"kserve-local predict {starter.name} --model {code.model}"
        )
    lines = ("containers:", "  - name: kserve-container", f"    image: {image}", *args)
    requirements = code.path.parent / "requirements.txt"
    more = ", requirements: requirements.txt" if requirements.is_file() else ""
    config = (
        "",
        "# The image of the manifest is this folder's source; nothing has to be built.",
        "images:",
        f"  {image}: {{context: {json.dumps(context)}, command: [python, {code.path.name}]{more}}}",
    )
    comments = ("For a cluster: build an image of this folder, push it, and name it in `image`.",)
    guess = "one row of four zeros. A guess: only the code knows what it takes."
    return Predictor(lines, comments, sample_requests.table(4), guess, config)


_Plan = Callable[[Recognised, Path, Starter, tuple[str, ...]], Predictor]
PREDICTORS: dict[str, _Plan] = {
    "sklearn": _tabular,
    "xgboost": _tabular,
    "lightgbm": _tabular,
    "onnx": _onnx,
    "pytorch": _torch,
    "tensorflow": _tensorflow,
    "huggingface": _huggingface,
    "gguf": _gguf,
    "custom": _custom,
}
