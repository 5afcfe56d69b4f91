"""How the rollout of one component stands: its revisions, what that means, what one may do. Pure.

Takes the InferenceService, the component's Knative Service and its Revisions as the API has them.
The states are those of KServe's `canaryTrafficPercent` (control-plane.md 5.8, 6.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from kserve_local.api import names
from kserve_local.api.meta import (
    Object,
    annotations_of,
    get_condition,
    labels_of,
    name_of,
    namespace_of,
    parse_timestamp,
)
from kserve_local.cli.revision_changes import changes

Phase = Literal[
    "none", "first", "starting", "failed", "gradual", "canary", "held", "one", "complete"
]

FIELD = "canaryTrafficPercent"
_GENERATION = f"{names.KNATIVE_GROUP}/configurationGeneration"
_IN_PROGRESS = "RolloutInProgress"
_TEMPLATE = f"{names.LOCAL_PREFIX}/template-hash"


@dataclass(frozen=True, slots=True)
class RevisionView:
    """One Revision.

    Args:
        percent: What it has of all requests; None: no traffic names it.
        tags: Of its entries in the traffic, which have hosts of their own.
        replicas / wanted: Ready ones, and how many there should be.
        age: Seconds since it was made.
        state: `Ready`, `Starting`, `Failed` or `Zero`.
        message: Why it failed.
        roles: `latest` (the newest ready one), `new` (newer, not ready), `rolled out` (the last one
            that had all the traffic), `previous` (the one before that).
        changes: What differs from the Revision before it, None for the first that is kept.
        manifest: The file it was read from, empty if none.
    """

    name: str
    percent: int | None
    tags: tuple[str, ...]
    replicas: int
    wanted: int
    age: float
    state: str
    message: str
    roles: tuple[str, ...]
    changes: tuple[str, ...] | None
    manifest: str

    @property
    def number(self) -> str:
        """The end of its name, `00002`."""
        return self.name.rpartition("-")[2]


@dataclass(frozen=True, slots=True)
class ComponentView:
    """The rollout of one component.

    Args:
        canary: `canaryTrafficPercent` of its spec.
        created / ready / rolled_out / previous: Revisions of its status, empty if there is none.
        revisions: All that are kept, newest first.
        duration: Of a gradual rollout, as written; empty: traffic moves at once.
        gradual: One is in progress.
    """

    service: str
    namespace: str
    component: str
    canary: int | None
    created: str
    ready: str
    rolled_out: str
    previous: str
    revisions: tuple[RevisionView, ...]
    duration: str = ""
    gradual: bool = False

    @property
    def routed(self) -> tuple[RevisionView, ...]:
        """The Revisions that the traffic names, newest first."""
        return tuple(r for r in self.revisions if r.percent is not None)

    def revision(self, name: str) -> RevisionView | None:
        """Return a Revision by its name."""
        return next((r for r in self.revisions if r.name == name), None)

    @property
    def phase(self) -> Phase:
        """Where the rollout is."""
        newest = self.revision(self.created)
        if newest is None:
            return "none"
        if self.created != self.ready:
            if newest.state == "Failed":
                return "failed"
            return "starting" if self.ready else "first"
        if self.gradual:
            return "gradual"
        if self.canary is None or self.canary >= 100 or not self.rolled_out:
            return "complete"
        if len(self.routed) < 2:
            return "one"
        return "canary" if self.canary else "held"


def view_of(
    isvc: Object, component: str, ksvc: Object | None, revisions: Sequence[Object], *, now: datetime
) -> ComponentView:
    """Return how a component's rollout stands.

    Args:
        revisions: Those of `ksvc`.
    """
    status: Mapping[str, Any] = ((isvc.get("status") or {}).get("components") or {}).get(
        component
    ) or {}
    traffic: Sequence[Mapping[str, Any]] = status.get("traffic") or ()
    ordered = sorted(revisions, key=_number)
    created, ready = status.get("latestCreatedRevision"), status.get("latestReadyRevision")
    roles = {
        "latest": ready,
        "new": created if created != ready else None,
        "rolled out": status.get("latestRolledoutRevision"),
        "previous": status.get("previousRolledoutRevision"),
    }
    if roles["previous"] == roles["rolled out"]:
        del roles["previous"]
    views = [
        _revision(revision, before, traffic, roles, now)
        for before, revision in zip((None, *ordered), ordered, strict=False)
    ]
    routes = get_condition(ksvc or {}, "RoutesReady") or {}
    return ComponentView(
        service=name_of(isvc),
        namespace=namespace_of(isvc),
        component=component,
        canary=isvc["spec"][component].get(FIELD),
        created=str(created or ""),
        ready=str(ready or ""),
        rolled_out=str(roles["rolled out"] or ""),
        previous=str(status.get("previousRolledoutRevision") or ""),
        revisions=tuple(reversed(views)),
        duration=annotations_of(ksvc or {}).get(names.ROLLOUT_DURATION, ""),
        gradual=routes.get("reason") == _IN_PROGRESS,
    )


def _number(revision: Object) -> int:
    return int(labels_of(revision).get(_GENERATION) or 0)


def _revision(
    revision: Object,
    before: Object | None,
    traffic: Sequence[Mapping[str, Any]],
    roles: Mapping[str, str | None],
    now: datetime,
) -> RevisionView:
    name = name_of(revision)
    entries = [t for t in traffic if t.get("revisionName") == name]
    status = revision.get("status") or {}
    wanted, replicas = (
        int(status.get(field) or 0) for field in ("desiredReplicas", "actualReplicas")
    )
    condition = get_condition(revision, "Ready") or {}
    state = {"True": "Ready" if wanted else "Zero", "False": "Failed"}.get(
        str(condition.get("status")), "Starting"
    )
    return RevisionView(
        name=name,
        percent=sum(int(t.get("percent") or 0) for t in entries) if entries else None,
        tags=tuple(str(t["tag"]) for t in entries if t.get("tag")),
        replicas=replicas,
        wanted=wanted,
        age=(now - parse_timestamp(revision["metadata"]["creationTimestamp"])).total_seconds(),
        state=state,
        message=_message(condition) if state == "Failed" else "",
        roles=tuple(role for role, who in roles.items() if who == name),
        changes=None if before is None else tuple(changes(before, revision)),
        manifest=annotations_of(revision).get(names.MANIFEST, ""),
    )


def _message(condition: Mapping[str, Any]) -> str:
    from kserve_local.cli.status import told

    return told(str(condition.get("reason") or ""), str(condition.get("message") or ""))


def can_go_back(view: ComponentView) -> bool:
    """Whether KServe would roll a promoted revision back (control-plane.md 5.8)."""
    return (
        view.created == view.ready == view.rolled_out
        and view.previous not in ("", view.rolled_out)
        and view.revision(view.previous) is not None
    )
