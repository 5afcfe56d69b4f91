"""What the dev loop calls a swap, a process takes: both read the same two texts, each by itself."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.devloop.code_change import Swap, decide
from podlauncher.code_pairs import identity
from podlauncher.swap import Change

NAME = "agreement_model"
FILE = f"{NAME}.py"


@contextmanager
def running(text: str) -> Iterator[tuple[Path, ModuleType]]:
    """Import a text as a file of a folder."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(NAME, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        try:
            spec.loader.exec_module(module)
            yield Path(folder), module
        finally:
            del sys.modules[NAME]
            vars(module).clear()


def functions(owner: Any, prefix: str = "") -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions that a module or class holds, also those behind decorators."""
    for name, value in list(vars(owner).items()):
        if isinstance(value, type) and value.__module__ == NAME:
            yield from functions(value, f"{prefix}{name}.")
        for part in ("__func__", "fget", "fset", "__wrapped__"):
            if isinstance(getattr(value, part, None), FunctionType):
                yield f"{prefix}{name}.{part}", getattr(value, part)
        if isinstance(value, FunctionType) and value.__module__ == NAME:
            yield f"{prefix}{name}", value


def codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from codes(const)


def swapped(before: str, after: str) -> bool:
    """Decide, carry it out if it is a swap, and look at what runs then."""
    verdict = decide({FILE: before}, {FILE: after}, id="c1")
    if not isinstance(verdict, Swap):
        return False
    with running(before) as (folder, module):
        (folder / FILE).write_text(after)
        change = verdict.change
        taken = Change("c1", change.before, change.after, source=str(folder))
        taken.check()
        taken.commit()
        new = compile(after, str(folder / FILE), "exec", dont_inherit=True)
        expected = {identity(code) for code in codes(new)}
        found = dict(functions(module))
        for name, function in found.items():
            assert identity(function.__code__) in expected, name
    with running(after) as (_, fresh):
        assert {name for name, _ in functions(fresh)} == set(found)
    return True


TEXT = '''\
"""A program."""
import functools


def timed(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Base:
    def answer(self):
        return 1


class Model(Base):
    class Inner:
        def deep(self):
            return 1

    @timed
    def predict(self, x):
        def step(y):
            return y + x

        return [step(i) for i in range(3)]

    @property
    def label(self):
        return "a"

    @label.setter
    def label(self, value):
        self.value = value

    @staticmethod
    def plain(x):
        return x

    @classmethod
    def made(cls, x):
        return cls(), x

    def answer(self):
        return super().answer()

    async def later(self, rows):
        return sorted(rows, key=lambda row: row[0])

    def stream(self, rows):
        yield from rows


if __debug__:

    def conditional():
        return 1
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        return 1\n\n\nclass Model", "        return 2\n\n\nclass Model"),
        ("            return 1\n\n    @timed", "            return 2\n\n    @timed"),
        ("return y + x", "return y * x"),
        ("range(3)]", "range(4)]"),
        ('return "a"', 'return "b"'),
        ("self.value = value", "self.value = str(value)"),
        ("        return x\n", "        return x + 1\n"),
        ("return cls(), x", "return cls()"),
        ("return super().answer()", "return super().answer() + 1"),
        ("row[0]", "row[1]"),
        ("yield from rows", "yield 1\n        yield from rows"),
        ("    def conditional():\n        return 1", "    def conditional():\n        return 2"),
        ("class Base", "def added(x, y=2, *, z: int = 3) -> int:\n    return x\n\n\nclass Base"),
        (
            "    def stream",
            "    def added(self):\n        return super().answer()\n\n    def stream",
        ),
        (
            "    def stream",
            "    @staticmethod\n    def added(x):\n        return x\n\n    def stream",
        ),
        (
            "    def stream",
            "    @classmethod\n    def added(cls):\n        return 1\n\n    def stream",
        ),
        (
            "    def stream",
            "    @property\n    def added(self):\n        return 1\n\n    def stream",
        ),
        ("    def stream", "    def __hidden(self):\n        return 1\n\n    def stream"),
        ("    class Inner:", "    class Inner:\n        def more(self):\n            return 1\n"),
        ("class Base", "# moved\nclass Base"),
        ("return y + x", "return  y  +  x"),
        ('"""A program."""', '"""Another.\n\nProgram."""'),
        ("        def step(y):", "        def more():\n            return x\n        def step(y):"),
    ],
)
def test_a_swap_is_taken_and_leaves_the_new_code(old, new):
    assert TEXT.count(old) == 1, f"the edit is not clear: {old}"
    assert swapped(TEXT, TEXT.replace(old, new))


LINES = st.sampled_from(
    [
        "x = 1",
        "return self",
        "yield x",
        "await x",
        "def inner(): return x",
        "y = lambda q: q",
        "y = lambda q: q + 1",
        "super().f()",
        "x = [i for i in y]",
        "global G; G = 2",
        "class C:\n            def g(self): return 1",
        "'''doc'''",
        "# comment",
    ]
)
BODIES = st.lists(LINES, max_size=4).map(
    lambda lines: "".join(f"        {line}\n" for line in [*lines, "pass"])
)
HEADS = st.sampled_from(["def f{}(self):", "async def f{}(self):", "@property\n    def f{}(self):"])
METHODS = st.lists(st.tuples(HEADS, BODIES, BODIES), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(METHODS, st.integers(0, 3))
def test_any_swap_is_taken(methods, more):
    """Bodies that differ at random, and methods that were added."""
    heads = [f"    {head.format(i)}\n" for i, (head, _, _) in enumerate(methods)]
    old = "class A:\n" + "".join(h + m[1] for h, m in zip(heads, methods, strict=True))
    new = "class A:\n" + "".join(h + m[2] for h, m in zip(heads, methods, strict=True))
    new += "".join(f"    def added{i}(self):\n        return {i}\n" for i in range(more))
    swapped(old, new)
