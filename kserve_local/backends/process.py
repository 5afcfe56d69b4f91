"""The process backend: a Pod is a group of processes on this machine, no container, no root.

Built-in runtimes are forked from a warm zygote, user code runs under the user's interpreter through
podlauncher. Children get a session of their own, a run file before their first line of code, and
write to files; so killing this process leaves all of them serving, and the next one adopts them by
pid, start time and token. Nothing here decides what should run or what to restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from kserve_local.backends import launch as launching
from kserve_local.backends import output, processes, runfiles
from kserve_local.backends.cgroups import Cgroups, delegated
from kserve_local.backends.container import Container, Surroundings, zygote_key
from kserve_local.backends.environments import Environments
from kserve_local.backends.keeping import Ending, Events, Tasks, rotate_logs
from kserve_local.backends.listening import service_port
from kserve_local.backends.processes import MarkScanner
from kserve_local.backends.runfiles import RunFiles
from kserve_local.backends.zygotes import ForkRefused, ZygotePlace, Zygotes
from kserve_local.errors import AlreadyExists, Conflict, Missing, NotFound
from kserve_local.interfaces.backend import (
    ContainerSpec,
    ContainerStatus,
    Progress,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaStatus,
    Usage,
)
from kserve_local.interfaces.code import CodeChange, CodeVerdict
from kserve_local.settings import Settings

log = logging.getLogger(__name__)

_PACKAGES = (
    "podlauncher",
    "modelserver",
    "sklearnserver",
    "xgbserver",
    "lgbserver",
    "predictiveserver",
    "onnxserver",
    "torchserver",
)
_KILL_WAIT = 10.0


@dataclass
class _Replica:
    spec: ReplicaSpec
    containers: dict[str, Container]
    adopted: bool = False
    # Held while containers begin: a stop waits for it, so that it sees what it has to end.
    beginning: asyncio.Lock = field(default_factory=asyncio.Lock)
    ending: Ending = field(default_factory=Ending)

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            id=self.spec.id,
            namespace=self.spec.namespace,
            pod=self.spec.pod,
            ip=self.spec.ip,
            containers=tuple(c.status for c in self.containers.values()),
            adopted=self.adopted,
        )


def launcher_home(folder: Path) -> Path:
    """Make `folder` hold links to podlauncher and our servers, and nothing else.

    On a foreign interpreter's path it brings exactly these packages: the folder they are
    installed in would bring everything beside them, and shadow the user's own versions.

    Raises:
        Missing: kserve-local-runtimes is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in _PACKAGES:
        found = find_spec(name)
        where = found.submodule_search_locations if found is not None else None
        if not where:
            if name == "podlauncher":
                raise Missing("kserve-local-runtimes is not installed beside kserve-local")
            continue
        link, source = folder / name, Path(next(iter(where))).resolve()
        if link.is_symlink() and link.readlink() == source:
            continue
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(source)
        temporary.replace(link)
    return folder


def zygote_place(settings: Settings, environ: Mapping[str, str]) -> ZygotePlace:
    """Return where the zygotes of a project live."""
    return ZygotePlace(
        run=settings.run_dir / "zygotes",
        sockets=settings.runtime,
        home=launcher_home(settings.run_dir / "launcher"),
        state=settings.state,
        base_env=environ,
    )


