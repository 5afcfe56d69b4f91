"""What differs between two texts of a Python file, if only functions do. Pure.

A process can get new code for a function that it has, as long as everything else about it stays:
how it is called, what it takes from around it, and which of the functions in its body is which.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType

from kserve_local.devloop.body_diff import (
    Differs,
    codes_of,
    compare_bodies,
    compare_calls,
    compare_code,
)
from kserve_local.devloop.facts import facts_of
from kserve_local.devloop.keeping import kept_in
from kserve_local.devloop.mentions import module_level
from kserve_local.devloop.source import (
    Definition,
    Function,
    Statement,
    classes_of,
    compiled,
    docstring_of,
    functions_of,
    lines_of,
    parse,
    places,
    shape,
    split,
    statements_of,
)

_COOKIE = re.compile(r"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_COMPUTED = (ast.Call, ast.Lambda, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom,
             ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)  # fmt: skip
_WRAPPERS = frozenset({"staticmethod", "classmethod", "property"})


@dataclass(frozen=True, slots=True)
class FileDiff:
    """Functions that differ between two texts.

    Args:
        changed, added: As in the new text.
        names: Qualified names of what differs itself, also of functions in the body of others.
        has_moved: Some function stands elsewhere than before.
        has_other_doc: The module's docstring differs.
    """

    changed: tuple[Function, ...]
    added: tuple[Function, ...]
    names: tuple[str, ...]
    has_moved: bool
    has_other_doc: bool


def diff_of(before: str, after: str) -> FileDiff:
    """Return how two texts of a file differ.

    Raises:
        Unreadable: One is no Python.
        Differs: More than functions differs, or a function that cannot be replaced.
    """
    old_tree, new_tree = parse(before), parse(after)
    old_code, new_code = compiled(before), compiled(after)
    if _cookie(before) != _cookie(after):
        raise Differs("its encoding changed", 1)
    olds = {(f.qualname, f.index): f for f in functions_of(old_tree)}
    news = {(f.qualname, f.index): f for f in functions_of(new_tree)}
    for key, function in olds.items():
        if key not in news:
            raise Differs(f'"{function.qualname}" was removed', function.node.lineno)
    added = tuple(f for key, f in news.items() if key not in olds and f.is_plain)
    for function in added:
        if function.index:
            raise Differs(f'"{function.qualname}" is defined again', function.node.lineno)
    _compare_statements(old_tree, new_tree, added)
    imports = facts_of(after).imports
    old_lines, new_lines = split(before), split(after)
    changed, names, has_moved = [], [], bool(added)
    for key, new in news.items():
        old = olds.get(key)
        if old is None:
            continue
        if lines_of(old.node, old_lines) == lines_of(new.node, new_lines):
            has_moved = has_moved or old.node.lineno != new.node.lineno
            continue
        has_moved = has_moved or places(old.node) != places(new.node)
        if shape(old.node) == shape(new.node):
            continue
        compare_calls(new.qualname, old.node, new.node)
        if [shape(n) for n in kept_in(old.node)] != [shape(n) for n in kept_in(new.node)]:
            what = f'what "{new.qualname}" makes once and keeps changed'
            raise Differs(what, new.node.lineno)
        changed.append(new)
        names += compare_bodies(old, new, imports)
    compare_code(old_code, new_code)
    _check_added(added, new_tree, new_code, imports)
    return FileDiff(
        tuple(changed),
        added,
        tuple(dict.fromkeys([*names, *(f.qualname for f in added)])),
        has_moved,
        docstring_of(old_tree) != docstring_of(new_tree),
    )


def _cookie(text: str) -> str:
    for line in text.splitlines()[:2]:
        found = _COOKIE.match(line)
        if found:
            return found[1].lower()
    return ""


def _compare_statements(old: ast.Module, new: ast.Module, added: Sequence[Function]) -> None:
    """Raise Differs where what runs at import does."""
    names = [f.qualname for f in added]
    olds = list(statements_of(old.body, doc=False))
    news = list(statements_of(new.body, doc=False, without=names))
    for one, other in zip(olds, news, strict=False):
        if one.shape != other.shape:
            raise Differs(_what(one, other), other.line)
    if len(news) > len(olds):
        raise Differs(_what(news[len(olds)], news[len(olds)]), news[len(olds)].line)
    if len(olds) > len(news):
        raise Differs(_what(olds[len(news)], olds[len(news)]), olds[len(news)].line)


def _what(one: Statement, other: Statement) -> str:
    heads = (one.shape[0], other.shape[0])
    if heads == (Definition, Definition):
        return "functions changed places"
    if one.owner and one.owner == other.owner:
        what = "definition" if ast.ClassDef in heads else "body"
        return f'the {what} of class "{one.owner}" changed'
    if any(head in (ast.Import, ast.ImportFrom) for head in heads):
        return "module level changed: an import"
    return "module level changed"


def _check_added(
    added: Sequence[Function], tree: ast.Module, code: CodeType, imports: Mapping[str, str]
) -> None:
    """Raise Differs for a new function that cannot be put where it belongs."""
    if not added:
        return
    bound = {*imports, *(node.name for _, node in classes_of(tree))}
    for item in module_level(tree):
        bound |= {n.id for n in ast.walk(item) if isinstance(n, ast.Name) and not _is_read(n)}
    counts: dict[str, int] = {}
    for function in functions_of(tree):
        counts[function.qualname] = counts.get(function.qualname, 0) + 1
    codes = codes_of(code)
    for function in added:
        node, name = function.node, function.qualname
        if counts[name] > 1 or node.name in bound:
            raise Differs(f'"{name}" is new, and something else has that name', node.lineno)
        if not _is_plainly_wrapped(function):
            raise Differs(f'"{name}" is new and decorated', node.lineno)
        if any(isinstance(n, _COMPUTED) for n in _evaluated(node)):
            raise Differs(f'"{name}" is new, and its defaults are computed', node.lineno)
        if getattr(node, "type_params", None):
            raise Differs(f'"{name}" is new and generic', node.lineno)
        for one in codes.get(name, []):
            if one.co_freevars not in ((), ("__class__",)):
                raise Differs(f'"{name}" is new, and takes variables from around it', node.lineno)


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _is_plainly_wrapped(function: Function) -> bool:
    decorators = function.node.decorator_list
    if not decorators:
        return True
    only = decorators[0]
    is_known = len(decorators) == 1 and isinstance(only, ast.Name) and only.id in _WRAPPERS
    return is_known and bool(function.owners)


def _evaluated(node: Definition) -> Iterator[ast.AST]:
    yield from ast.walk(node.args)
    if node.returns is not None:
        yield from ast.walk(node.returns)
