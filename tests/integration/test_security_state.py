"""Attacks through what lies in a project: names that are paths, run files, copies of the state."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.errors import Invalid
from kserve_local.store import journal
from kserve_local.store.store import open_store

UP = "../../../evil"


def pod(**spec: Any) -> Object:
    containers = [{"name": "c", "image": "i"}]
    metadata = {"name": "p", "namespace": "default"}
    spec = {"containers": containers, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"containers": [{"name": UP, "image": "i"}]}, "spec.containers[0].name"),
        ({"containers": [{"image": "i"}]}, "spec.containers[0].name"),
        ({"initContainers": [{"name": "/tmp/x", "image": "i"}]}, "spec.initContainers[0].name"),
        ({"initContainers": [{"name": "c", "image": "i"}]}, "spec.initContainers[0].name"),
        ({"volumes": [{"name": UP, "emptyDir": {}}]}, "spec.volumes[0].name"),
        ({"volumes": [{"name": "/tmp/x", "emptyDir": {}}]}, "spec.volumes[0].name"),
        ({"volumes": [{"name": "..", "emptyDir": {}}]}, "spec.volumes[0].name"),
    ],
)
async def test_a_name_that_is_a_path_never_gets_into_a_pod(
    tmp_path: Path, spec: dict[str, Any], field: str
) -> None:
    async with open_store(tmp_path / "state.db") as store:
        with pytest.raises(Invalid) as caught:
            await store.create(pod(**spec))
        assert [cause.field for cause in caught.value.causes] == [field]
        await store.create(pod(volumes=[{"name": "v", "emptyDir": {}}, {"name": "c"}]))


def test_the_copy_that_a_log_is_replayed_in_stays_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    path = state / "state.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(journal._SCHEMA)
    stale = state / f"{journal._COPY}killed"
    stale.mkdir()
    (stale / "state.db").write_bytes(b"secrets")
    copies: list[Path] = []
    copyfile = shutil.copyfile

    def watched(source: Any, target: Any) -> Any:
        copies.append(Path(target))
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", watched)
    journal.load(path)
    database.close()
    assert copies
    assert all(copy.parent.parent == state for copy in copies)
    assert not list(elsewhere.iterdir())
    assert not list(state.glob(f"{journal._COPY}*"))
