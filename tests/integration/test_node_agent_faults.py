"""Seeded faults with real processes and real storage: what a Pod's status says, and how soon.

The chain above (KServe's `lastFailureInfo`, Events, the gateway's answer) only passes on what is
asserted here: container state, exit code, reason, and the message with log tail and next step.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from kserve_local.aio import running as keep_running
from kserve_local.api.meta import Key, Object, get_condition, parse_timestamp
from kserve_local.backends.process import ProcessBackend
from kserve_local.controllers.addresses import AddressPool
from kserve_local.controllers.endpoints import endpoint_of
from kserve_local.controllers.environment import NodeFacts
from kserve_local.controllers.pod import NodeAgent
from kserve_local.controllers.pod_containers import Interpreter
from kserve_local.interfaces.routing import Endpoint
from kserve_local.interfaces.storage import StorageInitializer
from kserve_local.reconcile.controller import Engine
from kserve_local.settings import ImageSource, Settings
from kserve_local.storage.initializer import Initializer
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, open_store

ROOT = Path(__file__).parents[2]
IRIS = ROOT / "sample_models" / "sklearn-iris" / "model"
NODE = NodeFacts("kserve-local", "127.0.0.1", "", cpu=2.0, memory_bytes=8 << 30)
SERVER_ARGS = ["--model_name=iris", "--model_dir=/mnt/models", "--http_port=8080"]


def pod_of(
    uri: str = "model", *, image: str = "kserve/sklearnserver:v0.20.0", **container: Any
) -> Object:
    """Return a Pod of KServe's shape; a relative `uri` starts at the project folder."""
    volume = "kserve-provision-location"
    mount = {"name": volume, "mountPath": "/mnt/models"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "iris", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "initContainers": [
                {
                    "name": "storage-initializer",
                    "image": "kserve/storage-initializer:v0.20.0",
                    "args": [uri, "/mnt/models"],
                    "volumeMounts": [mount],
                }
            ],
            "containers": [
                {
                    "name": "kserve-container",
                    "image": image,
                    "args": SERVER_ARGS,
                    "volumeMounts": [{**mount, "readOnly": True}],
                    **container,
                }
            ],
            "volumes": [{"name": volume, "emptyDir": {}}],
        },
    }


@dataclass
class World:
    store: Store
    backend: ProcessBackend
    settings: Settings

    async def until(self, holds: Callable[[Object], Any]) -> Object:
        """Return the Pod as soon as it is as wanted."""
        last: Object = {}
        try:
            async with asyncio.timeout(60), self.store.watch("pods") as events:
                async for event in events:
                    last = event.object
                    if holds(last):
                        return last
        except TimeoutError:
            raise AssertionError(f"never so; last seen {last.get('status')}") from None
        raise AssertionError("the watch ended")

    async def ended(self, *, init: bool = False) -> dict[str, Any]:
        """Return the first termination that the Pod's status shows."""
        pod = await self.until(lambda p: termination(p, init=init))
        found = termination(pod, init=init)
        assert found is not None
        return found

    def source(self, name: str) -> str:
        return (self.settings.project / name).read_text()

    def write(self, name: str, text: str) -> Path:
        path = self.settings.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path


def termination(pod: Object, *, init: bool = False) -> dict[str, Any] | None:
    field = "initContainerStatuses" if init else "containerStatuses"
    for status in (pod.get("status") or {}).get(field) or ():
        for state in ("state", "lastState"):
            found = (status.get(state) or {}).get("terminated")
            if found and found.get("reason") != "Completed":
                return dict(found)
    return None


def is_ready(pod: Object) -> bool:
    condition = get_condition(pod, "Ready")
    return condition is not None and condition["status"] == "True"


def next_step(message: str) -> str:
    last = message.splitlines()[-1]
    assert last.startswith("Next step: "), message
    return last.removeprefix("Next step: ")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    project = tmp_path / "project"
    state = project / ".kserve-local"
    runtime = tmp_path / "s"
    for folder in (state, runtime, project / "model"):
        folder.mkdir(parents=True)
    return Settings(
        project=project,
        state=state,
        cache=tmp_path / "cache",
        runtime=runtime,
        images={"custom:dev": ImageSource(project, ("python", "model.py"))},
    )


@asynccontextmanager
async def world_of(
    settings: Settings,
    storage: StorageInitializer | None = None,
    *,
    own_addresses: bool = sys.platform == "linux",
) -> AsyncIterator[World]:
    storage = storage or Initializer(cache=settings.cache, project=settings.project)
    async with open_store(settings.database) as store:
        backend = await ProcessBackend.open(settings)
        addresses = AddressPool(settings.state, settings.cache, enabled=own_addresses)
        agent = NodeAgent(
            store,
            backend,
            storage,
            EventRecorder(store),
            settings,
            addresses,
            Interpreter(Path(sys.executable), has_kserve=False),
            node=NODE,
        )
        engine = Engine(store, [agent])
        try:
            async with (
                keep_running(agent.run(), name="agent"),
                keep_running(engine.run(), name="engine"),
            ):
                yield World(store, backend, settings)
        finally:
            await backend.close(stop_replicas=True)
            addresses.close(give_up=True)


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    async with world_of(settings) as world:
        yield world


