"""Finds a custom predictor: a class of `kserve.Model` in a Python file, read and never run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

_MODEL = "kserve.Model"
_SERVER = "kserve.ModelServer"


@dataclass(frozen=True, slots=True)
class PredictorCode:
    """A file with a predictor's class.

    Args:
        name: Of the class.
        model: What the code itself calls the model, empty where the command line does.
        starts: Whether the file starts a `ModelServer`.
    """

    path: Path
    name: str
    model: str
    starts: bool


def read(path: Path) -> PredictorCode | None:
    """Return the predictor in a file, None if there is none or the file is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    imported = _imports(tree)
    classes = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.ClassDef)
        and any(_full(b, imported) in (_MODEL, "kserve.model.Model") for b in n.bases)
    ]
    if not classes:
        return None
    names = {c.name for c in classes}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    made = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id in names]
    starts = any(
        _full(c.func, imported) in (_SERVER, "kserve.model_server.ModelServer") for c in calls
    )
    return PredictorCode(path, classes[-1].name, _constant_name(made), starts)


def _imports(tree: ast.AST) -> dict[str, str]:
    """Return local name -> what it stands for, of imports of kserve."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "kserve":
                    found[alias.asname or "kserve"] = alias.name if alias.asname else "kserve"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "kserve":
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def _full(node: ast.expr, imported: dict[str, str]) -> str:
    """Return the dotted name of an expression, its first part as it was imported."""
    if isinstance(node, ast.Attribute):
        before = _full(node.value, imported)
        return f"{before}.{node.attr}" if before else ""
    return imported.get(node.id, "") if isinstance(node, ast.Name) else ""


def _constant_name(calls: list[ast.Call]) -> str:
    """Return the text that the class is called with first, empty unless it is a constant."""
    for call in calls:
        given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "name")]
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
    return ""
