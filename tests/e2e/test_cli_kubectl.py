"""`kserve-local kubectl`: what follows the word is kubectl's, to the last flag."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.project import Project, project, sample

pytestmark = pytest.mark.kubectl


@pytest.fixture
def iris(tmp_path: Path) -> Iterator[Project]:
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        own.up()
        yield own


def test_flags_after_the_first_word_are_kubectls(iris: Project) -> None:
    out = iris.run("kubectl", "get", "isvc", "-o", "jsonpath={.items[0].metadata.name}").stdout
    assert out == "sklearn-iris"
    assert iris.run("kubectl", "--", "get", "isvc", "-o", "name").stdout.endswith("/sklearn-iris\n")
    assert "kubectl get" in iris.run("kubectl", "get", "--help").stdout
    wanted = "configmap/inferenceservice-config\n"
    assert iris.run("kubectl", "get", "cm", "-n", "kserve", "-o", "name").stdout == wanted
    assert iris.run("-n", "kserve", "kubectl", "get", "cm", "-o", "name").stdout == wanted


def test_the_node_is_ready_and_has_a_size(iris: Project) -> None:
    node = json.loads(iris.run("kubectl", "get", "node", "kserve-local", "-o", "json").stdout)
    assert int(node["status"]["capacity"]["cpu"]) >= 1
    shown = iris.run("kubectl", "get", "nodes").stdout.splitlines()[1].split()
    assert shown[:2] == ["kserve-local", "Ready"]
    assert shown[-1].startswith("v1.")
