"""What a save of code asks for: new functions in place, new replicas, or nothing but a message.

Functions are put in place where nothing else changed and none of them has run, or may have run,
while the code was loaded (DESIGN.md section 4). In doubt new replicas are started, which is always
right. Pure: text in, a verdict out; the processes check it against what they really run.
"""

from __future__ import annotations

import ast
import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

from kserve_local.devloop.call_graph import (
    Function,
    Mentions,
    Reached,
    is_root,
    mentions,
    outermost,
    reached,
)
from kserve_local.interfaces.code import CodeChange

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_KINDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
# Last part of a decorator's name. These hold the function itself and look at nothing of it but
# its parameters.
_HARMLESS = frozenset(
    {
        "staticmethod", "classmethod", "property", "setter", "getter", "deleter", "wraps",
        "abstractmethod", "override", "final", "contextmanager", "asynccontextmanager", "no_grad",
        "inference_mode", "singledispatchmethod",
    }
)  # fmt: skip
# Of an object's method, with a path: an HTTP route.
_ROUTES = frozenset(
    {"get", "post", "put", "delete", "patch", "head", "options", "route", "api_route", "websocket"}
)
_HARMLESS_ON_CLASSES = frozenset({"dataclass", "total_ordering", "final", "runtime_checkable"})
_ADDED = frozenset({"staticmethod", "classmethod"})


