"""The control plane's loops over one store: controllers, node agent, garbage, Events' expiry.

Builds each with what it needs and keeps them running while the block is open.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from kserve_local import __version__
from kserve_local.aio import running
from kserve_local.api import builtin, scheme
from kserve_local.api.config import InferenceServiceConfig, parse
from kserve_local.api.meta import Key, Object, timestamp
from kserve_local.apiserver.discovery import VERSION
from kserve_local.autoscaler.hpa_loop import HPAController
from kserve_local.autoscaler.loop import Autoscaler
from kserve_local.autoscaler.memory import MemoryBudget
from kserve_local.backends.engine_images import engine_images
from kserve_local.controllers import pod_mutators
from kserve_local.controllers.addresses import AddressPool
from kserve_local.controllers.chain import ChainSettings, ensure_local_gateway, knative_chain
from kserve_local.controllers.environment import NodeFacts
from kserve_local.controllers.observed import Observations
from kserve_local.controllers.pod import NodeAgent
from kserve_local.controllers.pod_containers import Interpreter
from kserve_local.errors import KServeLocalError, NotFound
from kserve_local.interfaces.backend import Backend, Usage
from kserve_local.interfaces.devices import DeviceInventory
from kserve_local.interfaces.holds import Holds
from kserve_local.interfaces.routing import RouteSink
from kserve_local.reconcile.controller import Engine
from kserve_local.settings import Settings
from kserve_local.storage.initializer import Initializer
from kserve_local.storage.snapshots import Snapshots
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store
from kserve_local.supervisor.model_snapshots import SnapshotGarbage
from kserve_local.supervisor.statedir import MODELS

_CONFIG = Key(scheme.CONFIG_MAP.id, "kserve", "inferenceservice-config")
NODE_NAME = "kserve-local"


class ControlPlane:
    """Everything that reconciles.

    Args:
        routes: Where route tables go: the gateway.
        observed: Where is told what became of each InferenceService's spec.
        devices: The GPUs of this machine.
        released: Returns when the gateway has nothing more to do with a Pod.
        started: Takes a Pod that has become Ready, and the stamps of its start.
        holds: Which Pods have a debugger, and which stand at a breakpoint.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        recorder: EventRecorder,
        backend: Backend,
        routes: RouteSink,
        addresses: AddressPool,
        observed: Observations,
        devices: DeviceInventory,
        released: Callable[[str], Awaitable[None]],
        started: Callable[[Object, Mapping[str, float]], None],
        holds: Holds,
    ) -> None:
        self._settings = settings
        self._store = store
        self._addresses = addresses
        self._facts = node_facts()
        self._devices = devices
        chain = knative_chain(
            store,
            recorder,
            routes,
            ChainSettings(
                domain=settings.gateway_domain,
                progress_deadline=settings.progress_deadline,
                host_address=backend.host_address,
                mutate=self._mutate,
                service_ip=addresses.service_ip,
                holds=holds,
            ),
            observed,
        )
        self.memory: MemoryBudget | None = None
        if settings.memory_budget_bytes is not None:
            self.memory = MemoryBudget(
                settings.memory_budget_bytes,
                store,
                recorder,
                backend,
                pinned=settings.pinned,
                holds=holds,
            )
        snapshots = Snapshots(settings.state / MODELS)
        self._garbage = SnapshotGarbage(store, snapshots, settings.run_dir / "volumes")
        self._agent = NodeAgent(
            store,
            backend,
            Initializer.of(
                settings,
                os.environ,
                images=engine_images(settings, os.environ),
                snapshots=snapshots if settings.watch else None,
            ),
            recorder,
            settings,
            addresses,
            _interpreter(settings),
            node=self._facts,
            devices=devices,
            released=released,
            started=started,
            memory=self.memory,
        )
        self.autoscaler = Autoscaler(
            store,
            recorder,
            speed=settings.scaling_speed,
            grace=settings.scale_to_zero_grace,
            pinned=settings.pinned,
            holds=holds,
        )
        hpas = HPAController(
            store,
            recorder,
            meter=functools.partial(_used, backend),
            speed=settings.scaling_speed,
            holds=holds,
        )
        self._engine = Engine(store, [*chain, self.autoscaler, hpas, self._agent])

    def _config(self) -> InferenceServiceConfig:
        return parse(self._store.find(_CONFIG) or builtin.config_map())

    def _lookup(self, resource: str, namespace: str | None) -> Sequence[Object]:
        return self._store.list(resource, namespace=namespace)

    def _mutate(self, pod: Object) -> Object:
        mutated: Object = pod_mutators.mutate(pod, config=self._config(), lookup=self._lookup)
        return mutated

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reconcile while the block is open.

        At a clean end the Pods are deleted, since nothing of them runs on: the next start makes
        new ones instead of reporting the old ones as failed.
        """
        for service in self._store.list(scheme.SERVICE.id):
            address = str(service["spec"].get("clusterIP") or "None")
            if address != "None":
                # Before any Service is looked at: what is in use must not be given away.
                self._addresses.keep_service(scheme.key_of(service), address)
        await ensure_local_gateway(self._store, self._addresses.service_ip)
        await _tell_of_node(self._store, self._facts, self._devices)
        await self._garbage.begin()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running(self._garbage.run(), name="model-snapshots"))
            await stack.enter_async_context(running(self._agent.run(), name="node-agent"))
            await stack.enter_async_context(running(self.autoscaler.run(), name="autoscaler"))
            if self.memory is not None:
                await stack.enter_async_context(running(self.memory.run(), name="memory-budget"))
            await stack.enter_async_context(running(self._engine.run(), name="controllers"))
            yield
        for pod in self._store.list(scheme.POD.id):
            with suppress(NotFound):
                await self._store.delete(scheme.key_of(pod), grace=0)


async def _used(backend: Backend, uid: str) -> Usage | None:
    """Return what a Pod has used; None: it has ended, or its engine does not answer."""
    try:
        return await backend.usage(uid)
    except KServeLocalError:
        return None


def node_facts() -> NodeFacts:
    """Return this machine's size, as the Node object and `resourceFieldRef` show it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return NodeFacts(
        name=NODE_NAME, host_ip="127.0.0.1", pod_ip="", cpu=float(cores or 1), memory_bytes=memory
    )


