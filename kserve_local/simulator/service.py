"""What of an InferenceService the simulation needs, read as the controllers read it. Pure.

Any of it may be said differently for one run (`with_setting`): a field of the component, an
annotation of Knative's autoscaler, or a key of its ConfigMap. A runtime's own annotations are not
looked at, since no runtime is chosen.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kserve_local.api import builtin, names
from kserve_local.api import config as kserve_config
from kserve_local.api.autoscaler_config import cluster_scaling
from kserve_local.api.meta import Object, annotations_of, name_of, namespace_of
from kserve_local.api.pod_autoscaler import CLUSTER_CONFIG
from kserve_local.api.revision_template import template_annotations
from kserve_local.api.validation_knative import (
    MAX_CONCURRENCY,
    MAX_TIMEOUT,
    annotation_problems,
)
from kserve_local.autoscaler.bounds import applied
from kserve_local.autoscaler.config import autoscaler_class, scaling_config
from kserve_local.controllers.knative_service import DEFAULT_TIMEOUT
from kserve_local.controllers.podspec import allowed_annotations
from kserve_local.errors import Invalid, NotFound, UsageError
from kserve_local.interfaces.scaling import ScalingConfig

FIELDS = (
    "minReplicas",
    "maxReplicas",
    "scaleTarget",
    "scaleMetric",
    "containerConcurrency",
    "timeout",
)
ANNOTATIONS = (
    "target",
    "target-utilization-percentage",
    "target-burst-capacity",
    "window",
    "panic-window-percentage",
    "panic-threshold-percentage",
    "initial-scale",
    "activation-scale",
    "scale-down-delay",
    "scale-to-zero-pod-retention-period",
    "metric-aggregation-algorithm",
)
"""Below `autoscaling.knative.dev/`; min-scale and max-scale are fields with KServe."""
CLUSTER_KEYS = (
    "container-concurrency-target-percentage",
    "container-concurrency-target-default",
    "requests-per-second-target-default",
    "stable-window",
    "max-scale-up-rate",
    "max-scale-down-rate",
    "enable-scale-to-zero",
    "scale-to-zero-grace-period",
    "allow-zero-initial-scale",
)
"""Of the ConfigMap; those that are annotations, too, are set as such."""
_KSERVE_CONFIG = ("kserve", "inferenceservice-config")


@dataclass(frozen=True, slots=True)
class Service:
    """One component of one service, as it was written.

    Args:
        name: `default/iris predictor`; empty: there is no YAML, and all is KServe's default.
        fields: The component of the spec, as far as `FIELDS` go.
        annotations: What goes from the service and its component to the Revision.
        cluster: Data of the ConfigMap `knative-serving/config-autoscaler`.
        pinned: Keeps a replica (`services.NAME.pin`).
        grace: In place of the cluster's `scale-to-zero-grace-period`; None: that.
    """

    name: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cluster: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a simulation runs by.

    Args:
        limit: containerConcurrency; 0: none.
        timeout: Seconds a request may take in all.
        initial: Replicas that the Revision starts with.
    """

    scaling: ScalingConfig
    limit: int
    timeout: float
    initial: int


def service_of(objects: Sequence[Object], name: str | None, component: str | None) -> Service:
    """Return what the objects say of one service.

    Args:
        objects: Of the user's files; InferenceServices and ConfigMaps count.
        name: Which; None: the only one there is.
        component: Default: the predictor.

    Raises:
        NotFound: There is no such service, or no such component.
        UsageError: There are several to choose from, or it is not for Knative's autoscaler.
    """
    found = [o for o in objects if o["kind"] == "InferenceService"]
    known = sorted(name_of(o) for o in found)
    if name is not None:
        found = [o for o in found if name_of(o) == name]
        if not found:
            other = next((o["kind"] for o in objects if name_of(o) == name), None)
            if other == "InferenceGraph":
                raise UsageError(f'"{name}" is an InferenceGraph; simulate takes InferenceServices')
            there = f"there are: {', '.join(known)}" if known else "there are none"
            raise NotFound(f'no InferenceService "{name}" in the files; {there}')
    if not found:
        raise NotFound("no InferenceService in the files")
    if len(found) > 1:
        raise UsageError(
            f"which one? There are {', '.join(known)}", hint=f"kserve-local simulate {known[0]} ..."
        )
    isvc = found[0]
    which = component or "predictor"
    spec: Mapping[str, Any] | None = isvc["spec"].get(which)
    if spec is None:
        raise NotFound(f'InferenceService "{name_of(isvc)}" has no {which}')
    config = kserve_config.parse(_config_map(objects, *_KSERVE_CONFIG) or builtin.config_map())
    mode = config.deployment_mode(annotations_of(isvc).get(names.DEPLOYMENT_MODE))
    if mode != names.KNATIVE_MODE:
        raise UsageError(
            f'InferenceService "{name_of(isvc)}" is in {mode} mode; simulate knows the autoscaler '
            f"of {names.KNATIVE_MODE} mode"
        )
    cluster = _config_map(objects, CLUSTER_CONFIG.namespace, CLUSTER_CONFIG.name)
    return Service(
        f"{namespace_of(isvc)}/{name_of(isvc)} {which}",
        {key: value for key, value in spec.items() if key in FIELDS},
        {
            **allowed_annotations(annotations_of(isvc), config),
            **allowed_annotations(spec.get("annotations"), config),
        },
        (cluster or {}).get("data") or {},
    )


