"""What a save needs: nothing, new functions in place, or new replicas."""

from __future__ import annotations

import ast
import string
import warnings
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.devloop.code_change import Broken, Nothing, Restart, Swap, Verdict, decide

MODEL = '''\
"""A predictor."""

import argparse
import logging
import os
from functools import lru_cache, wraps

import joblib
import kserve
from kserve import ModelServer

THRESHOLD = 0.5
logger = logging.getLogger(__name__)
logging.basicConfig(level=getattr(logging, os.environ.get("LOG_LEVEL", "INFO")))


def timed(function):
    @wraps(function)
    def wrapper(*args, **kwargs):
        logger.debug("calling %s", function.__name__)
        return function(*args, **kwargs)

    return wrapper


def read(path):
    return unpack(joblib.load(path))


def unpack(loaded):
    return loaded["model"]


def clean(rows):
    return [row[:4] for row in rows]


def both(x):
    return x


@lru_cache(maxsize=8)
def label(index):
    return str(index)


class IrisModel(kserve.Model):
    """Tells irises apart."""

    limit: int = 10

    def __init__(self, name, path):
        super().__init__(name)
        self.path = path
        self.load()

    def load(self):
        self.model = read(self.path)
        self.scale = both(2)
        self.ready = True

    def preprocess(self, payload, headers=None):
        return {"instances": clean(payload["instances"])}

    @timed
    def predict(self, payload, headers=None):
        found = self.model.predict(payload["instances"])
        return {"predictions": [self.shown(label(i)) for i in found]}

    async def explain(self, payload, headers=None):
        return {"explanations": []}

    def stream(self, payload):
        for row in payload:
            yield both(row)

    @property
    def threshold(self):
        return THRESHOLD

    @threshold.setter
    def threshold(self, value):
        self.path = value

    @staticmethod
    def shown(name):
        return name.upper()

    @classmethod
    def named(cls, name):
        return name


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", default="/mnt/models/model.joblib")
    args = parser.parse_args()
    ModelServer().start([IrisModel("iris", **vars(args))])
'''


def change(before: str, after: str, *, file: str = "model.py", **others: str) -> Verdict:
    """Decide about one file among others, named by their module."""
    rest = {f"{name}.py": dedent(text) for name, text in others.items()}
    return decide({file: dedent(before), **rest}, {file: dedent(after), **rest}, id="c1")


def edit(old: str, new: str) -> Verdict:
    """Decide about an edit of the realistic predictor."""
    assert MODEL.count(old) == 1, f"the edit is not clear: {old}"
    return change(MODEL, MODEL.replace(old, new))


