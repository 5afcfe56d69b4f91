"""Which old Revisions to delete, and what the InferenceService's finalizer takes along.

Pure. Owner references are the store's business. Copies Knative's revision garbage collector
(traffic.md 4.6) with its bound on non-active Revisions but without its minimum ages: on one machine
a day of edits would keep hundreds of Revisions that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api.meta import Object, annotations_of, labels_of, name_of
from kserve_local.controllers import knative_names as names

MAX_INACTIVE = 20
"""Revisions kept beside the routed ones: Knative's `min-non-active-revisions`."""

ISVC_FINALIZER = "inferenceservice.finalizers"
"""Deletes the TrainedModels of a deleted InferenceService (control-plane.md 4.1)."""

TRAINED_MODEL_PARENT = "inferenceservice"
"""The label of a TrainedModel that names its InferenceService."""


def surplus_revisions(
    revisions: Sequence[Object], status: Mapping[str, Any], *, keep: int = MAX_INACTIVE
) -> list[Object]:
    """Return the Revisions to delete: the oldest ones that nothing refers to, beyond `keep`.

    Args:
        status: The Knative Service's; what its traffic or its latest names mention stays.
    """
    used = {entry.get("revisionName") for entry in status.get("traffic") or ()}
    used |= {status.get("latestCreatedRevisionName"), status.get("latestReadyRevisionName")}
    idle = [
        revision
        for revision in revisions
        if name_of(revision) not in used
        and annotations_of(revision).get(names.NO_GC) != "true"
        and not revision["metadata"].get("deletionTimestamp")
    ]
    idle.sort(key=lambda r: int(labels_of(r).get(names.CONFIGURATION_GENERATION) or 0))
    return idle[: max(0, len(idle) - keep)]
