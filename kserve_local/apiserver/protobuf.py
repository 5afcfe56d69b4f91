"""Kubernetes' protobuf bodies, as far as kubectl sends them where it has no other form. Pure.

From 1.32 on `kubectl create` of a namespace, configmap, secret, serviceaccount, deployment or
service writes `application/vnd.kubernetes.protobuf` and does not fall back to JSON. Field numbers
are those of k8s.io/api v0.33. A field that is not in these tables is refused, never dropped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from kserve_local.api.meta import Object, timestamp
from kserve_local.errors import BadRequest, UnsupportedMediaType

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"

# Message -> field number -> name and type. `?`: a pointer, whose zero value counts; `[]`: a list.
_MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "ObjectMeta": {
        1: ("name", "string"),
        2: ("generateName", "string"),
        3: ("namespace", "string"),
        4: ("selfLink", "string"),
        5: ("uid", "string"),
        6: ("resourceVersion", "string"),
        7: ("generation", "int"),
        8: ("creationTimestamp", "time"),
        10: ("deletionGracePeriodSeconds", "int?"),
        11: ("labels", "map"),
        12: ("annotations", "map"),
        14: ("finalizers", "[]string"),
    },
    "Namespace": {1: ("metadata", "ObjectMeta"), 2: ("spec", "NsSpec"), 3: ("status", "NsStatus")},
    "NsSpec": {1: ("finalizers", "[]string")},
    "NsStatus": {1: ("phase", "string")},
    "ConfigMap": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "map"),
        3: ("binaryData", "bytesmap"),
        4: ("immutable", "bool?"),
    },
    "Secret": {
        1: ("metadata", "ObjectMeta"),
        2: ("data", "bytesmap"),
        3: ("type", "string"),
        4: ("stringData", "map"),
        5: ("immutable", "bool?"),
    },
    "ServiceAccount": {
        1: ("metadata", "ObjectMeta"),
        2: ("secrets", "[]ObjectReference"),
        3: ("imagePullSecrets", "[]LocalObjectReference"),
        4: ("automountServiceAccountToken", "bool?"),
    },
    "ObjectReference": {
        1: ("kind", "string"),
        2: ("namespace", "string"),
        3: ("name", "string"),
        4: ("uid", "string"),
        5: ("apiVersion", "string"),
        6: ("resourceVersion", "string"),
        7: ("fieldPath", "string"),
    },
    "LocalObjectReference": {1: ("name", "string")},
    "Deployment": {
        1: ("metadata", "ObjectMeta"),
        2: ("spec", "DeploymentSpec"),
        3: ("status", "skip"),
    },
    "DeploymentSpec": {
        1: ("replicas", "int?"),
        2: ("selector", "LabelSelector"),
        3: ("template", "PodTemplateSpec"),
        4: ("strategy", "DeploymentStrategy"),
        5: ("minReadySeconds", "int"),
        6: ("revisionHistoryLimit", "int?"),
        7: ("paused", "bool"),
        9: ("progressDeadlineSeconds", "int?"),
    },
    "DeploymentStrategy": {1: ("type", "string")},
    "LabelSelector": {1: ("matchLabels", "map")},
    "PodTemplateSpec": {1: ("metadata", "ObjectMeta"), 2: ("spec", "PodSpec")},
    "PodSpec": {
        2: ("containers", "[]Container"),
        3: ("restartPolicy", "string"),
        4: ("terminationGracePeriodSeconds", "int?"),
        6: ("dnsPolicy", "string"),
        7: ("nodeSelector", "map"),
        8: ("serviceAccountName", "string"),
        9: ("serviceAccount", "string"),
        10: ("nodeName", "string"),
        11: ("hostNetwork", "bool"),
        12: ("hostPID", "bool"),
        13: ("hostIPC", "bool"),
        16: ("hostname", "string"),
        17: ("subdomain", "string"),
        19: ("schedulerName", "string"),
        24: ("priorityClassName", "string"),
    },
    "Container": {
        1: ("name", "string"),
        2: ("image", "string"),
        3: ("command", "[]string"),
        4: ("args", "[]string"),
        5: ("workingDir", "string"),
        6: ("ports", "[]ContainerPort"),
        7: ("env", "[]EnvVar"),
        8: ("resources", "Resources"),
        13: ("terminationMessagePath", "string"),
        14: ("imagePullPolicy", "string"),
        16: ("stdin", "bool"),
        17: ("stdinOnce", "bool"),
        18: ("tty", "bool"),
        20: ("terminationMessagePolicy", "string"),
    },
    "ContainerPort": {
        1: ("name", "string"),
        2: ("hostPort", "int"),
        3: ("containerPort", "int"),
        4: ("protocol", "string"),
        5: ("hostIP", "string"),
    },
    "EnvVar": {1: ("name", "string"), 2: ("value", "string")},
    "Resources": {},
    "Service": {1: ("metadata", "ObjectMeta"), 2: ("spec", "ServiceSpec"), 3: ("status", "skip")},
    "ServiceSpec": {
        1: ("ports", "[]ServicePort"),
        2: ("selector", "map"),
        3: ("clusterIP", "string"),
        4: ("type", "string"),
        5: ("externalIPs", "[]string"),
        7: ("sessionAffinity", "string"),
        8: ("loadBalancerIP", "string"),
        10: ("externalName", "string"),
        11: ("externalTrafficPolicy", "string"),
        12: ("healthCheckNodePort", "int"),
        13: ("publishNotReadyAddresses", "bool"),
    },
    "ServicePort": {
        1: ("name", "string"),
        2: ("protocol", "string"),
        3: ("port", "int"),
        4: ("targetPort", "int-or-string"),
        5: ("nodePort", "int"),
    },
}
_KINDS = {
    (version, kind)
    for version, kinds in {
        "v1": ("Namespace", "ConfigMap", "Secret", "ServiceAccount", "Service"),
        "apps/v1": ("Deployment",),
    }.items()
    for kind in kinds
}


def decode(body: bytes) -> Object:
    """Return the object in a protobuf body.

    Raises:
        UnsupportedMediaType: Its kind, or a field of it, is not among those that are decoded.
        BadRequest: It is no Kubernetes protobuf.
    """
    if not body.startswith(_MAGIC):
        raise BadRequest("the body is no Kubernetes protobuf: it does not begin with k8s")
    try:
        envelope = dict(_fields(body[len(_MAGIC) :]))
        type_meta = dict(_fields(_bytes(envelope.get(1, b""))))
        api_version, kind = (_bytes(type_meta.get(n, b"")).decode() for n in (1, 2))
        if (api_version, kind) not in _KINDS:
            raise UnsupportedMediaType(
                f"{kind} in {api_version} is not read from protobuf; send JSON or YAML instead "
                f"(kubectl apply -f)"
            )
        raw = _bytes(envelope.get(2, b""))
        return {"apiVersion": api_version, "kind": kind, **_message(raw, kind)}
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise BadRequest(f"the protobuf body cannot be read: {error}") from error


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("it ends early")
            yield number, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value - (1 << 64) if value >= 1 << 63 else value), at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _message(data: bytes, type_: str) -> dict[str, Any]:
    known = _MESSAGES[type_]
    result: dict[str, Any] = {}
    for number, value in _fields(data):
        if number not in known:
            raise UnsupportedMediaType(
                f"field {number} of {type_} is not read from protobuf; send JSON or YAML instead "
                f"(kubectl apply -f)"
            )
        name, field_type = known[number]
        if field_type.startswith("[]"):
            item = _value(value, field_type[2:])
            result.setdefault(name, []).append({} if item is None else item)
        elif field_type in ("map", "bytesmap"):
            entry = dict(_fields(_bytes(value)))
            content = _bytes(entry.get(2, b""))
            text = base64.b64encode(content) if field_type == "bytesmap" else content
            result.setdefault(name, {})[_bytes(entry.get(1, b"")).decode()] = text.decode()
        elif field_type != "skip":
            item = _value(value, field_type.rstrip("?"))
            # Go writes the zero value of whatever is no pointer; `omitempty` in JSON drops it.
            if field_type.endswith("?") or item not in (None, "", 0, False, {}):
                result[name] = item
    return result


def _value(value: int | bytes, type_: str) -> Any:
    if type_ == "string":
        return _bytes(value).decode()
    if type_ == "int":
        return value
    if type_ == "bool":
        return bool(value)
    if type_ == "time":
        seconds = dict(_fields(_bytes(value))).get(1)
        return timestamp(datetime.fromtimestamp(int(seconds), UTC)) if seconds else None
    if type_ == "int-or-string":
        parts = dict(_fields(_bytes(value)))
        return _bytes(parts.get(3, b"")).decode() if parts.get(1) else parts.get(2, 0)
    return _message(_bytes(value), type_)
