#!/usr/bin/env python3
"""The whole stack, gateway and replica under `kserve-local up`, against KServe's server directly.

    python tests/bench/bench_stack.py [--rounds 5] [--seconds 1.0]

The same model, request and client as `bench_servers.py`; gateway and replica share the one core
that the peer has to itself. Also the idle cost of supervisor and gateway over ten seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.bench_servers import HERE, Figure, Server, load, running, train

TARGET = 12.0
MANIFEST = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: iris}
spec:
  predictor:
    model: {modelFormat: {name: sklearn}, storageUri: ./model}
"""


class Stack(Server):
    """A project under `kserve-local up`; calls go to its gateway."""

    def __init__(self, folder: Path, core: int | None) -> None:
        self.name = "ours, through the gateway"
        self.folder = folder
        self.log = folder / ".kserve-local" / "logs" / "supervisor.log"
        (folder / "iris.yaml").write_text(MANIFEST)
        self._run("up", "-d", "--wait", "--port", "auto", "--api-port", "auto")
        run_file = json.loads((folder / ".kserve-local" / "run" / "supervisor.json").read_text())
        self.port = int(run_file["gateway"]["url"].rpartition(":")[2])
        self.supervisor = int(run_file["pid"])
        self.gateway = int(run_file["gateway"]["pid"])
        services = json.loads(self._run("status", "--json"))["data"]["services"]
        (self.replica,) = services[0]["revisions"][0]["pids"]
        if core is not None:
            for pid in (self.gateway, self.replica):
                os.sched_setaffinity(pid, {core})

    def _run(self, *args: str) -> str:
        tool = [sys.executable, "-m", "kserve_local.cli.main", "-q", *args]
        done = subprocess.run(tool, cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout

    def check(self, limit: float = 60.0) -> None:
        """Nothing to wait for: `up --wait` returned."""

    def cpu_seconds(self) -> float:
        """Return user+system time of gateway and replica so far."""
        return cpu_of(self.gateway) + cpu_of(self.replica)

    def stop(self) -> None:
        """Take the project down."""
        self._run("down")


def cpu_of(pid: int) -> float:
    """Return user+system seconds of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rounds: int, seconds: float) -> tuple[dict[tuple[str, int], list[Figure]], float]:
    """Return figures per server and number of clients, and the idle share of one core."""
    cores = sorted(os.sched_getaffinity(0))
    client, core = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
    figures: dict[tuple[str, int], list[Figure]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-stack-") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        train(folder / "model")
        peer = [sys.executable, str(HERE / "kserve_iris.py"), "--model_name=iris"]
        peer += ["--enable_grpc=false", f"--model_dir={folder / 'model'}"]
        stack = Stack(folder, core)
        servers = [stack, Server("kserve", peer, core, folder / "kserve.log")]
        with running(servers):
            for clients in (1, 32):
                for server in servers:
                    load(server, clients, 0.3, client, folder)
            order = random.Random(7)
            for _ in range(rounds):
                for clients in (1, 32):
                    for server in order.sample(servers, len(servers)):
                        figure = load(server, clients, seconds, client, folder)
                        figures.setdefault((server.name, clients), []).append(figure)
            time.sleep(1.5)
            before = cpu_of(stack.supervisor) + cpu_of(stack.gateway)
            time.sleep(10)
            idle = (cpu_of(stack.supervisor) + cpu_of(stack.gateway) - before) / 10
    return figures, idle


def main() -> int:
    """Measure and print; exit 1 if the target is missed by more than 2x."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    figures, idle = measure(args.rounds, args.seconds)
    for (server, clients), runs in figures.items():
        rate = statistics.median(run.rate for run in runs)
        cpu = statistics.median(run.cpu for run in runs) * 1e6
        errors = sum(run.errors for run in runs)
        print(
            f"{server:<26} {clients:>3} clients {rate:>10.0f}/s {cpu:>8.0f} us CPU {errors} errors"
        )
    ours, peer = figures["ours, through the gateway", 32], figures["kserve", 32]
    ratios = [a.rate / b.rate for a, b in zip(ours, peer, strict=True)]
    middle = statistics.median(ratios)
    verdict = "ok" if middle >= TARGET else "missed" if middle >= TARGET / 2 else "MISSED"
    print(
        f"sklearn iris V2 through the gateway, 32 clients: requests/s {middle:.1f}x KServe "
        f"({min(ratios):.1f}-{max(ratios):.1f}), target >= {TARGET}x: {verdict}"
    )
    print(f"supervisor and gateway idle, one service: {idle * 100:.2f} % of a core")
    errors = sum(run.errors for runs in figures.values() for run in runs)
    return 1 if errors or middle < TARGET / 2 else 0


if __name__ == "__main__":
    sys.exit(main())
