"""`rollout-duration` with virtual time: traffic.md 4.5's table, and what comes in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.controllers import gradual_rollout as g
from kserve_local.controllers.gradual_rollout import Rollout, Share

START = 1_000_000.0


def shares(rollout: Rollout) -> list[tuple[str, int]]:
    return [(s.revision, s.percent) for s in rollout.shares]


def progress(percent: int, ready: float, duration: float) -> list[tuple[float, int]]:
    """Return (seconds since the start, share of the new Revision) at each change.

    Args:
        ready: Seconds until requests follow the first percent.
    """
    rollout = g.follow(g.settled(percent, "old"), percent, "new", now=START)
    seen = [(0.0, rollout.shares[-1].percent)]
    rollout = g.observe_ready(rollout, duration, now=START + ready)
    while not rollout.done:
        now = rollout.next_step
        rollout = g.follow(rollout, percent, "new", now=now)
        seen.append((round(now - START, 3), rollout.shares[-1].percent))
    assert shares(rollout) == [("new", percent)]
    return seen


def test_behaviour_21_a_minute_after_a_second() -> None:
    seen = dict(progress(100, 1, 60))
    assert (seen[0], seen[2], seen[3], seen[50], seen[51]) == (1, 3, 5, 99, 100)
    assert list(seen) == [0, *range(2, 52)]


@pytest.mark.parametrize(
    ("percent", "ready", "duration", "expected"),
    [
        (100, 2, 60, [(4, 4), (6, 7), (66, 97), (68, 100)]),
        (100, 1, 120, [(2.202, 2), (120, 100)]),
        (100, 5, 60, [(10, 10), (15, 19), (55, 91), (60, 100)]),
        (100, 20, 60, [(40, 51), (60, 100)]),
        (100, 70, 60, [(71, 100)]),
        (20, 1, 60, [(4.105, 2), (60, 20)]),
    ],
)
def test_the_table_of_the_sheet(
    percent: int, ready: float, duration: float, expected: list[tuple[float, int]]
) -> None:
    seen = progress(percent, ready, duration)
    assert seen[0] == (0, 1)
    assert [entry for entry in seen if entry in expected] == expected
    assert seen[-1] == expected[-1]


@pytest.mark.parametrize("percent", [0, 1])
def test_a_percent_or_less_moves_at_once(percent: int) -> None:
    moved = g.follow(g.settled(percent, "old"), percent, "new", now=START)
    assert shares(moved) == [("new", percent)]


def test_without_traffic_before_there_is_nothing_to_move() -> None:
    assert shares(g.follow(None, 100, "new", now=START)) == [("new", 100)]


def test_nothing_moves_before_its_time() -> None:
    begun = g.follow(g.settled(100, "old"), 100, "new", now=START)
    # Not even by a reconcile that comes before the network is ready.
    assert g.follow(begun, 100, "new", now=START + 30) == begun
    ready = g.observe_ready(begun, 60, now=START + 1)
    assert g.observe_ready(ready, 60, now=START + 9) == ready
    assert g.follow(ready, 100, "new", now=START + 1.9) == ready
    assert shares(g.follow(ready, 100, "new", now=START + 2)) == [("old", 97), ("new", 3)]


def running(*pairs: tuple[str, int], size: int = 10) -> Rollout:
    found = tuple(Share(*pair) for pair in pairs)
    total = sum(s.percent for s in found)
    return Rollout(total, found, started=START, next_step=START + 5, interval=5, size=size)


def test_a_third_revision_starts_from_the_newest_of_the_others() -> None:
    """By design the newest is drained first; a rollout that was under way stops."""
    third = g.follow(running(("a", 60), ("b", 40)), 100, "c", now=START + 3)
    assert shares(third) == [("a", 60), ("b", 39), ("c", 1)]
    assert (third.started, third.size) == (START + 3, 0)
    third = g.follow(running(("a", 99), ("b", 1)), 100, "c", now=START + 3)
    assert shares(third) == [("a", 99), ("c", 1)]


def test_a_step_takes_from_the_newest_old_one_first() -> None:
    at = START + 5
    seen = []
    rollout = running(("a", 60), ("b", 15), ("c", 25))
    while not rollout.done:
        rollout = g.follow(rollout, 100, "c", now=at)
        seen.append(shares(rollout))
        at += 5
    assert seen[:3] == [
        [("a", 60), ("b", 5), ("c", 35)],
        [("a", 55), ("c", 45)],
        [("a", 45), ("c", 55)],
    ]
    assert seen[-1] == [("c", 100)]
    assert rollout == g.settled(100, "c")


def test_another_percent_while_it_runs() -> None:
    before = running(("a", 60), ("b", 15), ("c", 25))
    grown = g.follow(g.follow(running(("a", 20), ("b", 10)), 50, "b", now=START), 50, "b", now=0)
    assert shares(grown) == [("a", 20), ("b", 30)]
    # The oldest loses first.
    assert shares(g.follow(before, 50, "c", now=START)) == [("a", 10), ("b", 15), ("c", 25)]
    assert shares(g.follow(before, 30, "c", now=START)) == [("b", 5), ("c", 25)]
    assert shares(g.follow(before, 20, "c", now=START)) == [("c", 20)]
    # A step larger than what is left ends at the target's percent.
    assert shares(g.follow(running(("a", 5), ("b", 10)), 15, "b", now=START + 5)) == [("b", 15)]


def test_a_canary_begins_with_a_percent_too() -> None:
    """100 % for the old one as the latest becomes 10 % for the new one, 90 % pinned elsewhere."""
    begun = g.follow(g.settled(100, "old"), 10, "new", now=START)
    assert shares(begun) == [("old", 9), ("new", 1)]


def test_a_deleted_revision_leaves_its_share_to_the_next() -> None:
    assert g.without(running(("a", 60), ("b", 15), ("c", 25)), {"a", "c"}) == running(
        ("a", 60), ("c", 40)
    )
    assert g.without(running(("a", 60), ("c", 40)), {"a"}) == running(("a", 100))
    assert g.without(running(("a", 60), ("c", 40)), {"x"}) is None
    assert g.without(None, {"x"}) is None


def test_the_state_survives_as_text() -> None:
    states = {"": running(("a", 60), ("b", 40)), "latest": g.settled(100, "b")}
    assert g.from_text(g.to_text(states)) == {"": states[""]}
    assert g.to_text({"": g.settled(100, "b")}) == ""
    for broken in ("", "[]", "{", '{"": {}}', g.to_text(states).replace("60", "61")):
        assert g.from_text(broken) == {}


def test_what_the_status_says_is_the_state_before() -> None:
    traffic = [
        {"latestRevision": True, "revisionName": "a", "percent": 10},
        {"latestRevision": False, "revisionName": "a", "percent": 90, "tag": "prev"},
    ]
    assert g.from_traffic(traffic) == {"": g.settled(10, "a")}
    assert g.from_traffic([]) == {}
    # A rollout whose state is lost ends at once, as on a cluster.
    split = [{"latestRevision": True, "revisionName": r, "percent": 50} for r in ("a", "b")]
    assert g.from_traffic(split) == {}


@pytest.mark.parametrize(
    ("annotations", "seconds"),
    [
        ({}, 0),
        ({"rollout-duration": "1m30s"}, 90),
        ({"rolloutDuration": "20s"}, 20),
        ({"rollout-duration": "0s", "rolloutDuration": "9s"}, 0),
        ({"rollout-duration": "soon"}, 0),
    ],
)
def test_the_duration_is_read_from_either_spelling(
    annotations: dict[str, str], seconds: float
) -> None:
    given = {f"serving.knative.dev/{key}": text for key, text in annotations.items()}
    assert g.duration_of(given) == seconds


@given(
    percents=st.lists(st.integers(0, 100), min_size=1, max_size=8),
    ready=st.floats(0, 90),
    duration=st.integers(1, 120),
    data=st.data(),
)
def test_shares_always_add_up_and_every_rollout_ends(
    percents: list[int], ready: float, duration: int, data: st.DataObject
) -> None:
    """Whatever changes in between: Revisions, percents, and when a reconcile comes by."""
    now, newest = START, "r0"
    rollout = g.follow(None, percents[0], newest, now=now)
    for n, percent in enumerate(percents):
        if data.draw(st.booleans()):
            newest = f"r{n + 1}"
        rollout = g.follow(rollout, percent, newest, now=now)
        now += ready
        rollout = g.observe_ready(rollout, duration, now=now)
        assert sum(s.percent for s in rollout.shares) == percent == rollout.percent
        assert rollout.shares[-1].revision == newest
        assert g.from_text(g.to_text({"": rollout})) == ({} if rollout.done else {"": rollout})
    for _ in range(101):
        if rollout.done:
            break
        now = rollout.next_step
        rollout = g.follow(rollout, percents[-1], newest, now=now)
    assert shares(rollout) == [(newest, percents[-1])]
