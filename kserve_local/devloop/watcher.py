"""Which files were saved: batches of paths, a save that touches many files in one batch.

Folders are watched one by one, not as trees: virtual environments, `.git` and the state folder,
whose logs are written all the time, cost nothing. Where the kernel cannot tell (network and
container mounts, no watches left) files are looked at instead. Whoever listens compares what is
there with what it knows, so a batch may name too much, and an empty one says: anything may have
changed.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_STEP_MS = 10
"""The kernel is asked for news this often while there is some; the first silence ends a batch."""
_LONGEST_MS = 400
"""A batch ends after this long, however much is still being written."""
_POLL_MS = 300
_SAME_SECOND = 1.2
"""Where files are looked at, two saves within one second are told once: after so long everything is
compared."""
_AWAKE_MS = 5000
_LOOKED_AT = 50
"""Folders whose end is noticed by looking; the kernel forgets a folder that is deleted."""
MAX_FOLDERS = 4000
"""More are no project's that somebody edits by hand; the rest is not watched, which is said."""
SKIPPED = frozenset(
    {".git", ".hg", ".svn", ".kserve-local", "__pycache__", "node_modules", "site-packages"}
)
# What editors and tools leave beside a file while, or after, they save it.
_PASSING = re.compile(
    r"""\.sw.$ | \.swpx$ | ~$ | ^\.\# | ^\#.*\#$ | ^4913$ | ___jb_(tmp|old|bak)___$ | ^\.DS_Store$
    | \.py[cod]$ | ^\.goutputstream- | ^\.~lock\. | \.crdownload$ | \.part$ | ^flycheck_ """,
    re.VERBOSE,
)
# File systems whose changes the kernel does not tell of when another machine makes them.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "vboxsf", "virtiofs", "drvfs", "afs"})


@dataclass(frozen=True, slots=True)
class Watching:
    """How to watch (`watch:` of kserve-local.yaml).

    Args:
        roots: Folders, watched with all below them, and single files.
        ignore: Patterns of paths relative to `project`, e.g. `**/*.ipynb`.
        poll: `auto`, `never`, or seconds between two looks.
    """

    project: Path
    roots: frozenset[Path]
    ignore: tuple[str, ...] = ()
    poll: str | float = "auto"


def is_passing(name: str) -> bool:
    """Whether a file of this name is an editor's or tool's own, never the user's."""
    return _PASSING.search(name) is not None


def is_ignored(path: Path, project: Path, patterns: Iterable[str]) -> bool:
    """Whether a pattern of `watch.ignore` covers the path."""
    relative = os.path.relpath(path, project)
    # `**/x` is to find x at the top as well.
    return any(
        fnmatch.fnmatch(relative, p) or fnmatch.fnmatch(f"/{relative}", p.removeprefix("**"))
        for p in patterns
    )


def folders_of(watching: Watching) -> list[Path]:
    """Return the folders to watch, parents first, at most `MAX_FOLDERS`. Blocking."""
    found: dict[Path, None] = {}
    for root in sorted(watching.roots):
        if not root.is_dir():
            # Of a file its folder is watched: most editors save by putting a new file there.
            if root.parent.is_dir():
                found.setdefault(root.parent)
            continue
        for folder, below, _ in os.walk(root):
            path = Path(folder)
            if len(found) >= MAX_FOLDERS:
                logger.warning(
                    "%s has more than %d folders; not all are watched", root, MAX_FOLDERS
                )
                return list(found)
            found.setdefault(path)
            below[:] = [b for b in sorted(below) if not _is_skipped(path / b, watching)]
    return list(found)


def _is_skipped(folder: Path, watching: Watching) -> bool:
    name = folder.name
    if name in SKIPPED or (folder / "pyvenv.cfg").exists():
        return True
    hidden = name.startswith(".") and folder not in watching.roots
    return hidden or is_ignored(folder, watching.project, watching.ignore)