async def test_the_iris_model_serves_at_the_pods_own_address(world: World) -> None:
    (world.settings.project / "model" / "model.joblib").write_bytes(
        (IRIS / "model.joblib").read_bytes()
    )
    await world.store.create(pod_of())
    pod = await world.until(is_ready)
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"http://{pod['status']['podIP']}:8080/v1/models/iris:predict",
            json={"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]},
        )
    assert answer.json() == {"predictions": [1, 1]}
    await world.store.delete(Key("pods", "default", "iris"))
    await world.until(lambda p: p["metadata"].get("deletionTimestamp"))
    async with asyncio.timeout(20), world.store.watch("pods") as events:
        if world.store.find(Key("pods", "default", "iris")) is not None:
            async for event in events:
                if event.type == "DELETED":
                    break
    assert await world.backend.list() == []


async def test_missing_file(world: World) -> None:
    """A storageUri that names nothing fails in the init container."""
    await world.store.create(pod_of("no/such/model"))
    ended = await world.ended(init=True)
    assert (ended["exitCode"], ended["reason"]) == (1, "Error")
    assert "no/such/model" in ended["message"]


async def test_unreadable_pickle(world: World) -> None:
    (world.settings.project / "model" / "model.joblib").write_bytes(b"\x80\x04not a pickle")
    await world.store.create(pod_of())
    ended = await world.ended()
    assert (ended["exitCode"], ended["reason"]) == (1, "Error")
    assert "model.joblib could not be loaded" in ended["message"]
    assert "save the model again" in next_step(ended["message"])


async def test_several_model_files(world: World) -> None:
    for name in ("a.joblib", "b.joblib"):
        (world.settings.project / "model" / name).write_bytes((IRIS / "model.joblib").read_bytes())
    await world.store.create(pod_of())
    ended = await world.ended()
    assert "More than one model file is detected" in ended["message"]
    assert "several model files" in next_step(ended["message"])


async def test_a_pickle_whose_package_is_missing(world: World) -> None:
    """The module that the pickle needs is not there."""
    content = pickle.dumps(time.sleep, protocol=0).replace(b"time", b"catboost_")
    (world.settings.project / "model" / "model.pkl").write_bytes(content)
    await world.store.create(pod_of())
    ended = await world.ended()
    assert "No module named 'catboost_'" in ended["message"]
    assert "requirements" in next_step(ended["message"])


async def test_missing_package_in_custom_code(world: World) -> None:
    world.write("model.py", "import kserve_missing_package\n")
    await world.store.create(pod_of(image="custom:dev", args=[]))
    ended = await world.ended()
    assert (ended["exitCode"], ended["reason"]) == (1, "Error")
    step = next_step(ended["message"])
    assert "`kserve_missing_package`" in step
    assert 'images."custom:dev".requirements' in step


async def test_exit_1_at_start(world: World) -> None:
    world.write("model.py", "import sys\nprint('no licence found')\nsys.exit(1)\n")
    await world.store.create(pod_of(image="custom:dev", args=[]))
    ended = await world.ended()
    assert (ended["exitCode"], ended["reason"]) == (1, "Error")
    assert ended["message"].startswith("no licence found\n")


async def test_the_status_says_why_before_anything_is_tried_again(world: World) -> None:
    """What ended shows as `state.terminated` first; a restart hides it in `lastState`."""
    world.write("model.py", "raise SystemExit('no licence')\n")
    await world.store.create(pod_of(image="custom:dev", args=[]))
    pod = await world.until(termination)
    status = pod["status"]["containerStatuses"][0]
    assert status["restartCount"] == 0
    assert status["state"]["terminated"]["message"].startswith("no licence")
    assert status["lastState"] == {}


async def test_killed_for_memory(world: World) -> None:
    """A container that really allocates past its limit."""
    world.write(
        "model.py",
        """
        import time
        held = []
        while True:
            held.append(bytearray(b"x" * (8 << 20)))
            time.sleep(0.01)
        """,
    )
    limits = {"limits": {"memory": "150Mi"}}
    await world.store.create(pod_of(image="custom:dev", args=[], resources=limits))
    ended = await world.ended()
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    assert next_step(ended["message"]) == (
        "it needs more memory than it may use: raise resources.limits.memory (now 150 Mi)"
    )


async def test_port_taken_names_the_holder(world: World) -> None:
    """Two containers of one Pod share its address, as on a cluster."""
    world.write(
        "model.py",
        """
        import http.server
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
        http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
        """,
    )
    world.write("second.py", "import time\ntime.sleep(2)\n" + world.source("model.py"))
    pod = pod_of(image="custom:dev", args=[])
    first = pod["spec"]["containers"][0]
    second = {"name": "second", "image": "custom:dev", "command": ["python", "second.py"]}
    pod["spec"]["containers"] = [second, first]
    await world.store.create(pod)
    ended = await world.ended()
    step = next_step(ended["message"])
    assert "the port it wants to listen on is taken" in step
    assert "held by pid" in step


