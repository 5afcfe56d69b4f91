"""Puts new functions into this process while its data stays: the objects, the loaded weights.

A change names files by their path below the folder of the code, with their text as it was loaded
and as it is to be (`code_pairs` says what takes whose place). What runs here is found by one pass
over the interpreter's objects, so closures, functions that a decorator hides and bound methods that
somebody keeps are found as well: function objects stay, and get other code. A function of the files
that is neither of the old nor of the new text refuses the whole change: another version was loaded,
or a library rewrote it. A refusal changes nothing.

What runs already goes on with its old code. Where several functions change, a moment is waited for
in which none of them runs, so that a request does not meet some old and some new; not for long.
"""

from __future__ import annotations

import _thread
import dis
import gc
import linecache
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress, repeat
from operator import attrgetter, is_
from types import (
    AsyncGeneratorType,
    CellType,
    CodeType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    ModuleType,
)
from typing import Any

from podlauncher import code_added
from podlauncher.code_pairs import (
    MODULE,
    TRANSIENT,
    Compiled,
    Pair,
    Refused,
    compiled,
    identity,
    is_class,
)

_PATIENCE = 0.05
_STEP = 0.001
_SUSPENDED: dict[type, Any] = {
    CoroutineType: attrgetter("cr_code", "cr_frame"),
    GeneratorType: attrgetter("gi_code", "gi_frame"),
    AsyncGeneratorType: attrgetter("ag_code", "ag_frame"),
}
_KINDS = frozenset({FunctionType, *_SUSPENDED})
_FILENAME = attrgetter("__code__.co_filename")


_References = list["weakref.ref[Any]"]
_Seen = tuple[tuple[int, ...], _References, _References]


class _Unknown(Refused):
    """A function has code of neither text."""

    def __init__(self, file: str, function: FunctionType) -> None:
        code = function.__code__
        super().__init__(
            f"the process runs another version of {file} "
            f"(line {code.co_firstlineno}, {function.__qualname__}())"
        )
        self.is_nested = "<locals>" in function.__qualname__


class _Found:
    """What of a process is to be replaced."""

    def __init__(self) -> None:
        self.functions: dict[int, tuple[FunctionType, Pair]] = {}
        self.seen: set[Any] = set()
        self.files: set[str] = set()
        self._new: list[tuple[Any, str, Any]] = []
        self._docs: list[tuple[Any, str, Any]] = []
        self._noted: list[FunctionType] = []
        self._suspended: _References = []

    @property
    def count(self) -> int:
        """How many functions get other code, be it only for its lines, or are new."""
        return len(self.functions) + len(self._new)

    @property
    def is_several(self) -> bool:
        """Whether a call could meet some of it old and some new."""
        changed = {id(pair) for _, pair in self.functions.values() if pair.differs_itself}
        return len(changed) + len(self._new) > 1

    def replace(self, function: FunctionType, pair: Pair) -> None:
        """Let a function get the pair's new code."""
        self.functions[id(function)] = (function, pair)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Let a module or class get a new function."""
        self._new.append((owner, name, value))

    def document(self, owner: Any, old: str | None, new: str | None) -> None:
        """Let something get another docstring, if it still has the text's."""
        if getattr(owner, "__doc__", None) == old:
            self._docs.append((owner, "__doc__", new))

    def note(self, function: FunctionType) -> None:
        """Remember a function of the files, for it may show another one's docstring."""
        self._noted.append(function)

    def references(self) -> tuple[_References, _References]:
        """Return the files' functions, and what is suspended, without keeping them."""
        return [weakref.ref(one) for one in self._noted], self._suspended

    def watch(self, suspended: Iterable[Any]) -> None:
        """Remember generators and coroutines, without keeping them."""
        self._suspended += [weakref.ref(one) for one in suspended]

    def is_running(self) -> bool:
        """Whether a call of a function that changes is under way."""
        codes = {id(f.__code__) for f, pair in self.functions.values() if pair.differs}
        if any(id(frame.f_code) in codes for frame in _frames()):
            return True
        for reference in self._suspended:
            one = reference()
            if one is not None:
                code, frame = _SUSPENDED[type(one)](one)
                if frame is not None and id(code) in codes:
                    return True
        return False

    def apply(self) -> None:
        """Replace all of it; no other thread runs in between."""
        for function, pair in self.functions.values():
            old, new = _doc_of(pair.old), _doc_of(pair.new)
            if old != new:
                self.document(function, old, new)
                for wrapper in self._noted:
                    if wrapper.__dict__.get("__wrapped__") is function:
                        self.document(wrapper, old, new)
        items = [
            *self._new,
            *((function, "__code__", pair.new) for function, pair in self.functions.values()),
            *self._docs,
        ]
        if not items:
            return
        owners, names, values = zip(*items)  # noqa: B905 - Python 3.9
        before = [getattr(o, n, None) for o, n in zip(owners, names)]  # noqa: B905 - Python 3.9
        try:
            # One call of C, which does not give the interpreter's lock away.
            deque(map(setattr, owners, names, values), 0)
        except BaseException:
            for owner, name, value in self._new:
                if owner.__dict__.get(name) is value:
                    delattr(owner, name)
            rest = len(self._new)
            deque(map(setattr, owners[rest:], names[rest:], before[rest:]), 0)
            raise


