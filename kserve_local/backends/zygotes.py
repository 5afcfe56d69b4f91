"""Warm parents: one per interpreter, preload and import-time environment; forked on request.

Talks to `podlauncher.zygote` over a Unix socket. A zygote is found again by a new supervisor
through its file below `run/zygotes` and dies without harm to the replicas it forked: they are
watched by pidfd, only their exit codes get lost. `start_process` needs no event loop and little
time, so the supervisor can call it before its own imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_local.backends import processes, runfiles
from kserve_local.backends.launch import machine_env, with_interpreter
from kserve_local.backends.processes import MARK, Exit

log = logging.getLogger(__name__)

# Where a fork's own command line goes; a zygote's is too short for it.
_TITLE_ROOM = " " * 400
_ANSWER_TIMEOUT = 30.0
WARM_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class ZygoteKey:
    """What forks of one zygote have in common.

    Args:
        env: Variables that libraries read at import.
        home_first: Our servers come first on the path (built-in runtimes), else last.
    """

    python: Path
    preload: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    home_first: bool = True

    @property
    def digest(self) -> str:
        """A short name for files and sockets."""
        text = json.dumps([str(self.python), self.preload, self.env, self.home_first])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class ZygotePlace:
    """Folders that zygotes use: `run/zygotes`, the sockets', podlauncher's home, the state's."""

    run: Path
    sockets: Path
    home: Path
    state: Path
    base_env: Mapping[str, str]

    def run_file(self, key: ZygoteKey) -> Path:
        return self.run / f"{key.digest}.json"

    def socket(self, key: ZygoteKey) -> Path:
        return self.sockets / f"zygote-{key.digest}.sock"


class ForkRefused(Exception):
    """The zygote cannot make this replica; the message says why. A plain start can.

    Args:
        uncertain: The zygote went away before it answered; there may be a fork nobody knows.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain


def start_process(key: ZygoteKey, place: ZygotePlace) -> int:
    """Start a zygote and return its pid at once; it warms up by itself.

    Raises:
        OSError: The interpreter cannot be run.
    """
    place.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = secrets.token_hex(16)
    config = {
        "token": token,
        "preload": list(key.preload),
        "home": str(place.home),
        "home_first": key.home_first,
        "state": str(place.state),
        "python": str(key.python),
        "env": list(key.env),
    }
    runfiles.write(place.run_file(key), json.dumps(config).encode())
    path = place.socket(key)
    path.unlink(missing_ok=True)
    env = with_interpreter(machine_env(place.base_env), key.python)
    env.update(key.env)
    env[MARK] = token
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        main = place.home / "podlauncher" / "main.py"
        return processes.spawn(
            [str(key.python), str(main), "zygote", str(place.run_file(key)), _TITLE_ROOM],
            env,
            log=place.run / f"{key.digest}.log",
            listener=listener.fileno(),
        )


class Zygote:
    """A connection to one zygote; `hello` is done once it can fork."""

    def __init__(self, key: ZygoteKey, pid: int) -> None:
        self.key = key
        self.pid = pid
        self.error = ""
        self.alive = True
        self._writer: asyncio.StreamWriter | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._exits: dict[tuple[int, int | None], asyncio.Future[Exit | None]] = {}
        self._next = 0
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, path: Path) -> None:
        """Connect and read until the zygote goes away."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(path, limit=1 << 20)
            while line := await reader.readline():
                self._receive(json.loads(line))
            self.alive = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await processes.wait_gone(self.pid, None)
        except (OSError, ValueError) as error:
            log.debug("zygote %s: %s", self.pid, error)
        finally:
            self.alive = False
            self._lost()

    def _lost(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if not self._hello.done():
            self._hello.set_result(None)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result({"error": "the zygote ended", "uncertain": True})
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(None)

    def _receive(self, message: dict[str, Any]) -> None:
        if "hello" in message:
            self.pid = message["hello"]
            self.error = message["error"]
            if not self._hello.done():
                self._hello.set_result(None)
        elif "exited" in message:
            future = self._exit_future(message["exited"], message["start_time"])
            if not future.done():
                future.set_result(Exit(message["code"], message["signal"]))
        else:
            answer = self._answers.pop(message["id"], None)
            if answer is not None and not answer.done():
                answer.set_result(message)

    def _exit_future(self, pid: int, start: int | None) -> asyncio.Future[Exit | None]:
        future = self._exits.get((pid, start))
        if future is None:
            future = self._exits[pid, start] = asyncio.get_running_loop().create_future()
            if not self.alive:
                future.set_result(None)
        return future

    async def ready(self) -> None:
        """Wait until the zygote is warm.

        Raises:
            ForkRefused: It could not warm up.
        """
        try:
            await asyncio.wait_for(asyncio.shield(self._hello), WARM_TIMEOUT)
        except TimeoutError:
            raise ForkRefused(f"the zygote was not warm after {WARM_TIMEOUT:.0f} s") from None
        if self.error:
            raise ForkRefused(f"the zygote could not warm up: {self.error}")
        if not self.alive:
            raise ForkRefused("the zygote ended while warming up")

    async def fork(self, run_file: Path) -> tuple[int, int | None]:
        """Fork a container and return its pid and start time.

        Raises:
            ForkRefused: Not from this zygote; nothing was started.
        """
        await self.ready()
        if self._writer is None or not self.alive:
            raise ForkRefused("the zygote ended")
        self._next += 1
        number = self._next
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "fork": str(run_file)}).encode() + b"\n")
        try:
            message = await asyncio.wait_for(answer, _ANSWER_TIMEOUT)
        except TimeoutError:
            raise ForkRefused("the zygote does not answer", uncertain=True) from None
        finally:
            self._answers.pop(number, None)
        if "error" in message:
            raise ForkRefused(message["error"], uncertain=message.get("uncertain", False))
        return message["pid"], message["start_time"]

    async def exit_of(self, pid: int, start: int | None, *, within: float) -> Exit | None:
        """Return how a fork ended, once the zygote has reaped it; None if it cannot be known."""
        future = self._exit_future(pid, start)
        try:
            return await asyncio.wait_for(asyncio.shield(future), within)
        except TimeoutError:
            return None
        finally:
            self._exits.pop((pid, start), None)


