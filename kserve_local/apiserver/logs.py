"""`pods/log`: a container's output, whole or its tail, followed while it grows.

The files are the node agent's; which ones belong to a container, and whether more can come, is the
`LogReader`'s knowledge. Containers write into them themselves, so no line carries a time of ours:
`since` goes by the times that lines begin with and by those of the files, and `timestamps` has no
effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import math
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kserve_local.api import scheme
from kserve_local.api.meta import Key, Object, name_of, namespace_of, parse_timestamp, uid_of
from kserve_local.errors import BadRequest
from kserve_local.store.store import Store

_CHUNK = 64 * 1024
_POLL = 0.1
_SLACK = 2.0
"""Seconds by which a line's own time may miss those between which its file was written."""
_STAMP = re.compile(
    rb"\[?(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))?(?: ?(Z|[+-]\d\d:?\d\d))?(?!\d)"
)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What of a container's output is asked for.

    Args:
        previous: Of the container's run before the current one.
        tail_lines: Only the last so many; None: everything.
        limit_bytes: Stop after so many bytes; None: no limit.
        since: Only what may have been written at or after this Unix time; None: everything.
        timestamps: Put the time before each line, where it is known.
    """

    container: str
    follow: bool = False
    previous: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: float | None = None
    timestamps: bool = False


class LogReader(Protocol):
    """Reads container output."""

    def check(self, pod: Object, options: LogOptions) -> None:
        """Find out whether there is such a run, before an answer begins.

        Raises:
            BadRequest: There is none, in Kubernetes' words.
        """

    def read(self, pod: Object, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield the output in chunks; with `follow` until the container has ended for good.

        Raises:
            BadRequest: There is no such run, in Kubernetes' words.
            NotFound: There is no output.
        """


def container_of(pod: Object, asked: str) -> str:
    """Return the container whose output is meant.

    Raises:
        BadRequest: None is named and there are several, or there is none of that name; in
            Kubernetes' words.
    """
    spec: dict[str, Any] = pod.get("spec") or {}
    containers = [str(c["name"]) for c in spec.get("containers") or ()]
    inits = [str(c["name"]) for c in spec.get("initContainers") or ()]
    name = name_of(pod)
    if asked:
        if asked not in (*containers, *inits):
            raise BadRequest(f"container {asked} is not valid for pod {name}")
        return asked
    if len(containers) == 1:
        return containers[0]
    text = f"a container name must be specified for pod {name}, "
    text += f"choose one of: [{' '.join(containers)}]"
    if inits:
        text += f" or one of the init containers: [{' '.join(inits)}]"
    raise BadRequest(text)


class FileLogs:
    """Reads the log files of the node agent: `<folder>/<pod>/<container>.log`.

    A full file is copied to `.log.1`, `.log.2`, ... and cut; the run before a restart is
    `.previous.log`. A line is left out by `since` when it, or a later one, begins with an older
    time, or when its file was not written to since then. That may show too much and, as long as
    containers tell their local time, never too little. `timestamps` has no effect.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def _file(self, pod: Object, options: LogOptions) -> Path:
        name = f"{options.container}{'.previous' if options.previous else ''}.log"
        return self._folder / name_of(pod) / name

    def check(self, pod: Object, options: LogOptions) -> None:
        """Find out whether there is such a run; see `LogReader`."""
        name, container = name_of(pod), options.container
        log = self._file(pod, options)
        if options.previous:
            if not log.exists():
                raise BadRequest(
                    f'previous terminated container "{container}" in pod "{name}" not found'
                )
        elif not log.exists():
            reason = _waiting_reason(pod, container)
            raise BadRequest(
                f'container "{container}" in pod "{name}" is waiting to start: {reason}'
            )

    async def read(self, pod: Object, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield the output; see `LogReader`."""
        self.check(pod, options)
        log = self._file(pod, options)
        left = options.limit_bytes
        async for chunk in self._chunks(pod, log, options):
            if left is None:
                yield chunk
                continue
            yield chunk[:left]
            left -= min(left, len(chunk))
            if left == 0:
                return

    async def _chunks(self, pod: Object, log: Path, options: LogOptions) -> AsyncIterator[bytes]:
        begun = _begun(pod, options)
        with log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = 0
            if options.tail_lines is None:
                for copy in await asyncio.to_thread(_copies, log):
                    async for chunk in _whole(copy, options.since, begun):
                        yield chunk
            else:
                start = await asyncio.to_thread(_tail_start, file, size, options.tail_lines)
            if options.since is not None:
                recent = await asyncio.to_thread(_since_start, file, size, options.since, begun)
                start = max(start, recent)
            file.seek(start)
            follow = options.follow and not options.previous
            while True:
                over = not follow or self._is_over(pod, options.container)
                while chunk := file.read(_CHUNK):
                    yield chunk
                if over:
                    return
                await asyncio.sleep(_POLL)
                if os.fstat(file.fileno()).st_size < file.tell():
                    file.seek(0)  # cut after it was copied aside: new lines start over

    def _is_over(self, pod: Object, container: str) -> bool:
        """Whether the run that the file belongs to has ended."""
        key = Key(scheme.POD.id, namespace_of(pod), name_of(pod))
        now = self._store.find(key)
        if now is None or uid_of(now) != uid_of(pod):
            return True
        before, status = _status_of(pod, container), _status_of(now, container)
        if (before.get("restartCount") or 0) != (status.get("restartCount") or 0):
            return True
        return "terminated" in (status.get("state") or {})