@dataclass(frozen=True, slots=True)
class Nothing:
    """The code is what it was."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A file is no Python: `error` is e.g. `SyntaxError: invalid syntax`."""

    file: str
    line: int
    error: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Only a new process will do, and why."""

    reason: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Swap:
    """New functions can be put into processes that run."""

    change: CodeChange


Verdict = Nothing | Broken | Restart | Swap


def decide(before: Mapping[str, str], after: Mapping[str, str], *, id: str) -> Verdict:
    """Return what to do.

    Args:
        before, after: Text of every file that is part of the program, by its path below the folder
            of the code: as it was loaded, and as it was saved.
        id: Name for the change.
    """
    for file, text in sorted(after.items()):
        if before.get(file) == text:
            continue
        if not text.strip() and before.get(file, "").strip():
            return Broken(file, 0, "the file is empty; half saved?")
        broken = _broken(file, text)
        if broken is not None:
            return broken
    gone = sorted(set(before) - set(after))
    if gone:
        return Restart("the file was removed", gone[0], 0)
    files = [f for f in sorted(after) if f in before and before[f] != after[f]]
    if any(_broken(file, before[file]) for file in files):
        return Restart("the code of before did not load", files[0], 0)
    edits = {file: _edit(file, before[file], after[file]) for file in files}
    for edit in edits.values():
        if isinstance(edit, Restart):
            return edit
    found = {f: e for f, e in edits.items() if isinstance(e, _Edit)}
    if any(edit.changed or edit.added for edit in found.values()):
        # Both: what ran when it was loaded, and what would run now.
        both = [reached(_mentions(before)), reached(_mentions(after))]
        for file, edit in found.items():
            reason = _reached(file, edit, both) or _decorated(file, edit, after)
            if reason is not None:
                return reason
    moved = [f for f in files if not _is_same(before[f], after[f])]
    if not moved:
        return Nothing()
    functions = {f: (*found[f].changed, *found[f].added) for f in moved}
    return Swap(
        CodeChange(
            id=id,
            before={f: before[f] for f in moved},
            after={f: after[f] for f in moved},
            functions={f: names for f, names in functions.items() if names},
        )
    )


def prepare(files: Mapping[str, str]) -> None:
    """Read files ahead of the first change of them: later only what changed is read anew."""
    for _ in _mentions(files):
        pass


@lru_cache(maxsize=512)
def _parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


@lru_cache(maxsize=8192)
def _mentioned(text: str) -> Mentions:
    return mentions(_parsed(text))


def _mentions(files: Mapping[str, str]) -> Iterator[Mentions]:
    for file, text in files.items():
        if _broken(file, text) is None:
            yield _mentioned(text)


def _trees(files: Mapping[str, str]) -> Iterator[ast.Module]:
    for file, text in files.items():
        if _broken(file, text) is None:
            yield _parsed(text)


@lru_cache(maxsize=512)
def _compiled(text: str) -> CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile(text, "<saved>", "exec", dont_inherit=True)


def _broken(file: str, text: str) -> Broken | None:
    fault = _fault(text)
    return None if fault is None else Broken(file, *fault)


@lru_cache(maxsize=8192)
def _fault(text: str) -> tuple[int, str] | None:
    """Return line and error of a text that is no Python."""
    try:
        _parsed(text)
        _compiled(text)
    except SyntaxError as error:
        return error.lineno or 0, f"{type(error).__name__}: {error.msg}"
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return 0, f"{type(error).__name__}: {error}"
    return None


def _is_same(before: str, after: str) -> bool:
    """Whether two texts make the same code on the same lines."""
    return ast.dump(_parsed(before), include_attributes=True) == ast.dump(
        _parsed(after), include_attributes=True
    )


@dataclass(frozen=True, slots=True)
class _Edit:
    """Qualified names of what differs in one file -> the definition now, with its classes."""

    changed: Mapping[str, Function]
    added: Mapping[str, Function]
    tree: ast.Module


def _edit(file: str, before: str, after: str) -> _Edit | Restart:
    """Return the functions that differ, or why something else does."""
    old, new = _functions(before), _functions(after)
    for name, definitions in old.items():
        now = new.get(name, [])
        if len(now) < len(definitions):
            line = definitions[0].lineno
            return Restart(f'"{name}" was removed', file, line)
        if len(now) > len(definitions):
            return Restart(f'"{name}" is defined once more', file, now[-1].lineno)
    added = {name: found[0] for name, found in new.items() if name not in old}
    for name, definition in added.items():
        why = _cannot_add(name, new[name])
        if why:
            return Restart(why, file, definition.lineno)
    changed: dict[str, Function] = {}
    for name, definitions in old.items():
        for was, now_ in zip(definitions, new[name], strict=True):
            why = _header(name, was, now_)
            if why:
                return Restart(why, file, now_.lineno)
            if _body(was) != _body(now_):
                changed[name] = now_
    where = _differs(_parsed(before).body, _parsed(after).body, frozenset(added))
    if where is not None:
        return Restart("something outside functions changed", file, where)
    codes_before, codes_after = _codes(before), _codes(after)
    for name, definition in changed.items():
        for one, other in zip(codes_before[name], codes_after[name], strict=True):
            if set(one.co_freevars) != set(other.co_freevars):
                what = "super() or __class__" if _has_class(one, other) else "an outer variable"
                why = f'"{name}" begins or ends to use {what}'
                return Restart(why, file, definition.lineno)
            if one.co_flags & _KINDS != other.co_flags & _KINDS:
                why = f'"{name}" is a generator now, or no longer one'
                return Restart(why, file, definition.lineno)
    return _Edit(changed, added, _parsed(after))


def _has_class(one: CodeType, other: CodeType) -> bool:
    return "__class__" in set(one.co_freevars) ^ set(other.co_freevars)


def _functions(text: str) -> dict[str, list[Function]]:
    found: dict[str, list[Function]] = {}
    for name, definition in outermost(_parsed(text).body):
        found.setdefault(name, []).append(definition)
    return found


def _codes(text: str) -> dict[str, list[CodeType]]:
    """Return the code of the outermost functions by qualified name, in their order."""
    found: dict[str, list[CodeType]] = {}
    classes = {name for name, _ in _classes(_parsed(text).body)}

    def walk(code: CodeType, prefix: str) -> None:
        for inner in code.co_consts:
            if not isinstance(inner, CodeType) or inner.co_name.startswith("<"):
                continue
            name = f"{prefix}{inner.co_name}"
            # A class body keeps no fast locals; a function does.
            if name in classes and not inner.co_flags & inspect.CO_OPTIMIZED:
                walk(inner, f"{name}.")
            else:
                found.setdefault(name, []).append(inner)

    walk(_compiled(text), "")
    return found


def _classes(body: Sequence[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    for statement in body:
        if isinstance(statement, _FUNCTIONS):
            continue
        if isinstance(statement, ast.ClassDef):
            yield f"{prefix}{statement.name}", statement
            yield from _classes(statement.body, f"{prefix}{statement.name}.")
            continue
        for part in ast.iter_child_nodes(statement):
            if isinstance(part, ast.stmt):
                yield from _classes([part], prefix)
            elif isinstance(part, ast.ExceptHandler | ast.match_case):
                yield from _classes(part.body, prefix)


def _body(definition: Function) -> str:
    return ast.dump(ast.Module(definition.body, []))


def _header(name: str, was: Function, now: Function) -> str:
    """Return what of a function but its body changed; empty if nothing did."""
    if type(was) is not type(now):
        return f'"{name}" is async now, or no longer'
    if [ast.dump(d) for d in was.decorator_list] != [ast.dump(d) for d in now.decorator_list]:
        return f'the decorators of "{name}" changed'
    if ast.dump(was.args) != ast.dump(now.args):
        return f'the parameters of "{name}" changed: a request under way would call it the old way'
    if (was.returns and ast.dump(was.returns)) != (now.returns and ast.dump(now.returns)):
        return f'the annotations of "{name}" changed'
    return ""


def _cannot_add(name: str, definitions: Sequence[Function]) -> str:
    """Return why a function that is new can only come with a new process; empty if it can."""
    definition = definitions[0]
    if len(definitions) > 1:
        return f'"{name}" is new and defined more than once'
    if any(_last_name(d) not in _ADDED for d in definition.decorator_list):
        return f'"{name}" is new and decorated'
    if definition.args.defaults or any(definition.args.kw_defaults):
        return f'"{name}" is new and has default values'
    if is_root(definition.name):
        return f'"{name}" is new, and would have run when the code was loaded'
    return ""


def _hollow(statement: ast.stmt, added: frozenset[str], prefix: str) -> ast.stmt | None:
    """Return a statement with its functions empty and those that were added left out."""
    if isinstance(statement, _FUNCTIONS):
        if f"{prefix}{statement.name}" in added:
            return None
        bare = copy.copy(statement)
        bare.body = []
        return bare
    inner = f"{prefix}{statement.name}." if isinstance(statement, ast.ClassDef) else prefix
    bare_ = copy.copy(statement)
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            setattr(bare_, name, _hollows(block, added, inner))
    for name in ("handlers", "cases"):
        parts = getattr(statement, name, None)
        if isinstance(parts, list):
            copies = [copy.copy(part) for part in parts]
            for part in copies:
                part.body = _hollows(part.body, added, inner)
            setattr(bare_, name, copies)
    return bare_


def _hollows(block: Sequence[ast.stmt], added: frozenset[str], prefix: str) -> list[ast.stmt]:
    found = (_hollow(s, added, prefix) for s in block if not _is_text(s))
    return [statement for statement in found if statement is not None]


def _is_text(statement: ast.stmt) -> bool:
    """Whether it is a docstring, or another string that does nothing."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _differs(
    before: Sequence[ast.stmt], after: Sequence[ast.stmt], added: frozenset[str]
) -> int | None:
    """Return the line now of the first statement outside functions that differs, None if none."""
    old = _hollows(before, frozenset(), "")
    new = _hollows(after, added, "")
    for was, now in zip(old, new, strict=False):
        if ast.dump(was) != ast.dump(now):
            return now.lineno
    if len(new) > len(old):
        return new[len(old)].lineno
    if len(old) > len(new):
        return new[-1].lineno if new else 1
    return None


