"""`kserve-local events`: what happened, oldest first; followed with -F."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common

if TYPE_CHECKING:
    from kserve_local.api.meta import Object


@click.command("events")
@click.argument("names", nargs=-1)
@click.option("-F", "--follow", is_flag=True, help="Go on with what happens next.")
@click.option("--warnings", is_flag=True, help="Only warnings.")
@common
def command(flags: Common, names: tuple[str, ...], follow: bool, warnings: bool) -> int:
    """Show Events, of the objects whose names begin with NAME if given."""
    from kserve_local.api import scheme
    from kserve_local.cli.session import run
    from kserve_local.client.client import Client

    settings = flags.settings_of_running()
    out = flags.output("events")
    numbers = count(1)

    def wanted(event: Object) -> bool:
        about = str((event.get("involvedObject") or {}).get("name", ""))
        if names and not any(about == n or about.startswith(f"{n}-") for n in names):
            return False
        return not warnings or event.get("type") == "Warning"

    def show(event: Object) -> None:
        if not wanted(event):
            return
        if flags.as_json and follow:
            line = {"type": "event", "ts": round(time.time(), 3), "seq": next(numbers)}
            out.data(json.dumps({**line, "object": event}, ensure_ascii=False))
        else:
            out.data(_line(event))

    async def work(client: Client) -> None:
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

    run(settings, work)
    return 0


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
