#!/usr/bin/env python3
"""A graph of three steps against the sum of its steps, each called by itself through the gateway.

    python tests/bench/bench_graph.py [--rounds 5]

One project under `kserve-local up`: an iris model and a Sequence that calls it three times with the
request. Every round times both, in random order, one call after the other on a kept connection, and
counts the gateway's CPU time for them: that moves less when others use the machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.bench_gateway import cpu_seconds
from tests.bench.bench_servers import train

CALLS = 300
BODY = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]]}).encode()
MANIFEST = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: iris}
spec:
  predictor:
    model: {modelFormat: {name: sklearn}, storageUri: ./model}
---
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata: {name: three}
spec:
  nodes:
    root:
      routerType: Sequence
      steps:
        - {name: one, serviceName: iris}
        - {name: two, serviceName: iris}
        - {name: three, serviceName: iris}
"""


def tool(folder: Path, *args: str) -> None:
    """Run `kserve-local ARGS` in the project."""
    words = [sys.executable, "-m", "kserve_local.cli.main", "-q", *args]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


def p50(port: int, path: str) -> float:
    """Return the median of many calls in microseconds.

    Raises:
        RuntimeError: A call failed; then the figures mean nothing.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    took = []
    try:
        for _ in range(CALLS):
            begun = time.perf_counter()
            connection.request("POST", path, BODY, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            took.append(time.perf_counter() - begun)
            if answer.status != 200:
                raise RuntimeError(f"{path} answered {answer.status}: {body[:200]!r}")
    finally:
        connection.close()
    return statistics.median(took) * 1e6


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="a graph against its steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    order = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="ksl-bench-") as temporary:
        folder = Path(temporary)
        (folder / "model").mkdir()
        train(folder / "model")
        (folder / "graph.yaml").write_text(MANIFEST)
        tool(folder, "up", "-d", "--wait", "--port", "auto", "--api-port", "auto")
        try:
            run_file = json.loads(
                (folder / ".kserve-local" / "run" / "supervisor.json").read_text()
            )
            port = int(run_file["gateway"]["url"].rpartition(":")[2])
            gateway = int(run_file["gateway"]["pid"])
            paths = {
                "graph": "/serving/default/three",
                "step": "/serving/default/iris/v1/models/iris:predict",
            }
            for path in paths.values():
                p50(port, path)
            found: dict[str, list[float]] = {name: [] for name in paths}
            cpu = dict.fromkeys(paths, 0.0)
            for number in range(options.rounds):
                for name in order.sample(sorted(paths), k=len(paths)):
                    before = cpu_seconds(gateway)
                    found[name].append(p50(port, paths[name]))
                    cpu[name] += cpu_seconds(gateway) - before
                print(
                    f"round {number + 1}/{options.rounds}, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
        finally:
            tool(folder, "down")
    pairs = zip(found["graph"], found["step"], strict=True)
    ratio = statistics.median(graph / (3 * step) for graph, step in pairs)
    graph, step = (statistics.median(found[name]) for name in ("graph", "step"))
    print(f"\n{'graph of 3 steps, p50, 1 client':42} {'ratio':>6}   us: graph, its steps' sum")
    print(f"{'against three calls of the step':42} {ratio:5.2f}x   {graph:8.1f} {3 * step:8.1f}")
    graph, step = (1e6 * cpu[name] / (CALLS * options.rounds) for name in ("graph", "step"))
    ratio = graph / (3 * step)
    print(f"{'the same, CPU of the gateway alone':42} {ratio:5.2f}x   {graph:8.1f} {3 * step:8.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
