"""Which decorators leave a function one whose code can be replaced. Pure.

What a library's decorator does is known by name, or not at all; the project's own are read: one
that only hands the function to an inner function goes on working when the function gets new code.
One that calls it right away, or whose inner function keeps its answers, would show the old code.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from kserve_local.devloop.source import Definition, dotted, is_accessor, resolved

_HARMLESS = frozenset({
    "staticmethod", "classmethod", "property",
    "abc.abstractmethod", "functools.wraps",
    "typing.override", "typing_extensions.override", "typing.final", "typing_extensions.final",
    "typing.no_type_check",
    "contextlib.contextmanager", "contextlib.asynccontextmanager",
    "torch.no_grad", "torch.inference_mode", "torch.enable_grad", "numpy.errstate",
})  # fmt: skip
_ROUTES = frozenset({
    "get", "post", "put", "delete", "patch", "head", "options", "route", "api_route", "websocket",
    "websocket_route",
})  # fmt: skip
_WHY = {
    **dict.fromkeys(
        ("cache", "lru_cache", "cached_property", "cached", "cachedmethod", "memoize", "ttl_cache"),
        "which keeps old answers",
    ),
    **dict.fromkeys(
        ("jit", "njit", "pjit", "compile", "script", "trace", "vectorize", "guvectorize"),
        "which compiled the old code",
    ),
    **dict.fromkeys(
        ("on_event", "lifespan", "startup", "on_startup", "before_first_request"),
        "which runs it when the server starts",
    ),
}
_UNKNOWN = "whose result is not known"
_ABOUT = frozenset({"__name__", "__qualname__", "__doc__", "__module__", "__annotations__"})
_LOOKS_ONLY = frozenset({
    "wraps", "update_wrapper", "signature", "get_type_hints", "iscoroutinefunction",
    "isgeneratorfunction", "isasyncgenfunction", "isfunction", "ismethod", "append", "add",
})  # fmt: skip
_STORES = frozenset(
    {"append", "add", "setdefault", "put", "update", "set", "insert", "__setitem__"}
)


@dataclass(frozen=True, slots=True)
class Decorator:
    """A decorator as it stands on a function.

    Args:
        name: As written.
        resolved: With its first part as it was imported.
        is_called: `@retry(3)`, not `@timed`.
        is_harmless: Known to leave the function replaceable.
        why: What is known of one that does not; empty: nothing, it may be the project's own.
    """

    name: str
    resolved: str
    is_called: bool
    is_harmless: bool
    why: str = ""


def decorator_of(expression: ast.expr, function: str, imports: Mapping[str, str]) -> Decorator:
    """Return what a decorator is to the function of this name, by the imports of its file."""
    call = expression if isinstance(expression, ast.Call) else None
    name = dotted(call.func if call else expression)
    full = resolved(name, imports)
    base, _, last = full.rpartition(".")
    if is_accessor(expression, function):
        return Decorator(name, full, False, True)
    if full in _HARMLESS or full.removeprefix("builtins.") in _HARMLESS:
        return Decorator(name, full, call is not None, True)
    if call and base and last in _ROUTES and _has_path(call):
        return Decorator(name, full, True, True)
    return Decorator(
        name or ast.unparse(expression)[:40], full, call is not None, False, _WHY.get(last, "")
    )


def _has_path(call: ast.Call) -> bool:
    paths = [*call.args[:1], *(k.value for k in call.keywords if k.arg in ("path", "rule"))]
    return any(
        isinstance(path, ast.Constant)
        and isinstance(path.value, str)
        and path.value[:1] in ("", "/")
        for path in paths
    )


def why_not_wrappers(
    node: Definition, nodes: Collection[ast.AST], imports: Mapping[str, str]
) -> tuple[str, str]:
    """Return `why_not_wrapper` of a function as a decorator, and as a maker of decorators.

    Args:
        nodes: All of the function's, itself among them.
    """
    defines = any(isinstance(n, Definition) for n in nodes if n is not node)
    returned = {dotted(n.value) for n in nodes if isinstance(n, ast.Return) and n.value}
    if not defines and not returned & _given(node):
        return _UNKNOWN, _UNKNOWN
    return why_not_wrapper(node, imports), why_not_wrapper(node, imports, is_factory=True)


def why_not_wrapper(
    node: Definition, imports: Mapping[str, str], *, is_factory: bool = False
) -> str:
    """Return why a function is no decorator that only wraps, for people; empty: it is one.

    Args:
        is_factory: It returns the decorator, as `retry` in `@retry(3)`.
    """
    inner = list(_directly(node))
    if is_factory:
        if not inner:
            return _UNKNOWN
        for function in inner:
            why = why_not_wrapper(function, imports)
            if why:
                return why
        names = {function.name for function in inner}
        return "which calls it at once" if _calls(node, names) else _odd(node, imports)
    given = _given(node)
    if not given:
        return _UNKNOWN
    if _uses(node, given) or _calls(node, {function.name for function in inner}):
        return "which does more with it than wrap it"
    for function in inner:
        if _keeps(function, given):
            return "which keeps old answers"
    return _odd(node, imports)


def _given(node: Definition) -> set[str]:
    """Return the parameters of a function that what is decorated may be."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    given = {a.arg for a in arguments if a.arg not in ("self", "cls")}
    return given | {a.arg for a in (node.args.vararg, node.args.kwarg) if a is not None}


