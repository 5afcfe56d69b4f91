"""PodAutoscaler: how many Pods a Revision should have, between its writer and its readers. Pure.

The Revision controller writes the object, the autoscaler its status; the Revision's Deployment, the
routes and `kserve-local status` read it. Source: knative/serving
pkg/apis/autoscaling/v1alpha1/pa_types.go, pa_lifecycle.go; `mode` of the status is ours, in place
of the ServerlessService that a cluster has.
"""

from __future__ import annotations

from collections.abc import Mapping

from kserve_local.api import names
from kserve_local.api.meta import Key, Object, annotations_of
from kserve_local.api.scheme import CONFIG_MAP

CLUSTER_CONFIG = Key(CONFIG_MAP.id, "knative-serving", "config-autoscaler")
"""The ConfigMap with the cluster's defaults."""

SERVE, PROXY = "Serve", "Proxy"
"""Requests go to Pods directly; through the activator."""

REACHABLE, UNREACHABLE, UNKNOWN = "Reachable", "Unreachable", ""

UNDECIDED = -1
"""`desiredScale` of a PodAutoscaler without a decision."""


def desired(autoscaler: Object | None) -> int:
    """Return how many Pods there should be, `UNDECIDED` without a decision."""
    found = ((autoscaler or {}).get("status") or {}).get("desiredScale")
    return UNDECIDED if found is None else int(found)


def is_direct(autoscaler: Object | None) -> bool:
    """Whether requests go to the Pods without passing the activator."""
    return ((autoscaler or {}).get("status") or {}).get("mode") == SERVE


def override(autoscaler: Object | None) -> int | None:
    """Return the number of Pods that a user asked for (`kserve-local scale`); None: automatic.

    0 holds until the next request.
    """
    given = annotations_of(autoscaler or {}).get(names.SCALE)
    return int(given) if given is not None and given.isdigit() else None


def may_start_at_zero(cluster_config: Object | None) -> bool:
    """Whether the cluster lets Revisions begin without a Pod (`allow-zero-initial-scale`)."""
    data: Mapping[str, str] = (cluster_config or {}).get("data") or {}
    return data.get("allow-zero-initial-scale", "").lower() == "true"
