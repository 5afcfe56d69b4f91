"""Asks the Python processes of a container with the user's own code where they are.

The other side is `podlauncher.control`: one Unix socket per process in a folder of the container's.
What comes back is the user's own program's word: it is bounded, and nothing but text to show.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from kserve_local.errors import Missing, ServiceUnavailable

FOLDER = "KSERVE_LOCAL_CONTROL"
SOURCE = "KSERVE_LOCAL_SOURCE"
INSIDE = "/run/kserve-local/control"
"""Where a container sees the folder."""
_SUFFIX = ".sock"
_TIMEOUT = 1.0
_MAX_ANSWER = 4 * 2**20
_MAX_ASKED = 64
MAX_SOCKETS = 1000
"""How many a container may have; what is more is not looked at."""
_LOOPS = ("/asyncio/", "/uvloop/", "/selectors.py")
_LONGEST = 100
"""Bytes of a path that every system binds and connects."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One call of a stack; `file` is relative if it is the user's own."""

    file: str
    line: int
    function: str
    own: bool


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One Python process as it describes itself.

    Args:
        pid: As the container counts.
        modules: The user's own modules that are loaded -> file.
        parent: Who started it, likewise.
        source: The folder of the user's code as it sees it.
        stacks: Of each thread, the main one first; calls from the outermost to the innermost.
    """

    pid: int
    python: str
    modules: Mapping[str, str]
    stacks: Sequence[tuple[str, Sequence[Frame]]]
    parent: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Launcher:
    """What goes along with the user's own code into a container.

    Args:
        package: The folder of `podlauncher`.
        sockets: The container's folder for control sockets.
    """

    package: Path
    sockets: Path


def launcher(sockets: Path) -> Launcher:
    """Return what a container gets, its folder made. Blocking.

    Raises:
        Missing: kserve-local-runtimes is not installed.
    """
    found = find_spec("podlauncher")
    where = found.submodule_search_locations if found is not None else None
    if not where:
        raise Missing("kserve-local-runtimes is not installed beside kserve-local")
    sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
    # For whatever user the container has; the folder above is private.
    sockets.chmod(0o777)
    return Launcher(Path(next(iter(where))).resolve(), sockets)


def short_folder(sockets: Path, replica: str, container: str) -> Path:
    """Return the folder of a process's control sockets, whose paths have to be short.

    Args:
        sockets: The project's private folder for sockets.
    """
    digest = hashlib.sha256(f"{replica}/{container}".encode()).hexdigest()[:10]
    return sockets / f"c-{digest}"


async def explain(folder: Path) -> str:
    """Return one line about where a container's own code is; empty if nothing can be said."""
    return where(await describe(folder))


async def describe(folder: Path) -> list[Interpreter]:
    """Return what the processes of a container say, by pid; who does not answer is left out.

    A process whose native code holds the interpreter does not answer.
    """
    found = await asyncio.to_thread(sockets, folder)
    answers = await asyncio.gather(*(_describe(folder, name) for name in found[:_MAX_ASKED]))
    return sorted((a for a in answers if a is not None), key=lambda a: a.pid)


def sockets(folder: Path) -> list[str]:
    """Return the names of the sockets in a container's folder. Blocking."""
    try:
        with os.scandir(folder) as entries:
            names = (e.name for e in entries if e.name.endswith(_SUFFIX) and _is_socket(e))
            return list(islice(names, MAX_SOCKETS))
    except OSError:
        return []


def _is_socket(entry: os.DirEntry[str]) -> bool:
    return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)


async def _describe(folder: Path, name: str) -> Interpreter | None:
    try:
        line = await ask(folder, name, b'{"id": 1, "do": "describe"}', within=_TIMEOUT)
    except (OSError, TimeoutError, ValueError):
        return None
    return parse(line)


async def ask(folder: Path, name: str, request: bytes, *, within: float) -> bytes:
    """Return a process's answer to one request; empty if it ended meanwhile.

    Raises:
        ConnectionRefusedError: Its process is gone, and now its socket too.
        OSError: It cannot be asked.
        TimeoutError: It does not answer.
        ValueError: The answer is too long.
    """
    try:
        async with asyncio.timeout(within):
            with _short(folder) as way:
                reader, writer = await asyncio.open_unix_connection(
                    f"{way}/{name}", limit=_MAX_ANSWER
                )
            try:
                writer.write(request + b"\n")
                await writer.drain()
                return await reader.readline()
            finally:
                writer.close()
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
        raise


async def tell(
    folder: Path, pid: int, request: Mapping[str, Any], *, within: float
) -> Mapping[str, Any]:
    """Have one process do something, and return its answer.

    Raises:
        ServiceUnavailable: It does not answer in time, is gone, or says why it cannot.
    """
    line = json.dumps({"id": 1, **request}).encode()
    try:
        answer = json.loads(await ask(folder, f"{pid}{_SUFFIX}", line, within=within))
    except TimeoutError:
        raise ServiceUnavailable(f"process {pid} does not answer within {within:g} s") from None
    except (OSError, ValueError) as error:
        raise ServiceUnavailable(f"process {pid} cannot be asked: {error}") from error
    if not isinstance(answer, dict) or "error" in answer:
        why = answer.get("error") if isinstance(answer, dict) else answer
        raise ServiceUnavailable(f"process {pid}: {why}")
    return answer


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Give a way to the folder that is short enough for a socket's path."""
    if len(os.fsencode(folder)) < _LONGEST - len("/4194304.sock"):
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def parse(line: bytes) -> Interpreter | None:
    """Return what an answer says; None if it is none."""
    try:
        found = json.loads(line)
        source = os.path.join(str(found["source"]), "")
        return Interpreter(
            pid=int(found["pid"]),
            python=str(found["python"]),
            modules={str(k): str(v) for k, v in found["modules"].items()},
            stacks=[
                (str(thread["name"]), [_frame(frame, source) for frame in thread["frames"]])
                for thread in found["threads"]
            ],
            parent=int(found.get("parent") or 0),
            source=str(found["source"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _frame(found: Mapping[str, Any], source: str) -> Frame:
    file = str(found["file"])
    own = file.startswith(source) or not os.path.isabs(file)
    shown = file.removeprefix(source)
    return Frame(shown, int(found["line"]), str(found["function"]), own and file[:1] != "<")


def _is_of_loop(frame: Frame) -> bool:
    return any(part in frame.file for part in _LOOPS)


def where(interpreters: Sequence[Interpreter]) -> str:
    """Return one line about the user's own call that a process is in; empty if it is in none. Pure.

    The main thread goes first: it is where a program loads. A call that only runs an event loop is
    none: what the loop runs is.
    """
    for interpreter in interpreters:
        for name, frames in interpreter.stacks:
            own = [n for n, frame in enumerate(frames) if frame.own]
            if not own or any(_is_of_loop(frame) for frame in frames[own[-1] + 1 :]):
                continue
            last = frames[own[-1]]
            called = "" if last is frames[-1] else f", which called {frames[-1].function}()"
            what = "module level" if last.function == "<module>" else f"{last.function}()"
            return f"{name or 'A thread'} is in {last.file}, line {last.line}, {what}{called}."
    return ""
