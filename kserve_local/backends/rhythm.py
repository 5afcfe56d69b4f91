"""When what is looked at again and again is looked at: together, so that many wake the loop once.

A process that wakes up finds cold caches: with a hundred replicas, waking for each costs several
times what the looks themselves do.
"""

from __future__ import annotations

_STEP = 0.25


def together(wait: float, now: float) -> float:
    """Return seconds to wait from `now` (the loop's time) instead of `wait`. Pure.

    They end at a multiple of a step, an eighth of a second before or after at most; short waits
    stay as they are.
    """
    if wait < 2 * _STEP:
        return wait
    return round((now + wait) / _STEP) * _STEP - now
