"""The node agent on a real store and engine, with a backend and storage that run nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kserve_local.aio import running as keep_running
from kserve_local.api import names
from kserve_local.api.meta import Key, Object, get_condition, uid_of
from kserve_local.controllers.addresses import AddressPool
from kserve_local.controllers.empty_models import empty_models, told_by
from kserve_local.controllers.environment import NodeFacts
from kserve_local.controllers.pod import STAND_IN_ANNOTATION, NodeAgent
from kserve_local.controllers.pod_containers import RUNTIME_ANNOTATION, Interpreter
from kserve_local.controllers.pod_volumes import Content
from kserve_local.errors import Missing, NotFound, StorageError
from kserve_local.interfaces.backend import HOST_IP, ContainerSpec, Mount, Program
from kserve_local.reconcile.controller import Engine
from kserve_local.settings import ImageSource, RuntimeConfig, Settings
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, open_store
from tests.fakes.backend import FakeBackend, FakeReplica, FakeStorage

URI = "gs://kfserving-examples/models/sklearn/1.0/model"
NODE = NodeFacts("kserve-local", "127.0.0.1", "", cpu=2.0, memory_bytes=8 << 30)
POD = Key("pods", "default", "iris")


def serving_pod(**spec: Any) -> Object:
    """Return a Pod as KServe makes it for the sklearn runtime."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "iris", "namespace": "default"},
        "spec": {
            "initContainers": [
                {
                    "name": "storage-initializer",
                    "image": "kserve/storage-initializer:v0.20.0",
                    "args": [URI, "/mnt/models"],
                    "volumeMounts": [
                        {"name": "kserve-provision-location", "mountPath": "/mnt/models"}
                    ],
                }
            ],
            "containers": [
                {
                    "name": "kserve-container",
                    "image": "kserve/sklearnserver:v0.20.0",
                    "args": ["--model_name=iris", "--model_dir=/mnt/models", "--http_port=8080"],
                    "resources": {"limits": {"cpu": "1", "memory": "2Gi"}},
                    "volumeMounts": [
                        {
                            "name": "kserve-provision-location",
                            "mountPath": "/mnt/models",
                            "readOnly": True,
                        }
                    ],
                }
            ],
            "volumes": [{"name": "kserve-provision-location", "emptyDir": {}}],
            **spec,
        },
    }


@dataclass
class World:
    store: Store
    backend: FakeBackend
    storage: FakeStorage
    settings: Settings

    async def create(self, pod: Object) -> Object:
        return await self.store.create(pod)

    async def until(self, holds: Callable[[Object], Any], *, name: str = "iris") -> Object:
        """Return the Pod as soon as it is as wanted."""
        last: Object = {}
        try:
            async with asyncio.timeout(20), self.store.watch("pods") as events:
                async for event in events:
                    last = event.object
                    if last["metadata"]["name"] == name and holds(last):
                        return last
        except TimeoutError:
            raise AssertionError(f"never so; last seen {last.get('status')}") from None
        raise AssertionError("the watch ended")

    async def until_gone(self) -> None:
        async with asyncio.timeout(20), self.store.watch("pods") as events:
            if self.store.find(POD) is None:
                return
            async for event in events:
                if event.type == "DELETED":
                    return

    async def event(self, reason: str) -> Object:
        """Return the first Event with that reason as soon as it is written."""
        seen: set[str] = set()
        try:
            async with asyncio.timeout(20), self.store.watch("events") as events:
                async for event in events:
                    seen.add(event.object["reason"])
                    if event.object["reason"] == reason:
                        return event.object
        except TimeoutError:
            raise AssertionError(f"no Event {reason}, only {sorted(seen)}") from None
        raise AssertionError("the watch ended")


