"""The memory budget: who may start, who goes for it; never above, whatever is called when."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.autoscaler.budget import Holder, decide, overflow, told

MIB = 2**20


def test_there_is_room() -> None:
    assert decide(100, 300, [Holder("d/a", 200)], service="d/b").answer == "start"


def test_the_least_recently_used_goes() -> None:
    holders = [Holder("d/a", 100, last_use=2), Holder("d/b", 100, last_use=1)]
    verdict = decide(100, 200, holders, service="d/c")
    assert (verdict.answer, verdict.evict) == ("wait", ("d/b",))


@pytest.mark.parametrize("why", [{"stays": "pinned"}, {"busy": True}, {"starting": True}])
def test_who_may_not_go_stays(why: dict[str, Any]) -> None:
    older = Holder("d/a", 100, last_use=1, **why)
    verdict = decide(100, 200, [older, Holder("d/b", 100, last_use=2)], service="d/c")
    assert verdict.evict == ("d/b",)


def test_nobody_goes_in_vain() -> None:
    holders = [Holder("d/a", 100, busy=True), Holder("d/b", 50)]
    verdict = decide(100, 160, holders, service="d/c")
    assert (verdict.answer, verdict.evict) == ("wait", ())


def test_who_is_not_needed_stays_after_all() -> None:
    holders = [Holder("d/small", 20, last_use=1), Holder("d/large", 150, last_use=2)]
    assert decide(140, 170, holders, service="d/c").evict == ("d/large",)


def test_what_is_on_its_way_out_is_waited_for() -> None:
    holders = [Holder("d/a", 100, last_use=1), Holder("d/b", 100, last_use=2, leaving=100)]
    verdict = decide(100, 200, holders, service="d/c")
    assert (verdict.answer, verdict.evict) == ("wait", ())
    assert "waiting for d/b to end" in told(100, 200, holders, verdict)


def test_what_is_promised_to_others_is_not_free() -> None:
    assert decide(100, 200, [], service="d/c", promised=150).answer == "wait"


def test_an_update_does_not_take_its_own_service_down() -> None:
    assert decide(100, 150, [Holder("d/a", 100)], service="d/a").evict == ()


def test_what_can_never_fit_is_said_at_once() -> None:
    verdict = decide(300 * MIB, 200 * MIB, [], service="d/a")
    assert verdict.answer == "never"
    text = told(300 * MIB, 200 * MIB, [], verdict)
    assert "300 MiB, which is more than resourcesBudget.memory (200 MiB)" in text
    assert "\nNext step: raise resourcesBudget.memory" in text


def test_who_holds_the_memory_is_named() -> None:
    holders = [Holder("d/a", 150 * MIB, stays="pinned"), Holder("d/b", 40 * MIB, busy=True)]
    verdict = decide(50 * MIB, 200 * MIB, holders, service="d/c")
    text = told(50 * MIB, 200 * MIB, holders, verdict)
    assert "needs 50 MiB and 10 MiB of" in text
    assert "Held by d/a 150 MiB (pinned), d/b 40 MiB (has requests)." in text


def test_growth_beyond_the_budget_sends_away_who_may_go() -> None:
    holders = [
        Holder("d/a", 150, last_use=1),
        Holder("d/b", 100, last_use=2),
        Holder("d/c", 90, last_use=0, busy=True),
    ]
    assert overflow(400, holders) == ()
    assert overflow(300, holders) == ("d/a",)
    assert overflow(50, holders) == ("d/a", "d/b")


@dataclass
class _Service:
    name: str
    memory: int
    pinned: bool
    state: str = "zero"  # zero, waiting, starting, ready, leaving
    last_use: float = 0.0
    in_flight: int = 0
    held: int = 0
    answered: int = 0
    promise: int = 0


@dataclass
class _World:
    """A machine in virtual time: calls, starts and ends as a real one has them."""

    budget: int
    services: list[_Service]
    now: float = 0.0
    queue: list[tuple[float, int, str, _Service]] = field(default_factory=list)
    number: int = 0
    most: int = 0

    def at(self, delay: float, what: str, service: _Service) -> None:
        self.number += 1
        heapq.heappush(self.queue, (self.now + delay, self.number, what, service))

    def holders(self) -> list[Holder]:
        return [
            Holder(
                s.name,
                s.memory,
                s.last_use,
                "pinned" if s.pinned else "",
                bool(s.in_flight),
                s.state == "starting",
                s.memory if s.state == "leaving" else 0,
            )
            for s in self.services
            if s.state in ("starting", "ready", "leaving")
        ]

    def look(self) -> None:
        """Decide about all who wait, in their order."""
        waiting = sorted(
            (s for s in self.services if s.state == "waiting"), key=lambda s: s.last_use
        )
        for s in waiting:
            promised = sum(o.promise for o in waiting if o is not s and o.state == "waiting")
            verdict = decide(
                s.memory, self.budget, self.holders(), service=s.name, promised=promised
            )
            if verdict.answer == "start":
                s.state, s.promise = "starting", 0
                self.at(0.5, "ready", s)
            for gone in verdict.evict:
                s.promise = s.memory
                other = next(o for o in self.services if o.name == gone)
                other.state = "leaving"
                self.at(0.3, "gone", other)
        used = sum(h.memory for h in self.holders())
        self.most = max(self.most, used)
        assert used <= self.budget

    def step(self) -> None:
        self.now, _, what, s = heapq.heappop(self.queue)
        if what == "call":
            s.last_use = self.now if s.state != "waiting" else s.last_use
            s.held += 1
            if s.state == "zero":
                s.state = "waiting"
        elif what == "ready":
            s.state = "ready"
        elif what == "done":
            s.in_flight -= 1
            s.answered += 1
        elif what == "gone":
            s.state = "waiting" if s.held else "zero"
        if s.state == "ready":
            for _ in range(s.held):
                s.in_flight += 1
                self.at(random.Random(self.number).uniform(0.01, 2), "done", s)
            s.held = 0
        self.look()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(10, 100), min_size=2, max_size=8),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 7)), max_size=60),
    st.integers(0, 1),
)
def test_random_calls_never_pass_the_budget_and_all_are_answered(
    sizes: list[int], calls: list[tuple[float, int]], pinned: int
) -> None:
    names = [_Service(f"d/{n}", size, n < pinned) for n, size in enumerate(sizes)]
    budget = max(sizes) + (sizes[0] if pinned else 0)
    world = _World(budget, names)
    for when, which in calls:
        world.at(when, "call", names[which % len(names)])
    while world.queue:
        world.step()
    assert sum(s.answered for s in names) == len(calls)
    assert all(s.state in ("zero", "ready") for s in names)