def functions(verdict: Verdict) -> tuple[str, ...]:
    """Return what a swap of the one file replaces."""
    assert isinstance(verdict, Swap), verdict
    return verdict.change.functions.get("model.py", ())


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('{"instances": clean(payload["instances"])}', "payload", ("IrisModel.preprocess",)),
        ("row[:4] for row", "row[:3] for row", ("clean",)),
        ("in found]}", "in found][:1]}", ("IrisModel.predict",)),
        ('{"explanations": []}', '{"explanations": [1]}', ("IrisModel.explain",)),
        ("            yield both(row)", "            yield row", ("IrisModel.stream",)),
        ("        return THRESHOLD", "        return THRESHOLD / 2", ("IrisModel.threshold",)),
        ("self.path = value", "self.path = str(value)", ("IrisModel.threshold",)),
        ("return name.upper()", "return name.lower()", ("IrisModel.shown",)),
        ("        return name\n", '        return name + "!"\n', ("IrisModel.named",)),
        (
            "    async def explain",
            "    def extra(self, x: int = 1) -> str:\n        return str(x)\n\n"
            "    async def explain",
            ("IrisModel.extra",),
        ),
        ("class IrisModel", "def added(x):\n    return x\n\n\nclass IrisModel", ("added",)),
        (
            "    async def explain",
            "    @staticmethod\n    def extra(x):\n        return x\n\n    async def explain",
            ("IrisModel.extra",),
        ),
        (
            "        found = self.model",
            '        """Tell."""\n        found = self.model',
            ("IrisModel.predict",),
        ),
        (
            "        found = self.model",
            "        import numpy as np\n        found = self.model",
            ("IrisModel.predict",),
        ),
    ],
)
def test_a_body_that_only_requests_run_is_replaced(old, new, names):
    """The loaded weights stay, which is the point of it."""
    verdict = edit(old, new)
    assert functions(verdict) == names
    assert isinstance(verdict, Swap)
    assert verdict.change.before == {"model.py": MODEL}
    assert verdict.change.after == {"model.py": MODEL.replace(old, new)}
    assert verdict.change.id == "c1"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("        self.ready = True", "        self.ready = 1", "runs when the service starts"),
        ("        self.path = path", "        self.path = path + '/'", "runs when the service"),
        ("unpack(joblib.load(path))", "joblib.load(path)", '"read" is reached by load()'),
        ('loaded["model"]', 'loaded["m"]', '"unpack" is reached by load() through read'),
        ("    return x\n", "    return 2 * x\n", '"both" is reached by load()'),
        ("return str(index)", "return repr(index)", "@lru_cache, which keeps old answers"),
        ('"calling %s"', '"called %s"', "reached by the module level of model.py"),
        ("THRESHOLD = 0.5", "THRESHOLD = 0.6", "module level changed"),
        ("limit: int = 10", "limit: int = 11", 'body of class "IrisModel" changed'),
        ("import joblib", "import joblib, json", "an import"),
        ("def clean(rows):", "def clean(rows, width=4):", "would call it the old way"),
        ("def clean(rows):", "def clean(rows: list):", "would call it the old way"),
        ("def clean(rows):", "async def clean(rows):", "called another way"),
        ("            yield both(row)", "            return row", "called another way"),
        ("    @timed\n", "", "the decorators of"),
        ("def clean(rows):", "def cleaned(rows):", '"clean" was removed'),
        ("IrisModel(kserve.Model):", "IrisModel(kserve.Model, object):", "definition of class"),
        ("    ModelServer().start", "    ModelServer(workers=2).start", "module level changed"),
        (
            "        found = self",
            "        super().predict(payload)\n        found = self",
            "super()",
        ),
        (
            "        return name.upper()",
            "        def held():\n            return name\n        return held()",
            None,
        ),
    ],
)
def test_what_startup_depends_on_needs_a_new_replica(old, new, reason):
    """What `load()` computed is what requests use; and nobody runs a module twice."""
    verdict = edit(old, new)
    if reason is None:
        assert functions(verdict) == ("IrisModel.shown",)
        return
    assert isinstance(verdict, Restart), verdict
    assert reason in verdict.reason
    assert verdict.file == "model.py"
    assert verdict.line > 1


LAZY = [
    "if self.model is None:\n            self.model = {made}",
    "if not self.model:\n            self.model = {made}",
    "if not hasattr(self, 'model'):\n            self.model = {made}",
    "if getattr(self, 'model', None) is None:\n            self.model = {made}",
    "self.model = self.model or {made}",
    "global MODEL\n        if MODEL is None:\n            MODEL = {made}",
    "if x not in TABLE:\n            TABLE[x] = {made}",
    "TABLE.setdefault(x, {made})",
    "if x in TABLE:\n            return TABLE[x]\n        y = {made}\n        TABLE[x] = y",
    "try:\n            return TABLE[x]\n        except KeyError:\n            pass\n"
    "        TABLE[x] = {made}",
    "if self.model is not None and x:\n            return self.model\n        self.model = {made}",
]


@pytest.mark.parametrize("lazy", LAZY)
def test_what_a_request_makes_once_and_keeps_counts_as_loaded(lazy):
    """A model that the first request loads was made by the old code, as by `load()`."""
    text = (
        "MODEL, TABLE = None, {{}}\n"
        "def make(x):\n    return deeper({of})\n"
        "def deeper(x):\n    return {deep}\n"
        "class A:\n    def f(self, x):\n        " + lazy + "\n        return {answer}\n"
    )
    given = {"of": "x", "deep": "x", "made": "make(x)", "answer": "1"}
    before = text.format(**given)
    for part, reason in [
        ("of", '"make" is reached by what A.f makes once and keeps'),
        ("deep", '"deeper" is reached by what A.f makes once and keeps through make'),
        ("made", 'what "A.f" makes once and keeps changed'),
    ]:
        verdict = change(before, text.format(**{**given, part: "make(2)"}))
        assert isinstance(verdict, Restart), verdict
        assert verdict.reason == reason


