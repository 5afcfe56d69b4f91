"""Which functions run before the first request."""

from __future__ import annotations

from textwrap import dedent

import pytest

from kserve_local.devloop.call_graph import CallGraph


def graph(**files: str) -> CallGraph:
    return CallGraph({f"{name}.py": dedent(text) for name, text in files.items()})


def reached(graph: CallGraph, name: str, file: str = "model.py") -> str:
    return graph.why_reached(file, name, 0)


HELPER = "def helper():\n    return 1\n\n\n"


@pytest.mark.parametrize(
    "text",
    [
        # called, handed on, looked up
        "def load():\n    helper()\n",
        "def load():\n    Thread(target=helper).start()\n",
        "def load():\n    atexit.register(helper)\n",
        "def load():\n    with pool() as p: p.submit(helper)\n",
        "def load():\n    getattr(tools, 'helper')()\n",
        "def load():\n    run('model:helper')\n",
        "def load():\n    run('pkg.model.helper')\n",
        "def load():\n    self.helper()\n",
        "def load():\n    keep = self.helper\n",
        "def load():\n    step = lambda: helper()\n",
        "def load():\n    def inner():\n        helper()\n    inner()\n",
        "def load():\n    class A:\n        def f(self): helper()\n    A()\n",
        "def load():\n    return [helper() for _ in rows]\n",
        "async def load():\n    await helper()\n",
        "def load():\n    from model import helper as other\n    other()\n",
        # whatever runs at the start
        "class A:\n    def __init__(self): helper()\n",
        "class A:\n    def __new__(cls): helper()\n",
        "class A:\n    def __post_init__(self): helper()\n",
        "class A:\n    def __init_subclass__(cls): helper()\n",
        "class A:\n    def __set_name__(self, o, n): helper()\n",
        "class A:\n    def __class_getitem__(cls, i): helper()\n",
        "class A:\n    def __call__(self): helper()\n",
        "class A:\n    def _missing_(cls, v): helper()\n",
        "class A:\n    def start(self): helper()\n",
        "class A:\n    async def start_engine(self): helper()\n",
        "def __getattr__(name): helper()\n",
        "@app.on_event('startup')\ndef warm(): helper()\n",
        "@unknown\ndef warm(): helper()\n",
        "@asynccontextmanager\nasync def life(app):\n    helper()\nx = FastAPI(lifespan=life)\n",
        # module level
        "x = helper()\n",
        "HANDLERS = {'a': helper}\n",
        "if __name__ == '__main__':\n    helper()\n",
        "try:\n    helper()\nfinally:\n    pass\n",
        "for x in y:\n    helper()\n",
        "with a as b:\n    helper()\n",
        "match x:\n    case 1:\n        helper()\n",
        "def f(a=helper()): pass\n",
        "def f(*, a=Depends(helper)): pass\n",
        "def f(a: helper): pass\n",
        "def f() -> helper: pass\n",
        "@helper\ndef f(): pass\n",
        "@helper(1)\nclass A: pass\n",
        "class A(helper()): pass\n",
        "class A:\n    x = helper()\n",
        "class A:\n    if x:\n        y = helper\n",
        "f = lambda: helper()\n",
        "x = [helper() for _ in y]\n",
        # through others
        "def load():\n    first()\ndef first():\n    second()\ndef second():\n    helper()\n",
        "x = first()\ndef first():\n    return helper()\n",
    ],
)
def test_what_runs_before_a_request_reaches_what_it_mentions(text):
    assert reached(graph(model=HELPER + text), "helper")


@pytest.mark.parametrize(
    "text",
    [
        "def predict():\n    helper()\n",
        "def load():\n    other()\n",
        "from model import helper\n",
        "__all__ = ['helper']\n",
        "__all__ += ['helper']\n",
        '"""helper does it."""\n',
        "def load():\n    print('the helper is not called')\n",
        "def load():\n    f(helper=1)\n",
        "def load():\n    # helper()\n    pass\n",
        "class A:\n    def predict(self):\n        load()\n        helper()\n",
        "@app.post('/x')\ndef f():\n    helper()\n",
        "@staticmethod\ndef f():\n    helper()\n",
    ],
)
def test_what_only_requests_call_is_not_reached(text):
    assert not reached(graph(model=HELPER + text), "helper")


