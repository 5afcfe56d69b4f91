"""Balancer, breaker, activator, figures: decisions without I/O or clock."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from kserve_local.gateway.activator import Verdict, judge, poke_due
from kserve_local.gateway.balancer import Balancer
from kserve_local.gateway.breaker import Breaker
from kserve_local.gateway.metrics import BOUNDS, TargetFigures


@dataclass
class Place:
    name: str
    in_flight: int = 0


def places(*busy: int) -> list[Place]:
    return [Place(str(n), b) for n, b in enumerate(busy)]


def test_without_a_limit_the_busier_of_two_is_never_picked() -> None:
    balancer = Balancer(0, random.Random(1))
    found = places(0, 5)
    assert {p.name for p in (balancer.pick(found) for _ in range(100)) if p} == {"0"}


def test_without_a_limit_all_replicas_take_part() -> None:
    balancer = Balancer(0, random.Random(1))
    found = places(0, 0, 0)
    assert {p.name for p in (balancer.pick(found) for _ in range(100)) if p} == {"0", "1", "2"}


@pytest.mark.parametrize(("limit", "expected"), [(1, "000000"), (3, "000000"), (4, "012012")])
def test_the_policy_follows_the_concurrency_limit(limit: int, expected: str) -> None:
    """Sequential requests: packed on the first replica, from 4 on spread in turn."""
    balancer = Balancer(limit, random.Random(1))
    found = places(0, 0, 0)
    picked = [balancer.pick(found) for _ in range(6)]
    assert "".join(p.name for p in picked if p) == expected


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_full_replica_is_not_picked(limit: int) -> None:
    balancer = Balancer(limit, random.Random(1))
    picked = balancer.pick(places(limit, limit - 1, limit))
    assert picked is not None
    assert picked.name == "1"
    assert balancer.pick(places(limit, limit)) is None
    assert balancer.pick([]) is None


def test_nobody_is_picked_among_none() -> None:
    assert Balancer(0, random.Random(1)).pick([]) is None


def test_waiting_is_first_come_first_served_and_bounded() -> None:
    breaker: Breaker[str] = Breaker(held=2, queue_depth=3)
    assert breaker.offer("a", replicas=False)
    assert breaker.offer("b", replicas=False)
    assert not breaker.offer("c", replicas=False)
    assert breaker.offer("c", replicas=True)
    assert not breaker.offer("d", replicas=True)
    assert breaker.withdraw("b")
    assert not breaker.withdraw("b")
    assert list(breaker) == ["a", "c"]
    breaker.give_back("z")
    assert breaker.first() == "z"


@pytest.mark.parametrize(
    ("state", "listed", "verdict"),
    [
        ("zero", 0, Verdict.WAKE),
        ("starting", 0, Verdict.WAKE),
        ("ready", 0, Verdict.WAKE),
        ("failed", 0, Verdict.FAIL),
        ("ready", 1, Verdict.HOLD),
        ("failed", 1, Verdict.HOLD),
    ],
)
def test_what_becomes_of_a_request_without_a_replica(
    state: str, listed: int, verdict: Verdict
) -> None:
    assert judge(state, listed=listed) is verdict


def test_pokes_come_at_once_and_then_once_a_second() -> None:
    assert poke_due(0.0, 100.0)
    assert not poke_due(100.0, 100.5)
    assert poke_due(100.0, 101.0)


def test_concurrency_is_weighted_by_time() -> None:
    """Two 500 ms requests in one second are 1.0; one of two seconds is 1.0, then 1.0."""
    figures = TargetFigures(10.0)
    figures.requests = 2
    figures.done(10.0, 10.5, 200)
    figures.done(10.4, 10.9, 500)
    stat = figures.close_period("a", 11.0, [], held=0)
    assert stat is not None
    assert stat.average_concurrency == pytest.approx(1.0)
    assert (stat.requests, stat.errors) == (2, 1)
    assert (stat.p50, stat.p95) == (pytest.approx(0.5), pytest.approx(0.5))

    stat = figures.close_period("a", 12.0, [11.0], held=1)
    assert stat is not None
    assert (stat.average_concurrency, stat.held) == (pytest.approx(1.0), 1)
    figures.done(11.0, 13.0, 200)
    stat = figures.close_period("a", 13.0, [], held=0)
    assert stat is not None
    assert stat.average_concurrency == pytest.approx(1.0)
    assert stat.p95 == pytest.approx(2.0)


def test_silence_is_reported_once() -> None:
    """As upstream: one zero for the first silent second, then nothing."""
    figures = TargetFigures(0.0)
    assert figures.close_period("a", 1.0, [], held=0) is None
    figures.requests = 1
    figures.done(1.0, 1.1, 200)
    assert figures.close_period("a", 2.0, [], held=0) is not None
    silent = figures.close_period("a", 3.0, [], held=0)
    assert silent is not None
    assert (silent.average_concurrency, silent.requests) == (0.0, 0)
    assert figures.close_period("a", 4.0, [], held=0) is None


def test_a_scrape_between_two_periods_loses_nothing() -> None:
    figures = TargetFigures(0.0)
    figures.done(0.0, 0.004, 200)
    figures.fold()
    figures.done(0.0, 0.3, 200)
    figures.fold()
    stat = figures.close_period("a", 1.0, [], held=0)
    assert stat is not None
    assert stat.p95 == pytest.approx(0.3)
    assert figures.count == 2
    assert figures.buckets[0] == 1
    assert figures.buckets[BOUNDS.index(0.5)] == 2
    assert figures.codes == {200: 2}
