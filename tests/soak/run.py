"""`make soak`: kill -9 of supervisor, gateway, zygotes and replicas under load, counted.

    python -m tests.soak.run [--kills N] [--seed S]

Serves the iris sample twice from one project, calls both all the time, writes ConfigMaps through
the API all the time, and kills one process after the other. It prints the seed, writes acknowledged
and found, requests sent and failed by what had been killed, and live processes after `down`. It
fails if an acknowledged write is missing, a process is left, or a request failed although only a
supervisor or a zygote had died.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.project import Project, processes_of, sample, wait_until
from tests.soak import api

KINDS = ("supervisor", "zygote", "gateway", "replica")
# Requests may fail when their own replica or the gateway died under them, never for these.
HARMLESS = frozenset({"supervisor", "zygote"})
BODY = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}).encode()
ANSWER = {"predictions": [1, 1]}


@dataclass
class Load:
    """Calls that go on in a thread of their own until stopped.

    Failures are charged to the kind killed last: `now` is set before each kill and back to "" once
    the world is whole again.
    """

    project: Project
    port: int
    names: tuple[str, ...]
    sent: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    now: str = ""
    slowest: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, offset: int) -> None:
        """Send one request after the other, each on a connection of its own or a kept one."""
        connection: http.client.HTTPConnection | None = None
        n = offset
        while not self.stop.is_set():
            n += 1
            kind = self.now
            name = self.names[n % len(self.names)]
            begun = time.monotonic()
            try:
                if connection is None or n % 5 == 0:
                    if connection is not None:
                        connection.close()
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                headers = {"Content-Type": "application/json"}
                path = f"/serving/default/{name}/v1/models/{name}:predict"
                connection.request("POST", path, BODY, headers)
                answer = connection.getresponse()
                body = answer.read()
                problem = ""
                if answer.status != 200 or json.loads(body) != ANSWER:
                    problem = f"{answer.status} {body[:200]!r}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
                if connection is not None:
                    connection.close()
                connection = None
            self.slowest = max(self.slowest, time.monotonic() - begun)
            # A kill in the middle of the call may be what broke it.
            blamed = self.now or kind or "nothing"
            self.sent[blamed] += 1
            if problem:
                self.failed[blamed] += 1
                if len(self.examples) < 20:
                    self.examples.append(
                        f"{blamed}: {problem} after {time.monotonic() - begun:.2f} s"
                    )
            time.sleep(0.01)
        if connection is not None:
            connection.close()


@dataclass
class Writes:
    """ConfigMaps written through the API in a thread of its own."""

    project: Project
    acknowledged: list[str] = field(default_factory=list)
    tried: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Create one object after the other; what the API acknowledged is remembered."""
        connection: http.client.HTTPSConnection | None = None
        while not self.stop.is_set():
            name = f"soak-{self.tried:06d}"
            self.tried += 1
            try:
                if connection is None:
                    connection, self._token = api.connection(self.project)
                body = json.dumps(_config_map(name))
                headers = {
                    "Authorization": f"Bearer {self._token}",
                    "Content-Type": "application/json",
                }
                connection.request("POST", "/api/v1/namespaces/default/configmaps", body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 201:
                    self.acknowledged.append(name)
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.02)
            time.sleep(0.004)
        if connection is not None:
            connection.close()

    _token: str = ""

    def missing(self) -> list[str]:
        """Return the acknowledged names that the API no longer has."""
        connection, token = api.connection(self.project)
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("GET", "/api/v1/namespaces/default/configmaps", headers=headers)
        items = json.loads(connection.getresponse().read())["items"]
        connection.close()
        have = {item["metadata"]["name"] for item in items}
        return [name for name in self.acknowledged if name not in have]


def _config_map(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}}


def _pids(project: Project, kind: str) -> list[int]:
    """Return the live processes of a kind, by run files."""
    run = project.state / "run"
    if kind == "supervisor":
        return [int(project.run_file["pid"])]
    if kind == "gateway":
        return [int(json.loads((run / "gateway.json").read_text())["pid"])]
    owned = processes_of(project.folder)
    if kind == "zygote":
        return [pid for pid, command in owned.items() if "zygote" in command]
    return [pid for s in _services(project) for r in s["revisions"] for pid in r["pids"]]


def _services(project: Project) -> list[dict[str, Any]]:
    """Return what `status` shows."""
    return list(api.status(project)["services"])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


