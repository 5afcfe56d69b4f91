"""`make soak`: a whole canary under a constant stream of requests; none is lost, each is counted.

    python -m tests.soak.canary [--rate 100] [--seconds 20] [--rounds 1]

Serves the iris sample and calls it at a constant rate that does not wait for answers, while the
command line takes a second model through 0, 10, 50 percent, promotes it, and rolls it back after
the promotion, when the first revision has no replica any more. It prints a line a step and fails if
a request failed, or if the counts of a step are such as chance gives in one of a million runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.project import Project, sample, wait_until

NAME = "sklearn-iris"
BODY = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]]}).encode()
OLD, NEW = "1", "2"
"""What the two models answer: the sample's SVC, and one that always says 2."""
CHANCE = 1e-6
"""A step whose counts are less likely than that has failed."""
SURE = 50
"""So many equal answers in a row mean all traffic: after a half that is 1e-15 by chance."""
TRAIN = """
import joblib, pathlib, sys
from sklearn import datasets, dummy
iris = datasets.load_iris()
model = dummy.DummyClassifier(strategy="constant", constant=2).fit(iris.data, iris.target)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
joblib.dump(model, folder / "model.joblib")
"""


@dataclass
class Stream:
    """Requests at a constant rate, from a thread of its own; answers in the order they came.

    Args:
        port: The gateway's.
        rate: Requests a second. One is due at its time whatever became of those before.
    """

    port: int
    rate: float
    sent: int = 0
    answers: dict[int, str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0
    stopping: threading.Event = field(default_factory=threading.Event)
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many requests have ended, well or not."""
        return len(self.answers) + len(self.failures)

    def has_ended(self, numbers: range) -> bool:
        """Whether the requests of these numbers have ended."""
        return self.sent >= numbers.stop and all(
            n in self.answers or n in self.failures for n in numbers
        )

    def last(self, count: int, since: int) -> set[str]:
        """Return the answers to the last requests that were sent, empty if there are not so many.

        Args:
            since: Only what was sent from this number on.
        """
        ended = [n for n in range(since, self.sent) if n in self.answers][-count:]
        return {self.answers[n] for n in ended} if len(ended) == count else set()

    def run(self) -> None:
        """Send until `stopping`, then wait for the answers that are due."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        begun = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not self.stopping.is_set():
                due = begun + self.sent / self.rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.create_task(self._one(self.sent), name=f"request-{self.sent}")
                self.sent += 1
        for _, writer in self._idle:
            writer.close()

    async def _one(self, number: int) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(60):
                status, body = await self._call(keep=number % 4 != 0)
            if status == 200:
                self.answers[number] = str(json.loads(body)["predictions"][0])
            else:
                self.failures[number] = f"request {number}: {status} {body[:200]!r}"
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            self.failures[number] = f"request {number}: {type(error).__name__}: {error}"
        self.slowest = max(self.slowest, time.monotonic() - begun)

    async def _call(self, *, keep: bool) -> tuple[int, bytes]:
        """Return status and body; three of four calls go over connections that are kept."""
        if keep and self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        kept = False
        try:
            path = f"/serving/default/{NAME}/v1/models/{NAME}:predict"
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await reader.readexactly(int(fields["content-length"]))
            kept = keep and fields.get("connection") != "close"
            return int(lines[0].split()[1]), body
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.close()


def chance(hits: int, count: int, share: float) -> float:
    """Return how likely so many hits, or more extreme ones on the same side, are by chance."""

    def at(k: int) -> float:
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        return math.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share))

    tail = range(hits + 1) if hits < count * share else range(hits, count + 1)
    return min(1.0, 2 * math.fsum(map(at, tail)))


