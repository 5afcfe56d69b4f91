"""What `replay` and `diff` share: which recorded calls, sent where, and how that went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from kserve_local.errors import NotFound, ServiceUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kserve_local.cli.options import Common
    from kserve_local.client.client import Client
    from kserve_local.client.recorded import Answer, Recorded
    from kserve_local.settings import Settings

LAST = 10
"""Distinct calls that are sent again unless told otherwise."""
PATIENCE = 300.0
"""Seconds a call may take: as at the gateway, a replica may have to be started for it."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded call and what it is answered now."""

    call: Recorded
    answer: Answer


def replay(
    flags: Common,
    settings: Settings,
    name: str,
    *,
    id: str = "",
    last: int = LAST,
    against: str = "",
) -> tuple[list[Replayed], list[Recorded]]:
    """Send recorded calls of a service again; return them with their answers, and those left out.

    Args:
        id: Only this one.
        last: The newest so many distinct ones.
        against: A revision, or the URL of a model server; empty: the service as it is.

    Raises:
        NotFound: Nothing is recorded, or no such revision.
        UsageError: Nothing of it can be sent again, or no such URL.
        ServiceUnavailable: Nobody answers there.
    """
    from kserve_local.cli.revision_host import revision_host
    from kserve_local.cli.session import run, service_name
    from kserve_local.client.project import need_running
    from kserve_local.client.recorded import Which, distinct, recorded, recorded_one, replay_at
    from kserve_local.interfaces.recorded import REPLAY_HEADER

    service = service_name(name)
    namespace = flags.namespace or settings.namespace
    running = need_running(settings)
    base_url = (
        f"{running.gateway_url}/serving/{quote(namespace, safe='')}/{quote(service, safe='')}"
    )
    headers = {REPLAY_HEADER: "1"}
    component = ""
    if "://" in against:
        if urlsplit(against).scheme not in ("http", "https") or not urlsplit(against).hostname:
            raise UsageError(f'--against "{against}" is no URL', hint="e.g. http://127.0.0.1:8080")
        base_url = against
    elif against:
        host = revision_host(settings, service, namespace, against)
        if host:
            # It is the predictor's; a transformer may have stood before it.
            base_url, component = running.gateway_url, "predictor"
            headers["Host"] = host
    which = Which(namespace, service, component)

    async def work(client: Client) -> tuple[list[Replayed], list[Recorded]]:
        if id:
            found = [await recorded_one(client, id, which)]
        else:
            found = await recorded(client, which, bodies=True)
        if not found:
            await check_service(client, namespace, service)
            off = not settings.requests.enabled
            why = "requests.enabled is false in kserve-local.yaml" if off else "call it first"
            raise NotFound(f"no call of {service} is recorded", hint=why)
        wanted = distinct(found, 1 if id else last)
        left_out = [call for call in found if call.unreplayable]
        if not wanted:
            raise UsageError(
                f"none of {len(found)} recorded calls of {service} can be sent again: "
                f"{found[-1].unreplayable}"
            )
        answers = await replay_at(wanted, base_url, headers=headers, patience=PATIENCE)
        if not any(answer.status for answer in answers):
            raise ServiceUnavailable(
                f"none of {len(answers)} calls: {answers[0].error} ({base_url})"
            )
        return [Replayed(*pair) for pair in zip(wanted, answers, strict=True)], left_out

    return run(settings, work)


async def check_service(client: Client, namespace: str, name: str) -> None:
    """Refuse a name that is no service's.

    Raises:
        NotFound: With the one that was probably meant.
    """
    from kserve_local.cli.session import list_services, near

    there = [str(s["metadata"]["name"]) for s in await list_services(client, namespace=namespace)]
    if name not in there:
        guess = near(name, there)
        known = f"services here: {', '.join(sorted(there)) or 'none'}"
        raise NotFound(
            f'inferenceservices.serving.kserve.io "{name}" not found',
            hint=f'did you mean "{guess}"? {known}' if guess else known,
        )


def failed(replayed: Sequence[Replayed]) -> list[Replayed]:
    """Return those without an answer, or with an error that was none when they were recorded."""
    return [
        r
        for r in replayed
        if not r.answer.status or (r.answer.status >= 400 and r.call.status < 400)
    ]


def tell_left_out(left_out: Sequence[Recorded]) -> str:
    """Return that calls were left out and why; empty: none was."""
    if not left_out:
        return ""
    reasons = sorted({call.unreplayable for call in left_out})
    count = f"{len(left_out)} recorded call{'' if len(left_out) == 1 else 's'}"
    return f"left out {count}: {'; '.join(reasons[:3])}"
