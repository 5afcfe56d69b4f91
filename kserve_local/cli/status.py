"""`kserve-local status`: services, URLs, replicas, memory, and why something is not Ready."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.cli.output import envelope_text, table
from kserve_local.cli.status_components import revisions_of, with_components

if TYPE_CHECKING:
    from kserve_local.settings import Settings

HEADER = (
    "NAME", "READY", "REPLICAS", "URL", "REV (TRAFFIC)", "MEM", "P95", "STARTED IN", "LAST ERROR",
)  # fmt: skip
PERIOD = 1.0
"""Seconds between two looks of `--watch`."""
LATELY = 600.0
"""A restart within this many seconds is a problem that the plain table shows, too."""


@click.command("status")
@click.argument("names", nargs=-1)
@click.option("--exit-code", is_flag=True, help="Exit 4 if a service is not Ready.")
@click.option("-w", "--watch", is_flag=True, help="Show it again whenever it changes.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "env"]), default="table",
    help="wide: also restarts and GPUs; env: variables for eval.",
)  # fmt: skip
@common
def command(
    flags: Common, names: tuple[str, ...], exit_code: bool, watch: bool, output: str
) -> int:
    """Show the project's services (or those NAMEd)."""
    if output == "json":
        flags = replace(flags, as_json=True)
    settings = flags.settings_of_running()
    shown = ""
    while True:
        # An age is no change: --watch shows none.
        text, bad = _look(settings, flags, names, output, aged=not watch)
        if text != shown:
            if shown and sys.stdout.isatty():
                click.clear()
            click.echo(text)
            sys.stdout.flush()
            shown = text
        if not watch:
            return 4 if exit_code and bad else 0
        time.sleep(PERIOD)


def _look(
    settings: Settings, flags: Common, names: tuple[str, ...], form: str, *, aged: bool
) -> tuple[str, bool]:
    """Return what to show now, and whether a service is not Ready."""
    from kserve_local.cli.session import run, service_name
    from kserve_local.client.client import Client
    from kserve_local.client.project import STATUS, need_running
    from kserve_local.errors import NotFound

    running = need_running(settings)

    async def fetch(client: Client) -> Any:
        return await client.call("GET", STATUS, query={"changes": "true"})

    names = tuple(map(service_name, names))
    data: dict[str, Any] = run(settings, fetch)
    services = data["services"]
    if flags.namespace:
        services = [s for s in services if s["namespace"] == flags.namespace]
    missing = [n for n in names if all(s["name"] != n for s in services)]
    if missing:
        raise NotFound(f'inferenceservices.serving.kserve.io "{missing[0]}" not found')
    if names:
        services = [s for s in services if s["name"] in names]
    # A service that was Ready once is so for KServe whatever becomes of its Pods.
    bad = any(not s["ready"] or s["state"] in ("Failed", "Loading") for s in services)
    if flags.as_json:
        where = {"gateway": running.raw["gateway"], "api": running.raw["api"]}
        where |= {"backend": running.backend, "pid": running.identity.pid}
        return envelope_text("status", "ok", {**data, "services": services, **where}), bad
    if form == "env":
        return _env(settings, flags, running.gateway_url, services), bad
    if not services:
        return "no services", bad
    port = running.gateway_url.rpartition(":")[2]
    many = len({s["namespace"] for s in services}) > 1
    lines = with_components(services, wide=form == "wide")
    wide = form == "wide"
    rows, header = [_row(s, port, many, _start(s, wide=wide)) for s in lines], [*HEADER]
    if form == "wide" or any(map(_restarted_lately, services)):
        for cells, word in zip(
            [header, *rows], ["RESTARTS", *(_restarts(s, aged=aged) for s in lines)], strict=True
        ):
            cells.insert(3, word)
    if form == "wide":
        at = header.index("MEM")
        for cells, word in zip([header, *rows], ["GPUS", *map(_gpus, lines)], strict=True):
            cells.insert(at, word)
    text = [table(rows, header)]
    notes: dict[str, list[str]] = {}
    for service in services:
        message = str(service["message"])
        told_lines = message.splitlines()
        why = (str(service["reason"]), message)
        if told_lines and (len(told_lines) > 1 or brief(*why) != told(*why)):
            whose = "/".join(filter(None, (service["name"], service.get("component"))))
            text.append(f"\n{whose}: {service['reason']}")
            text += [f"  {line}" for line in told_lines]
        for note in service.get("standIns", ()):
            notes.setdefault(note, []).append(service["name"])
        for note in service.get("agents", ()):
            notes.setdefault(note, []).append(service["name"])
        for note in service.get("notes", ()):
            notes.setdefault(f"no effect here: {note}", []).append(service["name"])
        for note in (*service.get("overrides", ()), *service.get("warnings", ())):
            notes.setdefault(note, []).append(service["name"])
    # What concerns a service stands among its notes.
    there = {service["name"] for service in services}
    for problem in data.get("problems", ()):
        if not any(whom["name"] in there for whom in problem["services"]):
            place = f"{problem['file']}:{problem['line']}" if problem["line"] else problem["file"]
            notes.setdefault(f"{place}: {problem['message']}".removeprefix(": "), ["project"])
    if notes:
        # Many services share a runtime: one line a note, not one a service.
        text.append("")
        text += [f"{', '.join(names)}: {note}" for note, names in notes.items()]
    return "\n".join(text), bad