@dataclass
class Canary:
    """The run: steps, what was counted at each, and what was wrong.

    Args:
        count: Requests that are counted at each step.
    """

    project: Project
    stream: Stream
    count: int
    steps: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def go(self) -> None:
        """Take the second model through all steps."""
        self._all(OLD, "one revision")
        manifest = self.project.folder / "manifest.yaml"
        manifest.write_text(manifest.read_text().replace("./model", "./model-v2"))
        self._rollout("set-canary", NAME, "0")
        self.project.run("wait", NAME, "--for", "revision=2")
        self._all(OLD, "canary 0 %")
        for percent in (10, 50):
            self._rollout("set-canary", NAME, str(percent))
            self._share(percent)
        self._rollout("promote", NAME)
        self._all(NEW, "promoted")
        wait_until(lambda: self._replicas("00001") == 0, why="the first revision keeps replicas")
        self._rollout("undo", NAME)
        self._all(OLD, "rolled back")

    def _rollout(self, *args: str) -> None:
        self.project.run("rollout", *args)

    def _replicas(self, number: str) -> int:
        (component,) = self.project.json("rollout", "history", NAME)["components"]
        found = {r["name"][-5:]: r["replicas"] for r in component["revisions"]}
        return int(found.get(number, 0))

    def _counted(self) -> Counter[str]:
        """Return the answers to the next `count` requests."""
        first = self.stream.sent
        numbers = range(first, first + self.count)
        patience = self.count / self.stream.rate + 60
        wait_until(lambda: self.stream.has_ended(numbers), timeout=patience, step=0.1)
        return Counter(self.stream.answers.get(n, "none") for n in numbers)

    def _share(self, percent: int) -> None:
        seen = self._counted()
        likely = chance(seen[NEW], self.count, percent / 100)
        text = f"canary {percent} %: {seen[NEW]} of {self.count} (chance {likely:.2g})"
        self._note(text, good=likely >= CHANCE and seen[NEW] + seen[OLD] == self.count)

    def _all(self, answer: str, what: str) -> None:
        """Count a step at which one revision has everything, from when it does."""
        begun = self.stream.sent
        wait_until(
            lambda: self.stream.last(SURE, begun) == {answer},
            step=0.1,
            why=f"{what}: not all answers are {answer}",
        )
        seen = self._counted()
        self._note(f"{what}: {seen[answer]} of {self.count}", good=set(seen) == {answer})

    def _note(self, text: str, *, good: bool) -> None:
        self.steps.append(text)
        if not good:
            self.problems.append(text)


@contextmanager
def running(folder: Path, rate: float, count: int) -> Iterator[Canary]:
    """Give a canary to be taken through its steps, its project up and its stream on."""
    project = Project(sample(NAME, folder / "project"), {"DOCKER_HOST": "unix:///run/no.sock"})
    (project.folder / "kserve-local.yaml").write_text(
        # An activator on a cluster holds as many as memory allows (traffic.md 2.2).
        "gateway: {maxHeldRequests: 100000}\n"
    )
    models = project.folder / "model-v2"
    subprocess.run([sys.executable, "-c", TRAIN, str(models)], check=True)
    try:
        project.up()
        stream = Stream(int(project.gateway.rpartition(":")[2]), rate)
        thread = threading.Thread(target=stream.run, name="stream")
        thread.start()
        canary = Canary(project, stream, count)
        try:
            yield canary
        finally:
            stream.stopping.set()
            thread.join(90)
        if stream.done != stream.sent:
            canary.problems.append(f"{stream.sent - stream.done} requests have no answer")
        canary.problems += stream.failures.values()
    finally:
        project.run("down", check=None)
    if left := project.leftovers():
        canary.problems.append(f"after down there are processes: {left}")


def main() -> int:
    """Run and print; the exit status is 0 only if everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each step")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    good = True
    for number in range(args.rounds):
        folder = Path(tempfile.mkdtemp(prefix="canary-"))
        begun = time.monotonic()
        try:
            with running(folder, args.rate, int(args.rate * args.seconds)) as canary:
                try:
                    canary.go()
                except AssertionError as error:
                    canary.problems.append(str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        stream = canary.stream
        print(f"round {number + 1}: {time.monotonic() - begun:.0f} s at {args.rate:g}/s")
        for step in canary.steps:
            print(f"  {step}")
        failed = stream.sent - len(stream.answers)
        print(f"  requests {stream.sent} sent, {failed} lost, slowest {stream.slowest:.2f} s")
        for problem in canary.problems[:20]:
            print(f"  PROBLEM {problem}")
        good = good and not canary.problems
    print("canary passed" if good else "canary FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
