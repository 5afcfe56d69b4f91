"""Python source as a reload looks at it: functions, and the statements around them. Pure.

A function here is one whose definition stands at module level or in a class there; what is nested
in its body belongs to it.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

Definition = ast.FunctionDef | ast.AsyncFunctionDef
Shape = list[object]

_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


class Unreadable(Exception):
    """A text is no Python."""

    def __init__(self, line: int, error: str) -> None:
        super().__init__(error)
        self.line = line
        self.error = error


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a file.

    Args:
        qualname: As Python's `__qualname__`.
        owners: Names of the classes around it, outermost first.
        is_plain: It stands in the module or class itself, not below an `if`, `try` or the like.
        index: How many of the same qualified name come before it (a property and its setter).
    """

    node: Definition
    qualname: str
    owners: tuple[str, ...]
    is_plain: bool
    index: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement at module level or in a class, without those within it.

    Args:
        shape: What it says; equal for equal code, wherever it stands.
        owner: Qualified name of the class it is in, or defines; empty: none.
    """

    line: int
    shape: Shape
    owner: str


# The few texts of one save are asked for again and again; a tree is large.
@lru_cache(maxsize=8)
def parse(text: str) -> ast.Module:
    """Return the syntax tree, which nobody may change.

    Raises:
        Unreadable: It cannot be read by the interpreter that runs here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text.removeprefix("\ufeff"))
    except _UNREADABLE as error:
        raise _unreadable(error) from None


@lru_cache(maxsize=8)
def compiled(text: str) -> CodeType:
    """Return the code of a module; refuses what parsing lets through, as a stray `return`.

    Raises:
        Unreadable: The compiler refuses it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(parse(text), "<saved>", "exec", dont_inherit=True)
    except _UNREADABLE as error:
        raise _unreadable(error) from None


def _unreadable(error: BaseException) -> Unreadable:
    if isinstance(error, SyntaxError):
        return Unreadable(error.lineno or 1, f"{type(error).__name__}: {error.msg}")
    return Unreadable(1, f"{type(error).__name__}: {error}")


def functions_of(tree: ast.Module) -> list[Function]:
    """Return the functions of a file in the order of their definitions."""
    counts: dict[str, int] = {}
    found = []
    for node, owners, is_plain in _functions(tree.body, (), True):
        qualname = ".".join((*owners, node.name))
        index = counts[qualname] = counts.get(qualname, -1) + 1
        found.append(Function(node, qualname, owners, is_plain, index))
    return found


def _functions(
    body: list[ast.stmt], owners: tuple[str, ...], is_plain: bool
) -> Iterator[tuple[Definition, tuple[str, ...], bool]]:
    for statement in body:
        if isinstance(statement, Definition):
            yield statement, owners, is_plain
        elif isinstance(statement, ast.ClassDef):
            yield from _functions(statement.body, (*owners, statement.name), is_plain)
        else:
            for _, inner in _blocks(statement):
                yield from _functions(inner, owners, False)


def classes_of(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield qualified name and node of the classes outside of functions."""
    waiting: list[tuple[str, list[ast.stmt]]] = [("", tree.body)]
    while waiting:
        owner, body = waiting.pop()
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                qualname = f"{owner}.{statement.name}" if owner else statement.name
                yield qualname, statement
                waiting.append((qualname, statement.body))
            elif not isinstance(statement, Definition):
                waiting += [(owner, inner) for _, inner in _blocks(statement)]


def statements_of(
    body: list[ast.stmt], *, without: Iterable[str] = (), doc: bool = True, owner: str = ""
) -> Iterator[Statement]:
    """Yield what runs when a module (or class) is made, of a function only that it is defined.

    Args:
        without: Qualified names of functions to leave out.
        doc: Whether the docstring counts.
    """
    left_out = frozenset(without)
    start = 0 if doc or not _is_docstring(body[:1]) else 1
    yield from _statements(body[start:], owner, left_out)


