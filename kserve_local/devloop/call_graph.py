"""Which functions run while code is loaded: reached by module level, by `load()` or by a dunder.

By name and without types, over all files at once: whatever reached code mentions, as a name, an
attribute or a string, reaches every function that is called so. That names too many rather than
too few. Pure.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_MODULE = "module level"
_ROOTS = frozenset({"load"})
# What finds a function by a name that is only known when it runs.
_BY_NAME = frozenset(
    {"eval", "exec", "globals", "vars", "locals", "__import__", "import_module", "methodcaller"}
)
_WITH_NAME = frozenset({"getattr", "attrgetter"})


@dataclass(frozen=True, slots=True)
class Reached:
    """What runs while code is loaded.

    Args:
        by: Simple name of a function -> the name of what reaches it (`module level`, `load`).
        unsure: Why it may be any function; empty: it is not so.
    """

    by: Mapping[str, str]
    unsure: str = ""

    def way(self, name: str) -> str:
        """Return how a function is reached, e.g. `load() through _read()`."""
        steps: list[str] = []
        while name in self.by and self.by[name] not in steps:
            name = self.by[name]
            steps.append(name)
            if is_root(name):
                break
        between = ", ".join(_called(step) for step in reversed(steps[:-1]))
        return _called(steps[-1]) + (f" through {between}" if between else "")


def is_root(name: str) -> bool:
    """Whether a function of this name runs while code is loaded, or may do so unseen."""
    return name in _ROOTS or (name.startswith("__") and name.endswith("__"))


def outermost(body: Iterable[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield qualified name and definition of the functions that lie in no other one."""
    for statement in body:
        if isinstance(statement, _FUNCTIONS):
            yield f"{prefix}{statement.name}", statement
        elif isinstance(statement, ast.ClassDef):
            yield from outermost(statement.body, f"{prefix}{statement.name}.")
        else:
            # Below `if`, `try`, `with`: still the scope around it.
            for block in _blocks(statement):
                yield from outermost(block, prefix)


def _blocks(statement: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


@dataclass(frozen=True, slots=True)
class Mentions:
    """What one file's code mentions.

    Args:
        shell: Outside functions; `unsure`: why that may be anything.
        functions: Simple name, what the body mentions, why that may be anything.
    """

    shell: frozenset[str]
    unsure: str
    functions: Sequence[tuple[str, frozenset[str], str]]


def mentions(tree: ast.Module) -> Mentions:
    """Return what a file's code mentions. It depends on the file alone, so it can be kept."""
    shell = list(_shell(tree))
    return Mentions(
        frozenset(_mentioned(shell)),
        _unsure(shell),
        [
            (function.name, frozenset(_mentioned(function.body)), _unsure(function.body))
            for _, function in outermost(tree.body)
        ],
    )


def reached(files: Iterable[Mentions]) -> Reached:
    """Return what runs while the code of these files is loaded."""
    bodies: dict[str, list[tuple[frozenset[str], str]]] = {}
    waiting: list[tuple[str, frozenset[str], str]] = []
    for file in files:
        waiting.append((_MODULE, file.shell, file.unsure))
        for name, names, unsure in file.functions:
            bodies.setdefault(name, []).append((names, unsure))
    by: dict[str, str] = {}
    for name, found in bodies.items():
        if is_root(name):
            by[name] = _MODULE
            waiting += [(name, *body) for body in found]
    while waiting:
        source, names, unsure = waiting.pop()
        if unsure:
            return Reached(by, f"{_called(source)} {unsure}")
        for name in names & bodies.keys() - by.keys():
            by[name] = source
            waiting += [(name, *body) for body in bodies[name]]
    return Reached(by)


def _called(name: str) -> str:
    return name if name == _MODULE else f"{name}()"


def _shell(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all that runs when a module does: everything but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _FUNCTIONS):
            for part in (*child.decorator_list, child.args, child.returns):
                if part is not None:
                    yield part
        elif isinstance(child, ast.ClassDef) or (
            isinstance(child, ast.stmt) and any(True for _ in _blocks(child))
        ):
            yield from _shell(child)
        else:
            # Handlers and cases hold statements, too.
            if isinstance(child, ast.ExceptHandler | ast.match_case):
                yield from _shell(child)
            else:
                yield child


def _mentioned(nodes: Iterable[ast.AST]) -> Iterator[str]:
    # What is only imported is not reached by that.
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                yield inner.id
            elif isinstance(inner, ast.Attribute):
                yield inner.attr
            elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value


def _unsure(nodes: Iterable[ast.AST]) -> str:
    """Return why a piece of code may call any function; empty if it does not look so."""
    calls = (n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call))
    for call in calls:
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if name in _WITH_NAME:
            what = call.args[1 if name == "getattr" else 0 :][:1]
            if what and not isinstance(what[0], ast.Constant):
                return f"looks up a name that is only known when it runs ({name})"
        elif name in _BY_NAME and isinstance(call.func, ast.Name):
            return f"uses {name}()"
        elif name == "import_module" and not all(isinstance(a, ast.Constant) for a in call.args):
            return "imports a module whose name is only known when it runs"
    return ""
