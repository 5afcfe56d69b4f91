"""Seeded faults as a user meets them: one real project, its command line, its API, its gateway.

Each fault has a test: what the InferenceService's status says (KServe's reason, the field it stands
in, the last log lines, a next step), that `kserve-local status` says it too, and that a waiting
request is answered with the reason. The parts below have tests of their own, container by container
(test_node_agent_faults).
"""

from __future__ import annotations

import asyncio
import http.server
import json
import pickle
import shutil
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api import scheme
from kserve_local.api.meta import Object, get_condition
from kserve_local.client.client import Client
from tests.integration.project import IN_DOCKER, Project, of_processes, project, sample

GOOD = {"instances": [[6.8, 2.8, 4.8, 1.4]]}
SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps({"predictions": [WHO]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
    def log_message(self, *args):
        pass

def serve(port=8080):
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
"""
CODE = {
    "exits": "import sys\nprint('no licence found')\nsys.exit(1)\n",
    "imports": "import kserve_missing_package\n",
    "eats": """
        import time
        held = []
        while True:
            held.append(bytearray(b"x" * (8 << 20)))
            time.sleep(0.01)
        """,
    "serves": SERVER + "\nWHO = 'serves'\nserve()\n",
    "second": SERVER + "\nimport time\nWHO = 'second'\ntime.sleep(1.5)\nserve()\n",
    "strict": """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--threshold", type=float)
        parser.parse_args()
        """,
    "aborts": "import os\nprint('a check failed')\nos.abort()\n",
    "wrongport": SERVER + "\nWHO = 'wrongport'\nserve(9999)\n",
    "hangs": "import time\ntime.sleep(3600)  # a load() that never returns\n",
    "slow": SERVER
    + textwrap.dedent(
        """
        import os, pathlib, time
        while not pathlib.Path("loaded").exists():  # what a big model takes, under our control
            time.sleep(0.05)
        WHO = "slow"
        serve()
        """
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """One project with a service that works; every test adds its own."""
    folder = sample("sklearn-iris", tmp_path_factory.mktemp("faults") / "project")
    code = folder / "code"
    code.mkdir()
    for name, text in CODE.items():
        (code / f"{name}.py").write_text(textwrap.dedent(text))
    images = {
        f"{name}:dev": {"context": "./code", "command": ["python", f"{name}.py"]} for name in CODE
    }
    images["nopython:dev"] = {"context": "./code", "command": ["/no/python3", "serves.py"]}
    config = {"resources": ["manifest.yaml"], "images": images}
    (folder / "kserve-local.yaml").write_text(json.dumps(config))
    for name, fill in MODELS.items():
        (folder / name).mkdir()
        fill(folder / name, folder / "model" / "model.joblib")
    with project(folder) as p:
        p.up()
        yield p


MODELS: dict[str, Callable[[Path, Path], Any]] = {
    "garbage": lambda at, good: (at / "model.joblib").write_bytes(b"\x80\x04not a pickle"),
    "several": lambda at, good: [shutil.copy(good, at / f"{x}.joblib") for x in "ab"],
    "foreign": lambda at, good: (at / "model.pkl").write_bytes(
        pickle.dumps(time.sleep, protocol=0).replace(b"time", b"catboost_")
    ),
}


class World:
    """The API of the running project, and what the tests ask of it."""

    def __init__(self, place: Project, client: Client) -> None:
        self.project = place
        self.client = client
        self.history: list[Object] = []

    async def apply(self, name: str, predictor: dict[str, Any]) -> None:
        await self.client.apply(
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"predictor": predictor},
            }
        )

    async def until(self, name: str, holds: Callable[[Object], Any]) -> Object:
        """Return the InferenceService as soon as it is as wanted; remember how it got there."""
        self.history = []
        try:
            async with asyncio.timeout(90):
                changes = self.client.watch(
                    scheme.INFERENCE_SERVICE, fields=f"metadata.name={name}"
                )
                async with aclosing(changes):
                    async for change in changes:
                        self.history.append(change.object)
                        if holds(change.object):
                            return change.object
        except TimeoutError:
            last = self.history[-1].get("status") if self.history else None
            raise AssertionError(f"{name} never so; last seen {last}") from None
        raise AssertionError("the watch ended")

    async def fault(self, name: str) -> tuple[Object, dict[str, Any]]:
        """Return the service and its failure as soon as the status tells one."""
        isvc = await self.until(name, failure_of)
        found = failure_of(isvc)
        assert found is not None
        return isvc, found

    async def until_event(self, name: str, reason: str) -> str:
        """Return the message of the service's Event with this reason."""
        changes = self.client.watch(
            scheme.EVENT, fields=f"involvedObject.name={name},reason={reason}"
        )
        async with asyncio.timeout(60), aclosing(changes):
            async for change in changes:
                return str(change.object["message"])
        raise AssertionError("the watch ended")


@pytest.fixture
async def world(place: Project) -> AsyncIterator[World]:
    async with Client.from_kubeconfig(place.state / "kubeconfig") as client:
        yield World(place, client)
        for isvc in await client.list(scheme.INFERENCE_SERVICE, namespace="default"):
            if isvc["metadata"]["name"] != "sklearn-iris":
                await client.delete(scheme.INFERENCE_SERVICE, isvc["metadata"]["name"], "default")


def model_status(isvc: Object) -> dict[str, Any]:
    return (isvc.get("status") or {}).get("modelStatus") or {}


def failure_of(isvc: Object) -> dict[str, Any] | None:
    return model_status(isvc).get("lastFailureInfo")


def condition(isvc: Object, type_: str) -> tuple[str, str, str]:
    found = get_condition(isvc, type_) or {}
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def is_ready(isvc: Object) -> bool:
    return condition(isvc, "Ready")[0] == "True"


def next_step(message: str) -> str:
    last = message.splitlines()[-1]
    assert last.startswith("Next step: "), message
    return last.removeprefix("Next step: ")


def sklearn(uri: str, **more: Any) -> dict[str, Any]:
    return {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": uri, **more}}


def custom(image: str, **more: Any) -> dict[str, Any]:
    return {"containers": [{"name": "kserve-container", "image": f"{image}:dev", **more}]}


async def told_everywhere(world: World, name: str, isvc: Object, *words: str) -> None:
    """The status, `kserve-local status` and the answer to a request say the same."""
    assert model_status(isvc)["transitionStatus"] in ("BlockedByFailedLoad", "InvalidSpec")
    assert model_status(isvc)["states"]["targetModelState"] == "FailedToLoad"
    service = await asyncio.to_thread(world.project.service, name)
    assert service["ready"] is False
    status, body = await asyncio.to_thread(
        world.project.call, f"/serving/default/{name}/v1/models/{name}:predict", GOOD
    )
    assert status == 503
    for word in words:
        assert word in service["message"]
        assert word in str(body)


async def test_missing_file(world: World) -> None:
    """As in KServe's own status for it: the conditions wait, the model status tells."""
    await world.apply("missing", sklearn("./no-such-model"))
    isvc, info = await world.fault("missing")
    assert (info["reason"], info["exitCode"]) == ("ModelLoadFailed", 1)
    assert "./no-such-model" in info["message"]
    assert next_step(info["message"])
    waiting = 'Configuration "missing-predictor" is waiting for a Revision to become ready.'
    assert condition(isvc, "PredictorReady") == ("Unknown", "RevisionMissing", waiting)
    assert condition(isvc, "Ready")[:2] == ("Unknown", "Predictor ingress not created")
    assert "url" not in isvc["status"]
    await told_everywhere(world, "missing", isvc, "./no-such-model")
    assert "./no-such-model" in await world.until_event("missing", "ModelLoadFailed")


@pytest.mark.parametrize(
    ("folder", "log", "step"),
    [
        ("garbage", "model.joblib could not be loaded", "save the model again"),
        ("several", "More than one model file is detected", "several model files"),
        ("foreign", "No module named 'catboost_'", "requirements"),
    ],
)
async def test_a_model_that_does_not_load(world: World, folder: str, log: str, step: str) -> None:
    """Unreadable pickle, several model files, a package that the model needs."""
    await world.apply(folder, sklearn(f"./{folder}"))
    isvc, info = await world.fault(folder)
    assert (info["reason"], info["exitCode"]) == ("ModelLoadFailed", 1)
    assert log in info["message"]
    assert step in next_step(info["message"])
    await told_everywhere(world, folder, isvc, log)
    isvc = await world.until(folder, lambda o: condition(o, "PredictorReady")[0] == "False")
    status, reason, message = condition(isvc, "PredictorConfigurationReady")
    assert (status, reason) == ("False", "RevisionFailed")
    assert message.startswith(f'Revision "{folder}-predictor-00001" failed with message: Container')
    none = f'Configuration "{folder}-predictor" does not have any ready Revision.'
    assert condition(isvc, "PredictorReady") == ("False", "RevisionMissing", none)
    assert condition(isvc, "Ready")[:2] == ("False", "Predictor ingress not created")


# The first process of a container has no default handler to die of SIGABRT by.
ABORTS = (
    ("aborts", {}, 139, "killed by SIGSEGV", "PYTHONFAULTHANDLER")
    if IN_DOCKER
    else ("aborts", {}, 134, "killed by SIGABRT", "aborted itself")
)


@pytest.mark.parametrize(
    ("image", "more", "code", "log", "step"),
    [
        ("exits", {}, 1, "no licence found", "read its log"),
        ABORTS,
        ("imports", {}, 1, "No module named 'kserve_missing_package'", "requirements"),
        ("strict", {"args": ["--treshold=1"]}, 2, "unrecognized arguments: --treshold=1", "args"),
        (
            "eats",
            {"resources": {"limits": {"memory": "150Mi"}, "requests": {"memory": "100Mi"}}},
            137,
            "OOMKilled",
            "raise resources.limits.memory (now 150 Mi)",
        ),
    ],
)
async def test_code_that_does_not_start(
    world: World, image: str, more: dict[str, Any], code: int, log: str, step: str
) -> None:
    """Exit 1 at start, abort, missing package, bad argument, killed by memory."""
    await world.apply(image, custom(image, **more))
    isvc, info = await world.fault(image)
    assert (info["reason"], info["exitCode"]) == ("ModelLoadFailed", code)
    assert step in next_step(info["message"])
    if log != "OOMKilled":  # that one is a reason of the Pod's, not a line of the log
        assert log in info["message"]
    await told_everywhere(world, image, isvc, step)
    revision = await world.client.get(scheme.REVISION, f"{image}-predictor-00001", "default")
    assert (get_condition(revision, "ContainerHealthy") or {})["reason"] == f"ExitCode{code}"
    (pod,) = await world.client.list(
        scheme.POD, namespace="default", labels=f"serving.kserve.io/inferenceservice={image}"
    )
    status = pod["status"]["containerStatuses"][0]
    ended = status["state"].get("terminated") or status["lastState"]["terminated"]
    assert ended["exitCode"] == code
    assert ended["reason"] == ("OOMKilled" if code == 137 else "Error")


@of_processes
async def test_an_interpreter_that_does_not_exist(world: World) -> None:
    """A path in `images` is taken as it is: another Python must not run in its place."""
    await world.apply("nopython", custom("nopython"))
    isvc, info = await world.fault("nopython")
    assert (info["reason"], info["exitCode"]) == ("ModelLoadFailed", 128)
    assert 'exec: "/no/python3": no such file or directory' in info["message"]
    assert 'images."nopython:dev".command: /no/python3' in next_step(info["message"])
    await told_everywhere(world, "nopython", isvc, "no such file or directory")


async def test_every_restart_tells_its_last_log_lines(world: World) -> None:
    """Also the second end of a container says why, and the status shows the newest one."""
    await world.apply("exits", custom("exits"))
    pods = world.client.watch(
        scheme.POD, labels="serving.kserve.io/inferenceservice=exits", namespace="default"
    )
    ended = None
    async with asyncio.timeout(60), aclosing(pods):
        async for change in pods:
            status = (change.object["status"].get("containerStatuses") or [{}])[0]
            if status.get("restartCount", 0) >= 1 and "running" not in status["state"]:
                ended = status["state"].get("terminated") or status["lastState"]["terminated"]
                break
    assert ended is not None
    assert ended["exitCode"] == 1
    assert ended["message"].startswith("no licence found\n")
    assert next_step(ended["message"])
    _, info = await world.fault("exits")
    assert info["message"].startswith("no licence found\n")


async def test_bad_argument_of_a_model_server(world: World) -> None:
    await world.apply("argument", sklearn("./model", args=["--http_port=eighty"]))
    isvc, info = await world.fault("argument")
    assert (info["reason"], info["exitCode"]) == ("ModelLoadFailed", 2)
    assert "argument --http_port: invalid int value: 'eighty'" in next_step(info["message"])
    await told_everywhere(world, "argument", isvc, "invalid int value: 'eighty'")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("wrongport", "Nothing listens on port 8080; the process listens on 9999."),
        ("hangs", "The process listens on no port yet; it may still load."),
    ],
)
async def test_a_server_that_never_becomes_ready(world: World, image: str, said: str) -> None:
    """The Pod's Event is the kubelet's, and says what the process does instead."""
    await world.apply(image, custom(image))
    changes = world.client.watch(scheme.EVENT, fields="reason=Unhealthy,involvedObject.kind=Pod")
    found = None
    async with asyncio.timeout(60), aclosing(changes):
        async for change in changes:
            if change.object["involvedObject"]["name"].startswith(f"{image}-predictor-"):
                found = change.object
                break
    assert found is not None
    assert found["type"] == "Warning"
    first, *where, second, third = found["message"].splitlines()
    # Only code that is in a call of its own is somewhere; a server that waits is not.
    there = ["MainThread is in hangs.py, line 2, module level."] if image == "hangs" else []
    assert where == there
    assert first.startswith("Readiness probe failed: dial tcp ")
    assert first.endswith(":8080: connect: connection refused")
    assert second == said
    assert third.startswith("Next step: ")
    pod = await world.client.get(scheme.POD, found["involvedObject"]["name"], "default")
    ready = get_condition(pod, "Ready") or {}
    assert ready["message"] == "containers with unready status: [kserve-container]"


async def test_a_model_folder_that_is_empty(world: World) -> None:
    """The server may become Ready without a model; the warning stands at the service."""
    (world.project.folder / "hollow").mkdir()
    env = [{"name": "STORAGE_URI", "value": "./hollow"}]
    await world.apply("hollow", custom("serves", env=env))
    await world.until("hollow", is_ready)
    said = "storageUri ./hollow holds no files: there is no model to serve"
    assert (await world.until_event("hollow", "EmptyModel")).startswith(said)
    (pod,) = await world.client.list(
        scheme.POD, namespace="default", labels="serving.kserve.io/inferenceservice=hollow"
    )
    assert pod["metadata"]["annotations"]["kserve-local.dev/empty-model"] == "./hollow"


@of_processes
async def test_port_taken(world: World) -> None:
    """Two containers of one Pod share its address; the second one cannot have the port."""
    predictor = custom("serves", ports=[{"containerPort": 8080}])
    predictor["containers"].append({"name": "second", "image": "second:dev"})
    await world.apply("port", predictor)
    isvc, info = await world.fault("port")
    assert info["reason"] == "ModelLoadFailed"
    assert "the port it wants to listen on is taken" in next_step(info["message"])
    assert "held by pid" in next_step(info["message"])
    assert model_status(isvc)["states"]["targetModelState"] == "FailedToLoad"


async def test_unknown_runtime(world: World) -> None:
    """No condition says it (control-plane.md 3.3); the model status and an Event do."""
    await world.apply("runtime", sklearn("./model", runtime="kserve-sklearnservr"))
    isvc, info = await world.fault("runtime")
    first, step = info["message"].split("\n")
    assert (info["reason"], first) == (
        "RuntimeNotRecognized",
        "Waiting for runtime to become available",
    )
    assert 'did you mean "kserve-sklearnserver"?' in step
    assert "exitCode" not in info
    assert model_status(isvc)["transitionStatus"] == "InvalidSpec"
    assert {c: condition(isvc, c)[:2] for c in ("Ready", "PredictorReady", "IngressReady")} == {
        "Ready": ("Unknown", ""),
        "PredictorReady": ("Unknown", ""),
        "IngressReady": ("Unknown", ""),
    }
    await told_everywhere(world, "runtime", isvc, "Waiting for runtime to become available")
    assert await world.until_event("runtime", "InternalError") == (
        "No ServingRuntimes or ClusterServingRuntimes with the name: kserve-sklearnservr"
    )


@contextmanager
def storage_server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server that answers `/<code>/...` with that code until a path is put into `files`."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path)
            code = 200 if body is not None else int(self.path.split("/")[1])
            self.send_response(code)
            self.send_header("content-type", "application/octet-stream")
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", files
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("code", [403, 404])
async def test_storage_refuses_and_then_gives(world: World, code: int) -> None:
    """What the storage answered is in the status; when it has the model, the service comes up."""
    name = f"storage{code}"
    model = (world.project.folder / "model" / "model.joblib").read_bytes()
    with storage_server() as (url, files):
        uri = f"{url}/{code}/model.joblib"
        await world.apply(name, sklearn(uri))
        isvc, info = await world.fault(name)
        assert (info["reason"], info["exitCode"]) == ("ModelLoadFailed", 1)
        assert str(code) in info["message"]
        assert uri in info["message"]
        assert next_step(info["message"])
        assert condition(isvc, "PredictorReady")[:2] == ("Unknown", "RevisionMissing")
        await told_everywhere(world, name, isvc, str(code))
        files[f"/{code}/model.joblib"] = model
        isvc = await world.until(
            name, lambda o: model_status(o).get("transitionStatus") == "UpToDate"
        )
    assert is_ready(isvc)
    assert failure_of(isvc) == info  # KServe does not clear it
    assert (await asyncio.to_thread(world.project.service, name))["message"] == ""


@of_processes
async def test_slow_load_is_no_fault(world: World) -> None:
    """While a model loads nothing is False, and a request waits for it."""
    await world.apply("slow", custom("slow"))
    await world.until(
        "slow", lambda o: model_status(o).get("transitionStatus") == "InProgress" and o["status"]
    )
    answer = asyncio.create_task(
        asyncio.to_thread(world.project.call, "/serving/default/slow/v1/models/slow:predict", GOOD)
    )
    pods = world.client.watch(
        scheme.POD, labels="serving.kserve.io/inferenceservice=slow", namespace="default"
    )
    async with asyncio.timeout(60), aclosing(pods):
        async for change in pods:
            states = change.object["status"].get("containerStatuses") or [{}]
            if "running" in states[0].get("state", {}):
                break
    isvc = await world.client.get(scheme.INFERENCE_SERVICE, "slow", "default")
    assert condition(isvc, "Ready")[0] == "Unknown"
    assert model_status(isvc)["states"]["targetModelState"] in ("Pending", "Loading")
    assert not answer.done()
    (world.project.folder / "code" / "loaded").touch()
    isvc = await world.until("slow", is_ready)
    assert await answer == (200, {"predictions": ["slow"]})
    assert all(condition(o, "PredictorReady")[0] != "False" for o in world.history)
    assert failure_of(isvc) is None


async def test_a_service_recovers_when_the_fault_is_gone(world: World) -> None:
    """The files appear where they were missed; nothing has to be applied again."""
    await world.apply("recovers", sklearn("./late"))
    _, info = await world.fault("recovers")
    assert "./late" in info["message"]
    late = world.project.folder / "late"
    late.mkdir()
    shutil.copy(world.project.folder / "model" / "model.joblib", late / "model.joblib")
    isvc = await world.until("recovers", is_ready)
    assert isvc["status"]["url"] == "http://recovers.default.example.com"
    status, body = await asyncio.to_thread(
        world.project.call, "/serving/default/recovers/v1/models/recovers:predict", GOOD
    )
    assert (status, body) == (200, {"predictions": [1]})


async def test_an_update_that_fails_leaves_the_old_revision_serving(world: World) -> None:
    """Not one request of a small load fails, before, during and after the failed update."""
    await world.apply("updated", sklearn("./model"))
    await world.until("updated", lambda o: model_status(o).get("transitionStatus") == "UpToDate")
    answers: list[tuple[int, Any]] = []
    answered = asyncio.Semaphore(0)
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            path = "/serving/default/updated/v1/models/updated:predict"
            answers.append(await asyncio.to_thread(world.project.call, path, GOOD))
            answered.release()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(load())
        await world.apply("updated", sklearn("./garbage"))
        isvc = await world.until("updated", lambda o: condition(o, "Ready")[0] == "False")
        while not answered.locked():
            await answered.acquire()
        for _ in range(20):
            await answered.acquire()
        done.set()
    assert {status for status, _ in answers} == {200}
    predictor = isvc["status"]["components"]["predictor"]
    assert predictor["latestCreatedRevision"] == "updated-predictor-00002"
    assert predictor["latestReadyRevision"] == "updated-predictor-00001"
    assert [(t["revisionName"], t["percent"]) for t in predictor["traffic"]] == [
        ("updated-predictor-00001", 100)
    ]
    states = model_status(isvc)["states"]
    assert states == {"activeModelState": "Loaded", "targetModelState": "FailedToLoad"}
    assert condition(isvc, "IngressReady")[0] == "True"
    assert condition(isvc, "PredictorReady")[:2] == ("False", "RevisionFailed")
    assert isvc["status"]["url"] == "http://updated.default.example.com"
    assert "not a pickle" not in str(isvc["status"]["address"])

    await world.apply("updated", sklearn("./model", args=["--workers=1"]))
    isvc = await world.until(
        "updated",
        lambda o: (
            is_ready(o)
            and o["status"]["components"]["predictor"]["latestReadyRevision"].endswith("3")
        ),
    )
    assert isvc["status"]["components"]["predictor"]["latestRolledoutRevision"].endswith("3")
