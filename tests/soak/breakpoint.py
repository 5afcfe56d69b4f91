"""A request at a breakpoint for five minutes, with limits of seconds: it gets its answer.

    python -m tests.soak.breakpoint [--minutes 5]

Debugs a custom predictor with a real client of the Debug Adapter Protocol, stops it in `predict`,
waits, and lets it go on. Fails if the request got anything but its answer, if the replica is
another one or was restarted, if a probe failed, or if the number of replicas ever changed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.debug_world import (
    adder,
    attached,
    failed_probes,
    pods,
    predicting,
    restarts,
    write,
)
from tests.integration.project import project

NAME = "adder"
LOOK = 5.0


def main() -> int:
    """Run it; 1 if something did not stand still."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    seconds = parser.parse_args().minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        place = write(Path(folder) / "project", adder(NAME))
        with project(place) as world:
            world.up()
            with attached(world, NAME) as ide:
                (before,) = pods(world, NAME)
                answers = predicting(world, NAME, timeout=seconds + 60)
                thread = ide.stopped()["threadId"]
                end = time.monotonic() + seconds
                while (left := end - time.monotonic()) > 0:
                    time.sleep(min(LOOK, left))
                    uids = [p["metadata"]["uid"] for p in pods(world, NAME)]
                    if uids != [before["metadata"]["uid"]] or not answers.empty():
                        print(f"after {seconds - left:.0f} s: Pods {uids}")
                        return 1
                ide.resume(thread)
                answer = answers.get(timeout=30)
                (after,) = pods(world, NAME)
                probes = failed_probes(world, NAME)
                print(
                    f"stopped for {seconds:g} s; answer {answer}, restarts {restarts(after)}, "
                    f"failed probes {len(probes)}"
                )
                fine = answer == (200, {"predictions": [6]}) and not restarts(after) and not probes
                return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
