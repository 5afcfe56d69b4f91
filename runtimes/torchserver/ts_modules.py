"""The few modules of TorchServe's `ts` package that handlers import, where TorchServe is missing.

`install` lets `from ts.torch_handler.base_handler import BaseHandler` and its like find classes of
ours with the documented behaviour. An installed TorchServe wins. Any other `ts` module raises
ModuleNotFoundError, saying which ones there are. Source of names: TorchServe, "Custom Service".
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torchserver.context import SERVER_VERSION, Context

# Handlers that a manifest may name without bringing them.
HANDLERS = ("base_handler",)


class PredictionException(Exception):
    """What a handler raises to choose message and status of its answer."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        self.message = message
        self.error_code = error_code
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """Return the classes that a module defines itself, only subclasses of `parent_class`."""
    return [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if value.__module__ == module.__name__
        and (parent_class is None or issubclass(value, parent_class))
    ]


def load_label_mapping(mapping_file_path: str) -> dict[str, Any] | None:
    """Return `index_to_name.json`, None if there is none.

    Raises:
        ValueError: It is no JSON object of labels.
    """
    if not os.path.isfile(mapping_file_path):
        return None
    with open(mapping_file_path, encoding="utf-8") as file:
        mapping = json.load(file)
    if isinstance(mapping, dict) and isinstance(mapping.get("object_type_names"), list):
        return {str(k): v for k, v in enumerate(mapping["object_type_names"])}
    if not isinstance(mapping, dict):
        raise ValueError("index_to_name.json should be a JSON object of index and label")
    return {k: v[1] if isinstance(v, list) else str(v) for k, v in mapping.items()}


def map_class_to_label(
    probs: Sequence[Sequence[float]],
    mapping: dict[str, Any] | None = None,
    lbl_classes: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, float]]:
    """Return, per row, label -> probability."""
    rows = lbl_classes or [list(range(len(row))) for row in probs]
    return [
        {(mapping[str(c)] if mapping else str(c)): p for c, p in zip(classes, row, strict=False)}
        for classes, row in zip(rows, probs, strict=False)
    ]


def timed(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a handler's method: its duration is recorded under its class and name."""

    @functools.wraps(func)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = func(self, *args, **kwargs)
        metrics = getattr(getattr(self, "context", None), "metrics", None)
        if metrics is not None:
            name = f"{type(self).__name__}.{func.__name__}"
            metrics.add_time(name, round((time.perf_counter() - started) * 1000, 2))
        return result

    return wrapper


def _base_handler() -> dict[str, Any]:
    from torchserver.base_handler import BaseHandler  # brings torch

    return {"BaseHandler": BaseHandler}


_MODULES: dict[str, Callable[[], dict[str, Any]]] = {
    "ts": lambda: {"__version__": SERVER_VERSION},
    "ts.context": lambda: {"Context": Context},
    "ts.handler_utils": dict,
    "ts.handler_utils.timer": lambda: {"timed": timed},
    "ts.torch_handler": dict,
    "ts.torch_handler.base_handler": _base_handler,
    "ts.utils": dict,
    "ts.utils.util": lambda: {
        "PredictionException": PredictionException,
        "list_classes_from_module": list_classes_from_module,
        "load_label_mapping": load_label_mapping,
        "map_class_to_label": map_class_to_label,
    },
}


class _Loader(importlib.abc.Loader):
    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_MODULES[module.__name__]())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "ts" and not fullname.startswith("ts."):
            return None
        root = sys.modules.get("ts")
        if root is not None and not isinstance(getattr(root.__spec__, "loader", None), _Loader):
            return None
        if fullname not in _MODULES:
            known = ", ".join(n for n, make in _MODULES.items() if make is not dict and n != "ts")
            raise ModuleNotFoundError(
                f"TorchServe's module {fullname} has no counterpart in kserve-local, which has "
                f"{known}; install torchserve where this server runs, or leave the import out",
                name=fullname,
            )
        # A class of TorchServe is looked for under its own module's name.
        return importlib.machinery.ModuleSpec(fullname, _Loader(), is_package=_is_package(fullname))


def _is_package(name: str) -> bool:
    return any(other.startswith(f"{name}.") for other in _MODULES)


def install() -> None:
    """Make the modules importable; harmless when called again."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
