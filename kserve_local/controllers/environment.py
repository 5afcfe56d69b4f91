"""A container's environment and command line as kubelet would resolve them. Pure.

Reads the Pod and, through `Sources`, the Secrets and ConfigMaps it names; gives plain values.
Copies kubelet's rules: `envFrom` before `env`, later entries win, `$(VAR)` expands against what is
already defined and stays as written otherwise, `$$(VAR)` is the escape, optional references may be
missing. Values of Secrets end up in the environment only: errors name objects and keys, never
values.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api import quantity
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of, uid_of

_REFERENCE = re.compile(r"\$(?:\$|\(([^()]*)\))")
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_SUBSCRIPT = re.compile(r"(metadata\.(?:labels|annotations))\['([^']*)'\]")


class ConfigError(Exception):
    """A reference cannot be resolved; the text is kubelet's CreateContainerConfigError message."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where references are looked up: one namespace's Secrets and ConfigMaps by name."""

    secret: Callable[[str], Object | None]
    config_map: Callable[[str], Object | None]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What fieldRef and resourceFieldRef need beyond the Pod.

    Args:
        cpu: Cores of the machine, the value of `limits.cpu` where none is set.
        memory_bytes: Likewise for memory.
    """

    name: str
    host_ip: str
    pod_ip: str
    cpu: float
    memory_bytes: int


def secret_value(secret: Object, key: str) -> bytes | None:
    """Return the decoded value under `data` (or plain under `stringData`), None if absent."""
    data = secret.get("data") or {}
    if key in data:
        try:
            return base64.b64decode(str(data[key]), validate=True)
        except binascii.Error:
            return str(data[key]).encode()
    plain = secret.get("stringData") or {}
    return str(plain[key]).encode() if key in plain else None


def secret_keys(secret: Object) -> tuple[str, ...]:
    """Return all keys of the secret, in order."""
    return tuple({**(secret.get("data") or {}), **(secret.get("stringData") or {})})


def config_map_data(config_map: Object) -> dict[str, bytes]:
    """Return `data` and the decoded `binaryData`."""
    found = {k: str(v).encode() for k, v in (config_map.get("data") or {}).items()}
    for key, value in (config_map.get("binaryData") or {}).items():
        found[key] = base64.b64decode(str(value))
    return found


def expand(text: str, values: Mapping[str, str]) -> str:
    """Return the text with `$(VAR)` replaced; unknown names stay, `$$` becomes `$`.

    Source: Kubernetes third_party/forked/golang/expansion.
    """

    def one(match: re.Match[str]) -> str:
        if match.group(1) is None:
            return "$"
        return values.get(match.group(1), match.group(0))

    return _REFERENCE.sub(one, text)


def _field(pod: Object, path: str, node: NodeFacts) -> str:
    """Return the value of a `fieldRef.fieldPath`."""
    by_subscript = _SUBSCRIPT.fullmatch(path)
    if by_subscript is not None:
        where = labels_of if by_subscript.group(1) == "metadata.labels" else annotations_of
        return where(pod).get(by_subscript.group(2), "")
    spec = pod.get("spec") or {}
    fields: dict[str, str] = {
        "metadata.name": name_of(pod),
        "metadata.namespace": namespace_of(pod),
        "metadata.uid": uid_of(pod),
        "spec.nodeName": str(spec.get("nodeName") or node.name),
        "spec.serviceAccountName": str(spec.get("serviceAccountName") or "default"),
        "status.hostIP": node.host_ip,
        "status.hostIPs": node.host_ip,
        "status.podIP": node.pod_ip,
        "status.podIPs": node.pod_ip,
    }
    if path in ("metadata.labels", "metadata.annotations"):
        where = labels_of if path == "metadata.labels" else annotations_of
        return "\n".join(f'{k}="{v}"' for k, v in sorted(where(pod).items()))
    if path not in fields:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return fields[path]


