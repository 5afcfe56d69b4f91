"""What a pickle or joblib file would make, found out without making it.

A machine of its own walks the opcodes and notes what each would do: classes stay names, calls stay
notes, so no code of the file and none of its libraries can run. Arrays of joblib files, which lie
as raw bytes between the opcodes, are skipped by the size that their description gives.

Source: `pickletools` (opcodes and their arguments); joblib's `NumpyArrayWrapper`, for the layout of
arrays.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from kserve_local.modelfiles.compressed import Compressed, opened

VERSION_KEY = "_sklearn_version"
_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
_MOST_OPCODES = 2_000_000
_MOST_INFLATED = 512 * 1024**2
_MOST_KEPT = 256
_LONGEST = 1 << 30
_LONGEST_LINE = 1 << 20
_DEEPEST = 8
_CHUNK = 1 << 20
_MARK = object()
_SIZE = re.compile(r"[<>|=]?([a-zA-Z])(\d+)\Z")


class NotAPickle(ValueError):
    """The bytes are no pickle, or one that is not understood; the text says which."""


@dataclass(eq=False, slots=True)
class Made:
    """An object that the pickle would make.

    Args:
        kind: `module.Class` or the function that makes it.
        args: What it would be called with.
        state: What it would be given then: attributes, mostly.
    """

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None

    def attribute(self, name: str) -> Any:
        """Return an attribute, None without one."""
        return self.state.get(name) if isinstance(self.state, dict) else None


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names."""

    kind: str


@dataclass(slots=True)
class Contents:
    """What was found.

    Args:
        top: The object itself: `Made`, or a plain value.
        versions: scikit-learn versions that objects in it were saved with, in order.
        kinds: Classes and functions that loading would import.
        complete: False: the walk ended early, and `top` is None.
    """

    top: Any = None
    versions: dict[str, None] = field(default_factory=dict)
    kinds: dict[str, None] = field(default_factory=dict)
    complete: bool = True


def read(path: Path) -> Contents:
    """Return what the file would make; joblib's compressions are undone on the way. Blocking.

    Raises:
        NotAPickle: It is none, or is cut off.
        Compressed: It is compressed in a way that the standard library does not know.
        OSError: It cannot be read.
    """
    with opened(path) as file:
        return read_stream(file)


def read_stream(file: IO[bytes]) -> Contents:
    """Return what the pickle at the file's position would make.

    Raises:
        NotAPickle: It is none, or is cut off.
    """
    found = Contents()
    machine = _Machine(file, found)
    try:
        found.top = machine.run(0)
    except _TooLong:
        found.complete = False
    except (NotAPickle, Compressed):
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        OSError,
    ) as error:
        raise NotAPickle(f"no pickle, or a damaged one: {error}") from error
    return found


class _TooLong(Exception):
    """More than one cares to look at."""


class _Machine:
    """Stack and memo of one file; nested pickles of arrays of objects have their own."""

    def __init__(self, file: IO[bytes], found: Contents) -> None:
        self._file = file
        self._found = found
        self._opcodes = 0
        self._bytes = 0

    def run(self, depth: int) -> Any:
        """Walk to the end of one pickle and return its object."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", _Plain(self._file))):
            self._opcodes += 1
            if self._opcodes > _MOST_OPCODES:
                raise _TooLong
            name = opcode.name
            if name in _PUSHES:
                stack.append(_kept(argument))
            elif name == "STOP":
                return stack.pop()
            elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if argument is None else _index(argument)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[_index(argument)])
            elif name == "BUILD":
                self._build(stack, depth)
            elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                self._global(name, argument, stack)
            elif name in _DOES:
                _DOES[name](stack)
                if name in ("SETITEM", "SETITEMS"):
                    self._note(stack[-1])
            elif name not in ("PROTO", "FRAME"):
                raise NotAPickle(f"opcode {name} is not understood")
        raise NotAPickle("it is cut off")

    def _global(self, name: str, argument: Any, stack: list[Any]) -> None:
        if name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            kind = f"{module}.{attribute}"
        else:
            kind = str(argument).replace(" ", ".", 1)
        self._found.kinds[kind] = None
        stack.append(Name(kind))
        if name == "INST":
            args = _to_mark(stack[:-1])
            del stack[-len(args) - 2 :]
            stack.append(Made(kind, tuple(args)))

    def _build(self, stack: list[Any], depth: int) -> None:
        state = stack.pop()
        made = stack[-1]
        if not isinstance(made, Made):
            return
        made.state = state
        self._note(state)
        if made.kind == _WRAPPER and isinstance(state, dict):
            self._skip_array(made, state, depth)

    def _note(self, value: Any) -> None:
        version = value.get(VERSION_KEY) if isinstance(value, dict) else None
        if isinstance(version, str):
            self._found.versions[version] = None

    def _skip_array(self, made: Made, state: Mapping[str, Any], depth: int) -> None:
        """Pass the bytes of an array; one of objects is a pickle of its own."""
        dtype = state.get("dtype")
        written = dtype.args[0] if isinstance(dtype, Made) and dtype.args else None
        match = _SIZE.match(written) if isinstance(written, str) else None
        if match is None:
            raise NotAPickle("an array of an unknown kind")
        letter, size = match[1], int(match[2])
        if letter == "O":
            if depth >= _DEEPEST:
                raise _TooLong
            made.args = (self.run(depth + 1),)
            return
        if state.get("numpy_array_alignment_bytes") is not None:
            self._pass(self._file.read(1)[0])
        shape = state.get("shape") or ()
        self._pass(math.prod(int(n) for n in shape) * size * (4 if letter == "U" else 1))

    def _pass(self, size: int) -> None:
        if size < 0:
            raise _TooLong
        if isinstance(getattr(self._file, "raw", None), io.FileIO):
            self._file.seek(size, io.SEEK_CUR)
            return
        self._bytes += size
        if self._bytes > _MOST_INFLATED:
            raise _TooLong
        while size:
            piece = len(self._file.read(min(size, _CHUNK)))
            if not piece:
                raise NotAPickle("it is cut off within an array")
            size -= piece


class _Plain:
    """A file as `genops` reads it: bounded, and without `tell`, which compression makes slow."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = _LONGEST

    def read(self, size: int) -> bytes:
        # A length that only claims to be one would have the memory reserved.
        self._left -= size
        if self._left < 0:
            raise _TooLong
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(_LONGEST_LINE)


