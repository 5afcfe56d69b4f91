"""Which old Revisions to delete, and what the InferenceService's finalizer takes along.

Pure. Owner references are the store's business. Copies Knative's collector of Revisions (traffic.md
4.6; knative/serving pkg/reconciler/gc, pkg/gc): only what is in reserve goes, beyond a number that
always stays, first what is old enough, then what is more than the most that may be kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from kserve_local.api.meta import (
    Object,
    annotations_of,
    labels_of,
    name_of,
    parse_timestamp,
)
from kserve_local.api.validation_knative import parse_duration
from kserve_local.controllers import knative_names as names

logger = logging.getLogger(__name__)

ISVC_FINALIZER = "inferenceservice.finalizers"
"""Deletes the TrainedModels of a deleted InferenceService (control-plane.md 4.1)."""

TRAINED_MODEL_PARENT = "inferenceservice"
"""The label of a TrainedModel that names its InferenceService."""

CONFIG_NAMESPACE, CONFIG_NAME = "knative-serving", "config-gc"
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Retention:
    """How long Revisions without traffic are kept; None: that rule is off.

    Args:
        since_create: Seconds from its creation in which none goes for its age.
        since_active: The same from when it lost its traffic.
        least: So many stay whatever their age.
        most: More than so many go whatever their age.
    """

    since_create: float | None = 48 * _HOUR
    since_active: float | None = 15 * _HOUR
    least: int = 20
    most: int | None = 1000


def retention(config: Object | None) -> Retention:
    """Return what the ConfigMap `knative-serving/config-gc` asks for, Knative's defaults without.

    A cluster's webhook refuses a value that cannot be read; here the defaults hold then, and the
    log says so.
    """
    data: Mapping[str, str] = (config or {}).get("data") or {}
    asked = Retention()
    try:
        asked = replace(
            asked,
            since_create=_seconds(data, "retain-since-create-time", asked.since_create),
            since_active=_seconds(data, "retain-since-last-active-time", asked.since_active),
            least=_count(data, "min-non-active-revisions", asked.least) or 0,
            most=_count(data, "max-non-active-revisions", asked.most),
        )
        if asked.most is not None and asked.least > asked.most:
            raise ValueError("min-non-active-revisions is more than max-non-active-revisions")
    except ValueError as error:
        logger.warning(
            "ConfigMap %s/%s: %s; Knative's defaults hold", CONFIG_NAMESPACE, CONFIG_NAME, error
        )
        return Retention()
    return asked


def _seconds(data: Mapping[str, str], key: str, default: float | None) -> float | None:
    text = str(data.get(key) or "")
    if not text or text.lower() == "disabled":
        return None if text else default
    seconds = parse_duration(text)
    if seconds is None or seconds < 0:
        raise ValueError(f'{key}: "{text}" is no duration such as 48h')
    return seconds


def _count(data: Mapping[str, str], key: str, default: int | None) -> int | None:
    text = str(data.get(key) or "")
    if not text or text.lower() == "disabled":
        return None if text else default
    if not text.isdecimal():
        raise ValueError(f'{key}: "{text}" is no number')
    return int(text)


def surplus_revisions(
    reserve: Sequence[Object],
    latest_ready: str,
    *,
    retention: Retention,
    now: datetime,
) -> list[Object]:
    """Return the Revisions to delete, the oldest first.

    Args:
        reserve: The Revisions of one Knative Service that no traffic refers to.
        latest_ready: The name of its latest ready Revision, which always stays.
    """
    idle = [
        revision
        for revision in reserve
        if name_of(revision) != latest_ready
        and annotations_of(revision).get(names.NO_GC, "").lower() != "true"
        and not revision["metadata"].get("deletionTimestamp")
    ]
    may_go = len(idle) - retention.least
    if may_go <= 0:
        return []
    # Whole seconds tie; the number tells which of two is older.
    idle.sort(key=lambda r: (last_active(r), _number(r)))
    stale = [r for r in idle if _is_stale(r, retention, now)][:may_go]
    left = [r for r in idle if r not in stale]
    if retention.most is None or len(left) <= retention.most:
        return stale
    return [*stale, *left[: len(left) - retention.most]]


def last_active(revision: Object) -> datetime:
    """Return when the Revision lost its traffic, else when it was made."""
    changed = annotations_of(revision).get(names.ROUTING_STATE_MODIFIED)
    return parse_timestamp(changed or revision["metadata"]["creationTimestamp"])


def _is_stale(revision: Object, retention: Retention, now: datetime) -> bool:
    made = parse_timestamp(revision["metadata"]["creationTimestamp"])
    ages = (
        (made, retention.since_create),
        (last_active(revision), retention.since_active),
    )
    asked = [(now - since).total_seconds() >= age for since, age in ages if age is not None]
    return bool(asked) and all(asked)


def _number(revision: Object) -> int:
    return int(labels_of(revision).get(names.CONFIGURATION_GENERATION) or 0)
