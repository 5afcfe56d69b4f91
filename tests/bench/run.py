"""`make bench`: every row of the speed targets that exists by now, each against its peer.

    python -m tests.bench.run [--quick]

Runs the benches one after the other, so that none disturbs another. Rows are ratios within one run
on this machine; absolute figures of two days say nothing. Exit 1 if a target is missed by more
than 2x, 7 if a peer (nginx, wrk, BentoML, a Docker engine) is not there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run all benches; return the worst exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer services")
    args = parser.parse_args()
    missing = [tool for tool in ("nginx", "wrk") if shutil.which(tool) is None]
    if missing:
        packages = {"nginx": "nginx-light", "wrk": "wrk"}
        names = " ".join(packages[m] for m in missing)
        print(f"{' and '.join(missing)} missing: apt-get install {names}", file=sys.stderr)
        return 7
    rounds = "3" if args.quick else "5"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    worst = 0
    for title, script in (
        ("starting", "bench_start.py"),
        ("model server", "bench_servers.py"),
        ("gateway", "bench_gateway.py"),
        ("gRPC", "bench_grpc.py"),
        ("graphs", "bench_graph.py"),
        ("the whole stack", "bench_stack.py"),
        ("scale to zero, many services", "bench_scale.py"),
        ("saving code", "bench_reload.py"),
        ("simulator", "bench_simulator.py"),
        ("Docker", "bench_docker.py"),
    ):
        print(f"\n== {title}", flush=True)
        command = [sys.executable, str(HERE / script), "--rounds", rounds]
        if args.quick and script in ("bench_scale.py", "bench_reload.py"):
            command.append("--quick")
        done = subprocess.run(command, env=environment, check=False)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
