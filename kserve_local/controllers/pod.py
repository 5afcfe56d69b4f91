"""The node agent, our kubelet: makes Pods run through a `Backend` and writes their status back.

Reads Pods, Secrets, ConfigMaps and Services from the store and changes from the backend; writes
Pod status and Events. `pod_plan` decides, `pod_start` does, this file keeps the two together.
Level-triggered: every look starts from the stored Pod and what the backend reports, so a missed
event or a new supervisor costs nothing. Slow work (fetching, preparing, stopping) runs in tasks of
its own that wake the Pod when done. Words of Events and statuses are kubelet's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kserve_local.api import names, scheme
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.pods import WAITING_FOR_MEMORY
from kserve_local.controllers import capacity, empty_models, graph_pod, pod_state
from kserve_local.controllers import devices as gpus
from kserve_local.controllers.addresses import AddressPool, service_names
from kserve_local.controllers.devices import DeviceLedger
from kserve_local.controllers.environment import NodeFacts
from kserve_local.controllers.init_containers import log_path, recall
from kserve_local.controllers.pod_containers import (
    Interpreter,
    grace_of,
    init_containers,
    spec_containers,
)
from kserve_local.controllers.pod_plan import Plan, Record, id_of, plan_pod, restarted
from kserve_local.controllers.pod_start import CONFIG_ERROR, PodStarter
from kserve_local.controllers.pod_status import Running, Terminated
from kserve_local.controllers.pod_volumes import missing_claims, remove_volumes
from kserve_local.controllers.pod_work import (
    DOCKER,
    INITIALIZE,
    KUBELET,
    PodStore,
    Recorder,
    Work,
    meet,
    seen,
)
from kserve_local.errors import Conflict, KServeLocalError, NotFound
from kserve_local.interfaces.backend import Backend, ReplicaEvent, ReplicaStatus
from kserve_local.interfaces.devices import DeviceInventory
from kserve_local.interfaces.memory import MemoryGate
from kserve_local.interfaces.storage import StorageInitializer
from kserve_local.reconcile.controller import Watch, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.settings import Settings

logger = logging.getLogger(__name__)

STAND_IN_ANNOTATION = names.STAND_IN
DRAIN = 0.25
"""Seconds between a Pod leaving the routes and SIGTERM: the gateway's table is swapped by then."""
_FOR_THE_END = 1.0
_MAX_EVENTS = 1000
_UNKNOWN_GRACE = 5.0
_NAMES_EVERY = 0.2
"""Seconds in which changes of Services are told together."""
_KEPT_LOGS = 20