async def test_bad_argument_value(world: World) -> None:
    """KServe's servers ignore flags they do not know, and refuse values they cannot read."""
    await world.store.create(pod_of(args=[*SERVER_ARGS, "--http_port=eighty"]))
    ended = await world.ended()
    assert ended["exitCode"] == 2
    assert "invalid int value: 'eighty'" in next_step(ended["message"])


async def test_unknown_argument_of_strict_custom_code(world: World) -> None:
    world.write(
        "model.py",
        """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--threshold", type=float)
        parser.parse_args()
        """,
    )
    await world.store.create(pod_of(image="custom:dev", args=["--treshold=1"]))
    ended = await world.ended()
    assert ended["exitCode"] == 2
    assert "`--treshold=1`" in next_step(ended["message"])


async def test_slow_load_is_no_fault(world: World) -> None:
    """While a model loads the Pod is running and not ready, and nothing is restarted."""
    world.write(
        "model.py",
        """
        import http.server, os, time
        time.sleep(1.5)
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
            def log_message(self, *args):
                pass
        http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
        """,
    )
    await world.store.create(pod_of(image="custom:dev", args=[]))
    pod = await world.until(
        lambda p: "running" in ((p["status"].get("containerStatuses") or [{}])[0].get("state", {}))
    )
    assert not is_ready(pod)
    pod = await world.until(is_ready)
    status = pod["status"]["containerStatuses"][0]
    assert status["restartCount"] == 0
    started = parse_timestamp(status["state"]["running"]["startedAt"])
    assert started <= parse_timestamp(pod["status"]["conditions"][2]["lastTransitionTime"])


async def test_a_failed_liveness_probe_restarts_the_container(world: World) -> None:
    """A server that stops answering is killed and comes back."""
    world.write(
        "model.py",
        """
        import http.server, pathlib
        first = not pathlib.Path("again").exists()
        pathlib.Path("again").touch()
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(500 if first and self.path == "/live" else 200)
                self.end_headers()
            def log_message(self, *args):
                pass
        http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
        """,
    )
    probe = {
        "httpGet": {"path": "/live", "port": 8080},
        "periodSeconds": 1,
        "failureThreshold": 1,
        "initialDelaySeconds": 1,
    }
    await world.store.create(pod_of(image="custom:dev", args=[], livenessProbe=probe))
    pod = await world.until(
        lambda p: is_ready(p) and p["status"]["containerStatuses"][0]["restartCount"] == 1
    )
    reasons = {e["reason"] for e in world.store.list("events")}
    assert {"Unhealthy", "Killing"} <= reasons
    assert pod["status"]["phase"] == "Running"
    ended = pod["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert "its liveness probe failed" in ended["message"]
    assert "Next step: see the Events Unhealthy" in ended["message"]


async def test_serving_goes_on_without_the_supervisor(settings: Settings) -> None:
    """A new agent adopts the process: same pid, no restart."""
    (settings.project / "model" / "model.joblib").write_bytes((IRIS / "model.joblib").read_bytes())
    async with open_store(settings.database) as store:
        first = await ProcessBackend.open(settings)
        addresses = AddressPool(settings.state, settings.cache)
        storage = Initializer(cache=settings.cache, project=settings.project)
        agent = NodeAgent(
            store,
            first,
            storage,
            EventRecorder(store),
            settings,
            addresses,
            Interpreter(Path(sys.executable), has_kserve=False),
            node=NODE,
        )
        async with (
            keep_running(agent.run(), name="agent"),
            keep_running(Engine(store, [agent]).run(), name="engine"),
        ):
            await store.create(pod_of())
            before = await World(store, first, settings).until(is_ready)
        await first.close(stop_replicas=False)
        addresses.close()
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://{before['status']['podIP']}:8080/v1/models/iris")
    assert answer.status_code == 200
    async with world_of(replace(settings)) as world:
        after = await world.until(is_ready)
        ids = [p["status"]["containerStatuses"][0]["containerID"] for p in (before, after)]
        assert ids[0] == ids[1]
        assert after["status"]["podIP"] == before["status"]["podIP"]
        assert after["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_without_own_addresses_the_real_ports_are_written_down(settings: Settings) -> None:
    """Where Pods share an address, what routes to them reads the port from the annotation."""
    (settings.project / "model" / "model.joblib").write_bytes((IRIS / "model.joblib").read_bytes())
    async with world_of(settings, own_addresses=False) as world:
        await world.store.create(pod_of())
        pod = await world.until(is_ready)
        ports = json.loads(pod["metadata"]["annotations"]["kserve-local.dev/ports"])
        endpoint = endpoint_of(pod)
        assert endpoint == Endpoint(pod="iris", address="127.0.0.1", port=ports["8080"])
        assert endpoint.port != 8080
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{endpoint.port}/v1/models/iris")
        assert answer.json() == {"name": "iris", "ready": True}
