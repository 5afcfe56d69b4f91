"""The node agent, our kubelet: makes Pods run through a `Backend` and writes their status back.

Reads Pods, Secrets, ConfigMaps and Services from the store and changes from the backend; writes
Pod status, Events, the Pod's own folder `run/volumes/<uid>/`, and calls the backend and the
storage initializer. `plan_pod` decides, this file does. Level-triggered: every look starts from
the stored Pod and what the backend reports, so a missed event or a new supervisor costs nothing.
Slow work (fetching, preparing, stopping) runs in tasks of its own that wake the Pod when done.
Words of Events and statuses are kubelet's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from kserve_local.api import names, scheme
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.controllers.addresses import AddressPool, holder_of, service_names
from kserve_local.controllers.environment import ConfigError, NodeFacts, Sources
from kserve_local.controllers.init_containers import (
    InitFailed,
    fetch_all,
    log_path,
    plan_fetches,
    recall,
    remember,
)
from kserve_local.controllers.pod_containers import (
    Interpreter,
    Surroundings,
    all_containers,
    container_spec,
    grace_of,
    init_containers,
    limit_of,
    missing_devices,
    replica_spec,
)
from kserve_local.controllers.pod_faults import (
    Ended,
    diagnose,
    is_address_taken,
    tail,
    wanted_address,
)
from kserve_local.controllers.pod_plan import (
    Blocked,
    Plan,
    Record,
    Seen,
    backoff_delay,
    lost,
    plan_pod,
    records_of,
    restarted,
    seen_termination,
)
from kserve_local.controllers.pod_status import (
    Running,
    Terminated,
    Waiting,
    terminated_from_json,
)
from kserve_local.controllers.pod_volumes import (
    Content,
    VolumePlaces,
    missing_claims,
    remove_volumes,
)
from kserve_local.controllers.standins import NoStandIn, source_for
from kserve_local.errors import Conflict, KServeLocalError, Missing, NotFound
from kserve_local.interfaces.backend import (
    Backend,
    ContainerSpec,
    ContainerStatus,
    Progress,
    ReplicaEvent,
    ReplicaStatus,
)
from kserve_local.interfaces.storage import StorageInitializer
from kserve_local.reconcile.controller import Watch, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.settings import Settings

logger = logging.getLogger(__name__)

STAND_IN_ANNOTATION = f"{names.LOCAL_PREFIX}/stand-in"
DRAIN = 0.25
"""Seconds between a Pod leaving the routes and SIGTERM: the gateway's table is swapped by then."""
_CONFIG_RETRY = 2.0
_LOG_WINDOW = 16 * 1024
_NEVER_PULLED = "ErrImageNeverPull"
KUBELET = "kubelet"


class PodStore(Protocol):
    """What the node agent needs of the store."""

    def find(self, key: Key) -> Object | None: ...

    def list(
        self,
        resource: str,
        *,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[Object]: ...

    async def update(self, obj: Object) -> Object: ...

    async def update_status(self, obj: Object) -> Object: ...

    async def delete(
        self, key: Key, *, uid: str | None = None, grace: float | None = None
    ) -> Object: ...


class Recorder(Protocol):
    """Takes Events."""

    async def event(
        self,
        obj: Object,
        type_: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        *,
        component: str = "",
    ) -> None: ...


@dataclass(slots=True)
class _Work:
    """What the agent remembers of one Pod; everything that matters can be found out again."""

    uid: str
    key: Key
    ip: str
    records: dict[str, Record]
    contents: dict[str, tuple[Content, ...]]
    init: dict[str, Running | Terminated] = field(default_factory=dict)
    specs: dict[str, ContainerSpec] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    messages: dict[tuple[str, float | None], str] = field(default_factory=dict)
    log_offsets: dict[str, int] = field(default_factory=dict)
    announced: set[str] = field(default_factory=set)
    blocked: Blocked | None = None
    failures: int = 0
    admitted: bool = False
    unschedulable: str = ""
    creating: bool = False
    stopping: bool = False
    removed: bool = False
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)


