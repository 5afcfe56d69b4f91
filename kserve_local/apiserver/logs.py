"""`pods/log`: a container's output, whole or its tail, followed while it grows.

The files are the node agent's; which ones belong to a container, and whether more can come, is the
`LogReader`'s knowledge. What is not in the files (times of lines) cannot be asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kserve_local.api import scheme
from kserve_local.api.meta import Key, Object, name_of, namespace_of, uid_of
from kserve_local.errors import BadRequest
from kserve_local.store.store import Store

_CHUNK = 64 * 1024
_POLL = 0.1


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What of a container's output is asked for.

    Args:
        previous: Of the container's run before the current one.
        tail_lines: Only the last so many; None: everything.
        limit_bytes: Stop after so many bytes; None: no limit.
        since: Only what was written at or after this Unix time; None: everything.
        timestamps: Put the time before each line.
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
    `.previous.log`. Lines carry no times there, so `since` and `timestamps` have no effect.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    async def read(self, pod: Object, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield the output; see `LogReader`."""
        name, container = name_of(pod), options.container
        log = self._folder / name / f"{container}.log"
        if options.previous:
            log = log.with_name(f"{container}.previous.log")
            if not log.exists():
                raise BadRequest(
                    f'previous terminated container "{container}" in pod "{name}" not found'
                )
        elif not log.exists():
            reason = _waiting_reason(pod, container)
            raise BadRequest(
                f'container "{container}" in pod "{name}" is waiting to start: {reason}'
            )
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
        with log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = 0
            if options.tail_lines is None:
                for copy in await asyncio.to_thread(_copies, log):
                    async for chunk in _whole(copy):
                        yield chunk
            else:
                start = await asyncio.to_thread(_tail_start, file, size, options.tail_lines)
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


async def _whole(path: Path) -> AsyncIterator[bytes]:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


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
