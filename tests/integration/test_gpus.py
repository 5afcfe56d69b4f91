"""GPUs given to Pods: exclusive, remembered, freed, waited for; and what an engine is asked.

All but one do without a GPU: what is given away is values, and `--simulate-gpus` is the
command line's way to them.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kserve_local.aio import running
from kserve_local.api import names
from kserve_local.api.meta import Key, Object, get_condition
from kserve_local.backends.docker_container import Container, Place
from kserve_local.backends.docker_engine import Engine
from kserve_local.backends.docker_standby import key_of
from kserve_local.backends.gpus import Gpus
from kserve_local.controllers.addresses import AddressPool
from kserve_local.controllers.environment import NodeFacts
from kserve_local.controllers.pod import NodeAgent
from kserve_local.controllers.pod_containers import Interpreter
from kserve_local.errors import KServeLocalError
from kserve_local.interfaces.backend import ContainerSpec, Probe, ReplicaSpec
from kserve_local.interfaces.devices import Device, DeviceInventory
from kserve_local.reconcile.controller import Engine as Loops
from kserve_local.settings import Settings
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, open_store
from tests.fakes.backend import FakeBackend, FakeReplica, FakeStorage
from tests.integration.project import Project, project, sample, wait_until

GPU = "nvidia.com/gpu"
HELD = (
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod."
)
TWO = DeviceInventory((Device("GPU-a", 0, "L4"), Device("GPU-b", 1, "L4")), present=True)


def pod(name: str, *gpus: int, **spec: Any) -> Object:
    """Return a Pod with a container for each number, which wants so many GPUs."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "containers": [
                {
                    "name": f"c{number}",
                    "image": "kserve/sklearnserver:v0.20.0",
                    "args": ["--model_name=iris", "--model_dir=/mnt/models"],
                    "resources": {"limits": {GPU: count} if count else {}},
                }
                for number, count in enumerate(gpus)
            ],
            **spec,
        },
    }


def key(name: str) -> Key:
    return Key("pods", "default", name)


@dataclass
class World:
    store: Store
    backend: FakeBackend

    async def until(self, name: str, holds: Any) -> Object:
        """Return the Pod as soon as it is as wanted."""
        last: Object = {}
        async with self.store.watch("pods") as events:
            async for event in events:
                last = event.object
                if last["metadata"]["name"] == name and holds(last):
                    return last
        raise AssertionError(f"the watch ended; last seen {last}")

    async def event(self, reason: str) -> Object:
        """Return the first Event with that reason as soon as it is written."""
        async with self.store.watch("events") as events:
            async for event in events:
                if event.object["reason"] == reason:
                    return event.object
        raise AssertionError("the watch ended")

    async def ready(self, name: str) -> Object:
        return await self.until(name, is_ready)

    def given(self, name: str) -> list[list[str] | None]:
        """Return the devices of each container that was started for a Pod."""
        spec = next(s for s in self.backend.specs if s.pod == name)
        return [None if c.devices is None else [d.id for d in c.devices] for c in spec.containers]


def is_ready(found: Object) -> bool:
    return (get_condition(found, "Ready") or {}).get("status") == "True"


def unplaced(found: Object) -> str:
    """Return why a Pod cannot be placed, empty if it is or nobody has looked."""
    condition = get_condition(found, "PodScheduled") or {}
    return str(condition.get("message") or "") if condition.get("status") == "False" else ""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    state = tmp_path / "project" / ".kserve-local"
    state.mkdir(parents=True)
    return Settings(
        project=state.parent, state=state, cache=tmp_path / "cache", runtime=tmp_path / "s"
    )


@asynccontextmanager
async def world_of(
    settings: Settings,
    inventory: DeviceInventory | None,
    machine: dict[str, FakeReplica] | None = None,
) -> AsyncIterator[World]:
    """Run a supervisor's node agent on what an earlier one left in store and machine."""
    addresses = AddressPool(settings.state, settings.cache)
    try:
        async with open_store(settings.database) as store:
            world = World(store, FakeBackend(machine))
            agent = NodeAgent(
                store,
                world.backend,
                FakeStorage(),
                EventRecorder(store),
                settings,
                addresses,
                Interpreter(Path("/usr/bin/python3"), has_kserve=False),
                node=NodeFacts("kserve-local", "127.0.0.1", "", cpu=2.0, memory_bytes=8 << 30),
                devices=inventory,
                patience=0.01,
            )
            loops = Loops(store, [agent])
            async with (
                asyncio.timeout(30),
                running(agent.run(), name="agent"),
                running(loops.run(), name="loops"),
            ):
                yield world
    finally:
        addresses.close()


# Allocation


