"""`kill -9` at any moment loses no acknowledged write.

`KSERVE_LOCAL_KILLS` and `KSERVE_LOCAL_SEED` raise the number of kills and repeat a run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_local.store.journal import load

KILLS = int(os.environ.get("KSERVE_LOCAL_KILLS", "60"))
SEED = int(os.environ.get("KSERVE_LOCAL_SEED", "0")) or random.randrange(1, 2**31)
WRITER = Path(__file__).with_name("store_writer.py")
NAMES = 12


def state_after(step: int) -> str | None:
    """Return what a name holds after a step; the writer's rule."""
    return None if step % 5 == 0 else str(step)


@pytest.fixture
def writers() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(WRITER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=20)


@pytest.mark.timeout(60 + KILLS)
def test_no_acknowledged_write_is_lost(tmp_path: Path, writers: subprocess.Popen[str]) -> None:
    path = tmp_path / "state.db"
    dice = random.Random(SEED)
    acknowledged = [0] * NAMES  # the last step of each name that was acknowledged or found
    highest = writes = 0
    assert writers.stdin is not None
    assert writers.stdout is not None
    for kill in range(KILLS):
        writers.stdin.write(f"{path} {' '.join(map(str, acknowledged))}\n")
        pid = int(writers.stdout.readline().split()[1])
        # Some die while they open the file, most under writes, some after a checkpoint.
        limit = dice.choice((0, 5, 60, 60, 300, 900))
        if limit == 0:
            time.sleep(dice.random() * 0.02)
            os.kill(pid, signal.SIGKILL)
        seen = 0
        while not (line := writers.stdout.readline()).startswith("ended"):
            assert not line.startswith("failed"), f"seed {SEED}, kill {kill}: {line}"
            name, step, version = line.split()
            index = int(name[1:])
            assert int(step) == acknowledged[index] + 1
            acknowledged[index] = int(step)
            highest = max(highest, int(version))
            seen += 1
            if seen == limit:
                os.kill(pid, signal.SIGKILL)
        assert line.split()[1] == str(-signal.SIGKILL)
        writes += seen
        found = load(path)
        values = {key.name: obj["data"]["step"] for key, obj in found.objects}
        assert found.sequence >= highest, f"seed {SEED}, kill {kill}"
        for index in range(NAMES):
            value, step = values.get(f"n{index}"), acknowledged[index]
            # The write in flight may be on disk without having been acknowledged.
            assert value in (state_after(step), state_after(step + 1)), (
                f"seed {SEED}, kill {kill}: n{index} acknowledged step {step}, found {value}"
            )
            if value != state_after(step):
                acknowledged[index] += 1
    assert writes > KILLS
