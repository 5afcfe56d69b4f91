"""The control socket of the user's own code: asked, parsed, and told in a line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kserve_local.backends import control
from kserve_local.backends.control import Frame, Interpreter

HOOK = Path(__file__).parents[3] / "runtimes" / "podlauncher" / "hook"


@contextmanager
def running(source: Path, text: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the user's as a container would: only the hook goes along."""
    source.mkdir(parents=True, exist_ok=True)
    (source / "model.py").write_text(text)
    folder.mkdir(parents=True, exist_ok=True)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(HOOK),
        control.FOLDER: str(folder),
        control.SOURCE: str(source),
    }
    process = subprocess.Popen(
        [sys.executable, "model.py"], cwd=source, env=env, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None  # a pipe was asked for
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def described(folder: Path, count: int = 1) -> list[Interpreter]:
    """Return what all processes say, once there are as many as expected."""
    deadline = time.monotonic() + 10
    while True:
        found = asyncio.run(control.describe(folder))
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_a_program_tells_its_modules_and_the_call_it_is_in(tmp_path: Path):
    text = (
        "import helper, time\ndef load():\n    print('up', flush=True)\n    helper.wait()\nload()\n"
    )
    source = tmp_path / "source"
    source.mkdir()
    (source / "helper.py").write_text(
        "import time\ndef wait():\n    print('waits', flush=True); time.sleep(60)\n"
    )
    with running(source, text, tmp_path / "control") as process:
        assert process.stdout is not None  # a pipe was asked for
        assert process.stdout.readline() == b"waits\n"
        (found,) = described(tmp_path / "control")
    assert found.pid == process.pid
    assert found.modules == {
        "__main__": str(source / "model.py"),
        "helper": str(source / "helper.py"),
    }
    name, frames = found.stacks[0]
    assert name == "MainThread"
    assert [(f.file, f.line, f.function) for f in frames] == [
        ("model.py", 5, "<module>"),
        ("model.py", 4, "load"),
        ("helper.py", 3, "wait"),
    ]
    assert control.where([found]) == "MainThread is in helper.py, line 3, wait()."


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_process_of_a_program_has_its_own_socket(tmp_path: Path, method: str):
    text = (
        "import multiprocessing, time\n"
        "def work():\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context('{method}')\n"
        "    workers = [context.Process(target=work, daemon=True) for _ in range(2)]\n"
        "    [w.start() for w in workers]\n"
        "    print('up', flush=True)\n"
        "    workers[0].join()\n"
    )
    folder = tmp_path / "control"
    with running(tmp_path / "source", text, folder):
        deadline = time.monotonic() + 10
        inside: list[str] = []
        while inside.count("work") != 2 and time.monotonic() < deadline:
            found = described(folder, 3)
            inside = [frames[-1].function for i in found for _, frames in i.stacks[:1] if frames]
    assert inside.count("work") == 2


def test_a_program_that_is_gone_is_not_asked_again(tmp_path: Path):
    folder = tmp_path / "control"
    text = "print('up', flush=True)\nimport time\ntime.sleep(60)\n"
    with running(tmp_path / "source", text, folder):
        assert len(described(folder)) == 1
    assert asyncio.run(control.describe(folder)) == []
    assert list(folder.iterdir()) == []


def test_a_folder_too_deep_for_a_socket_is_reached_all_the_same(tmp_path: Path):
    folder = tmp_path / "control"
    text = "print('up', flush=True)\nimport time\ntime.sleep(60)\n"
    with running(tmp_path / "source", text, folder):
        deep = tmp_path / ("d" * 100) / ("e" * 100)
        deep.parent.mkdir()
        deep.symlink_to(folder)
        assert len(described(deep)) == 1


def test_a_folder_that_cannot_be_written_ends_no_program(tmp_path: Path):
    env = {"PYTHONPATH": str(HOOK), control.FOLDER: str(tmp_path / "missing")}
    done = subprocess.run(
        [sys.executable, "-c", "print(1)"], env=env, capture_output=True, check=True, text=True
    )
    assert done.stdout == "1\n"
    assert done.stderr == (
        f"kserve-local: no control socket in {tmp_path / 'missing'}: No such file or directory\n"
    )


def test_an_unknown_request_is_answered(tmp_path: Path):
    folder = tmp_path / "control"

    async def ask(name: str, *lines: bytes) -> list[dict[str, Any]]:
        reader, writer = await asyncio.open_unix_connection(str(folder / name))
        writer.write(b"".join(line + b"\n" for line in lines))
        answers = [json.loads(await reader.readline()) for _ in lines]
        writer.close()
        return answers

    text = "print('up', flush=True)\nimport time\ntime.sleep(60)\n"
    with running(tmp_path / "source", text, folder):
        (name,) = os.listdir(folder)
        answers = asyncio.run(ask(name, b'{"id": 1, "do": "x"}', b"no JSON", b'{"id": 3, "do": 1}'))
    assert [a["id"] for a in answers] == [1, None, 3]
    assert answers[0]["error"] == "unknown request 'x'"
    assert answers[1]["error"].startswith("JSONDecodeError")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"null",
        b'{"pid": 1}',
        b'{"source": 1, "pid": "x"}',
        b'{"source": "/a", "pid": 1, "python": "3", "modules": [], "threads": []}',
        b'{"source": "/a", "pid": 1, "python": "3", "modules": {}, "threads": [3]}',
    ],
)
def test_what_is_no_answer_is_left_out(line: bytes):
    assert control.parse(line) is None


def frames(*calls: tuple[str, int, str, bool]) -> list[Frame]:
    return [Frame(*call) for call in calls]


@pytest.mark.parametrize(
    ("stacks", "told"),
    [
        ([], ""),
        ([("MainThread", frames(("/lib/asyncio/base.py", 1, "run", False)))], ""),
        (
            [("MainThread", frames(("model.py", 3, "<module>", True), ("/l.py", 9, "get", False)))],
            "MainThread is in model.py, line 3, module level, which called get().",
        ),
        (
            [
                (
                    "MainThread",
                    frames(("m.py", 9, "main", True), ("/l/asyncio/runners.py", 1, "run", False)),
                )
            ],
            "",
        ),
        (
            [
                ("MainThread", frames(("/lib/select.py", 1, "poll", False))),
                ("worker-0", frames(("/lib/t.py", 1, "run", False), ("m.py", 8, "predict", True))),
            ],
            "worker-0 is in m.py, line 8, predict().",
        ),
    ],
    ids=["nothing", "only-libraries", "main", "idle-loop", "worker"],
)
def test_where_a_program_is(stacks: list[tuple[str, list[Frame]]], told: str):
    assert control.where([Interpreter(1, "3.11.2", {}, stacks)]) == told