def _env(
    settings: Settings, flags: Common, gateway: str, services: Sequence[dict[str, Any]]
) -> str:
    """Return the services' variables (`shell_variables`)."""
    from kserve_local.api import scheme
    from kserve_local.cli.session import run
    from kserve_local.cli.shell_variables import variables
    from kserve_local.client.client import Client

    async def fetch(client: Client) -> list[Any]:
        return await client.list(scheme.INFERENCE_SERVICE)

    shown = {(s["namespace"], s["name"]) for s in services}
    found = [
        isvc
        for isvc in run(settings, fetch)
        if (isvc["metadata"]["namespace"], isvc["metadata"]["name"]) in shown
    ]
    return variables(gateway, found, flags.namespace or settings.namespace)


def _since_restart(service: dict[str, Any]) -> float | None:
    """Return how long ago a container was restarted the last time."""
    at = service.get("lastRestart")
    return time.time() - datetime.fromisoformat(at).timestamp() if at else None


def _restarted_lately(service: dict[str, Any]) -> bool:
    seconds = _since_restart(service)
    return bool(service["restarts"]) and seconds is not None and seconds < LATELY


def _restarts(service: dict[str, Any], *, aged: bool) -> str:
    """Return `3 (5m ago)`, as kubectl's column."""
    from kserve_local.apiserver.durations import human

    seconds, count = _since_restart(service), int(service["restarts"])
    if not aged or not count or seconds is None:
        return str(count)
    return f"{count} ({human(seconds)} ago)"


def _start(service: dict[str, Any], *, wide: bool) -> str:
    """Return the last start: total and longest phases, or all of them; `-` without one."""
    from kserve_local.api import start_phases

    last = service.get("lastStart")
    if not last:
        return "-"
    start = start_phases.from_seconds(last["phases"])
    return start.full() if wide else start.brief()


def _gpus(service: dict[str, Any]) -> str:
    """Return each GPU with memory and utilization: `0 (1.2/80G 35%), 1 (simulated)`."""
    found = []
    for gpu in service.get("gpus", ()):
        words = ["simulated"] if gpu["simulated"] else []
        if gpu["memoryUsed"] is not None:
            used, size = gpu["memoryUsed"] / 2**30, gpu["memory"]
            words.append(f"{used:.1f}/{size / 2**30:.0f}G" if size else f"{used:.1f}G")
        if gpu["utilization"] is not None:
            words.append(f"{gpu['utilization']}%")
        found.append(f"{gpu['index']} ({' '.join(words)})" if words else str(gpu["index"]))
    return ", ".join(found) or "-"


_ERROR_WIDTH = 100


_WRAPPED = re.compile(r'Revision "[^"]*" failed with message: (.*?)\.?', re.DOTALL)
"""How Knative passes on what a Pod says."""


def told(reason: str, message: str) -> str:
    """Return a failure in one line: `ModelLoadFailed: Local path ./model does not exist.`"""
    from kserve_local.api.headlines import headline

    line = headline(message)
    wrapped = _WRAPPED.fullmatch(line)
    return ": ".join(filter(None, (reason, wrapped[1] if wrapped else line)))


_REFUSED = re.compile(
    r'(.*?)fails to .*admission webhook "[^"]*" denied the request: (?:validation failed: )?(.*)',
    re.DOTALL,
)
"""What a webhook says stands at the end, after who asked for what."""


def brief(reason: str, message: str) -> str:
    """Return a failure in one line that fits a table; `...` where something is left out."""
    text = told(reason, message)
    refused = _REFUSED.fullmatch(text)
    if refused:
        text = f"{refused[1]}...{refused[2]}"
    return text if len(text) <= _ERROR_WIDTH else text[: _ERROR_WIDTH - 3] + "..."


def _row(service: dict[str, Any], port: str, many: bool, start: str = "-") -> list[str]:
    ready = sum(r["replicas"] for r in service["revisions"] if r["percent"] or r["replicas"])
    pods = sum(len(r["pods"]) for r in service["revisions"])
    words = {"Ready": "True", "Failed": "False", "Loading": "Unknown"}
    url = f"{service['name']}.{service['namespace']}.localhost:{port}" if service["url"] else "-"
    name = f"{service['namespace']}/{service['name']}" if many else service["name"]
    # Beside a serving revision that is the newer spec's failure.
    error = brief(str(service["reason"]), str(service["message"]))
    whose = service.get("component")
    return [
        service.get("label", name),
        words.get(service["state"], service["state"]),
        f"{ready}/{pods}",
        url,
        revisions_of(service),
        f"{service['memory'] // 2**20}M" if service["memory"] else "-",
        f"{service['p95'] * 1000:.0f}ms" if service["p95"] else "-",
        start,
        f"{whose}: {error}" if whose and not service.get("apart") else error,
    ]