def _reached(file: str, edit: _Edit, both: Sequence[Reached]) -> Restart | None:
    """Return why a function that differs counts as run while the code was loaded."""
    for found in both:
        if found.unsure:
            name, definition = next(iter({**edit.changed, **edit.added}.items()), ("", None))
            if definition is not None:
                return Restart(f'{found.unsure}: it may reach "{name}"', file, definition.lineno)
        for name, definition in {**edit.changed, **edit.added}.items():
            simple = definition.name
            if is_root(simple):
                what = "load()" if simple == "load" else f"{simple}()"
                return Restart(f"{what} itself changed", file, definition.lineno)
            if simple in found.by:
                why = f'"{name}" is reached by {found.way(simple)}'
                return Restart(why, file, definition.lineno)
    return None


def _decorated(file: str, edit: _Edit, files: Mapping[str, str]) -> Restart | None:
    """Return which decorator of a changed function may keep something of the old one."""
    classes = dict(_classes(edit.tree.body))
    for name, definition in edit.changed.items():
        for decorator in definition.decorator_list:
            if not _is_harmless(decorator, files):
                what = ast.unparse(decorator)
                why = f'"{name}" is decorated with @{what}, which may keep something of the old one'
                return Restart(why, file, definition.lineno)
        owner = classes.get(name.rpartition(".")[0])
        for decorator in owner.decorator_list if owner is not None else ():
            if _last_name(decorator) not in _HARMLESS_ON_CLASSES:
                why = f'"{name}" is of a class decorated with @{ast.unparse(decorator)}'
                return Restart(why, file, definition.lineno)
    return None


def _last_name(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(called, ast.Name):
        return called.id
    return called.attr if isinstance(called, ast.Attribute) else ""


def _is_harmless(decorator: ast.expr, files: Mapping[str, str]) -> bool:
    name = _last_name(decorator)
    if name in _HARMLESS:
        return True
    if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute):
        path = decorator.args[:1]
        if name in _ROUTES and path and isinstance(path[0], ast.Constant):
            return True
    own = [
        definition
        for tree in _trees(files)
        for _, definition in outermost(tree.body)
        if definition.name == name
    ]
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return bool(own) and isinstance(called, ast.Name) and not any(map(_calls_its_own, own))


def _calls_its_own(definition: Function) -> bool:
    """Whether a decorator calls what it is given, or hands it to others, while it decorates.

    Of one with arguments the function that it returns is the decorator: its parameters count, too.
    """
    given: set[str] = set()

    def looks(node: ast.AST, depth: int) -> bool:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, _FUNCTIONS):
                arguments = child.args
                names = {a.arg for a in (*arguments.args, *arguments.posonlyargs)}
                if depth == 0 and len(names) == 1 and not arguments.vararg:
                    given.update(names)
                    if looks(child, depth + 1):
                        return True
                continue
            if isinstance(child, ast.Lambda):
                continue
            if isinstance(child, ast.Call) and _last_name(child) not in _HARMLESS:
                parts = (child.func, *child.args, *(k.value for k in child.keywords))
                if any(isinstance(p, ast.Name) and p.id in given for p in parts):
                    return True
            if looks(child, depth):
                return True
        return False

    given.update(a.arg for a in definition.args.args)
    return looks(definition, 0)
