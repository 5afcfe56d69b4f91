"""What the API machinery itself does to an object on its way into the store, kind by kind. Pure.

Metadata that belongs to the server is filled or kept, names are checked, `status` is kept apart
from the rest, generation counts changes of the wish, and a few kinds have habits of their own
(Secret `stringData`, Namespace phase and finalizer, Pod phase). Copied from Kubernetes' registry
strategies and `ValidateObjectMeta`; the messages are the API server's.
"""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from typing import Any

from kserve_local.api import metadata_rules, scheme
from kserve_local.api.meta import Object, timestamp
from kserve_local.api.scheme import ResourceType
from kserve_local.errors import Cause, Conflict, Invalid

FOREGROUND = "foregroundDeletion"
_SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_KEPT_METADATA = ("labels", "annotations", "ownerReferences", "finalizers", "managedFields")
_REASONS = {
    "invalid": "FieldValueInvalid",
    "required": "FieldValueRequired",
    "type": "FieldValueTypeInvalid",
    "toolong": "FieldValueTooLong",
}
_POD_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")
_POD_RULE = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)
_WITHOUT_GENERATION = frozenset(
    {
        "namespaces",
        "nodes",
        "serviceaccounts",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "events",
        "services",
    }
)


def generate_name(prefix: str) -> str:
    """Return `prefix` (cut to 58 characters) plus five random characters, as Kubernetes does."""
    return prefix[:58] + "".join(secrets.choice(_SUFFIX_ALPHABET) for _ in range(5))


