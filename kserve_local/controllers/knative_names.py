"""Names of the Knative half of the chain: labels, annotations, child names, ports.

Pure. Spelling is Knative Serving 1.21's (pkg/apis/serving/register.go; knative.dev/pkg/kmeta).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kserve_local.api.names import KNATIVE_GROUP, LOCAL_PREFIX

SERVICE = f"{KNATIVE_GROUP}/service"
SERVICE_UID = f"{KNATIVE_GROUP}/serviceUID"
CONFIGURATION = f"{KNATIVE_GROUP}/configuration"
CONFIGURATION_UID = f"{KNATIVE_GROUP}/configurationUID"
CONFIGURATION_GENERATION = f"{KNATIVE_GROUP}/configurationGeneration"
REVISION = f"{KNATIVE_GROUP}/revision"
REVISION_UID = f"{KNATIVE_GROUP}/revisionUID"
ROUTE = f"{KNATIVE_GROUP}/route"
ROUTES = f"{KNATIVE_GROUP}/routes"
ROUTING_STATE = f"{KNATIVE_GROUP}/routingState"
ROUTING_STATE_MODIFIED = f"{KNATIVE_GROUP}/routingStateModified"
NO_GC = f"{KNATIVE_GROUP}/no-gc"
POD_TEMPLATE_HASH = "pod-template-hash"

TEMPLATE_HASH = f"{LOCAL_PREFIX}/template-hash"
"""Ours, on a Revision: the template it was made from, in place of a Configuration's generation."""

CLUSTER_ADDRESS = f"{LOCAL_PREFIX}/cluster-ip"
"""Ours, on an ExternalName Service: the loopback address that its name resolves to here."""

LOCAL_GATEWAY = "knative-local-gateway.istio-system.svc.cluster.local"

_LONGEST = 63
_HEAD = _LONGEST - 32


def child_name(parent: str, suffix: str) -> str:
    """Return `parent + suffix`, cut and made unique with an md5 where it passes 63 characters."""
    if len(parent) + len(suffix) <= _LONGEST:
        return parent + suffix
    digest = hashlib.md5(parent.encode(), usedforsecurity=False).hexdigest()
    return parent[: max(0, _HEAD - len(suffix))] + digest + suffix


def revision_name(configuration: str, number: int) -> str:
    """Return e.g. `iris-predictor-00001`."""
    return child_name(configuration, f"-{number:05d}")


def deployment_name(revision: str) -> str:
    """Return e.g. `iris-predictor-00001-deployment`."""
    return child_name(revision, "-deployment")


def digest(value: Mapping[str, Any]) -> str:
    """Return a stable hash of JSON content, key order aside."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


_SAFE = "bcdfghjklmnpqrstvwxz2456789"


def safe_suffix(number: int, length: int) -> str:
    """Return `length` characters of Kubernetes' name alphabet (no vowels, no look-alikes)."""
    letters = []
    for _ in range(length):
        number, at = divmod(number, len(_SAFE))
        letters.append(_SAFE[at])
    return "".join(letters)
