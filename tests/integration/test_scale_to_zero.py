"""Scale to zero and back, run for real, with the autoscaler's clock ten times as fast.

The numbers at the tests are those of the behaviours in the acceptance list of traffic and scale.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.project import Project, of_processes, project, wait_until
from tests.integration.traffic_world import Load, service, sleeper, write

pytestmark = of_processes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = write(
        tmp_path_factory.mktemp("zero") / "project",
        service("plain", sleeper(0.5, minReplicas=0)),
        service("single", sleeper(0.3, minReplicas=0, containerConcurrency=1, maxReplicas=3)),
        service("late", sleeper(4, minReplicas=0, timeout=2)),
        service("fragile", sleeper(minReplicas=0)),
        service("steady", sleeper(minReplicas=1)),
        service("eager", sleeper(minReplicas=0, maxReplicas=4, scaleTarget=1)),
        service("wide", sleeper(minReplicas=1, containerConcurrency=4)),
        service(
            "brief", sleeper(timeout=1), {"autoscaling.knative.dev/target-burst-capacity": "0"}
        ),
        service(
            "narrow",
            sleeper(minReplicas=1, maxReplicas=1, containerConcurrency=1),
            {"autoscaling.knative.dev/target-burst-capacity": "0"},
        ),
    )
    with project(folder) as place:
        place.up()
        yield place


def replicas(world: Project, name: str) -> int:
    """How many replicas serve."""
    return sum(r["replicas"] for r in world.service(name)["revisions"])


def at_zero(world: Project, name: str) -> None:
    """Have it at zero, whatever it did before."""
    world.run("scale", name, "zero")
    world.run("wait", "--for", "scaled-to-zero", name)


def figure(world: Project, which: str, name: str) -> int:
    """Return one of the gateway's figures of a service's first revision."""
    start = f"kserve_local_gateway_{which}{{"
    for line in world.call("/-/metrics")[1].splitlines():
        if line.startswith(start) and f'revision="{name}-predictor-00001"' in line:
            return int(line.split()[-1])
    return 0


def to(world: Project, name: str) -> Load:
    return Load(world, f"{name}.default.example.com")


def test_16_silence_scales_to_zero_and_the_service_stays_ready(world: Project) -> None:
    world.run("wait", "--for", "scaled-to-zero", "plain", timeout=90)
    told = world.service("plain")
    assert (told["ready"], told["state"]) == (True, "Zero")
    shown = world.run("get", "kpa", "plain-predictor-00001").stdout.split("\n")[1].split()
    assert shown == ["plain-predictor-00001", "0", "0", "False", "NoTraffic"]
    assert replicas(world, "steady") == 1


def test_1_a_cold_start_holds_requests_and_fails_none(world: Project) -> None:
    """50 at once at zero: one start, 50 answers, all from the first Pod (3: its gate is open)."""
    at_zero(world, "plain")
    answers = to(world, "plain").burst(50)
    assert {status for status, _ in answers} == {200}
    assert len({told["pid"] for _, told in answers}) == 1
    assert replicas(world, "plain") == 1


def test_2_the_first_request_wakes_as_many_as_the_target_asks_for(world: Project) -> None:
    """scaleTarget 1, of which 70 % is aimed at: one request is worth two replicas; else one."""
    at_zero(world, "eager")
    assert to(world, "eager").ask("?s=0.5")[0] == 200
    wait_until(lambda: "Scaled from 0 to 2" in world.run("events").stdout)
    at_zero(world, "plain")
    assert to(world, "plain").ask()[0] == 200
    assert replicas(world, "plain") == 1


def test_3_with_a_limit_the_replicas_share_what_waited(world: Project) -> None:
    at_zero(world, "single")
    answers = to(world, "single").burst(12, "?s=0.3")
    assert {status for status, _ in answers} == {200}
    assert len({told["pid"] for _, told in answers}) == 3


def test_4_a_cold_start_counts_against_the_time_limit(world: Project) -> None:
    at_zero(world, "late")
    assert to(world, "late").ask() == (504, "activator request timeout")
    # The start goes on, and who comes then is served.
    wait_until(lambda: replicas(world, "late") == 1, why="the Pod comes up nevertheless")
    assert to(world, "late").ask()[0] == 200


def test_5_the_text_of_a_late_timeout_is_glued_to_the_answer(world: Project) -> None:
    wait_until(lambda: to(world, "late").ask()[0] == 200, why="it is up")
    status, text = to(world, "late").ask("?stream=20")
    assert status == 200
    assert text.startswith("a\na\na\n")
    assert text.endswith("activator request timeout")


def test_6_on_the_direct_path_the_text_is_queue_proxys(world: Project) -> None:
    wait_until(lambda: "k-proxy-request" not in to(world, "brief").ask()[1]["headers"])
    assert to(world, "brief").ask("?s=30") == (504, "request timeout")


def asked_in_turn(world: Project, name: str, count: int) -> list[int]:
    """Which of the replicas, in order of their addresses, each of `count` requests reached."""
    told = [to(world, name).ask()[1]["address"] for _ in range(count)]
    pods = [p for r in world.service(name)["revisions"] for p in r["pods"]]
    done = world.run("get", "pods", *pods, "-o", "jsonpath={.items[*].status.podIP}")
    order = sorted(done.stdout.split(), key=lambda ip: tuple(map(int, ip.split("."))))
    return [order.index(address) for address in told]


def test_8_who_is_asked_hangs_on_the_limit(world: Project) -> None:
    for name in ("single", "wide"):
        world.run("scale", name, "3")
        wait_until(lambda name=name: replicas(world, name) == 3)
    wait_until(lambda: figure(world, "endpoints_usable", "single") == 3)
    assert asked_in_turn(world, "single", 6) == [0] * 6
    wait_until(lambda: figure(world, "endpoints_usable", "wide") == 3)
    first, *others = asked_in_turn(world, "wide", 7)
    assert others == [(first + n) % 3 for n in range(1, 7)]
    for name in ("single", "wide"):
        world.run("scale", name, "auto")


def test_a_start_that_fails_ends_the_wait_and_says_why(world: Project) -> None:
    at_zero(world, "fragile")
    flag = world.folder / "broken"
    flag.touch()
    try:
        status, answer = to(world, "fragile").ask()
        assert status == 503
        assert "cannot read the weights" in json.dumps(answer)
        told = world.service("fragile")
        assert told["state"] == "Failed"
        assert "cannot read the weights" in told["message"]
    finally:
        flag.unlink()
    wait_until(lambda: to(world, "fragile").ask()[0] == 200, why="mended, it comes by itself")


def test_a_client_that_leaves_frees_its_place(world: Project) -> None:
    at_zero(world, "late")
    at = urlsplit(world.gateway)

    clients = [socket.create_connection((at.hostname, at.port)) for _ in range(5)]
    head = b"POST / HTTP/1.1\r\nHost: late.default.example.com\r\nContent-Length: 2\r\n\r\n{}"
    for client in clients:
        client.sendall(head)
    wait_until(lambda: figure(world, "held", "late") == 5, why="all of them wait")
    for client in clients:
        client.close()
    wait_until(lambda: figure(world, "held", "late") == 0, why="none of them does any more")


def test_13_the_activator_leaves_the_path_with_capacity(world: Project) -> None:
    def told(name: str) -> dict[str, str]:
        status, answer = to(world, name).ask()
        assert status == 200
        return dict(answer["headers"])

    wait_until(lambda: "k-proxy-request" not in told("narrow"), why="its burst capacity is 0")
    assert told("steady")["k-proxy-request"] == "activator"
    world.run("scale", "steady", "3")
    wait_until(lambda: "k-proxy-request" not in told("steady"), why="3 idle replicas: 89 to spare")
    world.run("scale", "steady", "auto")
    wait_until(lambda: told("steady").get("k-proxy-request") == "activator")


def test_7_a_replica_queues_ten_and_refuses_the_rest(world: Project) -> None:
    """With the activator out of the path: one runs, ten wait."""
    wait_until(lambda: "k-proxy-request" not in to(world, "narrow").ask()[1]["headers"])
    load = to(world, "narrow")
    first = load.start("?s=3")
    wait_until(lambda: figure(world, "in_flight", "narrow") == 1)
    waiting = [load.start() for _ in range(10)]
    wait_until(lambda: figure(world, "in_flight", "narrow") == 11)
    assert load.ask() == (503, "pending request queue full\n")
    assert {f.result()[0] for f in [first, *waiting]} == {200}


def test_scale_is_kept_apart_from_the_spec(world: Project) -> None:
    generation = world.isvc("steady")["metadata"]["generation"]
    assert "3 replicas (was 1)" in world.run("scale", "steady", "3").stdout
    wait_until(lambda: replicas(world, "steady") == 3)
    told = world.service("steady")
    assert [(r["override"], r["desired"]) for r in told["revisions"]] == [(3, 3)]
    assert "has 3 replicas by hand" in world.run("status", "steady").stdout
    world.run("scale", "steady", "auto")
    wait_until(lambda: replicas(world, "steady") == 1, why="minReplicas is one")
    assert world.isvc("steady")["metadata"]["generation"] == generation
    assert len(world.service("steady")["revisions"]) == 1


def test_scaled_to_zero_by_hand_it_comes_back_with_the_next_request(world: Project) -> None:
    at_zero(world, "steady")
    assert world.service("steady")["state"] == "Zero"
    assert to(world, "steady").ask()[0] == 200
    wait_until(lambda: world.service("steady")["revisions"][0]["override"] is None)
    assert replicas(world, "steady") == 1


def test_22_a_request_in_progress_outlives_its_replicas_turn(world: Project) -> None:
    """The server itself would die at once when told to end; it is told later."""
    wait_until(lambda: to(world, "steady").ask()[0] == 200)
    load = to(world, "steady")
    running = load.start("?s=5")
    stream = load.start("?stream=8")
    wait_until(lambda: figure(world, "in_flight", "steady") == 2)
    world.run("scale", "steady", "zero")
    wait_until(lambda: not world.service("steady")["revisions"][0]["replicas"])
    assert running.result()[0] == 200
    assert stream.result() == (200, "a\n" * 8)
    world.run("wait", "--for", "scaled-to-zero", "steady")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nope", "1"), 'inferenceservices.serving.kserve.io "nope" not found'),
        (("steady", "1", "--component", "transformer"), '"steady" has no transformer'),
        (("steady", "1", "--revision", "7"), '"steady" has no revision 7'),
        (("steady", "many"), "'many' is no number from 0 to 1000, auto or zero"),
    ],
)
def test_what_cannot_be_scaled_is_said(
    world: Project, arguments: tuple[str, ...], words: str
) -> None:
    done = world.run("scale", *arguments, check=None)
    assert done.returncode != 0
    assert words in done.stderr


def test_9_load_brings_replicas_and_silence_takes_them(world: Project, tmp_path: Path) -> None:
    """Example A of the specification: scaleTarget 1, 5 in flight: 8 replicas."""
    busy = service("busy", sleeper(minReplicas=1, scaleTarget=1))
    (tmp_path / "busy.yaml").write_text(json.dumps(busy))
    world.run("apply", "-f", str(tmp_path / "busy.yaml"))
    world.run("wait", "busy")
    end = to(world, "busy").keep(5, "?s=4")
    try:
        wait_until(lambda: replicas(world, "busy") == 8, why="ceil(5/0.7)")
    finally:
        answers = end()
    assert {status for status, _ in answers} == {200}
    events = world.run("events").stdout
    assert "in flight over 6 s, 0.7 a replica: 8" in events, events
    wait_until(lambda: replicas(world, "busy") == 1, why="the load is gone")
    world.run("delete", "isvc", "busy")


def test_12_bounds_are_outside_of_what_the_autoscaler_wants(world: Project) -> None:
    """It wants 8, and may have 4; where one is the least, silence leaves one."""
    end = to(world, "eager").keep(5, "?s=4")
    try:
        wait_until(lambda: replicas(world, "eager") == 4)
    finally:
        answers = end()
    assert {status for status, _ in answers} == {200}
    assert replicas(world, "eager") <= 4
    assert replicas(world, "narrow") == 1


def test_a_supervisor_that_dies_leaves_what_is_held_to_the_next(world: Project) -> None:
    at_zero(world, "plain")
    os.kill(world.run_file["pid"], signal.SIGKILL)
    held = to(world, "plain").start()
    world.up()
    assert held.result()[0] == 200
