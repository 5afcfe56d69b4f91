"""A change of code in the processes of a container, on every backend; real programs of a user's."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kserve_local.errors import NotFound
from kserve_local.interfaces.backend import Backend, ReplicaStatus
from kserve_local.interfaces.code import CodeChange, CodeVerdict
from tests.contract.conftest import World
from tests.contract.test_backend import get, wait_for

SERVE = """
import http.server, json, os, signal, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "src"))
import outside
from model import Model, model


def wait():
    while not os.path.exists(os.path.join(HERE, "src", "go")):
        time.sleep(0.01)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/rows":
            for row in model.rows(wait):
                self.wfile.write(row.encode() + b"\\n")
            return
        state = {"pid": os.getpid(), "weights": id(model.weights), "loads": Model.loads}
        told = {"answer": model.answer(), "outside": outside.tell(), **state}
        self.wfile.write(json.dumps(told).encode())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server = http.server.ThreadingHTTPServer(("", 8080), Handler)
    for _ in range(int(sys.argv[1]) - 1):
        if os.fork() == 0:
            break
    server.serve_forever()
"""
MODEL = """
import functools
from base import Base
from helper import shout


def marked(f):
    @functools.wraps(f)
    def wrapper(*args):
        return "[" + f(*args) + "]"

    return wrapper


class Model(Base):
    loads = 0

    def load(self):
        type(self).loads += 1
        self.weights = object()
        self.add = self.adder(1)
        return self

    def adder(self, n):
        def add(x):
            return x + n

        return add

    @property
    def kind(self):
        return "kind 1"

    @staticmethod
    def fixed():
        return "fixed 1"

    @classmethod
    def made(cls):
        return cls.__name__

    @marked
    def word(self):
        return "one"

    def answer(self):
        return [self.word(), self.kind, self.fixed(), self.made(), shout("x"), self.add(1)]

    def rows(self, wait):
        yield "row 1"
        wait()
        yield "row 1"


model = Model().load()
"""
FILES = {
    "serve.py": SERVE,
    "outside.py": "def tell():\n    return 'outside 1'\n",
    "src/model.py": MODEL,
    "src/base.py": "class Base:\n    @property\n    def kind(self):\n        return 'base'\n",
    "src/helper.py": "def shout(text):\n    return text + '!'\n",
}
OLD = ["[one]", "kind 1", "fixed 1", "Model", "x!", 2]
NEW = ["(two)", "kind 2", "fixed 2", "a Model", "x?", 12]
EDITS = {
    "src/model.py": (
        ('"one"', '"two"'),
        ('"kind 1"', '"kind 2"'),
        ('"fixed 1"', '"fixed 2"'),
        ("return cls.__name__", 'return "a " + cls.__name__'),
        ('"[" + f(*args) + "]"', '"(" + f(*args) + ")"'),
        ("return x + n", "return x + n + self_made()"),
        ("class Model(Base)", "def self_made():\n    return 10\n\n\nclass Model(Base)"),
    ),
    "src/helper.py": (("'!'", "'?'"),),
}


class Code:
    """A folder of a user's code, and replicas that run it."""

    def __init__(self, world: World, backend: Backend, folder: Path) -> None:
        self.world = world
        self.backend = backend
        self.folder = folder
        (folder / "src").mkdir(parents=True)
        for name, text in FILES.items():
            (folder / name).write_text(text)

    async def start(self, *ids: str, workers: int = 1) -> list[ReplicaStatus]:
        """Start replicas and return their status once they are ready."""
        container = self.world.of_source(self.folder, "serve.py", str(workers), live="src")
        await self.backend.prepare(container, lambda progress: None)
        found = []
        for id in ids:
            await self.backend.start(self.world.replica(container, id=id))
            found.append((await wait_for(self.backend, "ready")).status)
        return found

    def save(self, id: str, edits: dict[str, tuple[tuple[str, str], ...]]) -> CodeChange:
        """Edit files as an editor does, and return what changed."""
        before, after = {}, {}
        for name, replacements in edits.items():
            path = self.folder / name
            before[name] = text = path.read_text()
            for old, new in replacements:
                assert old in text
                text = text.replace(old, new)
            after[name] = text
            path.with_suffix(".new").write_text(text)
            path.with_suffix(".new").replace(path)
        return CodeChange(id, before, after)

    async def until_asked(self, id: str, count: int) -> None:
        """Wait until so many processes of a replica can be asked."""
        nothing = CodeChange("nothing", {}, {})
        async with asyncio.timeout(20):
            # A fork tells nobody that it is there.
            while True:
                verdict = await self.backend.check_code(id, "kserve-container", nothing)
                if verdict.processes == count:
                    return
                await asyncio.sleep(0.02)

    async def swap(self, change: CodeChange, *ids: str) -> list[CodeVerdict]:
        """Check a change everywhere, then put it in."""
        for id in ids:
            verdict = await self.backend.check_code(id, "kserve-container", change)
            assert verdict.refused == ""
        return [await self.backend.commit_code(id, "kserve-container", change) for id in ids]

    async def refusal(self, change: CodeChange, id: str = "uid-1") -> str:
        """Return why a change is refused, by the check as by the commit."""
        verdicts = [
            await self.backend.check_code(id, "kserve-container", change),
            await self.backend.commit_code(id, "kserve-container", change),
        ]
        assert len({verdict.refused for verdict in verdicts}) == 1
        return verdicts[0].refused