class NodeAgent:
    """Runs every Pod of the store on this machine.

    Wire it as one of the engine's controllers and keep `run()` running beside the engine.

    Args:
        node: Name, addresses and size of this machine.
        devices: Extended resources that can be had, e.g. `{"nvidia.com/gpu": 1}`.
        clock: Unix time; for tests.
        drain: Seconds between a Pod leaving the routes and SIGTERM.
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
        devices: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.time,
        drain: float = DRAIN,
    ) -> None:
        self._store = store
        self._backend = backend
        self._storage = storage
        self._recorder = recorder
        self._settings = settings
        self._addresses = addresses
        self._interpreter = interpreter
        self._node = node
        self._devices = devices or {}
        self._clock = clock
        self._drain = drain
        self._work: dict[str, _Work] = {}
        self._by_key: dict[Key, str] = {}
        self._replicas: dict[str, ReplicaStatus] = {}
        self._adopted = asyncio.Event()
        self._add: Callable[[Key], None] = lambda key: None
        self._tasks: asyncio.TaskGroup | None = None
        self._events: asyncio.Queue[tuple[Object, str, str, str, str]] = asyncio.Queue(1000)

    # -- the engine's side ------------------------------------------------------------------------

    @property
    def watches(self) -> Sequence[Watch]:
        """Pods, and the Secrets and ConfigMaps that blocked Pods wait for."""
        return (
            Watch(scheme.POD.id, itself),
            Watch(scheme.SECRET.id, self._blocked_in),
            Watch(scheme.CONFIG_MAP.id, self._blocked_in),
        )

    def attach(self, add: Callable[[Key], None]) -> None:
        """Take the engine's way to have a Pod looked at again; the engine calls it once."""
        self._add = add

    def _blocked_in(self, obj: Object) -> Iterable[Key]:
        namespace = namespace_of(obj)
        found = []
        for work in self._work.values():
            blocked = work.blocked
            if blocked is None or work.key.namespace != namespace:
                continue
            if any(w.reason == "CreateContainerConfigError" for w in blocked.waiting.values()):
                work.blocked = replace(blocked, retry_at=self._clock())
                found.append(work.key)
        return found

    async def run(self) -> None:
        """Adopt what runs, then follow the backend until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                tasks.create_task(self._write_events(), name="node-agent-events")
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
                self._replicas[replica.id] = replica
                logger.info("adopted %s/%s", replica.namespace, replica.pod)
            else:
                logger.warning("stopping unknown replica %s of Pod %s", replica.id, replica.pod)
                self._spawn(self._stop_unknown(replica.id), name=f"stop-{replica.id}")
        for folder in await asyncio.to_thread(_subfolders, self._settings.run_dir / "volumes"):
            if folder.name not in pods:
                await asyncio.to_thread(remove_volumes, folder, _log_removal)
        self._adopted.set()

    async def _stop_unknown(self, replica: str) -> None:
        await self._backend.stop(replica, grace=5.0)
        await asyncio.to_thread(remove_volumes, self._folder(replica), _log_removal)

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None] | None:
        if self._tasks is None:
            work.close()
            return None
        return self._tasks.create_task(_guarded(work, name), name=name)

    def _start_task(self, work: _Work, what: str, job: Coroutine[Any, Any, None]) -> None:
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
        self._replicas[event.id] = event.status
        work = self._work.get(event.id)
        if work is None:
            return
        pod = self._store.find(work.key)
        container = event.container
        if event.kind == "ready":
            record = work.records.get(container, Record())
            work.records[container] = replace(record, was_ready=True)
        elif pod is None:
            pass
        elif event.kind == "unready" and event.message:
            self._note(pod, "Warning", "Unhealthy", event.message)
        elif event.kind == "unhealthy":
            self._note(pod, "Warning", "Unhealthy", event.message or "Liveness probe failed")
            self._note(
                pod,
                "Normal",
                "Killing",
                f"Container {container} failed liveness probe, will be restarted",
            )
            grace = grace_of(pod)
            job = self._backend.stop_container(event.id, container, grace=grace)
            self._start_task(work, f"kill-{container}", job)
        elif event.kind == "note" and event.message:
            self._note(pod, "Normal", "Note", event.message)
        self._add(work.key)

    # -- Events -----------------------------------------------------------------------------------

    def _note(
        self, pod: Object, type_: str, reason: str, message: str, component: str = KUBELET
    ) -> None:
        """Queue an Event; a full queue drops it, since Events must never hold up a Pod."""
        try:
            self._events.put_nowait((pod, type_, reason, message, component))
        except asyncio.QueueFull:
            logger.warning("Event %s of Pod %s dropped: too many at once", reason, name_of(pod))

    async def _write_events(self) -> None:
        while True:
            pod, type_, reason, message, component = await self._events.get()
            kind: Literal["Normal", "Warning"] = "Normal" if type_ == "Normal" else "Warning"
            await self._recorder.event(pod, kind, reason, message, component=component)

    # -- one Pod ----------------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> Result:
        """Bring one Pod closer to what it wants, and its status closer to the truth."""
        await self._adopted.wait()
        pod = self._store.find(key)
        known = self._by_key.get(key)
        if known is not None and (pod is None or uid_of(pod) != known):
            await self._forget(self._work[known])
        if pod is None:
            return DONE
        work = self._work.get(uid_of(pod)) or self._meet(pod, key)
        if pod["metadata"].get("deletionTimestamp"):
            self._terminate(work, pod)
            return DONE
        if work.stopping:
            return DONE
        pod = await self._admit(work, pod)
        now = self._clock()
        if work.blocked and work.blocked.retry_at is not None and now >= work.blocked.retry_at:
            work.blocked = None
        await self._explain_terminations(work, pod)
        plan = plan_pod(pod, self._seen(work), now)
        pod = await self._store.update_status({**pod, "status": plan.status})
        for container in plan.backing_off:
            self._note_backoff(work, pod, container)
        self._carry_out(work, pod, plan)
        return Result(requeue_after=plan.again)

    def _meet(self, pod: Object, key: Key) -> _Work:
        """Start to remember a Pod: new, or met again by a new supervisor."""
        uid = uid_of(pod)
        now = self._clock()
        address = str((pod.get("status") or {}).get("podIP") or "")
        if not (address and self._addresses.keep_pod(uid, address)):
            address = self._addresses.pod_ip(uid)
        contents = recall(self._folder(uid))
        work = _Work(
            uid=uid, key=key, ip=address, records=records_of(pod, now=now), contents=contents
        )
        done = {
            str(s.get("name")): s
            for s in (pod.get("status") or {}).get("initContainerStatuses") or ()
        }
        for container in init_containers(pod):
            name = str(container.get("name"))
            if name in contents:
                ended = (done.get(name, {}).get("state") or {}).get("terminated")
                work.init[name] = _completed(ended, now)
        self._work[uid] = work
        self._by_key[key] = uid
        return work

    def _seen(self, work: _Work) -> Seen:
        replica = self._replicas.get(work.uid)
        messages: dict[str, str] = {}
        if replica is not None:
            for status in replica.containers:
                found = work.messages.get((status.name, status.finished_at))
                if found is not None:
                    messages[status.name] = found
        return Seen(
            ip=work.ip,
            host_ip=self._node.host_ip,
            unschedulable=work.unschedulable,
            init=dict(work.init),
            creating=work.creating,
            blocked=work.blocked,
            replica=replica,
            records=dict(work.records),
            messages=messages,
            images=dict(work.images),
        )

    async def _admit(self, work: _Work, pod: Object) -> Object:
        """Schedule the Pod: devices and claims, node name, stand-in annotation. Once per Pod."""
        if work.admitted:
            return pod
        reason = self._unschedulable(pod)
        if reason:
            if work.unschedulable != reason:
                work.unschedulable = reason
                self._note(pod, "Warning", "FailedScheduling", reason, "default-scheduler")
            return pod
        work.unschedulable = ""
        if self._replicas.get(work.uid) is None:
            pod = await self._choose_programs(work, pod)
        if not (pod.get("spec") or {}).get("nodeName"):
            annotations = dict(annotations_of(pod))
            note = "; ".join(work.notes[n] for n in sorted(work.notes) if work.notes[n])
            if note:
                annotations[STAND_IN_ANNOTATION] = note
            pod = await self._store.update(
                {
                    **pod,
                    "metadata": {**pod["metadata"], "annotations": annotations},
                    "spec": {**pod["spec"], "nodeName": self._node.name},
                }
            )
            self._note(
                pod,
                "Normal",
                "Scheduled",
                f"Successfully assigned {namespace_of(pod)}/{name_of(pod)} to {self._node.name}",
                "default-scheduler",
            )
        work.admitted = True
        return pod

    def _unschedulable(self, pod: Object) -> str:
        claims = missing_claims(pod, self._settings.claims)
        if claims:
            return (
                f'0/1 nodes are available: persistentvolumeclaim "{claims[0]}" not found. Map it '
                f"to a folder in kserve-local.yaml: storage: {{claims: {{{claims[0]}: ./DIR}}}}"
            )
        devices = missing_devices(pod, self._devices)
        if devices:
            return f"0/1 nodes are available: 1 Insufficient {devices[0]}."
        return ""

    async def _choose_programs(self, work: _Work, pod: Object) -> Object:
        """Find out early which image has no program, before anything is downloaded."""
        places = self._places(work)
        around = self._around(work, pod)
        blocked: dict[str, Waiting] = {}
        made: dict[str, Path] = {}
        for container in all_containers(pod):
            name = str(container.get("name"))
            try:
                built = await asyncio.to_thread(
                    container_spec, pod, container, places, around, made=made
                )
            except ConfigError:
                continue  # said once the init containers are done, as kubelet does
            if isinstance(built, NoStandIn):
                blocked[name] = Waiting(_NEVER_PULLED, built.message)
            else:
                work.notes[name] = built.note
                if not (work.contents or not init_containers(pod)):
                    self._start_task(work, f"warm-{name}", self._warm(built.spec))
        for container in init_containers(pod):
            name, image = str(container.get("name")), str(container.get("image") or "")
            if name != names.STORAGE_INITIALIZER:
                blocked[name] = Waiting(
                    _NEVER_PULLED,
                    f'Container image "{image}" cannot run here: only the init container '
                    f'"{names.STORAGE_INITIALIZER}" is carried out without a container engine. '
                    f'Remove init container "{name}", or do its work in the main container.',
                )
        if blocked:
            self._block(work, pod, blocked)
        return pod

    async def _warm(self, spec: ContainerSpec) -> None:
        """Prepare what the container needs while its model is fetched. `_create` tells failures."""
        try:
            await self._backend.prepare(spec, lambda progress: None)
            await self._backend.warm(spec)
        except KServeLocalError as error:
            logger.debug("early preparation failed: %s", error)

    def _block(
        self,
        work: _Work,
        pod: Object,
        waiting: Mapping[str, Waiting],
        *,
        retry: float | None = None,
    ) -> None:
        work.blocked = Blocked(waiting, None if retry is None else self._clock() + retry)
        for each in waiting.values():
            self._note(pod, "Warning", "Failed", f"Error: {each.message or each.reason}")

    # -- explaining ends --------------------------------------------------------------------------

    async def _explain_terminations(self, work: _Work, pod: Object) -> None:
        """Read the log tail of containers that ended and say what to do next."""
        replica = self._replicas.get(work.uid)
        if replica is None:
            return
        for status in replica.containers:
            what = (status.name, status.finished_at)
            if status.state != "terminated" or what in work.messages:
                continue
            container = next((c for c in all_containers(pod) if c.get("name") == status.name), {})
            message = await asyncio.to_thread(self._explain, work, pod, container, status)
            work.messages = {w: m for w, m in work.messages.items() if w[0] != status.name}
            work.messages[what] = message
            last = message.splitlines()
            if status.exit_code != 0 and last:
                self._note(
                    pod,
                    "Warning",
                    "Failed",
                    f"Container {status.name} terminated ({status.reason or 'Error'}, exit code "
                    f"{status.exit_code}): {' | '.join(last[-2:])}",
                )

    def _explain(
        self, work: _Work, pod: Object, container: Mapping[str, Any], status: ContainerStatus
    ) -> str:
        path = self._settings.log_dir / name_of(pod) / f"{status.name}.log"
        log = tail(_read_end(path, work.log_offsets.get(status.name, 0)))
        holder = self._port_holder(work, status, log) if is_address_taken(log) else ""
        image = str(container.get("image") or "")
        memory = limit_of(container, "memory")
        ended = Ended(
            reason=status.reason or ("Completed" if status.exit_code == 0 else "Error"),
            exit_code=status.exit_code,
            image=image,
            source=source_for(image, self._settings.images) is not None,
            memory_limit_bytes=int(memory) if memory else None,
            holder=holder,
        )
        step = diagnose(ended, f"{log}\n{status.message}")
        lines = [log] if log else []
        if status.message and status.message not in log:
            lines.append(status.message)
        if step:
            lines.append(f"Next step: {step}")
        return "\n".join(lines)

    def _port_holder(self, work: _Work, status: ContainerStatus, log: str) -> str:
        """Return who listens on the port that the log says is taken, or on one of the Pod's."""
        named = wanted_address(log)
        ports = [*status.ports.values()] or [names.DEFAULT_PORT]
        candidates = [named] if named is not None else [(work.ip, port) for port in ports]
        found = (holder_of(host, port) for host, port in candidates)
        return next((who for who in found if who), "")

    def _note_backoff(self, work: _Work, pod: Object, container: str) -> None:
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

    def _carry_out(self, work: _Work, pod: Object, plan: Plan) -> None:
        if work.unschedulable:
            return
        if plan.initialize:
            self._initialize(work, pod, plan.initialize)
        if plan.create and not work.creating:
            now = self._clock()
            for container in all_containers(pod):
                name = str(container.get("name"))
                self._count_restart(work, name, lost(pod, name, now=now), now)
            work.creating = True
            self._start_task(work, "create", self._create(work, pod))
        for name in plan.restart:
            self._start_task(work, f"restart-{name}", self._restart(work, pod, name))

    def _count_restart(self, work: _Work, name: str, ended: Terminated | None, now: float) -> None:
        """Count a restart once, however often making the containers is tried for it."""
        record = work.records.get(name, Record())
        if ended is None or (record.last is not None and _same_end(record.last, ended)):
            return
        work.records[name] = restarted(record, ended, now=now)

    def _initialize(self, work: _Work, pod: Object, name: str) -> None:
        now = self._clock()
        before = work.init.get(name)
        if isinstance(before, Terminated):
            work.records[name] = restarted(work.records.get(name, Record()), before, now=now)
        work.init[name] = Running(now)
        container = next(c for c in init_containers(pod) if c.get("name") == name)
        if f"init-{name}" not in work.announced:
            work.announced.add(f"init-{name}")
            self._note(pod, "Normal", "Created", f"Created container: {name}")
            self._note(pod, "Normal", "Started", f"Started container {name}")
        self._start_task(work, f"init-{name}", self._run_init(work, pod, container, now))
        self._add(work.key)

    async def _run_init(
        self, work: _Work, pod: Object, container: Mapping[str, Any], started: float
    ) -> None:
        name = str(container.get("name"))
        work.images[name] = "kserve-local://storage-initializer"
        exit_code, reason, message = 1, "Error", ""
        try:
            fetches = await asyncio.to_thread(
                plan_fetches, pod, container, self._places(work), self._around(work, pod)
            )
            contents = await fetch_all(
                fetches,
                self._storage,
                log_path=log_path(self._settings.log_dir, pod, container),
                event=lambda line: self._note(pod, "Normal", "Downloading", line),
            )
            work.contents[name] = contents
            await asyncio.to_thread(remember, self._folder(work.uid), work.contents)
            exit_code, reason = 0, "Completed"
        except ConfigError as error:
            work.init.pop(name, None)
            self._block(
                work,
                pod,
                {name: Waiting("CreateContainerConfigError", str(error))},
                retry=_CONFIG_RETRY,
            )
            return
        except InitFailed as error:
            message = tail(str(error))
        except OSError as error:
            message = f"{error.strerror or error}: {error.filename or self._settings.state}"
        work.init[name] = Terminated(
            exit_code=exit_code,
            reason=reason,
            message=message,
            started_at=started,
            finished_at=self._clock(),
        )
        if exit_code:
            self._note(
                pod,
                "Warning",
                "Failed",
                f"Container {name} terminated (Error, exit code 1): {message}",
            )

    async def _create(self, work: _Work, pod: Object) -> None:
        """Make and start all containers; whatever fails becomes a waiting reason."""
        spec = None
        try:
            specs = await self._specs(work, pod, [str(c.get("name")) for c in all_containers(pod)])
            if specs is None:
                return
            for spec in specs:
                await self._backend.prepare(spec, self._reporter(pod, spec.name))
            spec = None
            services = self._store.list(scheme.SERVICE.id)
            resolve = service_names(services, namespace=work.key.namespace)
            self._note_offsets(work, specs)
            await self._backend.start(replica_spec(pod, tuple(specs), ip=work.ip, resolve=resolve))
            work.failures = 0
            if work.uid not in self._replicas:
                await self._refresh(work.uid)
            for made in specs:
                self._announce_start(work, pod, made.name)
        except KServeLocalError as error:
            self._creation_failed(work, pod, error, spec)
        finally:
            work.creating = False

    async def _refresh(self, uid: str) -> None:
        """Take the backend's word for a replica it has just started, in case its event is late."""
        for replica in await self._backend.list():
            if replica.id == uid and uid not in self._replicas:
                self._replicas[uid] = replica

    def _note_offsets(self, work: _Work, specs: Sequence[ContainerSpec]) -> None:
        for spec in specs:
            try:
                work.log_offsets[spec.name] = spec.log_path.stat().st_size
            except OSError:
                work.log_offsets[spec.name] = 0

    def _announce_start(self, work: _Work, pod: Object, name: str) -> None:
        note = work.notes.get(name)
        if note:
            self._note(pod, "Normal", "StandIn", note)
        self._note(pod, "Normal", "Created", f"Created container: {name}")
        self._note(pod, "Normal", "Started", f"Started container {name}")

    def _creation_failed(
        self, work: _Work, pod: Object, error: KServeLocalError, spec: ContainerSpec | None
    ) -> None:
        """Turn a failed preparation or start into a waiting reason, with kubelet's back-off."""
        work.failures += 1
        delay = max(1.0, backoff_delay(work.failures - 1))
        text = f"{error.message}\nNext step: {error.hint}" if error.hint else error.message
        affected = [spec.name] if spec else [str(c.get("name")) for c in all_containers(pod)]
        if isinstance(error, Missing) or spec is not None:
            image = spec.image if spec else ""
            pulled = Waiting("ErrImagePull", text)
            if work.failures > 1:
                pulled = Waiting("ImagePullBackOff", f'Back-off pulling image "{image}": {text}')
            waiting = dict.fromkeys(affected, pulled)
        else:
            waiting = dict.fromkeys(affected, Waiting("RunContainerError", text))
        self._block(work, pod, waiting, retry=delay)

    async def _specs(
        self, work: _Work, pod: Object, wanted: Sequence[str]
    ) -> list[ContainerSpec] | None:
        """Return the containers resolved; None when one cannot be, which is then in `blocked`."""
        places = self._places(work)
        around = self._around(work, pod)
        made: dict[str, Path] = {}
        specs: list[ContainerSpec] = []
        blocked: dict[str, Waiting] = {}
        retry: float | None = None
        for container in all_containers(pod):
            name = str(container.get("name"))
            if name not in wanted:
                continue
            try:
                built = await asyncio.to_thread(
                    container_spec, pod, container, places, around, made=made
                )
            except ConfigError as error:
                blocked[name] = Waiting("CreateContainerConfigError", str(error))
                retry = _CONFIG_RETRY
                continue
            if isinstance(built, NoStandIn):
                blocked[name] = Waiting(_NEVER_PULLED, built.message)
                continue
            program = built.spec.program
            if program is not None:
                work.images[name] = f"kserve-local://{program.runtime}"
            work.notes[name] = built.note
            work.specs[name] = built.spec
            specs.append(built.spec)
        if blocked:
            self._block(work, pod, blocked, retry=retry)
            return None
        return specs

    def _reporter(self, pod: Object, container: str) -> Callable[[Progress], None]:
        """Return what turns a backend's progress into Events: one a phase."""
        told: set[str] = set()

        def report(progress: Progress) -> None:
            if progress.phase not in told:
                told.add(progress.phase)
                self._note(pod, "Normal", "Preparing", f"{container}: {progress.message}")

        return report

    async def _restart(self, work: _Work, pod: Object, name: str) -> None:
        replica = self._replicas.get(work.uid)
        status = next((c for c in replica.containers if c.name == name), None) if replica else None
        if status is None or status.state != "terminated":
            return
        now = self._clock()
        message = work.messages.get((name, status.finished_at), "")
        specs = await self._specs(work, pod, [name])
        if specs is None:
            return
        self._note_offsets(work, specs)
        before = work.records.get(name, Record())
        work.records[name] = restarted(before, seen_termination(status, message, now=now), now=now)
        path = specs[0].log_path
        try:
            await self._backend.start_container(work.uid, specs[0])
        except NotFound:
            self._replicas.pop(work.uid, None)
            return
        except KServeLocalError as error:
            # The back-off continues from this failed try.
            self._note(pod, "Warning", "Failed", f"Error: {error.message}")
            failed = replace(status, finished_at=now, reason="ContainerCannotRun", exit_code=128)
            self._replace_status(work.uid, failed)
            work.messages[name, now] = error.message
            return
        if path.exists() and path.stat().st_size < work.log_offsets[name]:
            work.log_offsets[name] = 0  # the backend began a new file
        current = self._replicas.get(work.uid)
        same = next((c for c in current.containers if c.name == name), None) if current else None
        if same is status:
            # The event of the start is on its way; until it comes, do not start it twice.
            running = replace(
                status,
                state="running",
                started_at=now,
                finished_at=None,
                exit_code=None,
                ready=False,
            )
            self._replace_status(work.uid, running)
        self._announce_start(work, pod, name)

    def _replace_status(self, uid: str, status: ContainerStatus) -> None:
        replica = self._replicas[uid]
        self._replicas[uid] = replace(
            replica,
            containers=tuple(status if c.name == status.name else c for c in replica.containers),
        )

    # -- the end of a Pod -------------------------------------------------------------------------

    def _terminate(self, work: _Work, pod: Object) -> None:
        if work.stopping:
            return
        work.stopping = True
        if self._replicas.get(work.uid) is not None:
            for container in all_containers(pod):
                self._note(pod, "Normal", "Killing", f"Stopping container {container.get('name')}")
        grace = grace_of(pod)
        self._start_task(work, "stop", self._stop(work, grace=grace, drain=grace > 0))

    async def _stop(self, work: _Work, *, grace: float, drain: bool) -> None:
        """Drain, stop, clean up, and take the Pod object away."""
        others = [t for what, t in work.tasks.items() if what != "stop"]
        for task in others:
            task.cancel()
        if others:
            await asyncio.gather(*others, return_exceptions=True)
        if drain and self._replicas.get(work.uid) is not None:
            await asyncio.sleep(self._drain)
        await self._backend.stop(work.uid, grace=grace)
        self._replicas.pop(work.uid, None)
        await asyncio.to_thread(remove_volumes, self._folder(work.uid), _log_removal)
        self._addresses.release(work.uid)
        work.removed = True
        # The object may be gone already, or its name belong to a new Pod.
        with suppress(NotFound, Conflict):
            await self._store.delete(work.key, uid=work.uid, grace=0)

    async def _forget(self, work: _Work) -> None:
        """The Pod object is gone: make sure nothing of it is left."""
        if not work.stopping:
            work.stopping = True
            self._start_task(work, "stop", self._stop(work, grace=0.0, drain=False))
        if work.removed:
            self._work.pop(work.uid, None)
            if self._by_key.get(work.key) == work.uid:
                del self._by_key[work.key]

    # -- surroundings -----------------------------------------------------------------------------

    def _folder(self, uid: str) -> Path:
        # Beside the backend's own `pods/<uid>`, which comes and goes with the replica.
        return self._settings.run_dir / "volumes" / uid

    def _places(self, work: _Work) -> VolumePlaces:
        return VolumePlaces(
            folder=self._folder(work.uid),
            project=self._settings.project,
            claims=self._settings.claims,
            contents=tuple(c for contents in work.contents.values() for c in contents),
        )

    def _around(self, work: _Work, pod: Object) -> Surroundings:
        namespace = namespace_of(pod)

        def secret(name: str) -> Object | None:
            return self._store.find(Key(scheme.SECRET.id, namespace, name))

        def config_map(name: str) -> Object | None:
            return self._store.find(Key(scheme.CONFIG_MAP.id, namespace, name))

        return Surroundings(
            settings=self._settings,
            node=replace(self._node, pod_ip=work.ip or self._node.host_ip),
            sources=Sources(secret=secret, config_map=config_map),
            interpreter=self._interpreter,
        )


def _completed(ended: Mapping[str, Any] | None, now: float) -> Terminated:
    found = terminated_from_json({"terminated": ended}) if ended else None
    if found is not None and found.exit_code == 0:
        return found
    return Terminated(exit_code=0, reason="Completed", started_at=now, finished_at=now)


def _same_end(a: Terminated, b: Terminated) -> bool:
    if a.finished_at is None or b.finished_at is None:
        return a.finished_at is b.finished_at
    return int(a.finished_at) == int(b.finished_at)  # statuses keep whole seconds


def _read_end(path: Path, offset: int) -> str:
    """Return the end of a log file, only what was written after `offset`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            # A rotated file is shorter than the offset: everything in it is new.
            begin = offset if offset <= size else 0
            file.seek(max(begin, size - _LOG_WINDOW))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir())
    except FileNotFoundError:
        return []


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
