"""What a piece of code names: identifiers, and strings that could be looked up as such. Pure."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from kserve_local.devloop.source import Definition, dotted, is_accessor, resolved

_LONGEST = 200
"""Characters of a string that may name something, as `app:predict` or `pkg.module` do."""
_COMPUTED = frozenset({
    "getattr", "eval", "exec", "__import__", "import_module", "attrgetter", "methodcaller",
    "run_path", "run_module", "getmembers", "getmembers_static", "getattr_static", "get_objects",
    "iter_modules", "walk_packages", "__getattribute__", "__globals__", "__subclasses__",
    "__builtins__",
})  # fmt: skip
"""Names that give access to functions by names which the text need not show."""
_BUILTIN = frozenset({"getattr", "eval", "exec"})
"""Of these, what only the builtin is: `model.eval()` is harmless."""
_IF_CALLED = frozenset({"globals", "locals", "vars", "dir"})


@dataclass(frozen=True, slots=True)
class Mentions:
    """What some code names.

    Args:
        computed: (line, how, in what) of each look-up of a name that the text does not show; in
            what is as it was imported, empty for anything else.
    """

    names: frozenset[str]
    computed: tuple[tuple[int, str, str], ...] = ()


def mentions_of(
    nodes: Iterable[ast.AST], imports: Mapping[str, str], classes: Collection[str] = ()
) -> Mentions:
    """Return what nodes name, with all that is nested in them.

    Args:
        imports: What names of the file stand for.
        classes: Names of its classes, whose `__dict__` holds functions, as that of modules does.
    """
    not_data = {*imports, *classes}
    names: set[str] = set()
    computed: list[tuple[int, str, str]] = []
    waiting: list[ast.AST] = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            how, parts = _of_call(node, not_data)
            if how:
                computed.append((node.lineno, how, _looked_in(node, imports)))
            waiting += parts
            continue
        if isinstance(node, ast.Name):
            _add(names, node.id)
            if node.id in _COMPUTED and isinstance(node.ctx, ast.Load):
                computed.append((node.lineno, node.id, ""))
        elif isinstance(node, ast.Attribute):
            _add(names, node.attr)
            if _is_computed(node, not_data):
                computed.append((node.lineno, node.attr, ""))
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and len(node.value) < _LONGEST:
                _add_words(names, node.value)
            continue
        waiting += ast.iter_child_nodes(node)
    return Mentions(frozenset(names), tuple(sorted(computed)))


def _looked_in(node: ast.Call, imports: Mapping[str, str]) -> str:
    """Return what `getattr` is asked for a name, as it was imported; empty for anything else."""
    where = dotted(node.args[0]) if node.args else ""
    return resolved(where, imports) if where.partition(".")[0] in imports else ""


def _of_call(node: ast.Call, not_data: Collection[str]) -> tuple[str, list[ast.AST]]:
    """Return how a call looks up unknown names, and what of it is to be looked at further."""
    name = dotted(node.func).rpartition(".")[2]
    rest: list[ast.AST] = [*node.args, *node.keywords]
    if isinstance(node.func, ast.Name) and name in _IF_CALLED:
        is_data = name == "vars" and node.args and _is_data(node.args[0], not_data)
        return ("" if is_data else name), rest
    where = {"getattr": 1, "getattr_static": 1, "methodcaller": 0, "import_module": 0}
    where |= {"__import__": 0, "attrgetter": 0}
    place = where.get(name)
    if place is None or len(node.args) <= place:
        return "", [node.func, *rest]
    told = node.args[place : place + 1] if name != "attrgetter" else node.args
    if all(isinstance(a, ast.Constant) and isinstance(a.value, str) for a in told):
        inner = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        return "", [*inner, *rest]
    if name in ("getattr", "getattr_static"):
        return name, rest
    return "", [node.func, *rest]


def _is_computed(node: ast.Attribute, not_data: Collection[str]) -> bool:
    if node.attr == "__dict__":
        return not _is_data(node.value, not_data)
    if node.attr == "modules":
        return dotted(node.value) == "sys"
    return node.attr in _COMPUTED and (
        node.attr not in _BUILTIN or dotted(node.value) == "builtins"
    )


def _is_data(node: ast.expr, not_data: Collection[str]) -> bool:
    """Whether this names an instance, whose `__dict__` holds what was put into it."""
    return isinstance(node, ast.Name) and node.id != "cls" and node.id not in not_data


def _add(names: set[str], name: str) -> None:
    names.add(name)
    if name.startswith("_") and not name.startswith("__") and "__" in name:
        # `_Model__helper` is how others reach the private `__helper` of Model.
        names.add(name[name.index("__") :])


def _add_words(names: set[str], text: str) -> None:
    words = text.replace(":", ".").split(".")
    if all(word.isidentifier() for word in words):
        for word in words:
            _add(names, word)


def module_level(tree: ast.Module) -> list[ast.AST]:
    """Return what runs when a module is imported: all but the bodies of functions.

    Imports are left out, as a name is used where it is mentioned; `__all__` too, which only lists,
    and `@label.setter` on `label`.
    """
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Definition):
            found += [d for d in node.decorator_list if not is_accessor(d, node.name)]
            found.append(node.args)
            found += [node.returns] if node.returns is not None else []
            found += getattr(node, "type_params", [])
        elif isinstance(node, ast.Import | ast.ImportFrom) or _is_all(node):
            continue
        elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            waiting += ast.iter_child_nodes(node)
        else:
            found.append(node)
    return found


def _is_all(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        return all(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    return (
        isinstance(node, ast.AnnAssign | ast.AugAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "__all__"
    )
