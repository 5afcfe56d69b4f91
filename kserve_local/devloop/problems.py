"""What a save broke: kept until it is mended, for `status`, the log and whoever asks.

Each problem has a subject (a file, a folder of code, the project's YAML); a new one of the same
subject takes the place of the old one, and mending clears it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is broken.

    Args:
        file: Relative to the project where it lies in it; empty: no single file.
        line: From 1; 0: not known.
        message: The error, in one line or more.
        services: (namespace, name) of those that go on as they were because of it.
        since: Unix time.
    """

    file: str
    line: int
    message: str
    services: tuple[tuple[str, str], ...] = ()
    since: float = field(default_factory=time.time, compare=False)

    def place(self) -> str:
        """Return `model.py:12`, as far as known."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def told(self) -> str:
        """Return `model.py:12: SyntaxError: ...`."""
        return f"{self.place()}: {self.message}" if self.file else self.message

    def shown(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "file": self.file,
            "line": self.line,
            "message": self.message,
            "services": [{"namespace": n, "name": s} for n, s in self.services],
            "since": self.since,
        }


class Problems:
    """All that is broken now, by subject."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Problem, ...]] = {}

    def set(self, subject: str, problems: Collection[Problem]) -> Sequence[Problem]:
        """Say what is broken of a subject, nothing if nothing is; return those that are new."""
        before = self._of.pop(subject, ())
        if problems:
            self._of[subject] = tuple(problems)
        fresh = [p for p in problems if p not in before]
        for problem in fresh:
            logger.warning("%s", problem.told())
        if before and not problems:
            logger.info("mended: %s", before[0].told())
        return fresh

    def all(self) -> list[Problem]:
        """Return them, the oldest first."""
        return sorted((p for some in self._of.values() for p in some), key=lambda p: p.since)

    def of(self, namespace: str, name: str) -> list[Problem]:
        """Return those that keep one service as it was."""
        return [p for p in self.all() if (namespace, name) in p.services]
