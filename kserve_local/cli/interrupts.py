"""Ctrl-C, heard only where a command can act on it.

While a supervisor is being started or stopped, an exception between any two lines could leave a
child nobody knows of or a folder nobody removes. So Ctrl-C is held back there, and heard in the
places that wait.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

Hear = Callable[[], AbstractContextManager[None]]


@contextmanager
def held_back() -> Iterator[Hear]:
    """Hold Ctrl-C back while the block is open.

    Yields:
        `hear`: `with hear():` is a place where Ctrl-C may come, one that was held back too.

    Raises:
        KeyboardInterrupt: In such a place, or at the end of the block.
    """
    early: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        early.append(number)

    def tell() -> None:
        if early:
            early.clear()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)

    @contextmanager
    def hear() -> Iterator[None]:
        try:
            signal.signal(signal.SIGINT, before)
            tell()
            yield
        finally:
            signal.signal(signal.SIGINT, note)

    try:
        yield hear
    finally:
        signal.signal(signal.SIGINT, before)
    tell()
