"""The state folder goes with what is read-only in it."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from kserve_local.settings import Settings
from kserve_local.storage.snapshots import Snapshots
from kserve_local.supervisor import statedir


def test_snapshots_of_models_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root nothing is read-only, so the folders' modes are looked at as they are left."""
    settings = Settings(tmp_path, tmp_path / ".kserve-local", tmp_path / "c", tmp_path / "r")
    statedir.prepare(settings)
    model = tmp_path / "model" / "deep"
    model.mkdir(parents=True)
    (model / "w").write_text("1")
    made = Snapshots(settings.state / statedir.MODELS).take(
        tmp_path / "model", "pod", print, threading.Event()
    )
    assert made is not None
    removed = os.rmdir

    def rmdir(path: str, **more: int) -> None:
        here = os.stat(path, **more)
        assert stat.S_IMODE(here.st_mode) & stat.S_IWUSR, path
        removed(path, **more)

    monkeypatch.setattr(os, "rmdir", rmdir)
    statedir.remove_state(settings)
    assert not settings.state.exists()