def _config_map(objects: Sequence[Object], namespace: str, name: str) -> Object | None:
    return next(
        (
            o
            for o in objects
            if o["kind"] == "ConfigMap" and name_of(o) == name and namespace_of(o) == namespace
        ),
        None,
    )


def with_setting(service: Service, key: str, value: str, option: str) -> Service:
    """Return the service with one setting said differently.

    Raises:
        UsageError: There is no such setting, or it takes no such value.
    """
    short = key.removeprefix(f"{names.AUTOSCALING}/")
    if key in FIELDS:
        given: Any = value
        if key != "scaleMetric":
            if not value.isdecimal():
                raise UsageError(f'{option}: {key} "{value}" is no whole number; write {key}=1,2')
            given = int(value)
        return replace(service, fields={**service.fields, key: given})
    if short in ANNOTATIONS:
        full = f"{names.AUTOSCALING}/{short}"
        fields = service.fields
        if short == "target":
            fields = {k: v for k, v in fields.items() if k != "scaleTarget"}
        return replace(service, fields=fields, annotations={**service.annotations, full: value})
    if key in CLUSTER_KEYS:
        grace = None if key == "scale-to-zero-grace-period" else service.grace
        return replace(service, cluster={**service.cluster, key: value}, grace=grace)
    raise unknown_setting(key, option)


def unknown_setting(key: str, option: str, others: Sequence[str] = ()) -> UsageError:
    """Return the error for a setting that there is not.

    Args:
        others: Further settings that there are.
    """
    known = (*FIELDS, *ANNOTATIONS, *CLUSTER_KEYS, *others)
    near = difflib.get_close_matches(key, known, n=1)
    guess = f'; did you mean "{near[0]}"?' if near else ""
    groups = (FIELDS, ANNOTATIONS, CLUSTER_KEYS, others)
    hint = "\n".join(", ".join(group) for group in groups if group)
    return UsageError(f'{option}: there is no setting "{key}"{guess}', hint=hint)


def terms_of(service: Service) -> Terms:
    """Return the numbers that hold for the service.

    Raises:
        Invalid: A cluster would refuse them; in its words.
        UsageError: They are for another autoscaler.
    """
    where = f"{service.name}: " if service.name else ""
    cluster = cluster_scaling(service.cluster)
    annotations = template_annotations(
        service.fields, service.annotations, allow_zero=cluster.allow_zero_initial_scale
    )
    if autoscaler_class(annotations, cluster) != names.KPA_CLASS:
        found = autoscaler_class(annotations, cluster)
        raise UsageError(f"{where}autoscaling class {found}; simulate knows {names.KPA_CLASS}")
    problems = annotation_problems(annotations, service.cluster)
    limit = int(service.fields.get("containerConcurrency") or 0)
    if not 0 <= limit <= MAX_CONCURRENCY:
        problems.append(f"containerConcurrency: expected 0 <= {limit} <= {MAX_CONCURRENCY}")
    timeout = int(service.fields.get("timeout") or DEFAULT_TIMEOUT)
    if not 1 <= timeout <= MAX_TIMEOUT:
        problems.append(f"timeout: expected 1 <= {timeout} <= {MAX_TIMEOUT}")
    if problems:
        raise Invalid(where + "; ".join(problems))
    scaling = scaling_config(annotations, limit, cluster)
    if service.pinned:
        scaling = replace(scaling, min_scale=max(1, scaling.min_scale))
    if service.grace is not None:
        scaling = replace(scaling, grace_period=service.grace)
    initial = applied(scaling.initial_scale, scaling.min_scale, scaling.max_scale)
    return Terms(scaling, limit, float(timeout), initial)