class NodeAgent:
    """Runs every Pod of the store on this machine.

    Wire it as one of the engine's controllers and keep `run()` running beside the engine.

    Args:
        node: Name, addresses and size of this machine.
        devices: The GPUs of this machine; without it there are none.
        clock: Unix time; for tests.
        released: Returns when the gateway has nothing more to do with a Pod (`namespace/name`).
        patience: Seconds for a gateway to be asked, where there may be none.
        started: Takes a Pod that has become Ready for the first time, and when the phases of its
            start began (`api.start_phases`).
        memory: Says when there is room for a Pod; None: always.
    """

    name = "node-agent"

    def __init__(
        self,
        store: PodStore,
        backend: Backend,
        storage: StorageInitializer,
        recorder: Recorder,
        settings: Settings,
        addresses: AddressPool,
        interpreter: Interpreter,
        *,
        node: NodeFacts,
        devices: DeviceInventory | None = None,
        clock: Callable[[], float] = time.time,
        released: Callable[[str], Awaitable[None]] | None = None,
        patience: float = DRAIN,
        started: Callable[[Object, Mapping[str, float]], None] = lambda pod, begins: None,
        memory: MemoryGate | None = None,
    ) -> None:
        self._store = store
        self._backend = backend
        self._recorder = recorder
        self._settings = settings
        self._addresses = addresses
        self._node = node
        self._devices = DeviceLedger(devices or DeviceInventory())
        self._clock = clock
        self._released = released
        self._patience = patience
        self._started = started
        self._memory = memory
        if memory is not None:
            memory.attach(self._look_at_waiting)
        self._work: dict[str, Work] = {}
        self._by_key: dict[Key, str] = {}
        self._replicas: dict[str, ReplicaStatus] = {}
        # Pods that ended since logs were last looked through.
        self._ended = 0
        self._pruning = asyncio.Lock()
        self._adopted = asyncio.Event()
        self._new_names = asyncio.Event()
        # How often Services have changed, and at which count each namespace was told their names.
        self._names_lock = asyncio.Lock()
        self._names_version = 0
        self._names_told: dict[str, int] = {}
        self._add: Callable[[Key], None] = lambda key: None
        self._tasks: asyncio.TaskGroup | None = None
        self._events: asyncio.Queue[tuple[Object, Literal["Normal", "Warning"], str, str, str]] = (
            asyncio.Queue(_MAX_EVENTS)
        )
        self._starter = PodStarter(
            store=store,
            backend=backend,
            storage=storage,
            settings=settings,
            interpreter=interpreter,
            node=node,
            devices=self._devices,
            replicas=self._replicas,
            note=self._note,
            wake=lambda key: self._add(key),
            tell_names=self._tell_names_in,
            clock=clock,
        )

    # -- the engine's side ------------------------------------------------------------------------

    @property
    def watches(self) -> Sequence[Watch]:
        """Pods, the Secrets and ConfigMaps that blocked Pods wait for, and Services."""
        return (
            Watch(scheme.POD.id, itself),
            Watch(scheme.SERVICE.id, self._names_changed),
            Watch(scheme.SECRET.id, self._blocked_in),
            Watch(scheme.CONFIG_MAP.id, self._blocked_in),
        )

    def attach(self, add: Callable[[Key], None]) -> None:
        """Take the engine's way to have a Pod looked at again; the engine calls it once."""
        self._add = add

    def _blocked_in(self, obj: Object) -> Iterable[Key]:
        """Return the Pods beside a Secret or ConfigMap that miss one, and let them try again."""
        namespace = namespace_of(obj)
        found = []
        for work in self._work.values():
            blocked = work.blocked
            if blocked is None or work.key.namespace != namespace:
                continue
            if any(w.reason == CONFIG_ERROR for w in blocked.waiting.values()):
                work.blocked = replace(blocked, retry_at=self._clock())
                found.append(work.key)
        return found

    def _names_changed(self, service: Object) -> Iterable[Key]:
        """Note that running Pods have names to learn; no Pod has to be looked at for it."""
        self._names_version += 1
        self._new_names.set()
        return ()

    async def _tell_names(self) -> None:
        """Let running Pods resolve the Services of now, a moment after the last change."""
        while True:
            await self._new_names.wait()
            await asyncio.sleep(_NAMES_EVERY)
            self._new_names.clear()
            for namespace in {work.key.namespace for work in self._work.values()}:
                await self._tell_names_in(namespace)

    async def _tell_names_in(self, namespace: str) -> None:
        """Let the Pods of a namespace resolve the Services of now, unless they do already."""
        # One at a time: an older list must not come after a newer one, and a hundred starts at
        # once share one.
        async with self._names_lock:
            version = self._names_version
            if self._names_told.get(namespace) == version:
                return
            names = service_names(self._store.list(scheme.SERVICE.id), namespace=namespace)
            try:
                await self._backend.resolve(namespace, names)
            except OSError as error:
                # A full disk: Pods go on with the names they know, the next start tries again.
                logger.warning("the names of Services in %s are not told: %s", namespace, error)
                return
            self._names_told[namespace] = version

    async def run(self) -> None:
        """Adopt what runs, then follow the backend until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                tasks.create_task(self._write_events(), name="node-agent-events")
                tasks.create_task(self._tell_names(), name="node-agent-names")
                await self._adopt()
                async for event in self._backend.events():
                    self._on_backend_event(event)
            finally:
                self._tasks = None
                for work in self._work.values():
                    for task in work.tasks.values():
                        task.cancel()

    async def _adopt(self) -> None:
        """Match running replicas to Pods by uid, and stop those that belong to nobody."""
        pods = {uid_of(pod): pod for pod in self._store.list(scheme.POD.id)}
        for uid, pod in pods.items():
            address = str((pod.get("status") or {}).get("podIP") or "")
            if address:
                self._addresses.keep_pod(uid, address)
        for replica in await self._backend.list():
            if replica.id in pods:
                self._replicas[replica.id] = _still_ready(replica, pods[replica.id])
                logger.info("adopted %s/%s", replica.namespace, replica.pod)
            else:
                logger.warning("stopping unknown replica %s of Pod %s", replica.id, replica.pod)
                self._spawn(self._stop_unknown(replica.id), name=f"stop-{replica.id}")
        for uid, pod in pods.items():
            # Before any Pod is looked at: what is in use must not be given away.
            if gpus.wanted_by(pod) and not pod_state.is_dead(pod):
                self._devices.keep(uid, gpus.ids_of(pod), running=uid in self._replicas)
            if self._memory is not None and uid in self._replicas and not pod_state.is_dead(pod):
                self._memory.keep(pod)
        for folder in await asyncio.to_thread(_subfolders, self._settings.run_dir / "volumes"):
            if folder.name not in pods:
                await asyncio.to_thread(remove_volumes, folder, _log_removal)
        await self._prune_logs()
        self._adopted.set()

    async def _prune_logs(self) -> None:
        """Delete logs of Pods that are gone but for the latest ones, which may be asked for."""
        async with self._pruning:
            self._ended = 0
            folders = await asyncio.to_thread(_subfolders, self._settings.log_dir)
            # Asked for after the folders: what came meanwhile is alive.
            alive = {name_of(pod) for pod in self._store.list(scheme.POD.id)}
            await asyncio.to_thread(_remove_oldest, [f for f in folders if f.name not in alive])

    async def _stop_unknown(self, replica: str) -> None:
        await self._backend.stop(replica, grace=_UNKNOWN_GRACE)

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None] | None:
        if self._tasks is None:
            work.close()
            return None
        return self._tasks.create_task(_guarded(work, name), name=name)

    def _start_task(self, work: Work, what: str, job: Coroutine[Any, Any, None]) -> None:
        """Run one slow job of a Pod, at most one of a kind at a time; its end wakes the Pod."""
        if what in work.tasks:
            job.close()
            return

        async def run() -> None:
            try:
                await job
            finally:
                work.tasks.pop(what, None)
                self._add(work.key)

        task = self._spawn(run(), name=f"{what}-{work.key.name}")
        if task is not None:
            work.tasks[what] = task
        else:
            job.close()

    # -- what the backend says --------------------------------------------------------------------

    def _on_backend_event(self, event: ReplicaEvent) -> None:
        if self._starter.take_end(event):
            return
        work = self._work.get(event.id)
        if work is None and event.id not in self._replicas:
            return  # the last words of a Pod that is gone
        self._replicas[event.id] = event.status
        if work is None:
            return
        pod = self._store.find(work.key)
        container = event.container
        if event.kind == "ready":
            record = work.records.get(container, Record())
            work.records[container] = replace(record, was_ready=True)
            self._became_ready(work, event)
        elif pod is None:
            pass
        elif event.kind == "unready" and event.message:
            self._note(pod, "Warning", "Unhealthy", event.message)
        elif event.kind == "unhealthy":
            self._note(pod, "Warning", "Unhealthy", event.message or "Liveness probe failed")
            text = f"Container {container} failed liveness probe, will be restarted"
            self._note(pod, "Normal", "Killing", text)
            work.unhealthy.add(container)
            job = self._backend.stop_container(event.id, container, grace=grace_of(pod))
            self._start_task(work, f"kill-{container}", job)
        elif event.kind == "note" and event.message:
            self._note(pod, "Normal", "Note", event.message)
        self._add(work.key)

    def _became_ready(self, work: Work, event: ReplicaEvent) -> None:
        """Take note of when the last container of a first start began and became ready."""
        if work.begins is None:
            return
        began = [c.began for c in event.status.containers if c.began is not None]
        if began:
            work.begins["load"] = max(began)
        work.begins["warm"] = time.monotonic()

    # -- Events -----------------------------------------------------------------------------------

    def _note(
        self,
        pod: Object,
        type_: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        component: str = KUBELET,
    ) -> None:
        """Queue an Event; a full queue drops it, since Events must never hold up a Pod."""
        try:
            self._events.put_nowait((pod, type_, reason, message, component))
        except asyncio.QueueFull:
            logger.warning("Event %s of Pod %s dropped: too many at once", reason, name_of(pod))

    async def _write_events(self) -> None:
        while True:
            pod, type_, reason, message, component = await self._events.get()
            await self._recorder.event(pod, type_, reason, message, component=component)

    # -- one Pod ----------------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> Result:
        """Bring one Pod closer to what it wants, and its status closer to the truth."""
        await self._adopted.wait()
        pod = self._store.find(key)
        former = self._work.get(self._by_key.get(key, ""))
        if former is not None and (pod is None or uid_of(pod) != former.uid):
            # The object is gone without asking: make sure nothing of it is left.
            self._end(former, grace=0.0, drain=False)
        if pod is None:
            return DONE
        work = self._work.get(uid_of(pod)) or self._meet(pod, key)
        if pod["metadata"].get("deletionTimestamp"):
            self._terminate(work, pod)
        if work.stopping:
            return DONE
        pod = await self._admit(work, pod)
        now = self._clock()
        if work.blocked and work.blocked.retry_at is not None and now >= work.blocked.retry_at:
            work.refused, work.blocked = work.blocked.waiting, None
        await self._starter.explain_ends(work, pod)
        replica = self._replicas.get(work.uid)
        if work.carried and not work.unschedulable:
            replica = graph_pod.carried(pod, ip=work.ip, now=now)
        there = self._backend.host_address() if work.in_docker else ""
        plan = plan_pod(pod, seen(work, replica, host_ip=there or self._node.host_ip), now)
        pod = await self._name_ports(work, pod)
        pod = await self._name_empty_models(work, pod)
        pod = await self._store.update_status({**pod, "status": plan.status})
        if pod_state.is_dead(pod):
            self._give_back(work.uid)
        if work.begins is not None and pod_state.is_ready(pod):
            begins, work.begins = work.begins, None
            self._started(pod, begins)
        for container in plan.backing_off:
            self._note_backoff(work, pod, container)
        self._carry_out(work, pod, plan)
        return Result(requeue_after=plan.again)

    async def _name_ports(self, work: Work, pod: Object) -> Object:
        """Write down the ports that are really listened on, where the Pod has no own address.

        Before the status says ready: who routes to the Pod must not find the ports it only names.
        """
        replica = self._replicas.get(work.uid)
        # The address that a process would have says nothing of a container.
        own = "" if work.in_docker else work.ip
        if own or replica is None or replica.ip:
            return pod
        real = {str(k): v for c in replica.containers for k, v in c.ports.items() if k != v}
        text = json.dumps(real, sort_keys=True) if real else ""
        if annotations_of(pod).get(names.PORTS, "") == text:
            return pod
        return await self._annotate(pod, names.PORTS, text)

    async def _name_empty_models(self, work: Work, pod: Object) -> Object:
        """Write down which models hold no file, and warn about them at the service."""
        text = "\n".join(work.empty or ())
        if work.empty is None or annotations_of(pod).get(names.EMPTY_MODEL, "") == text:
            return pod
        pod = await self._annotate(pod, names.EMPTY_MODEL, text)
        service = labels_of(pod).get(names.ISVC_LABEL, "")
        isvc = self._store.find(Key(scheme.INFERENCE_SERVICE.id, namespace_of(pod), service))
        for uri in work.empty:
            self._note(isvc or pod, "Warning", empty_models.REASON, empty_models.sentence(uri))
        return pod

    async def _annotate(self, pod: Object, name: str, value: str) -> Object:
        annotations = {**annotations_of(pod), name: value}
        return await self._store.update(
            {**pod, "metadata": {**pod["metadata"], "annotations": annotations}}
        )

    def _meet(self, pod: Object, key: Key) -> Work:
        """Start to remember a Pod: new, or met again by a new supervisor."""
        uid = uid_of(pod)
        address = str((pod.get("status") or {}).get("podIP") or "")
        if not (address and self._addresses.keep_pod(uid, address)):
            address = self._addresses.pod_ip(uid)
        work = meet(
            pod,
            key,
            ip=address,
            contents=recall(self._starter.folder(uid)),
            running=uid in self._replicas,
            now=self._clock(),
        )
        if uid not in self._replicas:
            work.begins = {"resolve": time.monotonic()}
        self._work[uid] = work
        self._by_key[key] = uid
        return work

    async def _admit(self, work: Work, pod: Object) -> Object:
        """Schedule the Pod: devices and claims, node name, stand-in annotation. Once per Pod."""
        if work.admitted:
            return pod
        reason = self._unschedulable(pod)
        work.waits = False
        if reason:
            if work.unschedulable != reason:
                work.unschedulable = reason
                self._note(pod, "Warning", "FailedScheduling", reason, "default-scheduler")
            return pod
        if self._waits_for_memory(work, pod):
            return pod
        work.unschedulable = ""
        held = self._devices.held_by(work.uid)
        devices = ",".join(device.id for device in held)
        if stand_in := graph_pod.stand_in(pod):
            work.carried, work.begins = True, None
            for container in spec_containers(pod):
                work.notes[str(container.get("name"))] = stand_in
                work.images[str(container.get("name"))] = graph_pod.IMAGE_ID
                log = log_path(self._settings.log_dir, pod, container)
                await asyncio.to_thread(graph_pod.leave_word, log)
        elif work.uid not in self._replicas:
            for spec in await self._starter.choose_programs(work, pod):
                self._start_task(work, f"warm-{spec.name}", self._starter.warm(work, pod, spec))
        if not (pod.get("spec") or {}).get("nodeName"):
            annotations = dict(annotations_of(pod))
            simulation = gpus.simulation_of(held)
            notes = [*(work.notes[n] for n in sorted(work.notes)), simulation]
            note = "; ".join(filter(None, notes))
            if note:
                annotations[STAND_IN_ANNOTATION] = note
            if work.in_docker:
                annotations[names.BACKEND] = DOCKER
            if devices:
                annotations[names.DEVICES] = devices
            pod = await self._store.update(
                {
                    **pod,
                    "metadata": {**pod["metadata"], "annotations": annotations},
                    "spec": {**pod["spec"], "nodeName": self._node.name},
                }
            )
            where = f"{namespace_of(pod)}/{name_of(pod)} to {self._node.name}"
            text = f"Successfully assigned {where}"
            self._note(pod, "Normal", "Scheduled", text, "default-scheduler")
            if simulation:
                self._note(pod, "Normal", "StandIn", simulation)
        elif devices and annotations_of(pod).get(names.DEVICES) != devices:
            pod = await self._annotate(pod, names.DEVICES, devices)
        work.admitted = True
        return pod

    def _unschedulable(self, pod: Object) -> str:
        claims = missing_claims(pod, self._settings.claims)
        if claims:
            return (
                f'0/1 nodes are available: persistentvolumeclaim "{claims[0]}" not found. Map it '
                f"to a folder in kserve-local.yaml: storage: {{claims: {{{claims[0]}: ./DIR}}}}"
            )
        if not graph_pod.stand_in(pod) and (refused := capacity.refusal(pod, self._node)):
            return refused
        wanted = gpus.wanted_by(pod)
        if not wanted or pod_state.is_dead(pod):
            return ""
        pods = {uid_of(p): name_of(p) for p in self._store.list(scheme.POD.id)}
        # A Pod on its way out holds its devices until its last process has ended.
        self._devices.release_all_but({*pods, *self._work})
        if self._devices.take(uid_of(pod), wanted):
            return ""
        holders = (pods.get(uid, uid) for uid in self._devices.holders())
        return self._devices.refusal(wanted, holders)

    def _waits_for_memory(self, work: Work, pod: Object) -> bool:
        """Reserve the memory that the Pod may need; tell if it has to wait, and say why.

        The figures of a wait change all the time: an Event tells of each kind of it once.
        """
        if self._memory is None or graph_pod.stand_in(pod) or pod_state.is_dead(pod):
            return False
        refused = self._memory.reserve(pod)
        if refused is None:
            return False
        work.unschedulable, work.waits = refused.message, refused.kind != "never"
        if (what := f"memory {refused.kind}") not in work.announced:
            work.announced.add(what)
            type_: Literal["Normal", "Warning"] = "Normal" if work.waits else "Warning"
            reason = WAITING_FOR_MEMORY if work.waits else "FailedScheduling"
            self._note(pod, type_, reason, refused.message, "default-scheduler")
        return True

    def _give_back(self, uid: str) -> None:
        """Take back a Pod's devices and memory, and look again at the Pods that wait, in order."""
        freed = self._devices.release(uid)
        if self._memory is not None:
            freed = self._memory.release(uid) or freed
        if freed:
            self._look_at_waiting()

    def _look_at_waiting(self) -> None:
        waiting = [work for work in self._work.values() if work.unschedulable]
        for work in waiting:
            self._add(work.key)

    def _note_backoff(self, work: Work, pod: Object, container: str) -> None:
        record = work.records.get(container, Record())
        what = f"backoff-{container}-{record.restarts}"
        if what not in work.announced:
            work.announced.add(what)
            self._note(
                pod,
                "Warning",
                "BackOff",
                f"Back-off restarting failed container {container} in pod "
                f"{name_of(pod)}_{namespace_of(pod)}({work.uid})",
            )

    # -- doing ------------------------------------------------------------------------------------

    def _carry_out(self, work: Work, pod: Object, plan: Plan) -> None:
        if work.unschedulable or work.stopping:
            return
        if plan.initialize:
            self._initialize(work, pod, plan.initialize)
        if plan.create and not work.creating:
            self._starter.count_lost(work, pod)
            work.creating = True
            self._start_task(work, "create", self._starter.create(work, pod))
        for name in plan.restart:
            self._start_task(work, f"restart-{name}", self._starter.restart(work, pod, name))

    def _initialize(self, work: Work, pod: Object, name: str) -> None:
        work.enters("download")
        now = self._clock()
        before = work.init.pop(name, None)
        if isinstance(before, Terminated):
            work.records[name] = restarted(work.records.get(name, Record()), before, now=now)
        if name == names.STORAGE_INITIALIZER:
            work.init[name] = Running(now)
        container = next(c for c in init_containers(pod) if c.get("name") == name)
        if f"init-{name}" not in work.announced:
            work.announced.add(f"init-{name}")
            self._note(pod, "Normal", "Created", f"Created container: {name}")
            self._note(pod, "Normal", "Started", f"Started container {name}")
        job = self._starter.initialize(work, pod, container, now)
        self._start_task(work, f"{INITIALIZE}{name}", job)
        self._add(work.key)

    # -- the end of a Pod -------------------------------------------------------------------------

    def _terminate(self, work: Work, pod: Object) -> None:
        """Begin to stop a Pod that was deleted; a second, shorter grace shortens the first."""
        if not work.stopping and work.uid in self._replicas:
            for container in spec_containers(pod):
                self._note(pod, "Normal", "Killing", f"Stopping container {container.get('name')}")
        grace = grace_of(pod)
        self._end(work, grace=grace, drain=grace > 0)

    def _end(self, work: Work, *, grace: float, drain: bool) -> None:
        work.stopping = True
        self._start_task(work, "stop", self._stop(work, grace=grace, drain=drain))

    async def _stop(self, work: Work, *, grace: float, drain: bool) -> None:
        """Drain, stop, clean up, and take the Pod object away."""
        others = [t for what, t in work.tasks.items() if what != "stop"]
        for task in others:
            task.cancel()
        if others:
            await asyncio.gather(*others, return_exceptions=True)
        if drain and work.uid in self._replicas:
            grace -= await self._drain(work.key, grace)
        await self._backend.stop(work.uid, grace=grace)
        self._replicas.pop(work.uid, None)
        await asyncio.to_thread(remove_volumes, self._starter.folder(work.uid), _log_removal)
        self._addresses.release(work.uid)
        self._give_back(work.uid)
        # The object may be gone already, or its name belong to a new Pod.
        with suppress(NotFound, Conflict):
            await self._store.delete(work.key, uid=work.uid, grace=0)
        self._work.pop(work.uid, None)
        if self._by_key.get(work.key) == work.uid:
            del self._by_key[work.key]
        self._ended += 1
        if self._ended >= _KEPT_LOGS and not self._pruning.locked():
            await self._prune_logs()

    async def _drain(self, key: Key, grace: float) -> float:
        """Let the Pod's requests finish, as queue-proxy does before SIGTERM; return the seconds.

        Bounded by the grace, of which a second is left for the server's own end.
        """
        begun = time.monotonic()
        if self._released is None:
            await asyncio.sleep(self._patience)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(grace - _FOR_THE_END, self._patience)):
                    await self._released(f"{key.namespace}/{key.name}")
        return min(time.monotonic() - begun, max(0.0, grace - _FOR_THE_END))


def _still_ready(replica: ReplicaStatus, pod: Object) -> ReplicaStatus:
    """Return an adopted replica whose containers are as ready as the Pod's status said.

    Until its first probe the backend cannot know; a Pod that was serving must not leave the
    routes because its supervisor was restarted.
    """
    ready = {
        (s.get("name"), s.get("containerID"))
        for s in (pod.get("status") or {}).get("containerStatuses") or ()
        if s.get("ready")
    }
    return replace(
        replica,
        containers=tuple(
            replace(c, ready=True) if c.state == "running" and (c.name, id_of(c)) in ready else c
            for c in replica.containers
        ),
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir())
    except FileNotFoundError:
        return []


def _remove_oldest(folders: Sequence[Path]) -> None:
    """Delete all but the `_KEPT_LOGS` newest."""
    by_age = sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)
    for old in by_age[_KEPT_LOGS:]:
        remove_volumes(old, _log_removal)


def _log_removal(error: OSError) -> None:
    logger.warning("a Pod's folder could not be removed: %s", error)


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    """Keep one job's failure from ending the agent."""
    try:
        await work
    except KServeLocalError as error:
        logger.error("%s failed: %s", name, error)
    except Exception:
        logger.exception("%s failed", name)
