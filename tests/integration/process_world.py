"""What the process backend's integration tests share: a project, user code, waiting."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kserve_local.backends.process import ProcessBackend
from kserve_local.interfaces.backend import (
    ContainerSpec,
    Probe,
    Program,
    ReplicaEvent,
    ReplicaSpec,
    ReplicaStatus,
)
from kserve_local.settings import Settings

_numbers = itertools.count(2)


class Project:
    """A project folder with user code in it."""

    def __init__(self, folder: Path) -> None:
        self.code = folder / "code"
        self.code.mkdir(parents=True)
        self.settings = Settings(
            project=folder,
            state=folder / ".kserve-local",
            cache=folder / "cache",
            runtime=folder / "s",
        )

    def write(self, name: str, text: str) -> Path:
        """Write a file of user code."""
        path = self.code / name
        path.write_text(text)
        return path

    def container(self, *argv: str, preload: tuple[str, ...] = (), **more: object) -> ContainerSpec:
        """Return a container that runs `python ARGV` in the code folder; `kind` etc. override."""
        name = str(more.pop("name", "kserve-container"))
        program: dict[str, object] = {
            "kind": "source",
            "runtime": "my/image:dev",
            "argv": argv,
            "python": Path(sys.executable),
            "cwd": self.code,
            "preload": preload,
        }
        for key in ("kind", "runtime", "python", "is_python", "requirements"):
            if key in more:
                program[key] = more.pop(key)
        values: dict[str, object] = {
            "name": name,
            "image": "my/image:dev",
            "argv": ("python", *argv),
            "log_path": self.settings.log_dir / "pod" / f"{name}.log",
            "program": Program(**program),  # type: ignore[arg-type]  # test shorthand
            "ports": (("http1", 8080),),
            "readiness": Probe("tcp", port=8080),
        }
        return ContainerSpec(**(values | more))  # type: ignore[arg-type]  # test shorthand

    def replica(self, *containers: ContainerSpec, **more: object) -> ReplicaSpec:
        """Return a replica of its own address and id."""
        number = next(_numbers)
        values: dict[str, object] = {
            "id": f"uid-{number}",
            "namespace": "default",
            "pod": f"pod-{number}",
            "containers": containers,
            "ip": f"127.{90 + os.getpid() % 10}.{os.getpid() // 10 % 256}.{number}",
            "grace": 5.0,
        }
        return ReplicaSpec(**(values | more))  # type: ignore[arg-type]  # test shorthand

    @asynccontextmanager
    async def backend(self) -> AsyncIterator[ProcessBackend]:
        """Open a backend; at the end everything of the project is stopped."""
        backend = await ProcessBackend.open(self.settings)
        try:
            yield backend
        finally:
            for status in await backend.list():
                await backend.stop(status.id, grace=0.0)
            await backend.close(stop_replicas=True)

    def log(self, name: str = "kserve-container") -> str:
        """Return what a container wrote."""
        return (self.settings.log_dir / "pod" / f"{name}.log").read_text()


async def next_event(
    backend: ProcessBackend, *kinds: str, id: str = "", within: float = 60
) -> ReplicaEvent:
    """Return the next event of one of these kinds."""
    seen = []
    try:
        async with asyncio.timeout(within):
            async for event in backend.events():
                seen.append(event)
                if event.kind in kinds and id in ("", event.id):
                    return event
    except TimeoutError:
        raise AssertionError(f"waited for {kinds}, saw {seen}") from None
    raise AssertionError("the backend closed")


async def get(status: ReplicaStatus, path: str, port: int = 8080) -> object:
    """GET from a replica, JSON decoded."""
    real = {k: v for c in status.containers for k, v in c.ports.items()}.get(port, port)
    url = f"http://{status.ip or '127.0.0.1'}:{real}{path}"
    return await asyncio.to_thread(_read, urllib.request.Request(url))


async def post(status: ReplicaStatus, path: str, body: object, port: int = 8080) -> object:
    """POST JSON to a replica."""
    url = f"http://{status.ip}:{port}{path}"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    return await asyncio.to_thread(_read, request)


def _read(request: urllib.request.Request) -> object:
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def is_running(pid: int | None) -> bool:
    """Return whether a process lives; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def until_dead(*pids: int | None) -> None:
    """Wait until none of these processes lives."""
    async with asyncio.timeout(30):
        while any(is_running(pid) for pid in pids):  # noqa: ASYNC110 - not our children
            await asyncio.sleep(0.02)
