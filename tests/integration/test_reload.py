"""New Pods that a save asked for, with real processes and under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.project import Project, of_processes, project, wait_until
from tests.integration.reload_world import ask_for_pods, asking, code, constant, write

HOST = "{}.default.example.com"
STANDARD_HOST = "{}-default.example.com"
BAD = 'raise ValueError("bad weights")'

pytestmark = of_processes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    standard = {"serving.kserve.io/deploymentMode": "Standard"}
    folder = write(
        tmp_path_factory.mktemp("reload") / "project",
        {
            "one": {"spec": {"predictor": constant()}},
            "three": {"spec": {"predictor": constant(minReplicas=3)}},
            "plain": {"spec": {"predictor": constant()}, "annotations": standard},
            "zero": {"spec": {"predictor": constant(minReplicas=0)}},
            "chain": {
                "spec": {c: constant() for c in ("predictor", "transformer", "explainer")}
            },
        },
        watch={"enabled": False},
    )  # fmt: skip
    with project(folder) as place:
        place.up()
        yield place


def pods(world: Project, service: str) -> list[dict[str, Any]]:
    """Return a service's Pods that were not told to go."""
    label = f"serving.kserve.io/inferenceservice={service}"
    done = world.run("get", "pods", "-l", label, "-o", "json")
    return [p for p in json.loads(done.stdout)["items"] if "deletionTimestamp" not in p["metadata"]]


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)


@pytest.mark.parametrize(
    ("service", "host", "deployment"),
    [
        ("one", HOST, "one-predictor-00001-deployment"),
        ("three", HOST, "three-predictor-00001-deployment"),
        ("plain", STANDARD_HOST, "plain-predictor"),
        ("chain", HOST, "chain-transformer-00001-deployment"),
    ],
)
async def test_ten_saves_in_a_row_fail_no_request(
    world: Project, service: str, host: str, deployment: str
) -> None:
    before = world.isvc(service)["status"]["conditions"]
    async with asking(world, host.format(service)) as asked:
        for number in range(10):
            answer = f"{service} {number}"
            code(world.folder, answer)
            await ask_for_pods(world, deployment, answer.replace(" ", "-"))
            await asked.until(answer)
    assert asked.failures == []
    assert world.isvc(service)["status"]["conditions"] == before
    revisions = json.loads(world.run("get", "revisions", "-o", "json").stdout)["items"]
    assert all(r["metadata"]["name"].endswith("-00001") for r in revisions)


async def test_code_that_does_not_start_changes_nothing_and_the_next_save_is_taken_at_once(
    world: Project,
) -> None:
    deployment = "one-predictor-00001-deployment"
    code(world.folder, "good")
    await ask_for_pods(world, deployment, "good")
    async with asking(world, HOST.format("one")) as asked:
        await asked.until("good")
        before = world.isvc("one")["status"]["conditions"]
        for number in range(3):
            code(world.folder, "never", BAD)
            await ask_for_pods(world, deployment, f"bad-{number}")

            def failing(digest: str = f"bad-{number}") -> bool:
                found = {p["metadata"]["annotations"].get("kserve-local.dev/code"): p
                         for p in pods(world, "one")}  # fmt: skip
                if set(found) != {"good", digest}:
                    return False
                (status,) = found[digest]["status"].get("containerStatuses") or ({},)
                return int(status.get("restartCount") or 0) > 0 or "terminated" in (
                    status.get("state") or {}
                )

            wait_until(failing)
            seen = world.service("one")
            assert (seen["state"], seen["ready"]) == ("Ready", True)
            (broken,) = seen["broken"]
            line = (world.folder / "server.py").read_text().splitlines().index(BAD) + 1
            assert (broken["file"], broken["line"]) == ("server.py", line)
            assert broken["error"] == "ValueError: bad weights"
            error = f"server.py:{line}: ValueError: bad weights"
            assert seen["warnings"] == [
                f"the new code does not start: {error}; Pod {broken['serving']} serves the code "
                "of before"
            ]
            assert f"ModelLoadFailed: {error}" in world.run("status", "one", check=None).stdout
            # A run that has just begun again has said nothing yet.
            wait_until(lambda: "ValueError: bad weights" in world.run("logs", "one").stdout)
            assert world.isvc("one")["status"]["conditions"] == before
        code(world.folder, "mended")
        await ask_for_pods(world, deployment, "mended")
        await asked.until("mended")
    assert asked.failures == []
    wait_until(lambda: [is_ready(p) for p in pods(world, "one")] == [True])
    mended = world.service("one")
    assert (mended["broken"], mended["warnings"], mended["message"]) == ([], [], "")


async def test_at_zero_nothing_starts_and_the_next_request_finds_the_new_code(
    world: Project,
) -> None:
    world.run("scale", "zero", "0")
    wait_until(lambda: pods(world, "zero") == [])
    code(world.folder, "woken")
    await ask_for_pods(world, "zero-predictor-00001-deployment", "woken")

    def is_seen() -> bool:
        done = world.run("get", "deployment", "zero-predictor-00001-deployment", "-o", "json")
        found = json.loads(done.stdout)
        return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])

    wait_until(is_seen)
    assert pods(world, "zero") == []
    world.run("scale", "zero", "auto")
    status, answer = world.call("/v1/models/m:predict", {}, host=HOST.format("zero"))
    assert (status, answer) == (200, "woken")


async def test_more_replicas_while_the_new_code_comes_up(world: Project) -> None:
    code(world.folder, "more")
    async with asking(world, HOST.format("one")) as asked:
        await ask_for_pods(world, "one-predictor-00001-deployment", "more")
        world.run("scale", "one", "3")
        wait_until(
            lambda: (
                [
                    p["metadata"]["annotations"]["kserve-local.dev/code"]
                    for p in pods(world, "one")
                    if is_ready(p)
                ]
                == ["more"] * 3
            )
        )
        await asked.until("more")
    assert asked.failures == []
    world.run("scale", "one", "auto")
