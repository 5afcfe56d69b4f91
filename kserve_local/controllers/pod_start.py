"""How the node agent makes a Pod's containers exist: programs, models, volumes, starts, restarts.

Reads the Pod and what it refers to; calls the backend and the storage initializer; tells `Work`
how it went. Every failure becomes a waiting reason or a termination in kubelet's words, never an
exception for the caller. Nothing here decides when to start: `pod_plan` does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kserve_local.api import names, scheme
from kserve_local.api.meta import Key, Object, name_of, namespace_of, uid_of
from kserve_local.controllers import devices
from kserve_local.controllers.devices import DeviceLedger
from kserve_local.controllers.empty_models import empty_models
from kserve_local.controllers.environment import ConfigError, NodeFacts, Sources
from kserve_local.controllers.init_containers import (
    InitFailed,
    base_folder,
    fetch_all,
    image_request,
    log_path,
    plan_fetches,
    remember,
)
from kserve_local.controllers.modelcars import (
    has_images,
    image_volumes,
    modelcar_of,
)
from kserve_local.controllers.oci_models import insecure_registries
from kserve_local.controllers.pod_containers import (
    Built,
    Interpreter,
    Surroundings,
    all_containers,
    container_spec,
    custom_init_containers,
    grace_of,
    host_aliases,
    init_containers,
    is_played,
    played_sidecars,
    replica_spec,
    runtime_config,
)
from kserve_local.controllers.pod_faults import tail
from kserve_local.controllers.pod_plan import (
    Blocked,
    Record,
    backoff_delay,
    lost,
    restarted,
    seen_termination,
)
from kserve_local.controllers.pod_status import Running, Terminated, Waiting
from kserve_local.controllers.pod_terminations import LogFile, explain, message_of
from kserve_local.controllers.pod_volumes import Content, VolumePlaces
from kserve_local.controllers.pod_work import Note, PodStore, Work, container_of
from kserve_local.controllers.pull_secrets import logins
from kserve_local.controllers.standins import NoStandIn, source_for
from kserve_local.errors import (
    Conflict,
    Invalid,
    InvalidImageName,
    KServeLocalError,
    Missing,
    NotFound,
)
from kserve_local.interfaces.backend import (
    HOST_IP,
    POD_IP,
    Backend,
    ContainerSpec,
    ContainerStatus,
    Progress,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaStatus,
)
from kserve_local.interfaces.devices import Device
from kserve_local.interfaces.storage import StorageInitializer
from kserve_local.settings import Settings

_CONFIG = Key(scheme.CONFIG_MAP.id, names.KSERVE_NAMESPACE, names.CONFIG_MAP)
_CONFIG_RETRY = 2.0
_PROGRESS_STEP = 0.25
_NEVER_PULLED = "ErrImageNeverPull"
CONFIG_ERROR = "CreateContainerConfigError"


@dataclass(frozen=True, slots=True)
class PodStarter:
    """Starts what Pods want.

    Args:
        devices: Which Pod has which GPU.
        replicas: What the backend reported last, by uid; shared with the node agent.
        note: Records an Event without waiting.
        wake: Has a Pod looked at again.
        tell_names: Lets the Pods of a namespace resolve the Services there are.
        clock: Unix time.
        ends: What waits for the end of an init container, by the id of its replica.
    """

    store: PodStore
    backend: Backend
    storage: StorageInitializer
    settings: Settings
    interpreter: Interpreter
    node: NodeFacts
    devices: DeviceLedger
    replicas: MutableMapping[str, ReplicaStatus]
    note: Note
    wake: Callable[[Key], None]
    tell_names: Callable[[str], Awaitable[None]]
    clock: Callable[[], float]
    ends: dict[str, asyncio.Future[ContainerStatus]] = field(default_factory=dict)

    # -- before anything runs ---------------------------------------------------------------------

    def folder(self, uid: str) -> Path:
        """Return the Pod's folder: volumes, and what its init containers fetched."""
        # Beside the backend's own `pods/<uid>`, which comes and goes with the replica.
        return self.settings.run_dir / "volumes" / uid

    async def choose_programs(self, work: Work, pod: Object) -> tuple[ContainerSpec, ...]:
        """Find out which image has no program, before anything is downloaded.

        Returns:
            The containers that can be made ready while the model is fetched.
        """
        blocked: dict[str, Waiting] = {}
        found: list[ContainerSpec] = []
        backend = self._backend_of(pod)
        work.in_docker = backend == "docker"
        wanted = [*all_containers(pod), *custom_init_containers(pod)]
        every = await self._build(work, pod, wanted)
        unknown = any(isinstance(built, NoStandIn) for built in every.values())
        if unknown and backend == "auto" and await self.backend.runs_images():
            # A Pod's containers share an address, so they run in one place.
            work.in_docker = True
            work.no_stand_in = {
                name: built.message for name, built in every.items() if isinstance(built, NoStandIn)
            }
            every = await self._build(work, pod, wanted)
        begin_first = {str(c.get("name")) for c in init_containers(pod)}
        for name, built in every.items():
            if isinstance(built, NoStandIn):
                blocked[name] = Waiting(_NEVER_PULLED, built.message)
            elif isinstance(built, Built):
                work.notes[name] = built.note
                if name not in begin_first:
                    found.append(built.spec)
            # A ConfigError is told once the init containers are done, as kubelet does.
        for container in custom_init_containers(pod):
            if container.get("restartPolicy"):
                name = str(container.get("name"))
                blocked[name] = Waiting(
                    CONFIG_ERROR,
                    f'init container "{name}" has a restartPolicy: sidecars among the init '
                    "containers are not run here. Make it one of the Pod's containers",
                )
        if blocked:
            self._block(work, pod, blocked)
            return ()
        return tuple(found) if init_containers(pod) and not work.contents else ()

    def _backend_of(self, pod: Object) -> str:
        """Return where the Pod is to run: what its runtime says, else what the project says."""
        found = runtime_config(pod, None, self.settings.runtimes)
        return (found.backend if found is not None else "") or self.settings.backend

    async def warm(self, work: Work, pod: Object, spec: ContainerSpec) -> None:
        """Prepare what a container needs while its model is fetched; `create` tells failures."""
        try:
            await self.backend.prepare(spec, self._reporter(work, pod, spec.name))
            await self.backend.warm(replace(spec, logins=()))
        except KServeLocalError:
            return

    def _block(
        self,
        work: Work,
        pod: Object,
        waiting: Mapping[str, Waiting],
        *,
        retry: float | None = None,
    ) -> None:
        work.blocked = Blocked(waiting, None if retry is None else self.clock() + retry)
        for each in waiting.values():
            self.note(pod, "Warning", "Failed", f"Error: {each.message or each.reason}")

    # -- init containers --------------------------------------------------------------------------

    async def initialize(
        self, work: Work, pod: Object, container: Mapping[str, Any], started: float
    ) -> None:
        """Carry out one init container; the outcome is its termination."""
        name = str(container.get("name"))
        if not is_played(pod, name):
            await self._run_init(work, pod, container)
            return
        exit_code, reason, message = 1, "Error", ""
        try:
            await self._fetch(work, pod, container)
            exit_code, reason = 0, "Completed"
        except ConfigError as error:
            work.init.pop(name, None)
            waiting = {name: Waiting(CONFIG_ERROR, str(error))}
            self._block(work, pod, waiting, retry=_CONFIG_RETRY)
            return
        except InitFailed as error:
            car = modelcar_of(pod, name)
            if car is not None and not error.is_there:
                work.init.pop(name, None)
                self._not_pulled(work, pod, (name,), car.image, str(error))
                return
            message = tail(str(error))
        except OSError as error:
            message = f"{error.strerror or error}: {error.filename or self.settings.state}"
        work.init[name] = Terminated(
            exit_code, reason, message, started_at=started, finished_at=self.clock()
        )
        if exit_code:
            text = f"Container {name} terminated (Error, exit code 1): {message}"
            self.note(pod, "Warning", "Failed", text)

    async def _run_init(self, work: Work, pod: Object, container: Mapping[str, Any]) -> None:
        """Run an init container of the user's to its end, as a replica of its own.

        It lives no longer than this call: a supervisor that comes later runs it again, as a
        restarted kubelet may.
        """
        name = str(container.get("name"))
        built = (await self._build(work, pod, [container]))[name]
        if not isinstance(built, Built):
            config = isinstance(built, ConfigError)
            text = str(built) if isinstance(built, ConfigError) else built.message
            waiting = {name: Waiting(CONFIG_ERROR if config else _NEVER_PULLED, text)}
            work.init.pop(name, None)
            self._block(work, pod, waiting, retry=_CONFIG_RETRY if config else None)
            return
        spec = built.spec
        if spec.program is not None:
            work.images[name] = f"kserve-local://{spec.program.runtime}"
        ended: asyncio.Future[ContainerStatus] = asyncio.get_running_loop().create_future()
        # Not the Pod's own id: what is adopted under that one is the Pod, past its beginning.
        id = f"init-{secrets.token_hex(8)}"
        preparing: ContainerSpec | None = spec
        try:
            await self.backend.prepare(spec, self._reporter(work, pod, name))
            preparing, spec = None, replace(spec, logins=())
            before = LogFile.at(spec.log_path)
            replica = self._replica_spec(work, pod, (spec,))
            self.ends[id] = ended
            await self.tell_names(work.key.namespace)
            await self.backend.start(replace(replica, id=id))
            work.init[name] = Running(self.clock())
            self.wake(work.key)
            status = await ended
        except KServeLocalError as error:
            work.init.pop(name, None)
            self._creation_failed(work, pod, error, preparing, affected=(spec,))
            return
        finally:
            self.ends.pop(id, None)
            await self.backend.stop(id, grace=grace_of(pod))
        work.failures, work.refused = 0, {}
        explained = await asyncio.to_thread(
            explain,
            container,
            status,
            spec.log_path,
            offset=before.offset_in(LogFile.at(spec.log_path)),
            ip=replica.ip,
            source=self._is_source(container),
        )
        message = message_of(status, explained)
        work.init[name] = seen_termination(status, message, now=self.clock())
        if status.exit_code == 0:
            work.contents[name] = ()
            await asyncio.to_thread(remember, self.folder(work.uid), work.contents)
            return
        end = f"{status.reason or 'Error'}, exit code {status.exit_code}"
        last = " | ".join(explained.splitlines()[-2:])
        self.note(pod, "Warning", "Failed", f"Container {name} terminated ({end}): {last}")

    def take_end(self, event: ReplicaEvent) -> bool:
        """Take note if an init container has ended; tell if the event was about one."""
        ended = self.ends.get(event.id)
        if ended is None:
            return False
        if event.kind == "exited" and not ended.done():
            ended.set_result(event.status.containers[0])
        return True

    async def _fetch(self, work: Work, pod: Object, container: Mapping[str, Any]) -> None:
        name = str(container.get("name"))
        car = modelcar_of(pod, name)
        work.images[name] = f"kserve-local://{'modelcar' if car else names.STORAGE_INITIALIZER}"
        around = self._around(work, pod)
        fetches = await asyncio.to_thread(
            plan_fetches, pod, container, self._places(work, pod), around
        )
        work.contents[name] = await fetch_all(
            fetches,
            self.storage,
            log_path=log_path(self.settings.log_dir, pod, container),
            event=lambda line: self.note(pod, "Normal", "Downloading", line),
        )
        await asyncio.to_thread(remember, self.folder(work.uid), work.contents)
        if car is not None:
            work.failures, work.refused = 0, {}
            work.images[car.sidecar] = work.images[name]

    async def _bring_images(self, work: Work, pod: Object) -> bool:
        """Have what the Pod's image volumes hold; tell whether all of it is there."""
        for volume in image_volumes(pod):
            if volume.key in work.contents:
                continue
            affected = [str(c.get("name")) for c in all_containers(pod)]
            around = self._around(work, pod)
            request = image_request(pod, volume.image, around, pull=volume.pull)
            request = replace(request, base=base_folder(pod, self.settings.project))
            try:
                report = self._reporter(work, pod, affected[0])
                fetched = await self.storage.fetch(request, report)
            except KServeLocalError as error:
                self._not_pulled(work, pod, affected, volume.image, _told(error))
                return False
            work.contents[volume.key] = (Content(volume.key, fetched.path),)
            await asyncio.to_thread(remember, self.folder(work.uid), work.contents)
        return True

    # -- making all containers --------------------------------------------------------------------

    async def create(self, work: Work, pod: Object) -> None:
        """Make and start all containers; whatever fails becomes a waiting reason."""
        preparing, specs = None, None
        try:
            specs = await self._specs(work, pod, all_containers(pod))
            if specs is None:
                return
            work.enters("environment")
            for preparing in specs:
                await self.backend.prepare(preparing, self._reporter(work, pod, preparing.name))
            preparing = None
            work.enters("start")
            specs = tuple(replace(spec, logins=()) for spec in specs)
            work.progress.clear()
            for spec in specs:
                work.log_offsets[spec.name] = LogFile.at(spec.log_path).size
            await self.tell_names(work.key.namespace)
            await self.backend.start(self._replica_spec(work, pod, specs))
            work.enters("load")
            work.failures, work.refused = 0, {}
            await self._refresh(work.uid)
            for name in played_sidecars(pod):
                # A sidecar has a log, if nothing to say.
                (self.settings.log_dir / name_of(pod) / f"{name}.log").touch()
            for name in (*(s.name for s in specs), *played_sidecars(pod)):
                self._announce_start(work, pod, name)
        except KServeLocalError as error:
            self._creation_failed(work, pod, error, preparing, affected=specs or ())
        finally:
            work.creating = False

    def _replica_spec(
        self, work: Work, pod: Object, specs: tuple[ContainerSpec, ...]
    ) -> ReplicaSpec:
        ip = "" if work.in_docker else work.ip
        return replica_spec(pod, specs, ip=ip, resolve=tuple(host_aliases(pod).items()))

    async def _refresh(self, uid: str) -> None:
        """Take the backend's word for a replica, in case its events are still on the way."""
        for replica in await self.backend.list():
            if replica.id == uid:
                self.replicas[uid] = replica

    def _announce_start(self, work: Work, pod: Object, name: str) -> None:
        stand_in = work.notes.get(name)
        if stand_in:
            self.note(pod, "Normal", "StandIn", stand_in)
        self.note(pod, "Normal", "Created", f"Created container: {name}")
        self.note(pod, "Normal", "Started", f"Started container {name}")

    def _creation_failed(
        self,
        work: Work,
        pod: Object,
        error: KServeLocalError,
        preparing: ContainerSpec | None,
        *,
        affected: Sequence[ContainerSpec],
    ) -> None:
        """Turn a failed preparation or start into a waiting reason, with kubelet's back-off.

        Args:
            preparing: The container that could not be prepared; None: the start failed.
            affected: All that were to be started.
        """
        text = _told(error)
        without = work.no_stand_in.get(preparing.name if preparing else "")
        if without and not isinstance(error, InvalidImageName):
            # Docker was the second choice; what the first lacks is the other way out.
            text = f"{text}\n{without}"
        if preparing is not None and isinstance(error, InvalidImageName):
            waiting = {preparing.name: Waiting("InvalidImageName", text)}
        elif preparing is not None and isinstance(error, Invalid):
            waiting = {preparing.name: Waiting(CONFIG_ERROR, text)}
        elif preparing is None and not isinstance(error, Missing):
            every = [spec.name for spec in affected]
            waiting = dict.fromkeys(every, Waiting("RunContainerError", text))
        else:
            missing = (preparing,) if preparing else affected
            image = preparing.image if preparing else ""
            self._not_pulled(work, pod, [spec.name for spec in missing], image, text)
            return
        self._block(work, pod, waiting, retry=self._next_delay(work))

    def _not_pulled(
        self, work: Work, pod: Object, containers: Sequence[str], image: str, text: str
    ) -> None:
        """Let containers wait for an image that cannot be had, in kubelet's words."""
        delay = self._next_delay(work)
        pulled = Waiting("ErrImagePull", text)
        if work.failures > 1:
            pulled = Waiting("ImagePullBackOff", f'Back-off pulling image "{image}": {text}')
        self._block(work, pod, dict.fromkeys(containers, pulled), retry=delay)

    def _next_delay(self, work: Work) -> float:
        """Count a failure to make the containers; return the wait before the next try."""
        work.failures += 1
        return max(1.0, backoff_delay(work.failures - 1))

    def _reporter(self, work: Work, pod: Object, container: str) -> Callable[[Progress], None]:
        """Return what turns a backend's progress into the container's waiting message, a few times
        a second at most, and into Events: one a phase.
        """
        shown = 0.0

        def report(progress: Progress) -> None:
            nonlocal shown
            told = f"{container} {progress.phase}"
            if told not in work.announced:
                work.announced.add(told)
                self.note(pod, "Normal", "Preparing", f"{container}: {progress.message}")
            work.progress[container] = progress.message
            if self.clock() - shown >= _PROGRESS_STEP:
                shown = self.clock()
                self.wake(work.key)

        return report

    async def _build(
        self, work: Work, pod: Object, containers: Sequence[Mapping[str, Any]]
    ) -> dict[str, Built | NoStandIn | ConfigError]:
        """Resolve containers; what cannot be resolved is its own answer."""
        places, around = self._places(work, pod), self._around(work, pod)

        def build() -> dict[str, Built | NoStandIn | ConfigError]:
            made: dict[str, Path] = {}
            found: dict[str, Built | NoStandIn | ConfigError] = {}
            for container in containers:
                name = str(container.get("name"))
                try:
                    found[name] = container_spec(
                        pod,
                        container,
                        places,
                        around,
                        made=made,
                        in_docker=work.in_docker,
                        devices=self._devices_of(pod, name),
                    )
                except ConfigError as error:
                    found[name] = error
                except OSError as error:
                    what = f"{error.strerror or error}: {error.filename or places.folder}"
                    found[name] = ConfigError(what)
            return found

        return await asyncio.to_thread(build)

    def _devices_of(self, pod: Object, container: str) -> tuple[Device, ...] | None:
        """Return the GPUs that a container may see; None where there are none to hide.

        Raises:
            ConfigError: One that the Pod was given is not there any more.
        """
        lost = self.devices.lost_by(uid_of(pod))
        if lost:
            raise ConfigError(
                f"the Pod was given {', '.join(lost)}, which this machine does not offer any more; "
                "delete the Pod to have another one placed"
            )
        held = devices.of_container(pod, container, self.devices.held_by(uid_of(pod)))
        return held if held or self.devices.inventory.present else None

    async def _specs(
        self, work: Work, pod: Object, containers: Sequence[Mapping[str, Any]]
    ) -> tuple[ContainerSpec, ...] | None:
        """Return containers resolved; None when one cannot be, which is then in `blocked`."""
        for container in init_containers(pod):
            name = str(container.get("name"))
            if is_played(pod, name) and name not in work.contents:
                # Adopted without its folder: ask the shared cache where the model lies.
                try:
                    await self._fetch(work, pod, container)
                except (ConfigError, InitFailed, OSError) as error:
                    broken = Waiting(CONFIG_ERROR, str(error))
                    self._block(
                        work,
                        pod,
                        {str(c.get("name")): broken for c in containers},
                        retry=_CONFIG_RETRY,
                    )
                    return None
        if not await self._bring_images(work, pod):
            return None
        specs: list[ContainerSpec] = []
        blocked: dict[str, Waiting] = {}
        retry: float | None = None
        self._tell_missing_logins(work, pod)
        for name, built in (await self._build(work, pod, containers)).items():
            if isinstance(built, ConfigError):
                blocked[name] = Waiting(CONFIG_ERROR, str(built))
                retry = _CONFIG_RETRY
            elif isinstance(built, NoStandIn):
                blocked[name] = Waiting(_NEVER_PULLED, built.message)
            else:
                if built.spec.program is not None:
                    work.images[name] = f"kserve-local://{built.spec.program.runtime}"
                work.notes[name] = built.note
                specs.append(built.spec)
        if blocked:
            self._block(work, pod, blocked, retry=retry)
            return None
        work.empty = await asyncio.to_thread(empty_models, pod, work.contents, specs)
        return tuple(specs)

    def _tell_missing_logins(self, work: Work, pod: Object) -> None:
        if not (work.in_docker or has_images(pod)):
            return
        _, missing = logins(pod, "", self._around(work, pod).sources.secret)
        for name in missing:
            if (told := f"pull secret {name}") not in work.announced:
                work.announced.add(told)
                self.note(
                    pod,
                    "Warning",
                    "FailedToRetrieveImagePullSecret",
                    f"Unable to retrieve some image pull secrets ({name}); attempting to pull the "
                    "image may not succeed.",
                )

    # -- restarts ---------------------------------------------------------------------------------

    def count_lost(self, work: Work, pod: Object) -> None:
        """Count the restart of containers whose replica is gone, once for each end."""
        now = self.clock()
        for container in all_containers(pod):
            name = str(container.get("name"))
            ended = lost(pod, name, now=now)
            record = work.records.get(name, Record())
            if ended is not None and not (record.last and _same_end(record.last, ended)):
                work.records[name] = restarted(record, ended, now=now)

    async def restart(self, work: Work, pod: Object, name: str) -> None:
        """Start one container of a running replica again."""
        status = container_of(self.replicas.get(work.uid), name)
        if status is None or status.state == "running":
            return
        container = next(c for c in all_containers(pod) if c.get("name") == name)
        specs = await self._specs(work, pod, [container])
        if specs is None:
            return
        now = self.clock()
        if status.state == "terminated":
            message = work.messages.get((name, status.finished_at), "")
            ended = seen_termination(status, message, now=now)
            work.records[name] = restarted(work.records.get(name, Record()), ended, now=now)
        before = LogFile.at(specs[0].log_path)
        try:
            await self.backend.start_container(work.uid, replace(specs[0], logins=()))
        except NotFound:
            self.replicas.pop(work.uid, None)
            return
        except Conflict:
            await self._refresh(work.uid)
            return
        except KServeLocalError as error:
            # The back-off continues from this failed try.
            self.note(pod, "Warning", "Failed", f"Error: {error.message}")
            failed = replace(
                status,
                state="terminated",
                finished_at=now,
                reason="ContainerCannotRun",
                exit_code=128,
            )
            self._replace_status(work.uid, failed)
            work.messages[name, now] = error.message
            return
        work.log_offsets[name] = before.offset_in(LogFile.at(specs[0].log_path))
        if container_of(self.replicas.get(work.uid), name) is status:
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
        replica = self.replicas[uid]
        self.replicas[uid] = replace(
            replica,
            containers=tuple(status if c.name == status.name else c for c in replica.containers),
        )

    async def explain_ends(self, work: Work, pod: Object) -> None:
        """Read the log tail of containers that ended and say what to do next, once an end."""
        replica = self.replicas.get(work.uid)
        if replica is None:
            return
        for status in replica.containers:
            what = (status.name, status.finished_at)
            if status.state != "terminated" or what in work.messages:
                continue
            container = next((c for c in all_containers(pod) if c.get("name") == status.name), {})
            explained = await asyncio.to_thread(
                explain,
                container,
                status,
                self.settings.log_dir / name_of(pod) / f"{status.name}.log",
                offset=work.log_offsets.get(status.name, 0),
                ip=work.ip,
                source=self._is_source(container),
                unhealthy=status.name in work.unhealthy,
            )
            work.unhealthy.discard(status.name)
            work.messages = {w: m for w, m in work.messages.items() if w[0] != status.name}
            work.messages[what] = message_of(status, explained)
            # One that ended well and is to run for ever failed, too; its status has no word for it.
            policy = (pod.get("spec") or {}).get("restartPolicy") or "Always"
            if explained and (status.exit_code != 0 or policy == "Always"):
                end = f"{status.reason or 'Error'}, exit code {status.exit_code}"
                last = " | ".join(explained.splitlines()[-2:])
                text = f"Container {status.name} terminated ({end}): {last}"
                self.note(pod, "Warning", "Failed", text)

    def _is_source(self, container: Mapping[str, Any]) -> bool:
        image = str(container.get("image") or "")
        return source_for(image, self.settings.images) is not None

    # -- surroundings -----------------------------------------------------------------------------

    def _places(self, work: Work, pod: Object) -> VolumePlaces:
        return VolumePlaces(
            folder=self.folder(work.uid),
            project=self.settings.project,
            claims=self.settings.claims,
            contents=tuple(c for contents in work.contents.values() for c in contents),
            images={
                volume.name: work.contents[volume.key][0].path
                for volume in image_volumes(pod)
                if volume.key in work.contents
            },
        )

    def _around(self, work: Work, pod: Object) -> Surroundings:
        namespace = namespace_of(pod)

        def secret(name: str) -> Object | None:
            return self.store.find(Key(scheme.SECRET.id, namespace, name))

        def config_map(name: str) -> Object | None:
            return self.store.find(Key(scheme.CONFIG_MAP.id, namespace, name))

        own = work.ip or self.node.host_ip
        return Surroundings(
            settings=self.settings,
            node=replace(
                self.node,
                pod_ip=POD_IP if work.in_docker else own,
                host_ip=HOST_IP if work.in_docker else self.node.host_ip,
            ),
            sources=Sources(secret=secret, config_map=config_map),
            interpreter=self.interpreter,
            insecure_registries=has_images(pod) and insecure_registries(self.store.find(_CONFIG)),
        )


def _told(error: KServeLocalError) -> str:
    return f"{error.message}\nNext step: {error.hint}" if error.hint else error.message


def _same_end(a: Terminated, b: Terminated) -> bool:
    if a.finished_at is None or b.finished_at is None:
        return a.finished_at is b.finished_at
    return int(a.finished_at) == int(b.finished_at)  # statuses keep whole seconds