def test_the_way_is_told():
    text = "def load():\n    first()\ndef first():\n    second()\ndef second():\n    helper()\n"
    found = graph(model=HELPER + text)
    assert reached(found, "helper") == '"helper" is reached by load() through first, second'
    assert reached(found, "first") == '"first" is reached by load()'
    assert reached(found, "load") == '"load" runs when the service starts'
    found = graph(model=HELPER + "x = first()\ndef first():\n    return helper()\n")
    assert (
        reached(found, "helper")
        == '"helper" is reached by the module level of model.py through first'
    )


def test_functions_that_call_each_other_are_walked_once():
    found = graph(model="def a():\n    b()\ndef b():\n    a()\ndef load():\n    b()\n")
    assert reached(found, "a") == '"a" is reached by load() through b'


def test_other_files_reach_and_are_reached():
    found = graph(
        model="from tools import clean as tidy\ndef load():\n    tidy()\n",
        tools="def clean():\n    return shared()\ndef shared(): pass\ndef other(): pass\n",
    )
    assert reached(found, "clean", "tools.py") == '"clean" is reached by load()'
    assert reached(found, "shared", "tools.py") == '"shared" is reached by load() through clean'
    assert not reached(found, "other", "tools.py")


def test_star_imports_bring_names_too():
    found = graph(
        model="from tools import *\ndef load():\n    clean()\n", tools="def clean(): pass\n"
    )
    assert reached(found, "clean", "tools.py")


def test_overrides_in_any_file_are_reached_by_their_name():
    """Which class `self` is cannot be seen where the base calls it."""
    found = graph(
        base="class Base:\n    def load(self):\n        self.prepare()\n"
        "    def prepare(self): pass\n    def answer(self): pass\n",
        model="from base import Base\nclass Model(Base):\n    def prepare(self): pass\n"
        "    def answer(self): pass\n",
    )
    assert reached(found, "Model.prepare")
    assert reached(found, "Base.prepare", "base.py")
    assert not reached(found, "Model.answer")


def test_properties_are_reached_by_being_read_and_not_by_their_setter():
    text = """
    class A:
        @property
        def label(self): return 1
        @label.setter
        def label(self, value): pass
        def load(self): {}
    """
    assert not reached(graph(model=text.format("pass")), "A.label")
    assert reached(graph(model=text.format("self.label")), "A.label")
    assert graph(model=text.format("self.label = 1")).why_reached("model.py", "A.label", 1)


def test_private_names_are_reached_under_both_spellings():
    text = "class A:\n    def __hidden(self): pass\ndef load(a):\n    a._A__hidden()\n"
    assert reached(graph(model=text), "A.__hidden")


def test_a_function_is_reached_with_those_it_defines():
    text = "def predict(self):\n    def step(): pass\n    self.step = step\n"
    assert reached(graph(model=text + "def load(self):\n    self.step()\n"), "predict")


@pytest.mark.parametrize(
    ("imports", "base", "is_reached"),
    [
        ("import torch", "torch.nn.Module", True),
        ("from torch import nn", "nn.Module", True),
        ("import keras", "keras.Model", True),
        ("from keras import Model", "Model", True),
        ("from threading import Thread", "Thread", True),
        ("from lib import *", "Base", True),
        ("import lib", "lib.made()", True),
        ("import kserve", "kserve.ModelServer", True),
        ("import kserve", "kserve.Model", False),
        ("from kserve import Model", "Model", False),
        ("from abc import ABC", "ABC", False),
        ("from typing import Generic, T", "Generic[T]", False),
        ("import enum", "enum.Enum", False),
        ("import pydantic", "pydantic.BaseModel", False),
        ("", "Exception", False),
        ("", "dict", False),
    ],
)
def test_a_library_may_call_the_methods_of_its_subclasses(imports, base, is_reached):
    """`self.net(x)` runs `forward` without naming it, and so may warm-up or tracing in `load()`."""
    text = f"{imports}\nclass Net({base}):\n    def forward(self): pass\n"
    found = graph(model=text + "def load():\n    net = Net()\n    net(1)\n")
    assert bool(reached(found, "Net.forward")) is is_reached
    assert not reached(graph(model=text + "def predict():\n    Net()\n"), "Net.forward")


