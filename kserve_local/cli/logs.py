"""`kserve-local logs`: the output of services' containers, merged; followed with -F."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import NotFound

if TYPE_CHECKING:
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
    from kserve_local.cli.session import run

    printer = _Printer(flags.as_json, grep)

    async def show(client: Client) -> None:
        pods = await _pods(client, names, flags.namespace)
        printer.prefixed = len(pods) > 1 or len(names) != 1
        work = [
            _read(client, pod, name, printer, follow=follow, tail=tail, previous=previous)
            for pod in pods
            for name in _containers(pod, container)
        ]
        if follow:
            await asyncio.gather(*work)
        else:
            for one in work:
                await one

    run(flags.settings(), show)
    return 0


class _Printer:
    def __init__(self, as_json: bool, grep: str) -> None:
        self.as_json = as_json
        self.grep = grep
        self.prefixed = True
        self.sequence = 0

    def line(self, source: str, container: str, text: str) -> None:
        if self.grep and self.grep not in text:
            return
        if self.as_json:
            self.sequence += 1
            event = {"type": "log", "ts": round(time.time(), 3), "seq": self.sequence,
                     "name": source, "container": container, "line": text}  # fmt: skip
            click.echo(json.dumps(event, ensure_ascii=False))
        else:
            click.echo(f"{source} │ {text}" if self.prefixed else text)
        if not sys.stdout.isatty():
            sys.stdout.flush()


async def _pods(client: Client, names: tuple[str, ...], namespace: str | None) -> list[Object]:
    """Return the Pods meant, oldest first.

    Raises:
        NotFound: A name is neither a service nor a Pod.
    """
    from kserve_local.api import scheme

    pods = await client.list(scheme.POD, namespace=namespace)
    services = await client.list(scheme.INFERENCE_SERVICE, namespace=namespace)
    known = {s["metadata"]["name"] for s in services} | {p["metadata"]["name"] for p in pods}
    for name in names:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, sorted(known), n=1)
            guess = f'; did you mean "{near[0]}"?' if near else ""
            raise NotFound(f'no service or Pod "{name}"{guess}', hint="kserve-local status")
    found = [p for p in pods if not names or _service(p) in names or p["metadata"]["name"] in names]
    return sorted(found, key=lambda p: str(p["metadata"].get("creationTimestamp", "")))


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
    printer: _Printer,
    *,
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
