"""The validating webhooks of LocalModelCache and LocalModelNamespaceCache, on DELETE too.

Pure (pkg/webhook/admission/{localmodelcache,localmodelnamespacecache}; llm.md 5.5). That
`sourceModelUri` never changes is a CEL rule of the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kserve_local.api import names
from kserve_local.api.meta import Object, labels_of, name_of, namespace_of
from kserve_local.errors import Forbidden

Lookup = Callable[[str, str | None], Sequence[Object]]
_USERS = (
    ("inferenceServices", "InferenceService", "inferenceservices.serving.kserve.io"),
    ("llmInferenceServices", "LLMInferenceService", "llminferenceservices.serving.kserve.io"),
)


def check(obj: Object, *, lookup: Lookup) -> list[str]:
    """Return the warnings (none) for a cache that may be stored.

    Raises:
        Forbidden: A cluster cache of that URI exists, or a namespaced cache names no node group.
    """
    spec = obj.get("spec") or {}
    if obj["kind"] == "LocalModelCache":
        for other in lookup("localmodelcaches.serving.kserve.io", None):
            uri = (other.get("spec") or {}).get("sourceModelUri")
            if name_of(other) != name_of(obj) and uri == spec.get("sourceModelUri"):
                raise Forbidden(f"LocalModelCache {name_of(other)} has the same StorageURI {uri}")
        return []
    known = {name_of(group) for group in lookup("localmodelnodegroups.serving.kserve.io", None)}
    for group in spec.get("nodeGroups") or ():
        if group not in known:
            raise Forbidden(
                f"NodeGroup {group} not found: LocalModelNodeGroup.serving.kserve.io "
                f'"{group}" not found'
            )
    return []


def check_deletion(obj: Object, *, lookup: Lookup) -> list[str]:
    """Return the warnings (none) for a cache that may go.

    Raises:
        Forbidden: A service in `status` still carries the cache's label.
    """
    status = obj.get("status") or {}
    namespaced = obj["kind"] == "LocalModelNamespaceCache"
    for field, kind, resource in _USERS:
        for user in status.get(field) or ():
            namespace = user.get("namespace")
            for service in lookup(resource, namespace):
                if name_of(service) != user.get("name") or not _uses(service, obj, namespaced):
                    continue
                cache = f"{namespace_of(obj)}/{name_of(obj)}" if namespaced else name_of(obj)
                name = f"{namespace}/{user['name']}" if namespaced else user["name"]
                raise Forbidden(f"{obj['kind']} {cache} is being used by {kind} {name}")
    return []


def _uses(service: Object, cache: Object, namespaced: bool) -> bool:
    labels = labels_of(service)
    if labels.get(names.LOCAL_MODEL) != name_of(cache):
        return False
    return not namespaced or labels.get(names.LOCAL_MODEL_NAMESPACE) == namespace_of(cache)
