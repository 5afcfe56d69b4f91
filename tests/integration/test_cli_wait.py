"""`wait` for what is not there yet, and what it says when that does not come."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.project import Project, project, sample

NAME = "sklearn-iris"
BAD = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: bad}
spec: {predictor: {model: {modelFormat: {name: sklearn}, storageUri: ./nothing}}}
"""


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with project(sample(NAME, tmp_path_factory.mktemp("wait") / "iris")) as own:
        own.up()
        yield own


def start(own: Project, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kserve_local.cli.main", *args],
        cwd=own.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=30)
    return process.returncode, told


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)["error"]
    return found


def edit(iris: Project, **annotations: str) -> None:
    isvc = iris.isvc(NAME)
    isvc["metadata"] = {"name": NAME, "namespace": "default", "annotations": annotations}
    isvc.pop("status")
    iris.run("apply", "-f", "-", input=json.dumps(isvc))


def test_a_failure_names_the_service_and_why(iris: Project) -> None:
    iris.run("apply", "-f", "-", input=BAD)
    try:
        done = iris.run("wait", check=4)
        assert 'InferenceService "default/bad" failed: ModelLoadFailed: ' in done.stderr
        assert f'"default/{NAME}"' not in done.stderr
        alone = iris.run("wait", "bad", check=4).stderr.splitlines()
        # Once: the log's end, why, what helps.
        assert [line[:8] for line in alone if "ModelLoadFailed" in line] == ["error: I"]
        assert sum("│" not in line and "does not exist" in line for line in alone) == 1
        assert "      bad │ " in alone[0]
        assert alone[-2].startswith("  Next step: ")
        assert alone[-1].startswith("  kserve-local logs bad -n default --tail 50")
        quiet = iris.run("wait", "bad", "-q", check=4).stderr.splitlines()
        assert quiet == alone[-len(quiet) :]
        error = error_of(iris.run("wait", "bad", "--json", check=4))
        (service,) = error["details"]["services"]
        assert (service["namespace"], service["name"]) == ("default", "bad")
        assert (service["state"], service["reason"]) == ("Failed", "ModelLoadFailed")
        assert service["message"]
        assert any("does not exist" in line for line in service["log"])
        assert error["actions"][0]["command"] == "kserve-local logs bad -n default --tail 50"
        late = iris.run("wait", "bad", "--for", "delete", "--timeout", "0.2s", check=5)
        assert 'InferenceService "default/bad" still there after 0.2 s' in late.stderr
        # Its one revision is not going to come either.
        failed = iris.run("wait", "bad", "--for", "revision=1", "--timeout", "20s", check=4)
        assert '"default/bad" failed: ModelLoadFailed' in failed.stderr
    finally:
        iris.run("delete", "isvc", "bad")


def test_a_revision_is_waited_for_by_name_or_number(iris: Project) -> None:
    iris.run("wait", NAME, "--for", "revision=1")
    iris.run("wait", NAME, "--for", f"revision={NAME}-predictor-00001")
    late = iris.run("wait", NAME, "--for", "revision=2", "--timeout", "0.3s", "--json", check=5)
    (service,) = error_of(late)["details"]["services"]
    assert (service["name"], service["state"]) == (NAME, "Ready")
    waiting = start(iris, "wait", NAME, "--for", "revision=2", "--timeout", "20s")
    edit(iris, second="true")
    assert end(waiting) == (0, "")
    assert iris.run("wait", "--for", "revision=", check=2).stdout == ""


def test_nothing_to_wait_for_is_said(iris: Project) -> None:
    done = iris.run("wait", "-n", "nowhere")
    assert done.stderr == "there is no InferenceService in namespace nowhere to wait for\n"


def test_a_service_is_scaled_to_zero_when_its_last_pod_is_gone(iris: Project) -> None:
    late = iris.run("wait", NAME, "--for", "scaled-to-zero", "--timeout", "0.3s", check=5)
    assert f'"default/{NAME}" still has replicas after 0.3 s' in late.stderr
    waiting = start(iris, "wait", "--for", "scaled-to-zero", "--timeout", "20s")
    edit(iris, **{"serving.kserve.io/stop": "true"})
    assert end(waiting) == (0, "")
    assert json.loads(iris.run("get", "pods", "-o", "json").stdout)["items"] == []
    assert iris.json("wait", NAME, "--for", "scaled-to-zero") == {"outcome": "scaled-to-zero"}
