"""Model files of the project in a running project: what a Pod sees while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local import settings
from kserve_local.api import scheme
from kserve_local.api.names import MODEL
from kserve_local.api.reloads import merge_patch
from kserve_local.cli.session import connected
from tests.integration.project import Project, of_processes, project, sample, wait_until

pytestmark = of_processes

SERVER = """
import http.server, pathlib, signal, sys, threading

MODEL = pathlib.Path(sys.argv[1])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        # Read for each request: what is there now.
        files = sorted(p for p in MODEL.rglob("*") if p.is_file())
        data = " ".join(f"{p.name}={p.read_text()}" for p in files).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""


def write(folder: Path, *names: str, **config: Any) -> Path:
    """Write a project with one service for each name, whose model lies at that name."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "server.py").write_text(SERVER)
    container = {
        "name": "kserve-container",
        "image": "example/reader:dev",
        "args": ["/mnt/models"],
    }
    items = [
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": name},
            "spec": {
                "predictor": {
                    "containers": [
                        {**container, "env": [{"name": "STORAGE_URI", "value": f"./{name}"}]}
                    ]
                }
            },
        }
        for name in names
    ]
    manifest = {"apiVersion": "v1", "kind": "List", "items": items}
    (folder / "services.yaml").write_text(json.dumps(manifest))
    images = {"example/reader:dev": {"context": "src", "command": ["python", "server.py"]}}
    (folder / "kserve-local.yaml").write_text(json.dumps({"images": images, **config}))
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Project]:
    folder = write(tmp_path / "project", "folder", "single", watch={"onModelChange": "off"})
    (folder / "folder").mkdir()
    (folder / "folder" / "w").write_text("one")
    (folder / "single").write_text("one")
    with project(folder) as place:
        yield place


def ask(world: Project, name: str) -> Any:
    status, answer = world.call("/v1/models/m:predict", {}, host=f"{name}.default.example.com")
    assert status == 200, answer
    return answer


def snapshots(world: Project) -> list[str]:
    folder = world.state / "models"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


async def replace(world: Project, name: str, digest: str) -> None:
    async with connected(settings.load(world.folder)) as client:
        deployment = f"{name}-predictor-00001-deployment"
        await client.patch(scheme.DEPLOYMENT, deployment, merge_patch(MODEL, digest), "default")


async def test_a_pod_keeps_what_it_was_given_until_the_next_one_comes(world: Project) -> None:
    world.up()
    assert (ask(world, "folder"), ask(world, "single")) == ("w=one", "single=one")
    assert len(snapshots(world)) == 2
    (world.folder / "folder" / "w").write_text("two")
    (world.folder / "folder" / "x").write_text("three")
    (world.folder / "single").write_text("two")
    assert (ask(world, "folder"), ask(world, "single")) == ("w=one", "single=one")
    told = world.up().stderr
    assert "folder/x changed after Pod folder-" in told
    assert "single changed after Pod single-" in told
    await replace(world, "folder", "next")
    wait_until(lambda: ask(world, "folder") == "w=two x=three")
    wait_until(lambda: "changed after Pod folder-" not in world.up().stderr)
    wait_until(lambda: len(snapshots(world)) == 2)
    # A container that starts again in its Pod finds what it had.
    assert ask(world, "single") == "single=one"

    world.run("delete", "isvc", "single")
    wait_until(lambda: len(snapshots(world)) == 1)
    world.run("scale", "folder", "0")
    wait_until(lambda: "No resources" in world.run("get", "pods").stderr)
    kept = snapshots(world)
    world.run("scale", "folder", "auto")
    assert ask(world, "folder") == "w=two x=three"
    assert snapshots(world) == kept
    world.run("down")
    assert not (world.state / "models").exists()


async def test_a_later_supervisor_keeps_what_its_pods_use(world: Project) -> None:
    world.up()
    (world.folder / "folder" / "w").write_text("two")
    before = snapshots(world)
    os.kill(int(world.run_file["pid"]), 9)
    world.up()
    assert ask(world, "folder") == "w=one"
    assert snapshots(world) == before
    assert "folder/w changed after Pod folder-" in world.up().stderr


def test_where_nothing_is_watched_files_are_used_where_they_lie(tmp_path: Path) -> None:
    folder = write(tmp_path / "project", "folder", watch={"enabled": False})
    (folder / "folder").mkdir()
    (folder / "folder" / "w").write_text("one")
    with project(folder) as world:
        world.up()
        assert snapshots(world) == []
        (world.folder / "folder" / "w").write_text("two")
        assert ask(world, "folder") == "w=two"


async def test_a_damaged_model_changes_nothing_and_is_told_by_the_file(tmp_path: Path) -> None:
    folder = sample("sklearn-iris", tmp_path / "project")
    (folder / "kserve-local.yaml").write_text("watch: {onModelChange: off}")
    with project(folder) as world:
        world.up()
        file = world.folder / "model" / "model.joblib"
        good = file.read_bytes()
        file.write_bytes(b"no model")
        await replace(world, "sklearn-iris", "damaged")
        seen = wait_until(lambda: (s := world.service("sklearn-iris"))["broken"] and s)
        assert (seen["state"], seen["ready"]) == ("Ready", True)
        (broken,) = seen["broken"]
        assert (broken["what"], broken["file"], broken["line"]) == ("model", "", 0)
        assert broken["error"].startswith("model file model/model.joblib could not be loaded: ")
        assert world.call("/v1/models/sklearn-iris:predict", ROWS)[0] == 200
        file.write_bytes(good)
        await replace(world, "sklearn-iris", "mended")
        wait_until(lambda: not world.service("sklearn-iris")["broken"])
        wait_until(lambda: len(snapshots(world)) == 1)
        assert world.call("/v1/models/sklearn-iris:predict", ROWS)[0] == 200


ROWS = {"instances": [[6.8, 2.8, 4.8, 1.4]]}