def main_status(pod: Object) -> dict[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    return dict(statuses[0])


def init_status(pod: Object) -> dict[str, Any]:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or [{}]
    return dict(statuses[0])


def is_ready(pod: Object) -> bool:
    condition = get_condition(pod, "Ready")
    return condition is not None and condition["status"] == "True"


def waiting_reason(status: dict[str, Any]) -> str:
    return str(((status.get("state") or {}).get("waiting") or {}).get("reason") or "")


@asynccontextmanager
async def agent_of(
    store: Store, backend: FakeBackend, storage: FakeStorage, settings: Settings
) -> AsyncIterator[NodeAgent]:
    addresses = AddressPool(settings.state, settings.cache)
    agent = NodeAgent(
        store,
        backend,
        storage,
        EventRecorder(store),
        settings,
        addresses,
        Interpreter(Path("/usr/bin/python3"), has_kserve=False),
        node=NODE,
        patience=0.01,
    )
    engine = Engine(store, [agent])
    try:
        async with (
            keep_running(agent.run(), name="agent"),
            keep_running(engine.run(), name="engine"),
        ):
            yield agent
    finally:
        addresses.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    state = tmp_path / "project" / ".kserve-local"
    state.mkdir(parents=True)
    return Settings(
        project=tmp_path / "project",
        state=state,
        cache=tmp_path / "cache",
        runtime=tmp_path / "runtime",
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / "model.joblib").write_bytes(b"weights")
    return folder


@pytest.fixture
async def world(settings: Settings, model: Path) -> AsyncIterator[World]:
    async with open_store(settings.database) as store:
        world = World(store, FakeBackend(), FakeStorage({URI: model}), settings)
        async with agent_of(store, world.backend, world.storage, settings):
            yield world


async def test_a_pod_is_fetched_started_and_becomes_ready(world: World, model: Path) -> None:
    """The whole way: schedule, fetch the model, start the stand-in, report what runs."""
    await world.create(serving_pod())
    pod = await world.until(is_ready)
    assert pod["spec"]["nodeName"] == "kserve-local"
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["podIP"].startswith("127.")
    assert init_status(pod)["state"]["terminated"]["reason"] == "Completed"
    status = main_status(pod)
    assert (status["ready"], status["started"], status["restartCount"]) == (True, True, 0)
    assert status["containerID"].startswith("process://")
    spec = world.backend.specs[0]
    assert spec.ip == pod["status"]["podIP"]
    container = spec.containers[0]
    assert container.program is not None
    assert container.program.argv[:2] == ("-m", "sklearnserver")
    assert container.memory_limit_bytes == 2 << 30
    assert {m.path: m.source for m in container.mounts} == {"/mnt/models": model}
    assert container.readiness is not None
    assert (container.readiness.kind, container.readiness.port) == ("tcp", 8080)


async def test_a_stand_in_is_an_event_and_an_annotation(world: World) -> None:
    """Whoever looks must see that not the image itself runs."""
    await world.create(serving_pod())
    pod = await world.until(is_ready)
    note = "sklearnserver of kserve-local stands in for image kserve/sklearnserver:v0.20.0"
    assert pod["metadata"]["annotations"][STAND_IN_ANNOTATION] == note
    assert (await world.event("StandIn"))["message"] == note
    assert (await world.event("Scheduled"))["message"] == (
        "Successfully assigned default/iris to kserve-local"
    )


async def test_an_empty_model_is_a_warning_about_the_service(world: World, model: Path) -> None:
    """A server that loads nothing at start is Ready all the same, as on a cluster."""
    (model / "model.joblib").unlink()
    (model / "below").mkdir()
    isvc = await world.store.create(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "iris", "namespace": "default"},
            "spec": {"predictor": {}},
        }
    )
    pod = serving_pod()
    pod["metadata"]["labels"] = {names.ISVC_LABEL: "iris"}
    await world.create(pod)
    pod = await world.until(lambda p: is_ready(p) and told_by([p]))
    event = await world.event("EmptyModel")
    assert (event["type"], event["count"]) == ("Warning", 1)
    assert event["involvedObject"]["uid"] == uid_of(isvc)
    assert event["message"].startswith(f"storageUri {URI} holds no files: ")
    assert told_by([pod, pod]) == [event["message"]]
    # Once it is there, the next start of the container takes the word back.
    (model / "below" / "model.joblib").touch()
    world.backend.end(uid_of(pod), "kserve-container", code=1)
    await world.until(lambda p: main_status(p).get("restartCount") == 1 and not told_by([p]))


