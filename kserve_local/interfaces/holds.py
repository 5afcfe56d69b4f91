"""What stands still while a debugger has stopped a replica, and for how long it did.

The supervisor's debuggers tell (`stop`, `go_on`); control loops ask. A Pod at a breakpoint belongs
to groups (its Deployment, its Knative Service, its Revision's autoscaler): the clock of a group
stands as long as one of its Pods does. Times are given by the caller, in seconds of one clock; a
new supervisor knows of no hold, and every clock runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

_REMEMBERED = 1000
"""Holds of one group that are told apart; what is older counts as one that is long over."""


@dataclass(slots=True)
class _Group:
    """When a group stood still; `since` is set while it does."""

    holders: set[str] = field(default_factory=set)
    since: float = 0.0
    past: list[tuple[float, float]] = field(default_factory=list)
    forgotten: float = 0.0

    def stood(self, begin: float, end: float) -> float:
        spans = [*self.past, (self.since, end)] if self.holders else self.past
        return sum(max(0.0, min(e, end) - max(s, begin)) for s, e in spans)


def deployment_group(namespace: str, name: str) -> str:
    """Return the group of a Deployment's Pods: its progress deadline."""
    return f"deployment/{namespace}/{name}"


def service_group(namespace: str, name: str) -> str:
    """Return the group of a Knative Service's Pods: its gradual rollouts."""
    return f"service/{namespace}/{name}"


def scale_group(namespace: str, deployment: str) -> str:
    """Return the group of Pods that are scaled together, by the Deployment's name."""
    return f"scale/{namespace}/{deployment}"


def memory_group(service: str) -> str:
    """Return the group of an InferenceService's (`namespace/name`) Pods: it is not evicted."""
    return f"memory/{service}"


class Holds:
    """Which Pods stand still, and how long each group of them did. No clock, no I/O."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, changed: Callable[[str], None]) -> None:
        """Call `changed` with each group whose clock stops or runs again."""
        self._listeners.append(changed)

    def stop(self, holder: str, groups: Collection[str], *, now: float) -> None:
        """Stop the clocks of the groups on behalf of `holder`."""
        for name in groups:
            group = self._groups.setdefault(name, _Group())
            fresh = not group.holders
            group.holders.add(holder)
            if fresh:
                group.since = now
                self._tell(name)

    def go_on(self, holder: str, groups: Collection[str], *, now: float) -> None:
        """Take back what `holder` stopped; clocks that nobody else holds run again."""
        for name in groups:
            group = self._groups.get(name)
            if group is None or holder not in group.holders:
                continue
            group.holders.discard(holder)
            if not group.holders:
                group.past.append((group.since, max(group.since, now)))
                if len(group.past) > _REMEMBERED:
                    begin, end = group.past.pop(0)
                    group.forgotten += end - begin
                self._tell(name)

    def _tell(self, group: str) -> None:
        for changed in self._listeners:
            changed(group)

    def is_held(self, group: str) -> bool:
        """Whether the group's clock stands now."""
        found = self._groups.get(group)
        return found is not None and bool(found.holders)

    def stood(self, group: str, since: float, now: float) -> float:
        """Return how long the group's clock stood between two times."""
        found = self._groups.get(group)
        return found.stood(since, now) if found is not None else 0.0

    def clock(self, group: str, now: float) -> float:
        """Return the time that the group's clock shows: `now` without all of its holds."""
        found = self._groups.get(group)
        if found is None:
            return now
        return now - found.forgotten - found.stood(float("-inf"), now)

    def held(self) -> Mapping[str, Collection[str]]:
        """Return the groups that stand still now, and who holds each."""
        return {name: set(g.holders) for name, g in self._groups.items() if g.holders}


NONE = Holds()
"""Where nothing can be debugged: every clock runs."""
