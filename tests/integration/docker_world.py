"""A Docker backend of a project of its own, without the rest of kserve-local around it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from dataclasses import replace
from pathlib import Path

from kserve_local.backends.docker import DockerBackend
from kserve_local.interfaces.backend import (
    ContainerSpec,
    Mount,
    Probe,
    ReplicaSpec,
    ReplicaStatus,
)
from kserve_local.settings import Settings

SERVER = Path(__file__).parents[1] / "fakes" / "oip_server.py"


def project_settings(folder: Path, **more: object) -> Settings:
    """Return settings of an empty project."""
    settings = Settings(
        project=folder,
        state=folder / ".kserve-local",
        cache=folder / "cache",
        runtime=folder / "s",
    )
    return replace(settings, **more)  # type: ignore[arg-type]  # test shorthand


def replica(settings: Settings, name: str, **more: object) -> ReplicaSpec:
    """Return a Pod of one container that serves; `more` changes the container."""
    container = ContainerSpec(
        name="kserve-container",
        image="python:3.11-slim",
        command=("python3", "-u"),
        argv=("python3", "-u", "/fake/oip_server.py"),
        log_path=settings.log_dir / name / "kserve-container.log",
        ports=(("", 8080),),
        readiness=Probe("http", port=8080, path="/v2/health/ready", period=1),
        mounts=(Mount("/fake", SERVER.parent), Mount("/m", settings.project / "model")),
    )
    return ReplicaSpec(
        id=f"uid-{name}", namespace="default", pod=f"pod-{name}",
        containers=(replace(container, **more),),  # type: ignore[arg-type]  # test shorthand
        resolve=((f"{name}.test", "10.0.0.1"),), grace=1.0,
    )  # fmt: skip


def docker(*words: str) -> str:
    """Run the docker command and return what it prints."""
    return subprocess.run(("docker", *words), check=True, capture_output=True, text=True).stdout


def containers(settings: Settings) -> list[str]:
    """Return what the engine has of a project, running or not."""
    label = f"label=kserve-local.dev/state={settings.state}"
    return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label).split()


async def ready(backend: DockerBackend, id: str) -> ReplicaStatus:
    """Return the status of a replica that becomes ready."""
    async with asyncio.timeout(60):
        async for event in backend.events():
            if event.id == id and event.kind == "ready":
                return event.status
    raise AssertionError("the backend closed")


async def start(backend: DockerBackend, spec: ReplicaSpec) -> ReplicaStatus:
    """Start a replica and wait until it is ready."""
    await backend.start(spec)
    return await ready(backend, spec.id)


async def answer(status: ReplicaStatus) -> dict[str, object]:
    """Ask a replica for its facts."""

    def fetch() -> dict[str, object]:
        url = f"http://{status.ip}:8080/facts"
        with urllib.request.urlopen(url, timeout=10) as found:
            return json.load(found)  # type: ignore[no-any-return]  # an object

    return await asyncio.to_thread(fetch)
