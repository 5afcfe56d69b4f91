"""`make soak`: saves in a row under load, every kind of them, and what they cost.

    python -m tests.soak.saves [--count 200] [--seed S] [--keep]

A project with a custom predictor, a transformer and a model file is called all the time, the edited
service 50 times a second. One file after the other is saved: methods, `load()`, helpers, model
files, YAML, and broken ones, each mended by the next save. Every save is waited for until answers
show it; a broken one until `status` names file, line and error, while the old answers go on. It
prints seconds by kind, memory after the first tenth and at the end, and what is left after `down`.
It fails if a request failed, a method edit cost its process, a save did not become live, or memory
grew by more than 15 % and 10 MiB.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.integration.project import NO_DOCKER, Project, wait_until
from tests.soak import api, edits
from tests.soak.edits import Broken, Edit
from tests.soak.holdings import Holdings, grown, measure, processes
from tests.soak.saved_project import CALLS, COUNTS, EXTRA, SHIFT, World, write
from tests.soak.steady import Steady

RATE, ELSEWHERE = 50.0, 10.0
PATIENCE = 60.0
GOES_ON = 20
"""So many old answers are to come while a save is broken."""
MOST_PROBLEMS = 5
TWICE = 0.15
"""Of the method edits, how many are saved again a moment later."""
METHOD_MEDIAN, METHOD_LATE = 0.1, 0.3


@dataclass
class Saves:
    """The run: the world that is saved, how long saves took, and what was wrong."""

    project: Project
    stream: Steady
    chance: random.Random
    padding: bytes
    world: World = field(default_factory=World)
    number: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    """The longest that an answer of any service took around a save, by kind."""
    started: set[psutil.Process] = field(default_factory=set)
    said: dict[str, str] = field(default_factory=dict)
    """One example by kind of what `status` said of a broken save."""

    def make(self, step: Edit | Broken) -> int:
        """Make one step and wait for it; return how many saves it was."""
        edit = step.mend if isinstance(step, Broken) else step
        for name in self.stream.rates:
            self.stream.rates[name] = RATE if name == edit.service else ELSEWHERE
        if isinstance(step, Broken):
            self._hold(step, lambda: self._break(step))
        self._hold(step, lambda: self._edit(edit, mends=isinstance(step, Broken)))
        return 1 + isinstance(step, Broken)

    def _hold(self, step: Edit | Broken, make: Callable[[], None]) -> None:
        """Make one save; what it misses is a problem, and the next one is made all the same."""
        begun = time.monotonic()
        try:
            make()
        except AssertionError as error:
            self.problems.append(f"{step.kind} (save {self.number}): {error}")
        answers = [a for name in CALLS for a in self.stream.since(name, begun)]
        slowest = max((a.ended - a.due for a in answers), default=0.0)
        self.slowest[step.kind] = max(self.slowest.get(step.kind, 0.0), slowest)

    def _edit(self, edit: Edit, *, mends: bool) -> None:
        """Make a good save; wait until it is live and everything else is at rest."""
        before = self._served_by(edit.service)
        if edit.in_place and self.chance.random() < TWICE:
            self._write(edit)
            time.sleep(self.chance.uniform(0.002, 0.06))
        begun = self._write(edit)
        kind = f"mended: {edit.kind}" if mends else edit.kind
        world = self.world
        if edit.service == EXTRA:
            self._until_extra(world.extra)
            self._note(kind, time.monotonic() - begun)
        elif edit is edits.REPLICAS:
            self._until_replicas()
            self._note(kind, time.monotonic() - begun)
        else:
            first = self.stream.first(
                edit.service,
                lambda text: world.means(edit.service, text),
                since=begun,
                patience=PATIENCE,
            )
            self._note(kind, first.ended - begun)
        self._until_at_rest(edit.service)
        self.started |= processes(self.project)
        if edit.in_place and not mends:
            after = self._served_by(edit.service)
            if after != before:
                self.problems.append(
                    f"{edit.kind} (save {self.number}): a new process: {self._last()}"
                )

    def _write(self, edit: Edit) -> float:
        """Save the next world; return when, counted from before the last byte is written."""
        self.number += 1
        self.world = edit.apply(self.world, self.number)
        data = edits.content(self.world, edit.file, self.padding)
        begun = time.monotonic()
        edits.save(self.project.folder / edit.file, data, self.chance, slow=edit.slow)
        return time.monotonic() if edit.slow else begun

    def _break(self, broken: Broken) -> None:
        """Save a broken file; the old answers go on until `status` tells of it, and after."""
        self.number += 1
        edit = broken.mend
        good = edits.content(self.world, edit.file, b"").decode(errors="replace")  # type: ignore[union-attr] # the file is there
        data = broken.spoil(good, self.number).encode()
        world = self.world
        begun = time.monotonic()
        edits.save(self.project.folder / edit.file, data, self.chance, slow=False)
        told = self._until(
            lambda status: self._told(status, broken), "status does not tell of it", step=0.05
        )
        self._note(f"told: {broken.kind}", time.monotonic() - begun)
        self.said[broken.kind] = told
        by_command = self._told(self.project.json("status"), broken)
        if not by_command:
            raise AssertionError("status --json does not tell of it")
        if edit.service in CALLS:
            since = time.monotonic()
            self.stream.only(
                edit.service,
                lambda text: world.means(edit.service, text),
                count=GOES_ON,
                patience=PATIENCE,
            )
            others = [
                a for a in self.stream.since(edit.service, begun)
                if a.ended > since and not world.means(edit.service, a.text)
            ]  # fmt: skip
            assert not others, f"the old answers do not go on: {others[:2]}"

    def _told(self, status: dict[str, Any], broken: Broken) -> str:
        """Return what `status` says of a broken save if it names file, line and error."""
        place = re.escape(Path(broken.mend.file).name) + (
            r":[1-9]\d*: " if broken.with_line else ""
        )
        for text in self._all_told(status):
            if re.search(place, text) and broken.told in text:
                return text
        return ""

    def _all_told(self, status: dict[str, Any]) -> list[str]:
        """Return each thing that `status` says is broken."""
        problems = [f"{p['file']}:{p['line']}: {p['message']}" for p in status["problems"]]
        return [*problems, *(w for s in status["services"] for w in s["warnings"])]

    def _until_extra(self, there: bool) -> None:
        path = CALLS[COUNTS].path.replace(COUNTS, EXTRA)
        body = {"instances": [[1, 2, 3, 4]]}
        wanted = 200 if there else 404
        wait_until(
            lambda: self.project.call(path, body)[0] == wanted,
            timeout=PATIENCE,
            why=f"{EXTRA} does not answer {wanted}",
        )

    def _until_replicas(self) -> None:
        def running() -> bool:
            return len(self._served_by(COUNTS)) == self.world.replicas

        wait_until(running, timeout=PATIENCE, step=0.1, why="not so many replicas")

    def _until_at_rest(self, service: str) -> None:
        """Wait until only the newest answers come, no old Pod is left and nothing is told."""
        world = self.world
        if service in CALLS:
            self.stream.only(
                service, lambda text: world.means(service, text), count=10, patience=PATIENCE
            )

        def is_at_rest(status: dict[str, Any]) -> bool:
            pods = sum(len(r["pods"]) for s in status["services"] for r in s["revisions"])
            wanted = 3 + world.replicas + world.extra
            return pods == wanted and not self._all_told(status)

        self._until(is_at_rest, "not at rest", step=0.1)

    def _until(self, what: Callable[[dict[str, Any]], Any], why: str, *, step: float) -> Any:
        """Return what is true of the status in the end.

        Raises:
            AssertionError: It is not in time; with what the status says instead.
        """
        try:
            return wait_until(lambda: what(api.status(self.project)), timeout=PATIENCE, step=step)
        except AssertionError as error:
            status = api.status(self.project)
            pods = [r["pods"] for s in status["services"] for r in s["revisions"]]
            raise AssertionError(f"{why}: {self._all_told(status)}, Pods {pods}") from error

    def _served_by(self, service: str) -> frozenset[int]:
        """Return the processes of the user's code in a service."""
        component = "transformer" if service == SHIFT else "predictor"
        return frozenset(
            pid
            for s in api.status(self.project)["services"]
            if s["name"] == service
            for r in s["revisions"]
            if r["component"] == component
            for pid in r["pids"]
        )

    def _note(self, kind: str, seconds: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)

    def _last(self) -> str:
        """Return the last line of the supervisor's log about a save."""
        log = (self.project.state / "logs" / "supervisor.log").read_text()
        lines = [line for line in log.splitlines() if "devloop" in line]
        return lines[-1] if lines else ""

    def holdings(self) -> Holdings:
        """Return what the project's processes hold now."""
        served = {name: min(self._served_by(name)) for name in CALLS}
        return measure(self.project, served, extra=self.world.extra + self.world.replicas)


