"""Knative's validating webhook for Services: revision template, autoscaling annotations, traffic.

Pure (knative.dev/serving pkg/apis/{serving,autoscaling}; traffic.md 1.9, 1.10, 4.2). What the
structural schema already refuses is not repeated here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of
from kserve_local.errors import Forbidden

Lookup = Callable[[str, str | None], Sequence[Object]]

MAX_TIMEOUT = 600
MAX_CONCURRENCY = 1000
_MAX_INT32 = 2**31 - 1
_TEMPLATE = "spec.template.metadata.annotations"
_METRICS = {"kpa.autoscaling.knative.dev": ("concurrency", "rps")}
_TAG = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_HOUR = 3600.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


class _Problem(Exception):
    """One thing wrong, `message: path`."""


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
        raise Forbidden("validation failed: " + "\n".join(problems))
    return []


def annotation_problems(
    annotations: Mapping[str, str], settings: Mapping[str, str] | None = None
) -> list[str]:
    """Return what is wrong with a revision template's autoscaling annotations, one text each.

    Args:
        settings: Data of the ConfigMap `knative-serving/config-autoscaler`, if any.
    """
    problems: list[str] = []
    settings = settings or {}
    for rule in (_class, _scales, _floats, _durations, _activation, _metric, _aggregation):
        try:
            rule(annotations, settings)
        except _Problem as problem:
            problems.append(str(problem))
    return problems


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


def _path(key: str) -> str:
    return f"{_TEMPLATE}.{key}"


def _class(annotations: Mapping[str, str], _: Mapping[str, str]) -> None:
    found = annotations.get(names.AUTOSCALING_CLASS)
    own = (names.KPA_CLASS, names.HPA_CLASS)
    if found is not None and found.endswith(".knative.dev") and found not in own:
        raise _Problem(f"invalid value: {found}: {_path(names.AUTOSCALING_CLASS)}")


def _integer(annotations: Mapping[str, str], key: str, least: int = 0) -> tuple[str, int] | None:
    found = value_of(annotations, key)
    if found is None:
        return None
    full, text = found
    if not re.fullmatch(r"[+-]?\d+", text):
        raise _Problem(f"invalid value: {text}: {_path(full)}")
    if not least <= int(text) <= _MAX_INT32:
        raise _Problem(f"expected {least} <= {text} <= {_MAX_INT32}: {_path(full)}")
    return full, int(text)


def _scales(annotations: Mapping[str, str], settings: Mapping[str, str]) -> None:
    low = _integer(annotations, "min-scale")
    high = _integer(annotations, "max-scale")
    least, most = (low[1] if low else 0), (high[1] if high else 0)
    if high is not None and most and least > most:
        paths = ", ".join(_path(found[0]) for found in (high, low) if found)
        raise _Problem(f"max-scale={most} is less than min-scale={least}: {paths}")
    limit = int(settings.get("max-scale-limit") or 0)
    if high is not None and limit and (most > limit or most == 0):
        raise _Problem(f"expected 1 <= {most} <= {limit}: {_path(high[0])}")
    initial = _integer(annotations, "initial-scale")
    zero_allowed = settings.get("allow-zero-initial-scale", "false").lower() == "true"
    if initial is not None and initial[1] == 0 and not zero_allowed:
        raise _Problem(f"{initial[0]}=0 not allowed by cluster: {_path(initial[0])}")


def _activation(annotations: Mapping[str, str], _: Mapping[str, str]) -> None:
    found = _integer(annotations, "activation-scale", 2)
    if found is None:
        return
    try:
        low, high = _integer(annotations, "min-scale"), _integer(annotations, "max-scale")
    except _Problem:
        return  # reported where it belongs
    if low is not None and found[1] < low[1]:
        raise _Problem(
            f"activation-scale={found[1]} is less than min-scale={low[1]}: {_path(found[0])}"
        )
    if high is not None and high[1] and found[1] > high[1]:
        raise _Problem(
            f"activation-scale={found[1]} is greater than max-scale={high[1]}: {_path(found[0])}"
        )


_FLOATS: tuple[tuple[str, float, float], ...] = (
    ("panic-window-percentage", 1.0, 100.0),
    ("panic-threshold-percentage", 110.0, 1000.0),
    ("target-utilization-percentage", 1.0, 100.0),
)


def _floats(annotations: Mapping[str, str], _: Mapping[str, str]) -> None:
    for key, least, most in _FLOATS:
        found = value_of(annotations, key)
        if found is not None and not least <= _number(found) <= most:
            raise _Problem(f"expected {least:g} <= {found[1]} <= {most:g}: {_path(found[0])}")
    target = value_of(annotations, "target")
    if target is not None and _number(target) < 0.01:
        raise _Problem(f"target {target[1]} should be at least 0.01: {_path(target[0])}")
    burst = value_of(annotations, "target-burst-capacity")
    if burst is not None and _number(burst) < 0 and _number(burst) != -1:
        raise _Problem(f"invalid value: {burst[1]}: {_path(burst[0])}")


def _number(found: tuple[str, str]) -> float:
    try:
        return float(found[1])
    except ValueError:
        raise _Problem(f"invalid value: {found[1]}: {_path(found[0])}") from None


_DURATIONS: tuple[tuple[str, float, str, bool], ...] = (
    ("window", 6.0, "6s", True),
    ("scale-down-delay", 0.0, "0s", True),
    ("scale-to-zero-pod-retention-period", 0.0, "0s", False),
)


def _durations(annotations: Mapping[str, str], _: Mapping[str, str]) -> None:
    for key, least, shown, whole in _DURATIONS:
        found = value_of(annotations, key)
        if found is None:
            continue
        full, text = found
        seconds = parse_duration(text)
        if seconds is None:
            raise _Problem(f"invalid value: {text}: {_path(full)}")
        if not least <= seconds <= _HOUR:
            raise _Problem(f"expected {shown} <= {text} <= 1h0m0s: {_path(full)}")
        if whole and seconds != int(seconds):
            raise _Problem(
                f"{key}={text} must be specified with at most second precision: {_path(full)}"
            )


def _metric(annotations: Mapping[str, str], _: Mapping[str, str]) -> None:
    metric = annotations.get(names.AUTOSCALING_METRIC)
    if metric is None:
        return
    kind = annotations.get(names.AUTOSCALING_CLASS, names.KPA_CLASS)
    allowed = _METRICS.get(kind)
    if (allowed is not None and metric not in allowed) or not metric:
        raise _Problem(f"invalid value: {metric}: {_path(names.AUTOSCALING_METRIC)}")


def _aggregation(annotations: Mapping[str, str], _: Mapping[str, str]) -> None:
    if annotations.get(names.AUTOSCALING_CLASS) != names.KPA_CLASS:
        return
    found = value_of(annotations, "metric-aggregation-algorithm")
    known = ("linear", "weighted-exponential", "weightedExponential")
    if found is not None and found[1] not in known:
        raise _Problem(f"invalid value: {found[1]}: {_path(found[0])}")


def _spec_problems(spec: Mapping[str, Any]) -> list[str]:
    path = "spec.template.spec"
    problems = []
    limits = (
        ("containerConcurrency", MAX_CONCURRENCY),
        ("timeoutSeconds", MAX_TIMEOUT),
        ("responseStartTimeoutSeconds", MAX_TIMEOUT),
        ("idleTimeoutSeconds", MAX_TIMEOUT),
    )
    for field, most in limits:
        value = spec.get(field)
        if value is not None and not 0 <= value <= most:
            problems.append(f"expected 0 <= {value} <= {most}: {path}.{field}")
    return problems


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
