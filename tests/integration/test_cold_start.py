"""What a start took: measured in real starts, written at the Pod, told as an Event, shown."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kserve_local.api import names
from kserve_local.api.start_phases import PHASES
from tests.fakes.file_server import FileServer, WebFile, serving
from tests.integration.project import Project, of_processes, project, sample, wait_until
from tests.integration.traffic_world import Load, service, sleeper, write

pytestmark = of_processes
LOADING = 0.7
FETCHING = 0.4


class SlowServer(FileServer):
    """Each answer takes its time."""

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(FETCHING)
        return super().answer(path, headers)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("cold")
    model = sample("sklearn-iris", folder / "sample") / "model" / "model.joblib"
    with serving(SlowServer()) as web:
        web.files["/model.joblib"] = WebFile(model.read_bytes())
        fetched = {"modelFormat": {"name": "sklearn"}, "storageUri": f"{web.url}/model.joblib"}
        write(
            folder / "project",
            service("slow", sleeper(LOADING, minReplicas=0)),
            service("fetched", {"model": fetched, "minReplicas": 1}),
        )
        env = {"XDG_CACHE_HOME": str(folder / "cache")}
        with project(folder / "project", env=env) as place:
            place.up()
            yield place


def last_start(world: Project, name: str, *, but: str = "") -> dict[str, Any]:
    """Return the last start of a service, of another Pod than `but`, once it is told."""

    def told() -> Any:
        found = world.service(name)["lastStart"]
        return found if found and found["pod"] != but else None

    return dict(wait_until(told, why=f"the start of {name} is told"))


def test_a_held_request_waits_as_long_as_the_phases_say(world: Project) -> None:
    before = last_start(world, "slow")
    world.run("scale", "slow", "zero")
    world.run("wait", "--for", "scaled-to-zero", "slow")
    load = Load(world, "slow.default.example.com")
    begun = time.monotonic()
    assert load.ask()[0] == 200
    told = last_start(world, "slow", but=before["pod"])
    passed = time.monotonic() - begun
    phases = told["phases"]
    assert tuple(phases) == PHASES
    assert sum(round(s * 1e6) for s in phases.values()) == round(told["seconds"] * 1e6)
    # Its first stamp lies after the client's; its last one when the answer was out, of which the
    # client may hear a moment earlier.
    assert told["seconds"] <= passed
    assert phases["load"] >= LOADING
    assert min(phases.values()) >= 0


def test_a_start_that_nobody_waited_for_ends_in_the_routes(world: Project) -> None:
    told = last_start(world, "fetched")
    assert tuple(told["phases"]) == PHASES[1:]
    assert told["phases"]["download"] >= FETCHING
    assert told["phases"]["load"] > 0


def test_the_pod_says_it_and_an_event(world: Project) -> None:
    told = last_start(world, "fetched")
    pod = json.loads(world.run("get", "pod", told["pod"], "-o", "json").stdout)
    assert json.loads(pod["metadata"]["annotations"][names.START]) == told["phases"]
    events = world.run("events").stdout
    line = next(e for e in events.splitlines() if "ColdStart" in e and told["pod"] in e)
    assert re.search(r"Started in \d+ ms: resolve \d+, download \d+, environment \d+, start", line)


def test_status_shows_it_briefly_and_in_full(world: Project) -> None:
    last_start(world, "fetched")
    for form, pattern in (
        ("table", r"fetched .* \d+ms \(\w+ \d+(, \w+ \d+)?\)"),
        ("wide", r"fetched .* \d+ms \(resolve \d+, download \d+, .*, warm \d+\)"),
    ):
        shown = world.run("status", "fetched", "-o", form).stdout
        assert re.search(pattern, shown), shown


def test_the_next_supervisor_knows_it_from_the_pod(world: Project) -> None:
    before = last_start(world, "fetched")
    os.kill(world.run_file["pid"], signal.SIGKILL)
    world.up()
    again = world.service("fetched")["lastStart"]
    assert (again["pod"], again["phases"]) == (before["pod"], before["phases"])
