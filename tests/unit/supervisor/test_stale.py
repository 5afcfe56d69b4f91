"""Which files count as edited since a Pod read them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kserve_local.controllers.init_containers import remember
from kserve_local.controllers.pod_volumes import Content
from kserve_local.settings import ImageSource, Settings, WatchSettings
from kserve_local.storage.listings import listing
from kserve_local.storage.snapshots import name_of
from kserve_local.supervisor.stale import changed_since_start

STARTED = "2026-01-01T00:00:10Z"
AT = 1767225610.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    images = {"my/model": ImageSource(tmp_path / "src")}
    return Settings(
        tmp_path, tmp_path / ".state", tmp_path / "c", tmp_path / "r", images=images, watch=False
    )


def pod(*, ready: str = "True", uri: str = "./model", started: str = STARTED) -> dict[str, Any]:
    running = {"state": {"running": {"startedAt": started}}}
    done = {"state": {"terminated": {"startedAt": STARTED}}}
    return {
        "metadata": {"name": "p"},
        "spec": {
            "initContainers": [{"name": "storage-initializer", "args": [uri, "/mnt/models"]}],
            "containers": [{"name": "kserve-container", "image": "my/model:v1"}],
        },
        "status": {
            "conditions": [{"type": "Ready", "status": ready}],
            "initContainerStatuses": [{"name": "storage-initializer", **done}],
            "containerStatuses": [{"name": "kserve-container", **running}],
        },
    }


def write(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.utime(path, (AT + seconds, AT + seconds))


def test_code_and_model_files_that_are_newer_are_named(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path / "model" / "deep" / "model.joblib", -5)
    write(tmp_path / "src" / "model.py", 0.5)  # within the second of the start
    assert changed_since_start([pod()], settings) == []
    write(tmp_path / "model" / "deep" / "model.joblib", 5)
    (told,) = changed_since_start([pod()], settings)
    assert told.startswith("model/deep/model.joblib changed after Pod p started")
    write(tmp_path / "src" / "model.py", 5)
    (told,) = changed_since_start([pod()], settings)
    assert told.startswith("src/model.py changed")


@pytest.mark.parametrize(
    "name", ["src/isvc.yaml", "src/.hidden.py", "src/.venv/x.py", "src/__pycache__/m.py"]
)
def test_what_is_no_code_does_not_count(tmp_path: Path, settings: Settings, name: str) -> None:
    write(tmp_path / name, 50)
    assert changed_since_start([pod(uri="gs://bucket/model")], settings) == []


def test_a_pod_that_is_not_ready_will_read_it_yet(tmp_path: Path, settings: Settings) -> None:
    write(tmp_path / "src" / "model.py", 50)
    assert changed_since_start([pod(ready="False")], settings) == []


def test_a_container_that_restarted_has_read_the_model_anew(
    tmp_path: Path, settings: Settings
) -> None:
    """A local model is used where it lies; only an archive is a copy of what it was."""
    later = "2026-01-01T00:01:00Z"
    write(tmp_path / "model" / "model.joblib", 5)
    assert len(changed_since_start([pod()], settings)) == 1
    assert changed_since_start([pod(started=later)], settings) == []
    write(tmp_path / "packed" / "model.tar.gz", 5)
    assert len(changed_since_start([pod(uri="./packed", started=later)], settings)) == 1


def with_snapshot(settings: Settings) -> dict[str, Any]:
    """Return a Pod that has a snapshot of what is there now."""
    made = pod()
    made["metadata"]["uid"] = "u"
    source = settings.project / "model"
    content = settings.state / "models" / name_of(source, listing(source) or ())
    content.mkdir(parents=True)
    contents = {"storage-initializer": (Content("/mnt/models", content),)}
    remember(settings.run_dir / "volumes" / "u", contents)
    return made


def test_a_pod_with_a_snapshot_is_compared_by_what_it_has(
    tmp_path: Path, settings: Settings
) -> None:
    """Not by time: a model that is older than the Pod may be another one."""
    write(tmp_path / "model" / "a", 99)
    made = with_snapshot(settings)
    assert changed_since_start([made], settings) == []
    write(tmp_path / "model" / "b", -99)
    (told,) = changed_since_start([made], settings)
    assert told.startswith("model/a changed after Pod p started")
    # A container that starts again finds what its Pod has.
    made["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = "2027-01-01T00:00:00Z"
    assert len(changed_since_start([made], settings)) == 1
    (tmp_path / "model" / "b").unlink()
    assert changed_since_start([made], settings) == []


@pytest.mark.parametrize(
    ("watching", "told"),
    [
        (WatchSettings(), []),
        (WatchSettings(code="off"), ["src/model.py"]),
        (WatchSettings(model=False), ["model/a"]),
        (WatchSettings(code="restart", model=False), ["model/a"]),
    ],
)
def test_what_the_dev_loop_takes_over_is_not_told(
    tmp_path: Path, settings: Settings, watching: WatchSettings, told: list[str]
) -> None:
    write(tmp_path / "src" / "model.py", 5)
    write(tmp_path / "model" / "a", 5)
    found = changed_since_start([pod()], replace(settings, watch=True, watching=watching))
    assert [line.partition(" ")[0] for line in found] == told
