"""Label and field selectors: text -> predicate. Pure.

Labels take Kubernetes' whole grammar; fields only those that the API server indexes per kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kserve_local.api import scheme
from kserve_local.api.meta import Object, labels_of
from kserve_local.api.scheme import ResourceType
from kserve_local.errors import BadRequest

Predicate = Callable[[Object], bool]

# Possessive, so that no run of blanks is tried twice: a selector is read in one pass.
_SET = re.compile(r"\s*+([^\s!=,()]++)\s++(in|notin)\s*+\(([^()]*+)\)\s*+")
_EXISTS = re.compile(r"\s*+(!?)\s*+([^\s!=,()]++)\s*+")
_EQUALS = re.compile(r"\s*+([^\s!=,()]++)\s*+(==|=|!=)\s*+([^\s=,()]*+)\s*+")

_FIELDS: dict[str, tuple[str, ...]] = {
    scheme.POD.id: (
        "status.phase",
        "status.podIP",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
    ),
    scheme.EVENT.id: (
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "type",
        "source",
        "reportingComponent",
    ),
    scheme.SECRET.id: ("type",),
    scheme.NAMESPACE.id: ("status.phase",),
    scheme.NODE.id: ("spec.unschedulable",),
    scheme.SERVICE.id: ("spec.clusterIP", "spec.type"),
}


def label_selector(text: str) -> Predicate | None:
    """Return the predicate of a `labelSelector`, None for an empty one.

    Raises:
        BadRequest: It cannot be parsed.
    """
    tests: list[Callable[[dict[str, str]], bool]] = [
        _requirement(part) for part in _split(text) if part.strip()
    ]
    if not tests:
        return None
    return lambda obj: all(test(dict(labels_of(obj))) for test in tests)


def field_selector(kind: ResourceType, text: str) -> Predicate | None:
    """Return the predicate of a `fieldSelector`, None for an empty one.

    Raises:
        BadRequest: It cannot be parsed, or this kind does not index the field.
    """
    wanted: list[tuple[tuple[str, ...], str, bool]] = []
    known = ("metadata.name", "metadata.namespace", *_FIELDS.get(kind.id, ()))
    for part in text.split(","):
        if not part.strip():
            continue
        match = re.fullmatch(r"([\w.]++)\s*+(==|=|!=)\s*+(.*)", part.strip())
        if match is None:
            raise BadRequest(f"invalid selector: '{part}'; can't understand '{part}'")
        field, operator, value = match.groups()
        if field not in known:
            raise BadRequest(f"field label not supported: {field}")
        wanted.append((tuple(field.split(".")), value, operator != "!="))
    if not wanted:
        return None
    return lambda obj: all((_value(obj, path) == value) is same for path, value, same in wanted)


def named(kind: ResourceType, text: str) -> str | None:
    """Return the name that a `fieldSelector` of `metadata.name=x` alone asks for."""
    match = re.fullmatch(r"metadata\.name==?([^,=]+)", text)
    return match.group(1) if match else None


def both(first: Predicate | None, second: Predicate | None) -> Predicate | None:
    """Return the conjunction; None means everything matches."""
    if first is None or second is None:
        return first or second
    one, other = first, second
    return lambda obj: one(obj) and other(obj)


def _value(obj: Object, path: tuple[str, ...]) -> str:
    if path == ("source",):
        return str(
            (obj.get("source") or {}).get("component") or obj.get("reportingComponent") or ""
        )
    value: object = obj
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        if char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _requirement(part: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.fullmatch(part):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := _EQUALS.fullmatch(part):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := _EXISTS.fullmatch(part):
        absent, key = match.groups()
        return lambda labels: (key in labels) is not bool(absent)
    raise BadRequest(f"unable to parse requirement: found '{part.strip()}'")
