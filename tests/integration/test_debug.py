"""`kserve-local debug` with a real client of the Debug Adapter Protocol, and what stands meanwhile.

Probes give up at the first failure, requests after three seconds, and the autoscaler goes to zero
after some: a breakpoint stands longer than all of these.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.dap import DapClient
from tests.integration.debug_world import (
    FILE,
    LIMIT,
    LINE,
    WINDOW,
    Command,
    adder,
    attached,
    begin,
    failed_probes,
    pods,
    predicting,
    restarts,
    write,
)
from tests.integration.project import Project, of_processes, project, sample, wait_until

pytestmark = of_processes

LONG = WINDOW + LIMIT
"""Seconds at a breakpoint that outlast every limit there is."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("debug") / "project"
    services = [adder("adder"), adder("pair", minReplicas=2), adder("crew", "--workers=2")]
    write(folder, *services)
    with project(folder) as place:
        place.up()
        yield place


def test_nothing_ends_a_request_at_a_breakpoint(world: Project) -> None:
    with attached(world, "adder") as ide:
        (before,) = pods(world, "adder")
        answers = predicting(world, "adder")
        thread = ide.stopped()["threadId"]
        frame = ide.top_frame(thread)
        assert (frame["name"], frame["line"]) == ("predict", LINE)
        time.sleep(LONG)
        assert answers.empty()
        (during,) = pods(world, "adder")
        assert during["metadata"]["uid"] == before["metadata"]["uid"]
        ready = {c["type"]: c["status"] for c in during["status"]["conditions"]}
        assert ready["Ready"] == "True"
        ide.resume(thread)
        assert answers.get(timeout=20) == (200, {"predictions": [6]})
        (after,) = pods(world, "adder")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert restarts(after) == 0
        assert failed_probes(world, "adder") == []
        ide.request("disconnect")


def test_an_ide_that_vanishes_lets_it_run_on(world: Project) -> None:
    session = begin(world, "adder")
    ide = DapClient(session["port"])
    ide.attach(world.folder / FILE, LINE)
    answers = predicting(world, "adder")
    ide.stopped()
    ide.close()
    assert answers.get(timeout=20)[0] == 200
    # The next one finds the port and the breakpoint as if nothing had been.
    with attached(world, "adder") as again:
        answers = predicting(world, "adder")
        again.resume(again.stopped()["threadId"])
        assert answers.get(timeout=20)[0] == 200


def test_the_end_of_the_session_lets_it_run_on(world: Project) -> None:
    session = begin(world, "adder")
    ide = DapClient(session["port"])
    ide.attach(world.folder / FILE, LINE)
    answers = predicting(world, "adder")
    ide.stopped()
    world.run("debug", "adder", "--stop")
    assert answers.get(timeout=20)[0] == 200
    ide.close()
    assert predicting(world, "adder").get(timeout=20)[0] == 200


def test_requests_go_to_the_other_replica(world: Project) -> None:
    with attached(world, "pair") as ide:
        wait_until(lambda: len(pods(world, "pair")) == 2)
        first = []
        while True:
            first.append(predicting(world, "pair"))
            try:
                thread = ide.stopped_within(1.0)
                break
            except TimeoutError:
                continue
        others = [predicting(world, "pair").get(timeout=20) for _ in range(10)]
        assert {status for status, _ in others} == {200}
        ide.resume(thread)
        assert {answer.get(timeout=20)[0] for answer in first} == {200}
        assert failed_probes(world, "pair") == []
        ide.request("disconnect")


def test_one_of_several_workers(world: Project) -> None:
    """The server hands the work to its workers: the first is meant, the others named."""
    session = begin(world, "crew")
    assert len(session["otherPids"]) >= 1
    world.run("debug", "crew", "--stop")
    other = begin(world, "crew", "--pid", str(session["otherPids"][-1]))
    assert other["pid"] == session["otherPids"][-1]
    world.run("debug", "crew", "--stop")
    wrong = world.run("debug", "crew", "--pid", "1", check=2)
    assert "has no such process; there are: " in wrong.stderr


def test_the_command_shows_where_it_stands(world: Project) -> None:
    command = Command(world, "adder", "--port", "auto")
    try:
        at = command.said("a debugger attaches at").split()[-1]
        command.said("waiting for an IDE")
        ide = DapClient(int(at.rpartition(":")[2]))
        ide.attach(world.folder / FILE, LINE)
        command.said("running")
        answers = predicting(world, "adder")
        thread = ide.stopped()["threadId"]
        command.said(f"stopped at model.py:{LINE} (predict)")
        assert command.interrupt() == 0
        assert answers.get(timeout=20)[0] == 200
        assert thread
        command.said("detached; adder goes on as before")
        ide.close()
    finally:
        command.end()


def test_the_snippets_say_where_and_which_folder(world: Project) -> None:
    session = begin(world, "adder")
    entry = session["vscode"]
    assert entry["connect"] == {"host": "127.0.0.1", "port": session["port"]}
    assert (entry["type"], entry["request"]) == ("debugpy", "attach")
    folder = str(world.folder.resolve())
    assert entry["pathMappings"] == [{"localRoot": folder, "remoteRoot": folder}]
    assert session["stop"] == "kserve-local debug adder --stop"
    world.run("debug", "adder", "--stop")
    gone = world.run("debug", "adder", "--stop", check=11)
    assert 'predictor of "adder" is not being debugged' in gone.stderr


def test_requests_wait_for_the_ide_if_asked_to(world: Project) -> None:
    """A breakpoint is set before the first request comes to it."""
    session = begin(world, "adder", "--wait-for-client")
    answers = predicting(world, "adder")
    time.sleep(LIMIT + 1)
    assert answers.empty()
    ide = DapClient(session["port"])
    ide.attach(world.folder / FILE, LINE)
    ide.resume(ide.stopped()["threadId"])
    assert answers.get(timeout=20)[0] == 200
    ide.close()
    world.run("debug", "adder", "--stop")


def test_a_port_that_is_taken_says_by_whom(world: Project) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = world.run("debug", "adder", "--port", str(port), check=6)
    assert f"port {port} is in use" in done.stderr
    assert f"kserve-local debug adder --port {port + 1}" in done.stderr
    assert "services.adder.debug.port" in done.stderr


def test_who_is_not_there_is_said(world: Project) -> None:
    assert "not found" in world.run("debug", "nobody", check=11).stderr
    done = world.run("debug", "adder", "--component", "transformer", check=2)
    assert '"adder" has no transformer; it has: predictor' in done.stderr


def test_a_built_in_runtime_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = sample("sklearn-iris", tmp_path_factory.mktemp("builtin") / "project")
    with project(folder) as place:
        place.up()
        done = place.run("debug", "sklearn-iris", "--json", check=2)
        message = json.loads(done.stdout)["error"]["message"]
        assert "runs no Python code of yours" in message
        assert "sklearnserver" in message
