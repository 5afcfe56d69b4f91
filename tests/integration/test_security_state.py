"""Attacks through what lies in a project: names that are paths, run files, copies of the state."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.backends import processes
from kserve_local.backends.group import stop_everything
from kserve_local.backends.runfiles import RunFiles
from kserve_local.errors import Invalid
from kserve_local.store import journal
from kserve_local.store.store import open_store
from tests.integration.process_world import Project

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


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def plant(project: Project, launch: dict[str, Any], **replica: Any) -> Path:
    """Write run files as somebody could who hands out a project folder."""
    spec = project.replica(project.container("-c", "pass"))
    pods = project.settings.run_dir / "pods"
    RunFiles(pods).save(spec)
    folder = pods / spec.id
    if replica:
        file = folder / ".replica.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **replica}))
    (folder / "kserve-container.json").write_text(json.dumps(launch))
    return folder


@pytest.mark.parametrize("marked", [{}, {"marked": False}, {"marked": True}])
@pytest.mark.parametrize("start", [{}, {"start_time": None}, {"start_time": "1"}])
async def test_a_pid_without_its_start_is_nobody_to_kill(
    project: Project,
    stranger: subprocess.Popen[bytes],
    marked: dict[str, Any],
    start: dict[str, Any],
) -> None:
    plant(project, {"token": "t", "pid": stranger.pid, **marked, **start})
    await stop_everything(project.settings, grace=0.0)
    assert stranger.poll() is None


@pytest.mark.parametrize(
    "launch",
    [
        {"token": ["t"], "pid": 2},
        {"token": "", "pid": "x"},
        {"token": "t", "pid": 1, "start_time": 0},
        {"token": "t", "pid": -1, "start_time": 0},
        {"token": "t", "pid": True, "start_time": 0},
        {"token": "t", "ports": [1]},
        {"token": "t", "ports": {"a": "b"}},
    ],
)
async def test_run_files_of_wrong_types_do_not_keep_down_from_ending(
    project: Project, launch: dict[str, Any]
) -> None:
    folder = plant(project, launch)
    await stop_everything(project.settings, grace=0.0)
    assert not folder.exists()


async def test_a_replica_id_that_is_a_path_removes_nothing(project: Project) -> None:
    precious = project.settings.project / "precious"
    precious.mkdir()
    (precious / "model").write_text("weights")
    plant(project, {}, id="../../../precious")
    await stop_everything(project.settings, grace=0.0)
    assert (precious / "model").read_text() == "weights"


@pytest.mark.parametrize("token", [{}, {"token": ""}, {"token": None}, {"token": 1}])
async def test_a_zygote_file_without_a_token_kills_nobody(
    project: Project, stranger: subprocess.Popen[bytes], token: dict[str, Any]
) -> None:
    zygotes = project.settings.run_dir / "zygotes"
    zygotes.mkdir(parents=True)
    (zygotes / "0123456789ab.json").write_text(json.dumps({"pid": stranger.pid, **token}))
    await stop_everything(project.settings, grace=0.0)
    assert stranger.poll() is None


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_nobody_is_signalled_for_everybody(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda number, _: killed.append(number))
    processes.send(pid, 15)
    assert not killed
