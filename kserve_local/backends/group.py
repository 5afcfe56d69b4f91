"""The backend of a project: processes for what has a program here, Docker for every other image.

A replica belongs to one of the two as a whole. The engine is asked for when something needs it, so
a project without images needs none; replicas that an earlier supervisor left there are adopted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from kserve_local.backends.process import ProcessBackend
from kserve_local.errors import KServeLocalError, Missing, NotFound
from kserve_local.interfaces.backend import (
    Backend,
    ContainerSpec,
    Progress,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaStatus,
    Usage,
)
from kserve_local.interfaces.code import CodeChange, CodeVerdict
from kserve_local.settings import Settings

log = logging.getLogger(__name__)

_ASK_AGAIN = 5.0
"""Seconds that an engine's absence is believed."""


class BackendGroup:
    """Both backends as one. Open it with `await BackendGroup.open(settings)`."""

    def __init__(self, settings: Settings, processes: ProcessBackend) -> None:
        self._settings = settings
        self.processes = processes
        self._docker: Backend | None = None
        self._names: dict[str, tuple[tuple[str, str], ...]] = {}
        self._opening = asyncio.Lock()
        self._absent: tuple[float, Missing] | None = None
        self._events: asyncio.Queue[ReplicaEvent | None] = asyncio.Queue()
        self._pumps = [asyncio.create_task(self._pump(processes), name="process-events")]

    @classmethod
    async def open(cls, settings: Settings) -> BackendGroup:
        """Return both backends with what they adopted.

        Raises:
            Missing: kserve-local-runtimes is not installed, or Docker is asked for and not there.
        """
        group = cls(settings, await ProcessBackend.open(settings))
        folder = settings.run_dir / "containers"
        if settings.backend == "docker":
            await group._engine()
        elif settings.may_use("docker") and folder.is_dir() and any(folder.iterdir()):
            try:
                await group._engine()
            except Missing as error:
                log.warning("containers of the last run cannot be adopted: %s", error)
        return group

    async def _pump(self, backend: Backend) -> None:
        async for event in backend.events():
            self._events.put_nowait(event)

    async def _engine(self) -> Backend:
        """Return the Docker backend, opened when first needed.

        Raises:
            Missing: No engine answers, or the project does without.
        """
        async with self._opening:
            if self._docker is not None:
                return self._docker
            if not self._settings.may_use("docker"):
                raise Missing("this project runs with --backend process, without Docker")
            if self._absent is not None and time.monotonic() - self._absent[0] < _ASK_AGAIN:
                raise self._absent[1]
            # The SDK is slow to import, and most projects need none of it.
            from kserve_local.backends.docker import DockerBackend

            try:
                self._docker = await DockerBackend.open(self._settings)
            except Missing as error:
                self._absent = (time.monotonic(), error)
                raise
            self._pumps.append(asyncio.create_task(self._pump(self._docker), name="docker-events"))
            # It is opened for the first Pod that needs it: names were told before that.
            for namespace, names in self._names.items():
                await self._docker.resolve(namespace, names)
            return self._docker

    def host_address(self) -> str:
        """See `Backend.host_address`."""
        return self._docker.host_address() if self._docker is not None else ""

    async def runs_images(self) -> bool:
        """Whether an engine is there for images without a program. See `Backend.runs_images`."""
        try:
            await self._engine()
        except Missing:
            return False
        return True

    async def _for(self, *containers: ContainerSpec) -> Backend:
        if all(container.program is not None for container in containers):
            return self.processes
        return await self._engine()

    async def _of(self, replica: str) -> Backend:
        """Return the backend that has the replica.

        Raises:
            NotFound: None has.
        """
        for backend in (self.processes, self._docker):
            if backend is not None and any(s.id == replica for s in await backend.list()):
                return backend
        raise NotFound(f'replica "{replica}" does not exist')

    async def prepare(self, container: ContainerSpec, report: Callable[[Progress], None]) -> None:
        """See `Backend.prepare`."""
        await (await self._for(container)).prepare(container, report)

    async def warm(self, container: ContainerSpec) -> None:
        """See `Backend.warm`."""
        with contextlib.suppress(Missing):
            await (await self._for(container)).warm(container)

    async def start(self, spec: ReplicaSpec) -> str:
        """See `Backend.start`."""
        return await (await self._for(*spec.containers)).start(spec)

    async def start_container(self, replica: str, container: ContainerSpec) -> None:
        """See `Backend.start_container`."""
        await (await self._of(replica)).start_container(replica, container)

    async def stop_container(self, replica: str, container: str, *, grace: float) -> None:
        """See `Backend.stop_container`."""
        await (await self._of(replica)).stop_container(replica, container, grace=grace)

    async def resolve(self, namespace: str, names: tuple[tuple[str, str], ...]) -> None:
        """See `Backend.resolve`."""
        self._names[namespace] = names
        for backend in (self.processes, self._docker):
            if backend is not None:
                await backend.resolve(namespace, names)

    async def stop(self, replica: str, *, grace: float) -> None:
        """See `Backend.stop`."""
        for backend in (self.processes, self._docker):
            if backend is not None:
                await backend.stop(replica, grace=grace)

    async def hold(self, replica: str, on: bool) -> None:
        """See `Backend.hold`."""
        await (await self._of(replica)).hold(replica, on)

    async def control_sockets(self, replica: str, container: str) -> Path | None:
        """See `Backend.control_sockets`."""
        return await (await self._of(replica)).control_sockets(replica, container)

    async def list(self) -> Sequence[ReplicaStatus]:
        """See `Backend.list`."""
        found = [*await self.processes.list()]
        if self._docker is not None:
            found += await self._docker.list()
        return found

    async def events(self) -> AsyncIterator[ReplicaEvent]:
        """See `Backend.events`."""
        while (event := await self._events.get()) is not None:
            yield event

    async def usage(self, replica: str) -> Usage:
        """See `Backend.usage`."""
        return await (await self._of(replica)).usage(replica)

    async def check_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        """See `Backend.check_code`."""
        return await (await self._of(replica)).check_code(replica, container, change)

    async def commit_code(self, replica: str, container: str, change: CodeChange) -> CodeVerdict:
        """See `Backend.commit_code`."""
        return await (await self._of(replica)).commit_code(replica, container, change)

    async def close(self, *, stop_replicas: bool) -> None:
        """See `Backend.close`."""
        try:
            await asyncio.gather(
                self.processes.close(stop_replicas=stop_replicas),
                *([self._docker.close(stop_replicas=stop_replicas)] if self._docker else []),
            )
        finally:
            await asyncio.gather(*self._pumps, return_exceptions=True)
            self._events.put_nowait(None)


async def stop_everything(settings: Settings, *, grace: float | None = None) -> None:
    """End every replica and helper of a project whose supervisor is gone (`down`)."""
    group = await BackendGroup.open(settings)
    for status in await group.list():
        if grace is not None:
            with contextlib.suppress(KServeLocalError):
                await group.stop(status.id, grace=grace)
    await group.close(stop_replicas=True)
