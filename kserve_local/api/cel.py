"""Evaluates the CEL rules of CRDs (`x-kubernetes-validations`) with the `cel` package.

Rules see `self` (the value at their place, defaults applied) and on updates `oldSelf`. The package
is loaded on the first rule. Semantics and messages are those of Kubernetes' structural schema
validation.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

NO_OLD = object()


def failure(
    rule: str, self_value: Any, old_value: Any = NO_OLD, *, message: str = ""
) -> str | None:
    """Evaluate one rule.

    Args:
        rule: The CEL expression; must give a bool.
        self_value: JSON value.
        old_value: The value before an update; a rule that names `oldSelf` passes without one.
        message: The rule's own message.

    Returns:
        What Kubernetes says when the rule does not hold, None when it does.
    """
    program, is_transition = _program(rule)
    variables = {"self": self_value}
    if is_transition:
        if old_value is NO_OLD:
            return None
        variables["oldSelf"] = old_value
    try:
        holds = program.execute(variables)
    except KeyError as error:
        return f"no such key: {error.args[0]} evaluating rule: {message or rule}"
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{error} evaluating rule: {message or rule}"
    return None if holds is True else message or f"failed rule: {rule}"


@cache
def _program(rule: str) -> tuple[Any, bool]:
    return _evaluator().compile(rule), "oldSelf" in rule


@cache
def _evaluator() -> Any:
    """Return the module with `compile`.

    The package's `__init__` also imports its interactive shell (prompt_toolkit, typer, rich: a
    third of a second), so the extension module inside is loaded on its own where it can be found.
    """
    if "cel" not in sys.modules:
        spec = importlib.util.find_spec("cel")
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for suffix in importlib.machinery.EXTENSION_SUFFIXES:
                file = Path(folder) / f"cel{suffix}"
                if file.exists():
                    loader = importlib.machinery.ExtensionFileLoader("cel.cel", str(file))
                    found = importlib.util.spec_from_loader("cel.cel", loader)
                    if found is not None:
                        module = importlib.util.module_from_spec(found)
                        loader.exec_module(module)
                        return module
    return importlib.import_module("cel")