@pytest.mark.parametrize(
    ("server", "files", "told"),
    [
        ("xgbserver", ["model.joblib"], True),
        ("sklearnserver", ["model.onnx", "config.json"], True),
        ("lgbserver", ["model.txt"], True),
        ("xgbserver", ["model.ubj", "notes.txt"], False),
        ("sklearnserver", ["several/model.onnx", "model.onnx"], False),
        ("torchserver", ["model.joblib"], False),
    ],
)
def test_files_of_another_format_are_no_model(
    tmp_path: Path, server: str, files: list[str], told: bool
) -> None:
    """The server is Ready without a model and answers 404, as on a cluster."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pod = serving_pod()
    program = Program("runtime", server, ("-m", server, f"--model_dir={names.MODEL_DIR}"))
    spec = ContainerSpec("kserve-container", "i", (), tmp_path / "log", program=program)
    fetched = {"storage-initializer": [Content(names.MODEL_DIR, tmp_path)]}
    found = empty_models(pod, fetched, [spec])
    assert found == ((f"{URI}\t{server}",) if told else ())
    if told:
        pod["metadata"]["annotations"] = {names.EMPTY_MODEL: "\n".join(found)}
        (sentence,) = told_by([pod])
        assert sentence.startswith(f"storageUri {URI} holds no .")
        assert f"{server} loads nothing else" in sentence


async def test_an_empty_claim_is_told_too(world: World, settings: Settings, tmp_path: Path) -> None:
    pod = serving_pod()
    folder = settings.project / "claimed"
    folder.mkdir()
    spec = ContainerSpec(
        "kserve-container",
        "i",
        (),
        tmp_path / "log",
        mounts=(Mount(path=names.MODEL_DIR, source=folder),),
    )
    assert empty_models(pod, {}, [spec]) == ()
    pod["metadata"]["annotations"] = {names.SOURCE_URI: "pvc://claim/a"}
    assert empty_models(pod, {}, [spec]) == ("pvc://claim/a",)
    (folder / "model.pt").touch()
    assert empty_models(pod, {}, [spec]) == ()


async def test_while_the_model_is_fetched_the_init_container_runs(world: World) -> None:
    """KServe's status logic reads Loading off this."""
    world.storage.gate = asyncio.Event()
    await world.create(serving_pod())
    pod = await world.until(lambda p: "running" in init_status(p).get("state", {}))
    assert pod["status"]["phase"] == "Pending"
    assert waiting_reason(main_status(pod)) == "PodInitializing"
    initialized = get_condition(pod, "Initialized")
    assert initialized is not None
    assert initialized["message"] == "containers with incomplete status: [storage-initializer]"
    world.storage.gate.set()
    await world.until(is_ready)


