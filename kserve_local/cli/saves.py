"""What saves did, as `up` tells it while it follows the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kserve_local.cli.progress import Reporter
    from kserve_local.client.client import Client

_WAIT = 20
"""Seconds that one question for news waits for some."""
_MARKS = {"refused": "✗", "replacing": "●", "answers": "!"}


async def follow(client: Client, reporter: Reporter) -> None:
    """Tell of every save from now on, until cancelled."""
    from kserve_local.client.project import ACTIVITY

    data = await client.call("GET", ACTIVITY)
    since = max((entry["seq"] for entry in data["activity"]), default=0)
    while True:
        query = {"since": str(since), "wait": str(_WAIT)}
        data = await client.call("GET", ACTIVITY, query=query)
        for entry in data["activity"]:
            since = entry["seq"]
            _tell(entry, reporter)


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