def test_a_base_of_the_project_is_as_open_as_its_own_bases():
    files = {
        "nets": "import torch\nclass Base(torch.nn.Module):\n    def forward(self): pass\n",
        "model": "from nets import Base\nclass Net(Base):\n    def step(self): pass\n"
        "def load():\n    Net()\n",
    }
    found = graph(**files)
    assert reached(found, "Net.step")
    assert reached(found, "Base.forward", "nets.py")
    assert found.is_open("model.py", "Net")
    files["nets"] = "class Base:\n    def forward(self): pass\n"
    found = graph(**files)
    assert not reached(found, "Net.step")
    assert not reached(found, "Base.forward", "nets.py")
    assert not found.is_open("model.py", "Net")


def test_classes_that_inherit_from_each_other_by_mistake_end():
    found = graph(model="class A(B):\n    pass\nclass B(A):\n    pass\nA()\n")
    assert not found.is_open("model.py", "A")


@pytest.mark.parametrize(
    ("call", "how"),
    [
        ("getattr(self, name)()", "getattr"),
        ("getattr(self, f'on_{name}')()", "getattr"),
        ("look = getattr", "getattr"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("builtins.exec(text)", "exec"),
        ("globals()[name]()", "globals"),
        ("locals()[name]()", "locals"),
        ("vars()[name]()", "vars"),
        ("vars(type(self))[name](self)", "vars"),
        ("vars(tools)[name]()", "vars"),
        ("vars(Other)[name]()", "vars"),
        ("dir(self)", "dir"),
        ("type(self).__dict__[name](self)", "__dict__"),
        ("tools.__dict__[name]()", "__dict__"),
        ("importlib.import_module(name)", "import_module"),
        ("__import__(name)", "__import__"),
        ("sys.modules[__name__]", "modules"),
        ("inspect.getmembers(self)", "getmembers"),
        ("operator.methodcaller(name)(self)", "methodcaller"),
        ("attrgetter(name)(self)", "attrgetter"),
        ("helper.__globals__[name]()", "__globals__"),
        ("runpy.run_path(path)", "run_path"),
        ("Base.__subclasses__()", "__subclasses__"),
        ("getattr(tools, name)()", "getattr"),
    ],
)
def test_looking_up_computed_names_may_reach_anything(call, how):
    head = "import tools\nfrom operator import attrgetter\nclass Other: pass\n"
    found = graph(model=f"{head}def load(self):\n    {call}\n", tools="")
    assert found.computed == ("model.py", how, 5)
    assert graph(model=f"{head}def predict(self):\n    {call}\n", tools="").computed is None


@pytest.mark.parametrize(
    "call",
    [
        "getattr(self, 'name')()",
        "getattr(logging, level)",
        "getattr(torch.float, kind)",
        "vars(args)",
        "self.__dict__.update(state)",
        "importlib.import_module('tools')",
        "operator.methodcaller('run')(self)",
        "model.eval()",
        "re.compile(x)",
        "self.modules()",
        "setattr(self, name, 1)",
    ],
)
def test_looking_up_known_names_does_not(call):
    found = graph(model=f"import logging, torch\ndef load(self):\n    {call}\n", tools="")
    assert found.computed is None


def test_a_file_that_is_no_python_has_no_functions():
    found = graph(model="def load():\n    helper()\n", broken="def (")
    assert reached(found, "load")


def test_packages_are_files_as_any():
    files = {
        "pkg/__init__.py": "from .core import answer\n",
        "pkg/core.py": "def answer(): pass\n",
        "model.py": "import pkg\ndef load():\n    pkg.answer()\n",
    }
    assert reached(CallGraph(files), "answer", "pkg/core.py")
