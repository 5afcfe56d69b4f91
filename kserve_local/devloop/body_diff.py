"""What differs in the body of a function, where some of it may be held by a running process. Pure.

Functions, classes and lambdas that a body defines are made by each call and may outlive it. They
are paired by place, and one that has no clear counterpart keeps the whole from being replaced.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from types import CodeType

from kserve_local.devloop.decorators import decorator_of
from kserve_local.devloop.source import Definition, Function, Shape, shape, statements_of

_KIND = 0x20 | 0x80 | 0x100 | 0x200
"""co_flags: generator, coroutine, iterable coroutine, async generator."""


class Differs(Exception):
    """More than the bodies of functions differs."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def _calling(node: Definition) -> Shape:
    return [type(node), shape(node, without=("body", "decorator_list", "name", "type_comment"))]


def compare_calls(qualname: str, old: Definition, new: Definition) -> None:
    """Check that a function is called and decorated as before.

    Raises:
        Differs: It is not.
    """
    if type(old) is not type(new):
        raise Differs(f'"{qualname}" is called another way now (async)', new.lineno)
    if _calling(old) != _calling(new):
        why = "a request under way would call it the old way"
        raise Differs(f'the parameters of "{qualname}" changed: {why}', new.lineno)
    if [shape(d) for d in old.decorator_list] != [shape(d) for d in new.decorator_list]:
        raise Differs(f'the decorators of "{qualname}" changed', new.lineno)


# -- functions, classes and lambdas in the body of a function

_Inner = Definition | ast.ClassDef | ast.Lambda


def _inner(function: Function) -> Iterator[tuple[str, _Inner]]:
    """Yield qualified name and node of what is defined in a body, in the order of the text."""
    prefix = f"{function.qualname}.<locals>."
    waiting: list[tuple[str, ast.AST]] = [(prefix, n) for n in reversed(function.node.body)]
    while waiting:
        prefix, node = waiting.pop()
        around = list(ast.iter_child_nodes(node))
        within: list[ast.AST] = []
        name = "<lambda>" if isinstance(node, ast.Lambda) else getattr(node, "name", "")
        below = f"{prefix}{name}{'.' if isinstance(node, ast.ClassDef) else '.<locals>.'}"
        if isinstance(node, Definition | ast.ClassDef):
            yield f"{prefix}{name}", node
            within = list(node.body)
            around = [child for child in around if child not in within]
        elif isinstance(node, ast.Lambda):
            yield f"{prefix}{name}", node
            within, around = [node.body], [node.args]
        waiting += [(below, child) for child in reversed(within)]
        waiting += [(prefix, child) for child in reversed(around)]


def _grouped(function: Function) -> dict[str, list[_Inner]]:
    groups: dict[str, list[_Inner]] = {}
    for name, node in _inner(function):
        groups.setdefault(name, []).append(node)
    return groups


def compare_bodies(old: Function, new: Function, imports: Mapping[str, str]) -> list[str]:
    """Return qualified names of what differs itself, of a function and those in its body.

    Raises:
        Differs: What a process may hold of it has no clear counterpart.
    """
    names = []
    if shape(old.node, inner=False) != shape(new.node, inner=False):
        names.append(new.qualname)
    olds, news = _grouped(old), _grouped(new)
    for name, group in olds.items():
        others = news.get(name, [])
        if name.endswith("<lambda>"):
            _compare_lambdas(new, group, others)
            continue
        if len(others) != len(group):
            what = "was removed" if not others else "is defined more or less often"
            raise Differs(f'"{name}" {what}; one that is still held would be lost', new.node.lineno)
        for one, other in zip(group, others, strict=True):
            if isinstance(one, ast.ClassDef) or isinstance(other, ast.ClassDef):
                _compare_classes(name, one, other)
            elif isinstance(one, Definition) and isinstance(other, Definition):
                names += _compare_function(name, one, other, imports)
    return names or [new.qualname]


def _compare_function(
    name: str, old: Definition, new: Definition, imports: Mapping[str, str]
) -> list[str]:
    compare_calls(name, old, new)
    if shape(old) != shape(new):
        for expression in new.decorator_list:
            found = decorator_of(expression, new.name, imports)
            if not found.is_harmless:
                why = found.why or "which may do more than wrap it"
                raise Differs(f'"{name}" is decorated with @{found.name}, {why}', new.lineno)
    return [name] if shape(old, inner=False) != shape(new, inner=False) else []


def _compare_classes(name: str, old: _Inner, new: _Inner) -> None:
    if isinstance(old, ast.ClassDef) and isinstance(new, ast.ClassDef):
        heads = [shape(node, without=("body",)) for node in (old, new)]
        bodies = [[s.shape for s in statements_of(node.body)] for node in (old, new)]
        if heads[0] == heads[1] and bodies[0] == bodies[1]:
            return
    raise Differs(f'the body of class "{name}" changed', new.lineno)


def _compare_lambdas(function: Function, olds: list[_Inner], news: list[_Inner]) -> None:
    """Raise Differs where it cannot be told which lambda of a function became which."""
    before, after = [shape(node) for node in olds], [shape(node) for node in news]
    if before == after[: len(before)]:
        return
    is_clear = len(before) == len(after) and all(
        one == other or (one not in after and other not in before)
        for one, other in zip(before, after, strict=True)
    )
    is_clear = is_clear and all(
        isinstance(a, ast.Lambda) and isinstance(b, ast.Lambda) and shape(a.args) == shape(b.args)
        for a, b in zip(olds, news, strict=True)
    )
    if not is_clear:
        why = "which is which cannot be told"
        raise Differs(f'the lambdas in "{function.qualname}" changed: {why}', function.node.lineno)


# -- compiled code

_TRANSIENT = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


def codes_of(code: CodeType) -> dict[str, list[CodeType]]:
    """Return all code within some, by qualified name."""
    groups: dict[str, list[CodeType]] = {}
    waiting = [code]
    while waiting:
        inner = [const for const in waiting.pop().co_consts if isinstance(const, CodeType)]
        for one in inner:
            groups.setdefault(one.co_qualname, []).append(one)
        waiting += inner
    return groups


def compare_code(old: CodeType, new: CodeType) -> None:
    """Check that functions take the same variables from around them and run the same way.

    Raises:
        Differs: One does not.
    """
    news = codes_of(new)
    for name, group in codes_of(old).items():
        if name.endswith(_TRANSIENT):
            continue
        for one, other in zip(group, news.get(name, []), strict=False):
            line = other.co_firstlineno
            if one.co_freevars != other.co_freevars:
                names = sorted(set(one.co_freevars) ^ set(other.co_freevars))
                if names == ["__class__"]:
                    raise Differs(f'"{name}" began or ceased to use super()', line)
                what = ", ".join(names)
                raise Differs(f'"{name}" takes other variables from around it ({what})', line)
            if (one.co_flags ^ other.co_flags) & _KIND:
                raise Differs(f'"{name}" is called another way now (async or generator)', line)
