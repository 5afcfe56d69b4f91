"""Logging set-up for our own processes: one line a record, context as key=value after the message.

Context (`with context(pod="iris-abc")`) rides on a ContextVar, so ids need not be written into
messages.
"""

from __future__ import annotations

import contextvars
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

_NO_IDS: Mapping[str, str] = MappingProxyType({})
_context: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "log_context", default=_NO_IDS
)


@contextmanager
def context(**ids: str) -> Iterator[None]:
    """Add ids to every record logged in the block."""
    token = _context.set({**_context.get(), **ids})
    try:
        yield
    finally:
        _context.reset(token)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        ids = _context.get()
        return f"{line} {' '.join(f'{k}={v}' for k, v in ids.items())}" if ids else line


def configure(level: str = "INFO") -> None:
    """Send records to stderr in one format. Call once, first thing in a process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # What it saw is told by who takes it over.
    logging.getLogger("watchfiles").setLevel("WARNING")
