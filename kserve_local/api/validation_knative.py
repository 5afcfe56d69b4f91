"""Knative's validating webhook for Services: revision template, autoscaling annotations, traffic.

Pure (knative.dev/serving pkg/apis/{serving,autoscaling}; traffic.md 1.9, 1.10, 4.2). What the
structural schema already refuses is not repeated here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of
from kserve_local.errors import Forbidden

Lookup = Callable[[str, str | None], Sequence[Object]]
_Problems = Iterator[tuple[str, ...]]
"""Each a message and the annotations that it is about."""

MAX_TIMEOUT = 600
MAX_CONCURRENCY = 1000
_MAX_INT32 = 2**31 - 1
_TEMPLATE = "spec.template.metadata.annotations"
_TAG = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_HOUR = 3600.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def check(obj: Object, *, lookup: Lookup) -> list[str]:
    """Return the warnings (none) for a Knative Service that may be stored.

    Raises:
        Forbidden: Everything wrong, one line each, in Knative's words.
    """
    problems = [
        f'invalid key name "{key}": metadata.annotations\nautoscaling annotations must be put '
        'under "spec.template.metadata.annotations" to work'
        for key in sorted(annotations_of(obj))
        if key.startswith(names.AUTOSCALING)
    ]
    problems += _rollout_problems(annotations_of(obj))
    spec: Mapping[str, Any] = obj.get("spec") or {}
    template: Mapping[str, Any] = spec.get("template") or {}
    problems += annotation_problems(
        (template.get("metadata") or {}).get("annotations") or {}, _cluster_settings(lookup)
    )
    problems += _spec_problems(template.get("spec") or {})
    problems += _traffic_problems(spec.get("traffic") or ())
    if problems:
        raise Forbidden("validation failed: " + "\n".join(sorted(problems)))
    return []


def annotation_problems(
    annotations: Mapping[str, str], settings: Mapping[str, str] | None = None
) -> list[str]:
    """Return what is wrong with a revision template's autoscaling annotations, one text each.

    Args:
        settings: Data of the ConfigMap `knative-serving/config-autoscaler`, if any.
    """
    found: dict[str, list[str]] = {}
    for rule in _RULES:
        for message, *paths in rule(annotations, settings or {}):
            found.setdefault(message, []).extend(f"{_TEMPLATE}.{path}" for path in paths)
    return [f"{message}: {', '.join(sorted(found[message]))}" for message in sorted(found)]


def template_problems(
    annotations: Mapping[str, str], spec: Mapping[str, Any], settings: Mapping[str, str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each thing wrong with a revision template, and the annotations or fields it is about.

    Args:
        settings: As in `annotation_problems`.
    """
    for rule in _RULES:
        for message, *paths in rule(annotations, settings):
            yield message, tuple(path.partition("=")[0].partition(" ")[0] for path in paths)
    yield from ((message, tuple(fields)) for message, fields in _limit_problems(spec).items())


def value_of(annotations: Mapping[str, str], key: str) -> tuple[str, str] | None:
    """Return (full key, value) of an autoscaling annotation; kebab-case wins over camelCase."""
    head, *rest = key.split("-")
    for spelling in (key, head + "".join(part.capitalize() for part in rest)):
        full = f"{names.AUTOSCALING}/{spelling}"
        if full in annotations:
            return full, annotations[full]
    return None


def parse_duration(text: str) -> float | None:
    """Return the seconds of a Go duration such as `1m30s`; None if it is none."""
    if text in ("0", "+0", "-0"):
        return 0.0
    sign = -1.0 if text.startswith("-") else 1.0
    body = text.lstrip("+-") if text[:1] in "+-" else text
    total, at = 0.0, 0
    while at < len(body):
        part = _PART.match(body, at)
        if part is None:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return sign * total if at else None


