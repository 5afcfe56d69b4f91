"""Warm standby: Pods that were started, became ready, and were paused before anybody needed them.

A Pod that wants exactly what a standby runs takes it over, so that it pays neither interpreter nor
imports nor loading. Standbys are kept within a memory budget, the longest unused going first; one
whose model or code has changed since is never given out. They are no replicas: whoever restarts
finds containers of nobody and removes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kserve_local.backends import docker_spec
from kserve_local.backends.docker_container import Container, Place
from kserve_local.backends.docker_engine import Engine
from kserve_local.errors import KServeLocalError, NotFound
from kserve_local.interfaces.backend import POD_IP, ContainerSpec, ReplicaSpec
from kserve_local.settings import Settings

log = logging.getLogger(__name__)

PREFIX = "standby-"
PAUSE_BEFORE = 2.0
"""Seconds after a Pod is ready before its standby is begun: the first requests have the machine."""
IDLE = 1800.0
"""Seconds that a standby is kept for when no Pod like it runs: the next may come from zero, or the
service is gone, which nobody here knows.
"""
_MAX_START = 300.0
_MAX_FILES = 5000


def key_of(spec: ReplicaSpec, volumes: Path) -> str:
    """Return what tells Pods that can take each other's standby from those that cannot. Pure.

    Args:
        volumes: Folder of the Pods' own volumes; what mounts one of those has no standby.

    Returns:
        A digest; empty: this Pod has something that is only its own.
    """
    if not any(container.readiness for container in spec.containers):
        return ""  # Nothing that waits for requests.
    containers = []
    for container in spec.containers:
        if any(mount.source.is_relative_to(volumes) for mount in container.mounts):
            return ""
        if container.devices:
            return ""  # It would hold a GPU that others wait for.
        plain: dict[str, Any] = asdict(replace(container, log_path=Path(), program=None))
        containers.append(plain)
    text = json.dumps(
        [spec.namespace, spec.hostname, spec.domain, containers], default=str, sort_keys=True
    )
    if any(own in text for own in (POD_IP, spec.pod, spec.id)):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(containers: Sequence[ContainerSpec]) -> str:
    """Return a digest of name, size and time of all mounted files. Blocking.

    Empty: there are too many to tell soon.
    """
    whole = hashlib.sha256()
    count = 0
    for source in sorted({mount.source for c in containers for mount in c.mounts}):
        for place, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                count += 1
                if count > _MAX_FILES:
                    return ""
                whole.update(_line(Path(place, name)))
        if source.is_file():
            whole.update(_line(source))
    return whole.hexdigest()


def _line(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:
        return f"{path} -\n".encode()
    return f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ino}\n".encode()


@dataclass
class Standby:
    """A paused Pod.

    Args:
        id: What its containers are labelled with.
        place: Its sandbox; `hosts` is a file of its own.
        containers: The engine's id of each, by name.
        state: Fingerprint of the files it has read.
        memory: Bytes.
        alone_since: Since when no Pod like it runs; None: one did at the last look.
    """

    id: str
    key: str
    place: Place
    containers: dict[str, str]
    state: str
    memory: int = 0
    alone_since: float | None = None


@dataclass
class Standbys:
    """The standbys of one project.

    Args:
        make_place: Makes the sandbox of a Pod, with its hosts file in a folder.
    """

    settings: Settings
    engine: Engine
    make_place: Callable[[ReplicaSpec, Path], Awaitable[Place]]
    _by_key: dict[str, Standby] = field(default_factory=dict)
    _making: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _waking: set[asyncio.Event] = field(default_factory=set)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def folder(self) -> Path:
        """Where the standbys' hosts files lie: among the run files of containers, so that whoever
        looks for those that a killed supervisor left finds standbys, too.
        """
        return self.settings.run_dir / "containers"

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._by_key)

    def hosts_of(self, id: str) -> Path:
        """Return the hosts file that the containers of a standby have mounted."""
        return self.folder / id / "hosts"

    def key_of(self, spec: ReplicaSpec) -> str:
        """Return the key of a Pod; empty: it has no standby."""
        if not self.settings.standby:
            return ""
        return key_of(spec, self.settings.run_dir / "volumes")

    def want(self, spec: ReplicaSpec) -> None:
        """Begin to make a standby for Pods like this one, unless there is one or none can be."""
        key = self.key_of(spec)
        if not key or key in self._by_key or key in self._making or self._closing.is_set():
            return
        work = self._try_to_make(spec, key)
        self._making[key] = asyncio.create_task(work, name=f"standby for {spec.pod}")

    async def _try_to_make(self, spec: ReplicaSpec, key: str) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), PAUSE_BEFORE)
            async with self._one:
                if not self._closing.is_set():
                    await self._make(spec, key)
        except KServeLocalError as error:
            log.info("no standby for Pods like %s: %s", spec.pod, error)
        except Exception:
            log.exception("no standby for Pods like %s", spec.pod)
        finally:
            self._making.pop(key, None)

    async def _make(self, spec: ReplicaSpec, key: str) -> None:
        state = await asyncio.to_thread(fingerprint, spec.containers)
        if not state:
            return
        id = f"{PREFIX}{secrets.token_hex(8)}"
        logs = self.folder / id
        own = tuple(replace(c, log_path=logs / f"{c.name}.log") for c in spec.containers)
        ready = asyncio.Event()
        begun: dict[str, Container] = {}
        place: Place | None = None

        def changed(container: Container, kind: str, message: str) -> None:
            if kind == "exited" or all(c.status.ready for c in begun.values()):
                ready.set()

        kept = False
        like = replace(spec, id=id, containers=own)
        try:
            place = await self.make_place(like, logs)
            for container in own:
                one = Container(
                    engine=self.engine,
                    state=self.settings.state,
                    replica=like,
                    spec=container,
                    on_change=changed,
                )
                begun[container.name] = one
                await one.begin(place)
            self._waking.add(ready)
            async with asyncio.timeout(_MAX_START):
                while not all(c.status.ready for c in begun.values()):
                    ready.clear()
                    ended = any(c.status.state != "running" for c in begun.values())
                    if ended or self._closing.is_set():
                        return
                    await ready.wait()
            found = Standby(id, key, place, {n: c.id for n, c in begun.items()}, state)
            # Before it is paused: an engine has no figures of what does not run.
            found.memory = await self._memory(found)
            for one in begun.values():
                await one.leave()
                await self.engine.call("pause", one.id)
            kept = await self._keep(found)
        except TimeoutError:
            log.info("no standby for Pods like %s: it was not ready in time", spec.pod)
        finally:
            self._waking.discard(ready)
            if not kept:
                for one in begun.values():
                    await one.remove()
                if place is not None:
                    await self.engine.remove(place.sandbox)
                await asyncio.to_thread(shutil.rmtree, logs, ignore_errors=True)

    async def _memory(self, standby: Standby) -> int:
        if not self.engine.has_cgroups:
            return 0
        figures = [
            await self.engine.call("stats", id, stream=False, one_shot=True)
            for id in standby.containers.values()
        ]
        return sum(docker_spec.usage(figure)[1] for figure in figures)

    async def _keep(self, standby: Standby) -> bool:
        """Take a standby in, giving up others for it; tell if it fits at all."""
        budget = self.settings.standby_memory_bytes
        if standby.memory <= 0:
            # A rootless engine without cgroups: nobody could say when the budget is spent.
            log.info("no standby is kept: the engine does not tell what it takes")
            return False
        if standby.memory > budget:
            log.info("a standby of %d MiB is over the budget", standby.memory >> 20)
            return False
        while sum(s.memory for s in self._by_key.values()) + standby.memory > budget:
            # Dictionaries remember the order; what is made or taken again comes last.
            await self._give_up(next(iter(self._by_key.values())))
        self._by_key[standby.key] = standby
        return True

    async def _give_up(self, standby: Standby) -> None:
        self._by_key.pop(standby.key, None)
        for container in standby.containers.values():
            await self.engine.remove(container)
        await self.engine.remove(standby.place.sandbox)
        await self.forget(standby.id)

    async def drop_idle(self, running: Collection[ReplicaSpec], now: float) -> None:
        """Remove the standbys that no Pod was like for `IDLE`.

        Args:
            running: All Pods that run.
            now: By any clock, the same at each call.
        """
        wanted = {self.key_of(spec) for spec in running}
        for key, standby in list(self._by_key.items()):
            if key in wanted:
                standby.alone_since = None
            elif standby.alone_since is None:
                standby.alone_since = now
            elif now - standby.alone_since > IDLE and self._by_key.get(key) is standby:
                with contextlib.suppress(KServeLocalError):
                    await self._give_up(standby)

    async def claim(self, spec: ReplicaSpec) -> Standby | None:
        """Return a running standby that is what this Pod wants, and forget it; None: there is none.

        Its containers and sandbox are the caller's from here on.
        """
        key = self.key_of(spec)
        standby = self._by_key.pop(key, None) if key else None
        if standby is None:
            return None
        try:
            unchanged = await asyncio.to_thread(fingerprint, spec.containers) == standby.state
            if unchanged and await self._is_whole(standby):
                for id in standby.containers.values():
                    await self.engine.call("unpause", id)
                return standby
        except KServeLocalError as error:
            log.info("a standby for %s is of no use: %s", spec.pod, error)
        with contextlib.suppress(KServeLocalError):
            await self._give_up(standby)
        return None

    async def _is_whole(self, standby: Standby) -> bool:
        """Whether its sandbox still holds a network, and all its containers are paused in it.

        Raises:
            NotFound: One of them is gone.
        """
        place = await self.engine.call("inspect_container", standby.place.sandbox)
        found = [
            await self.engine.call("inspect_container", i) for i in standby.containers.values()
        ]
        return bool(place["State"].get("Running")) and all(f["State"].get("Paused") for f in found)

    async def forget(self, id: str) -> None:
        """Remove the files of a standby that is gone or has become a Pod that is gone."""
        await asyncio.to_thread(shutil.rmtree, self.folder / id, ignore_errors=True)

    async def leave(self) -> None:
        """Begin no more, and wait for what is being made: it is kept or gone then."""
        self._closing.set()
        for event in self._waking:
            event.set()
        await asyncio.gather(*self._making.values())

    async def close(self) -> None:
        """Remove all standbys. Call `leave` before."""
        for standby in list(self._by_key.values()):
            with contextlib.suppress(KServeLocalError, NotFound):
                await self._give_up(standby)
