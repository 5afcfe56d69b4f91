"""Kubernetes strategic merge patch, for building pods and for the API server.

`merge` is a pure function over JSON values. Which lists merge by which key is Kubernetes' own
`patchMergeKey`/`patchStrategy` tags (k8s.io/api v0.33); everything else follows the algorithm of
k8s.io/apimachinery `strategicpatch`, the order of merged lists included: items that only the patch
has come first, before those that only the original has (that is why a container added with
`kubectl patch` shows up in front), unless `$setElementOrder` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.errors import BadRequest

Json = Any


@dataclass(frozen=True, slots=True)
class _List:
    """A list that merges: by `key` for lists of objects, as a set for lists of scalars.

    Args:
        key: The merge key; empty for scalars.
        element: Type name of the elements, for the lists inside them.
    """

    key: str = ""
    element: str = ""


_BY_NAME = _List("name")
_CONDITIONS = _List("type")
_SCALARS = _List()
_CONTAINERS = _List("name", "Container")

# Type name -> field -> the type of the struct it holds, or how its list merges. Fields that are
# missing here are plain: objects merge key by key, lists and scalars are replaced.
_TYPES: dict[str, dict[str, str | _List]] = {
    "Container": {
        "env": _BY_NAME,
        "ports": _List("containerPort"),
        "volumeMounts": _List("mountPath"),
        "volumeDevices": _List("devicePath"),
    },
    "PodSpec": {
        "containers": _CONTAINERS,
        "initContainers": _CONTAINERS,
        "ephemeralContainers": _CONTAINERS,
        "volumes": _BY_NAME,
        "imagePullSecrets": _BY_NAME,
        "hostAliases": _List("ip"),
        "topologySpreadConstraints": _List("topologyKey"),
        "resourceClaims": _BY_NAME,
        "schedulingGates": _BY_NAME,
    },
    "PodStatus": {
        "conditions": _CONDITIONS,
        "podIPs": _List("ip"),
        "hostIPs": _List("ip"),
        "resourceClaimStatuses": _BY_NAME,
    },
    "Pod": {"metadata": "ObjectMeta", "spec": "PodSpec", "status": "PodStatus"},
    "PodTemplateSpec": {"metadata": "ObjectMeta", "spec": "PodSpec"},
    "ObjectMeta": {"ownerReferences": _List("uid"), "finalizers": _SCALARS},
    "DeploymentSpec": {"template": "PodTemplateSpec"},
    "Deployment": {"metadata": "ObjectMeta", "spec": "DeploymentSpec", "status": "WithConditions"},
    "ServiceSpec": {"ports": _List("port")},
    "Service": {"metadata": "ObjectMeta", "spec": "ServiceSpec", "status": "WithConditions"},
    "ServiceAccount": {"metadata": "ObjectMeta", "secrets": _BY_NAME, "imagePullSecrets": _BY_NAME},
    "NodeSpec": {"podCIDRs": _SCALARS},
    "NodeStatus": {"conditions": _CONDITIONS, "addresses": _List("type")},
    "Node": {"metadata": "ObjectMeta", "spec": "NodeSpec", "status": "NodeStatus"},
    "WithConditions": {"conditions": _CONDITIONS},
    "Namespace": {"metadata": "ObjectMeta", "status": "WithConditions"},
    "PersistentVolumeClaim": {"metadata": "ObjectMeta", "status": "WithConditions"},
    "Secret": {"metadata": "ObjectMeta"},
    "ConfigMap": {"metadata": "ObjectMeta"},
    "Event": {"metadata": "ObjectMeta"},
}

_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


def merge(original: Mapping[str, Json], patch: Mapping[str, Json], *, kind: str) -> dict[str, Json]:
    """Return `original` with `patch` merged over it; neither argument changes.

    Args:
        original: The object as it is; empty for none.
        patch: What to change, with the directives `$patch` (`replace`, `delete`, `merge`),
            `$setElementOrder/<list>`, `$retainKeys` and `$deleteFromPrimitiveList/<list>`. A
            `null` removes a field.
        kind: The type of both: a core kind (`Pod`, `Deployment`, `ServiceAccount`, ...) or one of
            `PodSpec`, `PodTemplateSpec`, `Container`. Unknown kinds have no lists that merge.

    Raises:
        BadRequest: A directive is malformed or a list element lacks its merge key.

    Source: kube-api.md 2.6; k8s.io/apimachinery/pkg/util/strategicpatch.
    """
    return _merge_object(original, patch, kind)


def _merge_object(
    original: Mapping[str, Json], patch: Mapping[str, Json], type_: str
) -> dict[str, Json]:
    directive = patch.get("$patch")
    if directive == "delete":
        return {}
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive not in (None, "merge"):
        raise BadRequest(f'unknown patch type "{directive}" found in map')
    result = dict(original)
    _retain(result, patch)
    fields = _TYPES.get(type_, {})
    for key, value in patch.items():
        if key.startswith("$"):
            _list_directive(result, original, key, value, patch, fields)
            continue
        rule = fields.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            base = result.get(key)
            inner = rule if isinstance(rule, str) else ""
            result[key] = _merge_object(base if isinstance(base, Mapping) else {}, value, inner)
        elif isinstance(value, list) and isinstance(rule, _List):
            base = result.get(key)
            order = patch.get(_ORDER + key)
            result[key] = _merge_list(base if isinstance(base, list) else [], value, rule, order)
        else:
            result[key] = value
    return result


def _retain(result: dict[str, Json], patch: Mapping[str, Json]) -> None:
    keep = patch.get("$retainKeys")
    if keep is None:
        return
    if not isinstance(keep, list):
        raise BadRequest("$retainKeys must be a list of field names")
    unlisted = [
        k for k in patch if not k.startswith("$") and patch[k] is not None and k not in keep
    ]
    if unlisted:
        raise BadRequest(f"$retainKeys must list every field of the patch; missing: {unlisted[0]}")
    for key in [k for k in result if k not in keep]:
        del result[key]


def _list_directive(
    result: dict[str, Json],
    original: Mapping[str, Json],
    directive: str,
    value: Json,
    patch: Mapping[str, Json],
    fields: Mapping[str, str | _List],
) -> None:
    """Carry out `$setElementOrder` for a list the patch leaves alone, and primitive deletes."""
    if directive.startswith(_DELETE):
        key = directive.removeprefix(_DELETE)
        if not isinstance(value, list):
            raise BadRequest(f"{directive} must be a list")
        present = result.get(key)
        if isinstance(present, list):
            result[key] = [item for item in present if item not in value]
    elif directive.startswith(_ORDER):
        key = directive.removeprefix(_ORDER)
        rule = fields.get(key)
        if not isinstance(value, list):
            raise BadRequest(f"{directive} must be a list")
        present = result.get(key)
        if key not in patch and isinstance(rule, _List) and isinstance(present, list):
            result[key] = _in_order(present, value, present, rule.key)
    elif directive not in ("$patch", "$retainKeys"):
        raise BadRequest(f'unknown directive "{directive}" in strategic merge patch')


def _merge_list(
    original: Sequence[Json], patch: Sequence[Json], rule: _List, order: Json
) -> list[Json]:
    if order is not None and not isinstance(order, list):
        raise BadRequest("$setElementOrder must be a list")
    if not rule.key:
        merged = list(dict.fromkeys((*original, *patch)))
        return _in_order(merged, patch if order is None else order, original, "")
    if any(isinstance(item, Mapping) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, Mapping) and "$patch" in item)]
    result = list(original)
    kept: list[Json] = []
    for item in patch:
        identity = _identity(item, rule.key)
        at = next((i for i, e in enumerate(result) if _identity(e, rule.key) == identity), None)
        if item.get("$patch") == "delete":
            result = [e for e in result if _identity(e, rule.key) != identity]
            continue
        kept.append(item)
        if at is None:
            result.append(_merge_object({}, item, rule.element))
        else:
            result[at] = _merge_object(result[at], item, rule.element)
    return _in_order(result, kept if order is None else order, original, rule.key)


def _identity(item: Json, key: str) -> Json:
    """Return what makes two elements the same one: the merge key's value, or the scalar."""
    if not key:
        return item
    if not isinstance(item, Mapping):
        raise BadRequest(f'list element {item!r} must be an object with merge key "{key}"')
    if key not in item:
        raise BadRequest(f'map: {dict(item)!r} does not contain declared merge key: "{key}"')
    return item[key]


def _in_order(
    merged: Sequence[Json], wanted: Sequence[Json], original: Sequence[Json], key: str
) -> list[Json]:
    """Interleave the elements named in `wanted`, in its order, with the others, in `original`'s.

    An element that is not in `wanted` goes in front of the first wanted one that stood behind it
    in the original; where the original says nothing, the wanted one goes first.
    """
    rank = {_hashable(_identity(e, key)): i for i, e in reversed(list(enumerate(wanted)))}
    place = {_hashable(_identity(e, key)): i for i, e in reversed(list(enumerate(original)))}
    ids = [_hashable(_identity(e, key)) for e in merged]
    named = sorted((i for i in range(len(merged)) if ids[i] in rank), key=lambda i: rank[ids[i]])
    others = [i for i in range(len(merged)) if ids[i] not in rank]
    result: list[Json] = []
    while named and others:
        before, after = place.get(ids[others[0]]), place.get(ids[named[0]])
        earlier = before is not None and after is not None and before < after
        result.append(merged[(others if earlier else named).pop(0)])
    return result + [merged[i] for i in (*named, *others)]


def _hashable(value: Json) -> Json:
    return value if not isinstance(value, (list, dict)) else repr(value)
