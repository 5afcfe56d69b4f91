"""Settings: flags, then `KSERVE_LOCAL_*`, then `kserve-local.yaml`, then the default; built once,
frozen, passed in.

`settings.Settings` is what everything else sees. `load()` reads the environment and the file; no
other module does. File keys are UX.md section 3.6's. Relative paths in the file start at the
project folder.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kserve_local.errors import Invalid, UsageError

CONFIG_FILE = "kserve-local.yaml"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image name mapped to local source (`images:`).

    `command` defaults to `python` plus the file that the Pod's own command names; `python` in it
    means the project's `.venv`, else `$VIRTUAL_ENV`, else the interpreter that runs kserve-local.
    """

    context: Path
    command: tuple[str, ...] = ()
    python: Path | None = None
    requirements: Path | None = None
    reload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How a (Cluster)ServingRuntime runs here (`runtimes:`)."""

    backend: str = ""
    python: Path | None = None
    requirements: Path | None = None
    image: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one project. Durations are seconds.

    Args:
        project: The project folder, absolute.
        state: `<project>/.kserve-local`; holds kubeconfig, state.db, logs/, run/.
        cache: `$XDG_CACHE_HOME/kserve-local`: models, environments; shared by projects.
        runtime: Short private folder for Unix sockets (paths over 100 bytes do not bind).
        gateway_port / api_port: None means `auto`: any free port.
        max_held_requests: Requests one revision may hold while waking; beyond it 503.
        mirrors: `gs://bucket/` -> folder; longest prefix wins.
        claims: PersistentVolumeClaim name -> folder, for `pvc://`.
        speed: Factor on autoscaler windows, for trying things out.
    """

    project: Path
    state: Path
    cache: Path
    runtime: Path
    name: str = "default"
    namespace: str = "default"
    resources: tuple[Path, ...] = ()
    ignore: tuple[str, ...] = ()
    backend: str = "auto"
    gateway_host: str = "127.0.0.1"
    gateway_port: int | None = 8080
    gateway_domain: str = "example.com"
    max_held_requests: int = 100
    request_timeout: float = 300.0
    api_port: int | None = 8089
    auth_token: str = ""
    watch: bool = True
    offline: bool = False
    mirrors: Mapping[str, Path] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, ImageSource] = field(default_factory=dict)
    runtimes: Mapping[str, RuntimeConfig] = field(default_factory=dict)
    progress_deadline: float = 600.0
    log_max_bytes: int = 10 * 1024 * 1024
    log_files: int = 3
    verbose: int = 0

    @property
    def run_dir(self) -> Path:
        """Run files: `supervisor.json`, one folder a Pod, the gateway's."""
        return self.state / "run"

    @property
    def log_dir(self) -> Path:
        """`logs/<pod>/<container>.log`."""
        return self.state / "logs"

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig, mode 0600."""
        return self.state / "kubeconfig"

    @property
    def database(self) -> Path:
        """The store's SQLite file."""
        return self.state / "state.db"


_DURATION = re.compile(
    r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+)ms)?"
)


def parse_duration(text: str | int | float, *, what: str) -> float:
    """Return seconds of `90`, `1.5`, `300s`, `5m`, `1h30m`, `50ms`.

    Raises:
        Invalid: Not a duration; the message names `what`.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    text = str(text).strip()
    try:
        return float(text)
    except ValueError:
        pass
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise Invalid(f'{what}: "{text}" is not a duration; write for example 300s, 5m or 50ms')
    part = {k: float(v) for k, v in match.groupdict().items() if v}
    return (
        part.get("h", 0) * 3600
        + part.get("m", 0) * 60
        + part.get("s", 0)
        + part.get("ms", 0) / 1000
    )
