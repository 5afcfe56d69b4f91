"""Kinds that are accepted, checked and stored but not carried out yet: say so, in the object.

Reads the object; writes one condition and one Event, so that `kubectl get` and `status` show why
nothing happens. Which kinds: `gaps.UNAVAILABLE`.
"""

from __future__ import annotations

from kserve_local.api.meta import Key, get_condition, timestamp, with_status
from kserve_local.api.scheme import ResourceType
from kserve_local.controllers.isvc_status import NOT_AVAILABLE
from kserve_local.reconcile.conditions import ConditionSet
from kserve_local.reconcile.controller import Watch, itself
from kserve_local.reconcile.result import DONE, Result
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store


def message_for(kind: ResourceType) -> str:
    """Return what the condition and the Event say."""
    return (
        f"{kind.kind} is accepted but not carried out by this version of kserve-local; "
        "nothing runs for it"
    )


class UnavailableController:
    """Sets Ready False on every object of one kind.

    Args:
        kind: A resource type with `status.conditions`.
    """

    def __init__(self, store: Store, events: EventRecorder, kind: ResourceType) -> None:
        self._store = store
        self._events = events
        self._kind = kind
        self.name = f"unavailable-{kind.singular}"
        self.watches = (Watch(kind.id, itself),)

    async def reconcile(self, key: Key) -> Result:
        """Say once that nothing runs for the object."""
        obj = self._store.find(key)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            return DONE
        message = message_for(self._kind)
        if (get_condition(obj, "Ready") or {}).get("message") == message:
            return DONE
        status = obj.get("status") or {}
        conditions = ConditionSet("Ready", (), status.get("conditions") or (), now=timestamp())
        conditions.mark_false("Ready", NOT_AVAILABLE, message)
        new = {**status, "conditions": conditions.result()}
        await self._store.update_status(with_status(obj, new))
        await self._events.event(obj, "Warning", NOT_AVAILABLE, message)
        return DONE
