"""What the API server demands of `metadata`: names, namespaces, labels, annotations, finalizers.

Texts are those of Kubernetes' `validation` package (RFC 1123 and RFC 1035 names, qualified names).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from kserve_local.api.meta import Object
from kserve_local.api.scheme import ResourceType

Problem = tuple[tuple[str | int, ...], Literal["invalid", "required", "type", "toolong"], str]
"""Path below `metadata`, kind and message of one finding."""

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = f"({_QUALIFIED})?"

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must"
    " start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for"
    f" validation is '{_LABEL}')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.',"
    " and must start and end with an alphanumeric character (e.g. 'example.com', regex used for"
    f" validation is '{_SUBDOMAIN}')"
)
_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an"
    " alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123',"
    f" regex used for validation is '{_1035}')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end"
    " with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for"
    f" validation is '{_QUALIFIED}')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.',"
    " and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or"
    f" '12345', regex used for validation is '{_VALUE}')"
)
_ANNOTATIONS_MAX = 256 * 1024
_1035_KINDS = frozenset({"services", "services.serving.knative.dev"})
_LABEL_KINDS = frozenset({"namespaces"})


def check(obj: Object, kind: ResourceType) -> Iterator[Problem]:
    """Yield what is wrong with an object's metadata, for a create."""
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        yield (), "type", _type_text("metadata", metadata, "object")
        return
    yield from _check_name(metadata, kind)
    yield from _check_namespace(metadata, kind)
    yield from _check_labels(metadata.get("labels"))
    yield from _check_annotations(metadata.get("annotations"))
    yield from _check_objects(
        "ownerReferences", metadata, texts=("apiVersion", "kind", "name", "uid")
    )
    yield from _check_objects("managedFields", metadata, texts=("manager", "operation"))
    finalizers = metadata.get("finalizers")
    if finalizers is not None and not (
        isinstance(finalizers, list) and all(isinstance(f, str) for f in finalizers)
    ):
        yield ("finalizers",), "type", _type_text("metadata.finalizers", finalizers, "array")


def name_problem(name: str, kind: ResourceType) -> str:
    """Return what is wrong with a name of that kind, empty if nothing."""
    if kind.id in _1035_KINDS:
        return _name_problem(name, _1035, _1035_TEXT, 63)
    if kind.id in _LABEL_KINDS:
        return _name_problem(name, _LABEL, _LABEL_TEXT, 63)
    return _name_problem(name, _SUBDOMAIN, _SUBDOMAIN_TEXT, 253)


def label_problem(name: str) -> str:
    """Return why a name is no RFC 1123 label (containers, volumes), empty if it is one."""
    return _name_problem(name, _LABEL, _LABEL_TEXT, 63)


def _name_problem(name: str, pattern: str, text: str, longest: int) -> str:
    if len(name) > longest:
        return f"must be no more than {longest} characters"
    return "" if re.fullmatch(pattern, name) else text


def _check_name(metadata: dict[str, Any], kind: ResourceType) -> Iterator[Problem]:
    name, prefix = metadata.get("name"), metadata.get("generateName")
    for key, value in (("name", name), ("generateName", prefix)):
        if value is not None and not isinstance(value, str):
            yield (key,), "type", _type_text(f"metadata.{key}", value, "string")
            return
    if prefix and not name:
        problem = name_problem(f"{prefix}x", kind)
        if problem:
            yield ("generateName",), "invalid", f'Invalid value: "{prefix}": {problem}'
        return
    if not name:
        yield ("name",), "required", "Required value: name or generateName is required"
        return
    problem = name_problem(str(name), kind)
    if problem:
        yield ("name",), "invalid", f'Invalid value: "{name}": {problem}'


def _check_namespace(metadata: dict[str, Any], kind: ResourceType) -> Iterator[Problem]:
    namespace = metadata.get("namespace")
    if namespace is None or namespace == "":
        return
    if not isinstance(namespace, str):
        yield ("namespace",), "type", _type_text("metadata.namespace", namespace, "string")
        return
    problem = _name_problem(namespace, _LABEL, _LABEL_TEXT, 63)
    if kind.namespaced and problem:
        yield ("namespace",), "invalid", f'Invalid value: "{namespace}": {problem}'


