"""`resourcesBudget.memory` with real processes: who is not used makes room for who is called."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local.backends import processes
from tests.integration.project import Project, of_processes, project, wait_until
from tests.integration.traffic_world import IMAGE, Load, service, write

pytestmark = of_processes
MIB = 2**20
BUDGET = 230
SIZES = {"a": 60, "b": 75, "c": 90, "d": 60, "e": 80}

FAT = """
import os
weights = bytearray(int(os.environ["SIZE"]) << 20)
for page in range(0, len(weights), 4096):
    weights[page] = 1
"""


def fat(size: int, *, asks: int = 0, **more: Any) -> dict[str, Any]:
    """A predictor that holds so many MiB, and says so."""
    memory = f"{asks or size + 25}Mi"
    container = {
        "name": "kserve-container",
        "image": IMAGE,
        "env": [{"name": "SIZE", "value": str(size)}],
        "resources": {
            "requests": {"cpu": "10m", "memory": memory},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
    }
    return {"containers": [container], **more}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Project]:
    folder = write(
        tmp_path / "project",
        *(service(name, fat(size, minReplicas=0)) for name, size in SIZES.items()),
        resourcesBudget={"memory": f"{BUDGET}Mi"},
    )
    sleeper = folder / "sleeper.py"
    sleeper.write_text(FAT + sleeper.read_text())
    with project(folder) as place:
        yield place


def to(world: Project, name: str) -> Load:
    return Load(world, f"{name}.default.example.com")


class Watch(threading.Thread):
    """Adds up again and again what the replicas hold, from outside."""

    def __init__(self, world: Project) -> None:
        super().__init__()
        self._pods = world.state / "run" / "pods"
        self._ended = threading.Event()
        self.most = 0
        self.looks = 0

    def run(self) -> None:
        while not self._ended.wait(0.02):
            pids = []
            for file in self._pods.glob("*/*.json"):
                try:
                    pids.append(int(json.loads(file.read_text())["pid"]))
                except (OSError, ValueError, KeyError):
                    continue  # just being made or taken away
            self.most = max(self.most, processes.pss(pids))
            self.looks += 1

    def end(self) -> None:
        self._ended.set()
        self.join()


def test_random_calls_are_all_answered_within_the_budget(world: Project) -> None:
    """Five services of which two or three fit: `up` brings each to Ready once, then calls come."""
    world.up()
    watch = Watch(world)
    watch.start()
    chance = random.Random(4)
    loads = {name: to(world, name) for name in SIZES}
    try:
        for _ in range(8):
            # Some alone, some two at once, some that take a while.
            names = chance.sample(sorted(SIZES), chance.choice((1, 1, 2)))
            asked = [loads[n].start(f"?s={chance.choice((0, 0.3))}", timeout=60) for n in names]
            assert [f.result()[0] for f in asked] == [200] * len(names)
    finally:
        watch.end()
    assert watch.looks
    assert watch.most <= BUDGET * MIB
    events = world.run("events").stdout
    assert "Scaled to zero until the next request, evicted: room for default/" in events
    zero = [s for s in world.json("status")["services"] if s["state"] == "Zero"]
    assert zero
    evicted = {r["evicted"] for s in zero for r in s["revisions"]} - {""}
    assert not evicted or all("resourcesBudget.memory" in text for text in evicted)
    assert "by hand" not in world.run("status").stdout


def test_a_start_waits_while_all_else_is_busy_or_pinned(world: Project) -> None:
    (world.folder / "kserve-local.yaml").write_text(
        json.dumps(
            {
                **json.loads((world.folder / "kserve-local.yaml").read_text()),
                "services": {"a": {"pin": True}},
            }
        )
    )
    world.up()
    assert to(world, "a").ask()[0] == 200
    busy = to(world, "c").start("?s=6")
    wait_until(lambda: world.service("c")["state"] == "Ready", why="c has its request")
    held = to(world, "e").start()

    def told() -> str:
        return str(world.service("e")["message"])

    wait_until(lambda: "Insufficient memory" in told(), why="e says what it waits for")
    assert re.search(r"Held by .*default/c \d+ MiB \(has requests\)", told()), told()
    assert re.search(r"default/a \d+ MiB \(pinned\)", told()), told()
    assert "Next step: kserve-local scale NAME zero" in told()
    events = world.run("events").stdout
    assert re.search(r"WaitingForMemory .*1 Insufficient memory", events), events
    assert busy.result()[0] == 200
    assert held.result()[0] == 200
    assert world.service("a")["state"] == "Ready"
    assert "e is at zero" not in world.run("status").stdout


def test_what_can_never_fit_says_so_at_once(world: Project) -> None:
    for name in SIZES:
        (world.folder / f"{name}.yaml").unlink()
    huge = service("huge", fat(10, asks=500))
    (world.folder / "huge.yaml").write_text(json.dumps(huge))
    world.run("up", "-d", "--port", "auto", "--api-port", "auto")
    wait_until(lambda: "more than resourcesBudget.memory" in world.service("huge")["message"])
    text = world.service("huge")["message"]
    assert "expected to hold 500 MiB" in text
    assert "Next step: raise resourcesBudget.memory in kserve-local.yaml" in text
