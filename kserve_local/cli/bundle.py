"""`kserve-local doctor --bundle FILE`: one archive to attach to a report.

Holds what explains a failure: checks, versions, status, InferenceServices, Events and the ends of
logs. Left out is what is secret: tokens, keys, Secrets, environments, the database.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kserve_local import __version__
from kserve_local.client.client import Client
from kserve_local.errors import KServeLocalError, UsageError
from kserve_local.settings import Settings

MAX_LOG = 1 << 20
"""Bytes of each log that are kept: its end."""


def write(settings: Settings, checks: object, path: Path) -> list[str]:
    """Write the archive, readable by its owner only; return the names of what is in it.

    Raises:
        UsageError: It cannot be written there.
    """
    about = {
        "kserve-local": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    contents = {"about.json": _json(about), "doctor.json": _json(checks)}
    contents |= {name: _json(value) for name, value in _told(settings).items()}
    for log in sorted(settings.log_dir.rglob("*.log")):
        contents[f"logs/{log.relative_to(settings.log_dir)}"] = _end(log)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise UsageError(f'cannot write "{path}": {error.strerror}') from error
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"kserve-local/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return list(contents)


def _told(settings: Settings) -> Mapping[str, Any]:
    """Return what the running project says of itself; nothing when it does not run."""
    from kserve_local.api import scheme
    from kserve_local.cli.session import run
    from kserve_local.client.project import STATUS

    async def ask(client: Client) -> dict[str, Any]:
        return {
            "status.json": await client.call("GET", STATUS, query={"changes": "true"}),
            "events.json": await client.list(scheme.EVENT),
            "inferenceservices.json": await client.list(scheme.INFERENCE_SERVICE),
        }

    try:
        return run(settings, ask)
    except KServeLocalError as error:
        return {"status.json": {"error": str(error)}}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str).encode()


def _end(log: Path) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - MAX_LOG))
            return file.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}\n".encode()
