"""Seeded faults through the whole chain: what the InferenceService's status says.

Real store, controllers, node agent, processes and storage; only the gateway is left out. Every
fault is told in `modelStatus` with reason, exit code, the last log lines and a next step.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kserve_local.aio import running as keep_running
from kserve_local.api import builtin
from kserve_local.api.config import parse
from kserve_local.api.meta import Key, Object, get_condition
from kserve_local.backends.process import ProcessBackend
from kserve_local.controllers import pod_mutators
from kserve_local.controllers.addresses import AddressPool
from kserve_local.controllers.chain import ChainSettings, ensure_local_gateway, knative_chain
from kserve_local.controllers.environment import NodeFacts
from kserve_local.controllers.pod import NodeAgent
from kserve_local.controllers.pod_containers import Interpreter
from kserve_local.errors import AlreadyExists
from kserve_local.interfaces.routing import RouteTable
from kserve_local.reconcile.controller import Engine
from kserve_local.settings import ImageSource, Settings
from kserve_local.storage.initializer import Initializer
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, open_store

ISVC = "inferenceservices.serving.kserve.io"
IRIS = Path(__file__).parents[2] / "sample_models" / "sklearn-iris" / "model" / "model.joblib"
NODE = NodeFacts("kserve-local", "127.0.0.1", "", cpu=2.0, memory_bytes=8 << 30)


class Routes:
    """A RouteSink that keeps the newest table."""

    def __init__(self) -> None:
        self.last = RouteTable(0)

    def publish(self, table: RouteTable) -> None:
        self.last = table


@dataclass
class World:
    store: Store
    settings: Settings
    routes: Routes

    async def until(self, holds: Callable[[Object], Any]) -> Object:
        """Return the InferenceService as soon as it is as wanted."""
        last: Object = {}
        try:
            async with asyncio.timeout(60), self.store.watch(ISVC) as events:
                async for event in events:
                    last = event.object
                    if last.get("status") and holds(last):
                        return last
        except TimeoutError:
            raise AssertionError(f"never so; last seen {last.get('status')}") from None
        raise AssertionError("the watch ended")

    async def failure(self) -> dict[str, Any]:
        """Return `modelStatus` once it tells of a failure."""
        isvc = await self.until(
            lambda o: "lastFailureInfo" in (o["status"].get("modelStatus") or {})
        )
        return dict(isvc["status"]["modelStatus"])

    def write(self, text: str) -> None:
        (self.settings.project / "model.py").write_text(textwrap.dedent(text))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    project = tmp_path / "project"
    state, runtime = project / ".kserve-local", tmp_path / "s"
    for folder in (state, runtime, project / "model"):
        folder.mkdir(parents=True)
    images = {"custom:dev": ImageSource(project, ("python", "model.py"))}
    settings = Settings(
        project=project, state=state, cache=tmp_path / "cache", runtime=runtime, images=images
    )
    async with world_of(settings) as opened:
        yield opened


@asynccontextmanager
async def world_of(settings: Settings) -> AsyncIterator[World]:
    async with open_store(settings.database) as store:
        for obj in builtin.builtin_objects():
            with suppress(AlreadyExists):
                await store.create(obj)
        backend = await ProcessBackend.open(settings)
        addresses = AddressPool(settings.state, settings.cache)
        await ensure_local_gateway(store, addresses.service_ip)
        recorder, routes = EventRecorder(store), Routes()

        def mutate(pod: Object) -> Object:
            return pod_mutators.mutate(
                pod,
                config=parse(builtin.config_map()),
                lookup=lambda resource, namespace: store.list(resource, namespace=namespace),
            )

        agent = NodeAgent(
            store,
            backend,
            Initializer(cache=settings.cache, project=settings.project),
            recorder,
            settings,
            addresses,
            Interpreter(Path(sys.executable), has_kserve=False),
            node=NODE,
        )
        chain = knative_chain(store, recorder, routes, ChainSettings(mutate=mutate))
        try:
            async with (
                keep_running(agent.run(), name="agent"),
                keep_running(Engine(store, [*chain, agent]).run(), name="engine"),
            ):
                yield World(store, settings, routes)
        finally:
            await backend.close(stop_replicas=True)
            addresses.close(give_up=True)


def service(uri: str = "model", **model: Any) -> Object:
    fields = {"modelFormat": {"name": "sklearn"}, "storageUri": uri, **model}
    return isvc_of({"model": fields})


def custom(**container: Any) -> Object:
    full = {"name": "kserve-container", "image": "custom:dev", **container}
    return isvc_of({"containers": [full]})


def isvc_of(predictor: dict[str, Any]) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "default"},
        "spec": {"predictor": predictor},
    }


def assert_failed(status: dict[str, Any], *, exit_code: int, said: str, step: str) -> None:
    """The model is blocked by a failed load; the message tells why and what helps."""
    assert status["transitionStatus"] == "BlockedByFailedLoad"
    assert status["states"]["targetModelState"] == "FailedToLoad"
    info = status["lastFailureInfo"]
    assert info["reason"] == "ModelLoadFailed"
    assert info["exitCode"] == exit_code
    assert said in info["message"]
    assert step in info["message"].splitlines()[-1]


async def test_a_service_becomes_ready_and_its_model_loaded(world: World) -> None:
    (world.settings.project / "model" / "model.joblib").write_bytes(IRIS.read_bytes())
    await world.store.create(service())
    isvc = await world.until(
        lambda o: (o["status"].get("modelStatus") or {}).get("transitionStatus") == "UpToDate"
    )
    ready = get_condition(isvc, "Ready")
    assert ready is not None
    assert ready["status"] == "True"
    (pod,) = world.store.list("pods")
    route = next(r for r in world.routes.last.routes if "iris" in r.models)
    assert route.targets[0].endpoints[0].address == pod["status"]["podIP"]


async def test_missing_file(world: World) -> None:
    await world.store.create(service("no/such/model"))
    status = await world.failure()
    assert_failed(status, exit_code=1, said="no/such/model does not exist", step="Next step: ")


async def test_unreadable_pickle(world: World) -> None:
    (world.settings.project / "model" / "model.joblib").write_bytes(b"\x80\x04not a pickle")
    await world.store.create(service())
    status = await world.failure()
    assert_failed(
        status, exit_code=1, said="model.joblib could not be loaded", step="save the model again"
    )


async def test_several_model_files(world: World) -> None:
    for name in ("a.joblib", "b.joblib"):
        (world.settings.project / "model" / name).write_bytes(IRIS.read_bytes())
    await world.store.create(service())
    status = await world.failure()
    assert_failed(
        status,
        exit_code=1,
        said="More than one model file is detected",
        step="point it at one file",
    )


async def test_missing_package(world: World) -> None:
    world.write("import kserve_missing_package\n")
    await world.store.create(custom())
    assert_failed(
        await world.failure(),
        exit_code=1,
        said="No module named 'kserve_missing_package'",
        step="requirements",
    )


async def test_exit_1_at_start(world: World) -> None:
    world.write("raise SystemExit('no licence found')\n")
    await world.store.create(custom())
    status = await world.failure()
    assert_failed(status, exit_code=1, said="no licence found", step="read its log")
    isvc = await world.until(
        lambda o: (get_condition(o, "PredictorReady") or {}).get("status") == "False"
    )
    configuration = get_condition(isvc, "PredictorConfigurationReady")
    assert configuration is not None
    assert configuration["reason"] == "RevisionFailed"
    assert "Container failed with: no licence found" in configuration["message"]


async def test_killed_by_memory(world: World) -> None:
    world.write(
        """
        import time
        held = []
        while True:
            held.append(bytearray(b"x" * (8 << 20)))
            time.sleep(0.01)
        """
    )
    await world.store.create(custom(resources={"limits": {"memory": "150Mi"}}))
    assert_failed(
        await world.failure(),
        exit_code=137,
        said="limits.memory",
        step="raise resources.limits.memory (now 150 Mi)",
    )


async def test_port_taken(world: World) -> None:
    """Another program of the same Pod was first."""
    world.write(
        """
        import http.server, subprocess, sys, time
        handler = http.server.BaseHTTPRequestHandler
        first = http.server.HTTPServer(("0.0.0.0", 8080), handler)
        second = http.server.HTTPServer(("0.0.0.0", 8080), handler)
        """
    )
    await world.store.create(custom())
    assert_failed(
        await world.failure(),
        exit_code=1,
        said="Address already in use",
        step="the port it wants to listen on is taken",
    )


async def test_bad_argument(world: World) -> None:
    await world.store.create(service(args=["--http_port=eighty"]))
    assert_failed(
        await world.failure(),
        exit_code=2,
        said="invalid int value: 'eighty'",
        step="check args of the model container",
    )


async def test_unknown_runtime(world: World) -> None:
    await world.store.create(service(runtime="no-such-runtime"))
    status = await world.failure()
    assert status["transitionStatus"] == "InvalidSpec"
    assert status["lastFailureInfo"]["reason"] == "RuntimeNotRecognized"
    assert world.store.list("pods") == []


async def test_slow_load_is_pending_not_failed(world: World) -> None:
    world.write(
        """
        import http.server, pathlib, time
        while not pathlib.Path("go").exists():
            time.sleep(0.05)
        http.server.HTTPServer(
            ("0.0.0.0", 8080), http.server.BaseHTTPRequestHandler
        ).serve_forever()
        """
    )
    await world.store.create(custom())

    async with asyncio.timeout(60), world.store.watch("pods") as events:
        async for event in events:
            statuses = (event.object.get("status") or {}).get("containerStatuses") or [{}]
            if "running" in statuses[0].get("state", {}):
                break
    isvc = await world.until(lambda o: o["status"].get("modelStatus"))
    assert isvc["status"]["modelStatus"]["transitionStatus"] == "InProgress"
    assert "lastFailureInfo" not in isvc["status"]["modelStatus"]
    (world.settings.project / "go").touch()
    await world.until(lambda o: (get_condition(o, "Ready") or {}).get("status") == "True")
    (pod,) = world.store.list("pods")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_an_image_without_stand_in(world: World) -> None:
    """Neither Docker nor local source: the status names the image and the way out."""
    await world.store.create(custom(image="team/other:v1"))
    status = await world.failure()
    message = status["lastFailureInfo"]["message"]
    assert "ErrImageNeverPull" in message
    assert 'images: {"team/other:v1"' in message


async def test_a_corrected_service_recovers(world: World) -> None:
    """The next revision takes over; what failed goes away."""
    await world.store.create(service("no/such/model"))
    await world.failure()
    (world.settings.project / "model" / "model.joblib").write_bytes(IRIS.read_bytes())
    key = Key(ISVC, "default", "iris")
    isvc = world.store.get(key)
    predictor = {"model": {**isvc["spec"]["predictor"]["model"], "storageUri": "model"}}
    metadata = {k: v for k, v in isvc["metadata"].items() if k != "resourceVersion"}
    await world.store.update({**isvc, "metadata": metadata, "spec": {"predictor": predictor}})
    isvc = await world.until(
        lambda o: (o["status"].get("modelStatus") or {}).get("transitionStatus") == "UpToDate"
    )
    predictor_status = isvc["status"]["components"]["predictor"]
    assert predictor_status["latestReadyRevision"] == "iris-predictor-00002"
