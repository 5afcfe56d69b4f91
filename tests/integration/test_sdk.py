"""The kserve SDK on a running project: the recipe of docs/compatibility.md, word for word."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.project import ROOT, Project, project, sample


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = sample("sklearn-iris", tmp_path_factory.mktemp("sdk") / "project")
    with project(folder) as place:
        place.up()
        yield place


def run(place: Project, code: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: the SDK's imports warn, and stay.
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def recipe() -> str:
    text = (ROOT / "docs" / "compatibility.md").read_text()
    (found,) = re.findall(r"```python\n(from kserve import .*?)```", text, re.DOTALL)
    return str(found)


def test_the_recipe_of_the_docs_works(iris: Project) -> None:
    """Create, wait, change, read and delete, with whichever kubernetes client is installed."""
    done = run(iris, recipe())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "30"
    names = [s["name"] for s in iris.json("status")["services"]]
    assert "from-sdk" not in names


def test_the_sdks_create_takes_no_dictionary(iris: Project) -> None:
    """Nothing of ours: it fails before anything is sent. The docs say so."""
    make = recipe().partition("kserve.api_instance")[0]
    make += "kserve.create(service, namespace='default')\n"
    done = run(iris, make)
    assert done.returncode == 1
    assert "'dict' object has no attribute 'api_version'" in done.stderr


def test_the_kubeconfig_is_where_the_recipe_looks(iris: Project) -> None:
    assert Path(".kserve-local/kubeconfig") == iris.state.relative_to(iris.folder) / "kubeconfig"