def _check_labels(labels: Any) -> Iterator[Problem]:
    for key, value in _text_map("labels", labels):
        if not isinstance(value, str):
            continue
        problem = _qualified_problem(key)
        if problem:
            yield ("labels", key), "invalid", f'Invalid value: "{key}": {problem}'
        if len(value) > 63:
            text = f'Invalid value: "{value}": must be no more than 63 characters'
            yield ("labels", key), "invalid", text
        elif not re.fullmatch(_VALUE, value):
            yield ("labels", key), "invalid", f'Invalid value: "{value}": {_VALUE_TEXT}'
    yield from _not_texts("labels", labels)


def _check_annotations(annotations: Any) -> Iterator[Problem]:
    total = 0
    for key, value in _text_map("annotations", annotations):
        problem = _qualified_problem(key.lower())
        if problem:
            yield ("annotations", key), "invalid", f'Invalid value: "{key}": {problem}'
        total += len(key.encode()) + len(str(value).encode())
    if total > _ANNOTATIONS_MAX:
        text = f"Too long: may not be more than {_ANNOTATIONS_MAX} bytes"
        yield ("annotations",), "toolong", text
    yield from _not_texts("annotations", annotations)


def _check_objects(
    field: str, metadata: dict[str, Any], *, texts: tuple[str, ...]
) -> Iterator[Problem]:
    """Check a list of objects; what the store indexes and merges by must have its type."""
    listed = metadata.get(field)
    if listed is None:
        return
    if not isinstance(listed, list):
        yield (field,), "type", _type_text(f"metadata.{field}", listed, "array")
        return
    for index, item in enumerate(listed):
        if not isinstance(item, dict):
            where = f"metadata.{field}[{index}]"
            yield (field, index), "type", _type_text(where, item, "object")
            continue
        for key in texts:
            if item.get(key) is not None and not isinstance(item[key], str):
                where = f"metadata.{field}[{index}].{key}"
                yield (field, index, key), "type", _type_text(where, item[key], "string")
        fields = item.get("fieldsV1") if field == "managedFields" else None
        if fields is not None and not isinstance(fields, dict):
            where = f"metadata.{field}[{index}].fieldsV1"
            yield (field, index, "fieldsV1"), "type", _type_text(where, fields, "object")


def _text_map(field: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())


def _not_texts(field: str, value: Any) -> Iterator[Problem]:
    if value is None:
        return
    if not isinstance(value, dict):
        yield (field,), "type", _type_text(f"metadata.{field}", value, "object")
        return
    for key, item in value.items():
        # null decodes as the empty text in Go.
        if item is not None and not isinstance(item, str):
            yield (field, key), "type", _type_text(f"metadata.{field}.{key}", item, "string")


@lru_cache(4096)
def _qualified_problem(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if slash and not prefix:
        return "prefix part must be non-empty"
    if "/" in prefix:
        return (
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must"
            " start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or"
            f" '123-abc', regex used for validation is '{_QUALIFIED}') with an optional DNS"
            " subdomain prefix and '/' (e.g. 'example.com/MyName')"
        )
    if prefix and _name_problem(prefix, _SUBDOMAIN, _SUBDOMAIN_TEXT, 253):
        return f"prefix part {_SUBDOMAIN_TEXT}"
    if not name:
        return "name part must be non-empty"
    if len(name) > 63:
        return "name part must be no more than 63 characters"
    return "" if re.fullmatch(_QUALIFIED, name) else _QUALIFIED_TEXT


def _type_text(field: str, value: Any, wanted: str) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer"}
    got = "null" if value is None else names.get(type(value), "number")
    return f'Invalid value: "{got}": {field} in body must be of type {wanted}: "{got}"'