def run(project: Project, *, count: int, seed: int) -> tuple[Saves, list[str]]:
    """Make the saves; return the run and lines of the report."""
    chance = random.Random(seed)
    padding = chance.randbytes(300_000)
    write(project.folder, World(), padding)
    project.up()
    port = int(project.gateway.rpartition(":")[2])
    stream = Steady(port, CALLS, dict.fromkeys(CALLS, ELSEWHERE))
    saves = Saves(project, stream, chance, padding)
    lines = []
    begun = time.monotonic()
    with stream.running():
        saves._until_at_rest(COUNTS)
        early: Holdings | None = None
        made = 0
        for step in edits.deck(count, chance):
            made += saves.make(step)
            if early is None and made >= min(20, count // 2):
                early = saves.holdings()
                lines.append(f"memory after {made}: {early.told()}")
            if made % 10 < 2:
                print(f"  {made}/{count}, {time.monotonic() - begun:.0f} s, "
                      f"{stream.failed} of {stream.sent} failed, {len(saves.problems)} problems",
                      flush=True)  # fmt: skip
            if len(saves.problems) >= MOST_PROBLEMS:
                break
        assert early is not None
        if not saves.problems:
            end = saves.holdings()
            lines.append(f"memory after {made}: {end.told()}")
            saves.problems += grown(early, end, project)
    lines.insert(0, f"{made} saves in {time.monotonic() - begun:.0f} s")
    return saves, lines


def report(saves: Saves, lines: list[str], left: list[str]) -> list[str]:
    """Print the run; return what was wrong."""
    stream, problems = saves.stream, saves.problems
    for line in lines:
        print(line)
    print(f"requests: {stream.sent} sent, {stream.failed} failed, slowest {stream.slowest:.3f} s")
    print(f"{'kind of save':<36}{'n':>4} {'median':>8} {'p95':>8} {'max':>8}  seconds")
    for kind, values in sorted(saves.seconds.items()):
        figures = f"{statistics.median(values):8.3f} {_late(values):8.3f} {max(values):8.3f}"
        print(f"{kind:<36}{len(values):>4} {figures}")
    for kind, seconds in sorted(saves.slowest.items(), key=lambda item: -item[1]):
        print(f"slowest answer around {kind}: {seconds:.3f} s")
    for kind, text in sorted(saves.said.items()):
        print(f"status of {kind}: {text}")
    print(f"after down: {len(left)} of {len(saves.started)} processes are left")
    problems += stream.examples
    if left:
        problems.append(f"left after down: {left}")
    methods = [
        s for edit in edits.SHARES if edit.in_place for s in saves.seconds.get(edit.kind, ())
    ]
    if methods:
        middle, late = statistics.median(methods), _late(methods)
        print(f"functions in place: median {middle * 1000:.0f} ms, p95 {late * 1000:.0f} ms")
        if middle > METHOD_MEDIAN or late > METHOD_LATE:
            problems.append("functions in place took more than 100 ms, or 300 ms at p95")
    for problem in problems[:20]:
        print(f"PROBLEM {problem}")
    return problems


def _late(values: list[float]) -> float:
    """Return the 95th percentile."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def main() -> int:
    """Run and print; the exit status is 0 only if everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="leave the project's folder")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}, {args.count} saves", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="saves-"))
    project = Project(folder, {"DOCKER_HOST": NO_DOCKER})
    try:
        try:
            saves, lines = run(project, count=args.count, seed=seed)
        finally:
            project.run("down", check=None)
        _, alive = psutil.wait_procs(saves.started, timeout=10)
        left = [str(process) for process in alive]
        problems = report(saves, lines, [*left, *project.leftovers().values()])
    finally:
        if args.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("saves FAILED" if problems else "saves passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
