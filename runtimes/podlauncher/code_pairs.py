"""Which function of a file's new text takes the place of which of its old text. Pure.

Both texts are compiled, not run. Code objects correspond by their place: the names they are nested
in, and their order among those of one name. Two code objects are the same if they would do the same
on the same lines; `==` would compare less (no lines, before Python 3.12).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any, Union

_NEWLOCALS = 0x02
_KIND = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
"""co_flags: *args, **kwargs, generator, coroutine, iterable coroutine, async generator."""
MODULE = "<module>"
TRANSIENT = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
"""Functions that are called once, where they are made."""

Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef]  # noqa: UP007 - Python 3.9


class Refused(Exception):
    """A change cannot be put into this process; the message says why, for people."""


@dataclass(frozen=True)
class Pair:
    """A code object of the old text and what takes its place.

    Args:
        name: Its qualified name.
        new: None: nothing does.
        differs: It does something else, or what is nested in it does.
        differs_itself: Not only what is nested in it.
        is_named: It stands in the module or in a class, so it is there once that is loaded.
        scopes: Classes within functions that it lies in, as pairs of code objects.
    """

    name: str
    old: CodeType
    new: CodeType | None
    differs: bool
    differs_itself: bool
    is_named: bool
    scopes: tuple[tuple[CodeType, CodeType], ...] = ()

    def why_not(self) -> str:
        """Return why a function that has the old code cannot get the new; empty: it can."""
        if self.new is None:
            return f"what is to replace {self.name}() cannot be told"
        if self.new.co_freevars != self.old.co_freevars:
            names = set(self.new.co_freevars) ^ set(self.old.co_freevars)
            return f"{self.name}() uses other variables from around it ({', '.join(sorted(names))})"
        if _parameters(self.old) != _parameters(self.new):
            return f"{self.name}() has other parameters, or is called another way"
        for old, new in self.scopes:
            if sorted(c.co_name for c in children(old)) != sorted(c.co_name for c in children(new)):
                return f"the class {old.co_name}, made within a function, has other methods"
        return ""


@dataclass(frozen=True)
class Added:
    """A function that only the new text has, in the module or in a class.

    Args:
        owners: Names of the classes around it, outermost first.
        node: Its definition.
    """

    owners: tuple[str, ...]
    code: CodeType
    node: Definition

    @property
    def name(self) -> str:
        """Its qualified name."""
        return ".".join((*self.owners, self.node.name))

    @property
    def attribute(self) -> str:
        """The name that its owner has it under: a class makes private names its own."""
        name, owner = self.node.name, self.owners[-1].lstrip("_") if self.owners else ""
        return f"_{owner}{name}" if owner and name.startswith("__") else name


@dataclass
class Compiled:
    """Both texts of one file under one file name.

    Args:
        file: The file as people know it.
        old: Pairs by the identity of the old code.
        new: Identities of what the new text has.
        docs: Old and new docstring by qualified name of module (empty) and classes.
    """

    file: str
    filename: str
    before: CodeType
    after: CodeType
    old: dict[Any, Pair] = field(default_factory=dict)
    new: set[Any] = field(default_factory=set)
    added: list[Added] = field(default_factory=list)
    docs: dict[tuple[str, ...], tuple[str | None, str | None]] = field(default_factory=dict)


def compiled(file: str, filename: str, before: str, after: str) -> Compiled:
    """Compile both texts of a file and pair what they define.

    Raises:
        Refused: One does not compile here, or an added function cannot be put where it belongs.
    """
    old, new = _compile(file, filename, before), _compile(file, filename, after)
    found = Compiled(file, filename, old, new)
    added: list[tuple[tuple[str, ...], CodeType]] = []
    for pair in _pairs(old, new, (), (), added):
        key = identity(pair.old)
        other = found.old.get(key)
        # Equal functions on one line: only if it does not matter which is which.
        if other is not None and _key(other.new) != _key(pair.new):
            pair = replace(pair, new=None, differs=True)
        found.old[key] = pair
    found.new = {identity(code) for code in _all(new)}
    if added or _outside(old) != _outside(new):
        # Rarely, so that texts are not parsed twice for a method's edit.
        tree = ast.parse(_text(after))
        found.added = [
            Added(owners, code, _definition(file, tree, owners, code)) for owners, code in added
        ]
        found.docs = _changed_docs(ast.parse(_text(before)), tree)
    return found


def _text(text: str) -> str:
    return text[1:] if text.startswith("\ufeff") else text


def _compile(file: str, filename: str, text: str) -> CodeType:
    try:
        code: CodeType = compile(_text(text), filename, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise Refused(f"{file}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise Refused(f"{file} cannot be compiled: {type(error).__name__}: {error}") from None
    return code


def children(code: CodeType) -> list[CodeType]:
    """Return what is defined directly in a code object, in its order."""
    return [const for const in code.co_consts if isinstance(const, CodeType)]


def is_class(code: CodeType) -> bool:
    """Whether it is the body of a class (or a module)."""
    return not code.co_flags & _NEWLOCALS


def _all(code: CodeType) -> Iterator[CodeType]:
    for child in children(code):
        yield child
        yield from _all(child)


def _outside(code: CodeType) -> Any:
    """Return what is equal for modules and classes that do the same outside of functions."""
    classes = tuple(_outside(child) for child in children(code) if is_class(child))
    return (_behaviour(code, deep=False), classes)


def _grouped(code: CodeType) -> dict[str, list[CodeType]]:
    groups: dict[str, list[CodeType]] = {}
    for child in children(code):
        groups.setdefault(child.co_name, []).append(child)
    return groups


def _pairs(
    old: CodeType,
    new: CodeType,
    path: tuple[str, ...],
    scopes: tuple[tuple[CodeType, CodeType], ...],
    added: list[tuple[tuple[str, ...], CodeType]],
) -> Iterator[Pair]:
    olds, news = _grouped(old), _grouped(new)
    named = "<locals>" not in path
    for name, group in olds.items():
        others = news.get(name, [])
        if len(others) != len(group) or any(
            is_class(a) != is_class(b)
            for a, b in zip(group, others)  # noqa: B905 - Python 3.9
        ):
            for code in group:
                yield from _without(code, path)
            continue
        for one, other in zip(group, others):  # noqa: B905 - Python 3.9
            within = (*path, name)
            if is_class(one):
                around = scopes if named else (*scopes, (one, other))
                yield from _pairs(one, other, within, around, added)
                continue
            alone = named and name not in TRANSIENT and name != "<lambda>"
            differs = _behaviour(one, deep=True) != _behaviour(other, deep=True)
            itself = _behaviour(one, deep=False) != _behaviour(other, deep=False)
            yield Pair(".".join(within), one, other, differs, itself, alone, scopes)
            yield from _pairs(one, other, (*within, "<locals>"), scopes, added)
    if named:
        for name, group in news.items():
            extra = group if name not in olds else group[len(olds[name]) :]
            added.extend((path, code) for code in extra if name not in TRANSIENT)


def _without(code: CodeType, path: tuple[str, ...]) -> Iterator[Pair]:
    """Yield pairs of what has no place in the new text."""
    name = code.co_name
    within = (*path, name)
    if not is_class(code):
        alone = "<locals>" not in path and name not in TRANSIENT and name != "<lambda>"
        yield Pair(".".join(within), code, None, True, True, alone)
        within = (*within, "<locals>")
    for child in children(code):
        yield from _without(child, within)


def _parameters(code: CodeType) -> tuple[Any, ...]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return (
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags & _KIND,
        code.co_varnames[:count],
    )


# -- the same code


def identity(code: CodeType) -> Any:
    """Return what is equal for code objects that do the same on the same lines."""
    lines = code.co_linetable if hasattr(code, "co_linetable") else code.co_lnotab
    consts = tuple(_constant(const) for const in code.co_consts)
    return (code.co_name, code.co_firstlineno, lines, _works(code), consts)


def _key(code: CodeType | None) -> Any:
    return None if code is None else identity(code)


def _behaviour(code: CodeType, *, deep: bool) -> Any:
    """Return what is equal for code that does the same, whatever its lines.

    Args:
        deep: With what is nested in it.
    """
    consts = []
    for const in code.co_consts:
        if not isinstance(const, CodeType):
            consts.append(_constant(const))
        elif deep or const.co_name in TRANSIENT:
            consts.append(_behaviour(const, deep=deep))
        else:
            consts.append(const.co_name)
    return (_works(code), tuple(consts))


def _works(code: CodeType) -> Any:
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_flags,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        getattr(code, "co_exceptiontable", b""),
    )


def _constant(const: Any) -> Any:
    """Return a constant as what is equal only for the same: 1, 1.0 and True are three."""
    if isinstance(const, CodeType):
        return identity(const)
    if isinstance(const, tuple):
        return (tuple, *(_constant(item) for item in const))
    if isinstance(const, frozenset):
        return (frozenset, frozenset(_constant(item) for item in const))
    if isinstance(const, (str, bytes, int, type(None))):
        return (type(const), const)
    return (type(const), repr(const))


# -- where a definition stands


def _definition(file: str, tree: ast.Module, owners: tuple[str, ...], code: CodeType) -> Definition:
    """Return the definition that made `code`, if it is one that can be added.

    Raises:
        Refused: It is none.
    """
    body = tree.body
    where = ".".join((*owners, code.co_name))
    for owner in owners:
        classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == owner]
        if len(classes) != 1:
            raise Refused(f"{file}: {where} is new, and {owner} is defined under a condition")
        body = classes[0].body
    nodes = [
        n
        for n in body
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.name == code.co_name
    ]
    if len(nodes) != 1 or is_class(code) or getattr(nodes[0], "type_params", None):
        raise Refused(f"{file}: {where} is new, and no plain function or method")
    return nodes[0]


def _changed_docs(
    before: ast.Module, after: ast.Module
) -> dict[tuple[str, ...], tuple[str | None, str | None]]:
    olds, news = dict(_docs(before, ())), dict(_docs(after, ()))
    return {
        path: (doc, news[path]) for path, doc in olds.items() if path in news and news[path] != doc
    }


def _docs(
    node: ast.Module | ast.ClassDef, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str | None]]:
    yield path, ast.get_docstring(node, clean=False)
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _docs(child, (*path, child.name))
