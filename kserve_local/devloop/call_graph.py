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
        """Return how a function is reached, e.g. `load() through _read`."""
        steps = []
        while name in self.by and self.by[name] not in steps:
            name = self.by[name]
            steps.append(name)
        root = steps[-1] if steps else "module level"
        called = root if root == "module level" else f"{root}()"
        between = [f"{step}()" for step in reversed(steps[:-1])]
        return f"{called} through {', '.join(between)}" if between else called


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


def reached(trees: Iterable[ast.Module]) -> Reached:
    """Return what runs while the code of these files is loaded."""
    bodies: dict[str, list[Function]] = {}
    by: dict[str, str] = {}
    waiting: list[tuple[str, Iterable[ast.AST]]] = []
    for tree in trees:
        waiting.append(("module level", list(_shell(tree))))
        for _, function in outermost(tree.body):
            bodies.setdefault(function.name, []).append(function)
    for name, functions in bodies.items():
        if is_root(name):
            by[name] = "module level"
            waiting += [(name, function.body) for function in functions]
    while waiting:
        source, nodes = waiting.pop()
        for node in nodes:
            why = _unsure(node)
            if why:
                place = source if source == "module level" else f"{source}()"
                return Reached(by, f"{place} {why}")
            for name in _mentioned(node):
                if name in bodies and name not in by:
                    by[name] = source
                    waiting += [(name, function.body) for function in bodies[name]]
    return Reached(by)


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


def _mentioned(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
        elif isinstance(inner, ast.alias):
            yield inner.name.rpartition(".")[2]


def _unsure(node: ast.AST) -> str:
    """Return why a piece of code may call any function; empty if it does not look so."""
    for inner in ast.walk(node):
        if not isinstance(inner, ast.Call):
            continue
        called = inner.func
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        if name in _WITH_NAME:
            what = inner.args[1 if name == "getattr" else 0 :][:1]
            if what and not isinstance(what[0], ast.Constant):
                return f"looks up a name that is only known when it runs ({name})"
        elif name in _BY_NAME and isinstance(called, ast.Name):
            return f"uses {name}()"
        elif name == "import_module" and not all(isinstance(a, ast.Constant) for a in inner.args):
            return "imports a module whose name is only known when it runs"
    return ""
