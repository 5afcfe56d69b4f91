"""What a function makes once and keeps: a model loaded at the first request, a table of answers.

Old code made it, and new code would go on using it, as it is with what `load()` makes. Pure.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from kserve_local.devloop.source import Definition, dotted


def kept_in(node: Definition) -> list[ast.AST]:
    """Return what of a function makes something that is only made if it is not there yet.

    That is the `if self.model is None: self.model = ...`, a `TABLE.setdefault(...)`, and where the
    function returns early what is there, its whole body.
    """
    nodes = list(ast.walk(node))
    own = _locals(nodes)
    found: list[ast.AST] = []
    tested: set[str] = set()
    for item in nodes:
        if isinstance(item, ast.If | ast.IfExp):
            places = {p for p in _asked(item.test) if _lasts(p, own)}
            within = list(ast.walk(item))
            if places & set(_stored(within)):
                found.append(item)
            else:
                tested |= places
        elif isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute):
            if item.func.attr == "setdefault" and _lasts(dotted(item.func.value), own):
                found.append(item)
        elif isinstance(item, ast.Assign) and isinstance(item.value, ast.BoolOp):
            offered = {dotted(v) for v in item.value.values}
            if any(_lasts(place, own) and place in offered for place in _stored(item.targets)):
                found.append(item)
        elif isinstance(item, ast.Try) and _catches_absence(item):
            tested |= {p for p in _read(item.body) if _lasts(p, own)}
    return [*node.body] if tested & set(_stored(nodes)) else found


def _locals(nodes: list[ast.AST]) -> set[str]:
    """Return names that end with a call: parameters and variables of the function."""
    own = {n.arg for n in nodes if isinstance(n, ast.arg)}
    own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Global | ast.Nonlocal):
            own -= set(node.names)
    return own - {"self", "cls"}


def _lasts(place: str, own: set[str]) -> bool:
    return bool(place) and place.partition(".")[0] not in own and place not in ("self", "cls")


def _asked(test: ast.expr) -> Iterator[str]:
    """Yield the places that a condition asks whether they hold something."""
    if isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from _asked(value)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _asked(test.operand)
    elif isinstance(test, ast.NamedExpr):
        yield from _asked(test.value)
    elif isinstance(test, ast.Compare):
        if isinstance(test.ops[0], ast.In | ast.NotIn):
            yield dotted(test.comparators[0])
        elif isinstance(test.comparators[0], ast.Constant) and test.comparators[0].value is None:
            yield from _asked(test.left)
    elif isinstance(test, ast.Call):
        name = dotted(test.func)
        if name in ("hasattr", "getattr") and len(test.args) > 1:
            attribute = test.args[1]
            if isinstance(attribute, ast.Constant) and isinstance(attribute.value, str):
                yield f"{dotted(test.args[0])}.{attribute.value}"
        elif name.endswith(".get"):
            yield name.removesuffix(".get")
    else:
        yield dotted(test)


def _stored(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """Yield the places that something is put into; of `table[key]`, the table."""
    for node in nodes:
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            yield dotted(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield dotted(node.value)


def _catches_absence(node: ast.Try) -> bool:
    kinds = {"KeyError", "AttributeError", "LookupError", "NameError"}
    return any(
        isinstance(n, ast.Name) and n.id in kinds
        for handler in node.handlers
        if handler.type is not None
        for n in ast.walk(handler.type)
    )


def _read(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the places that are read."""
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Subscript):
                yield dotted(node.value)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
                yield dotted(node)