class Change:
    """One change of files; compiled as far as this process has loaded them.

    Args:
        before, after: Text by path relative to `source`, the folder of the user's code.
    """

    def __init__(
        self, id: str, before: Mapping[str, str], after: Mapping[str, str], *, source: str
    ) -> None:
        self.id = id
        self._texts = {
            os.path.realpath(os.path.join(source, file)): (file, before.get(file), after.get(file))
            for file in {*before, *after}
        }
        self._source = os.path.join(os.path.realpath(source), "")
        self._ends = tuple({os.path.basename(path) for path in self._texts})
        self._paths: dict[str, str] = {}
        self._compiled: dict[str, Compiled] = {}
        self._seen: _Seen | None = None

    def check(self) -> int:
        """Return how many functions would be replaced or new; changes nothing.

        Raises:
            Refused: The change cannot be put into this process.
        """
        return self._look_twice().count

    def commit(self) -> int:
        """Replace the functions in one step; return how many were replaced or are new.

        Raises:
            Refused: The change cannot be put into this process; nothing is changed.
        """
        # Calls that were under way have made closures since the check.
        found = self._look_twice()
        deadline = time.monotonic() + _PATIENCE
        while found.is_several and found.is_running() and time.monotonic() < deadline:
            time.sleep(_STEP)
            self._take(_young(), found)
        count = found.count
        found.apply()
        self._catch_up()
        for filename in self._paths:
            linecache.checkcache(filename)
        return count

    def _catch_up(self) -> None:
        """Replace the closures that were made by old code in the last moments.

        One that cannot get its new code is found by the next check.
        """
        late = _Found()
        try:
            self._take(_young(), late)
        except Refused:
            return
        late.apply()

    # -- looking

    def _look_twice(self) -> _Found:
        try:
            return self._look()
        except _Unknown as unknown:
            if not unknown.is_nested:
                raise
        # A closure that a call of an earlier version made may be no more than garbage in a cycle.
        gc.collect()
        return self._look()

    def _look(self) -> _Found:
        modules = self._modules()
        found = _Found()
        collections = _collections()
        self._take(self._seen_and_young(collections) or _by_kind(gc.get_objects()), found)
        self._seen = (collections, *found.references())
        self._refuse_while_loading(modules)
        for path in {*found.files, *modules}:
            loaded = modules.get(path, [])
            self._refuse_stale_file(path)
            for texts in self._texts_of(path, loaded):
                _refuse_lost(texts, found)
                for module in loaded:
                    _add_to(module, texts, found)
        return found

    def _seen_and_young(
        self, collections: tuple[int, ...]
    ) -> tuple[list[FunctionType], list[Any]] | None:
        """Return what was seen last time with what was made since; None: that cannot be told.

        What a check saw so serves the commit that follows.
        """
        if self._seen is None or self._seen[0] != collections or not collections:
            return None
        known = [
            [one for r in references if (one := r()) is not None] for references in self._seen[1:]
        ]
        functions, suspended = _young()
        return [*known[0], *functions], [*known[1], *suspended]

    def _learn(self, filenames: Iterable[str]) -> None:
        """Remember which of these names lead to a file of the change."""
        for name in filenames:
            near = name.endswith(self._ends) or name.startswith(self._source)
            if near and name not in self._paths:
                path = os.path.realpath(name)
                if path in self._texts:
                    self._paths[name] = path

    def _modules(self) -> dict[str, list[ModuleType]]:
        """Return the modules made of the change's files, by path."""
        found: dict[str, dict[int, ModuleType]] = {}
        modules = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
        files = [file for m in modules if isinstance(file := vars(m).get("__file__"), str)]
        self._learn(files)
        for module in modules:
            path = self._paths.get(vars(module).get("__file__", ""))
            if path is not None:
                found.setdefault(path, {})[id(module)] = module
        return {path: list(modules.values()) for path, modules in found.items()}

    def _take(self, kinds: tuple[list[FunctionType], list[Any]], found: _Found) -> None:
        """Sort out, of what was seen, the functions that are to be replaced.

        Raises:
            _Unknown: One has code of neither text.
            Refused: One cannot get its new code.
        """
        functions, suspended = kinds
        names = list(map(_FILENAME, functions))
        self._learn(set(names))
        found.watch(suspended)
        for function in compress(functions, map(self._paths.__contains__, names)):
            code = function.__code__
            if code.co_name in TRANSIENT or is_class(code):
                continue
            texts = self._compile(code.co_filename)
            key = identity(code)
            found.files.add(self._paths[code.co_filename])
            found.seen.add((texts.filename, key))
            found.note(function)
            pair = texts.old.get(key)
            if pair is None and key not in texts.new:
                raise _Unknown(texts.file, function)
            if pair is None:
                continue
            why_not = pair.why_not()
            if why_not:
                raise Refused(f"{texts.file}, line {code.co_firstlineno}: {why_not}")
            if pair.new is not None and identity(pair.new) != key:
                found.replace(function, pair)

    def _compile(self, filename: str) -> Compiled:
        """Return the texts of a file under a name that its code has.

        Raises:
            Refused: They cannot be compiled, or one is missing.
        """
        found = self._compiled.get(filename)
        if found is None:
            file, before, after = self._texts[self._paths[filename]]
            if before is None or after is None:
                what = "was removed" if after is None else "was not there before"
                raise Refused(f"{file} is loaded, and {what}")
            found = self._compiled[filename] = compiled(file, filename, before, after)
        return found

    def _texts_of(self, path: str, modules: list[ModuleType]) -> list[Compiled]:
        names = {name for name in self._compiled if self._paths[name] == path}
        return [self._compile(name) for name in names or {str(m.__file__) for m in modules}]

    def _refuse_while_loading(self, modules: Mapping[str, list[ModuleType]]) -> None:
        """Refuse while a file is still to define something, by the old text.

        Raises:
            Refused: So it is.
        """
        for path, loaded in modules.items():
            if any(getattr(m.__spec__, "_initializing", False) for m in loaded):
                raise Refused(f"{self._texts[path][0]} is being imported just now")
        for frame in _frames():
            code = frame.f_code
            if code.co_filename not in self._paths or not is_class(code):
                continue
            if code.co_name != MODULE or _defines_after(code, frame.f_lasti):
                file = self._texts[self._paths[code.co_filename]][0]
                raise Refused(f"{file} is being loaded just now (line {frame.f_lineno})")

    def _refuse_stale_file(self, path: str) -> None:
        """Refuse what a process that starts later would not run.

        Raises:
            Refused: The program sees the old file, as in a container that has a copy of its own.
        """
        file, before, after = self._texts[path]
        try:
            with open(path, encoding="utf-8-sig") as stream:
                there = stream.read()
        except (OSError, ValueError):
            return
        if before is not None and before != after and there == _as_read(before):
            raise Refused(f"{file} is still the old one where the program runs")


