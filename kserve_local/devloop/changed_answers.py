"""What new code or a new model answers otherwise than before: recent calls, asked again.

Takes the calls that the gateway kept from before the save, sends them to a Pod that serves the new
state, past the gateway, and tells which answers changed. Off the request path: nothing waits.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection

from kserve_local.client.answers import Difference
from kserve_local.client.client import Client
from kserve_local.client.recorded import (
    Recorded,
    Which,
    changes,
    distinct,
    incomparable,
    recorded,
    replay_at,
)
from kserve_local.devloop.activity import Activity
from kserve_local.devloop.workloads import Workloads
from kserve_local.errors import KServeLocalError

logger = logging.getLogger(__name__)

LAST = 20
"""Distinct calls that are asked again."""
_SHOWN_CALLS = 5
_SHOWN_FIELDS = 4
_LONGEST = 60


class ChangedAnswers:
    """Asks again after saves. A save that comes meanwhile is looked at after the one before."""

    def __init__(self, client: Client, workloads: Workloads, activity: Activity) -> None:
        self._client = client
        self._workloads = workloads
        self._activity = activity
        self._turn = asyncio.Lock()

    def after(self, services: Collection[tuple[str, str]], saved_at: float) -> None:
        """Compare in the background what these services answer.

        Args:
            saved_at: Unix time; later answers may be the new state's already.
        """
        for namespace, service in services:
            self._activity.follow(
                self._compare(namespace, service, saved_at), name=f"answers-of-{service}"
            )

    async def _compare(self, namespace: str, service: str, saved_at: float) -> None:
        async with self._turn:
            address = self._workloads.address(namespace, service)
            if not address:
                return
            try:
                kept = await recorded(self._client, Which(namespace, service), bodies=True)
            except KServeLocalError as error:
                logger.info("%s/%s: no calls to ask again: %s", namespace, service, error)
                return
            calls = distinct([r for r in kept if r.time < saved_at and not incomparable(r)], LAST)
            if not calls:
                return
            answers = await replay_at(calls, address)
            found = [
                (call, differences)
                for call, answer in zip(calls, answers, strict=True)
                if (differences := changes(call, answer))
            ]
        if not found:
            return
        text = (
            f"{len(found)} of the last {len(calls)} different calls "
            f"{'is' if len(found) == 1 else 'are'} answered otherwise now"
        )
        details = [line for call, some in found[:_SHOWN_CALLS] for line in _lines(call, some)]
        self._activity.add("answers", text, services=[(namespace, service)], details=details)
        for line in details:
            logger.info("%s", line)
        await self._workloads.tell(namespace, service, "Normal", "AnswersChanged", text)


def _lines(call: Recorded, differences: list[Difference]) -> list[str]:
    """Return what changed of one answer, a line each. Pure."""
    lines = [f"{call.method} {call.path}  {call.id[:8]}"]
    for difference in differences[:_SHOWN_FIELDS]:
        delta = "" if difference.delta is None else f"  ({difference.delta:+g})"
        path = difference.path or "answer"
        lines.append(f"  {path}: {_short(difference.before)} -> {_short(difference.after)}{delta}")
    if len(differences) > _SHOWN_FIELDS:
        lines.append(f"  and {len(differences) - _SHOWN_FIELDS} more")
    return lines


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