async def test_pods_get_devices_of_their_own_and_it_is_written_down(settings: Settings) -> None:
    async with world_of(settings, TWO) as world:
        await world.store.create(pod("one", 1, 0))
        await world.store.create(pod("two", 1))
        found = [await world.ready("one"), await world.ready("two")]
        ids = [p["metadata"]["annotations"][names.DEVICES] for p in found]
        assert sorted(ids) == ["GPU-a", "GPU-b"]
        # A container without a limit sees none of its Pod's.
        assert world.given("one") == [[ids[0]], []]
        assert world.given("two") == [[ids[1]]]


async def test_a_pod_that_finds_none_waits_and_is_placed_when_one_is_freed(
    settings: Settings,
) -> None:
    async with world_of(settings, TWO) as world:
        await world.store.create(pod("big", 1, 1))
        await world.ready("big")
        await world.store.create(pod("waits", 1))
        found = await world.until("waits", unplaced)
        assert unplaced(found) == f"{HELD}\nNext step: wait for, or delete, what holds them (big)"
        assert found["status"]["phase"] == "Pending"
        assert "nodeName" not in found["spec"]
        event = await world.event("FailedScheduling")
        assert (event["involvedObject"]["name"], event["message"]) == ("waits", unplaced(found))
        await world.store.delete(key("big"))
        found = await world.ready("waits")
        assert unplaced(found) == ""
        # Not a moment before the last process of the other one had ended.
        assert len(world.backend.stops) == 1
        assert [s.pod for s in world.backend.specs] == ["big", "waits"]


async def test_a_pod_that_has_ended_holds_nothing(settings: Settings) -> None:
    """As a Job's: the object stays, its devices are free."""
    async with world_of(settings, TWO) as world:
        made = await world.store.create(pod("job", 2, restartPolicy="Never"))
        await world.ready("job")
        await world.store.create(pod("waits", 2))
        await world.until("waits", unplaced)
        world.backend.end(made["metadata"]["uid"], "c0", code=0, reason="Completed")
        await world.ready("waits")
        found = world.store.find(key("job"))
        assert found is not None
        assert found["status"]["phase"] == "Succeeded"


async def test_a_new_supervisor_gives_nothing_away_that_is_held(settings: Settings) -> None:
    machine: dict[str, FakeReplica] = {}
    async with world_of(settings, TWO, machine) as world:
        await world.store.create(pod("second", 1))
        await world.ready("second")
        await world.store.create(pod("other", 1))
        await world.ready("other")
        await world.store.delete(key("second"))
        await world.store.create(pod("third", 2))
        await world.until("third", unplaced)
    async with world_of(settings, TWO, machine) as world:
        await world.store.create(pod("new", 1))
        await world.ready("new")
        assert world.given("new") == [["GPU-a"]]
        other = world.store.find(key("other"))
        assert other is not None
        assert other["metadata"]["annotations"][names.DEVICES] == "GPU-b"
        await world.store.delete(key("new"))
        await world.store.delete(key("other"))
        await world.ready("third")
        assert world.given("third") == [["GPU-a", "GPU-b"]]


async def test_without_gpus_a_pod_waits_and_others_are_left_alone(settings: Settings) -> None:
    async with world_of(settings, None) as world:
        await world.store.create(pod("gpu", 1))
        found = await world.until("gpu", unplaced)
        assert "1 Preemption is not helpful for scheduling." in unplaced(found)
        assert "--simulate-gpus 1" in unplaced(found)
        await world.store.create(pod("cpu", 0))
        await world.ready("cpu")
        assert world.given("cpu") == [None]


async def test_a_mig_slice_is_refused_with_a_reason(settings: Settings) -> None:
    slices = pod("mig", 0)
    slices["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/mig-1g.5gb": 1}}
    async with world_of(settings, TWO) as world:
        await world.store.create(slices)
        found = await world.until("mig", unplaced)
        assert "1 Insufficient nvidia.com/mig-1g.5gb." in unplaced(found)
        assert "MIG slices are not offered here" in unplaced(found)


# Docker


def gpu_spec(settings: Settings, *devices: Device) -> ReplicaSpec:
    container = ContainerSpec(
        name="kserve-container",
        image="python:3.11-slim",
        argv=("sleep", "60"),
        log_path=settings.log_dir / "c.log",
        devices=devices,
        readiness=Probe("tcp", port=8080),
    )
    return ReplicaSpec("u-gpu", "default", "gpu-pod", (container,))


def test_what_holds_a_gpu_is_kept_for_nobody(settings: Settings) -> None:
    """A paused Pod would keep its GPU from all others."""
    volumes = settings.run_dir / "volumes"
    assert key_of(gpu_spec(settings), volumes)
    assert key_of(gpu_spec(settings, *TWO.offered), volumes) == ""


