"""Finding a project's running supervisor: `run/supervisor.json`, which it writes once all listens.

The shape is DESIGN.md section 6's plus start times, so that a recycled pid is not taken for it. A
gateway outlives a supervisor that is killed; its own run file, `run/gateway.json`, tells.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_local import procs
from kserve_local.errors import Forbidden, ServiceUnavailable
from kserve_local.settings import Settings

RUN_FILE = "supervisor.json"
GATEWAY_FILE = "gateway.json"
STATUS = "/apis/kserve-local.dev/v1/status"
"""The API's route for what `kserve-local status` shows (supervisor/summary.py)."""
OBSERVED = "/apis/kserve-local.dev/v1/observed"
"""What became of each service's spec; its own status does not tell."""
ACTIVITY = "/apis/kserve-local.dev/v1/activity"
"""What saves did, and what they broke (supervisor/dev_summary.py)."""
PAYLOADS = "/apis/kserve-local.dev/v1/payloads"
"""Logged requests and responses that were for a sink in a cluster (supervisor/payloads.py)."""
REQUESTS = "/apis/kserve-local.dev/v1/requests"
"""Calls that the gateway keeps (supervisor/requests.py)."""
DEBUG = "/apis/kserve-local.dev/v1/debug"
"""Debuggers of replicas (supervisor/debugging.py)."""
TAKE_OVER = "kserve-local up     takes over again\nkserve-local down   stops the rest"
"""What to do about a gateway whose supervisor is gone."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a supervisor says of itself."""

    identity: procs.Identity
    backend: str
    gateway_pid: int
    gateway_url: str
    api_url: str
    kubeconfig: Path
    raw: dict[str, Any]

    @property
    def alive(self) -> bool:
        """Whether that supervisor still runs."""
        return procs.alive(self.identity)


def copied_from(settings: Settings) -> str | None:
    """Return the project whose run files lie here, copied with its folder; None: they are ours."""
    try:
        project = json.loads((settings.run_dir / RUN_FILE).read_bytes()).get("project")
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(project, str) or not project:
        return None
    try:
        same = os.path.samefile(project, settings.project)
    except OSError:
        # Moved: nothing of it can run any more, for it ends with its folder.
        same = False
    return None if same else project


def read_run_file(settings: Settings) -> Running | None:
    """Return what the last supervisor of this project wrote, None without one or if unreadable."""
    if copied_from(settings) is not None:
        return None
    try:
        raw = json.loads((settings.run_dir / RUN_FILE).read_bytes())
        return Running(
            identity=procs.Identity(int(raw["pid"]), float(raw["started"])),
            backend=raw["backend"],
            gateway_pid=int(raw["gateway"]["pid"]),
            gateway_url=raw["gateway"]["url"],
            api_url=raw["api"]["url"],
            kubeconfig=Path(raw["api"]["kubeconfig"]),
            raw=raw,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_running(settings: Settings) -> Running | None:
    """Return the project's live supervisor, None if none runs."""
    running = read_run_file(settings)
    return running if running is not None and running.alive else None


@dataclass(frozen=True, slots=True)
class Survivor:
    """A gateway that serves without a supervisor."""

    pid: int
    url: str


def find_survivor(settings: Settings) -> Survivor | None:
    """Return the gateway that a supervisor left behind when it was killed, None if none serves."""
    if find_running(settings) is not None or copied_from(settings) is not None:
        return None
    try:
        raw = json.loads((settings.run_dir / GATEWAY_FILE).read_bytes())
        identity = procs.Identity(int(raw["pid"]), float(raw["start_time"]))
        survivor = Survivor(identity.pid, str(raw["url"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return survivor if procs.alive(identity) else None


def check_access(settings: Settings) -> None:
    """Refuse a project whose state folder this user may not use.

    Raises:
        Forbidden: It is another user's, or its mode is wrong.
    """
    try:
        owner = settings.state.stat().st_uid
    except FileNotFoundError:
        return
    if not settings.state.is_dir() or os.access(settings.state, os.R_OK | os.W_OK | os.X_OK):
        return
    what = f'project "{settings.name}": its state folder "{settings.state}"'
    if owner == os.getuid():
        raise Forbidden(f"{what} cannot be used (its mode)", hint="kserve-local doctor --fix")
    import pwd

    try:
        user = pwd.getpwuid(owner).pw_name
    except KeyError:
        user = f"user {owner}"
    raise Forbidden(f"{what} belongs to {user}, who alone can see and stop what runs there")


def need_running(settings: Settings) -> Running:
    """Return the project's live supervisor.

    Raises:
        ServiceUnavailable: None runs. The message says whether its gateway serves on, the hint what
            to do.
        Forbidden: It is another user's.
    """
    check_access(settings)
    running = find_running(settings)
    if running is not None:
        return running
    survivor = find_survivor(settings)
    if survivor is not None:
        raise ServiceUnavailable(
            f'the supervisor of project "{settings.name}" ({settings.project}) is gone; its '
            f"gateway at {survivor.url} (pid {survivor.pid}) still serves",
            hint=TAKE_OVER,
        )
    raise ServiceUnavailable(
        f'project "{settings.name}" ({settings.project}) is not running',
        hint="kserve-local up",
    )