async def test_a_failed_fetch_is_a_termination_with_the_log_tail(world: World) -> None:
    """reason Error, exit code 1, message = last log lines; then CrashLoopBackOff keeps it."""
    world.storage.sources[URI] = StorageError("403 GET gs://b: no access", hint="check the key")
    await world.create(serving_pod())
    pod = await world.until(lambda p: "terminated" in init_status(p).get("state", {}))
    ended = init_status(pod)["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (1, "Error")
    assert ended["message"] == "403 GET gs://b: no access\nNext step: check the key"
    pod = await world.until(lambda p: waiting_reason(init_status(p)) == "CrashLoopBackOff")
    status = init_status(pod)
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["message"] == ended["message"]
    assert status["state"]["waiting"]["message"] == (
        "back-off 10s restarting failed container=storage-initializer "
        f"pod=iris_default({uid_of(pod)})"
    )
    log = world.settings.log_dir / "iris" / "storage-initializer.log"
    assert "403 GET gs://b: no access" in log.read_text()
    assert world.backend.starts == []


async def test_a_container_that_dies_at_start_ends_in_crash_loop_back_off(world: World) -> None:
    """The first restart comes at once, the second waits; the message says why and what next."""
    log = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'catboost'\n"
    world.backend.crash = lambda spec: (1, "Error", log)
    await world.create(serving_pod())
    pod = await world.until(lambda p: waiting_reason(main_status(p)) == "CrashLoopBackOff")
    status = main_status(pod)
    assert status["restartCount"] == 1
    last = status["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (1, "Error")
    lines = last["message"].splitlines()
    assert lines[-2] == "ModuleNotFoundError: No module named 'catboost'"
    assert lines[-1].startswith("Next step: ")
    assert "catboost" in lines[-1]
    assert world.backend.starts == ["kserve-container"] * 2
    assert pod["status"]["phase"] == "Running"
    assert (await world.event("BackOff"))["type"] == "Warning"


async def test_a_serving_container_that_dies_is_restarted_at_once(world: World) -> None:
    """Held requests wait for it, so there is no pause after a container that was serving."""
    await world.create(serving_pod())
    pod = await world.until(is_ready)
    world.backend.end(uid_of(pod), "kserve-container", code=137, log="bye\n")
    pod = await world.until(lambda p: main_status(p).get("restartCount") == 1 and is_ready(p))
    assert main_status(pod)["lastState"]["terminated"]["exitCode"] == 137


@pytest.mark.parametrize("written", ["", "all done"])
async def test_what_ended_well_has_the_message_it_wrote_and_none_of_ours(
    world: World, written: str
) -> None:
    """What it means for a server is an Event."""
    await world.create(serving_pod())
    uid = uid_of(await world.until(is_ready))
    end = {"code": 0, "reason": "Completed", "log": "bye\n", "termination": written}
    world.backend.end(uid, "kserve-container", **end)
    pod = await world.until(lambda p: main_status(p).get("restartCount") == 1)
    last = main_status(pod)["lastState"]["terminated"]
    assert (last["exitCode"], last.get("message", "")) == (0, written)
    event = await world.event("Failed")
    assert event["message"].startswith(
        "Container kserve-container terminated (Completed, exit code 0): "
    )
    assert "a model server must keep running" in event["message"]


async def test_the_message_of_a_container_that_failed_is_its_own_if_it_wrote_one(
    world: World,
) -> None:
    await world.create(serving_pod())
    uid = uid_of(await world.until(is_ready))
    world.backend.end(uid, "kserve-container", code=3, log="trace\n", termination="no licence")
    pod = await world.until(lambda p: main_status(p).get("restartCount") == 1)
    assert main_status(pod)["lastState"]["terminated"]["message"] == "no licence"
    assert "Next step: " in (await world.event("Failed"))["message"]


async def test_out_of_memory_says_oom_killed_and_which_limit_to_raise(world: World) -> None:
    await world.create(serving_pod())
    pod = await world.until(is_ready)
    world.backend.end(uid_of(pod), "kserve-container", code=137, reason="OOMKilled")
    pod = await world.until(lambda p: main_status(p).get("restartCount") == 1)
    last = main_status(pod)["lastState"]["terminated"]
    assert last["reason"] == "OOMKilled"
    assert "raise resources.limits.memory (now 2048 Mi)" in last["message"]


async def test_failed_liveness_kills_and_restarts_the_container(world: World) -> None:
    await world.create(serving_pod())
    pod = await world.until(is_ready)
    world.backend.unhealthy(uid_of(pod), "kserve-container", "Liveness probe failed: timed out")
    pod = await world.until(lambda p: main_status(p).get("restartCount") == 1 and is_ready(p))
    assert (await world.event("Unhealthy"))["message"] == "Liveness probe failed: timed out"
    killing = await world.event("Killing")
    assert killing["message"] == (
        "Container kserve-container failed liveness probe, will be restarted"
    )


@pytest.mark.parametrize(
    ("project", "runtime", "runs"),
    [
        ("auto", "docker", "docker"),
        ("process", "docker", "docker"),
        ("docker", "process", "process"),
        ("docker", "", "docker"),
    ],
)
async def test_a_runtime_runs_where_kserve_local_yaml_says(
    settings: Settings, model: Path, project: str, runtime: str, runs: str
) -> None:
    """Other runtimes of the project run where it does."""
    runtimes = {"kserve-sklearnserver": RuntimeConfig(backend=runtime)}
    settings = replace(settings, backend=project, runtimes=runtimes)
    backend, storage = FakeBackend(), FakeStorage({URI: model})
    async with open_store(settings.database) as store:
        world = World(store, backend, storage, settings)
        async with agent_of(store, backend, storage, settings):
            for name, runtime_name in (("iris", "kserve-sklearnserver"), ("other", "mine")):
                pod = serving_pod()
                pod["metadata"]["name"] = name
                pod["metadata"]["annotations"] = {RUNTIME_ANNOTATION: runtime_name}
                await world.create(pod)
            found = {n: await world.until(is_ready, name=n) for n in ("iris", "other")}
    shown = {
        n: p["metadata"]["annotations"].get(names.BACKEND, "process") for n, p in found.items()
    }
    assert shown == {"iris": runs, "other": "docker" if project == "docker" else "process"}
    programs = {s.pod: s.containers[0].program is None for s in backend.specs}
    assert programs == {n: where == "docker" for n, where in shown.items()}


async def test_in_docker_the_host_is_where_containers_reach_it(
    settings: Settings, model: Path
) -> None:
    """In the status, and in what a fieldRef gives."""
    settings = replace(settings, backend="docker")
    backend, storage = FakeBackend(), FakeStorage({URI: model})
    backend.host = "172.18.0.1"
    async with open_store(settings.database) as store:
        world = World(store, backend, storage, settings)
        async with agent_of(store, backend, storage, settings):
            pod = serving_pod()
            env = [{"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]
            pod["spec"]["containers"][0]["env"] = env
            await world.create(pod)
            pod = await world.until(is_ready)
    assert pod["status"]["hostIP"] == "172.18.0.1"
    assert pod["status"]["hostIPs"] == [{"ip": "172.18.0.1"}]
    assert dict(backend.specs[0].containers[0].env)["HOST"] == HOST_IP


async def test_an_image_without_stand_in_says_so_and_fetches_nothing(world: World) -> None:
    pod = serving_pod()
    pod["spec"]["containers"][0]["image"] = "example.com/team/fraud:dev"
    await world.create(pod)
    pod = await world.until(lambda p: waiting_reason(main_status(p)) == "ErrImageNeverPull")
    message = main_status(pod)["state"]["waiting"]["message"]
    assert "example.com/team/fraud:dev" in message
    assert "kserve-local.yaml" in message
    assert world.storage.requests == []


async def test_a_missing_secret_is_a_config_error_until_it_appears(world: World) -> None:
    """The Pod goes on by itself once the Secret is there."""
    pod = serving_pod()
    reference = {"secretKeyRef": {"name": "token", "key": "value"}}
    pod["spec"]["containers"][0]["env"] = [{"name": "TOKEN", "valueFrom": reference}]
    await world.create(pod)
    pod = await world.until(
        lambda p: waiting_reason(main_status(p)) == "CreateContainerConfigError"
    )
    assert main_status(pod)["state"]["waiting"]["message"] == 'secret "token" not found'
    await world.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "token", "namespace": "default"},
            "stringData": {"value": "s3cret"},
        }
    )
    await world.until(is_ready)
    assert dict(world.backend.specs[0].containers[0].env)["TOKEN"] == "s3cret"


async def test_an_environment_that_cannot_be_built_is_an_image_error(world: World) -> None:
    world.backend.prepare_error = Missing("pip: no matching distribution found for sklearn==9")
    await world.create(serving_pod())
    pod = await world.until(lambda p: waiting_reason(main_status(p)) == "ErrImagePull")
    assert "no matching distribution" in main_status(pod)["state"]["waiting"]["message"]
    world.backend.prepare_error = None
    await world.until(is_ready)


@pytest.mark.parametrize(
    ("resources", "short"),
    [
        ({"requests": {"memory": "900Gi"}}, "1 Insufficient memory"),
        (
            {"requests": {"memory": "900Gi", "cpu": "64"}},
            "1 Insufficient cpu, 1 Insufficient memory",
        ),
        ({"requests": {"cpu": "2", "memory": "8Gi"}}, ""),
        ({"limits": {"memory": "900Gi", "cpu": "64"}}, ""),
    ],
)
async def test_a_pod_that_requests_more_than_the_machine_has_is_not_placed(
    world: World, resources: dict[str, Any], short: str
) -> None:
    """Limits may be larger: nothing is reserved for them."""
    pod = serving_pod()
    pod["spec"]["containers"][0]["resources"] = resources
    await world.create(pod)
    pod = await world.until(lambda p: is_ready(p) or get_condition(p, "PodScheduled"))
    if not short:
        await world.until(is_ready)
        return
    condition = get_condition(pod, "PodScheduled") or {}
    assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
    first, step = condition["message"].splitlines()
    assert first == f"0/1 nodes are available: {short}."
    assert step.startswith("Next step: this machine has ")
    assert pod["status"]["phase"] == "Pending"
    assert (await world.event("FailedScheduling"))["message"] == condition["message"]
    assert world.backend.starts == []


async def test_a_claim_without_folder_leaves_the_pod_unschedulable(world: World) -> None:
    volumes = [{"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": "models"}}]
    await world.create(serving_pod(volumes=volumes))
    pod = await world.until(lambda p: get_condition(p, "PodScheduled") is not None)
    scheduled = get_condition(pod, "PodScheduled")
    assert scheduled is not None
    assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
    assert 'persistentvolumeclaim "models" not found' in scheduled["message"]


