"""From a model folder to a callable PyTorch module: TorchScript, torch.export, or a state dict with
the class file it belongs to.

Only the last kind runs Python of the model folder, as TorchServe's `--model-file` and KServe's
former pytorchserver do; a state dict itself is read with `weights_only`, so it cannot run code.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import sys
import warnings
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
    members = _members(path)
    if path.suffix == ".pt2" or _is_export(members):
        return load_export(path, device)
    if _is_script(members):
        return load_script(path, device)
    state = read_state(path, device)
    if class_file is None:
        found = sorted(path.parent.glob("*.py"))
        if len(found) != 1:
            have = ", ".join(p.name for p in found) or "none"
            raise LoadError(
                f"{path.name} holds only weights; the folder needs exactly one .py file with the "
                f"model's class (there: {have}), or save the model with torch.jit.save"
            )
        class_file = found[0]
    made = _module_class(class_file, class_name)
    try:
        module = made()
    except Exception as error:  # the user's class may raise anything
        raise LoadError(
            f"{class_file.name}: {made.__name__}() without arguments fails: "
            f"{type(error).__name__}: {error}"
        ) from error
    put_state(module, state, path.name)
    return module.to(device).eval()


def load_script(path: str | Path, device: str) -> Any:
    """Return a TorchScript module in inference mode.

    Raises:
        LoadError: It is none; the text says what it is instead, where that can be told.
    """
    import torch

    path = Path(path)
    if not _is_script(_members(path)):
        read_state(path, device)
        raise LoadError(
            f"{path.name} holds only weights, not a model; name the class file (torch-model-"
            "archiver --model-file), or save the model with torch.jit.save"
        )
    jit: Any = vars(torch.jit)
    try:
        with warnings.catch_warnings():
            # That TorchScript will go is news for who makes the model, not for who serves it.
            warnings.simplefilter("ignore", DeprecationWarning)
            return jit["load"](str(path), map_location=device).eval()
    except Exception as error:  # torch raises anything from RuntimeError to ValueError here
        raise LoadError(f"{path.name} cannot be loaded: {_first_line(error)}") from error


def load_export(path: Path, device: str) -> Any:
    """Return the module of an exported program, on `device`.

    Raises:
        LoadError: It is none, is damaged, or was made by a PyTorch that this one cannot read.
    """
    import torch

    if not _members(path):
        raise LoadError(f"{path.name} cannot be loaded: {_damage(path)}")
    try:
        program = torch.export.load(path)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            # `module().to()` leaves the constants inside the graph on the CPU.
            program = move_to_device_pass(program, device)
        return program.module()
    except Exception as error:  # torch raises anything from RuntimeError to ValueError here
        raise LoadError(f"{path.name} cannot be loaded: {_first_line(error)}") from error


def read_state(path: Path, device: str) -> Any:
    """Return the state dict of a file, without running code of it.

    Raises:
        LoadError: It is truncated, no PyTorch file, or holds more than tensors and plain values.
    """
    import torch

    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_pickle(path):
            raise LoadError(_pickled(path, error)) from error
        raise LoadError(f"{path.name} cannot be loaded: {_damage(path)}") from error
    except Exception as error:  # torch raises zip, end-of-file and runtime errors alike
        raise LoadError(f"{path.name} cannot be loaded: {_damage(path)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise LoadError(
            f"{path.name} holds a {type(state).__name__}, not a model: neither TorchScript nor "
            "torch.export nor a state dict"
        )
    return state


def load_state(module: Any, path: str | Path, device: str) -> None:
    """Put the weights of a file into a module.

    Raises:
        LoadError: See `read_state`; or they do not fit.
    """
    put_state(module, read_state(Path(path), device), Path(path).name)


def put_state(module: Any, state: Any, name: str) -> None:
    """Put a state dict into a module.

    Raises:
        LoadError: They do not fit.
    """
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise LoadError(f"{name} does not fit {type(module).__name__}: {error}") from error


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _is_script(members: list[str]) -> bool:
    return any(name.endswith("/constants.pkl") for name in members)


def _is_export(members: list[str]) -> bool:
    return any("serialized_exported_program" in n or "/models/" in n for n in members)


def _is_pickle(path: Path) -> bool:
    """Whether the file is one that `torch.save` may have written: a zip with a pickle, or one."""
    if _members(path):
        return True
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and start[1] <= pickle.HIGHEST_PROTOCOL


def _damage(path: Path) -> str:
    """Say what is wrong with a file that cannot be read."""
    size = path.stat().st_size
    if size == 0:
        return "the file is empty"
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the model; run git lfs pull"
    if start[:2] == b"PK" and not _members(path):
        return f"the file is truncated (it ends after {size} bytes, within a zip archive)"
    if start[:1] == b"\x80":
        return f"the file is truncated or damaged (a pickle of {size} bytes)"
    return (
        "it is no PyTorch file (neither TorchScript nor torch.export nor a state dict; it begins "
        f"with {start[:8]!r})"
    )


def _pickled(path: Path, error: Exception) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({match.group(1)})" if match else ""
    return (
        f"{path.name} is a pickle of Python objects{what}, which could run any code when loaded, "
        "so it is not. Save the model with torch.export.save (.pt2) or torch.jit.save, or only its "
        "weights with torch.save(model.state_dict(), ...) beside a .py file with its class"
    )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def _module_class(path: Path, class_name: str) -> Any:
    import torch

    name = f"torchserver_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a path ending in .py always has a loader
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[name] = source
    sys.path.insert(0, str(path.parent))
    # The folder may be shared with other projects: no bytecode is left in it.
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(source)
    except Exception as error:  # the user's file may raise anything
        raise LoadError(
            f"{path.name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.dont_write_bytecode = bytecode
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
