"""Pickles are read by their opcodes: what they would make is found, and nothing is made."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import __version__ as version
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kserve_local.modelfiles import pickles, sklearn_models
from kserve_local.modelfiles.compressed import Compressed
from kserve_local.modelfiles.pickles import NotAPickle

X, Y = load_iris(return_X_y=True)
MODELS: dict[str, Callable[[], Any]] = {
    "linear": lambda: LogisticRegression(max_iter=500).fit(X, Y),
    "forest": lambda: RandomForestClassifier(3).fit(X, Y),
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y),
    "passing": lambda: make_pipeline("passthrough", LogisticRegression(max_iter=500)).fit(X, Y),
    "search": lambda: GridSearchCV(LogisticRegression(max_iter=500), {"C": [1, 2]}).fit(X, Y),
}


def _pickled(protocol: int) -> Callable[[Any, Path], object]:
    return lambda model, path: path.write_bytes(pickle.dumps(model, protocol))


def _joblib(compress: Any) -> Callable[[Any, Path], object]:
    return lambda model, path: joblib.dump(model, path, compress=compress)


SAVES: dict[str, Callable[[Any, Path], object]] = {
    **{f"pickle {n}": _pickled(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "joblib": _joblib(0),
    **{how: _joblib((how, 3)) for how in ("zlib", "gzip", "bz2", "xz", "lzma")},
}


@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("kind", MODELS)
def test_class_version_and_columns_are_found(kind: str, how: str, tmp_path: Path) -> None:
    """However the estimator was saved; arrays of joblib lie between the opcodes."""
    model, path = MODELS[kind](), tmp_path / "model"
    SAVES[how](model, path)
    contents = pickles.read(path)
    found = sklearn_models.describe(contents)
    assert contents.complete
    assert found is not None
    assert (found.name, found.version, found.features) == (type(model).__name__, version, 4)
    assert (found.text, found.warnings) == (False, ())


def test_arrays_of_every_kind_are_passed(tmp_path: Path) -> None:
    arrays = {
        "objects": np.array(["a", None, {"b": [1]}], dtype=object),
        "texts": np.array(["ab", "c"]),
        "records": np.zeros(3, dtype=[("x", "f8"), ("y", "i4")]),
        "flags": np.ones((2, 3), dtype=bool),
        "nothing": np.zeros((0, 4)),
        "after": "seen",
    }
    joblib.dump(arrays, tmp_path / "m")
    top = pickles.read(tmp_path / "m").top
    assert list(top) == list(arrays)
    assert top["after"] == "seen"


def test_a_pipeline_that_reads_texts_says_so(tmp_path: Path) -> None:
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["a bb", "cc dd"], [0, 1])
    joblib.dump(model, tmp_path / "m")
    found = sklearn_models.describe(pickles.read(tmp_path / "m"))
    assert found is not None
    assert (found.text, found.features) == (True, None)


class Mischief:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_of_the_file_runs(protocol: int, tmp_path: Path) -> None:
    data = pickle.dumps(Mischief(tmp_path / "made"), protocol)
    contents = pickles.read_stream(io.BytesIO(data))
    assert contents.top.kind.endswith(".mkdir")
    assert not (tmp_path / "made").exists()
    pickle.loads(data)  # the file is as bad as it looks
    assert (tmp_path / "made").exists()


class Own:
    """A class that no server has."""

    def __init__(self) -> None:
        self.n_features_in_ = 2


def test_classes_from_elsewhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(pickle.dumps(Own()))
    found = sklearn_models.describe(pickles.read(tmp_path / "m"))
    assert found is not None
    assert [Own.__qualname__ in warning for warning in found.warnings] == [True]


def test_other_pickles_are_no_models(tmp_path: Path) -> None:
    for value in ({"a": 1}, [1, 2], "text", np.zeros(3)):
        joblib.dump(value, tmp_path / "m")
        assert sklearn_models.describe(pickles.read(tmp_path / "m")) is None


def test_what_is_no_pickle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m"
    whole = pickle.dumps(MODELS["linear"]())
    for data in (b"", b"no pickle", whole[:-40], b"x\x9c broken", b"\x80\x04\x95", b"BZ??"):
        path.write_bytes(data)
        with pytest.raises(NotAPickle):
            pickles.read(path)
    path.write_bytes(b"\x04\x22\x4d\x18 lz4")
    with pytest.raises(Compressed, match="lz4"):
        pickles.read(path)


def test_a_length_that_only_claims_to_be_long_takes_no_memory() -> None:
    contents = pickles.read_stream(io.BytesIO(b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little")))
    assert not contents.complete


def test_a_small_file_that_unpacks_to_a_huge_one_is_let_go(tmp_path: Path) -> None:
    """A line of a pickle is read whole, so it must not be as long as it likes."""
    path = tmp_path / "m"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"\x80\x02c")
        for _ in range(64):
            file.write(b"a" * (1 << 20))
    with pytest.raises(NotAPickle):
        pickles.read(path)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """What a hostile file can do is to be refused."""
    with contextlib.suppress(NotAPickle):
        pickles.read_stream(io.BytesIO(b"\x80\x04" + data))
