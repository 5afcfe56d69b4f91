"""The Docker backend: a Pod is a group of containers on a Docker engine, or on Podman's socket.

A sandbox container holds the Pod's network, so that its containers share an address and one of them
can be replaced alone. The engine's own events drive all state; nothing is polled. Labels and the
run files make every container adoptable, so killing this process leaves all of them serving.
Nothing here decides what should run or what to restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kserve_local.aio import backoff
from kserve_local.backends import (
    docker_builds,
    docker_images,
    docker_pause,
    docker_spec,
    output,
)
from kserve_local.backends.docker_container import Container, Place
from kserve_local.backends.docker_engine import Engine, filters
from kserve_local.backends.docker_standby import Standby, Standbys
from kserve_local.backends.keeping import Ending, Events, Tasks, rotate_logs
from kserve_local.backends.runfiles import RunFiles
from kserve_local.errors import (
    AlreadyExists,
    Conflict,
    KServeLocalError,
    Missing,
    NotFound,
    ServiceUnavailable,
    TimedOut,
)
from kserve_local.interfaces.backend import (
    Build,
    ContainerSpec,
    Login,
    Progress,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaStatus,
    Usage,
)
from kserve_local.interfaces.code import CodeChange, CodeVerdict
from kserve_local.settings import Settings

log = logging.getLogger(__name__)

_KILL_WAIT = 10.0
_NETWORK = ".network"
"""Among the run files: there may be a network to remove, also where no Pod is left."""
SANDBOX_ENDED = "the Pod's sandbox, which holds its network, ended; it is made anew"
_STANDBY_CHECK = 60.0
_OVERLAP = 2
"""Seconds of the engine's events that are read twice after a break."""


@dataclass
class _Replica:
    spec: ReplicaSpec
    containers: dict[str, Container] = field(default_factory=dict)
    sandbox: str = ""
    place: Place | None = None
    adopted: bool = False
    standby: str = ""
    # Held while containers begin: a stop waits for it, so that it sees what it has to end.
    beginning: asyncio.Lock = field(default_factory=asyncio.Lock)
    ending: Ending = field(default_factory=Ending)

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            id=self.spec.id,
            namespace=self.spec.namespace,
            pod=self.spec.pod,
            ip=self.place.ip if self.place else "",
            containers=tuple(c.status for c in self.containers.values()),
            adopted=self.adopted,
        )