def _status_of(pod: Object, container: str) -> Mapping[str, Any]:
    status = pod.get("status") or {}
    listed = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    return next((s for s in listed if s.get("name") == container), {})


def _waiting_reason(pod: Object, container: str) -> str:
    waiting = (_status_of(pod, container).get("state") or {}).get("waiting") or {}
    return str(waiting.get("reason") or "ContainerCreating")


def _copies(log: Path) -> list[Path]:
    """Return the parts of a log that were moved aside, oldest first."""
    numbered = [
        (int(path.suffix[1:]), path)
        for path in log.parent.glob(f"{glob.escape(log.name)}.*")
        if path.suffix[1:].isdigit()
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


async def _whole(path: Path, since: float | None, begun: float) -> AsyncIterator[bytes]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if since is not None:
            size = os.fstat(file.fileno()).st_size
            file.seek(await asyncio.to_thread(_since_start, file, size, since, begun))
        while chunk := file.read(_CHUNK):
            yield chunk


def _begun(pod: Object, options: LogOptions) -> float:
    """Return when the run that is asked for started, -inf if that is not known."""
    status = _status_of(pod, options.container)
    states = status.get("lastState" if options.previous else "state") or {}
    for state in (states.get("running"), states.get("terminated")):
        if state and state.get("startedAt"):
            return parse_timestamp(state["startedAt"]).timestamp()
    return -math.inf


def last_moment(line: bytes) -> float | None:
    """Return when a line was written at the latest, by the time it begins with; None without one.

    `2026-01-31 12:00:00`, with `T`, fractions, a zone and an opening bracket if it likes; without a
    zone it is local time, as Python's `logging` writes it.
    """
    match = _STAMP.match(line)
    if match is None:
        return None
    day, clock, fraction, zone = (part.decode() if part else "" for part in match.groups())
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{zone}").timestamp()
    except (ValueError, OverflowError):
        return None
    return moment + (int(fraction or 0) + 1) / 10.0 ** len(fraction)


def _since_start(file: BinaryIO, size: int, since: float, begun: float) -> int:
    """Return where in a file the lines begin that may have been written at `since` or later.

    Args:
        begun: Nothing in it was written before; what claims to be older, or to be newer than the
            file, is no time of writing.
    """
    ended = os.fstat(file.fileno()).st_mtime
    if ended < since:
        return size
    file.seek(0)
    start = position = 0
    for line in file:
        position += len(line)
        if position > size:
            break
        written = last_moment(line)
        if written is not None and begun - _SLACK <= written <= ended + _SLACK and written < since:
            start = position
    return start


def _tail_start(file: BinaryIO, size: int, lines: int) -> int:
    """Return where the last `lines` lines begin."""
    position, found = size, -1  # the newline that ends the last line starts no other
    if lines == 0:
        return size
    while position > 0:
        step = min(_CHUNK, position)
        file.seek(position - step)
        block = file.read(step)
        if position == size and not block.endswith(b"\n"):
            found = 0
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) != -1:
            found += 1
            if found == lines:
                return position - step + at + 1
        position -= step
    return 0