async def test_a_deleted_pod_is_stopped_with_its_grace_and_removed(world: World) -> None:
    await world.create(serving_pod(terminationGracePeriodSeconds=7))
    pod = await world.until(is_ready)
    await world.store.delete(POD)
    await world.until_gone()
    assert world.backend.machine == {}
    ((stopped, grace),) = world.backend.stops
    # What draining took is part of the grace.
    assert stopped == uid_of(pod)
    assert 5 < grace <= 7
    assert not (world.settings.run_dir / "volumes" / uid_of(pod)).exists()


async def test_a_pod_that_is_deleted_while_fetching_never_starts(world: World) -> None:
    world.storage.gate = asyncio.Event()
    await world.create(serving_pod())
    await world.until(lambda p: "running" in init_status(p).get("state", {}))
    await world.store.delete(POD)
    await world.until_gone()
    assert world.backend.starts == []


async def test_a_new_supervisor_adopts_what_serves(settings: Settings, model: Path) -> None:
    """Nothing is fetched or started again; the address stays."""
    machine: dict[str, FakeReplica] = {}
    storage = FakeStorage({URI: model})
    async with open_store(settings.database) as store:
        first = FakeBackend(machine)
        world = World(store, first, storage, settings)
        async with agent_of(store, first, storage, settings):
            await world.create(serving_pod())
            before = await world.until(is_ready)
    async with open_store(settings.database) as store:
        second = FakeBackend(machine)
        world = World(store, second, storage, settings)
        async with agent_of(store, second, storage, settings):
            second.end(uid_of(before), "kserve-container", code=1)
            after = await world.until(lambda p: main_status(p).get("restartCount") == 1)
    assert second.specs == []
    assert len(storage.requests) == 1
    assert after["status"]["podIP"] == before["status"]["podIP"]
    assert second.starts == ["kserve-container"]


