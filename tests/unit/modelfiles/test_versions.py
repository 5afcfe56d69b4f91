"""A model that another scikit-learn saved is told, once it is known what will load it."""

from __future__ import annotations

import shutil
from pathlib import Path

import joblib
import pytest
from sklearn import __version__ as own
from sklearn.svm import SVC

from kserve_local.modelfiles import versions


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of scikit-learn 1.3.2."""
    monkeypatch.setattr("sklearn.base.__version__", "1.3.2")
    joblib.dump(SVC().fit([[0.0], [1.0]], [0, 1]), tmp_path / "model.joblib", compress=3)
    monkeypatch.undo()
    return tmp_path


SAID = "model.joblib was saved with scikit-learn 1.3.2; runtime has 1.7.2"


def test_both_versions_are_told(old: Path) -> None:
    assert versions.warning(old, "1.7.2") == SAID
    assert versions.warning(old / "model.joblib", "1.7.2") == SAID
    assert versions.warning(old, "1.3.2") == ""
    assert versions.warning(old, "") == ""


def test_each_model_of_a_server_of_several_is_looked_at(old: Path) -> None:
    for name in ("a", "b"):
        (old / "all" / name).mkdir(parents=True)
        shutil.copy(old / "model.joblib", old / "all" / name / f"{name}.pkl")
    said = "was saved with scikit-learn 1.3.2; runtime has 1.7.2"
    assert versions.warning(old / "all", "1.7.2") == f"a.pkl {said}; b.pkl {said}"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "model.pkl").write_bytes(b"no pickle")
    assert versions.warning(tmp_path, "1.7.2") == ""
    assert versions.warning(tmp_path / "gone", "1.7.2") == ""


def test_a_model_that_is_saved_again_is_read_again(old: Path) -> None:
    assert versions.warning(old, own) != ""
    joblib.dump(SVC().fit([[0.0], [1.0]], [0, 1]), old / "model.joblib")
    assert versions.warning(old, own) == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("numpy\nscikit-learn==1.5.1\n", "1.5.1"),
        ("scikit_learn == 1.5.1 ; python_version > '3'  # pinned\n", "1.5.1"),
        ("scikit-learn>=1.5\n", ""),
        ("scikit-learn==1.5.*\n", ""),
        ("scikit-learn-extra==0.3\n", ""),
        ("", ""),
    ],
)
def test_the_runtimes_version_is_that_of_its_requirements(
    text: str, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(text)
    assert versions.runtime_version(path) == found


def test_without_requirements_it_is_that_of_this_interpreter(tmp_path: Path) -> None:
    assert versions.runtime_version() == own
    assert versions.runtime_version(tmp_path / "gone") == ""