def _rollout_problems(annotations: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a gradual rollout's duration; an empty one asks for none."""
    key = next((k for k in names.ROLLOUT_DURATIONS if k in annotations), "")
    text = annotations.get(key, "")
    if not text:
        return []
    seconds = parse_duration(text)
    path = f"metadata.annotations.{key}"
    if seconds is None:
        return [f"invalid value: {text}: {path}"]
    if seconds != int(seconds):
        return [f"rollout-duration={text} is not at second precision: {path}"]
    if seconds < 0:
        return [f"rollout-duration={text} must be positive: {path}"]
    return []


def _cluster_settings(lookup: Lookup) -> Mapping[str, str]:
    for config in lookup("configmaps", "knative-serving"):
        if config["metadata"].get("name") == "config-autoscaler":
            return config.get("data") or {}
    return {}


def _class(annotations: Mapping[str, str], _: Mapping[str, str]) -> _Problems:
    found = annotations.get(names.AUTOSCALING_CLASS)
    own = (names.KPA_CLASS, names.HPA_CLASS)
    if found is not None and found.endswith(".knative.dev") and found not in own:
        yield f"invalid value: {found}", names.AUTOSCALING_CLASS


def _scales(annotations: Mapping[str, str], settings: Mapping[str, str]) -> _Problems:
    given: dict[str, int] = {}
    for key in ("min-scale", "max-scale"):
        found = value_of(annotations, key)
        value = None if found is None else _integer(found[1])
        if found is not None and value is None:
            yield f"invalid value: {found[1]}", found[0]
        elif found is not None and value is not None and not 0 <= value <= _MAX_INT32:
            yield f"expected 0 <= {found[1]} <= {_MAX_INT32}", found[0]
        given[key] = value if value is not None and 0 <= value <= _MAX_INT32 else 0
    least, most = given["min-scale"], given["max-scale"]
    if most and most < least:
        yield f"max-scale={most} is less than min-scale={least}", names.MAX_SCALE, names.MIN_SCALE
    limit = _integer(settings.get("max-scale-limit", "0")) or 0
    high = value_of(annotations, "max-scale")
    if high is not None and limit:
        if most > limit:
            yield f"expected 1 <= {most} <= {limit}", high[0]
        elif most == 0:
            yield f"max-scale=0 (unlimited), must be less than {limit}", high[0]
    yield from _activation(annotations, least, most)


def _activation(annotations: Mapping[str, str], least: int, most: int) -> _Problems:
    text = annotations.get(names.ACTIVATION_SCALE)
    if text is None:
        return
    value = _integer(text)
    if value is None or not -_MAX_INT32 - 1 <= value <= _MAX_INT32:
        yield f"invalid value: {text}", names.ACTIVATION_SCALE
    elif least > value:
        yield (
            f"min-scale={least} is greater than activation-scale={value}",
            names.ACTIVATION_SCALE,
        )
    elif 0 < most < value:
        yield f"max-scale={most} is less than activation-scale={value}", names.ACTIVATION_SCALE
    elif value < 2:
        yield f"activation-scale={value} must be greater than 1", names.ACTIVATION_SCALE


def _initial_scale(annotations: Mapping[str, str], settings: Mapping[str, str]) -> _Problems:
    found = value_of(annotations, "initial-scale")
    if found is None:
        return
    key, text = found
    value = _integer(text)
    if value is None:
        yield f"invalid value: {text}", key
    elif value < 0:
        yield f"invalid value: {text}", f"{key} must be greater than 0"
    elif value == 0 and settings.get("allow-zero-initial-scale", "").lower() != "true":
        yield f"invalid value: {text}", f"{key}=0 not allowed by cluster"


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else None


_FLOATS: tuple[tuple[str, float, float], ...] = (
    ("panic-window-percentage", 1.0, 100.0),
    ("panic-threshold-percentage", 110.0, 1000.0),
    ("target-utilization-percentage", 1.0, 100.0),
)


def _floats(annotations: Mapping[str, str], _: Mapping[str, str]) -> _Problems:
    for key, least, most in _FLOATS:
        found = value_of(annotations, key)
        if found is None:
            continue
        value = _number(found[1])
        if value is None:
            yield f"invalid value: {found[1]}", found[0]
        elif value < least or value > most:
            yield f"expected {least:g} <= {found[1]} <= {most:g}", found[0]
    target = value_of(annotations, "target")
    if target is not None:
        value = _number(target[1])
        if value is None:
            yield f"invalid value: {target[1]}", target[0]
        elif value < 0.01:
            yield f"target {target[1]} should be at least 0.01", target[0]
    burst = value_of(annotations, "target-burst-capacity")
    if burst is not None:
        value = _number(burst[1])
        if value is None or (value < 0 and value != -1):
            yield f"invalid value: {burst[1]}", burst[0]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


_DURATIONS: tuple[tuple[str, float, str, bool], ...] = (
    ("window", 6.0, "6s", True),
    ("scale-to-zero-pod-retention-period", 0.0, "0s", False),
    ("scale-down-delay", 0.0, "0s", True),
)


def _durations(annotations: Mapping[str, str], _: Mapping[str, str]) -> _Problems:
    for key, least, shown, whole in _DURATIONS:
        found = value_of(annotations, key)
        if found is None:
            continue
        full, text = found
        seconds = parse_duration(text)
        if seconds is None:
            yield f"invalid value: {text}", full
        elif not least <= seconds <= _HOUR:
            yield f"expected {shown} <= {text} <= 1h0m0s", full
        elif whole and seconds % 1:
            yield "must be specified with at most second precision", full


def _metric(annotations: Mapping[str, str], settings: Mapping[str, str]) -> _Problems:
    metric = annotations.get(names.AUTOSCALING_METRIC)
    if metric is None:
        return
    default = settings.get("pod-autoscaler-class", names.KPA_CLASS)
    kind = annotations.get(names.AUTOSCALING_CLASS, default)
    wrong = (kind == names.KPA_CLASS and metric not in ("concurrency", "rps")) or (
        kind == names.HPA_CLASS and not metric
    )
    if wrong:
        yield f"invalid value: {metric}", names.AUTOSCALING_METRIC


def _aggregation(annotations: Mapping[str, str], _: Mapping[str, str]) -> _Problems:
    if annotations.get(names.AUTOSCALING_CLASS) != names.KPA_CLASS:
        return
    found = value_of(annotations, "metric-aggregation-algorithm")
    known = ("", "linear", "weighted-exponential", "weightedExponential")
    if found is not None and found[1] not in known:
        yield f"invalid value: {found[1]}", found[0]


_RULES = (_class, _scales, _floats, _durations, _metric, _aggregation, _initial_scale)


def _spec_problems(spec: Mapping[str, Any]) -> list[str]:
    found = _limit_problems(spec)
    return [
        f"{message}: {', '.join(sorted(f'spec.template.spec.{field}' for field in fields))}"
        for message, fields in found.items()
    ]


def _limit_problems(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the fields that are out of bounds, by what is wrong with them."""
    found: dict[str, list[str]] = {}
    limits = (
        ("containerConcurrency", MAX_CONCURRENCY),
        ("timeoutSeconds", MAX_TIMEOUT),
        ("responseStartTimeoutSeconds", MAX_TIMEOUT),
        ("idleTimeoutSeconds", MAX_TIMEOUT),
    )
    for field, most in limits:
        value = spec.get(field)
        if value is not None and not 0 <= value <= most:
            found.setdefault(f"expected 0 <= {value} <= {most}", []).append(field)
    return found


def _traffic_problems(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    problems: list[str] = []
    total = 0
    tags: dict[str, int] = {}
    for index, target in enumerate(targets):
        percent = target.get("percent") or 0
        if not 0 <= percent <= 100:
            problems.append(f"expected 0 <= {percent} <= 100: spec.traffic[{index}].percent")
        total += percent
        tag = target.get("tag")
        if not tag:
            continue
        if not _TAG.fullmatch(tag):
            problems.append(f"not a DNS 1035 label: {tag}: spec.traffic[{index}].tag")
        elif tag in tags:
            problems.append(
                f'Multiple definitions for "{tag}": spec.traffic[{index}].tag, '
                f"spec.traffic[{tags[tag]}].tag"
            )
        tags.setdefault(tag, index)
    if targets and total != 100:
        problems.append(f"Traffic targets sum to {total}, want 100: spec.traffic")
    return problems
