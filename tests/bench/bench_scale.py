#!/usr/bin/env python3
"""Scale to zero and many services, under `kserve-local up` as a user has it.

    python tests/bench/bench_scale.py [--rounds 5] [--quick]

Two rows against KServe's server, interleaved: a request at zero replicas until its answer, through
the gateway. The others are about many services at zero and some that run: how fast they are
applied, what supervisor and gateway need while nothing happens, whether a cold request among them
is as fast as alone, and what one more service at zero costs in memory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.bench_stack import cpu_of
from tests.bench.bench_start import SAMPLE, kserve, row, uss
from tests.integration.traffic_world import IMAGE, SLEEPER, service, sleeper

COLD_TARGET = 0.06
AMONG_TARGET = 1.2
IDLE_TARGET = 0.02
APPLY_TARGET = 50.0
SETTLE = 3.0
AFTERMATH = 65.0
"""Seconds after many services were made in which Events beyond the bound are deleted: no idling."""
IDLE_SECONDS = 10.0
CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "config-autoscaler", "namespace": "knative-serving"},
    "data": {"allow-zero-initial-scale": "true"},
}
IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4]]}


def at_zero(name: str) -> dict[str, Any]:
    """A service that starts at zero and stays there until it is called."""
    starts = {"autoscaling.knative.dev/initial-scale": "0"}
    return service(name, sleeper(minReplicas=0), starts)


class Stack:
    """A running project, its two processes and its command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(
            SAMPLE, folder, ignore=shutil.ignore_patterns(".kserve-local"), dirs_exist_ok=True
        )
        (folder / "sleeper.py").write_text(SLEEPER)
        images = {IMAGE: {"context": ".", "command": ["python", "sleeper.py"]}}
        (folder / "kserve-local.yaml").write_text(json.dumps({"images": images}))
        (folder / "config.yaml").write_text(json.dumps(CONFIG))
        self.run("up", "-d", "--wait", "--port", "auto", "--api-port", "auto")
        state = json.loads((folder / ".kserve-local" / "run" / "supervisor.json").read_text())
        self.pids = (int(state["pid"]), int(state["gateway"]["pid"]))
        self.at = urlsplit(state["gateway"]["url"])

    def run(self, *args: str) -> str:
        """Run `kserve-local ARGS`; return what it printed."""
        tool = [sys.executable, "-m", "kserve_local.cli.main", "-q", *args]
        done = subprocess.run(tool, cwd=self.folder, check=False, capture_output=True, text=True)
        if done.returncode:
            log = self.folder / ".kserve-local" / "logs" / "supervisor.log"
            raise RuntimeError(
                f"{' '.join(args)} ended with {done.returncode}:\n{done.stderr}\n"
                f"{log.read_text()[-4000:]}"
            )
        return done.stdout

    def cold(self, name: str) -> float:
        """Bring a service to zero, then return the seconds of one request to it."""
        self.run("scale", name, "zero")
        self.run("wait", "--for", "scaled-to-zero", name)
        time.sleep(0.3)
        return self.ask(name)

    def ask(self, name: str) -> float:
        """Return the seconds of one request."""
        begun = time.monotonic()
        connection = http.client.HTTPConnection(str(self.at.hostname), self.at.port, timeout=60)
        host = {"Host": f"{name}.default.example.com", "Content-Type": "application/json"}
        connection.request("POST", f"/v1/models/{name}:predict", json.dumps(IRIS), host)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{name} answered {answer.status}")
        return time.monotonic() - begun

    def apply(self, objects: Sequence[dict[str, Any]]) -> float:
        """Apply them from one file; return how many a second."""
        # Beside the project: what a file in it holds no more is deleted.
        path = self.folder.parent / f"{self.folder.name}.json"
        path.write_text("\n---\n".join(map(json.dumps, objects)))
        begun = time.monotonic()
        self.run("apply", "-f", str(path))
        return len(objects) / (time.monotonic() - begun)

    def wait_ready(self, count: int) -> None:
        """Return once so many services are Ready."""
        end = time.monotonic() + 600
        while True:
            items = json.loads(self.run("get", "isvc", "-o", "json"))["items"]
            if sum(map(is_ready, items)) >= count:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"not {count} services are Ready")
            time.sleep(0.5)

    def idle(self) -> float:
        """Return the share of one core that supervisor and gateway use while nothing happens."""
        time.sleep(AFTERMATH)
        before = sum(map(cpu_of, self.pids))
        time.sleep(IDLE_SECONDS)
        return (sum(map(cpu_of, self.pids)) - before) / IDLE_SECONDS

    def memory(self) -> tuple[int, int]:
        """Return the private bytes of supervisor and gateway."""
        return uss(self.pids[0]), uss(self.pids[1])


