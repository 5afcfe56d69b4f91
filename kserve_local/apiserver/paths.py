"""From a URL path to what it names. Pure.

Kubernetes' paths are regular: `/api/v1` or `/apis/<group>/<version>`, then an optional
`namespaces/<namespace>`, a plural, a name and a subresource. One parser serves every kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from kserve_local.api import scheme
from kserve_local.api.meta import Key
from kserve_local.api.scheme import ResourceType
from kserve_local.errors import NotFound

UNKNOWN_PATH = "the server could not find the requested resource"
_BY_PLURAL = {(r.group, v, r.plural): r for r in scheme.ALL for v in r.versions}


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about.

    Args:
        version: The version in the path, one of `kind.versions`.
        namespace: None: all namespaces (or a cluster-scoped kind).
        name: Empty: the collection.
        subresource: `status`, `scale`, `log`, ... or empty.
    """

    kind: ResourceType
    version: str
    namespace: str | None
    name: str
    subresource: str

    @property
    def key(self) -> Key:
        """The store's key of the named object."""
        return Key(self.kind.id, self.namespace or "", self.name)

    @property
    def api_version(self) -> str:
        """`apiVersion` as this request speaks it."""
        return f"{self.kind.group}/{self.version}" if self.kind.group else self.version


def parse(path: str) -> Target:
    """Return what a resource path names.

    Raises:
        NotFound: No served resource is there.
    """
    parts = [part for part in path.split("/") if part]
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise NotFound(UNKNOWN_PATH)
    namespace: str | None = None
    if rest[0] == "namespaces" and len(rest) >= 3 and (group, version, rest[2]) in _BY_PLURAL:
        namespace, rest = rest[1], rest[2:]
    kind = _BY_PLURAL.get((group, version, rest[0]))
    if kind is None or len(rest) > 3:
        raise NotFound(UNKNOWN_PATH)
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if kind.namespaced != (namespace is not None) and (name or not kind.namespaced):
        raise NotFound(UNKNOWN_PATH)
    return Target(kind, version, namespace, name, subresource)