@dataclass
class Soak:
    """The run: kills, recoveries and what must hold in between."""

    project: Project
    load: Load
    random: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def kill(self, kind: str) -> None:
        """Kill one process of the kind and wait until the world is whole again."""
        pids = _pids(self.project, kind)
        if not pids:
            if kind == "zygote":
                # It is started on demand: a new Pod needs one.
                self._replace_pod()
                pids = wait_until(lambda: _pids(self.project, kind), why="no zygote came back")
            else:
                raise AssertionError(f"no {kind} runs")
        victim = self.random.choice(pids)
        replicas = set(_pids(self.project, "replica")) if kind in HARMLESS else set()
        owner = next(
            (s for s in _services(self.project) for r in s["revisions"] if victim in r["pids"]),
            None,
        )
        self.load.now = kind
        os.kill(victim, signal.SIGKILL)
        self.kills[kind] += 1
        wait_until(lambda: not _alive(victim), timeout=10, why=f"{kind} {victim} did not die")
        if kind == "supervisor":
            time.sleep(self.random.random() * 0.2)
            self.project.up()
            if set(_pids(self.project, "replica")) != replicas:
                self.problems.append("a replica was restarted when the supervisor died")
        elif kind == "gateway":
            wait_until(
                lambda: _pids(self.project, "gateway") != [victim] and self._serves(),
                timeout=30,
                why="no new gateway",
            )
        elif kind == "replica":
            wait_until(lambda: self._whole(victim), timeout=60, why="the replica did not come back")
            # Its container would wait longer and longer (CrashLoopBackOff); a new Pod does not.
            self._replace_pod(owner)
        elif any(not _alive(pid) for pid in replicas):
            self.problems.append("a replica died with its zygote")
        self.load.now = ""

    def _serves(self) -> bool:
        try:
            status, answer = self.project.call(
                f"/serving/default/{self.load.names[0]}/v1/models/{self.load.names[0]}:predict",
                json.loads(BODY),
            )
        except OSError:
            return False
        return status == 200 and answer == ANSWER

    def _whole(self, victim: int) -> bool:
        services = _services(self.project)
        replicas = [r for s in services for r in s["revisions"] if r["percent"]]
        return all(r["replicas"] >= 1 and victim not in r["pids"] for r in replicas)

    def _replace_pod(self, service: dict[str, Any] | None = None) -> None:
        service = service or self.random.choice(_services(self.project))
        revision = next(r for r in service["revisions"] if r["percent"])
        before = set(revision["pods"])
        pod = self.random.choice(sorted(before))
        api.call(self.project, "DELETE", f"/api/v1/namespaces/default/pods/{pod}")
        wait_until(lambda: self._replaced(service["name"], before), timeout=60, why="no new Pod")

    def _replaced(self, name: str, before: set[str]) -> bool:
        service = next(s for s in _services(self.project) if s["name"] == name)
        revision = next(r for r in service["revisions"] if r["percent"])
        return bool(revision["replicas"] >= 1 and set(revision["pods"]) - before) and not (
            before & set(revision["pods"]) and len(revision["pods"]) > len(before)
        )


def main() -> int:
    """Run and print; the exit status is 0 only if everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("SOAK_KILLS", "200")))
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}, {args.kills} kills of each of {', '.join(KINDS)}", flush=True)
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    project = Project(sample("sklearn-iris", folder / "project"))
    text = (project.folder / "manifest.yaml").read_text()
    second = text.replace("sklearn-iris", "second")
    (project.folder / "second.yaml").write_text(second)
    try:
        project.up()
    except BaseException:
        project.run("down", check=None)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    port = int(project.gateway.rpartition(":")[2])
    load = Load(project, port, ("sklearn-iris", "second"))
    writes = Writes(project)
    threads = [threading.Thread(target=load.run, args=(i,)) for i in range(3)]
    threads.append(threading.Thread(target=writes.run))
    soak = Soak(project, load, rng)
    begun = time.monotonic()
    order = [kind for kind in KINDS for _ in range(args.kills)]
    rng.shuffle(order)
    broken = ""
    for thread in threads:
        thread.start()
    try:
        for number, kind in enumerate(order, 1):
            since = time.monotonic()
            soak.kill(kind)
            soak.seconds[kind] += int((time.monotonic() - since) * 1000)
            if number % 50 == 0:
                spent = time.monotonic() - begun
                print(
                    f"  {number}/{len(order)} kills, {spent:.0f} s, {dict(load.failed)} failed",
                    flush=True,
                )
    except (AssertionError, KeyboardInterrupt) as error:
        broken = str(error) or type(error).__name__
    finally:
        load.stop.set()
        writes.stop.set()
        for thread in threads:
            thread.join(70)
    missing = ["the API could not be asked"]
    if not broken:
        missing = writes.missing()
    project.run("down", check=None)
    left = project.leftovers()
    shutil.rmtree(folder, ignore_errors=True)
    return _report(soak, load, writes, missing, left, broken, time.monotonic() - begun)


def _report(
    soak: Soak,
    load: Load,
    writes: Writes,
    missing: list[str],
    left: dict[int, str],
    broken: str,
    seconds: float,
) -> int:
    print(f"kills           {dict(soak.kills)} in {seconds:.0f} s")
    mean = {k: round(soak.seconds[k] / 1000 / max(1, n), 1) for k, n in soak.kills.items()}
    print(f"  until whole   {mean} s on average")
    acknowledged = len(writes.acknowledged)
    found = acknowledged - len(missing)
    print(f"writes          {acknowledged} acknowledged, {found} found")
    total, failed = sum(load.sent.values()), sum(load.failed.values())
    print(f"requests        {total} sent, {failed} failed, slowest {load.slowest:.2f} s")
    for kind in ("nothing", *KINDS):
        print(f"  {kind:<12}  {load.sent[kind]} sent, {load.failed[kind]} failed")
    print(f"after down      {len(left)} processes live")
    for line in (*load.examples, *soak.problems, *left.values(), broken):
        if line:
            print(f"  {line}")
    unharmed = all(load.failed[kind] == 0 for kind in ("nothing", *HARMLESS))
    good = unharmed and not missing and not left and not soak.problems and not broken
    print("soak passed" if good else "soak FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
