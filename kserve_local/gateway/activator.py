"""What becomes of a request whose target has nobody to take it now. Pure: no I/O, no clock.

As upstream's activator: a revision at zero or on its way holds its requests and wakes; unlike it,
a revision that cannot come without a change (`failed`) answers at once with the reason instead of
after the timeout.

Source: knative/serving pkg/activator/handler, traffic.md sections 2.2, 2.5.
"""

from __future__ import annotations

from enum import Enum

# A replica that the table lists but that refuses connections is believed for so long (seconds):
# the node agent needs a moment to see that it died, or it has not begun to listen yet.
REFUSED_LIMIT = 30.0


class Verdict(Enum):
    """What to do with the request."""

    HOLD = "hold"
    WAKE = "wake"
    FAIL = "fail"


def judge(state: str, *, listed: int) -> Verdict:
    """Return what to do with a request that no replica can take now.

    Args:
        state: `Target.state`.
        listed: Endpoints in the table; they may be busy or refuse connections.
    """
    if listed:
        return Verdict.HOLD
    if state == "failed":
        return Verdict.FAIL
    return Verdict.WAKE


def poke_due(last: float, now: float, *, period: float = 1.0) -> bool:
    """Say whether to poke again: at once for the first request, then once a `period` at most."""
    return now - last >= period
