"""What changed from one Revision to the next, in the words of an InferenceService. Pure.

A Revision holds the Pod's template as KServe made it; where a field of the InferenceService stands
behind an annotation (storageUri, minReplicas, ...), the field is named. What the chain itself
writes (hashes, routing state, the name of the file) is no change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of, labels_of

LONGEST = 60
"""Characters of a value that are shown."""

_FIELDS = {
    names.SOURCE_URI: "storageUri",
    names.MIN_SCALE: "minReplicas",
    names.MAX_SCALE: "maxReplicas",
    names.AUTOSCALING_TARGET: "scaleTarget",
    names.AUTOSCALING_METRIC: "scaleMetric",
    names.LOGGER_SINK_URL: "logger.url",
    names.LOGGER_MODE: "logger.mode",
    names.BATCHER_MAX_BATCH_SIZE: "batcher.maxBatchSize",
    names.BATCHER_MAX_LATENCY: "batcher.maxLatency",
    "timeoutSeconds": "timeout",
}
_OURS = (
    names.MANIFEST,
    names.LAST_APPLIED,
    f"{names.LOCAL_PREFIX}/",
    f"{names.KNATIVE_GROUP}/",
    "responseStartTimeoutSeconds",
)
"""Beginnings of keys that say nothing of the spec."""

Value = str | None


def changes(old: Object, new: Object) -> list[str]:
    """Return one text a change, e.g. `storageUri ./v1 → ./v2`, `env LEVEL + debug`."""
    before, after = dict(_facts(old)), dict(_facts(new))
    found = []
    for key in {**before, **after}:
        was, now = before.get(key), after.get(key)
        if was == now:
            continue
        if was is None:
            found.append(f"{key} + {_short(now)}")
        elif now is None:
            found.append(f"{key} - {_short(was)}")
        else:
            found.append(f"{key} {_short(was)} → {_short(now)}")
    # What a user edits most comes first; the rest keeps the template's order.
    return sorted(found, key=lambda text: not text.startswith(("storageUri", "image ")))


def changed_fields(old: Any, new: Any, at: str = "") -> list[str]:
    """Return the paths of the fields in which two JSON values differ, as `spec.predictor.model`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            path
            for key in {**old, **new}
            for path in changed_fields(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            path
            for n, pair in enumerate(zip(old, new, strict=True))
            for path in changed_fields(*pair, f"{at}[{n}]")
        ]
    return [] if old == new else [at]


def _facts(revision: Object) -> Iterator[tuple[str, Value]]:
    """Yield what a Revision was made from, by a name that a user knows."""
    for key, value in annotations_of(revision).items():
        if not key.startswith(_OURS):
            yield _FIELDS.get(key, f"annotation {key}"), str(value)
    for key, value in labels_of(revision).items():
        if not key.startswith(_OURS):
            yield f"label {key}", str(value)
    spec: Mapping[str, Any] = revision.get("spec") or {}
    containers = spec.get("containers") or ()
    for kind in ("containers", "initContainers"):
        for container in spec.get(kind) or ():
            name = str(container.get("name") or "")
            alone = kind == "containers" and len(containers) == 1
            prefix = "" if alone or name == names.PREDICTOR_CONTAINER else f"{name}: "
            yield from _of_container(container, prefix)
    for key, value in spec.items():
        if key not in ("containers", "initContainers") and not key.startswith(_OURS):
            yield from _flat(_FIELDS.get(key, key), value)


def _of_container(container: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Value]]:
    for key, value in container.items():
        if key == "env":
            for entry in value or ():
                shown = entry.get("value")
                if shown is None:
                    shown = json.dumps(entry.get("valueFrom") or {})
                yield f"{prefix}env {entry.get('name')}", str(shown)
        elif key in ("args", "command"):
            yield from _arguments(f"{prefix}{key}", value or ())
        elif key != "name":
            yield from _flat(f"{prefix}{key}", value)


def _arguments(key: str, words: Sequence[object]) -> Iterator[tuple[str, Value]]:
    """Yield an argument a fact, so that one more flag is one more fact."""
    plain = []
    for word in map(str, words):
        flag, _, value = word.partition("=")
        if flag.startswith("-") and value:
            yield f"{key} {flag}", value
        else:
            plain.append(word)
    if plain:
        yield key, " ".join(plain)


def _flat(key: str, value: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping) and value:
        for inner, content in value.items():
            yield from _flat(f"{key}.{inner}", content)
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        for number, item in enumerate(value):
            named = {k: v for k, v in item.items() if k != "name"}
            yield from _flat(f"{key}[{item.get('name') or number}]", named)
    elif value is not None and value not in ({}, []):
        yield key, value if isinstance(value, str) else json.dumps(value)


def _short(value: Value) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