@pytest.mark.parametrize(
    "body",
    [
        "if x is None:\n            x = make(x)",
        "x = x or make(x)",
        "if 'k' not in x:\n            x['k'] = make(x)",
        "table = {}\n        if x not in table:\n            table[x] = make(x)",
        "self.last = make(x)",
        "self.count += make(x)",
        "if self.count > 100:\n            self.count = make(x)",
        "if x in TABLE:\n            self.seen = make(x)",
    ],
)
def test_what_lasts_no_longer_than_a_request_does_not(body):
    text = "TABLE = {}\ndef make(x):\n    return 1\nclass A:\n    def f(self, x):\n        "
    before = text + body + "\n        return x\n"
    assert functions(change(before, before.replace("return 1", "return 2"))) == ("make",)


def test_next_to_what_is_kept_a_function_can_change():
    before = "class A:\n    def f(self):\n        if not self.m:\n            self.m = 1\n"
    before += "        return self.m\n"
    assert functions(change(before, before.replace("return self.m", "return [self.m]"))) == ("A.f",)


def test_the_reason_names_the_line_of_the_new_text():
    verdict = edit("THRESHOLD = 0.5", "# lower\nTHRESHOLD = 0.4")
    assert verdict == Restart("module level changed", "model.py", 13)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("THRESHOLD = 0.5", "THRESHOLD = 0.5  # a guess"),
        ("    return x\n", "    return x  # as it is\n"),
        ('iris", **vars(args))])\n', 'iris", **vars(args))])\n\n# the end\n'),
        ('"""A predictor."""', '"""A better predictor."""'),
        ("THRESHOLD = 0.5", "THRESHOLD  =  0.5"),
    ],
)
def test_comments_and_blanks_that_move_no_function_are_nothing(old, new):
    assert edit(old, new) == Nothing()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("THRESHOLD = 0.5", "# a guess\nTHRESHOLD = 0.5"),
        ("class IrisModel", "\n\nclass IrisModel"),
        ("    return x\n", "    # as it is\n    return x\n"),
        ('"""A predictor."""', '"""A predictor.\n\nOf irises.\n"""'),
        ("    return x\n", "    return (x)\n"),
    ],
)
def test_moved_functions_are_swapped_so_that_tracebacks_stay_right(old, new):
    """Also those that `load()` reaches: they do the same as before."""
    assert functions(edit(old, new)) == ()


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("def f(:\n    pass\n", 1, "SyntaxError: invalid syntax"),
        ("x = 1\ndef f():\nreturn 1\n", 3, "IndentationError: expected an indented block"),
        ("if x:\n\ty = 1\n        z = 1\n", 3, "TabError"),
        ("x = 1\nreturn x\n", 2, "SyntaxError: 'return' outside function"),
        ("def f(a, a): pass\n", 1, "SyntaxError: duplicate argument"),
        ("await x\n", 1, "SyntaxError: 'await' outside function"),
        ("x = 1\0\n", 1, "null bytes"),
        ("x = '\udc80'\n", 1, "UnicodeEncodeError"),
        ("", 1, "the file is empty: half saved?"),
        ("  \n\n", 1, "the file is empty: half saved?"),
        ("(" * 5000, 1, "Error"),
        ("x = " + "-" * 200_000 + "1\n", 1, "Error"),
        ("x = 'half", 1, "SyntaxError: unterminated string literal"),
    ],
)
def test_what_is_no_python_is_broken(text, line, error):
    verdict = change("x = 1\n", text)
    assert isinstance(verdict, Broken), verdict
    assert verdict.file == "model.py"
    assert verdict.line == line
    assert error in verdict.error


def test_a_warning_of_the_compiler_is_no_error():
    """The user's interpreter warns about it when it loads the file; that is enough."""
    before = 'def f():\n    return "\\d" is 1\n'
    assert functions(change(before, before.replace("1", "2"))) == ("f",)


def test_line_ends_of_windows_and_a_byte_order_mark_are_no_difference():
    before = "def f():\n    return 1\n\n\ndef g():\n    return 1\n"
    assert change(before, "\ufeff" + before.replace("\n", "\r\n")) == Nothing()
    crlf = before.replace("\n", "\r\n")
    assert functions(change(before, crlf[::-1].replace("1", "2", 1)[::-1])) == ("g",)


