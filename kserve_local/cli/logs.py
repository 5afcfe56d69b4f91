"""`kserve-local logs`: the output of services' containers, merged; followed with -F."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import NotFound, ServiceUnavailable

if TYPE_CHECKING:
    import asyncio

    from kserve_local.api.meta import Object
    from kserve_local.client.client import Client

ISVC_LABEL = "serving.kserve.io/inferenceservice"


@click.command("logs")
@click.argument("names", nargs=-1)
@click.option("-F", "--follow", is_flag=True, help="Go on with what is written next.")
@click.option("--tail", type=click.IntRange(min=0), help="Only the last N lines of each container.")
@click.option("--previous", is_flag=True, help="Of the run before the last restart.")
@click.option("-c", "--container", default="", help="Only this container.")
@click.option("--grep", default="", help="Only lines that hold this text.")
@common
def command(
    flags: Common,
    names: tuple[str, ...],
    follow: bool,
    tail: int | None,
    previous: bool,
    container: str,
    grep: str,
) -> int:
    """Show the logs of the services (or Pods) NAMEd, of all without a name."""
    import asyncio

    from kserve_local.cli.session import run

    out = flags.output("logs")
    names = tuple(name.rpartition("/")[2] for name in names)
    printer = _Printer(flags.as_json, grep, keep=not follow)

    async def show(client: Client) -> None:
        pods, version = await _pods(client, names, flags.namespace)
        printer.prefixed = (follow and len(names) != 1) or len({_service(p) for p in pods}) > 1
        read = partial(_read, client, printer=printer, tail=tail, previous=previous)
        if not follow:
            for pod in pods:
                for name in _containers(pod, container):
                    await read(pod, name, follow=False)
            return
        async with asyncio.TaskGroup() as tasks:
            await _follow(client, pods, version, names, container, read, tasks)

    try:
        run(flags.settings(), show)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    if flags.as_json and not follow:
        out.envelope({"lines": printer.kept})
    return 0


async def _follow(
    client: Client,
    pods: list[Object],
    version: int,
    names: tuple[str, ...],
    container: str,
    read: Callable[..., Coroutine[object, object, None]],
    tasks: asyncio.TaskGroup,
) -> None:
    """Read on in every run of every container meant, also of Pods that come later.

    Raises:
        ServiceUnavailable: The server went away.
    """
    from kserve_local.api import scheme

    reading: set[tuple[str, str, int]] = set()

    def begin(pod: Object) -> None:
        for name in _containers(pod, container):
            restarts = _begun(pod, name)
            run = (str(pod["metadata"]["uid"]), name, restarts or 0)
            if restarts is not None and run not in reading:
                reading.add(run)
                tasks.create_task(read(pod, name, follow=True), name=f"logs-{name}")

    for pod in pods:
        begin(pod)
    async with aclosing(client.watch(scheme.POD, since=version)) as events:
        async for event in events:
            if event.type in ("ADDED", "MODIFIED") and _is_meant(event.object, names):
                begin(event.object)
    raise ServiceUnavailable("the supervisor ended", hint="kserve-local status")


def _begun(pod: Object, container: str) -> int | None:
    """Return how often a container was restarted, None if it has not run yet."""
    status = pod.get("status") or {}
    for key in ("initContainerStatuses", "containerStatuses"):
        for found in status.get(key) or ():
            if found["name"] == container:
                state = found.get("state") or {}
                ran = "running" in state or "terminated" in state or found.get("lastState")
                return int(found.get("restartCount") or 0) if ran else None
    return None


class _Printer:
    def __init__(self, as_json: bool, grep: str, *, keep: bool) -> None:
        self.as_json = as_json
        self.keep = keep
        self.kept: list[dict[str, str]] = []
        self.grep = grep
        self.prefixed = True
        self.sequence = 0

    def line(self, source: str, container: str, text: str) -> None:
        if self.grep and self.grep not in text:
            return
        if self.as_json and self.keep:
            self.kept.append({"name": source, "container": container, "line": text})
        elif self.as_json:
            self.sequence += 1
            event = {"type": "log", "ts": round(time.time(), 3), "seq": self.sequence,
                     "name": source, "container": container, "line": text}  # fmt: skip
            click.echo(json.dumps(event, ensure_ascii=False))
        else:
            click.echo(f"{source} │ {text}" if self.prefixed else text)
        if not sys.stdout.isatty():
            sys.stdout.flush()


async def _pods(
    client: Client, names: tuple[str, ...], namespace: str | None
) -> tuple[list[Object], int]:
    """Return the Pods meant, oldest first, and the resourceVersion to watch from.

    Raises:
        NotFound: A name is neither a service nor a Pod.
    """
    from kserve_local.api import scheme
    from kserve_local.cli.session import near

    pods, version = await client.list_at(scheme.POD, namespace=namespace)
    services = await client.list(scheme.INFERENCE_SERVICE, namespace=namespace)
    known = {s["metadata"]["name"] for s in services} | {p["metadata"]["name"] for p in pods}
    for name in names:
        if name not in known:
            found = near(name, known)
            guess = f'; did you mean "{found}"?' if found else ""
            raise NotFound(f'no service or Pod "{name}"{guess}', hint="kserve-local status")
    meant = [p for p in pods if _is_meant(p, names)]
    meant.sort(key=lambda p: str(p["metadata"].get("creationTimestamp", "")))
    return meant, version


def _is_meant(pod: Object, names: tuple[str, ...]) -> bool:
    return not names or _service(pod) in names or pod["metadata"]["name"] in names


def _service(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(ISVC_LABEL, ""))


def _containers(pod: Object, only: str) -> list[str]:
    spec: dict[str, Any] = pod.get("spec") or {}
    names = [
        str(c["name"]) for key in ("initContainers", "containers") for c in spec.get(key) or ()
    ]
    return [n for n in names if not only or n == only]


async def _read(
    client: Client,
    pod: Object,
    container: str,
    *,
    printer: _Printer,
    follow: bool,
    tail: int | None,
    previous: bool,
) -> None:
    from kserve_local.errors import BadRequest

    metadata = pod["metadata"]
    source = _service(pod) or str(metadata["name"])
    rest = b""
    try:
        stream = client.logs(
            str(metadata["name"]), metadata["namespace"], container=container, follow=follow,
            tail=tail, previous=previous,
        )  # fmt: skip
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    printer.line(source, container, line.decode(errors="replace"))
    except (NotFound, BadRequest):
        # Deleted meanwhile, or there is no such run of this container: nothing to show.
        return
    if rest:
        printer.line(source, container, rest.decode(errors="replace"))