class Zygotes:
    """All zygotes of one backend: adopted, started on demand, stopped at the end."""

    def __init__(self, place: ZygotePlace) -> None:
        self.place = place
        self._zygotes: dict[ZygoteKey, Zygote] = {}
        self._tasks: dict[Zygote, asyncio.Task[None]] = {}

    def adopt(self) -> None:
        """Connect to the zygotes that an earlier supervisor left: they know how replicas end."""
        for file in sorted(self.place.run.glob("*.json")):
            found = runfiles.read(file)
            try:
                key = ZygoteKey(
                    python=Path(found["python"]),
                    preload=tuple(found["preload"]),
                    env=tuple((name, value) for name, value in found["env"]),
                    home_first=bool(found["home_first"]),
                )
            except (KeyError, TypeError, ValueError):
                continue
            if self._survivor(key) is not None:
                self.get(key)

    def get(self, key: ZygoteKey) -> Zygote:
        """Return the living zygote for `key`, started or adopted if need be; maybe not yet warm.

        Raises:
            ForkRefused: It cannot be started.
        """
        zygote = self._zygotes.get(key)
        if zygote is not None and zygote.alive:
            return zygote
        try:
            pid = self._survivor(key) or start_process(key, self.place)
        except OSError as error:
            raise ForkRefused(f"no zygote: {error}") from error
        return self._connect(key, pid)

    def _connect(self, key: ZygoteKey, pid: int) -> Zygote:
        zygote = Zygote(key, pid)
        self._zygotes[key] = zygote
        task = asyncio.get_running_loop().create_task(
            zygote.run(self.place.socket(key)), name=f"zygote-{key.digest}"
        )
        self._tasks[zygote] = task
        task.add_done_callback(lambda _: self._ended(zygote))
        return zygote

    def _ended(self, zygote: Zygote) -> None:
        self._tasks.pop(zygote, None)
        if self._zygotes.get(zygote.key) is zygote:
            del self._zygotes[zygote.key]
        processes.reap(zygote.pid)

    def _survivor(self, key: ZygoteKey) -> int | None:
        """Return the pid of a zygote that runs for `key` already, started by whomever."""
        found = runfiles.read(self.place.run_file(key))
        token, pid = _names(found)
        if pid is None:
            # Just started, it may not have written its pid yet.
            candidates = processes.marked().get(token, []) if token else []
            return candidates[0] if candidates else None
        alive = processes.is_alive(pid, found.get("start_time"))
        return pid if alive and processes.mark_of(pid) == token else None

    def of(self, pid: int) -> Zygote | None:
        """Return the zygote with that pid, if connected."""
        return next((z for z in self._zygotes.values() if z.pid == pid), None)

    async def stop(self) -> None:
        """End all zygotes of this state folder, those of an earlier supervisor included."""
        # Known without their files, which may have been deleted with the folder.
        known = {z.pid: processes.start_time(z.pid) for z in self._zygotes.values() if z.alive}
        await self.disconnect()
        for file in sorted(self.place.run.glob("*.json")):
            found = runfiles.read(file)
            token, pid = _names(found)
            pids = [pid] if pid is not None and processes.mark_of(pid) == token else []
            if not pids and token:
                pids = (await asyncio.to_thread(processes.marked)).get(token, [])
            for pid in pids:
                await _kill(pid, processes.start_time(pid))
            file.unlink(missing_ok=True)
            (self.place.sockets / f"zygote-{file.stem}.sock").unlink(missing_ok=True)
        for pid, start in known.items():
            if processes.is_alive(pid, start):
                await _kill(pid, start)

    async def disconnect(self) -> None:
        """Leave the zygotes running and forget them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _kill(pid: int, start: int | None) -> None:
    processes.send(pid, signal.SIGKILL)
    await processes.wait_gone(pid, start)
    processes.reap(pid)


def _names(found: Mapping[str, Any]) -> tuple[str, int | None]:
    """Return token and pid of a run file; a pid without a token could be anybody's."""
    token, pid = found.get("token"), found.get("pid")
    if not isinstance(token, str) or not token:
        return "", None
    return token, pid if type(pid) is int and pid > 1 else None


def supported() -> bool:
    """Return whether forking a warm parent is safe here: Linux only."""
    return sys.platform == "linux" and hasattr(os, "fork")