def test_an_expression_too_deep_to_walk_is_no_exception():
    deep = "def f():\n    return " + " + ".join(["1"] * 900) + "\n"
    verdict = change(deep, deep.replace("1 +", "2 +", 1))
    assert isinstance(verdict, Swap | Restart)


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        # closures
        (
            "def outer():\n    n = 1\n    def inner():\n        return n\n    return inner\n",
            "def outer():\n    n = 1\n    def inner():\n        return n + 1\n    return inner\n",
            ("outer.<locals>.inner",),
        ),
        # nested classes
        (
            "class A:\n    class B:\n        def f(self):\n            return 1\n",
            "class A:\n    class B:\n        def f(self):\n            return 2\n",
            ("A.B.f",),
        ),
        # a class within a function
        (
            "def f():\n    class A:\n        def g(self):\n            return 1\n    return A\n",
            "def f():\n    class A:\n        def g(self):\n            return 2\n    return A\n",
            ("f.<locals>.A.g",),
        ),
        # under conditions
        (
            "if TYPE_CHECKING:\n    import os\nelse:\n    def f(): return 1\n",
            "if TYPE_CHECKING:\n    import os\nelse:\n    def f(): return 2\n",
            ("f",),
        ),
        (
            "try:\n    import a\n    def f(): return 1\nexcept OSError:\n    def f(): return 2\n",
            "try:\n    import a\n    def f(): return 1\nexcept OSError:\n    def f(): return 3\n",
            ("f",),
        ),
        # async generators, awaits
        (
            "async def f():\n    for i in g():\n        yield i\n",
            "async def f():\n    for i in g():\n        yield i + 1\n",
            ("f",),
        ),
        # lambdas keep their order
        (
            "def f(rows):\n    return sorted(rows, key=lambda r: r[0])\n",
            "def f(rows):\n    return sorted(rows, key=lambda r: r[1])\n",
            ("f",),
        ),
        (
            "def f(rows):\n    return sorted(rows)\n",
            "def f(rows):\n    return sorted(rows, key=lambda r: r[1])\n",
            ("f",),
        ),
        # global state that a function makes
        ("def f():\n    return 1\n", "def f():\n    global n\n    n = 1\n    return n\n", ("f",)),
        # a new function in the body of another
        ("def f():\n    return 1\n", "def f():\n    def g(): return 1\n    return g()\n", ("f",)),
        # super() that was there before, and in what is new
        (
            "class A:\n    def f(self):\n        return super().f()\n",
            "class A:\n    def f(self):\n        return super().f() + 1\n",
            ("A.f",),
        ),
        (
            "class A:\n    def f(self):\n        return 1\n",
            "class A:\n    def f(self):\n        return 1\n    def g(self):\n        super().g()\n",
            ("A.g",),
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
            "    def f(self):\n        return 1\n",
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
            "    def f(self):\n        return 2\n",
            ("A.f",),
        ),
        # what counts as listing only
        (
            "__all__ = ['f']\ndef f():\n    return 1\n",
            "__all__ = ['f']\ndef f():\n    return 2\n",
            ("f",),
        ),
    ],
)
def test_every_kind_of_function_can_be_replaced(before, after, names):
    assert functions(change(before, after)) == names


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("f = lambda x: x\n", "f = lambda x: x + 1\n", "module level changed"),
        ("class A:\n    f = lambda x: x\n", "class A:\n    f = lambda x: 1\n", "body of class"),
        (
            "from enum import Enum\nclass A(Enum):\n    X = 1\n",
            "from enum import Enum\nclass A(Enum):\n    X = 2\n",
            "body of class",
        ),
        (
            "def outer(a, b):\n    def inner():\n        return a\n    return inner\n",
            "def outer(a, b):\n    def inner():\n        return b\n    return inner\n",
            "takes other variables from around it (a, b)",
        ),
        (
            "def outer(a):\n    def inner():\n        return 1\n    return inner\n",
            "def outer(a):\n    return 1\n",
            '"outer.<locals>.inner" was removed',
        ),
        (
            "def outer(a):\n    def inner(x):\n        return 1\n    return inner\n",
            "def outer(a):\n    def inner(y):\n        return 1\n    return inner\n",
            'the parameters of "outer.<locals>.inner" changed',
        ),
        (
            "def f():\n    class A:\n        x = 1\n    return A\n",
            "def f():\n    class A:\n        x = 2\n    return A\n",
            'the body of class "f.<locals>.A" changed',
        ),
        (
            "def f():\n    on(lambda: 1)\n    on(lambda: 2)\n",
            "def f():\n    on(lambda: 2)\n    on(lambda: 1)\n",
            "which is which cannot be told",
        ),
        (
            "def f():\n    on(lambda: 1)\n",
            "def f():\n    on(lambda: 0)\n    on(lambda: 1)\n",
            "which is which cannot be told",
        ),
        ("def f(): pass\ndef g(): pass\n", "def g(): pass\ndef f(): pass\n", "changed places"),
        ("def f(): pass\n", "def f(): pass\ndef f(): return 1\n", "is defined again"),
        ("import f\n", "import f\ndef f(): return 1\n", "something else has that name"),
        ("f = 1\n", "f = 1\ndef f(): return 1\n", "something else has that name"),
        ("x = 1\n", "x = 1\n@cached\ndef f(): return 1\n", "is new and decorated"),
        ("x = 1\n", "x = 1\ndef f(a=open('x')): return 1\n", "its defaults are computed"),
        ("if x:\n    y = 1\n", "if x:\n    y = 1\n    def f(): pass\n", "module level changed"),
        (
            "class A:\n    x = 1\n",
            "class A:\n    x = 1\n    def __len__(self): return 0\n",
            "starts",
        ),
        (
            "from lib import Base\nclass A(Base):\n    x = 1\n",
            "from lib import Base\nclass A(Base):\n    x = 1\n    def on_event(self): pass\n",
            'a base of "A" may look for methods',
        ),
        (
            "from abc import abstractmethod\nclass A:\n    @abstractmethod\n    def f(self): pass\n"
            "class B(A):\n    x = 1\n",
            "from abc import abstractmethod\nclass A:\n    @abstractmethod\n    def f(self): pass\n"
            "class B(A):\n    x = 1\n    def f(self): return 1\n",
            "abstract in a base",
        ),
        ("x = len([])\n", "x = len([])\ndef len(x): return 1\n", "reached by the module level"),
        ("x = 1\n", "from __future__ import annotations\nx = 1\n", "an import"),
        ("# coding: utf-8\nx = 1\n", "# coding: latin-1\nx = 1\n", "its encoding changed"),
        ("print(__doc__)\n", '"""New."""\nprint(__doc__)\n', "its docstring is read"),
        (
            "import lib\n@lib.served\nclass A:\n    def f(self): return 1\n",
            "import lib\n@lib.served\nclass A:\n    def f(self): return 2\n",
            'class "A" is decorated with @lib.served',
        ),
        (
            "class A(metaclass=M):\n    def f(self): return 1\n",
            "class A(metaclass=M):\n    def f(self): return 2\n",
            'class "A" is made with metaclass',
        ),
        ("x = (\n", "x = 1\n", "could not be read before"),
    ],
)
def test_anything_else_needs_a_new_replica(before, after, reason):
    verdict = change(before, after)
    assert isinstance(verdict, Restart), verdict
    assert reason in verdict.reason


