"""What a text says of a file: its functions, classes and imports. Pure; kept by text."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from kserve_local.devloop.decorators import Decorator, decorator_of, why_not_wrappers
from kserve_local.devloop.keeping import kept_in
from kserve_local.devloop.mentions import Mentions, mentions_of, module_level
from kserve_local.devloop.source import (
    Definition,
    Unreadable,
    classes_of,
    dotted,
    functions_of,
    imports_of,
    parse,
    resolved,
)

_HARMLESS_CLASS = frozenset({
    "dataclasses.dataclass", "functools.total_ordering", "typing.final", "enum.unique",
    "typing.runtime_checkable", "typing_extensions.final", "typing_extensions.runtime_checkable",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """What is known of a function.

    Args:
        names: Its name and those of the functions in its body.
        kept: What is mentioned by what it makes once and keeps.
        bad_wrapper, bad_factory: Why it is no decorator, or maker of decorators, that only wraps.
    """

    name: str
    qualname: str
    index: int
    line: int
    names: frozenset[str]
    mentions: Mentions
    kept: Mentions
    decorators: tuple[Decorator, ...]
    bad_wrapper: str
    bad_factory: str


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """What is known of a class.

    Args:
        bases: As resolved by the imports of the file; empty: an expression.
        odd: What may use its methods as it is made: a decorator, a metaclass; empty: nothing.
    """

    name: str
    qualname: str
    bases: tuple[str, ...]
    odd: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file.

    Args:
        module: What its module level mentions.
        imports: What names stand for, e.g. `{"np": "numpy"}`.
        aliases: (name here, name there) of what is imported under another one.
        names: What may name a module in it: imports, and strings.
        stars: Last part of the modules that it imports `*` of; empty for `from . import *`.
        error, line: Why it is no Python; empty: it is.
    """

    functions: tuple[FunctionFacts, ...]
    classes: tuple[ClassFacts, ...]
    module: Mentions
    imports: Mapping[str, str]
    aliases: tuple[tuple[str, str], ...]
    names: frozenset[str]
    stars: frozenset[str]
    error: str = ""
    line: int = 0


# Of a project of a few hundred files, what is kept is a few megabytes.
@lru_cache(maxsize=2048)
def facts_of(text: str) -> Facts:
    """Return what is known of a file with this text; of one that is no Python, the error."""
    try:
        tree = parse(text)
    except Unreadable as error:
        none = frozenset[str]()
        return Facts((), (), Mentions(none), {}, (), none, none, error.error, error.line)
    nodes = list(ast.walk(tree))
    imports = imports_of(nodes)
    classes = list(classes_of(tree))
    names = [node.name for _, node in classes]
    functions = []
    for function in functions_of(tree):
        node = function.node
        within = list(ast.walk(node))
        inner = {n.name for n in within if isinstance(n, Definition)}
        functions.append(
            FunctionFacts(
                node.name,
                function.qualname,
                function.index,
                node.lineno,
                frozenset(inner),
                mentions_of(node.body, imports, names),
                mentions_of(kept_in(node), imports, names),
                tuple(decorator_of(d, node.name, imports) for d in node.decorator_list),
                *why_not_wrappers(node, within, imports),
            )
        )
    parts: set[str] = set()
    stars: set[str] = set()
    for statement in nodes:
        if isinstance(statement, ast.Import):
            parts |= {p for alias in statement.names for p in alias.name.split(".")}
        elif isinstance(statement, ast.ImportFrom):
            module = (statement.module or "").split(".")
            parts |= {*module, *(alias.name for alias in statement.names)}
            if any(alias.name == "*" for alias in statement.names):
                stars.add(module[-1])
        elif isinstance(statement, ast.Constant) and isinstance(statement.value, str):
            parts |= mentions_of([statement], {}).names
    return Facts(
        tuple(functions),
        tuple(_class_facts(qualname, node, imports) for qualname, node in classes),
        mentions_of(module_level(tree), imports, names),
        imports,
        tuple((a, n.rpartition(".")[2]) for a, n in imports.items() if a != n.rpartition(".")[2]),
        frozenset(parts),
        frozenset(stars),
    )


def _class_facts(qualname: str, node: ast.ClassDef, imports: dict[str, str]) -> ClassFacts:
    odd = ""
    for decorator in node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if resolved(dotted(call), imports) not in _HARMLESS_CLASS:
            odd = f"is decorated with @{dotted(call) or ast.unparse(call)[:40]}"
    if node.keywords:
        odd = f"is made with {', '.join(k.arg or '**' for k in node.keywords)}"
    bases = []
    for base in node.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base
        bases.append(resolved(dotted(plain), imports))
    return ClassFacts(node.name, qualname, tuple(bases), odd)