def is_ready(isvc: dict[str, Any]) -> bool:
    """Whether its condition Ready is true."""
    conditions = (isvc.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@dataclass
class Found:
    """What was measured; seconds, shares of a core, bytes."""

    cold: list[float]
    peer: list[float]
    alone: list[float]
    among: list[float]
    apply_rate: float
    idle_at_zero: float
    idle_running: float
    supervisor_bytes: float
    gateway_bytes: float


def measure(folder: Path, *, rounds: int, idle: int, running: int) -> Found:
    """Measure with `idle` services at zero and `running` ones that have a replica."""
    stack = Stack(folder / "many")
    name = "sklearn-iris"
    try:
        stack.cold(name)
        cold, peer = [], []
        for _ in range(rounds):
            peer.append(kserve(folder / "many" / "model")[0])
            cold.append(stack.cold(name))
        before = stack.memory()
        rate = stack.apply([at_zero(f"zero-{n:04d}") for n in range(idle)])
        stack.wait_ready(1 + idle)
        time.sleep(SETTLE)
        supervisor, gateway = (b - a for a, b in zip(before, stack.memory(), strict=True))
        at_rest = stack.idle()
        stack.apply([service(f"run-{n:04d}", sleeper(minReplicas=1)) for n in range(running)])
        stack.wait_ready(1 + idle + running)
        with_replicas = stack.idle()
        alone, among = [], []
        # A project with this one service, beside it: how busy the machine is counts for both.
        other = Stack(folder / "alone")
        try:
            other.cold(name)
            for _ in range(2 * rounds):
                alone.append(other.cold(name))
                among.append(stack.cold(name))
        finally:
            other.run("down", "--volumes")
        return Found(
            cold,
            peer,
            alone,
            among,
            rate,
            at_rest,
            with_replicas,
            supervisor / idle,
            gateway / idle,
        )
    finally:
        stack.run("down", "--volumes")


def bound(
    name: str, value: float, target: float, text: Callable[[float], str], *, most: bool
) -> bool:
    """Print one row that is no ratio; False if the target is missed by more than twice."""
    factor = value / target if most else target / value
    verdict = "ok" if factor <= 1 else "missed" if factor <= 2 else "MISSED"
    sign = "<=" if most else ">="
    print(f"{name:<44} {text(value):>9}  target {sign} {text(target)}  {verdict}")
    return factor <= 2


def main() -> int:
    """Measure and print; exit 1 if a target is missed by more than 2x."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="200 services and 20 that run")
    args = parser.parse_args()
    idle, running = (200, 20) if args.quick else (1000, 100)
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    try:
        found = measure(folder, rounds=args.rounds, idle=idle, running=running)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def seconds(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.3f} s"

    def percent(share: float) -> str:
        return f"{share * 100:.2f} %"

    def ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
        return [a / b for a, b in zip(mine, theirs, strict=True)]

    count = f"{idle} at zero"
    good = [
        row("request at zero to its answer, by the gateway", ratios(found.cold, found.peer),
            seconds(found.cold),
            seconds(found.peer), COLD_TARGET),
        row(f"the same among {count}, {running} running", ratios(found.among, found.alone),
            seconds(found.among), seconds(found.alone), AMONG_TARGET),
        bound(f"apply of {idle} services", found.apply_rate, APPLY_TARGET,
              lambda rate: f"{rate:.0f}/s", most=False),
        bound(f"idle CPU, {count}", found.idle_at_zero, IDLE_TARGET, percent, most=True),
        bound(f"idle CPU, {count}, {running} running", found.idle_running, IDLE_TARGET, percent,
              most=True),
    ]  # fmt: skip
    print(
        f"memory of one more service at zero: supervisor {found.supervisor_bytes / 1024:.0f} KiB, "
        f"gateway {found.gateway_bytes / 1024:.0f} KiB; {os.cpu_count()} cores"
    )
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
