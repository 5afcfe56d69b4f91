"""`get` against a running project, beside kubectl where both should print the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.integration.project import Project, project, sample

NAME = "sklearn-iris"


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with project(sample(NAME, tmp_path_factory.mktemp("get") / "iris")) as own:
        own.up()
        yield own


def start(own: Project, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kserve_local.cli.main", *args],
        cwd=own.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_template_prints_fields_and_no_more(iris: Project) -> None:
    url = iris.run("get", "isvc", NAME, "-o", "jsonpath={.status.url}").stdout
    assert url == f"http://{NAME}.default.example.com"
    assert iris.run("get", "isvc", NAME, "-o", "jsonpath=.status.url").stdout == url
    assert iris.run("-o", "jsonpath={.status.url}", "get", "isvc", NAME).stdout == url
    ready = '{range .items[*]}{.kind} {.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    lines = iris.run("get", "isvc,pods", "-o", f"jsonpath={ready}").stdout.splitlines()
    assert lines == ["InferenceService True", "Pod True"]


def test_a_template_that_is_wrong_is_told_before_anything_is_asked(iris: Project) -> None:
    done = iris.run("get", "isvc", "nobody", "-o", "jsonpath={.a", check=2)
    assert "unclosed action" in done.stderr
    beyond = iris.run("get", "isvc", "-o", "jsonpath={.items[7]}", check=2)
    assert "array index out of bounds: index 7, length 1" in beyond.stderr
    for form in ("environment", "jsonpath=", "jsonpat={.a}"):
        assert "jsonpath=TEMPLATE" in iris.run("get", "isvc", "-o", form, check=2).stderr


def test_several_types_are_several_tables_and_all_is_what_belongs_to_services(
    iris: Project,
) -> None:
    first, second = iris.run("get", "isvc,pods").stdout.split("\n\n")
    assert first.splitlines()[1].split()[0] == f"inferenceservice.serving.kserve.io/{NAME}"
    assert second.splitlines()[1].startswith(f"pod/{NAME}-predictor-00001")
    names = iris.run("get", "all", "-o", "name").stdout.split()
    assert {name.partition("/")[0] for name in names} == {
        "inferenceservice.serving.kserve.io", "pod", "service", "deployment.apps",
        "service.serving.knative.dev", "revision.serving.knative.dev",
    }  # fmt: skip
    assert iris.run("get", "ksvc,secrets").stdout.startswith("NAME")
    nothing = iris.run("get", "secrets,trainedmodels")
    assert nothing.stderr == "No resources found in default namespace.\n"


def test_several_objects_may_be_named(iris: Project) -> None:
    rows = iris.run("get", f"isvc/{NAME}", f"ksvc/{NAME}-predictor").stdout
    assert f"service.serving.knative.dev/{NAME}-predictor" in rows
    listed = json.loads(iris.run("get", "isvc", NAME, NAME, "-o", "json").stdout)
    assert (listed["kind"], len(listed["items"])) == ("List", 2)
    partly = iris.run("get", "isvc", NAME, "nobody", "-o", "name", check=11)
    assert partly.stdout == f"inferenceservice.serving.kserve.io/{NAME}\n"
    assert '"nobody" not found' in partly.stderr
    mixed = iris.run("get", f"isvc/{NAME}", "pods", check=2)
    assert "every argument" in mixed.stderr
    iris.run("get", ",", check=2)


def test_names_are_kubectls(iris: Project) -> None:
    """The same words as the real one prints."""
    assert iris.run("get", "isvc", "-o", "name").stdout == (
        f"inferenceservice.serving.kserve.io/{NAME}\n"
    )
    pod = iris.run("get", "pods", "-o", "name").stdout
    assert pod.startswith(f"pod/{NAME}-predictor-00001-deployment-")


def test_what_is_watched_is_shown_as_it_changes(iris: Project) -> None:
    manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME, labels: {of: NAME}}\n"
    iris.run("apply", "-f", "-", input=manifest.replace("NAME", "old"))
    table = start(iris, "get", "cm", "-w")
    objects = start(iris, "get", "cm", "-w", "--json")
    names = start(iris, "get", "cm", "-w", "-o", "name", "-l", "of=new")
    try:
        assert read(table).split() == ["NAME", "DATA", "AGE"]
        first = json.loads(read(objects))
        assert (first["type"], first["seq"], first["change"]) == ("object", 1, "ADDED")
        iris.run("apply", "-f", "-", input=manifest.replace("NAME", "new"))
        assert read(names) == "configmap/new\n"
        while "new" not in (row := read(table)):
            assert row
        assert row.split()[:2] == ["new", "0"]
        while (seen := json.loads(read(objects)))["object"]["metadata"]["name"] != "new":
            pass
        assert seen["change"] == "ADDED"
        iris.run("delete", "cm", "new")
        assert json.loads(read(objects))["change"] == "DELETED"
        assert read(names) == "configmap/new\n"
    finally:
        for process in (table, objects, names):
            stop(process)


def test_one_object_is_watched_if_it_is_there(iris: Project) -> None:
    urls = start(iris, "get", "isvc", NAME, "-w", "-o", 'jsonpath={.status.url}{"\\n"}')
    try:
        assert read(urls) == f"http://{NAME}.default.example.com\n"
    finally:
        stop(urls)
    assert "not found" in iris.run("get", "isvc", "nobody", "-w", check=11).stderr
    assert "one resource type" in iris.run("get", "isvc,pods", "-w", check=2).stderr