def _index(argument: Any) -> int:
    return int(argument)


def _kept(argument: Any) -> Any:
    """Return a constant; of long ones the beginning, for none of them is asked for."""
    return argument[:_MOST_KEPT] if isinstance(argument, str | bytes | bytearray) else argument


def _to_mark(stack: list[Any]) -> list[Any]:
    """Return what lies above the topmost mark; the stack stays."""
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
    return stack[at + 1 :]


def _popped(stack: list[Any]) -> list[Any]:
    items = _to_mark(stack)
    del stack[len(stack) - len(items) - 1 :]
    return items


def _call(stack: list[Any]) -> None:
    args, function = stack.pop(), stack.pop()
    kind = function.kind if isinstance(function, Name) else "?"
    given = tuple(args) if isinstance(args, list | tuple) else ()
    if kind in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"):
        first = given[0] if given else None
        kind, given = (first.kind, given[1:]) if isinstance(first, Name) else (kind, given)
    if kind in ("collections.OrderedDict", "builtins.dict") and not given:
        stack.append({})
    else:
        stack.append(Made(kind, given))


def _call_ex(stack: list[Any]) -> None:
    stack.pop()
    _call(stack)


def _set_items(stack: list[Any], items: list[Any]) -> None:
    target = stack[-1]
    if isinstance(target, Made):
        # A class of dictionaries; what is put into it is as good as its attributes.
        target.state = target.state if isinstance(target.state, dict) else {}
        target = target.state
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | int | bool | float):
                target[key] = value


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack, [key, value])


def _append(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(items)


def _append_one(stack: list[Any]) -> None:
    item = stack.pop()
    _append(stack, [item])


def _dict(stack: list[Any]) -> None:
    items = _popped(stack)
    stack.append({})
    _set_items(stack, items)


def _tuple(size: int) -> Callable[[list[Any]], None]:
    def make(stack: list[Any]) -> None:
        items = tuple(stack[len(stack) - size :])
        del stack[len(stack) - size :]
        stack.append(items)

    return make


def _object(stack: list[Any]) -> None:
    items = _popped(stack)
    kind = items[0].kind if items and isinstance(items[0], Name) else "?"
    stack.append(Made(kind, tuple(items[1:])))


def _persistent(stack: list[Any]) -> None:
    stack.append(Made("persistent", (stack.pop(),)))


_PUSHES = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
        "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
    }
)  # fmt: skip
_DOES: dict[str, Callable[[list[Any]], object]] = {
    "NONE": lambda s: s.append(None),
    "NEWTRUE": lambda s: s.append(True),
    "NEWFALSE": lambda s: s.append(False),
    "EMPTY_LIST": lambda s: s.append([]),
    "EMPTY_DICT": lambda s: s.append({}),
    "EMPTY_SET": lambda s: s.append([]),
    "EMPTY_TUPLE": lambda s: s.append(()),
    "MARK": lambda s: s.append(_MARK),
    "POP": lambda s: s.pop(),
    "POP_MARK": lambda s: _popped(s),
    "DUP": lambda s: s.append(s[-1]),
    "LIST": lambda s: s.append(_popped(s)),
    "FROZENSET": lambda s: s.append(_popped(s)),
    "TUPLE": lambda s: s.append(tuple(_popped(s))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": lambda s: _set_items(s, _popped(s)),
    "APPEND": _append_one,
    "APPENDS": lambda s: _append(s, _popped(s)),
    "ADDITEMS": lambda s: _append(s, _popped(s)),
    "REDUCE": _call,
    "NEWOBJ": _call,
    "NEWOBJ_EX": _call_ex,
    "OBJ": _object,
    "BINPERSID": _persistent,
    "READONLY_BUFFER": lambda s: None,
}