def prepare_create(kind: ResourceType, obj: Object, name: str, *, sequence: int) -> Object:
    """Return the object as it is stored first.

    Raises:
        Invalid: The name or a label or annotation key is none that Kubernetes takes.
    """
    given: dict[str, Any] = obj.get("metadata") or {}
    metadata: dict[str, Any] = {"name": name}
    if given.get("generateName"):
        metadata["generateName"] = given["generateName"]
    if kind.namespaced:
        metadata["namespace"] = given.get("namespace") or "default"
    metadata["uid"] = str(uuid.uuid4())
    metadata["resourceVersion"] = str(sequence)
    if kind.id not in _WITHOUT_GENERATION:
        metadata["generation"] = 1
    metadata["creationTimestamp"] = timestamp()
    _keep_metadata(metadata, given)
    new = {**obj, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
    if kind.status:
        new.pop("status", None)
    new = _habits(kind, new)
    if kind is scheme.NAMESPACE:
        labels = {"kubernetes.io/metadata.name": name, **metadata.get("labels", {})}
        new["metadata"] = {**metadata, "labels": labels}
        new["spec"] = {**(new.get("spec") or {}), "finalizers": ["kubernetes"]}
        new["status"] = {"phase": "Active"}
    elif kind is scheme.POD:
        new["status"] = {"phase": "Pending"}
    check_metadata(kind, new)
    if kind is scheme.POD:
        _check_pod_names(new)
    return new


def prepare_update(kind: ResourceType, obj: Object, old: Object, *, sequence: int) -> Object:
    """Return what `obj` turns `old` into, or `old` itself when that changes nothing.

    Raises:
        Invalid: An immutable field differs, or a finalizer is added to an object being deleted.
        Conflict: `obj` names another uid.
    """
    given: dict[str, Any] = obj.get("metadata") or {}
    before: dict[str, Any] = old["metadata"]
    check_uid(kind, before["name"], given.get("uid"), before.get("uid"))
    metadata = {k: v for k, v in before.items() if k not in _KEPT_METADATA}
    _keep_metadata(metadata, given)
    if "managedFields" not in metadata and "managedFields" in before:
        metadata["managedFields"] = before["managedFields"]
    new = {**obj, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
    if kind.status:
        new.pop("status", None)
        if "status" in old:
            new["status"] = old["status"]
    new = _habits(kind, new)
    if kind is scheme.NAMESPACE:
        new["spec"] = old.get("spec", {})
    _check_immutable(kind, new, old)
    wish_changed = _wish(new) != _wish(old)
    if not wish_changed and metadata == before and new.get("status") == old.get("status"):
        return old
    if wish_changed and "generation" in before:
        metadata["generation"] = before["generation"] + 1
    metadata["resourceVersion"] = str(sequence)
    if metadata != before:
        check_metadata(kind, new)
    return new


def check_uid(kind: ResourceType, name: str, given: str | None, uid: str | None) -> None:
    """Check a uid that the caller expects.

    Raises:
        Conflict: It is another one.
    """
    if given and given != uid:
        raise Conflict(
            f'Operation cannot be fulfilled on {kind.id} "{name}": Precondition failed: '
            f"UID in precondition: {given}, UID in object meta: {uid}"
        )


def invalid(kind: ResourceType, name: str, causes: list[Cause]) -> Invalid:
    """Return the 422 with these causes, in the API server's words."""
    title = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return Invalid(f'{title} "{name}" is invalid: {listed}', causes=causes)


def check_metadata(kind: ResourceType, obj: Object) -> None:
    """Check name, label and annotation syntax.

    Raises:
        Invalid: With one cause per finding.
    """
    causes = [
        Cause(_REASONS[reason], message, ".".join(["metadata", *(str(p) for p in path)]))
        for path, reason, message in metadata_rules.check(obj, kind)
    ]
    if causes:
        raise invalid(kind, str(obj["metadata"].get("name") or ""), causes)


def _check_pod_names(pod: Object) -> None:
    """Check the names of containers and volumes: they become names of files and folders here.

    Raises:
        Invalid: One is no RFC 1123 label, or missing, or given twice.
    """
    causes: list[Cause] = []
    spec = pod.get("spec") or {}
    for fields in (("containers", "initContainers"), ("volumes",)):
        seen: set[str] = set()
        for field in fields:
            for index, item in enumerate(spec.get(field) or ()):
                where = f"spec.{field}[{index}].name"
                name = item.get("name") if isinstance(item, dict) else None
                if not name:
                    causes.append(Cause("FieldValueRequired", "Required value", where))
                elif problem := metadata_rules.label_problem(str(name)):
                    causes.append(_value(where, str(name), problem))
                elif name in seen:
                    causes.append(Cause("FieldValueDuplicate", f'Duplicate value: "{name}"', where))
                seen.add(str(name))
    if causes:
        raise invalid(scheme.POD, str(pod["metadata"].get("name") or ""), causes)


def mark_deleted(
    obj: Object, *, sequence: int, at: str, grace: int, finalizers: list[str]
) -> Object:
    """Return the object with its deletionTimestamp (kept if there already) and these finalizers."""
    metadata = {**obj["metadata"], "resourceVersion": str(sequence)}
    if "deletionTimestamp" not in metadata:
        metadata["deletionTimestamp"] = at
        if "generation" in metadata:
            metadata["generation"] += 1
    elif at < metadata["deletionTimestamp"]:
        metadata["deletionTimestamp"] = at
    metadata["deletionGracePeriodSeconds"] = grace
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = finalizers
    return {**obj, "metadata": metadata}


def _keep_metadata(metadata: dict[str, Any], given: dict[str, Any]) -> None:
    for field in _KEPT_METADATA:
        if given.get(field):
            metadata[field] = given[field]


def _wish(obj: Object) -> dict[str, Any]:
    return {k: v for k, v in obj.items() if k not in ("metadata", "status")}


def _habits(kind: ResourceType, obj: Object) -> Object:
    if kind is scheme.SECRET:
        folded = {k: v for k, v in obj.items() if k != "stringData"}
        data = dict(obj.get("data") or {})
        for key, text in (obj.get("stringData") or {}).items():
            data[key] = base64.b64encode(str(text).encode()).decode("ascii")
        if data:
            folded["data"] = data
        folded.setdefault("type", "Opaque")
        return folded
    return obj


def _check_immutable(kind: ResourceType, new: Object, old: Object) -> None:
    name = old["metadata"]["name"]
    causes: list[Cause] = []
    if kind is scheme.SECRET and new.get("type") != old.get("type"):
        causes.append(_value("type", str(new.get("type")), "field is immutable"))
    if kind in (scheme.SECRET, scheme.CONFIG_MAP) and old.get("immutable"):
        causes += [
            Cause("FieldValueForbidden", "Forbidden: field is immutable when `immutable` is set", f)
            for f in ("immutable", "data", "binaryData")
            if new.get(f) != old.get(f)
        ]
    if kind is scheme.DEPLOYMENT:
        selector = (new.get("spec") or {}).get("selector")
        if selector != (old.get("spec") or {}).get("selector"):
            text = json.dumps(selector, separators=(",", ":"))
            cause = Cause(
                "FieldValueInvalid", f"Invalid value: {text}: field is immutable", "spec.selector"
            )
            causes.append(cause)
    if kind is scheme.POD and _fixed(new.get("spec")) != _fixed(_bound(old, new)):
        causes.append(Cause("FieldValueForbidden", f"Forbidden: {_POD_RULE}", "spec"))
    if "deletionTimestamp" in old["metadata"]:
        known = old["metadata"].get("finalizers") or []
        added = [f for f in new["metadata"].get("finalizers") or [] if f not in known]
        if added:
            listed = ", ".join(f'"{f}"' for f in added)
            text = (
                "Forbidden: no new finalizers can be added if the object is being deleted, "
                f"found new finalizers []string{{{listed}}}"
            )
            causes.append(Cause("FieldValueForbidden", text, "metadata.finalizers"))
    if causes:
        raise invalid(kind, name, causes)


def _bound(old: Object, new: Object) -> dict[str, Any]:
    """Return the old PodSpec with the node that the new one names, if it named none: the node
    agent assigns Pods to itself, where a cluster's scheduler posts to `pods/binding`.
    """
    spec = dict(old.get("spec") or {})
    node = (new.get("spec") or {}).get("nodeName")
    if node and not spec.get("nodeName"):
        spec["nodeName"] = node
    return spec


def _fixed(spec: dict[str, Any] | None) -> dict[str, Any]:
    """Return what of a PodSpec may not change; tolerations only ever grow, which is not checked."""
    spec = {k: v for k, v in (spec or {}).items() if k not in _POD_MUTABLE}
    for field in ("containers", "initContainers"):
        listed = spec.get(field)
        if isinstance(listed, list):
            spec[field] = [{k: v for k, v in c.items() if k != "image"} for c in listed]
    return spec


def _value(field: str, value: str, rule: str) -> Cause:
    return Cause("FieldValueInvalid", f'Invalid value: "{value}": {rule}', field)