def must_poll(path: Path, mounts: str) -> bool:
    """Whether the kernel misses changes of files below `path`.

    Args:
        mounts: The content of /proc/mounts.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        at = Path(fields[1].replace("\\040", " "))
        if (path == at or at in path.parents) and len(at.parts) > best:
            best, kind = len(at.parts), fields[2]
    return kind in _REMOTE or kind.startswith("fuse.")


class Watcher:
    """The saves of a project.

    Args:
        watching: Asked before each start: what is watched may change.
        deliver: Gets each batch; an empty one says that anything may have changed. Returns at once.
    """

    def __init__(
        self, watching: Callable[[], Watching], deliver: Callable[[frozenset[Path]], None]
    ) -> None:
        self._watching = watching
        self._deliver = deliver
        self._again = asyncio.Event()
        self.polls = False
        """Whether files are looked at, because nobody tells."""
        self._later: asyncio.TimerHandle | None = None

    def look_again(self) -> None:
        """What is to be watched has changed."""
        self._again.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            await self._run()
        finally:
            if self._later is not None:
                self._later.cancel()

    async def _run(self) -> None:
        while True:
            self._again.clear()
            watching = self._watching()
            folders = await asyncio.to_thread(folders_of, watching)
            self.polls = self.polls or await asyncio.to_thread(_polls, watching)
            if not folders:
                await self._again.wait()
                continue
            await self._watch(watching, folders)

    async def _watch(self, watching: Watching, folders: Sequence[Path]) -> None:
        """Watch these folders until others are to be watched."""
        # Slow to import, and a project that is not watched does without.
        from watchfiles import awatch

        known = frozenset(folders)
        changes = awatch(
            *folders,
            watch_filter=None,
            debounce=_LONGEST_MS,
            step=_STEP_MS,
            stop_event=self._again,
            # Also to notice a folder's end, and to say once that it has begun.
            rust_timeout=_AWAKE_MS,
            yield_on_timeout=True,
            force_polling=self.polls,
            poll_delay_ms=_poll_ms(watching.poll),
            recursive=False,
            ignore_permission_denied=True,
        )
        following = asyncio.ensure_future(anext(changes, None))
        # The first step of the generator makes the watch: from here on nothing is missed.
        await asyncio.sleep(0)
        try:
            if not following.done():
                # What was saved before that: whoever listens compares.
                self._tell(frozenset())
            while (some := await following) is not None:
                following = asyncio.ensure_future(anext(changes, None))
                meant = _meant({Path(path) for _, path in some}, watching)
                if meant:
                    self._tell(meant)
                if _has_new_folder(meant, known, watching) or not _all_there(folders):
                    return
        except FileNotFoundError:
            return  # a folder went between the list and the watch
        except OSError as error:
            if self.polls:
                raise
            logger.warning("cannot watch (%s); files are looked at instead", error)
            self.polls = True
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await following
            await changes.aclose()

    def _tell(self, batch: frozenset[Path]) -> None:
        self._deliver(batch)
        if self.polls:
            if self._later is not None:
                self._later.cancel()
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(_SAME_SECOND, self._deliver, frozenset())


def _meant(paths: Collection[Path], watching: Watching) -> frozenset[Path]:
    files = {root for root in watching.roots if not root.is_dir()}
    return frozenset(
        path
        for path in paths
        if not is_passing(path.name)
        and not is_ignored(path, watching.project, watching.ignore)
        and (path in files or any(root in path.parents for root in watching.roots - files))
    )


def _has_new_folder(paths: Collection[Path], known: Collection[Path], watching: Watching) -> bool:
    return any(p not in known and p.is_dir() and not _is_skipped(p, watching) for p in paths)


def _all_there(folders: Sequence[Path]) -> bool:
    return all(map(os.path.isdir, folders[:_LOOKED_AT]))


def _polls(watching: Watching) -> bool:
    if watching.poll != "auto":
        return watching.poll != "never"
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        return False  # no Linux: its own ways tell of all
    return any(must_poll(root, mounts) for root in watching.roots)


def _poll_ms(poll: str | float) -> int:
    return _POLL_MS if isinstance(poll, str) else max(50, int(poll * 1000))
