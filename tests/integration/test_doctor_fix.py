"""`doctor --fix`: mends what a program can, ends nothing, and says what it did."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kserve_local import procs
from kserve_local import settings as settings_of
from kserve_local.supervisor import remains
from kserve_local.supervisor.remains import disorders
from tests.integration.project import Project, processes_of, project, sample, wait_until

CALL = "/v1/models/sklearn-iris:predict"
IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4]]}


def findings(own: Project, *args: str, check: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Return the checks that are not ok by name, and the names of what was fixed."""
    data = own.json("doctor", *args, check=check)
    found = {c["name"]: c for c in data["checks"] if c["level"] != "ok"}
    return found, [f["name"] for f in data.get("fixed", ())]


def kill_all(own: Project) -> None:
    """Do what a power cut does."""
    gateway = json.loads((own.state / "run" / "gateway.json").read_text())["pid"]

    def gone() -> bool:
        there = {*processes_of(own.folder), *([gateway] if procs.identify(gateway) else [])}
        for pid in there:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not there

    wait_until(gone)


def test_remains_are_removed_when_nothing_of_them_runs(tmp_path: Path) -> None:
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        own.up()
        assert "remains" not in findings(own)[0]
        assert findings(own, "--fix")[1] == []
        os.kill(own.run_file["pid"], signal.SIGKILL)
        # What serves on is told, not ended.
        found, fixed = findings(own, "--fix")
        assert fixed == []
        assert "serves on" in found["ports"]["message"]
        assert own.call(CALL, IRIS)[0] == 200
        kill_all(own)
        sockets = settings_of.load(own.folder).runtime
        assert sockets.exists()
        # The kernel takes a moment to take a process apart.
        remains_of = wait_until(lambda: findings(own)[0].get("remains"), step=0.1)
        assert remains_of["fix"] == "kserve-local doctor --fix"
        told = own.run("doctor", "--fix").stdout
        assert "✓ fixed remains" in told
        assert "! warn  remains" not in told
        assert not sockets.exists()
        assert not (own.state / "run" / "volumes").exists()
        assert not (own.state / "run" / "supervisor.json").exists()
        assert "remains" not in findings(own)[0]
        own.up()
        assert own.call(CALL, IRIS)[0] == 200


@pytest.mark.parametrize("first", [["doctor", "--fix"], ["down"], ["up"]], ids=" ".join)
def test_a_copied_folder_lets_go_of_the_other_project(tmp_path: Path, first: list[str]) -> None:
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        own.up()
        pids = own.service("sklearn-iris")["revisions"][0]["pids"]
        shutil.copytree(own.folder, tmp_path / "copy", symlinks=True)
        with project(tmp_path / "copy") as copy:
            copy.run("status", check=4)
            assert str(own.folder) in findings(copy)[0]["state"]["message"]
            if first == ["up"]:
                copy.up()
                assert copy.gateway != own.gateway
                assert copy.call(CALL, IRIS)[0] == 200
            else:
                copy.run(*first)
            assert "state" not in findings(copy)[0]
        assert own.call(CALL, IRIS)[0] == 200
        (revision,) = own.service("sklearn-iris")["revisions"]
        assert revision["pids"] == pids


@pytest.fixture
def home(tmp_path: Path) -> settings_of.Settings:
    folder = tmp_path / "p"
    (folder / ".kserve-local" / "run").mkdir(parents=True)
    (folder / ".kserve-local").chmod(0o700)
    (tmp_path / "home" / "kserve-local" / "models").mkdir(parents=True)
    return settings_of.load(folder, environ={"XDG_CACHE_HOME": str(tmp_path / "home")})


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        (lambda s: s.cache, 0o500, 0o700),
        (lambda s: s.cache / "models", 0o555, 0o755),
        (lambda s: s.run_dir, 0o400, 0o700),
        (lambda s: s.state, 0o755, 0o700),
    ],
)
def test_modes_that_keep_the_owner_out_or_let_others_in_are_mended(
    home: settings_of.Settings, path: Callable[..., Path], before: int, after: int
) -> None:
    assert list(disorders(home)) == []
    path(home).chmod(before)
    (found,) = disorders(home)
    assert str(path(home)) in found.message
    assert found.mend is not None
    assert found.mend()
    assert stat.S_IMODE(path(home).stat().st_mode) == after
    assert list(disorders(home)) == []


def test_a_folder_of_somebody_else_is_left_to_a_person(
    home: settings_of.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remains.os, "getuid", lambda: os.stat(home.cache).st_uid + 1)
    monkeypatch.setattr(remains.os, "access", lambda path, mode: Path(path) != home.cache)
    (found,) = disorders(home)
    assert (found.mend, found.breaks) == (None, True)
    assert found.hint == f'sudo chown -R "$(id -u)" {home.cache}'


def test_an_environment_without_its_interpreter_makes_room_for_a_new_one(
    home: settings_of.Settings, tmp_path: Path
) -> None:
    for name, target in (("bad-1", tmp_path / "gone"), ("good-1", Path(shutil.which("sh") or ""))):
        (home.cache / "envs" / name / "bin").mkdir(parents=True)
        (home.cache / "envs" / name / "bin" / "python").symlink_to(target)
    (found,) = disorders(home)
    assert str(tmp_path / "gone") in found.message
    assert found.mend is not None
    assert found.mend()
    assert [f.name for f in (home.cache / "envs").iterdir()] == ["good-1"]
