"""Kubernetes object plumbing: keys, metadata, conditions, owner references.

An *object* is the plain JSON dictionary that a client sent or reads back, unknown fields included.
Objects are never changed in place once they have left the function that made them: change a copy
(`copy.deepcopy`, or build new dictionaries along the path) and write it. Shapes are Kubernetes'
`metav1` types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Object = dict[str, Any]
"""One Kubernetes object as JSON; read-only by convention."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Names one object.

    Args:
        resource: `ResourceType.id`, e.g. `pods`, `services.serving.knative.dev`.
        namespace: Empty for cluster-scoped kinds.
        name: `metadata.name`.
    """

    resource: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return (
            f"{self.resource} {self.namespace}/{self.name}"
            if self.namespace
            else f"{self.resource} {self.name}"
        )


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. `object` is the state after it (for DELETED: the last state, with a new
    resourceVersion).
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: Object
    resource_version: int
    previous: Object | None = None  # before the change; watches with selectors need it


def timestamp(at: datetime | None = None) -> str:
    """Return an RFC 3339 time in whole seconds, as Kubernetes writes `metav1.Time`."""
    return (at or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """Return the time that `timestamp` (or any RFC 3339 text) stands for."""
    return datetime.fromisoformat(text)


def name_of(obj: Object) -> str:
    """Return `metadata.name`."""
    return str(obj["metadata"]["name"])


def namespace_of(obj: Object) -> str:
    """Return `metadata.namespace`, empty for cluster-scoped objects."""
    return str(obj["metadata"].get("namespace") or "")


def uid_of(obj: Object) -> str:
    """Return `metadata.uid`."""
    return str(obj["metadata"].get("uid") or "")


def labels_of(obj: Object) -> Mapping[str, str]:
    """Return the labels, empty if there are none."""
    return obj.get("metadata", {}).get("labels") or {}


def annotations_of(obj: Object) -> Mapping[str, str]:
    """Return the annotations, empty if there are none."""
    return obj.get("metadata", {}).get("annotations") or {}


def resource_version_of(obj: Object) -> int:
    """Return the resourceVersion as the store's sequence number, 0 if there is none."""
    return int(obj["metadata"].get("resourceVersion") or 0)


def owner_reference(owner: Object, *, controller: bool = True) -> dict[str, Any]:
    """Return the `ownerReferences[]` entry that makes `owner` the (controlling) owner."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": controller,
        "blockOwnerDeletion": True,
    }


def controller_of(obj: Object) -> Mapping[str, Any] | None:
    """Return the owner reference with `controller: true`, if any."""
    refs = obj["metadata"].get("ownerReferences") or ()
    return next((ref for ref in refs if ref.get("controller")), None)


def with_status(obj: Object, status: Mapping[str, Any]) -> Object:
    """Return the object to hand to `update_status`: its identity, not its version.

    A status has one writer, so that a change of the spec in between is no conflict; the status
    says which generation it is about.
    """
    metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    return {**obj, "metadata": metadata, "status": dict(status)}


def get_condition(obj: Object, type_: str) -> Mapping[str, Any] | None:
    """Return the condition of that type out of `status.conditions`, if there."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c.get("type") == type_), None)


def condition_is(obj: Object, type_: str, status: str = "True") -> bool:
    """Whether the condition is there with that status."""
    condition = get_condition(obj, type_)
    return condition is not None and condition.get("status") == status


def with_condition(
    conditions: Sequence[Mapping[str, Any]], new: Mapping[str, Any], *, now: str
) -> list[dict[str, Any]]:
    """Return the conditions with `new` put in, sorted by type.

    `lastTransitionTime` becomes `now` when status, reason, message or severity changed, as
    knative.dev/pkg does; otherwise the old time is kept.
    """
    old = next((c for c in conditions if c.get("type") == new["type"]), None)
    kept = {k: v for k, v in new.items() if v not in (None, "")}
    same = old is not None and all(
        (old.get(k) or "") == (kept.get(k) or "")
        for k in ("status", "reason", "message", "severity")
    )
    kept["lastTransitionTime"] = (
        old.get("lastTransitionTime", now) if same and old is not None else now
    )
    rest = [dict(c) for c in conditions if c.get("type") != new["type"]]
    return sorted([*rest, kept], key=lambda c: str(c["type"]))
