"""What of a project's state on disk a program can put in order, without ending a process.

For `kserve-local doctor`: remains of a supervisor that is gone with all it started (a power cut, a
reboot), run files that were copied together with a project folder, modes of files that keep their
owner out or let others in, and environments whose interpreter is gone. Blocking.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kserve_local.backends import processes, runfiles
from kserve_local.client.project import copied_from, find_running, find_survivor
from kserve_local.errors import PortTaken
from kserve_local.settings import Settings
from kserve_local.supervisor import leftovers, statedir

_PATIENCE = 5.0
"""Seconds another command may take to start or stop the project before nothing is touched."""


@dataclass(frozen=True, slots=True)
class Disorder:
    """Something that is wrong.

    Args:
        hint: What a person does about it.
        mend: Puts it in order and says how; None where a program cannot, or had better not.
    """

    name: str
    message: str
    hint: str = ""
    mend: Callable[[], str] | None = None
    breaks: bool = False
    """Whether `up` will not work."""


def disorders(settings: Settings) -> Iterator[Disorder]:
    """Yield what is wrong now."""
    yield from _of_runs(settings)
    yield from _of_modes(settings)
    yield from _of_environments(settings)


def _of_runs(settings: Settings) -> Iterator[Disorder]:
    foreign = copied_from(settings)
    if foreign is not None:
        yield Disorder(
            "state",
            f"the run files are those of {foreign}, copied with the folder",
            mend=lambda: forget_copy(settings),
        )
        return
    if statedir.owner(settings) is not None or find_running(settings) is not None:
        return
    if not leftovers.has_leftovers(settings):
        return
    alive = survivors(settings)
    if alive:
        # Their gateway, if it lives, is told where the ports are.
        if find_survivor(settings) is None:
            text = f"the supervisor is gone; of what it started still run: {', '.join(alive)}"
            yield Disorder("remains", text, "kserve-local up takes over; kserve-local down ends it")
        return
    yield Disorder(
        "remains",
        "the supervisor is gone with all it started; its run files, sockets and the volumes of its "
        "Pods (Secrets among them) are left",
        mend=lambda: _clear(settings),
    )


def survivors(settings: Settings) -> list[str]:
    """Return what a supervisor that is gone has started and what may still run."""
    found = []
    gateway = find_survivor(settings)
    if gateway is not None:
        found.append(f"gateway (pid {gateway.pid})")
    carriers = processes.marked()
    files = [*(settings.run_dir / "pods").glob("*/*.json"),
             *(settings.run_dir / "zygotes").glob("*.json")]  # fmt: skip
    for file in files:
        launch = runfiles.read(file)
        pid, start = launch.get("pid"), launch.get("start_time")
        pids = carriers.get(str(launch.get("token") or "-"), [])
        if type(pid) is int and type(start) is int and processes.is_alive(pid, start):
            pids = [pid]
        found += [f"{file.stem} (pid {pid})" for pid in pids[:1]]
    # Only the engine knows; it need not be there to be asked.
    found += [f"container {file.stem}" for file in (settings.run_dir / "containers").glob("[!.]*")]
    return found


def _clear(settings: Settings) -> str:
    with statedir.changing(settings, patience=_PATIENCE):
        if statedir.owner(settings) is not None or survivors(settings):
            raise PortTaken(f'project "{settings.name}" has been started meanwhile')
        leftovers.remove(settings, grace=0.0)
    return "removed run files, sockets and volumes"


def forget_copy(settings: Settings) -> str:
    """Remove run files that name what another project runs, and say so.

    Raises:
        PortTaken: Somebody runs this project after all, under another path.
    """
    # Not a process is asked or ended: what the files name is another project's.
    with statedir.changing(settings, patience=_PATIENCE):
        if statedir.owner(settings) is not None:
            raise PortTaken(f'project "{settings.name}" has been started meanwhile')
        for entry in settings.run_dir.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "start.lock":
                entry.unlink()
    settings.kubeconfig.unlink(missing_ok=True)
    return "removed the copied run files and kubeconfig; the other project is as it was"


def _of_modes(settings: Settings) -> Iterator[Disorder]:
    cache = settings.cache
    while not cache.exists() and cache != cache.parent:
        cache = cache.parent
    folders = {cache: "cache", settings.state: "state", settings.run_dir: "state",
               settings.log_dir: "state"}  # fmt: skip
    if settings.cache.is_dir():
        folders |= {f: "cache" for f in settings.cache.iterdir() if f.is_dir()}
    files = {settings.database: "state", settings.log_dir / "supervisor.log": "state"}
    for path, name in (*folders.items(), *files.items()):
        try:
            info = path.stat()
        except OSError:
            continue
        needs = 0o700 if stat.S_ISDIR(info.st_mode) else 0o600
        if info.st_uid == os.getuid():
            if info.st_mode & needs != needs:
                text = f"{path} cannot be written by you, its owner (mode {info.st_mode & 0o777:o})"
                yield Disorder(name, text, mend=_mode(path, info.st_mode | needs), breaks=True)
        elif not os.access(path, os.W_OK):
            text = f"{path} belongs to {_user(info.st_uid)} and cannot be written"
            way_out = f'sudo chown -R "$(id -u)" {path}'
            yield Disorder(name, text, way_out, breaks=True)
    if settings.state.is_dir():
        info = settings.state.stat()
        if info.st_uid == os.getuid() and info.st_mode & 0o077:
            text = f"{settings.state} holds tokens and Secrets and can be read by others"
            yield Disorder("state", text, mend=_mode(settings.state, info.st_mode & ~0o077))


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _mode(path: Path, mode: int) -> Callable[[], str]:
    def mend() -> str:
        path.chmod(stat.S_IMODE(mode))
        return f"mode of {path} is {stat.S_IMODE(mode):o}"

    return mend


def _of_environments(settings: Settings) -> Iterator[Disorder]:
    """Yield environments that cannot be used, nor replaced while they lie there."""
    for folder in sorted((settings.cache / "envs").glob("*")):
        python = folder / "bin" / "python"
        if python.is_symlink() and not python.exists() and not folder.name.startswith("."):
            text = f"the interpreter of {folder} is gone ({_target(python)})"
            yield Disorder("environments", text, mend=_remover(folder), breaks=False)


def _target(link: Path) -> str:
    while link.is_symlink():
        link = link.parent / link.readlink()
    return str(link)


def _remover(folder: Path) -> Callable[[], str]:
    def mend() -> str:
        shutil.rmtree(folder)
        return f"removed {folder}; it is built anew when a model needs it"

    return mend
