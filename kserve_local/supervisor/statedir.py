"""The project's state folder and the runtime folder for sockets: made private, locked, described.

`<project>/.kserve-local/` has mode 0700 and ignores itself in git. One supervisor at a time holds
`run/supervisor.lock`, and one command at a time that starts or stops it `run/start.lock`; the
kernel drops both with their process, so a crash leaves nothing to clean.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kserve_local import procs
from kserve_local.client.project import RUN_FILE, check_access
from kserve_local.errors import KServeLocalError, PortTaken, TimedOut
from kserve_local.settings import Settings

MODELS = "models"
"""Folder of the state for snapshots of model files."""


def prepare(settings: Settings) -> None:
    """Make the folders, private to the user.

    Raises:
        Forbidden: The state folder is another user's.
        KServeLocalError: A folder cannot be made, or the runtime folder belongs to somebody else.
    """
    try:
        settings.state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.state.mkdir(mode=0o700, exist_ok=True)
        settings.state.chmod(0o700)
        ignore = settings.state / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        for folder in (settings.run_dir, settings.log_dir):
            folder.mkdir(mode=0o700, exist_ok=True)
        settings.cache.mkdir(parents=True, exist_ok=True)
        for folder in (settings.runtime.parent, settings.runtime):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = folder.lstat()  # a link in a shared /tmp would lead sockets elsewhere
            if info.st_uid != os.getuid() or not stat.S_ISDIR(info.st_mode):
                raise KServeLocalError(f'runtime folder "{folder}" belongs to another user')
            folder.chmod(0o700)
    except OSError as error:
        check_access(settings)
        place = Path(error.filename or settings.state)
        what, hint = "state folder", "the project folder must be writable: its state lives there"
        if settings.state not in (place, *place.parents):
            what = "folder of the sockets" if place.is_relative_to(settings.runtime) else "cache"
            hint = (
                "name a folder that you can write: KSERVE_LOCAL_HOME, or XDG_CACHE_HOME for caches"
            )
        raise KServeLocalError(
            f'cannot make the {what}: "{place}": {error.strerror}', hint=hint
        ) from error


def is_private(path: Path) -> bool:
    """Whether a file is the user's own and nobody else's to read or write.

    Raises:
        FileNotFoundError: There is none.
    """
    info = path.lstat()
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077


class Lock:
    """Held by the one supervisor of a project for its whole life; the file says who that is."""

    def __init__(self, settings: Settings) -> None:
        path = _lock_path(settings)
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise PortTaken(
                f'project "{settings.name}" already runs', hint="kserve-local status"
            ) from error
        me = procs.identify(os.getpid())
        assert me is not None  # this process is alive
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": me.pid, "started": me.started}))
        self._file.flush()

    def release(self) -> None:
        """Let another supervisor have the project."""
        self._file.close()


def _lock_path(settings: Settings) -> Path:
    return settings.run_dir / "supervisor.lock"


def owner(settings: Settings) -> procs.Identity | None:
    """Return who holds the project's lock, even before it listens; None if nobody does."""
    try:
        with _lock_path(settings).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                data = json.loads(file.read())
                return procs.Identity(int(data["pid"]), float(data["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


@contextlib.contextmanager
def changing(settings: Settings, *, patience: float) -> Iterator[None]:
    """Start or stop the supervisor alone: a second command waits until the first is through.

    Raises:
        TimedOut: The other command is not through after `patience` seconds.
    """
    path = settings.run_dir / "start.lock"
    end = time.monotonic() + patience
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise TimedOut(
                        f'another command starts or stops project "{settings.name}"'
                    ) from error
                time.sleep(0.02)
        yield


def remove_runtime(settings: Settings) -> None:
    """Take away the folder of Unix sockets and what is left in it."""
    shutil.rmtree(settings.runtime, ignore_errors=True)
    with contextlib.suppress(OSError):
        settings.runtime.parent.rmdir()


def remove_volumes(settings: Settings) -> None:
    """Take away the volumes of Pods that are gone, mounted Secrets among them, and the snapshots
    of their models.
    """
    from kserve_local.controllers import pod_volumes  # slow to import for every other command

    remove_models(settings)
    folder = settings.run_dir / "volumes"
    with contextlib.suppress(OSError):
        for pod in folder.iterdir():
            pod_volumes.remove_volumes(pod, lambda error: None)
    shutil.rmtree(folder, ignore_errors=True)


def remove_models(settings: Settings) -> None:
    """Take away the snapshots of model files, which are read-only."""
    from kserve_local.storage.cache import remove  # slow to import for every other command

    remove(settings.state / MODELS)


def remove_state(settings: Settings) -> None:
    """Delete the project's state, logs included.

    Raises:
        OSError: Some of it cannot be deleted.
    """
    remove_models(settings)
    shutil.rmtree(settings.state)


def write_json(path: Path, data: Any) -> None:
    """Put JSON into a file so that a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    temporary.replace(path)


def write_run_file(settings: Settings, data: dict[str, Any]) -> None:
    """Say that everything listens; see DESIGN.md section 6 for the shape."""
    write_json(settings.run_dir / RUN_FILE, data)


def remove_run_file(settings: Settings) -> None:
    """Take the run file away, at a clean stop."""
    (settings.run_dir / RUN_FILE).unlink(missing_ok=True)
