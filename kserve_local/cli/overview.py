"""`kserve-local` alone: what runs here and the likeliest next commands. Starts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kserve_local.cli.output import Output


def show(flags: dict[str, Any]) -> int:
    """Print the project's state and three commands; return 0."""
    from kserve_local import settings
    from kserve_local.client.project import find_running, find_survivor

    project, profile = Path(flags.get("project") or "."), flags.get("profile", "")
    configured = settings.load_what_is_right(project, profile=profile)
    out = Output("", as_json=bool(flags.get("as_json")), quiet=bool(flags.get("quiet")))
    for problem in configured.problems:
        out.say(f"warning: {problem}", fg="yellow")
    running, survivor = find_running(configured), find_survivor(configured)
    if out.as_json:
        found = {
            "project": configured.name,
            "running": running.raw if running is not None else None,
            "gateway": {"pid": survivor.pid, "url": survivor.url} if survivor is not None else None,
        }
        out.envelope(found)
        return 0
    if survivor is not None:
        out.data(f"the supervisor of {configured.name} ({configured.project}) is gone")
        out.data(f"its gateway {survivor.url} (pid {survivor.pid}) still serves")
        following = ("kserve-local up", "kserve-local down", "kserve-local --help")
    elif running is None:
        out.data(f"{configured.name} ({configured.project}) is not running")
        following = ("kserve-local up", "kserve-local validate", "kserve-local --help")
    else:
        out.data(f"{configured.name} runs: gateway {running.gateway_url}, API {running.api_url}")
        following = ("kserve-local status", "kserve-local logs -F", "kserve-local down")
    for line in following:
        out.data(f"  {line}")
    return 0
