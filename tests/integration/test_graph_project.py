"""A project with an InferenceGraph and real model servers, by the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.project import Project, project, sample, wait_until

NAME = "graph-ensemble"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The ensemble sample, up."""
    with project(sample(NAME, tmp_path_factory.mktemp("graph") / NAME)) as one:
        one.up()
        yield one


def test_every_command_knows_the_graph(running: Project) -> None:
    """As it knows services: status, get, wait, up again."""
    found = running.service(NAME)
    assert (found["kind"], found["ready"], found["state"]) == ("InferenceGraph", True, "Ready")
    assert [r["replicas"] for r in found["revisions"]] == [1]
    assert "the gateway itself stands in" in found["standIns"][0]
    running.run("wait", NAME)
    running.run("wait", f"ig/{NAME}")
    running.run("status", "--exit-code")
    columns, row = running.run("get", "ig").stdout.splitlines()
    assert columns.split() == ["NAME", "URL", "READY", "AGE"]
    assert row.split()[:3] == [NAME, f"http://{NAME}.default.example.com", "True"]
    assert "gateway routes" in running.run("logs", NAME).stdout
    again = running.up()
    assert f"/serving/default/{NAME}" in again.stderr + again.stdout


def test_predict_shows_the_hops(running: Project) -> None:
    """One line a step on stderr; the answer alone on stdout; the whole trace in --json."""
    done = running.run("predict", NAME, "@request.json", "--trace")
    assert json.loads(done.stdout)["svc"] == {"predictions": [1, 1]}
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"{NAME} graph 00001  {NAME}-00001-deployment-")
    names = [line.split("00001")[0].partition("+")[0].rstrip() for line in lines[1:5]]
    assert names == ["  svc", "    svc predictor", "  tree", "    tree predictor"]
    assert all(line.endswith("  200") for line in lines[:5])
    trace = running.json("predict", NAME, "@request.json", "--trace")["trace"]
    hops = [(h["depth"], h.get("step", h.get("component")), h["status"]) for h in trace["hops"]]
    # An Ensemble's steps run at once.
    assert hops[0] == (0, "graph", 200)
    assert sorted(hops[1:]) == sorted(
        [(1, "svc", 200), (2, "predictor", 200), (1, "tree", 200), (2, "predictor", 200)]
    )
    done = running.run("predict", "svc", "@request.json", "--trace")
    assert done.stderr.startswith("svc predictor 00001  svc-predictor-00001-deployment-")


def test_a_graph_outlives_its_supervisor(running: Project) -> None:
    """The gateway goes on routing; the next supervisor finds the Pod as it was."""
    before = running.service(NAME)["revisions"]
    os.kill(running.run_file["pid"], signal.SIGKILL)
    assert running.call(f"/serving/default/{NAME}", {"instances": [[6.8, 2.8, 4.8, 1.4]]})[0] == 200
    running.up()
    found = running.service(NAME)
    assert (found["revisions"], found["restarts"]) == (before, 0)
    assert running.call(f"/serving/default/{NAME}", {"instances": [[6.8, 2.8, 4.8, 1.4]]})[0] == 200


def test_a_graph_whose_service_is_missing_says_so(running: Project) -> None:
    """`wait` ends late, with the reason; `status` has it; requests get it."""
    manifest = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: InferenceGraph\nmetadata: {name: lost}\n"
        "spec: {nodes: {root: {routerType: Sequence, steps: [{serviceName: nobody}]}}}\n"
    )
    running.run("apply", "-f", "-", input=manifest)
    why = "Failed to find graph service nobody"
    late = running.run("wait", "lost", "--timeout", "2s", check=5)
    assert (
        f'InferenceGraph "default/lost" not Ready after 2 s: ServiceNotFound: {why}' in late.stderr
    )
    assert running.service("lost")["message"] == why
    assert running.call("/serving/default/lost", {})[1] == {"error": why}
    running.run("delete", "ig", "lost")
    running.run("wait", "lost", "--for", "delete")


def test_a_deleted_graph_leaves_nothing(running: Project) -> None:
    """Neither objects nor a route; last, since the others need it."""
    running.run("delete", "ig", NAME)
    running.run("wait", NAME, "--for", "delete")
    listed = wait_until(lambda: NAME not in running.run("get", "ksvc,revisions,pods").stdout)
    assert listed
    assert running.call(f"/serving/default/{NAME}", {})[0] == 404
    assert Path(running.folder / "manifest.yaml").is_file()
