#!/usr/bin/env python3
"""A day at 100 requests a second on the simulator's clock, against its budget of 90 s.

    python tests/bench/bench_simulator.py [--rounds 5]

Poisson arrivals, exponential work of 50 ms, a target of 5 in flight; 8.6 million requests. One
round is enough: nothing is compared with a peer.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

from kserve_local.simulator.durations import distribution
from kserve_local.simulator.load import Load
from kserve_local.simulator.rate import rate
from kserve_local.simulator.service import Service, terms_of
from kserve_local.simulator.simulation import simulate

DAY = 86400.0
BUDGET = 90.0


def main() -> int:
    """Simulate a day; exit 1 if it takes more than twice the budget."""
    parser = argparse.ArgumentParser(description="a simulated day")
    parser.add_argument("--rounds", type=int, default=1, help="as the other benches; not used")
    parser.parse_args()
    load = Load(DAY, rate("100", "--rate"), service=distribution("exp(50ms)", "--service-time"))
    terms = terms_of(Service(fields={"scaleTarget": 5}))
    wall, cpu = time.perf_counter(), time.process_time()
    found = simulate(terms, load, distribution("3s", "--cold-start"), held=100)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    each = cpu / found.requests * 1e6
    print(f"{'a day at 100 requests a second':42} {'of 90 s':>7}   s: wall, CPU; us each; MiB")
    print(
        f"{f'{found.requests} requests, load {os.getloadavg()[0]:.1f}':42} {wall / BUDGET:6.2f}x   "
        f"{wall:8.1f} {cpu:8.1f} {each:8.2f} {memory:8.0f}"
    )
    return int(wall > 2 * BUDGET)


if __name__ == "__main__":
    raise SystemExit(main())
