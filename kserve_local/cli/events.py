"""`kserve-local events`: what happened, oldest first; followed with -F.

With `--payloads` the requests and responses that services' loggers sent to a sink which only a
cluster has: kserve-local keeps the newest of them.
"""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common

if TYPE_CHECKING:
    from collections.abc import Callable

    from kserve_local.api.meta import Object
    from kserve_local.cli.output import Output
    from kserve_local.client.client import Client


@click.command("events")
@click.argument("names", nargs=-1)
@click.option("-F", "-w", "--follow", is_flag=True, help="Go on with what happens next.")
@click.option("--warnings", is_flag=True, help="Only warnings.")
@click.option("--payloads", is_flag=True, help="Logged requests and responses instead.")
@click.option("--tail", type=click.IntRange(min=0), help="Of payloads only the last so many.")
@common
def command(
    flags: Common,
    names: tuple[str, ...],
    follow: bool,
    warnings: bool,
    payloads: bool,
    tail: int | None,
) -> int:
    """Show Events, of the objects whose names begin with NAME if given."""
    from kserve_local.cli.session import run, service_name

    settings = flags.settings_of_running()
    out = flags.output("events")
    if payloads and warnings:
        raise click.UsageError("--payloads and --warnings exclude each other")
    if tail is not None and not payloads:
        raise click.UsageError("--tail is for --payloads")
    if payloads:
        services = tuple(map(service_name, names))
        run(settings, lambda client: _payloads(client, flags, out, services, tail, follow=follow))
        return 0

    def wanted(event: Object) -> bool:
        about = str((event.get("involvedObject") or {}).get("name", ""))
        if names and not any(about == n or about.startswith(f"{n}-") for n in names):
            return False
        return not warnings or event.get("type") == "Warning"

    run(settings, lambda client: _events(client, flags, out, wanted, follow=follow))
    return 0


async def _events(
    client: Client, flags: Common, out: Output, wanted: Callable[[Object], bool], *, follow: bool
) -> None:
    from kserve_local.api import scheme

    numbers = count(1)

    def show(event: Object) -> None:
        if not wanted(event):
            return
        if flags.as_json and follow:
            line = {"type": "event", "ts": round(time.time(), 3), "seq": next(numbers)}
            out.data(json.dumps({**line, "object": event}, ensure_ascii=False))
        else:
            out.data(_line(event))

    found, version = await client.list_at(scheme.EVENT, namespace=flags.namespace)
    found.sort(key=_when)
    if flags.as_json and not follow:
        out.envelope({"events": [e for e in found if wanted(e)]})
        return
    for event in found:
        show(event)
    if follow:
        stream = client.watch(scheme.EVENT, namespace=flags.namespace, since=version)
        async with aclosing(stream) as events:
            async for change in events:
                if change.type in ("ADDED", "MODIFIED"):
                    show(change.object)


async def _payloads(
    client: Client,
    flags: Common,
    out: Output,
    services: tuple[str, ...],
    tail: int | None,
    *,
    follow: bool,
) -> None:
    from kserve_local.client.project import PAYLOADS

    query = {
        "namespace": flags.namespace or "",
        "limit": "" if tail is None else str(tail),
        "follow": "true" if follow else "",
        "service": ",".join(services),
    }
    numbers = count(1)
    found = []
    async with aclosing(client.lines(PAYLOADS, query)) as events:
        async for event in events:
            if flags.as_json and follow:
                line = {"type": "payload", "ts": round(time.time(), 3), "seq": next(numbers)}
                out.data(json.dumps({**line, "object": event}, ensure_ascii=False))
            elif flags.as_json:
                found.append(event)
            else:
                out.data(_payload_line(event))
    if flags.as_json and not follow:
        out.envelope({"payloads": found})


def _when(event: Object) -> str:
    return str(event.get("lastTimestamp") or event["metadata"].get("creationTimestamp") or "")


def _line(event: Object) -> str:
    about: dict[str, Any] = event.get("involvedObject") or {}
    count = int(event.get("count") or 1)
    times = f" (x{count})" if count > 1 else ""
    where = f"{about.get('kind', '')}/{about.get('name', '')}"
    clock = _when(event)[11:19]
    return (
        f"{clock}  {event.get('type', ''):<7}  {event.get('reason', ''):<22}  {where}  "
        f"{event.get('message', '')}{times}"
    )


_BODY_WIDTH = 200


def _payload_line(event: dict[str, Any]) -> str:
    kind = str(event.get("type", "")).rpartition(".")[2]
    where = f"{event.get('inferenceservicename', '')}/{event.get('component', '')}"
    data = event.get("data", event.get("data_base64", ""))
    body = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    body = " ".join(body.split())
    if len(body) > _BODY_WIDTH:
        body = f"{body[:_BODY_WIDTH]}..."
    clock = str(event.get("time", ""))[11:19]
    line = f"{clock}  {kind:<8}  {where}  {event.get('id', '')}  {event.get('target', '')}  {body}"
    # Whoever sent the request must not write to the terminal of whoever looks at it.
    return "".join(c if c.isprintable() else "?" for c in line)
