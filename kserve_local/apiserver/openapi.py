"""`/openapi/v3`: what kubectl reads before it creates, applies or explains; made when asked for.

One document per group version: a PATCH operation per resource with `fieldValidation` and `dryRun`
(that is how kubectl knows that the server validates and dry-runs), and the schemas that `explain`
shows, out of the compiled schema file that admission uses, too.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import orjson

from kserve_local.api import schema, scheme
from kserve_local.api.scheme import ResourceType
from kserve_local.apiserver.discovery import Document, group_versions, groups
from kserve_local.errors import NotFound

_QUERY = ("dryRun", "fieldManager", "fieldValidation", "force", "pretty")


@cache
def _paths() -> dict[str, tuple[str, str]]:
    """Path below /openapi/v3 -> group and version."""
    named = {f"apis/{g}/{v}": (g, v) for g in groups() for v in group_versions(g)}
    return {"api/v1": ("", "v1"), **named}


def find(path: str) -> Document:
    """Return the document at a URL path.

    Raises:
        NotFound: There is none.
    """
    name = path.removeprefix("/openapi/v3").strip("/")
    if not name:
        return _index()
    if name not in _paths():
        raise NotFound("the server could not find the requested resource")
    return _document(name)


@cache
def _index() -> Document:
    body = orjson.dumps(
        {
            "paths": {
                name: {"serverRelativeURL": f"/openapi/v3/{name}?hash={_hash(_document(name))}"}
                for name in _paths()
            }
        }
    )
    return Document(body, "application/json", f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"')


def _hash(document: Document) -> str:
    return document.etag.strip('"')


@cache
def _document(name: str) -> Document:
    group, version = _paths()[name]
    kinds = [r for r in scheme.ALL if r.group == group and version in r.versions]
    paths: dict[str, Any] = {}
    for kind in kinds:
        paths.update(_operations(name, kind, version))
    body = orjson.dumps(
        {
            "openapi": "3.0.0",
            "info": {"title": "kserve-local", "version": "v1.33.0"},
            "paths": paths,
            "components": {"schemas": _schemas(kinds, group, version)},
        }
    )
    etag = f'"{hashlib.sha256(body).hexdigest()[:32].upper()}"'
    return Document(body, "application/json", etag)


def _schemas(kinds: list[ResourceType], group: str, version: str) -> dict[str, Any]:
    """Return the schemas of these kinds with what they refer to, under Kubernetes' names."""
    parts = [*reversed(group.split(".")), version] if group else ["io", "k8s", "api", version]
    api_version = f"{group}/{version}" if group else version
    found: dict[str, Any] = {}
    waiting: list[str] = []
    types: dict[str, Any] = {}
    for kind in kinds:
        node, types = schema.openapi(api_version, kind.kind)
        gvk = {"group": group, "version": version, "kind": kind.kind}
        shown = {**_with_references(node, waiting), "x-kubernetes-group-version-kind": [gvk]}
        found[".".join([*parts, kind.kind])] = shown
    while waiting:
        type_name = waiting.pop()
        if type_name not in found:
            found[type_name] = {}  # taken, before what refers back to it
            found[type_name] = _with_references(types[type_name], waiting)
    return found


def _with_references(node: Any, waiting: list[str]) -> Any:
    """Return a schema node with its references in OpenAPI's form, noting what they name."""
    if isinstance(node, list):
        return [_with_references(item, waiting) for item in node]
    if not isinstance(node, dict):
        return node
    rest = {
        k: v if k == "default" else _with_references(v, waiting)
        for k, v in node.items()
        if k != "$ref"
    }
    if not isinstance(node.get("$ref"), str):
        return rest
    waiting.append(node["$ref"])
    # OpenAPI 3.0 ignores what stands beside a reference, unless that is wrapped.
    reference = {"$ref": f"#/components/schemas/{node['$ref']}"}
    return {**rest, "allOf": [reference]} if rest else reference


def _operations(name: str, kind: ResourceType, version: str) -> dict[str, Any]:
    gvk = {"group": kind.group, "version": version, "kind": kind.kind}
    place = "namespaces/{namespace}/" if kind.namespaced else ""
    parameters = [{"name": q, "in": "query", "schema": {"type": "string"}} for q in _QUERY]

    def operation(verb: str) -> dict[str, Any]:
        return {
            "operationId": f"{verb}_{kind.singular}",
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": verb,
            "x-kubernetes-group-version-kind": gvk,
        }

    collection = f"/{name}/{place}{kind.plural}"
    one = {verb: operation(verb) for verb in ("get", "put", "patch", "delete")}
    return {
        collection: {"get": operation("list"), "post": operation("post")},
        f"{collection}/{{name}}": one,
    }