@pytest.fixture
async def code(world: World, backend: Backend, tmp_path: Path) -> Code:
    return Code(world, backend, tmp_path / "project" / "code")


async def test_a_change_is_live_in_every_replica_and_the_data_stays(code: Code):
    """Methods, a decorator, a closure, a property, and a function another file imported."""
    replicas = await code.start("uid-1", "uid-2")
    before = [await get(status, "/") for status in replicas]
    assert [found["answer"] for found in before] == [OLD, OLD]
    change = code.save("c", EDITS)
    checked = await code.backend.check_code("uid-1", "kserve-container", change)
    assert [await get(status, "/") for status in replicas] == before
    verdicts = await code.swap(change, "uid-1", "uid-2")
    assert {(v.refused, v.processes) for v in verdicts} == {("", 1)}
    assert {v.functions for v in verdicts} == {checked.functions}
    for status, old in zip(replicas, before, strict=True):
        found = await get(status, "/")
        assert found["answer"] == NEW
        same = ("pid", "weights", "loads")
        assert [found[key] for key in same] == [old[key] for key in same]
    # And back, with the function that was added taken as one that was loaded.
    again = code.save("d", {"src/model.py": (("return 10", "return 20"),)})
    await code.swap(again, "uid-1", "uid-2")
    assert (await get(replicas[0], "/"))["answer"] == [*NEW[:5], 22]


async def test_every_worker_has_the_change_and_so_has_one_that_is_forked_later(code: Code):
    [status] = await code.start("uid-1", workers=3)
    await code.until_asked("uid-1", 3)
    verdict = (await code.swap(code.save("c", EDITS), "uid-1"))[0]
    assert (verdict.refused, verdict.processes) == ("", 3)
    answers = await asyncio.gather(*(get(status, "/") for _ in range(30)))
    assert [found["answer"] for found in answers] == [NEW] * 30
    # The same change again finds nothing to do.
    change = CodeChange("c", *_texts(code))
    again = await code.backend.commit_code("uid-1", "kserve-container", change)
    assert again == CodeVerdict(processes=3, functions=0)


def _texts(code: Code) -> tuple[dict[str, str], dict[str, str]]:
    return (
        {name: FILES[name] for name in EDITS},
        {name: (code.folder / name).read_text() for name in EDITS},
    )


async def test_what_streams_goes_on_with_the_old_code(code: Code):
    [status] = await code.start("uid-1")
    port = next(iter(status.containers[0].ports.values()))
    url = f"http://{status.ip or '127.0.0.1'}:{port}/rows"
    answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=30)
    with answer:
        rows = [await asyncio.to_thread(answer.readline)]
        edits = {"src/model.py": (('"row 1"', '"row 2"'),)}
        [verdict] = await code.swap(code.save("c", edits), "uid-1")
        assert verdict == CodeVerdict(processes=1, functions=1)
        (code.folder / "src" / "go").touch()
        rows.append(await asyncio.to_thread(answer.readline))
    assert rows == [b"row 1\n", b"row 1\n"]
    answer = await asyncio.to_thread(urllib.request.urlopen, url, timeout=30)
    with answer:
        assert await asyncio.to_thread(answer.read) == b"row 2\nrow 2\n"