class ProcessBackend:
    """Runs replicas as processes. Open it with `await ProcessBackend.open(settings)`."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        place = zygote_place(settings, environ)
        self._around = Surroundings(
            files=RunFiles(settings.run_dir / "pods"),
            sockets=settings.runtime,
            zygotes=Zygotes(place),
            scanner=MarkScanner(),
            cgroups=Cgroups(delegated()),
            place=launching.Place(
                home=place.home,
                state=settings.state,
                base_env=environ,
                cpus=os.cpu_count() or 1,
                service_port=service_port(),
                calls=settings.calls_socket,
            ),
        )
        self.environments = Environments(settings, environ)
        self._replicas: dict[str, _Replica] = {}
        self._events = Events()
        self._tasks = Tasks()

    @classmethod
    async def open(
        cls, settings: Settings, *, environ: Mapping[str, str] | None = None
    ) -> ProcessBackend:
        """Return a backend that has adopted the survivors of an earlier one.

        Args:
            environ: The machine's environment, of which containers get a small part.

        Raises:
            Missing: kserve-local-runtimes is not installed.
        """
        backend = cls(settings, dict(os.environ) if environ is None else environ)
        await backend._adopt()
        backend._tasks.own(rotate_logs(settings, backend._log_paths), "log rotation")
        return backend

    # -- adoption

    async def _adopt(self) -> None:
        self._around.zygotes.adopt()
        marks: dict[str, list[int]] = {}
        specs = self._around.files.load()
        if specs:
            marks = await asyncio.to_thread(processes.marked)
        for spec in specs:
            replica = _Replica(spec, {}, adopted=True)
            begun = False
            for item in spec.containers:
                container = self._new_container(replica, item)
                found = runfiles.read_launch(self._around.files.launch(spec.id, item.name))
                if "token" not in found:
                    continue
                begun = True
                pid = _surviving_pid(found, marks)
                if pid is not None:
                    container.adopt(found, pid)
                else:
                    container.adopt_ended(found)
            self._replicas[spec.id] = replica
            if not begun:
                # Killed before the first container: to its owner this start never happened.
                await self.stop(spec.id, grace=0.0)

    # -- the contract

    async def prepare(self, container: ContainerSpec, report: Callable[[Progress], None]) -> None:
        """Build the container's environment if it has none yet. See `Backend.prepare`."""
        if container.program is not None:
            await self.environments.prepare(container.program, report)

    def host_address(self) -> str:
        """Return "": processes share the machine's network. See `Backend.host_address`."""
        return ""

    async def runs_images(self) -> bool:
        """Return False: a process needs a program. See `Backend.runs_images`."""
        return False

    async def warm(self, container: ContainerSpec) -> None:
        """Start the container's zygote in the background, if it can have one. Returns at once."""
        program = container.program
        if program is None:
            return
        try:
            python = await self.environments.find(program)
        except Missing:
            return
        key = zygote_key(container, program, python)
        if key is not None:
            with contextlib.suppress(ForkRefused):
                self._around.zygotes.get(key)

    async def start(self, spec: ReplicaSpec) -> str:
        """Start all containers. See `Backend.start`.

        Raises:
            AlreadyExists: A replica with that id exists.
            Missing: A container has no program, or its interpreter or packages are not there.
        """
        if spec.id in self._replicas:
            raise AlreadyExists(f'replica "{spec.id}" of Pod "{spec.pod}" exists already')
        pythons = [await self._python(container) for container in spec.containers]
        replica = _Replica(spec, {})
        self._replicas[spec.id] = replica
        begin = asyncio.ensure_future(self._begin(replica, pythons))
        try:
            await asyncio.shield(begin)
        except BaseException:
            # A fork that is under way must be known before it can be ended.
            await asyncio.wait((begin,))
            await asyncio.shield(self._begin_stop(replica, 0.0))
            raise
        return spec.id

    async def _begin(self, replica: _Replica, pythons: Sequence[Path]) -> None:
        async with replica.beginning:
            ports = self._ports(replica.spec)
            self._around.files.save(replica.spec)
            for container, python in zip(replica.spec.containers, pythons, strict=True):
                if replica.ending.task is not None:
                    raise Conflict(f'Pod "{replica.spec.pod}" was stopped while it started')
                await self._new_container(replica, container).begin(python, ports)

    async def start_container(self, replica: str, container: ContainerSpec) -> None:
        """Start a terminated container again. See `Backend.start_container`.

        Raises:
            NotFound: No such replica.
            Conflict: The replica is being stopped, or the container runs.
        """
        found = self._replica(replica)
        python = await self._python(container)
        begin = asyncio.ensure_future(self._begin_again(found, container, python))
        try:
            await asyncio.shield(begin)
        except asyncio.CancelledError:
            await asyncio.wait((begin,))
            raise

    async def _begin_again(self, found: _Replica, container: ContainerSpec, python: Path) -> None:
        async with found.beginning:
            await self._restart(found, container, python)

    async def _restart(self, found: _Replica, container: ContainerSpec, python: Path) -> None:
        old = found.containers.get(container.name)
        if found.ending.task is not None or (old is not None and old.status.state == "running"):
            raise Conflict(f'container "{container.name}" of Pod "{found.spec.pod}" cannot start')
        others = tuple(container if c.name == container.name else c for c in found.spec.containers)
        found.spec = replace(found.spec, containers=others)
        self._around.files.save(found.spec)
        output.keep_previous(container.log_path)
        new = self._new_container(found, container)
        ports: Mapping[int, int] = {}
        if old is not None:
            await old.leave()
            new.tokens |= old.tokens
            ports = old.status.ports
        try:
            await new.begin(python, ports or self._ports(found.spec))
        except BaseException:
            if old is not None:
                found.containers[container.name] = old
            raise

    async def stop_container(self, replica: str, container: str, *, grace: float) -> None:
        """End one container. See `Backend.stop_container`.

        Raises:
            NotFound: No such replica or container.
        """
        found = self._container(replica, container)
        found.ending = True
        found.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(found.gone(), grace)
        except TimeoutError:
            found.signal(signal.SIGKILL)
            await asyncio.wait_for(found.gone(), _KILL_WAIT)

    async def check_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        """Ask a container's processes. See `Backend.check_code`.

        Raises:
            NotFound: No such replica or container.
        """
        return await self._container(replica, container).check_code(change)

    async def commit_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        """Put new functions into a container's processes. See `Backend.commit_code`.

        Raises:
            NotFound: No such replica or container.
        """
        return await self._container(replica, container).commit_code(change)

    async def resolve(self, namespace: str, names: tuple[tuple[str, str], ...]) -> None:
        """Write the names where launchers look for those they lack. See `Backend.resolve`."""
        await asyncio.to_thread(self._around.files.save_names, namespace, dict(names))

    async def stop(self, replica: str, *, grace: float) -> None:
        """End a replica and everything it started. See `Backend.stop`.

        A second call with less grace shortens the first one's.
        """
        found = self._replicas.get(replica)
        if found is not None:
            await asyncio.shield(self._begin_stop(found, grace))

    def _begin_stop(self, replica: _Replica, grace: float) -> asyncio.Task[None]:
        def start() -> asyncio.Task[None]:
            return self._tasks.own(self._stop(replica), f"stop {replica.spec.pod}")

        return replica.ending.begin(grace, start)

    async def _stop(self, replica: _Replica) -> None:
        async with replica.beginning:
            containers = list(replica.containers.values())
        for container in containers:
            container.ending = True
            container.signal(signal.SIGTERM)
        gone = asyncio.gather(*(container.gone() for container in containers))
        await replica.ending.patience(gone)
        for container in containers:
            container.signal(signal.SIGKILL)
        try:
            await asyncio.wait_for(gone, _KILL_WAIT)
        except TimeoutError:
            log.error("%s: not all processes died after SIGKILL", replica.spec.pod)
        for container in containers:
            await container.sweep()
            await container.leave()
            await asyncio.to_thread(shutil.rmtree, container.control, ignore_errors=True)
        self._around.files.remove(replica.spec.id)
        self._replicas.pop(replica.spec.id, None)

    async def hold(self, replica: str, on: bool) -> None:
        """Judge no probe of the replica while `on`. See `Backend.hold`."""
        for container in self._replica(replica).containers.values():
            container.hold(on)

    async def control_sockets(self, replica: str, container: str) -> Path | None:
        """Return where a container's processes can be asked. See `Backend.control_sockets`."""
        found = self._replica(replica).containers.get(container)
        return found.control if found is not None and found.control.is_dir() else None

    async def list(self) -> Sequence[ReplicaStatus]:
        """Return all replicas. See `Backend.list`."""
        return [replica.status() for replica in self._replicas.values()]

    def events(self) -> AsyncIterator[ReplicaEvent]:
        """Yield changes until the backend is closed. See `Backend.events`."""
        return self._events.read()

    async def usage(self, replica: str) -> Usage:
        """Return CPU time and PSS of all processes of a replica. See `Backend.usage`."""
        found = self._replica(replica)
        roots = [
            c.status.pid
            for c in found.containers.values()
            if c.status.pid is not None and c.status.state == "running"
        ]
        pids = [pid for root in roots for pid in processes.descendants(root)]
        cpu, memory = await asyncio.to_thread(
            lambda: (processes.cpu_seconds(pids), processes.pss(pids))
        )
        return Usage(cpu_seconds=cpu, memory_bytes=memory)

    async def close(self, *, stop_replicas: bool) -> None:
        """End the backend. See `Backend.close`."""
        if stop_replicas:
            replicas = list(self._replicas.values())
            await asyncio.gather(*(self.stop(r.spec.id, grace=r.spec.grace) for r in replicas))
            await self._around.zygotes.stop()
        for replica in self._replicas.values():
            for container in replica.containers.values():
                await container.leave()
        # From here on they are the next backend's.
        self._replicas.clear()
        await self._around.zygotes.disconnect()
        await self._tasks.cancel()
        self._events.close()

    # -- inside

    def _log_paths(self) -> Iterator[Path]:
        for replica in self._replicas.values():
            yield from (container.log_path for container in replica.spec.containers)

    def _replica(self, replica: str) -> _Replica:
        found = self._replicas.get(replica)
        if found is None:
            raise NotFound(f'replica "{replica}" does not exist')
        return found

    def _container(self, replica: str, container: str) -> Container:
        found = self._replica(replica).containers.get(container)
        if found is None:
            raise NotFound(f'replica "{replica}" has no container "{container}"')
        return found

    def _new_container(self, replica: _Replica, spec: ContainerSpec) -> Container:
        def changed(container: Container, kind: str, message: str) -> None:
            self._changed(replica, container, kind, message)

        container = Container(
            replica=replica.spec,
            spec=spec,
            around=self._around,
            on_change=changed,
            status=ContainerStatus(name=spec.name, state="waiting"),
        )
        replica.containers[spec.name] = container
        return container

    def _changed(self, replica: _Replica, container: Container, kind: str, message: str) -> None:
        self._events.put(
            ReplicaEvent(
                id=replica.spec.id,
                kind=kind,  # type: ignore[arg-type]  # one of the Literal's words by construction
                container=container.spec.name,
                status=replica.status(),
                message=message,
            )
        )

    async def _python(self, container: ContainerSpec) -> Path:
        if container.program is None:
            raise Missing(
                f'container "{container.name}": image "{container.image}" has no program here; '
                "run it with Docker, or map the image to local source in kserve-local.yaml"
            )
        return await self.environments.find(container.program)

    def _ports(self, spec: ReplicaSpec) -> dict[int, int]:
        """Return Pod port -> real port: the same where the Pod has its address, else free ones."""
        wanted = launching.pod_ports(spec)
        if spec.ip:
            return {port: port for port in wanted}
        ports = {}
        with contextlib.ExitStack() as held:
            for port in wanted:
                probe = held.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                ports[port] = probe.getsockname()[1]
        return ports


def _surviving_pid(found: Mapping[str, object], marks: Mapping[str, Sequence[int]]) -> int | None:
    """Return the pid of the process that a run file is about, if it still runs."""
    token, pid = str(found["token"]), found.get("pid")
    carriers = marks.get(token, ())
    if not isinstance(pid, int):
        # It was started but had no time to say so; the first of its processes is the one.
        return min(carriers, key=lambda p: processes.start_time(p) or 0, default=None)
    start = found.get("start_time")
    if not processes.is_alive(pid, start if isinstance(start, int) else None):
        return None
    return pid if pid in carriers or not found.get("marked") else None
