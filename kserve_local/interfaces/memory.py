"""The seam between the node agent, which starts Pods, and who keeps them within a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from kserve_local.api.meta import Object


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a Pod does not start now.

    Args:
        message: In words, with the way out.
        kind: `never`: not without a change; `stuck`: nobody can go for it now; `clearing`: somebody
            does.
    """

    message: str
    kind: Literal["never", "stuck", "clearing"]


class MemoryGate(Protocol):
    """Says when a Pod may start. On the node agent's loop; must not block."""

    def attach(self, wake: Callable[[], None]) -> None:
        """Take the function that has the Pods that wait asked about again."""

    def reserve(self, pod: Object) -> Refusal | None:
        """Keep room for a Pod that is about to start; return why it has to wait, None: it may.

        Asked again for each look at the Pod; who was given room keeps it until `release`.
        """

    def keep(self, pod: Object) -> None:
        """Count a Pod that runs already."""

    def release(self, uid: str) -> bool:
        """Count a Pod no more: nothing of it is left. Tell if it was counted."""