HANDLER = "\ndef handle(request):\n    return {body}\n"


@pytest.mark.parametrize(
    "decorator",
    [
        "@app.post('/predict')",
        "@app.get('/', response_model=dict)",
        "@app.api_route(path='/x', methods=['GET'])",
        "@router.websocket('/ws')",
        "@torch.no_grad()",
        "@torch.inference_mode()",
        "@no_grad()",
        "@contextmanager",
        "@functools.wraps(print)",
        "@typing.override",
        "@app.post('/predict')\n@torch.no_grad()",
    ],
)
def test_decorators_that_leave_the_function_as_it_is(decorator):
    head = "import torch, functools, typing\nfrom contextlib import contextmanager\n"
    text = head + "from torch import no_grad\n" + decorator + HANDLER
    assert functions(change(text.format(body=1), text.format(body=2))) == ("handle",)


@pytest.mark.parametrize(
    ("decorator", "why"),
    [
        ("@functools.cache", "which keeps old answers"),
        ("@functools.lru_cache(maxsize=3)", "which keeps old answers"),
        ("@memo", "which keeps old answers"),
        ("@torch.jit.script", "which compiled the old code"),
        ("@torch.compile", "which compiled the old code"),
        ("@numba.njit", "which compiled the old code"),
        ("@app.on_event('startup')", "which runs it when the server starts"),
        ("@app.get(PATH)", "may do more than wrap it"),
        ("@whatever", "may do more than wrap it"),
        ("@registry['x']", "may do more than wrap it"),
        ("@app.post('/x')\n@functools.cache", "which keeps old answers"),
    ],
)
def test_decorators_that_keep_the_old_function(decorator, why):
    head = "import functools, numba, torch\nfrom functools import cache as memo\n"
    text = head + decorator + HANDLER
    verdict = change(text.format(body=1), text.format(body=2))
    assert isinstance(verdict, Restart), verdict
    assert why in verdict.reason


