"""Who may start, and who has to go for it, so that all replicas together stay within a budget of
memory. Pure: no clock, no I/O.

A start is decided on before anything of it runs. Each Pod counts with what it was measured to
hold, and with what it is expected to hold while it starts; one that was told to go counts until it
has gone. So the sum never passes the budget as long as no Pod holds more than was expected of it.

Least recently used services go first. One that stays (pinned), is busy or starting never does, and
nobody goes in vain: only if it makes enough room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DEFAULT_NEED = 512 * 2**20
"""Bytes expected of a Pod of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One service that holds memory.

    Args:
        service: `namespace/name`.
        memory: Bytes its Pods hold or may soon hold, those that end included.
        last_use: When it was called last, or started, on any clock.
        stays: Why it is never brought to zero: `pinned`, ...; empty: it may be.
        busy: It has requests.
        starting: One of its Pods is not ready yet.
        leaving: Bytes of `memory` of Pods that end.
    """

    service: str
    memory: int
    last_use: float = 0.0
    stays: str = ""
    busy: bool = False
    starting: bool = False
    leaving: int = 0

    @property
    def may_go(self) -> bool:
        """Whether it can be brought to zero now and would free something."""
        return not (self.stays or self.busy or self.starting) and self.memory > self.leaving


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a start.

    Args:
        answer: `start`: now; `wait`: until there is room; `never`: it is larger than the budget.
        evict: Services to scale to zero for it, in this order.
    """

    answer: Literal["start", "wait", "never"]
    evict: tuple[str, ...] = ()


def decide(
    need: int, budget: int, holders: Sequence[Holder], *, service: str, promised: int = 0
) -> Verdict:
    """Decide about the start of a Pod.

    Args:
        need: Bytes it is expected to hold.
        service: Whose Pod it is; its own other Pods do not go for it.
        promised: Bytes that are being freed for other starts, which wait longer.
    """
    if need > budget:
        return Verdict("never")
    missing = need + promised + sum(h.memory for h in holders) - budget
    if missing <= 0:
        return Verdict("start")
    missing -= sum(h.leaving for h in holders)
    candidates = [h for h in holders if h.may_go and h.service != service]
    return Verdict("wait", _evict(missing, candidates) or ())


def overflow(budget: int, holders: Sequence[Holder]) -> tuple[str, ...]:
    """Return whom to scale to zero because the Pods have grown beyond the budget, if it helps.

    As much as can go does, even if it is not enough.
    """
    missing = sum(h.memory - h.leaving for h in holders) - budget
    candidates = [h for h in holders if h.may_go]
    found = _evict(missing, candidates)
    if found is None:
        return tuple(h.service for h in sorted(candidates, key=_order))
    return found


def _order(holder: Holder) -> tuple[float, str]:
    return holder.last_use, holder.service


def _evict(missing: int, candidates: Sequence[Holder]) -> tuple[str, ...] | None:
    """Return the least recently used services that free `missing` bytes; None: there are none."""
    chosen: list[Holder] = []
    for holder in sorted(candidates, key=_order):
        if missing <= 0:
            break
        chosen.append(holder)
        missing -= holder.memory - holder.leaving
    if missing > 0:
        return None
    for holder in reversed(chosen[:-1]):
        # A large one that went last may have made others superfluous.
        frees = holder.memory - holder.leaving
        if missing + frees <= 0:
            chosen.remove(holder)
            missing += frees
    return tuple(h.service for h in chosen)


def told(need: int, budget: int, holders: Sequence[Holder], verdict: Verdict) -> str:
    """Return in words what a start waits for, who holds the memory, and the way out."""
    if verdict.answer == "never":
        return (
            f"the Pod is expected to hold {size(need)}, which is more than resourcesBudget.memory "
            f"({size(budget)}).\nNext step: raise resourcesBudget.memory in kserve-local.yaml, or "
            "lower resources.requests.memory"
        )
    room = budget - sum(h.memory for h in holders)
    text = (
        f"the Pod needs {size(need)} and {size(max(0, room))} of resourcesBudget.memory "
        f"({size(budget)}) are free"
    )
    if verdict.evict:
        return f"{text}; {', '.join(verdict.evict)} is scaled to zero for it"
    if any(h.leaving for h in holders):
        leaving = ", ".join(h.service for h in holders if h.leaving)
        return f"{text}; waiting for {leaving} to end"
    held = ", ".join(
        f"{h.service} {size(h.memory)} ({_why_it_stays(h)})"
        for h in sorted(holders, key=lambda h: -h.memory)
    )
    return (
        f"{text}. Held by {held}.\nNext step: kserve-local scale NAME zero, take `pin` off a "
        "service, or raise resourcesBudget.memory in kserve-local.yaml"
    )


def _why_it_stays(holder: Holder) -> str:
    if holder.stays:
        return holder.stays
    if holder.busy:
        return "has requests"
    return "starting" if holder.starting else "idle, too small"


def size(number: float) -> str:
    """Return bytes as people read them: `86 MiB`, `1.5 GiB`."""
    if number >= 2**30:
        return f"{number / 2**30:.1f} GiB"
    return f"{number / 2**20:.0f} MiB"