async def test_a_pod_whose_replica_is_lost_is_started_again(
    settings: Settings, model: Path
) -> None:
    """As kubelet after a node's reboot: the end is unknown, the restart is counted."""
    machine: dict[str, FakeReplica] = {}
    storage = FakeStorage({URI: model})
    async with open_store(settings.database) as store:
        first = FakeBackend(machine)
        world = World(store, first, storage, settings)
        async with agent_of(store, first, storage, settings):
            await world.create(serving_pod())
            await world.until(is_ready)
    machine.clear()
    async with open_store(settings.database) as store:
        second = FakeBackend(machine)
        world = World(store, second, storage, settings)
        async with agent_of(store, second, storage, settings):
            pod = await world.until(
                lambda p: main_status(p).get("restartCount") == 1 and is_ready(p)
            )
    last = main_status(pod)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (137, "ContainerStatusUnknown")
    assert len(storage.requests) == 1


async def test_a_replica_that_belongs_to_no_pod_is_stopped(
    settings: Settings, world: World
) -> None:
    backend = FakeBackend(dict(world.backend.machine))
    await world.create(serving_pod())
    await world.until(is_ready)
    stray = replace(world.backend.specs[0], id="unknown")
    backend.machine["unknown"] = FakeReplica(stray)
    other = replace(settings, state=settings.state.with_name("other"))
    other.state.mkdir()
    async with open_store(other.database) as store, agent_of(store, backend, FakeStorage(), other):
        async with asyncio.timeout(20):
            while backend.machine:
                backend.changed.clear()
                await backend.changed.wait()
    assert backend.stops == [("unknown", 5.0)]


