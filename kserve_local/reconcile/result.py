"""What a reconcile says about its next run. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """How a reconcile ended.

    Args:
        requeue_after: Look again after so many seconds; None: only when something changes.
        retry: Look again with the key's exponential backoff; for failures that were already told
            to the user, where a traceback in the log would be noise.
    """

    requeue_after: float | None = None
    retry: bool = False


DONE = Result()
RETRY = Result(retry=True)
