"""`make soak`: the acceptance list of traffic and scale, time after time.

    python -m tests.soak.behaviours [--times 10]

Runs the 25 behaviours and the worked examples so often, prints what each run took, and exits 1 at
the first that fails. On a busy machine, too: they wait for events. About a quarter of an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

WHERE = {
    "examples A to M; 2, 9 to 12, 14 to 16 on a virtual clock": ["tests/unit/autoscaler"],
    "21 on a virtual clock": ["tests/unit/controllers/test_gradual_rollout.py"],
    "1 to 9, 12, 13, 16, 22": [
        "tests/integration/test_scale_to_zero.py",
        "tests/integration/test_gateway_direct.py",
    ],
    "17 to 20": ["tests/integration/test_traffic_revisions.py"],
    "23, 24": ["tests/integration/test_agent.py"],
    "25": [
        "tests/integration/test_components.py::test_who_is_asked",
        "tests/integration/test_standard_project.py",
    ],
}


def main() -> int:
    """Run them; return the exit status."""
    parser = argparse.ArgumentParser(description="behaviours of traffic and scale, again and again")
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    tests = [path for paths in WHERE.values() for path in paths]
    for run in range(1, options.times + 1):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            capture_output=True,
            text=True,
            check=False,
        )
        last = done.stdout.strip().splitlines()[-1:] or [""]
        print(f"{run}: {last[0]} ({time.monotonic() - begun:.0f} s)", flush=True)
        if done.returncode:
            print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