async def test_another_version_is_refused_and_nothing_changes(code: Code):
    [status] = await code.start("uid-1")
    before = await get(status, "/")
    change = code.save("c", EDITS)
    text = change.before["src/model.py"].replace('"one"', '"other"')
    wrong = CodeChange("c", {**change.before, "src/model.py": text}, change.after)
    refusal = await code.refusal(wrong)
    assert refusal.startswith("the process runs another version of src/model.py (line ")
    assert await get(status, "/") == before


async def test_what_a_later_process_would_not_see_is_refused(code: Code):
    """In a container, a file that was copied into its image."""
    [status] = await code.start("uid-1")
    change = code.save("c", {"outside.py": (("outside 1", "outside 2"),)})
    if code.world.in_docker:
        why = "outside.py is still the old one where the program runs"
        assert await code.refusal(change) == why
        assert (await get(status, "/"))["outside"] == "outside 1"
    else:
        await code.swap(change, "uid-1")
        assert (await get(status, "/"))["outside"] == "outside 2"


async def test_code_larger_than_a_socket_takes_at_once(code: Code):
    [status] = await code.start("uid-1")
    padding = "\n" + "# A line of a comment.\n" * 20_000
    edits = {"src/helper.py": (("'!'\n", f"'?'\n{padding}"),)}
    await code.swap(code.save("c", edits), "uid-1")
    edits = {"src/helper.py": (("'?'", "'??'"),)}
    await code.swap(code.save("d", edits), "uid-1")
    answer: Any = (await get(status, "/"))["answer"]
    assert answer[4] == "x??"


async def test_a_process_that_does_not_answer_refuses(code: Code):
    [status] = await code.start("uid-1")
    change = code.save("c", EDITS)
    pid = status.containers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        verdict = await code.backend.check_code("uid-1", "kserve-container", change)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "does not answer within 2 s" in verdict.refused
    [verdict] = await code.swap(change, "uid-1")
    assert verdict.refused == ""


async def test_a_new_backend_changes_what_it_adopted(code: Code):
    [status] = await code.start("uid-1")
    await code.backend.close(stop_replicas=False)
    second = await code.world.open()
    try:
        verdict = await second.commit_code("uid-1", "kserve-container", code.save("c", EDITS))
        assert (verdict.refused, verdict.processes) == ("", 1)
        assert (await get(status, "/"))["answer"] == NEW
    finally:
        await second.close(stop_replicas=True)


async def test_a_container_without_code_of_the_users_refuses(world: World, backend: Backend):
    sleeper = world.container(readiness=None)
    if world.in_docker:
        sleeper = world.container(readiness=None, command=("sleep", "600"), argv=("sleep", "600"))
    else:
        assert sleeper.program is not None
        program = {"argv": ("sleep", "600"), "is_python": False, "preload": ()}
        sleeper = world.container(readiness=None, program=replace(sleeper.program, **program))
    await backend.start(world.replica(sleeper))
    await wait_for(backend, "started")
    change = CodeChange("c", {"a.py": "a = 1\n"}, {"a.py": "a = 2\n"})
    for ask in (backend.check_code, backend.commit_code):
        verdict = await ask("uid-1", "kserve-container", change)
        assert verdict == CodeVerdict(refused="it is no Python program that can be asked")


async def test_nobody_there_is_not_found(world: World, backend: Backend):
    change = CodeChange("c", {}, {})
    for ask in (backend.check_code, backend.commit_code):
        with pytest.raises(NotFound, match="uid-9"):
            await ask("uid-9", "kserve-container", change)
    await backend.start(world.replica())
    for ask in (backend.check_code, backend.commit_code):
        with pytest.raises(NotFound, match="nobody"):
            await ask("uid-1", "nobody", change)
