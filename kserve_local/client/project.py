"""Finding a project's running supervisor: `run/supervisor.json`, which it writes once all listens.

The shape is DESIGN.md section 6's plus start times, so that a recycled pid is not taken for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_local import procs
from kserve_local.errors import ServiceUnavailable
from kserve_local.settings import Settings

RUN_FILE = "supervisor.json"


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


def read_run_file(settings: Settings) -> Running | None:
    """Return what the last supervisor of this project wrote, None without one or if unreadable."""
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


def need_running(settings: Settings) -> Running:
    """Return the project's live supervisor.

    Raises:
        ServiceUnavailable: None runs; the hint says how to start one.
    """
    running = find_running(settings)
    if running is None:
        raise ServiceUnavailable(
            f'project "{settings.name}" ({settings.project}) is not running',
            hint="kserve-local up",
        )
    return running
