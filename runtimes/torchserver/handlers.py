"""From an unpacked archive to its handler: a function `handle(data, context)`, or a class with
`initialize(context)` and `handle(data, context)`.

Rules are TorchServe's: the manifest's `handler` is `file.py`, `file.py:function`, or the name of a
handler that comes with TorchServe; a file without the function must define exactly one class. The
archive's code runs, as it does there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, TypeGuard

from modelserver.errors import LoadError
from torchserver import ts_modules
from torchserver.archive import Archive
from torchserver.context import Context


@dataclass(frozen=True, slots=True)
class Handler:
    """The two entry points. `name` says where they come from, for messages."""

    name: str
    initialize: Callable[[Context], Any]
    handle: Callable[[Any, Context], Any]


def load_handler(archive: Archive) -> Handler:
    """Import the archive's handler; `initialize` has not been called yet.

    Raises:
        LoadError: It does not exist, cannot be imported, or has no entry point.
    """
    spec = archive.entry("handler") or "base_handler"
    file, _, function = spec.partition(":")
    name = PurePosixPath(file.removesuffix(".py")).name
    own = (archive.folder / f"{name}.py").is_file()
    if own:
        with imports_from(archive.folder):
            module = _import(archive, name)
    else:
        module = _default(archive, name)
    entry = getattr(module, function or "handle", None)
    if callable(entry):
        return Handler(spec, lambda context: entry(None, context), entry)
    if function:
        raise LoadError(f"{archive.source}: {name}.py has no function '{function}'")
    classes = own_classes(module) if own else [v for v in vars(module).values() if _is_class(v)]
    if len(classes) != 1:
        have = ", ".join(c.__name__ for c in classes) or "none"
        raise LoadError(
            f"{archive.source}: {name}.py must define a function handle(data, context) or exactly "
            f"one class; classes there: {have}"
        )
    with imports_from(archive.folder):
        service = classes[0]()
    for method in ("initialize", "handle"):
        if not callable(getattr(service, method, None)):
            raise LoadError(f"{archive.source}: class {classes[0].__name__} has no {method}()")
    return Handler(f"{name}.{classes[0].__name__}", service.initialize, service.handle)


def own_classes(module: ModuleType) -> list[type[Any]]:
    """Return the classes that a module defines itself."""
    return [v for v in vars(module).values() if _is_class(v) and v.__module__ == module.__name__]


def _is_class(value: object) -> TypeGuard[type[Any]]:
    return isinstance(value, type)


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Let bare imports find the archive's files first; the modules found stay the archive's own.

    Another archive of the server may have files of the same names, so what was imported from this
    one leaves `sys.modules` afterwards. No bytecode is written: the folder may be a shared one.
    """
    place, bytecode = str(folder), sys.dont_write_bytecode
    ts_modules.install()
    sys.path.insert(0, place)
    sys.dont_write_bytecode = True
    _put_back(folder)
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(place)
        if place not in sys.path:
            # For imports inside functions, which run later.
            sys.path.append(place)
        _take_out(folder)


_modules: dict[Path, dict[str, ModuleType]] = {}


def _put_back(folder: Path) -> None:
    importlib.invalidate_caches()
    sys.modules.update(_modules.get(folder, {}))


def _take_out(folder: Path) -> None:
    mine = {
        name: module
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None)) and Path(file).is_relative_to(folder)
    }
    _modules[folder] = mine
    for name in mine:
        del sys.modules[name]


def _default(archive: Archive, name: str) -> ModuleType:
    full = f"ts.torch_handler.{name}"
    ts_modules.install()
    try:
        return importlib.import_module(full)
    except ImportError as error:
        raise LoadError(
            f"{archive.source}: handler '{archive.entry('handler')}' is no file of the archive, "
            f"and of TorchServe's own handlers there is here: {', '.join(ts_modules.HANDLERS)} "
            f"({error})"
        ) from error


def _import(archive: Archive, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing(archive, f"{name}.py", error) from error
    except Exception as error:  # the archive's code may raise anything
        raise LoadError(
            f"{archive.source}: {name}.py cannot be imported: {type(error).__name__}: {error}"
        ) from error


def missing(archive: Archive, file: str, error: ImportError) -> LoadError:
    """Return what to say when the archive's code imports what is not there."""
    module = (error.name or "").partition(".")[0]
    text = f"{archive.source}: {file} cannot be imported: {error}"
    if not module or module == "ts" or not isinstance(error, ModuleNotFoundError):
        return LoadError(text)
    listed = (archive.folder / "requirements.txt").is_file()
    return LoadError(
        f"{text}. Put {module} into a requirements file and name that in kserve-local.yaml: "
        "runtimes: {torchserver: {requirements: FILE}}"
        + ("; the archive's requirements.txt is not installed here" if listed else "")
    )
