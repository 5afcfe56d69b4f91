"""Calls within a Pod, which do not pass the gateway: what their callers tell of them.

One datagram of JSON a call, on a Unix socket that only this user may enter (`podlauncher.calls` has
the format). Whatever belongs to no trace that is being recorded is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import orjson

from kserve_local.gateway.trace import Traces

_LARGEST = 8 * 1024
_MOST = 1000
"""Datagrams that are read at once: others' requests go on."""


class Calls:
    """The socket. Open it in a running loop.

    Args:
        path: Where; what lies there is replaced.
        traces: Told of each call.
    """

    def __init__(self, path: str, traces: Traces) -> None:
        self._path = path
        self._traces = traces
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(path)
        os.chmod(path, 0o600)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self.read)
        traces.before = self.read

    def read(self) -> None:
        """Take what has come."""
        for _ in range(_MOST):
            try:
                data = self._socket.recv(_LARGEST)
            except OSError:
                return
            if self._traces.active:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._take(orjson.loads(data))

    def _take(self, told: dict[str, Any]) -> None:
        status = told["status"]
        self._traces.within(
            pod=str(told["pod"]),
            request_id=str(told["id"]).encode(),
            began=float(told["began"]),
            took=float(told["took"]),
            status=status if isinstance(status, int) else str(status),
            error=str(told["error"]),
            target=str(told["target"]),
            protocol=str(told["protocol"]),
            call=str(told["call"]),
        )

    def close(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(OSError):
            Path(self._path).unlink()
