"""Which Pods serve something older than what lies in the project now.

Code and models are read when a container starts, or copied for its Pod before; until a save reloads
them, whoever edits one must hear that it is not served yet. What the dev loop takes over is not
told here. Blocking: looks at the time stamps of files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kserve_local.api.meta import Object, condition_is, name_of, uid_of
from kserve_local.api.names import STORAGE_INITIALIZER
from kserve_local.controllers import pod_state
from kserve_local.controllers.init_containers import base_folder, recall
from kserve_local.controllers.modelcars import sources_of
from kserve_local.controllers.standins import source_for
from kserve_local.settings import Settings
from kserve_local.storage.listings import listing
from kserve_local.storage.local import local_path, mirrored, only_archive
from kserve_local.storage.snapshots import name_of as name_of_snapshot
from kserve_local.supervisor.statedir import MODELS

MAX_FILES = 20_000
"""Files looked at in one folder; a folder with more is no source to edit by hand."""

_CODE = frozenset({".py"})
"""What counts beside a manifest and sample requests, which may share a folder with the code."""

_SKIPPED = frozenset({"__pycache__", "node_modules", "venv", "site-packages"})


def changed_since_start(pods: Sequence[Object], settings: Settings) -> list[str]:
    """Return one sentence a ready Pod whose code or model changed after it was read."""
    found = []
    for pod in pods:
        if not condition_is(pod, "Ready") or pod["metadata"].get("deletionTimestamp"):
            continue
        for folder, since, only in _inputs(pod, settings):
            file = (
                _newer(folder, since, only)
                if since is not None
                else _differs(pod, folder, settings)
            )
            if file is not None:
                shown = os.path.relpath(file, settings.project)
                found.append(
                    f"{shown if not shown.startswith('..') else file} changed after Pod "
                    f"{name_of(pod)} started, which serves what was there before; "
                    f"kserve-local delete pod {name_of(pod)}   starts it anew"
                )
                break
    return found


def _inputs(pod: Object, settings: Settings) -> Iterator[tuple[Path, float | None, frozenset[str]]]:
    """Yield (folder or file, when the Pod read it, suffixes that count: none for all).

    None for the time: the Pod has a snapshot of it.
    """
    status, spec = pod.get("status") or {}, pod["spec"]
    started = {c["name"]: _started(c) for c in status.get("containerStatuses") or ()}
    takes_code = settings.watch and settings.watching.code != "off"
    for container in () if takes_code else spec.get("containers") or ():
        source = source_for(str(container.get("image") or ""), settings.images)
        since = started.get(container["name"])
        if source is not None and since is not None:
            yield source.context, since, _CODE
    if settings.watch and settings.watching.model:
        return
    fetched = {c["name"]: _started(c) for c in status.get("initContainerStatuses") or ()}
    unpacked = fetched.get(STORAGE_INITIALIZER)
    serving = started.get(pod_state.serving_container(spec).get("name", ""))
    has_snapshots = any(True for _ in _snapshots(pod, settings))
    for container in spec.get("initContainers") or ():
        for uri in sources_of(pod, container):
            path = mirrored(uri, settings.mirrors) or local_path(
                uri, base_folder(pod, settings.project)
            )
            if path is not None and has_snapshots and not _is_archive(path):
                yield path, None, frozenset()
                continue
            # Used where it is, so a container that restarts reads it anew; an archive is a copy.
            since = unpacked if path is not None and _is_archive(path) else serving
            if path is not None and since is not None:
                yield path, since, frozenset()


def _snapshots(pod: Object, settings: Settings) -> Iterator[str]:
    """Yield the names of the snapshots that a Pod was given."""
    for contents in recall(settings.run_dir / "volumes" / uid_of(pod)).values():
        for content in contents:
            if content.path.parent == settings.state / MODELS:
                yield content.path.name


def _differs(pod: Object, source: Path, settings: Settings) -> Path | None:
    """Return the file written last of a source that is not what the Pod has a snapshot of."""
    try:
        now = listing(source)
    except OSError:
        return None
    if now is None or name_of_snapshot(source, now) in _snapshots(pod, settings):
        return None
    newest = max(now, key=lambda file: file.mtime_ns, default=None)
    return source if newest is None else source / newest.path


def _is_archive(path: Path) -> bool:
    try:
        return only_archive(path) is not None
    except OSError:
        return False


def _started(container: Mapping[str, Any]) -> float | None:
    """Return when the container started, as a time stamp of a file; None if it does not run."""
    state = container.get("state") or {}
    at = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    # Kubernetes writes whole seconds: what was saved within that second was there, or not.
    return datetime.fromisoformat(at).timestamp() + 1.0 if at else None


def _newer(path: Path, since: float, suffixes: frozenset[str]) -> Path | None:
    """Return a file that was written after `since`, None if there is none."""
    if path.is_file():
        return path if _written(path) > since else None
    seen = 0
    for folder, folders, files in os.walk(path):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in _SKIPPED]
        for name in files:
            seen += 1
            if seen > MAX_FILES:
                return None
            if name.startswith(".") or (suffixes and Path(name).suffix not in suffixes):
                continue
            if _written(Path(folder, name)) > since:
                return Path(folder, name)
    return None


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
