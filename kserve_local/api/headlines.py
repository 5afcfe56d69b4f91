"""The line of a failure that says most. Pure."""

from __future__ import annotations

import re

_LOGGED = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d+ \d+ [\w.]+ (?:WARNING|ERROR|CRITICAL) \[[^\]]*\] "
)
"""What the servers' log format (KServe's) puts before a message."""


NEXT_STEP = "Next step: "
"""What a failure's last line begins with, where we know what helps."""


def headline(message: str) -> str:
    """Return the line of a failure that says most: the last one before the next step.

    That is where a traceback names its exception and an argument parser its complaint.
    """
    lines = [_LOGGED.sub("", line.strip()) for line in message.splitlines() if line.strip()]
    known = [line for line in lines if not line.startswith(NEXT_STEP)]
    return (known or lines or [""])[-1]
