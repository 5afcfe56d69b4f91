"""Which Revisions without traffic are deleted: Knative's four limits, and what always stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kserve_local.api.meta import Object, name_of, timestamp
from kserve_local.controllers import knative_names as names
from kserve_local.controllers.garbage import Retention, retention, surplus_revisions

NOW = datetime(2026, 1, 10, tzinfo=UTC)
HOUR = 3600.0


def idle(number: int, *, made: float, lost: float | None = None) -> Object:
    """Return a Revision made and out of traffic since so many hours."""
    annotations = {}
    if lost is not None:
        annotations[names.ROUTING_STATE_MODIFIED] = timestamp(NOW - timedelta(hours=lost))
    return {
        "metadata": {
            "name": f"r{number}",
            "labels": {names.CONFIGURATION_GENERATION: str(number)},
            "annotations": annotations,
            "creationTimestamp": timestamp(NOW - timedelta(hours=made)),
        }
    }


def gone(revisions: list[Object], latest: str = "", **rules: float | None) -> list[str]:
    asked = Retention(**{"since_create": None, "since_active": None, "least": 0} | rules)  # type: ignore[arg-type]
    return [name_of(r) for r in surplus_revisions(revisions, latest, retention=asked, now=NOW)]


def test_a_revision_goes_when_both_its_ages_are_over() -> None:
    revisions = [
        idle(1, made=100, lost=20),
        idle(2, made=100, lost=10),
        idle(3, made=40, lost=20),
        idle(4, made=100),
    ]
    assert gone(revisions, since_create=48 * HOUR, since_active=15 * HOUR) == ["r4", "r1"]
    assert gone(revisions, since_create=48 * HOUR) == ["r4", "r1", "r2"]
    assert gone(revisions, since_active=15 * HOUR) == ["r4", "r1", "r3"]


def test_so_many_stay_whatever_their_age() -> None:
    revisions = [idle(n, made=1000, lost=1000 - n) for n in range(1, 7)]
    assert gone(revisions, since_create=HOUR, least=4) == ["r1", "r2"]
    assert gone(revisions, since_create=HOUR, least=6) == []


def test_no_more_than_so_many_stay_however_young() -> None:
    revisions = [idle(n, made=1, lost=1) for n in range(1, 7)]
    assert gone(revisions, most=4) == ["r1", "r2"]
    # What its age takes counts.
    assert gone([*revisions, idle(7, made=99, lost=99)], since_create=9 * HOUR, most=5) == [
        "r7",
        "r1",
    ]


def test_a_day_of_edits_stays() -> None:
    revisions = [idle(n, made=8, lost=8) for n in range(300)]
    asked = Retention()
    assert surplus_revisions(revisions, "", retention=asked, now=NOW) == []
    later = surplus_revisions(revisions, "", retention=asked, now=NOW + timedelta(hours=40))
    assert len(later) == 280


def test_what_always_stays() -> None:
    revisions = [idle(n, made=1000) for n in (1, 2, 3)]
    revisions[1]["metadata"]["annotations"][names.NO_GC] = "True"
    revisions[2]["metadata"]["deletionTimestamp"] = timestamp(NOW)
    assert gone(revisions, latest="r1", since_create=HOUR, most=0) == []


def test_the_limits_of_config_gc() -> None:
    data = {
        "_example": "ignored",
        "retain-since-create-time": "1h30m",
        "retain-since-last-active-time": "Disabled",
        "min-non-active-revisions": "2",
        "max-non-active-revisions": "3",
    }
    assert retention({"data": data}) == Retention(5400.0, None, 2, 3)
    assert retention({"data": {"max-non-active-revisions": "disabled"}}).most is None
    assert retention(None) == retention({}) == Retention()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("retain-since-create-time", "2 days"),
        ("retain-since-last-active-time", "-1h"),
        ("min-non-active-revisions", "-1"),
        ("min-non-active-revisions", "2000"),
        ("max-non-active-revisions", "many"),
    ],
)
def test_limits_that_cannot_be_read_are_knatives(
    key: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert retention({"data": {key: text, "max-non-active-revisions": "30"} | {key: text}}) == (
        Retention()
    )
    assert key in caplog.text
