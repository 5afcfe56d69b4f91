"""`make soak`: the three-minute trace of tests/integration/test_simulator.py at full speed.

    python -m tests.soak.simulator [--speed 1]

Plays it to a running project and to the simulator and exits 1 if their steps are more than a tick
apart. About five minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.integration.project import project
from tests.integration.simulated_world import NAME, compare, write_project


def main() -> int:
    """Play and compare; return the exit status."""
    parser = argparse.ArgumentParser(description="the simulator against the real thing")
    parser.add_argument("--speed", type=float, default=1.0, help="of the autoscaler's clock")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ksl-soak-") as folder:
        place = Path(folder) / "project"
        write_project(place, options.speed)
        with project(place) as world:
            world.up()
            world.run("wait", "--for", "scaled-to-zero", NAME, timeout=300)
            try:
                compare(world, options.speed)
            except AssertionError as error:
                print(error, file=sys.stderr)
                return 1
    print("the same steps, one tick apart at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
