"""What became of each InferenceService's and InferenceGraph's spec, for those who wait for it.

The objects themselves do not tell: an InferenceService's `status.observedGeneration` is its
Knative Service's, as in KServe, and a spec that cannot be carried out leaves the status of the one
before. Kept in memory: after a restart every service is looked at anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from kserve_local.api.meta import Key, Object, uid_of
from kserve_local.api.scheme import key_of


@dataclass(frozen=True, slots=True)
class Observed:
    """How far the controller came with one spec.

    Args:
        generation: `metadata.generation` of the spec last looked at.
        settled: The status is that spec's, not an older one's.
        reason, message: Why it could not be carried out, or not settled yet; empty when it was.
    """

    uid: str
    generation: int
    settled: bool
    reason: str = ""
    message: str = ""


class Observations:
    """The InferenceService controller's word on every service. Written by it alone."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Observed] = {}

    def carried_out(self, isvc: Object, *, settled: bool = True) -> None:
        """The spec was handed to the next link of the chain."""
        self._by_key[key_of(isvc)] = Observed(uid_of(isvc), _generation(isvc), settled)

    def failed(self, isvc: Object, reason: str, message: str) -> None:
        """The spec could not be carried out; the controller tries again."""
        self._by_key[key_of(isvc)] = Observed(
            uid_of(isvc), _generation(isvc), settled=True, reason=reason, message=message
        )

    def waits(self, obj: Object, reason: str, message: str) -> None:
        """The spec cannot be carried out before something else is there; that is no failure."""
        self._by_key[key_of(obj)] = Observed(
            uid_of(obj), _generation(obj), settled=False, reason=reason, message=message
        )

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._by_key.pop(key, None)

    def of(self, isvc: Object) -> Observed | None:
        """Return what is known of this service, whatever its generation; None if nothing yet."""
        found = self._by_key.get(key_of(isvc))
        return found if found is not None and found.uid == uid_of(isvc) else None


def _generation(isvc: Object) -> int:
    return int(isvc["metadata"].get("generation") or 0)
