"""PodAutoscaler: how many Pods a Revision should have, between its writer and its readers. Pure.

The Revision controller writes the object, the autoscaler its status; the Revision's Deployment, the
routes and `kserve-local status` read it. What a cluster says elsewhere (in the ServerlessService,
in the Deployment's scale, in the autoscaler's log) is in annotations of the status, which Knative's
statuses have room for. Source: knative/serving pkg/apis/autoscaling/v1alpha1/pa_types.go.
"""

from __future__ import annotations

from collections.abc import Mapping

from kserve_local.api import names
from kserve_local.api.meta import Key, Object, annotations_of
from kserve_local.api.scheme import CONFIG_MAP

CLUSTER_CONFIG = Key(CONFIG_MAP.id, "knative-serving", "config-autoscaler")
"""The ConfigMap with the cluster's defaults."""

SERVE = "Serve"
"""Requests go to Pods directly, not through the activator."""

REACHABLE, UNREACHABLE, UNKNOWN = "Reachable", "Unreachable", ""

UNDECIDED = -1
"""In place of a number: there is no decision yet."""

REPLICAS = f"{names.LOCAL_PREFIX}/replicas"
MODE = f"{names.LOCAL_PREFIX}/mode"
WHY = f"{names.LOCAL_PREFIX}/why"
"""Annotations of the status: the Deployment's replicas, `Serve` or `Proxy`, and why so many."""


def _told(autoscaler: Object | None) -> Mapping[str, str]:
    status = (autoscaler or {}).get("status") or {}
    found: Mapping[str, str] = status.get("annotations") or {}
    return found


def replicas(autoscaler: Object | None) -> int:
    """Return how many replicas the Deployment should have, `UNDECIDED` without a decision."""
    return int(_told(autoscaler).get(REPLICAS, UNDECIDED))


def is_direct(autoscaler: Object | None) -> bool:
    """Whether requests go to the Pods without passing the activator."""
    return _told(autoscaler).get(MODE) == SERVE


def override(autoscaler: Object | None) -> int | None:
    """Return the number of Pods that a user asked for (`kserve-local scale`); None: automatic.

    0 holds until the next request.
    """
    given = annotations_of(autoscaler or {}).get(names.SCALE)
    return int(given) if given is not None and given.isdecimal() else None


def evicted(autoscaler: Object | None) -> str:
    """Return why the memory budget brought it to zero; empty: it did not."""
    annotations = annotations_of(autoscaler or {})
    return annotations.get(names.EVICTED, "") if annotations.get(names.SCALE) == "0" else ""


def may_start_at_zero(cluster_config: Object | None) -> bool:
    """Whether the cluster lets Revisions begin without a Pod (`allow-zero-initial-scale`)."""
    data: Mapping[str, str] = (cluster_config or {}).get("data") or {}
    return data.get("allow-zero-initial-scale", "").lower() == "true"