class DockerBackend:
    """Runs replicas as containers. Open it with `await DockerBackend.open(settings)`."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._files = RunFiles(settings.run_dir / "containers")
        self._project = docker_spec.project_id(settings.state)
        self._network = f"kserve-local-{self._project}"
        self._replicas: dict[str, _Replica] = {}
        self._by_container: dict[str, Container] = {}
        self._events = Events()
        self._tasks = Tasks()
        self._preparing = asyncio.Lock()
        self._building = asyncio.Lock()
        self._built: dict[Build, str] = {}
        self._standbys = Standbys(settings, engine, self._make_place)
        self._host = ""
        self._names: dict[str, tuple[tuple[str, str], ...]] = {}

    @classmethod
    async def open(
        cls, settings: Settings, *, environ: Mapping[str, str] | None = None
    ) -> DockerBackend:
        """Return a backend that has adopted the survivors of an earlier one.

        Args:
            environ: Where `DOCKER_HOST` and its like are looked up.

        Raises:
            Missing: No engine answers.
        """
        backend = cls(settings, await Engine.connect(environ))
        await backend._adopt()
        backend._tasks.own(backend._follow_engine(), "engine events")
        backend._tasks.own(backend._drop_standbys(), "standbys")
        backend._tasks.own(rotate_logs(settings, backend._log_paths), "log rotation")
        return backend

    # -- adoption

    async def _ours(self) -> list[Mapping[str, Any]]:
        """Return what the engine has of this project, running or not."""
        found: list[Mapping[str, Any]] = await self._engine.call(
            "containers", all=True, filters=filters([f"{docker_spec.PROJECT}={self._project}"])
        )
        return found

    async def _adopt(self) -> None:
        specs = {spec.id: spec for spec in await asyncio.to_thread(self._files.load)}
        known: dict[str, dict[str, list[str]]] = {}
        for found in docker_spec.sandboxes_last(await self._ours()):
            labels = found.get("Labels") or {}
            replica = str(labels.get(docker_spec.REPLICA) or "")
            by_name = known.setdefault(replica, {})
            by_name.setdefault(str(labels.get(docker_spec.CONTAINER) or ""), []).append(
                str(found["Id"])
            )
        # A Pod that was a standby has that one's labels.
        labelled = {id: self._files.alias_of(id) or id for id in specs}
        for id, containers in known.items():
            if id not in labelled.values():
                # A start that died before its spec was written, or whose state folder is gone.
                for container in itertools.chain.from_iterable(containers.values()):
                    await self._engine.remove(container)
        if specs:
            await self._find_host()
        for id, spec in specs.items():
            await self._adopt_replica(spec, known.get(labelled[id], {}))
            if labelled[id] != id and id in self._replicas:
                self._replicas[id].standby = labelled[id]

    async def _adopt_replica(self, spec: ReplicaSpec, known: Mapping[str, Sequence[str]]) -> None:
        replica = _Replica(spec, adopted=True)
        self._replicas[spec.id] = replica
        sandbox = next(iter(known.get(docker_spec.SANDBOX, ())), "")
        begun = False
        if sandbox:
            replica.sandbox = sandbox
            replica.place = self._placed(
                spec, await self._engine.call("inspect_container", sandbox)
            )
            for item in spec.containers:
                begun = (
                    await self._adopt_container(replica, item, known.get(item.name, ())) or begun
                )
        if not begun:
            # Killed before the first container, or without the sandbox that all of them need: to
            # its owner this start never happened.
            for id in (
                id for name, ids in known.items() if name != docker_spec.SANDBOX for id in ids
            ):
                await self._engine.remove(id)
            await self.stop(spec.id, grace=0.0)

    async def _adopt_container(
        self, replica: _Replica, spec: ContainerSpec, ids: Sequence[str]
    ) -> bool:
        """Take over the newest of a container's runs; tell if there was one."""
        assert replica.place is not None  # only called with a sandbox
        found = [await self._engine.call("inspect_container", id) for id in ids]
        found.sort(key=lambda f: str(f["Created"]))
        for older in found[:-1]:
            await self._engine.remove(str(older["Id"]))
        container = self._new_container(replica, spec)
        if not found:
            return False
        if found[-1]["State"]["Status"] == "created":
            await self._engine.remove(str(found[-1]["Id"]))  # It would hold the next one's name.
            return False
        await container.adopt(found[-1], replica.place)
        self._by_container[container.id] = container
        return True

    # -- the engine's news

    async def _follow_engine(self) -> None:
        """Take note of what the engine tells; after a break of whatever happened meanwhile."""
        attempt, told = 0, False
        while True:
            since = int(time.time()) - _OVERLAP
            try:
                await self._look_at_all()
                if told:
                    log.info("the Docker engine answers again")
                attempt, told = 0, False
                await self._listen(since)
            except KServeLocalError as error:
                if not told:
                    log.warning("%s", error)
                told = True
            await asyncio.sleep(backoff(attempt, first=0.1, cap=5.0))
            attempt += 1

    async def _listen(self, since: int) -> None:
        wanted = {
            "type": ["container"],
            "event": ["die", "died", "oom"],  # Podman tells a "die" only if asked for its "died".
            **filters([f"{docker_spec.PROJECT}={self._project}"]),
        }
        news = self._engine.stream(
            lambda client: client.events(decode=True, since=since, filters=wanted)
        )
        async with contextlib.aclosing(news) as events:
            async for event in events:
                id = str(event.get("id") or "")
                container = self._by_container.get(id)
                if container is not None:
                    self._tasks.own(container.look(), f"end of {container.label}")
                for replica in list(self._replicas.values()):
                    if replica.sandbox == id:
                        work = self._look_at_sandbox(replica)
                        self._tasks.own(work, f"end of the sandbox of {replica.spec.pod}")

    async def _look_at_all(self) -> None:
        await self._engine.call("ping")
        await asyncio.gather(*(c.look() for c in list(self._by_container.values())))
        await asyncio.gather(*(self._look_at_sandbox(r) for r in list(self._replicas.values())))

    async def _look_at_sandbox(self, replica: _Replica) -> None:
        """End the Pod's containers if its sandbox has ended: nobody reaches them any more.

        Who restarts them has a new sandbox made, as the kubelet does.
        """
        async with replica.beginning:
            if not replica.sandbox or replica.ending.task is not None:
                return
            if await self._is_running(replica.sandbox):
                return
            containers = list(replica.containers.values())
            if any(container.status.state == "running" for container in containers):
                log.warning("the sandbox of %s has ended; its containers go, too", replica.spec.pod)
            for container in containers:
                container.killed_for = SANDBOX_ENDED
            await asyncio.gather(*(c.signal(signal.SIGKILL) for c in containers))

    async def _is_running(self, container: str) -> bool:
        with contextlib.suppress(NotFound):
            found = await self._engine.call("inspect_container", container)
            return bool(found["State"].get("Running"))
        return False

    async def _drop_standbys(self) -> None:
        """Give up standbys that nobody seems to want any more, until cancelled."""
        while True:
            await asyncio.sleep(_STANDBY_CHECK)
            running = [replica.spec for replica in self._replicas.values()]
            await self._standbys.drop_idle(running, time.monotonic())

    # -- the contract

    async def prepare(self, container: ContainerSpec, report: Callable[[Progress], None]) -> None:
        """Build the image, or pull it if the policy asks for it. See `Backend.prepare`."""
        if container.build is not None:
            image = self._built[container.build] = await self._build(container, report)
            await self._check_user(container, image)
            return
        docker_spec.check_image(container.image)
        there = await docker_builds.has_image(self._engine, container.image)
        if container.pull == "Never" and not there:
            raise Missing(
                f'Container image "{container.image}" is not present with pull policy of Never'
            )
        if self._settings.offline and not there:
            raise Missing(
                f'Container image "{container.image}" is not present, and nothing is pulled with '
                "--offline"
            )
        if not self._settings.offline and (not there or container.pull == "Always"):
            await self._pull(container, report)
        await self._check_user(container, container.image)

    async def _check_user(self, container: ContainerSpec, image: str) -> None:
        if container.security.non_root and container.security.user is None:
            found = await self._engine.call("inspect_image", image)
            docker_spec.check_user(str((found.get("Config") or {}).get("User") or ""))

    async def _build(self, container: ContainerSpec, report: Callable[[Progress], None]) -> str:
        """Return the image of a container that is made here, built unless it is there.

        Raises:
            Missing: It cannot be built; ends with the builder's last lines.
        """
        recipe = await asyncio.to_thread(self._recipe, container)
        async with self._building:
            if await docker_builds.has_image(self._engine, recipe.image):
                return recipe.image
            if self._settings.offline:
                raise Missing(
                    f'image "{recipe.image}" for container "{container.name}" is not built yet, '
                    "and nothing is built with --offline",
                    hint=f"kserve-local images build {recipe.label}   while there is a network",
                )
            report(Progress("build", f"Building image {recipe.label}"))
            async for line in docker_builds.build(self._engine, recipe, os.environ):
                if step := docker_builds.step_of(line):
                    report(Progress("build", f"Building image {recipe.label}: {step}"))
        return recipe.image

    def _recipe(self, container: ContainerSpec) -> docker_images.Recipe:
        build = container.build
        assert build is not None  # only called for what is made here
        if build.context is not None:
            return docker_images.source(container.image, build, os.environ)
        return docker_images.runtime(build.server, os.environ)

    async def _placed_spec(self, container: ContainerSpec) -> ContainerSpec:
        """Return the container with the image that really runs, and its live source mounted."""
        build = container.build
        if build is None:
            return container
        image = self._built.get(build)
        if image is None:
            image = (await asyncio.to_thread(self._recipe, container)).image
        # What a later supervisor reads is the container as it runs.
        placed = replace(container, image=image, build=None)
        if build.context is None:
            return placed
        try:
            found = await self._engine.call("inspect_image", image)
        except NotFound:
            return placed  # the start will say so
        inside = str((found.get("Config") or {}).get("WorkingDir") or "/")
        live = docker_images.live(build.context, build.reload, inside)
        return docker_spec.with_launcher(replace(placed, mounts=placed.mounts + live), found)

    async def _pull(self, container: ContainerSpec, report: Callable[[Progress], None]) -> None:
        """Pull a container's image with the first login that the registry takes.

        Raises:
            Missing: The registry does not give it; in the engine's words.
        """
        refused: Missing | None = None
        for login in container.logins or (None,):
            try:
                await self._pull_as(login, container.image, report)
                return
            except Missing as error:
                refused = refused or error
        assert refused is not None  # at least one was tried
        raise refused

    async def _pull_as(
        self, login: Login | None, image: str, report: Callable[[Progress], None]
    ) -> None:
        """Pull an image, telling the bytes that have come."""
        auth = {"username": login.username, "password": login.password} if login else None
        repository, tag = docker_spec.repository_and_tag(image)
        layers: dict[str, tuple[int, int]] = {}
        begun = time.monotonic()
        lines = self._engine.stream(
            lambda client: client.pull(
                repository, tag=tag, stream=True, decode=True, auth_config=auth
            )
        )
        try:
            async with contextlib.aclosing(lines) as news:
                async for line in news:
                    if line.get("error"):
                        raise Missing(f'Failed to pull image "{image}": {line["error"]}')
                    detail = line.get("progressDetail") or {}
                    if line.get("status") == "Downloading" and detail.get("total"):
                        layers[str(line["id"])] = (int(detail["current"]), int(detail["total"]))
                        done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                        rate = done / max(time.monotonic() - begun, 0.001)
                        report(Progress("pull", f"Pulling {image}", done, total, rate))
        except Missing:
            raise
        except KServeLocalError as error:
            raise Missing(f'Failed to pull image "{image}": {error}') from error

    @property
    def standbys(self) -> int:
        """Pods that are kept in reserve."""
        return self._standbys.count

    def host_address(self) -> str:
        """Return the network's own address, once it is made. See `Backend.host_address`."""
        return self._host

    async def runs_images(self) -> bool:
        """Return True: that is what it is for. See `Backend.runs_images`."""
        return True

    async def warm(self, container: ContainerSpec) -> None:
        """Nothing yet starts sooner for it. See `Backend.warm`."""

    async def start(self, spec: ReplicaSpec) -> str:
        """Start all containers. See `Backend.start`.

        Raises:
            AlreadyExists: A replica with that id exists.
            Missing: An image is not there.
        """
        placed = [await self._placed_spec(container) for container in spec.containers]
        spec = replace(spec, containers=tuple(placed))
        if spec.id in self._replicas:
            raise AlreadyExists(f'replica "{spec.id}" of Pod "{spec.pod}" exists already')
        replica = self._replicas[spec.id] = _Replica(spec)
        begin = asyncio.ensure_future(self._begin(replica))
        try:
            await asyncio.shield(begin)
        except BaseException:
            # A container that is being made must be known before it can be removed.
            await asyncio.wait((begin,))
            await asyncio.shield(self._begin_stop(replica, 0.0))
            raise
        return spec.id

    async def _begin(self, replica: _Replica) -> None:
        async with replica.beginning:
            standby = await self._standbys.claim(replica.spec)
            if standby is not None:
                await self._take(replica, standby)
                return
            for container in replica.spec.containers:
                if not await docker_builds.has_image(self._engine, container.image):
                    raise Missing(
                        f'container "{container.name}": image "{container.image}" is not there; '
                        "docker pull or docker build brings it"
                    )
            await asyncio.to_thread(self._files.save, replica.spec)
            place = await self._sandbox(replica)
            for container in replica.spec.containers:
                if replica.ending.task is not None:
                    raise Conflict(f'Pod "{replica.spec.pod}" was stopped while it started')
                await self._begin_container(self._new_container(replica, container), place)

    async def _take(self, replica: _Replica, standby: Standby) -> None:
        """Make a standby the Pod's: same containers and sandbox, another name and log."""
        spec = replica.spec
        replica.standby, replica.sandbox = standby.id, standby.place.sandbox
        own = self._files.of(spec.id) / "hosts"
        replica.place = place = replace(standby.place, hosts=own)

        def save() -> None:
            self._files.save(spec)
            self._files.alias(spec.id, standby.id)

        await asyncio.to_thread(save)
        await self._write_hosts(replica, place)
        for item in spec.containers:
            found = await self._engine.call("inspect_container", standby.containers[item.name])
            container = self._new_container(replica, item)
            container.id = standby.containers[item.name]
            self._by_container[container.id] = container
            await container.adopt(found, place, begun=time.time(), note="from a warm standby")

    async def _begin_container(self, container: Container, place: Place) -> None:
        await container.begin(place)
        self._by_container[container.id] = container
        await container.look()  # Its end may have been told before it was known.

    async def start_container(self, replica: str, container: ContainerSpec) -> None:
        """Start a terminated container again. See `Backend.start_container`.

        Raises:
            NotFound: No such replica.
            Conflict: The replica is being stopped, or the container runs.
        """
        found = self._replica(replica)
        placed = await self._placed_spec(container)
        begin = asyncio.ensure_future(self._begin_again(found, placed))
        try:
            await asyncio.shield(begin)
        except asyncio.CancelledError:
            await asyncio.wait((begin,))
            raise

    async def _begin_again(self, found: _Replica, spec: ContainerSpec) -> None:
        async with found.beginning:
            old = found.containers.get(spec.name)
            if found.ending.task is not None or (old is not None and old.status.state == "running"):
                raise Conflict(f'container "{spec.name}" of Pod "{found.spec.pod}" cannot start')
            others = tuple(spec if c.name == spec.name else c for c in found.spec.containers)
            found.spec = replace(found.spec, containers=others)
            await asyncio.to_thread(self._files.save, found.spec)
            output.keep_previous(spec.log_path)
            new = self._new_container(found, spec, attempt=old.attempt + 1 if old else 0)
            try:
                place = await self._sandbox(found)
                await self._begin_container(new, place)
            except BaseException:
                if old is not None:
                    found.containers[spec.name] = old
                raise
            if old is not None:
                await self._forget(old)

    async def stop_container(self, replica: str, container: str, *, grace: float) -> None:
        """End one container. See `Backend.stop_container`.

        Raises:
            NotFound: No such replica or container.
        """
        found = self._container(replica, container)
        found.ending = True
        await found.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(found.gone(), grace)
        except TimeoutError:
            await found.signal(signal.SIGKILL)
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
        """Rewrite the Pods' hosts files. See `Backend.resolve`."""
        if self._names.get(namespace) == names:
            return
        self._names[namespace] = names
        for found in list(self._replicas.values()):
            mine = found.spec.namespace == namespace and found.ending.task is None
            if mine and found.place is not None:
                await self._write_hosts(found, found.place)

    def _hosts_file(self, spec: ReplicaSpec, place: Place) -> str:
        names = self._names.get(spec.namespace, ())
        return docker_spec.hosts_file(spec, place.inner, host=self._host, names=names)

    async def _write_hosts(self, replica: _Replica, place: Place) -> None:
        """Write the hosts file of a Pod, in place: the containers see this very file."""
        text = self._hosts_file(replica.spec, place)
        mounted = [place.hosts]
        if replica.standby:
            mounted.append(self._standbys.hosts_of(replica.standby))
        await asyncio.to_thread(_write_readable, text, mounted)

    async def stop(self, replica: str, *, grace: float) -> None:
        """End a replica and everything of it. See `Backend.stop`.

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
        """End the replica; while the engine does not answer, try again."""
        attempt = 0
        while True:
            try:
                await self._try_to_stop(replica)
                return
            except (ServiceUnavailable, TimedOut) as error:
                if attempt == 0:
                    log.warning("%s cannot be stopped: %s", replica.spec.pod, error)
            await asyncio.sleep(backoff(attempt, first=0.2, cap=5.0))
            attempt += 1

    async def _try_to_stop(self, replica: _Replica) -> None:
        async with replica.beginning:
            containers = list(replica.containers.values())
        for container in containers:
            container.ending = True
        await asyncio.gather(*(c.signal(signal.SIGTERM) for c in containers))
        gone = asyncio.gather(*(container.gone() for container in containers))
        await replica.ending.patience(gone)
        await asyncio.gather(*(c.signal(signal.SIGKILL) for c in containers))
        try:
            await asyncio.wait_for(gone, _KILL_WAIT)
        except TimeoutError:
            log.error("%s: not all containers died after SIGKILL", replica.spec.pod)
        for container in containers:
            await self._forget(container)
        if replica.sandbox:
            await self._engine.remove(replica.sandbox)
        if replica.standby:
            await self._standbys.forget(replica.standby)
        await asyncio.to_thread(self._files.remove, replica.spec.id)
        self._replicas.pop(replica.spec.id, None)

    async def hold(self, replica: str, on: bool) -> None:
        """Judge no probe of the replica while `on`. See `Backend.hold`."""
        for container in self._replica(replica).containers.values():
            container.hold(on)

    async def control_sockets(self, replica: str, container: str) -> Path | None:
        """Return where the container's processes can be asked. See `Backend.control_sockets`."""
        found = self._replica(replica).containers.get(container)
        return found.sockets if found is not None else None

    async def list(self) -> Sequence[ReplicaStatus]:
        """Return all replicas. See `Backend.list`."""
        return [replica.status() for replica in self._replicas.values()]

    def events(self) -> AsyncIterator[ReplicaEvent]:
        """Yield changes until the backend is closed. See `Backend.events`."""
        return self._events.read()

    async def usage(self, replica: str) -> Usage:
        """Return CPU time and memory of all containers of a replica. See `Backend.usage`."""
        found = self._replica(replica)
        if not self._engine.has_cgroups:
            return Usage(0.0, 0)
        running = [c.id for c in found.containers.values() if c.status.state == "running"]
        figures = await asyncio.gather(
            *(self._engine.call("stats", id, stream=False, one_shot=True) for id in running)
        )
        used = [docker_spec.usage(figure) for figure in figures]
        return Usage(sum(cpu for cpu, _ in used), sum(memory for _, memory in used))

    async def close(self, *, stop_replicas: bool) -> None:
        """End the backend. See `Backend.close`."""
        await self._standbys.leave()
        if stop_replicas:
            replicas = list(self._replicas.values())
            stops = [self._begin_stop(r, r.spec.grace) for r in replicas]
            patience = max((r.spec.grace for r in replicas), default=0.0) + 2 * _KILL_WAIT
            if stops and (await asyncio.wait(stops, timeout=patience))[1]:
                log.error("containers are left: the engine does not answer; down ends them later")
            await self._standbys.close()
            with contextlib.suppress(KServeLocalError):
                await self._engine.call("remove_network", self._network)
            await asyncio.to_thread(self._files.unmark, _NETWORK)
        await asyncio.gather(*(c.leave() for c in self._by_container.values()))
        # From here on they are the next backend's.
        self._replicas.clear()
        self._by_container.clear()
        await self._tasks.cancel()
        await self._engine.close()
        self._events.close()

    # -- the sandbox

    async def _sandbox(self, replica: _Replica) -> Place:
        """Return where the Pod's containers go; makes the sandbox unless it is there and runs."""
        if replica.sandbox and replica.place is not None:
            if await self._is_running(replica.sandbox):
                return replica.place
            # Its network is gone, and with it that of all containers: they get a new one.
            await self._end_all(replica)
            await self._engine.remove(replica.sandbox)
            replica.sandbox, replica.place = "", None
        replica.place = await self._make_place(replica.spec, self._files.of(replica.spec.id))
        replica.sandbox = replica.place.sandbox
        return replica.place

    async def _end_all(self, replica: _Replica) -> None:
        """Remove all containers that join the Pod's sandbox; who restarts them finds them ended."""
        own = (replica.spec.id, replica.standby or replica.spec.id)
        for found in docker_spec.sandboxes_last(await self._ours()):
            labels = found["Labels"]
            if labels[docker_spec.REPLICA] not in own or found["Id"] == replica.sandbox:
                continue
            container = self._by_container.get(str(found["Id"]))
            if container is not None:
                container.killed_for = SANDBOX_ENDED
                await container.signal(signal.SIGKILL)
                await asyncio.wait_for(container.gone(), _KILL_WAIT)
            await self._engine.remove(str(found["Id"]))

    async def _make_place(self, spec: ReplicaSpec, folder: Path) -> Place:
        """Make a Pod's sandbox, and its hosts file in `folder`; leaves nothing when it raises."""
        await self._prepare_network()
        request = docker_spec.sandbox(
            self._settings.state, spec, self._network, publish=self._engine.is_rootless
        )
        name = docker_spec.container_name(spec, docker_spec.SANDBOX)
        made = await self._engine.call("create_container_from_config", request, name=name)
        try:
            await self._engine.call("start", made["Id"])
            found = await self._engine.call("inspect_container", made["Id"])
            place = replace(self._placed(spec, found), hosts=folder / "hosts")
            text = self._hosts_file(spec, place)
            await asyncio.to_thread(_write_readable, text, [place.hosts])
        except BaseException:
            await asyncio.shield(self._engine.remove(str(made["Id"])))
            raise
        return place

    def _placed(self, spec: ReplicaSpec, found: Mapping[str, Any]) -> Place:
        """Return what the sandbox's inspection says of the Pod's place."""
        own = docker_spec.address(found, self._network)
        reachable = not self._engine.is_rootless
        ports = {port: port for port in docker_spec.pod_ports(spec)}
        return Place(
            sandbox=str(found["Id"]),
            ip=own if reachable else "",
            inner=own,
            ports=ports if reachable else docker_spec.published(found),
            hosts=self._files.of(spec.id) / "hosts",
            host=self._host,
        )

    async def _prepare_network(self) -> None:
        """Make the project's network and the sandbox's image, unless they are there."""
        async with self._preparing:
            if not await docker_builds.has_image(self._engine, docker_pause.IMAGE):
                await self._import_pause()
            if not await self._engine.call("networks", names=[f"^{self._network}$"]):
                labels = {
                    docker_spec.PROJECT: self._project,
                    docker_spec.STATE: str(self._settings.state),
                }
                await self._engine.call(
                    "create_network", self._network, driver="bridge", labels=labels
                )
            await asyncio.to_thread(self._files.mark, _NETWORK)
            await self._find_host()

    async def _import_pause(self) -> None:
        """Give the engine the sandbox's image.

        Raises:
            Missing: There is no program for the engine's machine.
        """
        try:
            archive = docker_pause.archive(self._engine.architecture)
        except KeyError:
            raise Missing(
                f"the engine's machine is {self._engine.architecture}; there is no pause "
                "program for it, only for x86_64 and arm64"
            ) from None
        told = await self._engine.call(
            "import_image_from_data", archive, changes=['ENTRYPOINT ["/pause"]']
        )
        # Named afterwards: Podman 4.3 takes no tag with the import.
        id = docker_spec.imported(told)
        await self._engine.call("tag", id, docker_pause.REPOSITORY, tag=docker_pause.TAG)

    async def _find_host(self) -> None:
        """Remember where containers of the project's network reach this machine."""
        if self._engine.is_rootless:
            return
        with contextlib.suppress(NotFound):
            found = await self._engine.call("inspect_network", self._network)
            self._host = docker_spec.gateway_of(found)

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

    def _new_container(
        self, replica: _Replica, spec: ContainerSpec, *, attempt: int = 0
    ) -> Container:
        def changed(container: Container, kind: str, message: str) -> None:
            self._events.put(
                ReplicaEvent(
                    id=replica.spec.id,
                    kind=kind,  # type: ignore[arg-type]  # one of the Literal's words
                    container=container.spec.name,
                    status=replica.status(),
                    message=message,
                )
            )

        def changed_now(container: Container, kind: str, message: str) -> None:
            changed(container, kind, message)
            if kind == "ready" and all(c.status.ready for c in replica.containers.values()):
                self._standbys.want(replica.spec)

        container = Container(
            engine=self._engine,
            state=self._settings.state,
            replica=replica.spec,
            spec=spec,
            on_change=changed_now,
            attempt=attempt,
        )
        replica.containers[spec.name] = container
        return container

    async def _forget(self, container: Container) -> None:
        self._by_container.pop(container.id, None)
        await container.remove()


def _write_readable(text: str, paths: Sequence[Path]) -> None:
    """Write files that any user of a container can read, in folders that are private here."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text)
        path.chmod(0o644)


async def remove_orphans(environ: Mapping[str, str] | None = None) -> list[str]:
    """Remove containers and networks of projects whose state folder is gone; return those folders.

    Nobody else could: what a project's own `down` needs went with the folder.

    Raises:
        Missing: No engine answers.
    """
    engine = await Engine.connect(environ)
    gone: set[str] = set()

    def is_orphan(found: Mapping[str, Any]) -> bool:
        state = str((found.get("Labels") or {}).get(docker_spec.STATE) or "")
        if not state or Path(state).exists():
            return False
        gone.add(state)
        return True

    wanted = filters([docker_spec.STATE])
    try:
        containers = await engine.call("containers", all=True, filters=wanted)
        for found in docker_spec.sandboxes_last(containers):
            if await asyncio.to_thread(is_orphan, found):
                await engine.remove(str(found["Id"]))
        for found in await engine.call("networks", filters=wanted):
            if await asyncio.to_thread(is_orphan, found):
                with contextlib.suppress(NotFound):
                    await engine.call("remove_network", found["Id"])
    finally:
        await engine.close()
    return sorted(gone)
