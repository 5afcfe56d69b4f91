"""Discovery documents: which groups, versions and resources there are. Pure, computed once.

Both forms that kubectl understands: aggregated (`apidiscovery.k8s.io` v2 and v2beta1, one document
for everything, revalidated by ETag) and the older one document per group version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from kserve_local.api import scheme
from kserve_local.api.scheme import ResourceType
from kserve_local.errors import NotFound

VERSION = {
    "major": "1",
    "minor": "33",
    "gitVersion": "v1.33.0+kserve-local",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2025-04-23T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_STATUS_VERBS = ["get", "patch", "update"]
_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON answer with its media type; the ETag changes when the content does."""

    body: bytes
    media_type: str
    etag: str


def _document(content: Any, media_type: str = "application/json") -> Document:
    body = orjson.dumps(content)
    return Document(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"')


def group_versions(group: str) -> list[str]:
    """Return the served versions of a group, the preferred one first."""
    served = {v for r in scheme.ALL if r.group == group for v in r.versions}
    # v1 before v1beta1 before v1alpha2 before v1alpha1
    order = {"v1": 0, "v1beta1": 1, "v1alpha2": 2, "v1alpha1": 3}
    return sorted(served, key=lambda v: order.get(v, 9))


def groups() -> list[str]:
    """Return the named API groups."""
    return sorted({r.group for r in scheme.ALL if r.group})


def subresources(kind: ResourceType) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Yield name, kind that it speaks, and verbs of each subresource."""
    if kind.status:
        yield "status", {"group": kind.group, "kind": kind.kind}, _STATUS_VERBS
    if kind is scheme.DEPLOYMENT:
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        yield "scale", scale, _STATUS_VERBS
    if kind is scheme.POD:
        yield "log", {"group": "", "kind": "Pod"}, ["get"]


def _resource_list(group: str, version: str) -> dict[str, Any]:
    resources: list[dict[str, Any]] = []
    for kind in _served(group, version):
        entry: dict[str, Any] = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": _VERBS,
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        entry["storageVersionHash"] = hashlib.sha256(kind.id.encode()).hexdigest()[:11] + "="
        resources.append(entry)
        resources += [
            {
                "name": f"{kind.plural}/{name}",
                "singularName": "",
                "namespaced": kind.namespaced,
                **{k: v for k, v in speaks.items() if k == "kind" or "version" in speaks},
                "verbs": verbs,
            }
            for name, speaks, verbs in subresources(kind)
        ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": resources,
    }


def _served(group: str, version: str) -> list[ResourceType]:
    return [r for r in scheme.ALL if r.group == group and version in r.versions]


def _group(name: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{name}/{v}", "version": v} for v in group_versions(name)]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _aggregated(names: list[str], version: str) -> dict[str, Any]:
    items = []
    for group in names:
        metadata: dict[str, Any] = {"creationTimestamp": None}
        if group:
            metadata["name"] = group
        versions = [
            {
                "version": v,
                "freshness": "Current",
                "resources": [_aggregated_resource(kind, v) for kind in _served(group, v)],
            }
            for v in group_versions(group)
        ]
        items.append({"metadata": metadata, "versions": versions})
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }


def _aggregated_resource(kind: ResourceType, version: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": version, "kind": kind.kind},
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": _VERBS,
    }
    if kind.short_names:
        entry["shortNames"] = list(kind.short_names)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    listed = [
        {
            "subresource": name,
            "responseKind": {"version": version, **speaks},
            "verbs": verbs,
        }
        for name, speaks, verbs in subresources(kind)
    ]
    if listed:
        entry["subresources"] = listed
    return entry


def _documents() -> dict[tuple[str, str], Document]:
    found: dict[tuple[str, str], Document] = {
        ("/version", ""): _document(VERSION),
        ("/api", ""): _document({"kind": "APIVersions", "versions": ["v1"]}),
        ("/apis", ""): _document(
            {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(g) for g in groups()]}
        ),
    }
    for group in ("", *groups()):
        if group:
            found[f"/apis/{group}", ""] = _document(
                {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}
            )
        for version in group_versions(group):
            path = f"/apis/{group}/{version}" if group else f"/api/{version}"
            found[path, ""] = _document(_resource_list(group, version))
    for version in ("v2", "v2beta1"):
        media_type = _AGGREGATED.format(version=version)
        found["/api", version] = _document(_aggregated([""], version), media_type)
        found["/apis", version] = _document(_aggregated(groups(), version), media_type)
    return found


_DOCUMENTS = _documents()


def find(path: str, accept: str) -> Document:
    """Return the discovery document at a path in the best form that the client accepts.

    Raises:
        NotFound: There is none.
    """
    path = "/" + path.strip("/")
    form = ""
    if path in ("/api", "/apis"):
        for offer in accept.split(","):
            fields = {part.strip() for part in offer.split(";")}
            if "g=apidiscovery.k8s.io" in fields and "as=APIGroupDiscoveryList" in fields:
                form = next((v for v in ("v2", "v2beta1") if f"v={v}" in fields), "")
                if form:
                    break
            elif offer.strip() == "application/json":
                break
    document = _DOCUMENTS.get((path, form))
    if document is None:
        raise NotFound("the server could not find the requested resource")
    return document