async def test_local_source_runs_under_the_interpreter_of_the_project(
    settings: Settings, tmp_path: Path
) -> None:
    source = settings.project / "model.py"
    source.write_text("import kserve\n")
    mapped = replace(
        settings,
        images={"fraud:dev": ImageSource(settings.project, ("python", "model.py"))},
    )
    pod = serving_pod(initContainers=[])
    pod["spec"]["containers"][0] |= {"image": "fraud:dev", "args": ["--threshold", "0.5"]}
    async with open_store(mapped.database) as store:
        backend = FakeBackend()
        world = World(store, backend, FakeStorage(), mapped)
        async with agent_of(store, backend, world.storage, mapped):
            await world.create(pod)
            await world.until(is_ready)
    program = backend.specs[0].containers[0].program
    assert program is not None
    assert program.argv == ("model.py", "--threshold", "0.5")
    assert (program.kind, program.cwd) == ("source", settings.project)


async def test_the_agent_deletes_only_the_pod_it_stopped(world: World) -> None:
    """A Pod of the same name made meanwhile is another Pod."""
    await world.create(serving_pod())
    await world.until(is_ready)
    await world.store.delete(POD)
    await world.until_gone()
    again = await world.create(serving_pod())
    pod = await world.until(lambda p: is_ready(p) and uid_of(p) == uid_of(again))
    assert pod["status"]["podIP"].startswith("127.")
    with pytest.raises(NotFound):
        world.store.get(Key("pods", "default", "other"))


async def test_logs_of_pods_long_gone_are_removed(settings: Settings, model: Path) -> None:
    """The latest stay for `kserve-local logs`, or a project would grow for ever."""
    for n in range(30):
        folder = settings.log_dir / f"pod-{n:02}"
        folder.mkdir(parents=True)
        os.utime(folder, (n, n))
    async with open_store(settings.database) as store:
        backend = FakeBackend()
        world = World(store, backend, FakeStorage({URI: model}), settings)
        async with agent_of(store, backend, world.storage, settings):
            await world.create(serving_pod())
            await world.until(is_ready)
    assert logs_of(settings, "pod-") == [f"pod-{n:02}" for n in range(10, 30)]


async def test_logs_are_removed_while_pods_come_and_go(settings: Settings, model: Path) -> None:
    """A service that goes to zero and back has a new Pod each time, and `up` may run for weeks."""
    pods = [Key("pods", "default", f"web-{n:02}") for n in range(45)]
    async with open_store(settings.database) as store:
        world = World(store, FakeBackend(), FakeStorage({URI: model}), settings)
        async with agent_of(store, world.backend, world.storage, settings):
            for pod in pods:
                obj = serving_pod()
                await world.create({**obj, "metadata": {**obj["metadata"], "name": pod.name}})
            await seen(store, lambda: all(is_ready(store.get(pod)) for pod in pods))
            assert len(logs_of(settings, "web-")) == 45
            for pod in pods:
                await store.delete(pod)
            await seen(store, lambda: not store.list("pods"))
    # All of the last round, and the newest of those before.
    assert 20 <= len(logs_of(settings, "web-")) < 45


def logs_of(settings: Settings, start: str) -> list[str]:
    """Return the names of folders with logs of Pods whose names begin so."""
    return sorted(p.name for p in settings.log_dir.iterdir() if p.name.startswith(start))


async def seen(store: Store, what: Callable[[], bool]) -> None:
    """Wait for what Pods tell."""
    async with asyncio.timeout(60), store.watch("pods", since=store.resource_version) as changes:
        while not what():
            await anext(changes)


async def test_a_running_pod_learns_the_names_of_services_that_come_later(world: World) -> None:
    pod = serving_pod(hostAliases=[{"ip": "10.9.9.9", "hostnames": ["db.test"]}])
    await world.create(pod)
    await world.until(is_ready)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "late", "namespace": "default"},
        "spec": {"clusterIP": "127.66.0.9"},
    }
    await world.store.create(service)
    async with asyncio.timeout(20):
        while "late.default" not in world.backend.names.get("default", {}):
            world.backend.changed.clear()
            await world.backend.changed.wait()
    assert world.backend.names["default"]["late"] == "127.66.0.9"
    (spec,) = world.backend.specs
    assert dict(spec.resolve) == {"db.test": "10.9.9.9"}