def _resource(
    pod: Object, container: Mapping[str, Any], ref: Mapping[str, Any], n: NodeFacts
) -> str:
    """Return the value of a `resourceFieldRef`, rounded up to the divisor."""
    spec = pod.get("spec") or {}
    wanted = ref.get("containerName") or container.get("name")
    every = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    target = next((c for c in every if c.get("name") == wanted), None)
    if target is None:
        raise ConfigError(f"container {wanted} not found")
    kind, _, resource = str(ref.get("resource", "")).partition(".")
    resources = target.get("resources") or {}
    found = (resources.get(kind) or {}).get(resource)
    if found is None and kind == "limits":
        found = {"cpu": n.cpu, "memory": n.memory_bytes}.get(resource, 0)
    value = quantity.parse(found or 0)
    divisor = quantity.parse(ref.get("divisor") or 1) or 1
    return str(math.ceil(value / divisor))


def _value_from(
    entry: Mapping[str, Any],
    source: Mapping[str, Any],
    pod: Object,
    container: Mapping[str, Any],
    sources: Sources,
    node: NodeFacts,
) -> str | None:
    """Return the value of one `valueFrom`, None for an optional reference to nothing."""
    if (ref := source.get("secretKeyRef")) is not None:
        name, key = str(ref.get("name", "")), str(ref.get("key", ""))
        secret = sources.secret(name)
        if secret is None:
            if ref.get("optional"):
                return None
            raise ConfigError(f'secret "{name}" not found')
        value = secret_value(secret, key)
        if value is None:
            if ref.get("optional"):
                return None
            raise ConfigError(f"couldn't find key {key} in Secret {namespace_of(pod)}/{name}")
        return value.decode(errors="surrogateescape")
    if (ref := source.get("configMapKeyRef")) is not None:
        name, key = str(ref.get("name", "")), str(ref.get("key", ""))
        config_map = sources.config_map(name)
        if config_map is None:
            if ref.get("optional"):
                return None
            raise ConfigError(f'configmap "{name}" not found')
        data = config_map.get("data") or {}
        if key not in data:
            if ref.get("optional"):
                return None
            raise ConfigError(f"couldn't find key {key} in ConfigMap {namespace_of(pod)}/{name}")
        return str(data[key])
    if (ref := source.get("fieldRef")) is not None:
        return _field(pod, str(ref.get("fieldPath", "")), node)
    if (ref := source.get("resourceFieldRef")) is not None:
        return _resource(pod, container, ref, node)
    raise ConfigError(f"env {entry.get('name')}: valueFrom has no known source")


def _from_whole(entry: Mapping[str, Any], pod: Object, sources: Sources) -> Mapping[str, str]:
    """Return the variables of one `envFrom` entry; keys that are no variable names are skipped."""
    prefix = str(entry.get("prefix") or "")
    found: Mapping[str, str] = {}
    if (ref := entry.get("secretRef")) is not None:
        secret = sources.secret(str(ref.get("name", "")))
        if secret is not None:
            found = {
                key: (secret_value(secret, key) or b"").decode(errors="surrogateescape")
                for key in secret_keys(secret)
            }
        elif not ref.get("optional"):
            raise ConfigError(f'secret "{ref.get("name", "")}" not found')
    if (ref := entry.get("configMapRef")) is not None:
        config_map = sources.config_map(str(ref.get("name", "")))
        if config_map is not None:
            found = {k: str(v) for k, v in (config_map.get("data") or {}).items()}
        elif not ref.get("optional"):
            raise ConfigError(f'configmap "{ref.get("name", "")}" not found')
    return {prefix + k: v for k, v in found.items() if _ENV_NAME.fullmatch(prefix + k)}


def resolve_env(
    pod: Object, container: Mapping[str, Any], sources: Sources, node: NodeFacts
) -> dict[str, str]:
    """Return the container's environment in the order kubelet defines it.

    Raises:
        ConfigError: A Secret, ConfigMap or key is missing and not optional.
    """
    values: dict[str, str] = {}
    for entry in container.get("envFrom") or ():
        values.update(_from_whole(entry, pod, sources))
    for entry in container.get("env") or ():
        name = str(entry.get("name", ""))
        source = entry.get("valueFrom")
        if source:
            value = _value_from(entry, source, pod, container, sources, node)
            if value is not None:
                values[name] = value
        else:
            values[name] = expand(str(entry.get("value") or ""), values)
    return values


def resolve_command(
    container: Mapping[str, Any], env: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the container's `command` and `args` with `$(VAR)` expanded."""

    def all_of(items: Sequence[Any] | None) -> tuple[str, ...]:
        return tuple(expand(str(item), env) for item in items or ())

    return all_of(container.get("command")), all_of(container.get("args"))
