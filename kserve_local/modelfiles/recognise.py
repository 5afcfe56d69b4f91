"""From a path to what kind of model lies there, and what can be told of it without loading it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kserve_local.modelfiles import (
    containers,
    graphs,
    pickles,
    predictor_code,
    sklearn_models,
    trees,
)
from kserve_local.modelfiles.compressed import Compressed
from kserve_local.modelfiles.graphs import Tensor

PICKLES = (".joblib", ".pkl", ".pickle")
_XGBOOST = (".bst", ".ubj", ".json", ".model")
_LIGHTGBM = (".bst", ".txt")
_TORCH = (".pt", ".pth", ".pt2", ".torchscript", ".mar")
_MODEL_FOLDERS = ("model", "models")


@dataclass(frozen=True, slots=True)
class Recognised:
    """A model.

    Args:
        format: KServe's name of the model format; `gguf` and `custom`, which it has none for.
        kind: What of its format: `torchscript`, a class, a task, ...
        why: By what it was recognised, as the end of a sentence.
        version: Of the library that saved it, where the file says so.
        features: Columns of a table that it takes.
        inputs: Those that it declares.
        text: Whether it takes texts.
        code: The predictor's code, for `custom`.
        warnings: What will be in the way of serving it.
    """

    format: str
    path: Path
    kind: str
    why: str
    version: str = ""
    features: int | None = None
    inputs: tuple[Tensor, ...] = ()
    text: bool = False
    code: predictor_code.PredictorCode | None = None
    warnings: tuple[str, ...] = ()


def recognise(path: Path) -> Recognised | None:
    """Return what a file or folder is, None if it is no model that is known. Blocking.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_dir():
        return _folder(path)
    suffix = path.suffix.lower()
    if suffix == ".py":
        return _code(path)
    if suffix in PICKLES:
        return _pickle(path)
    if suffix == ".onnx":
        return _onnx(path)
    if suffix == ".gguf":
        return _gguf(path)
    if suffix in _TORCH:
        return _torch(path)
    if suffix in _LIGHTGBM and (found := trees.lightgbm(path)):
        return Recognised(
            "lightgbm", path, found.form, f"its text begins as a LightGBM {found.version} model",
            version=found.version.removeprefix("v"), features=found.features,
        )  # fmt: skip
    if suffix in _XGBOOST and (found := trees.xgboost(path)):
        old = ("its binary format is one that XGBoost 3.1 and newer do not read",)
        wrote = f" of XGBoost {found.version}" if found.version else ""
        return Recognised(
            "xgboost", path, found.form, f"it is a model{wrote} as {found.form.upper()}",
            version=found.version, features=found.features,
            warnings=old if found.form == "binary" else (),
        )  # fmt: skip
    return None


def candidates(folder: Path) -> list[Recognised]:
    """Return the models of a folder: itself, else what lies in it and in its model folder."""
    whole = _model_folder(folder)
    if whole is not None:
        return [whole]
    places = [folder, *(folder / name for name in _MODEL_FOLDERS)]
    entries = (entry for place in places if place.is_dir() for entry in _entries(place))
    seen: dict[tuple[int, int], Recognised] = {}
    for entry in entries:
        if model := recognise(entry):
            # A file by two names is one model.
            at = entry.stat()
            seen.setdefault((at.st_dev, at.st_ino), model)
    return list(seen.values())


def _entries(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in _MODEL_FOLDERS:
            # Model folders are looked into, or are models themselves.
            if entry.name in _MODEL_FOLDERS and entry.is_dir() and _model_folder(entry):
                yield entry
            continue
        if entry.is_file() or (entry.is_dir() and _model_folder(entry)):
            yield entry


def _model_folder(folder: Path) -> Recognised | None:
    """Return what a folder as a whole is: a SavedModel, a model of the Hugging Face."""
    saved = folder / graphs.SAVED_MODEL
    if not saved.is_file():
        numbered = [p for p in _numbered(folder) if (p / graphs.SAVED_MODEL).is_file()]
        saved = numbered[-1] / graphs.SAVED_MODEL if numbered else saved
    if saved.is_file():
        why = f"it holds {saved.relative_to(folder)}"
        inputs = graphs.saved_model_inputs(saved.parent)
        return Recognised("tensorflow", folder, "SavedModel", why, inputs=inputs)
    if found := containers.transformer(folder):
        why = f"its config.json says {found.architecture}"
        missing = ("there are no weights (*.safetensors, pytorch_model*.bin) in it",)
        return Recognised(
            "huggingface", folder, found.task, why, warnings=() if found.weights else missing
        )
    return None


def _numbered(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))


def _folder(folder: Path) -> Recognised | None:
    """Return what a folder that is named is; with one model in it, that one."""
    found = candidates(folder)
    return found[0] if len(found) == 1 else None


def _code(path: Path) -> Recognised | None:
    code = predictor_code.read(path)
    if code is None:
        return None
    idle = (
        f"nothing in {path.name} starts a kserve.ModelServer, so nothing would answer; end it with:"
        f'  kserve.ModelServer().start([{code.name}("NAME")])'
    )
    why = f"its class {code.name} is a kserve.Model"
    warnings = () if code.starts else (idle,)
    return Recognised("custom", path, code.name, why, code=code, warnings=warnings)


def _pickle(path: Path) -> Recognised | None:
    try:
        contents = pickles.read(path)
    except Compressed as error:
        why = f"of its name alone: {error}"
        return Recognised("sklearn", path, "", why) if path.suffix == ".joblib" else None
    except pickles.NotAPickle:
        return None
    model = sklearn_models.describe(contents)
    if model is None:
        return None
    return Recognised(
        "sklearn", path, model.name, f"its pickle makes a {model.kind}",
        version=model.version, features=model.features, text=model.text, warnings=model.warnings,
    )  # fmt: skip


def _onnx(path: Path) -> Recognised | None:
    inputs = graphs.onnx_inputs(path)
    if inputs is None:
        return None
    names = ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in inputs)
    return Recognised("onnx", path, "", f"its graph takes {names or 'nothing'}", inputs=inputs)


def _gguf(path: Path) -> Recognised | None:
    found = containers.gguf(path)
    if found is None:
        return None
    architecture = found.get("general.architecture", "")
    why = f"it begins with GGUF{f', architecture {architecture}' if architecture else ''}"
    return Recognised("gguf", path, architecture, why)


def _torch(path: Path) -> Recognised | None:
    found = containers.torch(path)
    if found is None:
        return None
    why = {
        "torchscript": "its archive holds TorchScript",
        "export": "its archive holds a program of torch.export",
        "weights": "it holds weights only, no program",
        "module": f"it is a pickled {found.name}",
        "archive": f"it is TorchServe's archive of the model {found.name}",
    }[found.kind]
    warnings: tuple[str, ...] = ()
    if found.kind == "module":
        warnings = (
            f"{path.name} is a pickled module, which is not loaded for safety; save it with "
            "torch.jit.save or torch.export.save",
        )
    elif found.kind == "weights" and len(list(path.parent.glob("*.py"))) != 1:
        warnings = (
            f"{path.name} holds only weights: the one .py file with the model's class has to lie "
            "beside it, or save the model with torch.jit.save",
        )
    return Recognised("pytorch", path, found.kind, why, version="", warnings=warnings)