async def test_many_starts_at_once_while_services_come(world: World) -> None:
    """The names of Services are told by one at a time, the newest last."""
    told: list[int] = []
    inner = world.backend.resolve

    async def slow(namespace: str, names: tuple[tuple[str, str], ...]) -> None:
        told.append(1)
        assert len(told) == 1
        await asyncio.sleep(0.01)
        await inner(namespace, names)
        told.pop()

    world.backend.resolve = slow  # type: ignore[method-assign]  # a fake's
    for n in range(8):
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"s{n}", "namespace": "default"},
            "spec": {"clusterIP": f"127.66.0.{n + 1}"},
        }
        pod = serving_pod()
        pod["metadata"]["name"] = f"pod-{n}"
        await asyncio.gather(world.store.create(service), world.create(pod))
    async with asyncio.timeout(20):
        while len(world.backend.specs) < 8 or "s7" not in world.backend.names.get("default", {}):
            world.backend.changed.clear()
            await world.backend.changed.wait()


def with_init_container(image: str = "prepare:dev", **more: Any) -> Object:
    """Return a Pod whose own init container runs before the storage initializer."""
    pod = serving_pod()
    own = {"name": "prepare", "image": image, "args": ["--fill"], **more}
    pod["spec"]["initContainers"].insert(0, own)
    return pod


@pytest.fixture
def mapped(settings: Settings) -> Settings:
    """Settings under which the image `prepare:dev` is local source."""
    (settings.project / "prepare.py").write_text("")
    source = ImageSource(settings.project, ("python", "prepare.py"))
    return replace(settings, images={"prepare:dev": source})


@asynccontextmanager
async def world_of(mapped: Settings, model: Path) -> AsyncIterator[World]:
    async with open_store(mapped.database) as store:
        world = World(store, FakeBackend(), FakeStorage({URI: model}), mapped)
        async with agent_of(store, world.backend, world.storage, mapped):
            yield world


async def test_init_containers_run_one_after_the_other_before_the_rest(
    mapped: Settings, tmp_path: Path
) -> None:
    async with world_of(mapped, tmp_path) as world:
        await world.create(with_init_container())
        await world.until(lambda p: "running" in init_status(p).get("state", {}))
        [(id, replica)] = world.backend.machine.items()
        assert [c.name for c in replica.spec.containers] == ["prepare"]
        assert world.storage.requests == []
        world.backend.end(id, "prepare", code=0, reason="Completed", log="filled\n")
        pod = await world.until(is_ready)
        assert init_status(pod)["state"]["terminated"]["reason"] == "Completed"
        assert world.backend.starts == ["prepare", "kserve-container"]
        assert list(world.backend.machine) == [uid_of(pod)]


async def test_an_init_container_that_fails_is_tried_again_and_says_why(
    mapped: Settings, tmp_path: Path
) -> None:
    async with world_of(mapped, tmp_path) as world:
        world.backend.crash = lambda spec: (
            (3, "Error", "no such table: features\n") if spec.name == "prepare" else None
        )
        await world.create(with_init_container())
        pod = await world.until(lambda p: waiting_reason(init_status(p)) == "CrashLoopBackOff")
        last = init_status(pod)["lastState"]["terminated"]
        assert last["exitCode"] == 3
        assert "no such table: features" in last["message"]
        assert world.backend.machine == {}
        assert world.backend.starts == ["prepare", "prepare"]


async def test_a_pod_that_is_deleted_ends_its_init_container(
    mapped: Settings, tmp_path: Path
) -> None:
    async with world_of(mapped, tmp_path) as world:
        await world.create(with_init_container())
        await world.until(lambda p: "running" in init_status(p).get("state", {}))
        await world.store.delete(POD)
        await world.until_gone()
        assert world.backend.machine == {}


async def test_an_init_container_without_a_program_or_with_a_restart_policy_is_refused(
    mapped: Settings, tmp_path: Path
) -> None:
    async with world_of(mapped, tmp_path) as world:
        await world.create(with_init_container("busybox:1"))
        pod = await world.until(lambda p: waiting_reason(init_status(p)) == "ErrImageNeverPull")
        assert 'image "busybox:1"' in init_status(pod)["state"]["waiting"]["message"]
        await world.store.delete(POD)
        await world.until_gone()
        await world.create(with_init_container(restartPolicy="Always"))
        pod = await world.until(
            lambda p: waiting_reason(init_status(p)) == "CreateContainerConfigError"
        )
        assert "sidecars" in init_status(pod)["state"]["waiting"]["message"]
