"""Which Pods count as broken by a save, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Object, name_of
from kserve_local.api.names import CODE, COMPONENT_LABEL, MODEL
from kserve_local.settings import Settings
from kserve_local.supervisor.broken_pods import Broken, broken, last_asked_for

TRACEBACK = """Traceback (most recent call last):
  File "{project}/model.py", line 12, in load
    raise ValueError("bad weights")
ValueError: bad weights
"""


def pod(
    name: str,
    *,
    ready: bool = True,
    age: int = 0,
    owner: str = "deployment",
    container: dict[str, Any] | None = None,
    init: dict[str, Any] | None = None,
    **annotations: str,
) -> Object:
    """A Pod of a Deployment; `code`, `model`: what it was started for."""
    marks = {{"code": CODE, "model": MODEL}[k]: v for k, v in annotations.items()}
    return {
        "metadata": {
            "name": name,
            "labels": {COMPONENT_LABEL: "predictor"},
            "annotations": marks,
            "creationTimestamp": f"2026-01-01T00:00:{50 - age:02d}Z",
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "kserve-container", **(container or {})}],
            "initContainerStatuses": [{"name": "storage-initializer", **(init or {})}],
        },
    }


def ended(message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"state": {"terminated": {"reason": reason, "exitCode": 1, "message": message}}}


SERVING = pod("old", age=30)


def found(tmp_path: Path, *pods: Object) -> list[Broken]:
    state = tmp_path / ".state"
    return broken(pods, Settings(tmp_path, state, tmp_path / "cache", tmp_path / "run"))


def log(tmp_path: Path, name: str, file: str = "kserve-container.log") -> None:
    folder = tmp_path / ".state" / "logs" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(TRACEBACK.format(project=tmp_path))


def test_file_line_and_error_come_from_the_log(tmp_path: Path) -> None:
    log(tmp_path, "new")
    (one,) = found(tmp_path, SERVING, pod("new", ready=False, container=ended("x"), code="a"))
    assert one.told() == (
        "the new code does not start: model.py:12: ValueError: bad weights; Pod old serves the "
        "code of before"
    )
    assert one.shown() == {
        "component": "predictor",
        "pod": "new",
        "serving": "old",
        "what": "code",
        "file": "model.py",
        "line": 12,
        "error": "ValueError: bad weights",
    }


def test_a_container_that_has_begun_again_tells_in_its_log_of_before(tmp_path: Path) -> None:
    log(tmp_path, "new", "kserve-container.previous.log")
    (tmp_path / ".state" / "logs" / "new" / "kserve-container.log").write_text("INFO starting\n")
    again = {"state": {"running": {}}, "lastState": ended()["state"], "restartCount": 1}
    (one,) = found(tmp_path, SERVING, pod("new", ready=False, container=again, code="a"))
    assert one.error == "model.py:12: ValueError: bad weights"


@pytest.mark.parametrize(
    ("container", "error"),
    [
        (ended("all\nof it is bad\nNext step: none"), "of it is bad"),
        (ended("last words", "OOMKilled"), "OOMKilled, exit code 1"),
        (ended(), "Error, exit code 1"),
        ({"state": {"waiting": {"reason": "InvalidImageName", "message": "no such"}}},
         "InvalidImageName: no such"),
        (ended("model file STATE/models/model-0123456789abcdef/m.joblib is bad"),
         "model file model/m.joblib is bad"),
        (ended("model file STATE/models/m.joblib-0123456789abcdef/m.joblib: bad"),
         "model file m.joblib: bad"),
    ],
)  # fmt: skip
def test_without_a_traceback_the_pod_tells(
    tmp_path: Path, container: dict[str, Any], error: str
) -> None:
    for state in container["state"].values():
        state["message"] = state["message"].replace("STATE", str(tmp_path / ".state"))
    (one,) = found(tmp_path, SERVING, pod("new", ready=False, container=container, model="a"))
    assert (one.what, one.error) == ("model", error)


def test_a_model_that_cannot_be_fetched(tmp_path: Path) -> None:
    new = pod("new", ready=False, init=ended("Local path ./m does not exist."), model="a")
    (one,) = found(tmp_path, SERVING, new)
    assert one.error == "Local path ./m does not exist"


def test_a_budget_that_has_no_room_for_both(tmp_path: Path) -> None:
    """One that is only being cleared is no failure."""
    new = pod("new", ready=False, code="a")
    waits = "1 Insufficient memory: 1 GiB of 2 GiB are free"
    placed = {"type": "PodScheduled", "status": "False", "message": waits}
    new["status"]["conditions"].append(placed)
    assert found(tmp_path, SERVING, new) == []
    placed["message"] += ".\nNext step: raise resourcesBudget.memory in kserve-local.yaml"
    (one,) = found(tmp_path, SERVING, new)
    assert one.told() == (
        f"the new code does not start: {waits}; Pod old serves the code of before"
    )


def test_where_a_server_notices_a_damaged_model_is_no_place(tmp_path: Path) -> None:
    folder = tmp_path / ".state" / "logs" / "new"
    folder.mkdir(parents=True)
    (folder / "kserve-container.log").write_text(TRACEBACK.format(project="/elsewhere"))
    new = pod("new", ready=False, container=ended("bad file"), model="a")
    assert found(tmp_path, SERVING, new)[0].error == "bad file"


@pytest.mark.parametrize(
    "others",
    [
        [pod("new", ready=False, code="a")],
        [pod("new", container=ended(), code="a")],
        [pod("new", ready=False, container=ended())],
        [pod("new", ready=False, container=ended(), code="a", owner="another")],
    ],
    ids=["starting", "ready", "no save", "another Deployment"],
)
def test_nothing_is_broken(tmp_path: Path, others: list[Object]) -> None:
    assert found(tmp_path, SERVING, *others) == []


def test_nothing_serves_beside_it(tmp_path: Path) -> None:
    assert found(tmp_path, pod("new", ready=False, container=ended(), code="a")) == []
    going = {**SERVING, "metadata": {**SERVING["metadata"], "deletionTimestamp": "2026"}}
    assert found(tmp_path, going, pod("new", ready=False, container=ended(), code="a")) == []


def test_replicas_that_fail_alike_are_told_once(tmp_path: Path) -> None:
    new = [pod(f"new{n}", ready=False, container=ended("x"), code="a", age=n) for n in range(3)]
    assert [b.pod for b in found(tmp_path, SERVING, *new)] == ["new0"]


def test_pods_that_others_take_the_place_of() -> None:
    new = pod("new", ready=False, code="a")
    assert [name_of(p) for p in last_asked_for([SERVING, new])] == ["new"]
    assert [name_of(p) for p in last_asked_for([SERVING, pod("two", owner="other")])] == [
        "old", "two",
    ]  # fmt: skip