@pytest.mark.parametrize(
    ("decorator", "use", "why"),
    [
        ("def deco(f):\n    def w(*a): return f(*a)\n    return w", "@deco", ""),
        ("def deco(f):\n    f.tag = 1\n    TABLE[f.__name__] = f\n    return f", "@deco", ""),
        (
            "import inspect\ndef deco(f):\n    if inspect.iscoroutinefunction(f):\n"
            "        async def w(*a): return await f(*a)\n    else:\n"
            "        def w(*a): return f(*a)\n    return w",
            "@deco",
            "",
        ),
        (
            "def deco(n):\n    def inner(f):\n        def w(*a):\n"
            "            for _ in range(n): f(*a)\n        return w\n    return inner",
            "@deco(3)",
            "",
        ),
        ("def deco(f):\n    f()\n    return f", "@deco", "does more with it than wrap it"),
        ("def deco(f):\n    return lib.compiled(f)", "@deco", "result is not known"),
        ("def deco(f):\n    g = f\n    g()\n    return f", "@deco", "does more with it"),
        (
            "def deco(f):\n    def w(*a): return f(*a)\n    w()\n    return w",
            "@deco",
            "does more with it",
        ),
        (
            "def deco(f):\n    known = {}\n    def w(x):\n        if x not in known:\n"
            "            known[x] = f(x)\n        return known[x]\n    return w",
            "@deco",
            "keeps old answers",
        ),
        (
            "def deco(f):\n    last = None\n    def w(x):\n        nonlocal last\n"
            "        got = f(x)\n        last = got\n        return last\n    return w",
            "@deco",
            "keeps old answers",
        ),
        (
            "from functools import lru_cache\ndef deco(f):\n    @lru_cache\n    def w(*a):\n"
            "        return f(*a)\n    return w",
            "@deco",
            "keeps old answers",
        ),
        (
            "def deco(n):\n    def inner(f):\n        f()\n        return f\n    return inner",
            "@deco(3)",
            "does more with it",
        ),
        (
            "class deco:\n    def __init__(self, f):\n        self.f = f\n",
            "@deco",
            "may do more than wrap it",
        ),
    ],
)
def test_the_projects_own_decorators_are_read(decorator, use, why):
    """In another file, as they are in practice."""
    text = f"from tools import deco\n{use}{HANDLER}"
    verdict = change(text.format(body=1), text.format(body=2), tools=decorator + "\n")
    if why:
        assert isinstance(verdict, Restart), verdict
        assert why in verdict.reason
    else:
        assert functions(verdict) == ("handle",)


def test_a_librarys_decorator_is_not_taken_for_one_of_the_project():
    """Both are called `timed`, and only one of them is known."""
    text = "from lib import timed\n@timed" + HANDLER
    own = "def timed(f):\n    return f\n"
    verdict = change(text.format(body=1), text.format(body=2), tools=own)
    assert isinstance(verdict, Restart)


def test_several_files_are_one_change_with_only_what_differs():
    before = {"a.py": "def f():\n    return 1\n", "b.py": "def g():\n    return 1\n", "c.py": "x=1"}
    after = {**before, "a.py": "def f():\n    return 2\n", "b.py": "# c\n" + before["b.py"]}
    after["c.py"] = "x=1  # one"
    verdict = decide(before, after, id="c1")
    assert isinstance(verdict, Swap)
    assert verdict.change.functions == {"a.py": ("f",)}
    assert set(verdict.change.before) == set(verdict.change.after) == {"a.py", "b.py"}