def _interpreter(settings: Settings) -> Interpreter:
    from kserve_local.supervisor.supervisor import interpreter_of

    path, has_kserve = interpreter_of(settings)
    return Interpreter(path=path, has_kserve=has_kserve)


def node_status(facts: NodeFacts, devices: DeviceInventory, *, now: str) -> dict[str, Any]:
    """Return the `status` of the Node that this machine is."""
    size = {"cpu": f"{facts.cpu:g}", "memory": f"{facts.memory_bytes // 1024}Ki", "pods": "1000"}
    size |= {resource: str(count) for resource, count in devices.size.items()}
    machine = platform.machine()
    return {
        "capacity": size,
        "allocatable": size,
        "addresses": [
            {"type": "InternalIP", "address": facts.host_ip},
            {"type": "Hostname", "address": facts.name},
        ],
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "kserve-local is posting ready status",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }
        ],
        "nodeInfo": {
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
            "kernelVersion": platform.release(),
            "osImage": platform.system(),
            "containerRuntimeVersion": "kserve-local://" + __version__,
            "kubeletVersion": VERSION["gitVersion"],
            "kubeProxyVersion": "",
            "operatingSystem": platform.system().lower(),
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine),
        },
    }


async def _tell_of_node(store: Store, facts: NodeFacts, devices: DeviceInventory) -> None:
    """Say of the Node that it is up and how large it is, for `kubectl get nodes`."""
    node = store.find(Key(scheme.NODE.id, "", facts.name))
    if node is not None:
        await store.update_status({**node, "status": node_status(facts, devices, now=timestamp())})