@pytest.mark.docker
async def test_the_engine_is_asked_for_exactly_these_devices(settings: Settings) -> None:
    """Made by a real engine and read back; without NVIDIA's runtime it cannot be started."""
    asked: list[Mapping[str, Any]] = []
    errors: list[str] = []

    class NeverStarts(Engine):
        async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
            if method == "start":
                found = await super().call("inspect_container", *args)
                asked.append(found["HostConfig"])
                raise KServeLocalError(
                    'could not select device driver "nvidia" with capabilities: [[gpu compute]]'
                )
            return await super().call(method, *args, **kwargs)

    engine = await NeverStarts.connect()
    spec = gpu_spec(settings, *TWO.offered)
    container = Container(
        engine, settings.state, spec, spec.containers[0], lambda c, kind, text: None
    )
    other = await Engine.connect()
    (settings.state / "hosts").touch()
    sandbox = await other.call(
        "create_container_from_config", {"Image": "python:3.11-slim", "Cmd": ["sleep", "60"]}
    )
    try:
        place = Place(
            sandbox=sandbox["Id"], ip="", inner="", ports={}, hosts=settings.state / "hosts"
        )
        with pytest.raises(KServeLocalError) as refused:
            await container.begin(place)
        errors.append(refused.value.hint)
        left = await other.call("containers", all=True, filters={"id": container.id})
        assert left == []
    finally:
        await other.call("remove_container", sandbox["Id"], force=True)
        await engine.close()
        await other.close()
    (host,) = asked
    (request,) = host["DeviceRequests"]
    assert {k: request[k] for k in ("Driver", "DeviceIDs", "Capabilities")} == {
        "Driver": "nvidia",
        "DeviceIDs": ["GPU-a", "GPU-b"],
        "Capabilities": [["gpu", "compute", "utility"]],
    }
    assert not request.get("Count")
    assert "NVIDIA Container Toolkit" in errors[0]


# The command line, with simulated GPUs


