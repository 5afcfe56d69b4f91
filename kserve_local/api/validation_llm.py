"""The validating webhooks of LLMInferenceService and LLMInferenceServiceConfig.

Pure. All findings come together, as field errors (422). Paths, order and texts are llm.md 1.4
(pkg/apis/serving/v1alpha{1,2}/llm_inference_service_validation.go); what the versions check
differently is said where it differs. Scaling and rollout are in `validation_llm_scaling`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local.api import names, quantity, validation_llm_scaling
from kserve_local.api.field_errors import (
    FieldError,
    FieldErrors,
    forbidden,
    invalid,
    required,
    unsupported,
)
from kserve_local.api.meta import Object, annotations_of, name_of, namespace_of
from kserve_local.api.validation_isvc import confidential_findings
from kserve_local.errors import Forbidden

WELL_KNOWN_CONFIGS = frozenset(
    f"kserve-config-llm-{suffix}"
    for suffix in (
        "template",
        "decode-template",
        "prefill-template",
        "worker-data-parallel",
        "decode-worker-data-parallel",
        "prefill-worker-data-parallel",
        "scheduler",
        "scheduler-latency-predictor",
        "router-route",
        "tokenizer",
        "tracing",
    )
)
_REFS, _SPEC = "spec.router.route.http.refs", "spec.router.route.http.spec"
_GATEWAY = "spec.router.gateway"
_DRA = f"{names.KSERVE_GROUP}/exp-dra-"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)

Spec = Mapping[str, Any]


def check(obj: Object, *, old: Object | None) -> list[str]:
    """Return the warnings for an LLMInferenceService that may be stored.

    Raises:
        FieldErrors: Everything wrong with it.
    """
    spec: Spec = obj.get("spec") or {}
    first_version = str(obj["apiVersion"]).endswith("/v1alpha1")
    prefill: Spec | None = spec.get("prefill")
    workloads = [("spec", spec)] + ([("spec.prefill", prefill)] if prefill is not None else [])
    errors, warnings = _routes(spec, first_version=first_version)
    errors += _traffic(spec)
    for path, workload in workloads:
        errors += _parallelism(path, workload)
    errors += _scheduler(spec)
    for path, workload in workloads:
        errors += validation_llm_scaling.scaling(path, workload)
    errors += validation_llm_scaling.consistency(spec, prefill)
    errors += _lora(spec, name_of(obj))
    if not first_version:
        for path, workload in workloads:
            errors += _kv_cache(f"{path}.kvCacheOffloading", workload.get("kvCacheOffloading"))
    for path, workload in workloads:
        errors += validation_llm_scaling.rollout(path, workload)
    errors += _managed_dra(annotations_of(obj))
    if old is not None:
        errors += _immutable(spec, old.get("spec") or {})
    model: Spec = spec.get("model") or {}
    confidential = model.get("confidential")
    if confidential is not None and not first_version:
        uri = str(model.get("uri") or "")
        found, more = confidential_findings(confidential, uri, "spec.model")
        errors += found
        warnings += more
    if errors:
        raise FieldErrors(errors)
    return warnings


def check_config(obj: Object, *, old: Object | None) -> list[str]:
    """Return the warnings for an LLMInferenceServiceConfig that may be stored.

    Raises:
        FieldErrors: Everything wrong with it.
    """
    spec: Spec = obj.get("spec") or {}
    errors: list[FieldError] = []
    if spec.get("baseRefs"):
        errors.append(
            forbidden(
                "spec.baseRefs",
                "baseRefs is not a permitted field in LLMInferenceServiceConfig, support for "
                "recursive refs has been disabled",
            )
        )
    scheduler = (spec.get("router") or {}).get("scheduler") or {}
    errors += _scheduler_replicas(scheduler)
    if errors:
        raise FieldErrors(errors)
    if old is not None and _is_well_known(old) and old.get("spec") != obj.get("spec"):
        return [
            f"modifying well-known config {namespace_of(old)}/{name_of(old)} is not recommended. "
            "Consider creating a custom config instead"
        ]
    return []


def check_config_deletion(obj: Object) -> list[str]:
    """Return the warnings (none) for a config that may go.

    Raises:
        Forbidden: A well-known config of namespace `kserve`.
    """
    if _is_well_known(obj) and namespace_of(obj) == names.KSERVE_NAMESPACE:
        raise Forbidden(f"well-known config {namespace_of(obj)}/{name_of(obj)} cannot be deleted")
    return []


def _is_well_known(obj: Object) -> bool:
    return name_of(obj) in WELL_KNOWN_CONFIGS


def _routes(spec: Spec, *, first_version: bool) -> tuple[list[FieldError], list[str]]:
    router: Spec = spec.get("router") or {}
    http: Spec | None = (router.get("route") or {}).get("http")
    if http is None:
        return [], []
    errors: list[FieldError] = []
    refs, inline = http.get("refs") or [], http.get("spec")
    gateway: Spec | None = router.get("gateway")
    gateway_refs = (gateway or {}).get("refs") or []
    if refs and inline is not None:
        errors.append(
            invalid(
                "spec.router.route.http",
                http,
                "unsupported configuration: cannot use both custom HTTPRoute refs "
                f"('{_REFS}') and an inline route spec ('{_SPEC}'); choose one",
            )
        )
    if refs and gateway is not None and not gateway_refs:
        errors.append(
            invalid(
                _REFS,
                refs,
                f"unsupported configuration: custom HTTP routes ('{_REFS}') cannot be used with a "
                f"managed gateway ('{_GATEWAY}'); either remove '{_REFS}' or set "
                f"'{_GATEWAY}.refs'",
            )
        )
    parents = (inline or {}).get("parentRefs") or []
    if not parents or not gateway_refs:
        return errors, []
    if not first_version and _reference_keys(parents) == _reference_keys(gateway_refs):
        return errors, [
            f"{_SPEC}.parentRefs can be omitted when {_GATEWAY}.refs is set; parentRefs will be "
            "derived automatically from gateway refs"
        ]
    conflict = (
        f"cannot be used with custom gateway refs ('{_GATEWAY}.refs')"
        if first_version
        else f"has parentRefs that conflict with custom gateway refs ('{_GATEWAY}.refs')"
    )
    errors.append(
        invalid(
            _SPEC,
            inline,
            f"unsupported configuration: managed HTTP route spec ('{_SPEC}') {conflict}; either "
            f"remove '{_GATEWAY}.refs' or '{_SPEC}.parentRefs'",
        )
    )
    return errors, []


def _reference_keys(refs: Sequence[Spec]) -> list[tuple[str, str, str]]:
    return sorted(
        (r.get("namespace") or "", r.get("name") or "", r.get("sectionName") or "") for r in refs
    )


def _traffic(spec: Spec) -> list[FieldError]:
    router: Spec = spec.get("router") or {}
    route: Spec = router.get("route") or {}
    group, weight = route.get("group"), route.get("weight")
    path = "spec.router.route"
    if group is None and weight is None:
        return []
    if router.get("ingress") is not None:
        return [
            invalid(
                f"{path}.group",
                group or "",
                "traffic splitting requires Gateway API routing; the controller manages "
                "HTTPRoutes, not Ingress resources",
            )
        ]
    if group is None:
        return [required(f"{path}.group", "weight requires group")]
    if weight is None:
        return [required(f"{path}.weight", "group requires weight")]
    if (route.get("http") or {}).get("refs"):
        return [
            invalid(
                f"{path}.group",
                group,
                "traffic splitting cannot be used with custom HTTPRoute refs; controller-managed "
                "routes (route.http.spec or route.http: {}) are required",
            )
        ]
    return []


def _is_data_parallel(parallelism: Spec) -> bool:
    return (parallelism.get("data") or 0) > 0 or (parallelism.get("dataLocal") or 0) > 0


def _is_pipeline_parallel(parallelism: Spec) -> bool:
    return (parallelism.get("pipeline") or 0) > 0


def _parallelism(path: str, workload: Spec) -> list[FieldError]:
    parallelism: Spec | None = workload.get("parallelism")
    worker = workload.get("worker")
    either = parallelism is not None and (
        _is_data_parallel(parallelism) or _is_pipeline_parallel(parallelism)
    )
    errors: list[FieldError] = []
    if worker is not None and not either:
        errors.append(
            invalid(
                f"{path}.worker",
                worker,
                "when worker is specified, parallelism must be configured for either data "
                "parallelism or pipeline parallelism",
            )
        )
    if parallelism is None:
        return errors
    if _is_data_parallel(parallelism) and _is_pipeline_parallel(parallelism):
        errors.append(
            invalid(
                f"{path}.parallelism",
                parallelism,
                "cannot set both pipeline parallelism and data parallelism (data or dataLocal) "
                "simultaneously",
            )
        )
    data, local = parallelism.get("data"), parallelism.get("dataLocal")
    if data is not None and local is None:
        detail = "dataLocal must be set when data is set"
        errors.append(invalid(f"{path}.parallelism.dataLocal", None, detail))
    if local is not None and data is None:
        detail = "data must be set when dataLocal is set"
        errors.append(invalid(f"{path}.parallelism.data", None, detail))
    for field in ("pipeline", "data", "dataLocal"):
        value = parallelism.get(field)
        if value is not None and value <= 0:
            detail = f"{field} parallelism must be greater than 0"
            errors.append(invalid(f"{path}.parallelism.{field}", value, detail))
    return errors


def parallel_size(parallelism: Spec | None) -> int:
    """Return how many pods one replica has: data/dataLocal, else pipeline, else 1."""
    if parallelism is None:
        return 1
    if _is_data_parallel(parallelism):
        data, local = parallelism.get("data") or 1, parallelism.get("dataLocal") or 1
        return max(max(int(data), 1) // max(int(local), 1), 1)
    if _is_pipeline_parallel(parallelism):
        return int(parallelism["pipeline"])
    return 1


def _immutable(spec: Spec, old: Spec) -> list[FieldError]:
    pairs = [("spec", old, spec)]
    if spec.get("prefill") is not None and old.get("prefill") is not None:
        pairs.append(("spec.prefill", old["prefill"], spec["prefill"]))
    errors = []
    for path, before, after in pairs:
        was = parallel_size(before.get("parallelism"))
        now = parallel_size(after.get("parallelism"))
        if was != now:
            detail = f"total parallelism size is immutable, previous size {was}, curr size {now}"
            errors.append(unsupported(f"{path}.parallelism", now, detail))
    return errors


def _scheduler_replicas(scheduler: Spec) -> list[FieldError]:
    replicas = scheduler.get("replicas")
    if replicas is None or replicas > 0:
        return []
    path = "spec.router.scheduler.replicas"
    return [invalid(path, replicas, "scheduler replicas must be greater than zero")]


def _scheduler(spec: Spec) -> list[FieldError]:
    scheduler: Spec = (spec.get("router") or {}).get("scheduler") or {}
    errors = _scheduler_replicas(scheduler)
    config: Spec | None = scheduler.get("config")
    if config is None:
        return errors
    path = "spec.router.scheduler.config"
    inline, ref = config.get("inline"), config.get("ref")
    if inline is None and ref is None:
        errors.append(invalid(path, config, "either inline or ref is required"))
    if inline is not None and ref is not None:
        detail = "both inline and ref are set, either specify inline or ref"
        errors.append(invalid(path, config, detail))
    if inline is not None and len(json.dumps(inline, separators=(",", ":"))) < 3:
        errors.append(invalid(f"{path}.inline", inline, "inline configuration is invalid"))
    if ref is not None and not ref.get("name"):
        errors.append(invalid(f"{path}.ref.name", ref, "name is empty"))
    return errors


def _lora(spec: Spec, service: str) -> list[FieldError]:
    model: Spec = spec.get("model") or {}
    lora: Spec | None = model.get("lora")
    if lora is None:
        return []
    base = model.get("name") or service
    path = "spec.model.lora"
    errors: list[FieldError] = []
    for field in ("maxRank", "maxAdapters", "maxCpuAdapters"):
        value = lora.get(field)
        if value is not None and value < 1:
            errors.append(invalid(f"{path}.{field}", value, f"{field} must be at least 1"))
    seen: dict[str, int] = {}
    for index, adapter in enumerate(lora.get("adapters") or ()):
        name = adapter.get("name")
        where = f"{path}.adapters[{index}].name"
        if not name:
            errors.append(required(where, "adapter name is required"))
            continue
        if name in (".", ".."):
            detail = 'adapter name must not include "." or ".." (path traversal risk)'
            errors.append(invalid(where, name, detail))
            continue
        if name in seen:
            detail = f"duplicate name (same as adapters[{seen[name]}])"
            errors.append(invalid(where, name, detail))
        seen.setdefault(name, index)
        if name == base:
            detail = f'adapter name must differ from base model name "{base}"'
            errors.append(invalid(where, name, detail))
    return errors


def _kv_cache(path: str, offloading: Spec | None) -> list[FieldError]:
    tiers = (offloading or {}).get("secondary") or ()
    if offloading is None or not tiers:
        return []
    errors: list[FieldError] = []
    cpu = offloading.get("cpu")
    if cpu is None or quantity.parse(cpu) == 0:
        detail = "cpu must be set when secondary tiers are configured"
        errors.append(required(f"{path}.cpu", detail))
    for index, tier in enumerate(tiers):
        where = f"{path}.secondary[{index}].fileSystem"
        system: Spec | None = tier.get("fileSystem")
        if system is None:
            detail = "only fileSystem tiers are supported; fileSystem must be set"
            errors.append(required(where, detail))
            continue
        problem = _exactly_one(where, system, "emptyDir", "pvc")
        claim: Spec | None = system.get("pvc")
        if problem is None and claim is not None:
            problem = _exactly_one(f"{where}.pvc", claim, "spec", "ref")
            ref = claim.get("ref")
            if problem is None and ref is not None and not ref.get("name"):
                problem = required(f"{where}.pvc.ref.name", "name is required")
        if problem is not None:
            errors.append(problem)
    return errors


def _exactly_one(path: str, value: Spec, first: str, second: str) -> FieldError | None:
    count = sum(value.get(field) is not None for field in (first, second))
    detail = f"exactly one of {first} or {second} must be set"
    if count == 0:
        return required(path, detail)
    return invalid(path, value, f"{detail}; multiple are set") if count > 1 else None


def _managed_dra(annotations: Mapping[str, str]) -> list[FieldError]:
    device, count, cel, container = (
        f"{_DRA}{suffix}"
        for suffix in ("device-class", "device-count", "cel-selector", "container-name")
    )
    errors: list[FieldError] = []

    def path(key: str) -> str:
        return f"metadata.annotations[{key}]"

    def refuse(key: str, detail: str) -> None:
        errors.append(invalid(path(key), annotations[key], detail))

    if device not in annotations and any(k in annotations for k in (count, cel, container)):
        detail = (
            f"{device} is required to enable managed DRA when {count}, {cel}, or {container} is set"
        )
        errors.append(required(path(device), detail))
    if device in annotations:
        value = annotations[device].strip()
        if not value:
            refuse(device, "device class must not be empty")
        elif not _SUBDOMAIN.fullmatch(value):
            refuse(device, f"device class must be a DNS subdomain: {_SUBDOMAIN_TEXT}")
    if annotations.get(count, "").strip():
        raw = annotations[count]
        try:
            least = int(raw.strip())
        except ValueError:
            syntax = f'strconv.Atoi: parsing "{raw.strip()}": invalid syntax'
            refuse(count, f'invalid {count} value "{raw}": {syntax}')
        else:
            if least < 1:
                refuse(count, f'invalid {count} value "{raw}": must be >= 1')
    if cel in annotations and not annotations[cel].strip():
        refuse(cel, "cel selector must contain at least one non-empty CEL expression")
    if container in annotations:
        value = annotations[container].strip()
        if not value:
            refuse(container, "container name must not be empty")
        elif not _LABEL.fullmatch(value):
            refuse(container, f"container name must be a DNS label: {_LABEL_TEXT}")
    return errors