def test_a_removed_file_needs_a_new_replica():
    verdict = decide({"a.py": "x = 1\n", "b.py": "y = 1\n"}, {"a.py": "x = 1\n"}, id="c1")
    assert verdict == Restart('"b.py" was removed', "b.py", 1)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("import os\n", Nothing),
        ("def f():\n    import extra\n", Restart),
        ("import importlib\nx = importlib.import_module('tools.extra')\n", Restart),
        ("from . import extra\n", Restart),
    ],
)
def test_a_new_file_counts_once_somebody_imports_it(model, expected):
    before = {"model.py": model}
    assert isinstance(decide(before, {**before, "extra.py": "x = 1\n"}, id="c1"), expected)


def test_a_new_broken_file_counts_once_somebody_imports_it():
    before = {"model.py": "import os\n"}
    assert decide(before, {**before, "extra.py": "def ("}, id="c1") == Nothing()
    after = {"model.py": "import os, extra\n", "extra.py": "def ("}
    assert isinstance(decide(before, after, id="c1"), Broken)


def test_an_imported_file_that_cannot_be_read_may_call_anything():
    """It may be of a Python newer than ours."""
    text = "import newer\ndef f():\n    return 1\n"
    verdict = change(text, text.replace("1", "2"), newer="type X[ = int\n")
    assert isinstance(verdict, Restart)
    assert verdict.file == "newer.py"
    alone = change(text.replace("newer", "os"), text.replace("newer", "os") + "#", newer="def (")
    assert alone == Nothing()


def test_a_file_that_others_import_by_star_gets_no_new_function():
    """Their copies of its names were made when they were loaded."""
    before, after = "def f(): pass\n", "def f(): pass\ndef g(): pass\n"
    verdict = change(before, after, file="tools.py", model="from tools import *\n")
    assert isinstance(verdict, Restart)
    changed = change(before, "def f(): return 1\n", file="tools.py", model="from tools import *\n")
    assert isinstance(changed, Swap)


def test_a_file_that_became_a_comment_lost_its_functions():
    verdict = change("def f(): pass\n", "# nothing\n")
    assert verdict == Restart('"f" was removed', "model.py", 1)


LINES = st.sampled_from(
    [
        "x = 1",
        "return self",
        "yield x",
        "await x",
        "def inner(): return x",
        "y = lambda q: q",
        "super().f()",
        "x = [i for i in y]",
        "global G; G = 2",
        "nonlocal x",
        "self.g()",
        "getattr(self, y)",
        "class C: z = 1",
        "if x:\n            pass",
        "",
        "'''doc'''",
        "# comment",
        ")",
    ]
)
BODY = st.lists(LINES, max_size=5).map(
    lambda lines: "".join(f"        {line}\n" for line in [*lines, "pass"])
)
HEADS = st.sampled_from(["def f(self):", "async def f(self):", "@property\n    def f(self):"])
CLASSES = st.lists(st.tuples(HEADS, BODY), min_size=1, max_size=3).map(
    lambda methods: "class A:\n" + "".join(f"    {head}\n{body}" for head, body in methods)
)
SCRIBBLES = st.text(alphabet=string.printable + "\0\ud800é", max_size=30)


def parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "x", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
    return True


@settings(max_examples=200, deadline=None)
@given(CLASSES, CLASSES)
def test_any_two_texts_have_a_verdict(before, after):
    verdict = change(before, after)
    assert isinstance(verdict, Broken) == (before != after and not parses(after))
    if isinstance(verdict, Swap):
        heads = [
            [ast.dump(n.args) for n in ast.walk(ast.parse(t)) if isinstance(n, ast.FunctionDef)]
            for t in (before, after)
        ]
        assert len(heads[0]) <= len(heads[1])


@settings(max_examples=100, deadline=None)
@given(CLASSES)
def test_the_same_text_is_nothing(text):
    assert change(text, text) == Nothing()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(MODEL)), st.integers(0, 40), SCRIBBLES)
def test_a_scribble_anywhere_never_raises(at, cut, scribble):
    after = MODEL[:at] + scribble + MODEL[at + cut :]
    verdict = change(MODEL, after)
    assert isinstance(verdict, Broken) or parses(after)
