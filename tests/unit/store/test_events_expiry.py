"""Events live an hour and are bounded in number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kserve_local.api.meta import timestamp
from kserve_local.store import events

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def event(name: str, age: float) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "lastTimestamp": timestamp(NOW - timedelta(seconds=age)),
    }


def names(found: list[dict[str, Any]]) -> list[str]:
    return [e["metadata"]["name"] for e in found]


def test_events_expire_an_hour_after_their_last_repeat() -> None:
    found = events.expired([event("old", 3601), event("fresh", 3599)], now=NOW)
    assert names(found) == ["old"]


def test_the_oldest_above_the_bound_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 2)
    found = events.expired([event("c", 1), event("a", 30), event("b", 20)], now=NOW)
    assert names(found) == ["a"]
