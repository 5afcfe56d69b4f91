"""Saves in a project that runs: code, model files, YAML and configuration, right and broken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.project import Project, of_processes, project, sample, wait_until
from tests.integration.reload_world import Asked, asking

HOST = "own.default.example.com"
IMAGE = "example/own:dev"

pytestmark = of_processes

SERVER = """
import http.server, signal, threading
from parts import shout

ANSWER = "one"
LOADED = []


class Own:
    def load(self):
        LOADED.append(object())

    def answer(self):
        return shout("first")


class App:
    def __init__(self):
        self.table = {}

    def post(self, path):
        def add(function):
            self.table[path] = function
            return function

        return add

    def serve(self):
        table = self.table

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length") or 0))
                data = table["/"]().encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
        stop = threading.Thread(target=server.shutdown)
        signal.signal(signal.SIGTERM, lambda *_: stop.start())
        server.serve_forever()


own = Own()
own.load()
app = App()


@app.post("/")
def predict():
    return f"{ANSWER} {own.answer()} {len(LOADED)} {id(LOADED[0])}"


app.serve()
"""
PARTS = """
def shout(text):
    return text
"""


def service(name: str, **more: Any) -> str:
    container = {"name": "kserve-container", "image": IMAGE}
    return json.dumps(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": name},
            "spec": {"predictor": {"containers": [container], **more}},
        }
    )


def own_project(folder: Path) -> Path:
    """Write a project with one service, of the code above."""
    folder.mkdir(exist_ok=True)
    (folder / "server.py").write_text(SERVER)
    (folder / "parts.py").write_text(PARTS)
    (folder / "own.yaml").write_text(service("own"))
    images = {IMAGE: {"context": ".", "command": ["python", "server.py"]}}
    (folder / "kserve-local.yaml").write_text(json.dumps({"images": images}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("dev") / "project"
    sample("sklearn-iris", folder)
    own_project(folder)
    (folder / "train.py").write_text("print('trains')\n")
    with project(folder) as place:
        place.up()
        yield place


async def until(what: Callable[[], Any], *, why: str) -> None:
    """As `wait_until`, while requests go on."""
    await asyncio.to_thread(wait_until, what, why=why)


class Saves:
    """Saves files of a project and tells what became of it."""

    def __init__(self, world: Project) -> None:
        self.world = world

    def change(self, name: str, old: str, new: str) -> None:
        path = self.world.folder / name
        text = path.read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def write(self, name: str, text: str) -> None:
        """As most editors do: another file takes the place of the old one."""
        path = self.world.folder / name
        other = path.with_name(f".{path.name}.swp")
        other.write_text(text)
        other.replace(path)

    def activity(self) -> list[dict[str, Any]]:
        log = (self.world.state / "logs" / "supervisor.log").read_text()
        return [{"line": line} for line in log.splitlines() if "devloop.activity" in line]

    def warnings(self, name: str = "own") -> list[str]:
        found: list[str] = self.world.service(name)["warnings"]
        return found


@pytest.fixture
def saves(world: Project) -> Saves:
    """Every test begins with the code that is known, served."""
    one = Saves(world)
    one.write("parts.py", PARTS)
    one.write("server.py", SERVER)
    wait_until(lambda: answer(world).startswith("one first"), why="the first code serves")
    wait_until(lambda: not one.warnings(), why="nothing is broken")
    return one


def answer(world: Project) -> str:
    status, body = world.call("/v1/models/own:predict", {}, host=HOST)
    assert status == 200, body
    return str(body)


def pods(world: Project, name: str) -> set[str]:
    label = f"serving.kserve.io/inferenceservice={name}"
    items = json.loads(world.run("get", "pods", "-l", label, "-o", "json").stdout)["items"]
    return {p["metadata"]["name"] for p in items if "deletionTimestamp" not in p["metadata"]}


async def test_a_method_and_a_helper_are_replaced_in_place_and_what_is_loaded_stays(
    world: Project, saves: Saves
):
    before, replicas = answer(world), pods(world, "own")
    async with asking(world, HOST) as asked:
        saves.change("server.py", 'shout("first")', 'shout("second")')
        await asked.until(before.replace("first", "second"))
        saves.change("parts.py", "return text", "return text.upper()")
        await asked.until(before.replace("first", "SECOND"))
    assert asked.failures == []
    assert pods(world, "own") == replicas
    assert "CodeSwapped" in world.run("events").stdout


async def until_other(asked: Asked, begin: str, before: str) -> str:
    """Return the answer that begins so and comes from another process."""
    while not asked.last.startswith(begin) or asked.last.split()[-1] == before.split()[-1]:
        await asked.until_news()
    return asked.last


async def test_what_ran_when_the_code_was_loaded_needs_new_replicas(world: Project, saves: Saves):
    before, replicas = answer(world), pods(world, "own")
    async with asking(world, HOST) as asked:
        saves.change("server.py", 'ANSWER = "one"', 'ANSWER = "two"')
        await until_other(asked, "two first", before)
        await until(lambda: not pods(world, "own") & replicas, why="the old replicas have gone")
    assert asked.failures == []
    revisions = json.loads(world.run("get", "revisions", "-o", "json").stdout)["items"]
    names = [r["metadata"]["name"] for r in revisions]
    assert [n for n in names if n.startswith("own-")] == ["own-predictor-00001"]


@pytest.mark.parametrize(
    ("old", "new", "file_line_error"),
    [
        ("def answer(self):", "def answer(self:", "server.py:13: SyntaxError"),
        ('ANSWER = "one"', "import nowhere_to_be_found", "server.py:5: ModuleNotFoundError"),
        (
            "LOADED.append(object())",
            'raise ValueError("bad weights")',
            "server.py:11: ValueError: bad weights",
        ),
    ],
)
async def test_a_broken_save_changes_nothing_but_a_message(
    world: Project, saves: Saves, old: str, new: str, file_line_error: str
):
    before = answer(world)
    async with asking(world, HOST) as asked:
        saves.change("server.py", old, new)
        await until(lambda: any(file_line_error in w for w in saves.warnings()), why="it is told")
        assert answer(world) == before
        await until(lambda: file_line_error in world.run("events").stdout, why="an Event tells it")
        saves.change("server.py", new, old)
        await until(lambda: not saves.warnings(), why="it is mended")
        saves.change("server.py", 'shout("first")', 'shout("mended")')
        await until(lambda: "one mended" in answer(world), why="the mended code serves")
    assert asked.failures == []


async def test_a_file_that_is_emptied_is_half_saved(world: Project, saves: Saves):
    before = answer(world)
    (world.folder / "parts.py").write_text("")
    await until(
        lambda: any("parts.py:1: the file is empty" in w for w in saves.warnings()), why="told"
    )
    assert answer(world) == before


def test_a_file_that_nobody_imports_is_no_code(world: Project, saves: Saves):
    replicas, before = pods(world, "own"), len(saves.activity())
    saves.write("train.py", "print('trains otherwise'\n")
    saves.change("server.py", 'shout("first")', 'shout("after")')
    wait_until(lambda: "one after" in answer(world), why="the next save serves")
    assert pods(world, "own") == replicas
    new = [entry["line"] for entry in saves.activity()[before:]]
    assert not [line for line in new if "train.py" in line], new


async def test_a_saved_model_is_served_by_new_replicas(world: Project, saves: Saves):
    from sklearn.dummy import DummyClassifier

    host = "sklearn-iris.default.example.com"
    body = {"instances": [[6.8, 2.8, 4.8, 1.4]]}

    def predictions() -> Any:
        status, found = world.call("/v1/models/sklearn-iris:predict", body, host=host)
        assert status == 200, found
        return found["predictions"]

    model = world.folder / "model" / "model.joblib"
    first = model.read_bytes()
    expected = predictions()
    save_constant(model, DummyClassifier, 2)
    await until(lambda: predictions() == [2], why="the saved model serves")
    model.write_bytes(b"no model")
    await until(
        lambda: any("new model does not start" in w for w in saves.warnings("sklearn-iris")),
        why="the broken model is told",
    )
    assert predictions() == [2]
    model.write_bytes(first)
    await until(lambda: predictions() == expected, why="the first model serves again")
    await until(lambda: not saves.warnings("sklearn-iris"), why="the message is gone")


def save_constant(path: Path, classifier: Any, answer: int) -> None:
    import joblib

    model = classifier(strategy="constant", constant=answer)
    model.fit([[0.0] * 4] * 3, [0, 1, 2])
    joblib.dump(model, path)


def test_yaml_is_applied_whole_or_not_at_all(world: Project, saves: Saves):
    def there() -> set[str]:
        items = json.loads(world.run("get", "isvc", "-o", "json").stdout)["items"]
        return {item["metadata"]["name"] for item in items}

    two = f"{service('added')}\n---\n{service('second', minReplicas=0)}\n"
    saves.write("more.yaml", two)
    wait_until(lambda: {"added", "second"} <= there(), why="both are there")
    # One object of the file is refused: nothing of it changes.
    broken = two.replace('"minReplicas": 0', '"minReplicas": 1, "maxReplicas": "many"')
    saves.write("more.yaml", broken.replace('"added"', '"third"'))
    wait_until(lambda: problem(world, "more.yaml"), why="the refusal is told")
    assert "third" not in there()
    assert {"added", "second"} <= there()
    # Emptied is not deleted.
    (world.folder / "more.yaml").write_text("")
    wait_until(lambda: "empty" in problem(world, "more.yaml"), why="an empty file is told")
    assert {"added", "second"} <= there()
    saves.write("more.yaml", service("added"))
    wait_until(lambda: "second" not in there(), why="what the file holds no more is deleted")
    (world.folder / "more.yaml").unlink()
    wait_until(lambda: "added" not in there(), why="with the file its objects go")
    assert {"own", "sklearn-iris"} <= there()
    assert not problem(world, "more.yaml")


def problem(world: Project, file: str) -> str:
    found = world.json("status")["problems"]
    return "; ".join(p["message"] for p in found if p["file"] == file)


def test_what_came_by_kubectl_is_never_deleted(world: Project, saves: Saves, tmp_path: Path):
    (tmp_path / "theirs.yaml").write_text(service("theirs", minReplicas=0))
    (tmp_path / "kserve-local.yaml").write_text("")
    world.run("apply", "-f", str(tmp_path / "theirs.yaml"))
    saves.write("passing.yaml", service("passing", minReplicas=0))
    wait_until(lambda: world.run("get", "isvc", "passing", check=None).returncode == 0, why="there")
    (world.folder / "passing.yaml").unlink()
    wait_until(lambda: world.run("get", "isvc", "passing", check=None).returncode != 0, why="gone")
    assert world.run("get", "isvc", "theirs").returncode == 0
    world.run("delete", "isvc", "theirs")


def test_a_broken_configuration_changes_nothing_and_a_new_image_is_known_at_once(
    world: Project, saves: Saves
):
    path = world.folder / "kserve-local.yaml"
    good = path.read_text()
    saves.write("kserve-local.yaml", "imagez: {}\n")
    wait_until(lambda: "imagez" in problem(world, "kserve-local.yaml"), why="the key is told")
    assert answer(world)
    other = textwrap.dedent(SERVER).replace('ANSWER = "one"', 'ANSWER = "other"')
    (world.folder / "other").mkdir()
    (world.folder / "other" / "server.py").write_text(other)
    (world.folder / "other" / "parts.py").write_text(PARTS)
    images = json.loads(good)["images"]
    images["example/other:dev"] = {"context": "other", "command": ["python", "server.py"]}
    saves.write("kserve-local.yaml", json.dumps({"images": images}))
    saves.write("other.yaml", service("other").replace(IMAGE, "example/other:dev"))

    def others() -> str:
        host = "other.default.example.com"
        status, body = world.call("/v1/models/other:predict", {}, host=host)
        return str(body) if status == 200 else ""

    wait_until(lambda: others().startswith("other first"), why="the new image runs")
    saves.change("other/server.py", 'shout("first")', 'shout("edited")')
    wait_until(lambda: others().startswith("other edited"), why="its folder is watched")
    (world.folder / "other.yaml").unlink()
    wait_until(lambda: world.run("get", "isvc", "other", check=None).returncode != 0, why="gone")
    saves.write("kserve-local.yaml", good)
    wait_until(lambda: not problem(world, "kserve-local.yaml"), why="nothing is broken")


def test_without_watching_a_save_changes_nothing(tmp_path: Path):
    folder = own_project(tmp_path / "project")
    with project(folder) as place:
        place.up("--no-watch")
        before = answer(place)
        Saves(place).change("server.py", 'shout("first")', 'shout("second")')
        future = os.stat(folder / "server.py").st_mtime + 5
        os.utime(folder / "server.py", (future, future))
        wait_until(
            lambda: any("server.py changed after" in w for w in place.service("own")["warnings"]),
            why="status says that it is not served",
        )
        assert answer(place) == before


def test_what_was_saved_while_no_supervisor_ran_is_taken_over(tmp_path: Path):
    folder = own_project(tmp_path / "project")
    with project(folder) as place:
        place.up()
        before = answer(place)
        os.kill(place.run_file["pid"], signal.SIGKILL)
        assert answer(place) == before
        Saves(place).change("server.py", 'shout("first")', 'shout("second")')
        place.up()
        assert answer(place).startswith("one second")
        # Nothing was saved: who serves stays.
        os.kill(place.run_file["pid"], signal.SIGKILL)
        served = answer(place)
        place.up()
        Saves(place).change("server.py", 'shout("second")', 'shout("third")')
        wait_until(lambda: answer(place) == served.replace("second", "third"), why="swapped")


def test_a_checkout_of_hundreds_of_files_is_one_reload(tmp_path: Path):
    folder = own_project(tmp_path / "project")
    names = [f"part{n:03}" for n in range(200)]
    imports = "\n".join(f"import {name}" for name in names)
    (folder / "server.py").write_text(f"{imports}\n{SERVER}".replace('"one"', "part199.VALUE"))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def run(*args: str) -> None:
        subprocess.run([*git, *args], check=True, capture_output=True)

    run("init", "-b", "one")
    for branch in ("one", "two"):
        for name in names:
            (folder / f"{name}.py").write_text(f'VALUE = "{branch}"\n')
        run("add", ".")
        run("commit", "-m", branch)
    with project(folder) as place:
        place.up()
        assert answer(place).startswith("two first")
        run("checkout", "HEAD~1")
        wait_until(lambda: answer(place).startswith("one first"), why="the checkout serves")
        wait_until(lambda: len(pods(place, "own")) == 1, why="one replica is left")
        done = [entry["line"] for entry in Saves(place).activity()]
        assert sum("replacing:" in line for line in done) == 1, done
