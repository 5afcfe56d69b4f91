"""A client that sends at a constant rate from a thread of its own, and remembers every answer.

An open loop: a request is due at its time whatever became of those before, and its latency counts
from that time, so a server that stands still is not hidden. At most `MOST` requests wait at once;
one that is due beyond them has failed.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

MOST = 2000
PATIENCE = 60.0
"""Seconds after which a request without an answer has failed."""
_KEPT = 20_000
"""Answers remembered for each call: minutes."""
_IDLE = 1.0
"""Seconds after which a kept connection is not used again: some servers close it after five."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, sent again and again."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    Args:
        due: When it was to be sent, on the monotonic clock.
        ended: When its answer was complete, or it failed.
        text: The answer's body.
        problem: Why it failed; empty: it was answered with 200.
    """

    due: float
    ended: float
    text: str
    problem: str = ""


@dataclass
class _Idle:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    since: float


@dataclass
class Steady:
    """The stream of requests to one port.

    Args:
        calls: Name -> request.
        rates: Name -> requests a second; may be changed at any time.
    """

    port: int
    calls: Mapping[str, Call]
    rates: dict[str, float]
    sent: int = 0
    failed: int = 0
    slowest: float = 0.0
    examples: list[str] = field(default_factory=list)
    _answers: dict[str, deque[Answer]] = field(default_factory=dict)
    _news: threading.Condition = field(default_factory=threading.Condition)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _idle: list[_Idle] = field(default_factory=list)
    _waiting: int = 0

    @contextmanager
    def running(self) -> Iterator[Steady]:
        """Send while the block is open, then wait for the answers that are due."""
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="steady")
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            thread.join(PATIENCE + 10)

    def since(self, name: str, moment: float) -> list[Answer]:
        """Return what became of the requests to one name that were due from then on."""
        with self._news:
            return [a for a in self._ended(name, moment) if a.due >= moment]

    def _ended(self, name: str, moment: float) -> list[Answer]:
        """Return the answers that ended after a moment, the newest first."""
        answers = reversed(self._answers.get(name, ()))
        return list(itertools.takewhile(lambda a: a.ended > moment, answers))

    def first(
        self, name: str, means: Callable[[str], bool], *, since: float, patience: float
    ) -> Answer:
        """Return the first answer of that meaning to end after a moment; wait for it.

        Raises:
            AssertionError: None came in time.
        """
        end = time.monotonic() + patience
        with self._news:
            while True:
                recent = self._ended(name, since)
                found = [a for a in recent if not a.problem and means(a.text)]
                if found:
                    return found[-1]
                left = end - time.monotonic()
                if left <= 0:
                    last = recent[0] if recent else "no answer"
                    raise AssertionError(f"{name}: not within {patience:g} s; the last: {last}")
                self._news.wait(left)

    def only(
        self, name: str, means: Callable[[str], bool], *, count: int, patience: float
    ) -> float:
        """Wait until `count` requests in a row were answered so; return when the first was due.

        Raises:
            AssertionError: They were not in time.
        """
        begun = time.monotonic()
        while True:
            row = sorted(self.since(name, begun), key=lambda a: a.due)
            other = [n for n, a in enumerate(row) if a.problem or not means(a.text)]
            row = row[other[-1] + 1 :] if other else row
            if len(row) >= count:
                return row[0].due
            if time.monotonic() - begun > patience:
                raise AssertionError(f"{name}: other answers still after {patience:g} s")
            with self._news:
                self._news.wait(0.5)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for name in self.calls:
                tasks.create_task(self._send(name, tasks), name=f"sender-{name}")
        for idle in self._idle:
            idle.writer.close()

    async def _send(self, name: str, tasks: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.sent += 1
            if self._waiting < MOST:
                self._waiting += 1
                tasks.create_task(self._one(name, due), name=f"request-{self.sent}")
            else:
                self._note(name, due, "", f"{MOST} requests wait for their answers")
            due += 1 / self.rates[name]

    async def _one(self, name: str, due: float) -> None:
        text = problem = ""
        try:
            async with asyncio.timeout(PATIENCE):
                status, body = await self._ask(self.calls[name])
            text = body.decode(errors="replace")
            problem = "" if status == 200 else f"{status} {text[:300]}"
        except (OSError, ValueError, KeyError, EOFError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            self._waiting -= 1
        self._note(name, due, text, problem)

    def _note(self, name: str, due: float, text: str, problem: str) -> None:
        ended = time.monotonic()
        with self._news:
            self._answers.setdefault(name, deque(maxlen=_KEPT)).append(
                Answer(due, ended, text, problem)
            )
            self.slowest = max(self.slowest, ended - due)
            if problem:
                self.failed += 1
                if len(self.examples) < 20:
                    self.examples.append(f"{name} after {ended - due:.2f} s: {problem}")
            self._news.notify_all()

    async def _ask(self, call: Call) -> tuple[int, bytes]:
        """Return status and body, over a connection that was kept if there is one."""
        reader, writer = await self._connection()
        kept = False
        try:
            head = (
                f"POST {call.path} HTTP/1.1\r\nHost: localhost\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(call.body)}\r\n\r\n"
            )
            writer.write(head.encode() + call.body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await reader.readexactly(int(fields["content-length"]))
            kept = fields.get("connection") != "close"
            return int(lines[0].split()[1]), body
        finally:
            if kept:
                self._idle.append(_Idle(reader, writer, time.monotonic()))
            else:
                writer.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            idle = self._idle.pop()
            if time.monotonic() - idle.since < _IDLE and not idle.reader.at_eof():
                return idle.reader, idle.writer
            idle.writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)
