"""Conditions in Knative's mechanics: dependents make up one happy condition.

Pure: works on a list of conditions and gives the new list back. Copies knative.dev/pkg/apis: a
dependent that turns False or Unknown passes its reason on to the happy condition; setting anything
True looks at all dependents again, False before Unknown, most recent first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"

Condition = dict[str, Any]


class ConditionSet:
    """A status's conditions while one reconcile works on them.

    Args:
        happy: The condition that sums up, `Ready`.
        dependents: What it depends on; every other type gets severity Info.
        conditions: What the status holds now.
        now: The time of this pass, `meta.timestamp`.
    """

    def __init__(
        self,
        happy: str,
        dependents: Sequence[str],
        conditions: Sequence[Mapping[str, Any]],
        *,
        now: str,
    ) -> None:
        self._happy = happy
        self._dependents = tuple(dependents)
        self._stored = {str(c["type"]): dict(c) for c in conditions}
        self._now = now
        self._conditions = {k: dict(v) for k, v in self._stored.items()}
        # Ties in time (whole seconds) are broken by who was set last.
        self._order = dict.fromkeys(self._stored, 0)
        self._clock = 0
        start = TRUE if self.status(happy) == TRUE else UNKNOWN
        for type_ in (happy, *self._dependents):
            if type_ not in self._conditions:
                self._set(type_, UNKNOWN if type_ == happy else start)

    def get(self, type_: str) -> Condition | None:
        """Return the condition of that type."""
        return self._conditions.get(type_)

    def status(self, type_: str) -> str:
        """Return the condition's status, empty if it is not there."""
        return str(self._conditions.get(type_, {}).get("status", ""))

    def is_true(self, type_: str) -> bool:
        """Whether the condition is there and True."""
        return self.status(type_) == TRUE

    def mark_true(self, type_: str, reason: str = "", message: str = "") -> None:
        """Set True and let the happy condition follow."""
        self._set(type_, TRUE, reason, message)
        self._recompute(type_)

    def mark_unknown(self, type_: str, reason: str = "", message: str = "") -> None:
        """Set Unknown; a dependent takes the happy condition along unless another is False."""
        self._set(type_, UNKNOWN, reason, message)
        if any(self.status(d) == FALSE for d in self._dependents):
            if self.status(self._happy) != FALSE:
                self._set(self._happy, FALSE, reason, message)
        elif type_ in self._dependents:
            self._set(self._happy, UNKNOWN, reason, message)

    def mark_false(self, type_: str, reason: str = "", message: str = "") -> None:
        """Set False; a dependent takes the happy condition along."""
        self._set(type_, FALSE, reason, message)
        if type_ in self._dependents:
            self._set(self._happy, FALSE, reason, message)

    def copy(self, type_: str, source: Mapping[str, Any] | None) -> None:
        """Set what another object's condition says; nothing if it says nothing.

        Reasons are not taken over for True, as KServe does not.
        """
        if source is None:
            return
        reason, message = str(source.get("reason", "")), str(source.get("message", ""))
        match source.get("status"):
            case "True":
                self.mark_true(type_)
            case "False":
                self.mark_false(type_, reason, message)
            case _:
                self.mark_unknown(type_, reason, message)

    def clear(self, type_: str) -> None:
        """Remove a condition that is no dependent."""
        self._conditions.pop(type_, None)

    def result(self) -> list[Condition]:
        """Return the conditions, sorted by type.

        What ends as it was stored keeps its lastTransitionTime, whatever it was in between.
        """
        settled = []
        for type_, condition in sorted(self._conditions.items()):
            stored = self._stored.get(type_)
            if stored is not None and _same(stored, condition):
                settled.append(stored)
            else:
                settled.append({**condition, "lastTransitionTime": self._now})
        return settled

    def _set(self, type_: str, status: str, reason: str = "", message: str = "") -> None:
        new: Condition = {"type": type_, "status": status}
        if type_ != self._happy and type_ not in self._dependents:
            new["severity"] = "Info"
        if reason:
            new["reason"] = reason
        if message:
            new["message"] = message
        old = self._conditions.get(type_)
        if old is not None and _same(old, new):
            return
        self._clock += 1
        self._order[type_] = self._clock
        self._conditions[type_] = new | {"lastTransitionTime": self._now}

    def _recompute(self, type_: str) -> None:
        unhappy = self._unhappy()
        if unhappy is not None:
            self._set(
                self._happy,
                unhappy["status"],
                unhappy.get("reason", ""),
                unhappy.get("message", ""),
            )
        elif type_ != self._happy:
            self._set(self._happy, TRUE)

    def _unhappy(self) -> Condition | None:
        newest_first = sorted(
            (self._conditions[d] for d in self._dependents if d in self._conditions),
            key=lambda c: (c.get("lastTransitionTime", ""), self._order.get(c["type"], 0)),
            reverse=True,
        )
        for status in (FALSE, UNKNOWN):
            for condition in newest_first:
                if condition["status"] == status:
                    return condition
        return None


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(
        (a.get(k) or "") == (b.get(k) or "") for k in ("status", "reason", "message", "severity")
    )
