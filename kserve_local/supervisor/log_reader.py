"""`pods/log` out of the files that containers write: whole, the tail, or followed while it grows.

Files are `logs/<pod>/<container>.log`; what rotation moved away is `<container>.log.1`, `.2`, ...,
and the run before a restart `<container>.previous.log` as `backends.output` names them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from kserve_local.api.meta import Object, name_of
from kserve_local.apiserver.logs import LogOptions
from kserve_local.errors import BadRequest
from kserve_local.settings import Settings

_CHUNK = 64 * 1024
_POLL = 0.1


class FileLogReader:
    """Reads the project's log files."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.log_dir

    async def read(self, pod: Object, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield the container's output; see `apiserver.logs.LogReader`."""
        path = self._path(pod, options)
        if options.previous and not path.exists():
            raise BadRequest(
                f'previous terminated container "{options.container}" in pod '
                f'"{name_of(pod)}" not found'
            )
        left = options.limit_bytes
        offset = await asyncio.to_thread(_start, path, options.tail_lines)
        while True:
            data = await asyncio.to_thread(_read, path, offset)
            if data:
                offset += len(data)
                if left is not None:
                    data, left = data[:left], left - len(data)
                if data:
                    yield data
                if left is not None and left <= 0:
                    return
                continue
            if not options.follow or not self._folder.joinpath(name_of(pod)).exists():
                return
            size = path.stat().st_size if path.exists() else 0
            if size < offset:
                # Rotated away under us: go on with the new file's beginning.
                offset = 0
            await asyncio.sleep(_POLL)

    def _path(self, pod: Object, options: LogOptions) -> Path:
        folder = self._folder / name_of(pod)
        name = f"{options.container}.previous.log" if options.previous else options.container
        return folder / (name if options.previous else f"{name}.log")


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK)
    except FileNotFoundError:
        return b""


def _start(path: Path, tail_lines: int | None) -> int:
    """Return the offset at which the last `tail_lines` lines begin."""
    if tail_lines is None:
        return 0
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            position, found = end, 0
            while position > 0:
                size = min(_CHUNK, position)
                position -= size
                file.seek(position)
                block = file.read(size)
                for index in range(len(block) - 1, -1, -1):
                    if block[index] == 10 and position + index != end - 1:
                        found += 1
                        if found == tail_lines:
                            return position + index + 1
            return 0 if tail_lines else end
    except FileNotFoundError:
        return 0
