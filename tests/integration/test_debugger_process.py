"""A debugger let into a process through its control socket, with a real client of the protocol."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.dap import DapClient
from tests.integration.project import wait_until

HOOK = Path(__file__).parents[2] / "runtimes" / "podlauncher" / "hook"

SERVER = """
import asyncio, os, sys, threading

def predict(x):
    y = x + 1
    return y

def answer(line):
    if line == b"traced":
        return str(sys.gettrace() is not None)
    if line == b"threads":
        return str(len([t for t in threading.enumerate() if not t.daemon]))
    if line == b"fork":
        pid = os.fork()
        if not pid:
            os._exit(0 if predict(1) == 2 else 1)
        return str(os.waitpid(pid, 0)[1])
    return str(predict(int(line)))

async def handle(reader, writer):
    writer.write(answer((await reader.readline()).strip()).encode())
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

if "uvloop" in sys.argv:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""
LINE = SERVER.splitlines().index("    y = x + 1") + 1


@dataclass
class Server:
    """The process under test."""

    process: subprocess.Popen[bytes]
    file: Path
    port: int
    socket: Path

    def call(self, what: str) -> str:
        """Send it a line and return its answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as client:
            client.sendall(f"{what}\n".encode())
            return client.makefile().read()

    def calling(self, what: str) -> Queue[str]:
        """Send it a line; the answer comes into the queue."""
        answers: Queue[str] = Queue()
        threading.Thread(target=lambda: answers.put(self.call(what)), daemon=True).start()
        return answers

    def control(self, do: str, **more: Any) -> dict[str, Any]:
        """Ask its control socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(30)
            client.connect(str(self.socket))
            client.sendall(json.dumps({"id": 1, "do": do, **more}).encode() + b"\n")
            return dict(json.loads(client.makefile().readline()))


@contextmanager
def serving(folder: Path, *flags: str, python: str | Path = sys.executable) -> Iterator[Server]:
    """Run the server as a container runs the user's own code."""
    file, sockets = folder / "model.py", folder / "c"
    file.write_text(SERVER)
    sockets.mkdir()
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(HOOK),
        "KSERVE_LOCAL_CONTROL": str(sockets),
        "KSERVE_LOCAL_SOURCE": str(folder),
    }
    process = subprocess.Popen(
        [str(python), str(file), *flags],
        env=env, cwd=folder, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None  # a pipe was asked for
        port = int(process.stdout.readline())
        yield Server(process, file, port, sockets / f"{process.pid}.sock")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, request.param) as found:
        yield found


def test_a_breakpoint_stops_the_loop_that_ran_before(server: Server) -> None:
    """The main thread was in its event loop when the debugger came; who asks goes on answering."""
    port = server.control("debug")["port"]
    client = DapClient(port)
    client.attach(server.file, LINE)
    answers = server.calling("41")
    thread = client.stopped()["threadId"]
    frame = client.top_frame(thread)
    assert (frame["name"], frame["line"]) == ("predict", LINE)
    described = server.control("describe")
    mine = [f for f in described["threads"][0]["frames"] if f["file"] == str(server.file)]
    assert (mine[-1]["function"], mine[-1]["line"]) == ("predict", LINE)
    assert answers.empty()
    client.resume(thread)
    assert answers.get(timeout=20) == "42"
    client.request("disconnect")
    client.close()


def test_nothing_is_traced_without_a_client(server: Server) -> None:
    """Tracing makes every call slower, so it ends with the session and begins with the next."""
    assert server.call("traced") == "False"
    for answer in ("42", "43"):
        port = server.control("debug")["port"]
        client = DapClient(port)
        client.attach(server.file, LINE)
        assert server.call("traced") == str(sys.version_info < (3, 12))
        answers = server.calling(str(int(answer) - 1))
        client.resume(client.stopped()["threadId"])
        assert answers.get(timeout=20) == answer
        client.request("disconnect")
        client.close()
        server.control("undebug")
        wait_until(lambda: server.call("traced") == "False", why="the loop is still traced")


def test_asked_twice_it_is_the_same_port(server: Server) -> None:
    assert server.control("debug")["port"] == server.control("debug")["port"]


def test_a_client_that_vanishes_lets_the_program_run_on(server: Server) -> None:
    """A killed IDE says no goodbye."""
    client = DapClient(server.control("debug")["port"])
    client.attach(server.file, LINE)
    answers = server.calling("41")
    client.stopped()
    client.close()
    assert answers.get(timeout=20) == "42"


def test_a_fork_of_a_debugged_process_does_not_stop(server: Server) -> None:
    """Nobody could let it go on."""
    client = DapClient(server.control("debug")["port"])
    client.attach(server.file, LINE)
    assert server.call("fork") == "0"
    client.request("disconnect")
    client.close()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An environment of the user's that has nothing installed."""
    venv.create(tmp_path / "venv")
    return tmp_path / "venv" / "bin" / "python"


def test_without_debugpy_it_says_how_to_get_it(bare: Path, tmp_path: Path) -> None:
    """The program's environment has none, and no folder that has one was named."""
    with serving(tmp_path, "asyncio", python=bare) as server:
        error = server.control("debug", path=[str(tmp_path)])["error"]
        assert "has no debugpy" in error
        assert str(bare) in error
        assert "pip install debugpy" in error
        assert "pip install 'kserve-local[debug]'" in error
        assert server.call("41") == "42"


def test_the_debugpy_of_kserve_local_will_do(bare: Path, tmp_path: Path) -> None:
    """A folder is named that holds it; what else lies there does not come along."""
    found = find_spec("debugpy")
    assert found is not None
    assert found.origin is not None
    home = tmp_path / "home"
    home.mkdir()
    (home / "debugpy").symlink_to(Path(found.origin).parent)
    with serving(tmp_path, "asyncio", python=bare) as server:
        client = DapClient(server.control("debug", path=[str(home)])["port"])
        client.attach(server.file, LINE)
        answers = server.calling("41")
        client.resume(client.stopped()["threadId"])
        assert answers.get(timeout=20) == "42"
        client.request("disconnect")
        client.close()
