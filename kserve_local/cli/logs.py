"""`kserve-local logs`: the output of services' containers, merged; followed with -F."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import COMPONENTS, Common, Duration, common
from kserve_local.errors import NotFound, ServiceUnavailable

if TYPE_CHECKING:
    import asyncio

    from kserve_local.api.meta import Object
    from kserve_local.client.client import Client

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LEVEL = re.compile(r"\b(TRACE|DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\b")
_RANKS = {"TRACE": 0, "WARN": 30, "CRITICAL": 50, "FATAL": 50}


def rank_of(line: str) -> int | None:
    """Return the level of a line in `LEVELS`' numbers, None if it names none."""
    found = _LEVEL.search(line)
    return None if found is None else _RANKS.get(found[1], LEVELS.get(found[1].lower(), 0))


def naming(request: str) -> re.Pattern[str]:
    """Return what finds an id in a line where it stands for itself: not `r-1` in `r-12`, `pr-1`."""
    return re.compile(rf"(?<![\w-])(?<!\w[.:]){re.escape(request)}(?![\w-]|[.:]\w)")


@click.command("logs")
@click.argument("names", nargs=-1)
@click.option("-F", "--follow", is_flag=True, help="Go on with what is written next.")
@click.option("--tail", type=click.IntRange(min=0), help="Only the last N lines of each container.")
@click.option("--since", type=Duration(), metavar="DUR", help="Of the last 30s, 5m, 2h; see above.")
@click.option("--revision", default="", metavar="REV", help="Of this revision: its name or number.")
@click.option("--previous", is_flag=True, help="Of the run before the last restart.")
@click.option("-c", "--container", default="", help="Only this container.")
@click.option("--component", type=click.Choice(COMPONENTS), help="Only Pods of this component.")
@click.option("--level", type=click.Choice([*LEVELS]), help="Only lines of this level or above.")
@click.option("--grep", default="", help="Only lines that hold this text.")
@click.option("--request", default="", metavar="ID", help="Only lines that name this request.")
@common
def command(
    flags: Common,
    names: tuple[str, ...],
    follow: bool,
    tail: int | None,
    since: float | None,
    revision: str,
    previous: bool,
    container: str,
    component: str | None,
    level: str | None,
    grep: str,
    request: str,
) -> int:
    """Show the logs of the services (or Pods) NAMEd, of all without a name.

    Containers write their logs themselves, so not every line has a known time. --since leaves out
    lines that come before, or begin with, a time that is too old (local time, if no zone is given),
    and files that were not written to since then. Lines it cannot place are shown. --level goes by
    the first level's name in a line; a line without one belongs to the line before.

    --request goes by whole ids: servers write the x-request-id that the client sent with the
    latencies of a request, and under load only those of some; `predict -v` shows the one it sends.
    """
    import asyncio

    from kserve_local.cli.session import run

    out = flags.output("logs")
    names = tuple(name.rpartition("/")[2] for name in names)
    meant = _Meant(names, revision, component or "")
    printer = _Printer(
        flags.as_json, grep, LEVELS.get(level or "", 0), keep=not follow, request=request
    )

    async def show(client: Client) -> None:
        pods, version = await _pods(client, meant, flags.namespace, must=not follow)
        printer.prefixed = (follow and len(names) != 1) or len({_service(p) for p in pods}) > 1
        read = partial(_read, client, printer=printer, tail=tail, since=since, previous=previous)
        if not follow:
            for pod in pods:
                for name in _containers(pod, container):
                    await read(pod, name, follow=False)
            return
        async with asyncio.TaskGroup() as tasks:
            await _follow(client, pods, version, meant, container, read, tasks)

    try:
        run(flags.settings_of_running(), show)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    if flags.as_json and not follow:
        out.envelope({"lines": printer.kept})
    elif request and not printer.shown:
        out.say(f'no line names request "{request}"')
    return 0


async def _follow(
    client: Client,
    pods: list[Object],
    version: int,
    meant: _Meant,
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
            if event.type in ("ADDED", "MODIFIED") and meant.holds(event.object):
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
    def __init__(
        self, as_json: bool, grep: str, level: int, *, keep: bool, request: str = ""
    ) -> None:
        self.level = level
        self.request = naming(request) if request else None
        self.shown = 0
        self.ranks: dict[tuple[str, str], int] = {}
        self.as_json = as_json
        self.keep = keep
        self.kept: list[dict[str, str]] = []
        self.grep = grep
        self.prefixed = True
        self.sequence = 0

    def line(self, source: str, container: str, text: str) -> None:
        if not self._is_loud_enough(source, container, text):
            return
        if self.grep and self.grep not in text:
            return
        if self.request is not None and not self.request.search(text):
            return
        self.shown += 1
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

    def _is_loud_enough(self, source: str, container: str, text: str) -> bool:
        """Whether a line, or the one it goes on from, is of the level asked for."""
        rank = rank_of(text)
        if rank is not None:
            self.ranks[source, container] = rank
        return self.ranks.get((source, container), LEVELS["info"]) >= self.level


@dataclass(frozen=True, slots=True)
class _Meant:
    """Which Pods: those of the services (or Pods) named, of one revision or component if given."""

    names: tuple[str, ...]
    revision: str
    component: str = ""

    def holds(self, pod: Object) -> bool:
        if self.names and not {_service(pod), str(pod["metadata"]["name"])} & set(self.names):
            return False
        labels = pod["metadata"].get("labels") or {}
        if self.component and labels.get("component") != self.component:
            return False
        if not self.revision:
            return True
        from kserve_local.cli.session import is_revision

        return is_revision(self.revision, _revision(pod))


async def _pods(
    client: Client, meant: _Meant, namespace: str | None, *, must: bool
) -> tuple[list[Object], int]:
    """Return the Pods meant, oldest first, and the resourceVersion to watch from.

    Raises:
        NotFound: A name is neither a service nor a Pod, or (with `must`) none is of the revision.
    """
    from kserve_local.api import scheme
    from kserve_local.cli.session import list_services, near

    pods, version = await client.list_at(scheme.POD, namespace=namespace)
    services = await list_services(client, namespace=namespace)
    known = {s["metadata"]["name"] for s in services} | {p["metadata"]["name"] for p in pods}
    for name in meant.names:
        if name not in known:
            similar = near(name, known)
            guess = f'; did you mean "{similar}"?' if similar else ""
            raise NotFound(f'no service or Pod "{name}"{guess}', hint="kserve-local status")
    found = [p for p in pods if meant.holds(p)]
    if must and meant.revision and not found:
        every = _Meant(meant.names, "")
        others = ", ".join(sorted({_revision(p) for p in pods if every.holds(p)} - {""}))
        raise NotFound(
            f'no Pod of revision "{meant.revision}"; there are Pods of: {others or "none"}',
            hint="kserve-local status",
        )
    found.sort(key=lambda p: str(p["metadata"].get("creationTimestamp", "")))
    return found, version


def _service(pod: Object) -> str:
    from kserve_local.cli.progress import service_of

    return service_of(pod)


def _revision(pod: Object) -> str:
    from kserve_local.api.names import REVISION_LABEL

    return str((pod["metadata"].get("labels") or {}).get(REVISION_LABEL, ""))


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
    since: float | None,
    previous: bool,
) -> None:
    from kserve_local.errors import BadRequest

    metadata = pod["metadata"]
    source = _service(pod) or str(metadata["name"])
    rest = b""
    try:
        stream = client.logs(
            str(metadata["name"]), metadata["namespace"], container=container, follow=follow,
            tail=tail, since=since, previous=previous,
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
