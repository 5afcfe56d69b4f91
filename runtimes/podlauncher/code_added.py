"""Makes the functions that a new text adds to modules and classes which are loaded.

Default values and annotations are what the definition says, looked up where it stands, as long as
that calls nothing; decorators are those that only wrap.
"""

from __future__ import annotations
import __future__

import ast
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, cast

from podlauncher.code_pairs import Added, Compiled, Definition, Refused, identity

_WRAPPERS: dict[str, Any] = {
    "staticmethod": staticmethod,
    "classmethod": classmethod,
    "property": property,
}
_LOOKED_UP = (
    ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Dict, ast.Set,
    ast.UnaryOp, ast.unaryop, ast.BinOp, ast.BitOr, ast.Load, ast.Slice,
)  # fmt: skip
_FUTURE = sum(
    getattr(__future__, name).compiler_flag
    for name in __future__.all_feature_names
    if name not in ("nested_scopes", "generators")
)


def make(texts: Compiled, added: Added, module: ModuleType) -> tuple[Any, str, Any] | None:
    """Return owner, name and value of what is to be set; None: it is there already.

    Raises:
        Refused: It cannot be made as the interpreter would make it.
    """
    owner = _owner(texts, added, module)
    if added.attribute in owner.__dict__:
        code = getattr(_unwrapped(owner.__dict__[added.attribute]), "__code__", None)
        if isinstance(code, CodeType) and identity(code) == identity(added.code):
            return None
        raise _refused(texts, added, "something else has that name")
    if added.node.name.startswith("__") and added.node.name.endswith("__"):
        raise _refused(texts, added, "the interpreter looks for it when a class is made")
    wrap = _wrapper(texts, added, owner, module)
    closure = _closure(texts, added, owner)
    plain = _defined(texts, added, owner, module)
    function = FunctionType(
        added.code, module.__dict__, added.node.name, plain.__defaults__, closure
    )
    function.__kwdefaults__ = plain.__kwdefaults__
    function.__annotations__ = plain.__annotations__
    function.__qualname__ = added.name
    return owner, added.attribute, wrap(function) if wrap else function


def owner_of(module: ModuleType, names: tuple[str, ...]) -> Any:
    """Return the module, or the class in it that these names lead to; None: it is not there."""
    found: Any = module
    for depth, name in enumerate(names, start=1):
        found = found.__dict__.get(name)
        own = isinstance(found, type) and found.__qualname__ == ".".join(names[:depth])
        if not own or found.__module__ != module.__name__:
            return None
    return found


def _owner(texts: Compiled, added: Added, module: ModuleType) -> Any:
    found = owner_of(module, added.owners)
    if found is None:
        raise _refused(texts, added, f"{'.'.join(added.owners)} is not there as that class")
    if isinstance(found, type) and type(found).__setattr__ is not type.__setattr__:
        raise _refused(texts, added, f"{found.__qualname__} has rules of its own for what it holds")
    if isinstance(found, ModuleType) and type(found) is not ModuleType:
        raise _refused(texts, added, f"{module.__name__} is no ordinary module")
    return found


def _refused(texts: Compiled, added: Added, why: str) -> Refused:
    line = added.node.lineno
    return Refused(f"{texts.file}, line {line}: {added.name}() is new and cannot be added: {why}")


def _unwrapped(value: Any) -> Any:
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def _wrapper(texts: Compiled, added: Added, owner: Any, module: ModuleType) -> Any:
    decorators = added.node.decorator_list
    if not decorators:
        return None
    name = decorators[0].id if isinstance(decorators[0], ast.Name) else ""
    own = name in module.__dict__ or name in owner.__dict__
    if len(decorators) > 1 or name not in _WRAPPERS or own or not added.owners:
        raise _refused(texts, added, "its decorators may do more than wrap it")
    return _WRAPPERS[name]


def _closure(texts: Compiled, added: Added, owner: Any) -> tuple[Any, ...]:
    names = added.code.co_freevars
    if names == ():
        return ()
    if names == ("__class__",) and added.owners:
        return (CellType(owner),)
    raise _refused(texts, added, f"it uses variables from around it ({', '.join(names)})")


def _defined(texts: Compiled, added: Added, owner: Any, module: ModuleType) -> FunctionType:
    """Return an empty function with the default values and annotations of the definition."""
    for part in _evaluated(added.node):
        for node in ast.walk(part):
            name = str(getattr(node, "id", None) or getattr(node, "attr", ""))
            private = bool(added.owners) and name.startswith("__") and not name.endswith("__")
            if not isinstance(node, _LOOKED_UP) or private:
                raise _refused(texts, added, "its default values or annotations are computed")
    bare = ast.parse("def empty(): pass").body[0]
    assert isinstance(bare, ast.FunctionDef)  # it was just written
    bare.args, bare.returns = added.node.args, added.node.returns
    tree = ast.fix_missing_locations(ast.Module([bare], []))
    flags = texts.after.co_flags & _FUTURE
    code = compile(tree, texts.filename, "exec", flags=flags, dont_inherit=True)
    space = dict(owner.__dict__) if added.owners else {}
    try:
        exec(code, module.__dict__, space)
    except Exception as error:
        raise _refused(texts, added, f"{type(error).__name__}: {error}") from None
    return cast(FunctionType, space["empty"])


def _evaluated(node: Definition) -> Iterator[ast.expr]:
    """Yield the expressions that are evaluated when the definition is."""
    arguments = node.args
    yield from arguments.defaults
    yield from (default for default in arguments.kw_defaults if default is not None)
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    yield from (one.annotation for one in every if one.annotation is not None)
    if node.returns is not None:
        yield node.returns
