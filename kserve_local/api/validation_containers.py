"""Checks that InferenceServices and runtimes share: forbidden environment variables, GPU types.

Pure (pkg/validation/env_policy.go, pkg/utils/utils.go; control-plane.md 2.5 rows 3 and 4).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kserve_local.api import names
from kserve_local.errors import Forbidden

BLOCKED_ENV = ("PYTHONPATH",)
_BASIC_RESOURCES = frozenset(("cpu", "memory", "storage", "ephemeral-storage"))


def blocked_env(containers: Iterable[Mapping[str, Any]] | None) -> str | None:
    """Return what is wrong with the first variable that must not be set, if any is."""
    for container in containers or ():
        for entry in container.get("env") or ():
            if entry.get("name") in BLOCKED_ENV:
                return (
                    f'setting {entry["name"]} in container "{container.get("name") or ""}" is not '
                    "allowed for security reasons"
                )
    return None


def has_env(container: Mapping[str, Any], name: str) -> bool:
    """Whether the container sets the variable."""
    return any(entry.get("name") == name for entry in container.get("env") or ())


def has_unknown_gpu(
    container: Mapping[str, Any], annotations: Mapping[str, str], known: Sequence[str]
) -> bool:
    """Whether the container asks for a resource that is neither basic nor a known GPU.

    Args:
        known: GPU resource names of the configuration; an annotation adds to them.

    Raises:
        Forbidden: The annotation is no JSON array of names.
    """
    allowed = {*known, *_annotated_gpus(annotations)}
    resources = container.get("resources") or {}
    asked = {*(resources.get("limits") or ()), *(resources.get("requests") or ())}
    return bool(asked - _BASIC_RESOURCES - allowed)


def _annotated_gpus(annotations: Mapping[str, str]) -> list[str]:
    text = annotations.get(names.GPU_RESOURCE_TYPES)
    if text is None:
        return []
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not listed:
        listed = None
    if listed is None or not all(isinstance(item, str) and item for item in listed):
        raise Forbidden(
            f"invalid GPU format({text}) for {names.GPU_RESOURCE_TYPES} annotation: must be a "
            "valid JSON array"
        )
    return [str(item) for item in listed]