def _statements(body: list[ast.stmt], owner: str, without: frozenset[str]) -> Iterator[Statement]:
    for statement in body:
        line = statement.lineno
        if isinstance(statement, Definition):
            qualname = f"{owner}.{statement.name}" if owner else statement.name
            if qualname not in without:
                yield Statement(line, [Definition, statement.name], owner)
        elif isinstance(statement, ast.ClassDef):
            qualname = f"{owner}.{statement.name}" if owner else statement.name
            yield Statement(line, shape(statement, without=("body",)), qualname)
            yield from _statements(statement.body, qualname, without)
            yield Statement(line, ["end"], qualname)
        else:
            blocks = list(_blocks(statement))
            fields = ("body", "orelse", "finalbody", "handlers", "cases") if blocks else ()
            yield Statement(line, shape(statement, without=fields), owner)
            for head, inner in blocks:
                yield Statement(line, head, owner)
                yield from _statements(inner, owner, without)
            if blocks:
                yield Statement(line, ["end"], owner)


def _blocks(statement: ast.stmt) -> Iterator[tuple[Shape, list[ast.stmt]]]:
    """Yield the lists of statements within one, each with what stands before it."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        items = getattr(statement, field, None)
        if not isinstance(items, list) or not items:
            continue
        if isinstance(items[0], ast.stmt):
            yield [field], items
        else:
            for item in items:
                yield [field, *shape(item, without=("body",))], item.body


def _is_docstring(body: list[ast.stmt]) -> bool:
    return (
        bool(body)
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )


def shape(node: ast.AST, *, without: Iterable[str] = (), inner: bool = True) -> Shape:
    """Return what is equal for equal code, whatever its lines and comments.

    Args:
        without: Fields of the node itself to leave out.
        inner: Whether the bodies of functions within it count.
    """
    left_out = frozenset(without)
    found: Shape = [type(node)]
    waiting = [getattr(node, f, None) for f in reversed(node._fields) if f not in left_out]
    while waiting:
        item = waiting.pop()
        if isinstance(item, ast.AST):
            found.append(type(item))
            fields = reversed(item._fields)
            if not inner and isinstance(item, Definition):
                waiting += [getattr(item, f, None) for f in fields if f != "body"]
            else:
                waiting += [getattr(item, f, None) for f in fields]
        elif isinstance(item, list):
            found.append(("list", len(item)))
            waiting += reversed(item)
        else:
            # 1, 1.0 and True are equal, and not the same constant.
            found.append((type(item), item))
    return found


def places(node: ast.AST) -> list[tuple[object, ...]]:
    """Return where everything in a node stands; tracebacks show lines and columns."""
    return [
        (n.lineno, n.col_offset, n.end_lineno, n.end_col_offset)
        for n in ast.walk(node)
        if isinstance(n, (ast.stmt, ast.expr, ast.excepthandler))
    ]


def split(text: str) -> list[str]:
    """Return the lines of a text as the syntax tree counts them."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def lines_of(node: Definition, lines: list[str]) -> list[str]:
    """Return the lines of a function, decorators first."""
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return lines[start - 1 : node.end_lineno]


def docstring_of(tree: ast.Module) -> str | None:
    """Return a module's docstring."""
    return ast.get_docstring(tree, clean=False)


def imports_of(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Return what names stand for by the imports among nodes: `{"np": "numpy"}`."""
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = "." * node.level + (node.module or "")
                found[alias.asname or alias.name] = f"{module}.{alias.name}"
    return found


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of such an expression, empty for any other."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def resolved(name: str, imports: Mapping[str, str]) -> str:
    """Return a dotted name with its first part as it was imported."""
    first, dot, rest = name.partition(".")
    return imports.get(first, first) + dot + rest


def is_accessor(decorator: ast.expr, function: str) -> bool:
    """Whether this makes a function the setter, getter or deleter of the property of its name."""
    return dotted(decorator) in [f"{function}.{kind}" for kind in ("setter", "getter", "deleter")]