def _refuse_lost(texts: Compiled, found: _Found) -> None:
    """Refuse if a function that changes is defined but cannot be seen.

    Raises:
        Refused: Something made another thing of it and let go of it, or the collector does not
            look at it. All that changes is, or lies in, what has a name.
    """
    for key, pair in texts.old.items():
        if pair.is_named and pair.differs and pair.new is not None:
            keys = {(texts.filename, key), (texts.filename, identity(pair.new))}
            if not keys & found.seen:
                raise Refused(
                    f"{texts.file}, line {pair.old.co_firstlineno}: {pair.name}() is not there "
                    "as a function; something made another thing of it, or hid it (gc.freeze())"
                )


def _add_to(module: ModuleType, texts: Compiled, found: _Found) -> None:
    """Let a module and its classes get what is new, and their docstrings.

    Raises:
        Refused: Something cannot be added.
    """
    for added in texts.added:
        made = code_added.make(texts, added, module)
        if made is not None:
            found.set(*made)
    for names, (old, new) in texts.docs.items():
        owner = code_added.owner_of(module, names)
        if owner is not None:
            found.document(owner, old, new)


def _by_kind(objects: list[Any]) -> tuple[list[FunctionType], list[Any]]:
    """Return the functions among objects, and the generators and coroutines."""
    # No loop of Python over hundreds of thousands of objects.
    found = list(compress(objects, map(_KINDS.__contains__, map(type, objects))))
    functions = list(compress(found, map(is_, map(type, found), repeat(FunctionType))))
    return functions, [one for one in found if type(one) is not FunctionType]


def _collections() -> tuple[int, ...]:
    """Return how often objects became old; empty: this interpreter has other generations."""
    if sys.version_info >= (3, 14):
        return ()
    return tuple(stats["collections"] for stats in gc.get_stats()[1:])


def _young() -> tuple[list[FunctionType], list[Any]]:
    """Return what was made lately: little, so it can be asked for often."""
    return _by_kind([*gc.get_objects(generation=0), *gc.get_objects(generation=1)])


def _frames() -> Iterator[Any]:
    """Yield the calls of all other threads, innermost first."""
    threads = sys._current_frames()
    # A call that holds its own frame would keep what it has seen until the collector comes.
    threads.pop(_thread.get_ident(), None)
    for innermost in threads.values():
        frame: Any = innermost
        while frame is not None:
            yield frame
            frame = frame.f_back


def _defines_after(code: CodeType, last: int) -> bool:
    """Whether a function or class is made by what comes after an instruction."""
    return any(
        step.offset > last
        and isinstance(step.argval, CodeType)
        and step.argval.co_name not in TRANSIENT
        for step in dis.get_instructions(code)
    )


def _doc_of(code: CodeType | None) -> str | None:
    """Return the docstring that the interpreter gives a function with this code."""
    if code is None:
        return None
    closure = tuple(CellType() for _ in code.co_freevars)
    return FunctionType(code, {}, closure=closure).__doc__


def _as_read(text: str) -> str:
    """Return a text as a file that holds it is read."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