def _odd(node: Definition, imports: Mapping[str, str]) -> str:
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef):
            return "which puts it into a class"
        if isinstance(inner, Definition) and inner is not node:
            for expression in inner.decorator_list:
                found = decorator_of(expression, inner.name, imports)
                if not found.is_harmless:
                    return found.why or f"which decorates it with @{found.name}"
    return ""


def _own(node: Definition) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield (node, parent) of what runs when the function does, not what it defines."""
    waiting: list[tuple[ast.AST, ast.AST]] = [(child, node) for child in node.body]
    while waiting:
        item, parent = waiting.pop()
        yield item, parent
        if isinstance(item, Definition):
            waiting += [(child, item) for child in (*item.decorator_list, item.args)]
        elif not isinstance(item, ast.Lambda):
            waiting += [(child, item) for child in ast.iter_child_nodes(item)]


def _directly(node: Definition) -> Iterator[Definition]:
    return (item for item, _ in _own(node) if isinstance(item, Definition))


def _calls(node: Definition, names: set[str]) -> bool:
    return any(
        isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id in names
        for item, _ in _own(node)
    )


def _uses(node: Definition, given: set[str]) -> bool:
    """Whether what is decorated may be called, or be known by another name."""
    parents = {id(item): parent for item, parent in _own(node)}
    for item, parent in _own(node):
        if not isinstance(item, ast.Name) or item.id not in given:
            continue
        if not isinstance(item.ctx, ast.Load):
            return True
        if isinstance(parent, ast.Return | ast.Compare | ast.UnaryOp | ast.If):
            continue
        if isinstance(parent, ast.Assign) and not any(
            isinstance(target, ast.Name) for target in parent.targets
        ):
            continue
        if isinstance(parent, ast.Attribute):
            around = parents[id(parent)]
            is_called = isinstance(around, ast.Call) and around.func is parent
            if not is_called and (parent.attr in _ABOUT or isinstance(parent.ctx, ast.Store)):
                continue
        if isinstance(parent, ast.Call) and _only_looks(parent, item):
            continue
        return True
    return False


def _only_looks(call: ast.Call, given: ast.Name) -> bool:
    return given is not call.func and dotted(call.func).rpartition(".")[2] in _LOOKS_ONLY


def _keeps(function: Definition, given: set[str]) -> bool:
    """Whether an inner function stores what the decorated one answered."""
    nodes = list(ast.walk(function))
    outer = {n for node in nodes if isinstance(node, ast.Nonlocal | ast.Global) for n in node.names}
    answers: set[str] = set()

    def answered(node: ast.AST) -> bool:
        return any(
            (isinstance(n, ast.Name) and n.id in answers)
            or (isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in given)
            for n in ast.walk(node)
        )

    # Twice: an answer may be handed on above the line that names it, in a loop.
    for _ in range(2):
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
                if node.value is None or not answered(node.value):
                    continue
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Subscript | ast.Attribute):
                        return True
                    names = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
                    if names & outer:
                        return True
                    answers |= names
            elif _is_store(node) and any(answered(a) for a in node.args):
                return True
    return False


def _is_store(node: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _STORES
    )
