"""What saves did, as `up` tells it while it follows the project."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from kserve_local.errors import KServeLocalError

if TYPE_CHECKING:
    from kserve_local.cli.progress import Reporter
    from kserve_local.client.client import Client

_WAIT = 20
"""Seconds that one question for news waits for some."""
_AGAIN = 1.0
_LOOK = 0.1
_MARKS = {"refused": "✗", "pending": "!", "replacing": "●", "answers": "!"}


async def follow(client: Client, reporter: Reporter) -> None:
    """Tell of every save from now on, until cancelled."""
    from kserve_local.client.project import ACTIVITY

    since = -1
    while True:
        wait = _WAIT if since >= 0 else 0
        query = {"since": str(max(since, 0)), "wait": str(wait)}
        try:
            data = await client.call("GET", ACTIVITY, query=query)
        except (KServeLocalError, OSError):
            # Whether the project has ended is for those to say who follow its services.
            await asyncio.sleep(_AGAIN)
            continue
        for entry in data["activity"]:
            if since >= 0:
                _tell(entry, reporter)
        since = max(since, 0, *(entry["seq"] for entry in data["activity"]))


async def until_served(client: Client, patience: float) -> bool:
    """Wait for new replicas that a save has started; True if there were any."""
    from kserve_local.client.project import ACTIVITY

    waited = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while (await client.call("GET", ACTIVITY))["replacing"]:
                waited = True
                await asyncio.sleep(_LOOK)
    return waited


def _tell(entry: dict[str, Any], reporter: Reporter) -> None:
    reporter.emit("reload", **{k: entry[k] for k in ("what", "message", "ms", "services")})
    if reporter.out.as_json:
        return
    took = "" if entry["ms"] is None else f" ({entry['ms']} ms)"
    mark = _MARKS.get(entry["what"], "✓")
    names = ", ".join(service["name"] for service in entry["services"])
    reporter.out.step(mark, names or "project", f"{entry['what']}: {entry['message']}{took}")
    for detail in entry["details"]:
        reporter.out.say(f"      {detail}")