def services(**limits: str) -> str:
    return "---\n".join(
        f"""apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: {name}}}
spec:
  predictor:
    model:
      modelFormat: {{name: sklearn}}
      storageUri: ./model
      resources: {{limits: {{{limit}}}}}
"""
        for name, limit in limits.items()
    )


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two services that want the one GPU there is, the second applied once the first has it."""
    folder = sample("sklearn-iris", tmp_path_factory.mktemp("gpus") / "two")
    for manifest in folder.glob("*.yaml"):
        manifest.unlink()
    (folder / "first.yaml").write_text(services(first="nvidia.com/gpu: 1"))
    with project(folder) as own:
        own.up("--simulate-gpus", "1")
        (folder / "second.yaml").write_text(services(second="nvidia.com/gpu: 1"))
        own.up(check=4)
        yield own


IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}


def get(own: Project, path: str) -> str:
    """Return what the API answers."""
    url = urlsplit(own.run_file["api"]["url"])
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(str(url.hostname), url.port, context=trust)
    token = (own.state / "run" / "token").read_text().strip()
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def pods(own: Project, name: str) -> list[Any]:
    label = f"serving.kserve.io/inferenceservice={name}"
    return list(json.loads(get(own, f"/api/v1/pods?labelSelector={label}"))["items"])


def test_one_gpu_serves_one_service_and_says_so(simulated: Project) -> None:
    node = json.loads(simulated.run("get", "nodes", "-o", "json").stdout)
    node = node["items"][0] if "items" in node else node
    assert node["status"]["capacity"][GPU] == node["status"]["allocatable"][GPU] == "1"
    assert simulated.call("/v1/models/first:predict", IRIS) == (200, {"predictions": [1, 1]})
    first = simulated.service("first")
    (gpu,) = first["gpus"]
    assert (gpu["id"], gpu["simulated"], gpu["utilization"]) == ("simulated-0", True, None)
    assert first["standIns"][0].endswith(
        "simulated GPUs stand in for nvidia.com/gpu: 1; it runs on the CPU"
    )
    header, row = simulated.run("status", "first", "-o", "wide").stdout.splitlines()[:2]
    assert row[header.index("GPUS") :].startswith("0 (simulated)")
    text = get(simulated, "/apis/kserve-local.dev/v1/metrics")
    (line,) = [x for x in text.splitlines() if x.startswith("kserve_local_pod_gpu{")]
    assert 'UUID="simulated-0"' in line
    assert 'simulated="true"' in line
    assert "pod_memory_working_set_bytes{" in text


def test_the_other_service_says_what_it_waits_for(simulated: Project) -> None:
    second = simulated.service("second")
    assert not second["ready"]
    assert HELD in second["message"]
    assert pods(simulated, "first")[0]["metadata"]["name"] in second["message"]
    (waits,) = pods(simulated, "second")
    assert waits["status"]["phase"] == "Pending"
    assert unplaced(waits).startswith(HELD)


def test_a_supervisor_that_comes_after_a_crash_gives_it_to_nobody_else(simulated: Project) -> None:
    os.kill(simulated.run_file["pid"], signal.SIGKILL)
    simulated.up(check=4)  # With the flags of before.
    (waits,) = pods(simulated, "second")
    assert unplaced(waits).startswith(HELD)
    assert simulated.service("first")["ready"]
    refused = simulated.run("up", "-d", "--simulate-gpus", "2", check=6)
    assert "already runs with --simulate-gpus 1" in refused.stderr


def test_a_fraction_of_a_gpu_is_refused(simulated: Project) -> None:
    (simulated.folder / "half.yaml").write_text(services(half="nvidia.com/gpu: 500m"))
    simulated.run("apply", "-f", "half.yaml")
    message = 'resources.limits[nvidia.com/gpu]: Invalid value: "500m": must be an integer'
    wait_until(lambda: message in simulated.service("half")["message"])
    assert pods(simulated, "half") == []
    simulated.run("delete", "isvc", "half")
    (simulated.folder / "half.yaml").unlink()


def test_once_the_first_is_gone_the_second_is_placed(simulated: Project) -> None:
    simulated.run("delete", "isvc", "first")
    wait_until(lambda: simulated.service("second")["ready"], timeout=30)
    assert simulated.call("/v1/models/second:predict", IRIS) == (200, {"predictions": [1, 1]})
    (gpu,) = simulated.service("second")["gpus"]
    assert gpu["id"] == "simulated-0"


def test_a_gpu_that_is_not_there_is_no_start(tmp_path: Path) -> None:
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        refused = own.up("--gpu", "63", check=7)
        assert "GPU 63 is not there; this machine offers: " in refused.stderr
        wrong = own.up("--gpu", "first", check=None)
        assert "is not auto, none or numbers of GPUs" in wrong.stderr


# A real one

KERNEL = """import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
assert cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
assert cuda.cuCtxSetCurrent(context) == 0
PTX = b'''.version 6.0
.target sm_50
.address_size 64
.visible .entry fill(.param .u64 p0) {
  .reg .u32 %r<3>; .reg .u64 %d<4>;
  ld.param.u64 %d1, [p0]; cvta.to.global.u64 %d2, %d1;
  mov.u32 %r1, %tid.x; mul.wide.u32 %d3, %r1, 4; add.u64 %d2, %d2, %d3;
  mul.lo.u32 %r2, %r1, 3; st.global.u32 [%d2], %r2; ret;
}'''
module, function, memory = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuModuleLoadData(ctypes.byref(module), PTX) == 0
assert cuda.cuModuleGetFunction(ctypes.byref(function), module, b"fill") == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(128)) == 0
arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(memory), ctypes.c_void_p))
assert cuda.cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, None, arguments, None) == 0
out = (ctypes.c_uint32 * 32)()
assert cuda.cuMemcpyDtoH_v2(out, memory, ctypes.c_size_t(128)) == 0
assert list(out) == [3 * n for n in range(32)]
print(count.value)
"""


def nvidia_gpus() -> Sequence[Device]:
    return [d for d in Gpus().discover()[0] if d.vendor == "nvidia"]


@pytest.mark.gpu
def test_a_kernel_runs_on_the_gpu_of_the_pod_and_on_no_other() -> None:
    """With the environment of a process: one device is visible with a limit, none without."""
    from kserve_local.backends.launch import device_env

    found = nvidia_gpus()
    if not found:
        pytest.skip("this machine has no NVIDIA GPU that a driver answers for")
    for device in found:
        env = {**os.environ, **device_env([device], {})}
        done = subprocess.run(
            [sys.executable, "-c", KERNEL], env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    env = {**os.environ, **device_env([], {})}
    done = subprocess.run([sys.executable, "-c", KERNEL], env=env, capture_output=True, check=False)
    assert done.returncode != 0


def test_replicas_with_devices_are_adopted(settings: Settings) -> None:
    """The run file keeps what a container was given."""
    from kserve_local.backends.runfiles import RunFiles

    files = RunFiles(settings.run_dir / "pods")
    for devices in (TWO.offered, (), None):
        spec = gpu_spec(settings)
        spec = replace(spec, containers=(replace(spec.containers[0], devices=devices),))
        files.save(spec)
        assert files.load() == [spec]
