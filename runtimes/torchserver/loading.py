"""From a model folder to a callable PyTorch module: TorchScript, torch.export, or a state dict with
the class file it belongs to.

Only the last kind runs Python of the model folder, as TorchServe's `--model-file` and KServe's
former pytorchserver do; a state dict itself is read with `weights_only`, so it cannot run code.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import Any

from modelserver.errors import LoadError

EXTENSIONS = (".pt2", ".pt", ".pth", ".torchscript")


def load_module(path: Path, device: str, class_file: Path | None, class_name: str) -> Any:
    """Return the module, on `device` and in inference mode.

    Args:
        class_file: Python file with the module's class; None: the folder's only one, if any.
        class_name: Class in it; empty: `PyTorchModel`, else the only `nn.Module` of the file.

    Raises:
        LoadError: The file is none of the three kinds, or class and weights do not fit.
    """
    import torch

    try:
        if path.suffix == ".pt2" or _is_export(path):
            module: Any = torch.export.load(path).module()
            return module.to(device)
        if _is_script(path):
            jit: Any = vars(torch.jit)
            return jit["load"](str(path), map_location=device).eval()
    except LoadError:
        raise
    except Exception as error:  # torch raises anything from RuntimeError to ValueError here
        raise LoadError(f"{path.name} cannot be loaded: {error}") from error
    return _from_state_dict(path, device, class_file, class_name)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _is_script(path: Path) -> bool:
    return any(name.endswith("/constants.pkl") for name in _members(path))


def _is_export(path: Path) -> bool:
    return any("serialized_exported_program" in n or "/models/" in n for n in _members(path))


def _from_state_dict(path: Path, device: str, class_file: Path | None, class_name: str) -> Any:
    import torch

    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(
            f"{path.name} is neither TorchScript nor torch.export nor a plain state dict: {reason}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if class_file is None:
        found = sorted(path.parent.glob("*.py"))
        if len(found) != 1:
            have = ", ".join(p.name for p in found) or "none"
            raise LoadError(
                f"{path.name} holds only weights; the folder needs exactly one .py file with the "
                f"model's class (there: {have}), or save the model with torch.jit.save"
            )
        class_file = found[0]
    module = _module_class(class_file, class_name)()
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise LoadError(f"{path.name} does not fit {type(module).__name__}: {error}") from error
    return module.to(device).eval()


def _module_class(path: Path, class_name: str) -> Any:
    import torch

    name = f"torchserver_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a path ending in .py always has a loader
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[name] = source
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(source)
    except Exception as error:  # the user's file may raise anything
        raise LoadError(
            f"{path.name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    own = {
        n: c
        for n, c in vars(source).items()
        if isinstance(c, type) and issubclass(c, torch.nn.Module) and c.__module__ == name
    }
    wanted = class_name or ("PyTorchModel" if "PyTorchModel" in own else "")
    if wanted in own:
        return own[wanted]
    if not wanted and len(own) == 1:
        return next(iter(own.values()))
    raise LoadError(
        f"{path.name}: "
        + (f'no class "{wanted}"' if wanted else "which class is the model is not clear")
        + f"; torch.nn.Module classes there: {', '.join(own) or 'none'}; name it with "
        "--model_class_name"
    )
