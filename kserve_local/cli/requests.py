"""`kserve-local requests`: the last calls of services, one a line; with an ID one of them whole."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import COMPONENTS, Common, common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kserve_local.client.client import Client
    from kserve_local.client.recorded import Recorded
    from kserve_local.settings import Settings

HEADER = ("TIME", "REV", "PATH", "ST", "MS", "BYTES", "ID")
_LAST = 20
_ID_WIDTH = 8
_BODY_LINES = 40


@click.command("requests")
@click.argument("name", required=False)
@click.argument("id", required=False)
@click.option("--last", type=click.IntRange(min=1), metavar="N", help=f"Default: {_LAST}.")
@click.option(
    "--component",
    type=click.Choice([*COMPONENTS, "graph"]),
    help="What this one was asked, also by others of its service.",
)
@click.option("--curl", is_flag=True, help="With an ID: the call for curl.")
@common
def command(
    flags: Common,
    name: str | None,
    id: str | None,
    last: int | None,
    component: str | None,
    curl: bool,
) -> int:
    """Show the last calls of NAME, or of all services; with an ID one of them, bodies and all.

    They are in the gateway's memory only. Sent again by `replay` and compared by `diff`.
    """
    from kserve_local.cli.replaying import check_service
    from kserve_local.cli.session import run, service_name
    from kserve_local.client.recorded import Which, recorded, recorded_one

    if curl and not id:
        raise click.UsageError("--curl is for one call: kserve-local requests NAME ID --curl")
    if id and last:
        raise click.UsageError("an ID and --last exclude each other")
    settings = flags.settings_of_running()
    out = flags.output("requests")
    service = service_name(name) if name else ""
    # All of a project are meant, unless one is named or a namespace asked for.
    namespace = flags.namespace or (settings.namespace if service else "")
    which = Which(namespace, service, component or "")
    if id:
        found = run(settings, lambda client: recorded_one(client, id, which))
        if curl:
            text = as_curl(found, _base(settings, found))
            out.envelope({"print": text}) if flags.as_json else out.data(text)
        elif flags.as_json:
            out.envelope({"request": told(found, whole=True)})
        else:
            out.data("\n".join(_whole(found)))
        return 0

    async def fetch(client: Client) -> list[Recorded]:
        calls = await recorded(client, which, last=last or _LAST)
        if service and not calls:
            await check_service(client, namespace, service)
        return calls

    calls = run(settings, fetch)
    if flags.as_json:
        out.envelope({"requests": [told(call) for call in calls]})
    elif calls:
        out.data(_table(calls, with_service=not service))
    else:
        out.say(_nothing(settings, service))
    return 0


def _nothing(settings: Settings, service: str) -> str:
    if not settings.requests.enabled:
        return "nothing is recorded: requests.enabled is false in kserve-local.yaml"
    return f"no calls yet{f' of {service}' if service else ''}"


def _table(calls: Sequence[Recorded], *, with_service: bool) -> str:
    from kserve_local.cli.output import table

    rows = [
        (
            time.strftime("%H:%M:%S", time.localtime(call.time)),
            *((call.service,) if with_service else ()),
            short_revision(call),
            printable(call.path),
            str(call.status or "-"),
            f"{call.ms:.1f}",
            str(call.size),
            printable(call.id if len(call.id) <= _ID_WIDTH else call.id[:_ID_WIDTH]),
        )
        for call in calls
    ]
    return table(rows, (HEADER[0], "NAME", *HEADER[1:]) if with_service else HEADER)


def short_revision(call: Recorded) -> str:
    """Return `00002` of `iris-predictor-00002`; a whole name that has no such number."""
    number = call.revision.rpartition("-")[2]
    return number if number.isdecimal() else call.revision


def told(call: Recorded, *, whole: bool = False) -> dict[str, Any]:
    """Return a call for an envelope."""
    found = {
        "id": call.id,
        "time": call.time,
        "namespace": call.namespace,
        "service": call.service,
        "component": call.component,
        "inner": call.inner,
        "revision": call.revision,
        "protocol": call.protocol,
        "method": call.method,
        "path": call.path,
        "status": call.status,
        "ms": call.ms,
        "bytes": call.size,
        "unreplayable": call.unreplayable,
    }
    if whole:
        found |= {
            "headers": [list(pair) for pair in call.headers],
            "body": _parsed(call.body),
            "bodyMissing": call.body_missing,
            "redacted": list(call.redacted),
            "answerHeaders": [list(pair) for pair in call.answer_headers],
            "answer": _parsed(call.answer),
            "answerMissing": call.answer_missing,
        }
    return found


def _parsed(body: bytes | None) -> Any:
    if body is None:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def _whole(call: Recorded) -> list[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(call.time))
    lines = [
        f"{call.id}  {when}  {call.protocol}",
        f"{call.service}/{call.component}  {call.revision}  {call.ms:.1f} ms",
        "",
        f"> {call.method} {call.path}",
        *(f"> {name}: {value}" for name, value in call.headers),
        *_body(call.body, call.body_missing),
        "",
        f"< {call.status or 'no answer: the client left'}",
        *(f"< {name}: {value}" for name, value in call.answer_headers),
        *_body(call.answer, call.answer_missing),
    ]
    if call.unreplayable:
        lines += ["", f"not replayable: {call.unreplayable}"]
    return [printable(line) for line in lines]


def _body(body: bytes | None, missing: str) -> list[str]:
    if body is None:
        return [f"({missing})"]
    content = _parsed(body)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    lines = text.splitlines()
    more = [f"... {len(lines) - _BODY_LINES} more lines"] if len(lines) > _BODY_LINES else []
    return [*lines[:_BODY_LINES], *more, *([f"({missing})"] if missing else [])]


def printable(text: str) -> str:
    """Return a text that cannot drive the terminal: whoever sent it is not who looks at it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _base(settings: Settings, call: Recorded) -> str:
    from kserve_local.client.project import need_running

    return f"{need_running(settings).gateway_url}/serving/{call.namespace}/{call.service}"


def as_curl(call: Recorded, base_url: str) -> str:
    """Return the curl command that sends a call again.

    Raises:
        UsageError: It cannot be sent again, or its body is no text.
    """
    from kserve_local.errors import UsageError
    from kserve_local.interfaces.recorded import REDACTED

    if call.unreplayable or call.body is None:
        raise UsageError(f"request {call.id} cannot be sent again: {call.unreplayable}")
    words = ["curl", "-sS", base_url + call.path]
    for name, value in call.headers:
        if value != REDACTED and name.lower() != "x-request-id":
            words += ["-H", f"{name}: {value}"]
    try:
        text = call.body.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the body of request {call.id} is no text",
            hint=f"kserve-local replay {call.service} {call.id}",
        ) from error
    return shlex.join([*words, "--data-binary", text])
