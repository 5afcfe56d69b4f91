"""The validating webhooks of ServingRuntime and ClusterServingRuntime.

Pure (pkg/webhook/admission/servingruntime; control-plane.md 3.3, last part).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import Object, name_of, namespace_of
from kserve_local.api.validation_containers import blocked_env, has_env, has_unknown_gpu
from kserve_local.errors import Forbidden

Lookup = Callable[[str, str | None], Sequence[Object]]
_SIZES = (
    ("pipelineParallelSize", "PipelineParallelSize"),
    ("tensorParallelSize", "TensorParallelSize"),
)


def check(obj: Object, *, config: InferenceServiceConfig, lookup: Lookup) -> list[str]:
    """Return the warnings (there are none) for a runtime that may be stored.

    Raises:
        Forbidden: The first rule that it breaks. A disabled runtime breaks none.
    """
    spec: Mapping[str, Any] = obj.get("spec") or {}
    if spec.get("disabled"):
        return []
    cluster = obj["kind"] == "ClusterServingRuntime"
    plural = "clusterservingruntimes" if cluster else "servingruntimes"
    existing = lookup(f"{plural}.serving.kserve.io", None if cluster else namespace_of(obj))
    before: Mapping[str, Any] = {}
    for other in existing:
        # Inside the loop, so that the very first runtime of a kind is not checked: as upstream.
        _check_own_priorities(obj, plural)
        if name_of(other) == name_of(obj):
            before = other.get("spec") or {}
        else:
            _check_priorities(obj, other, plural)
    problem = _multi_node_problem(spec, before, config)
    if problem is not None:
        raise Forbidden(f"the {obj['kind']} {name_of(obj)} is invalid: {problem}")
    worker = spec.get("workerSpec") or {}
    problem = blocked_env(spec.get("containers")) or blocked_env(worker.get("containers"))
    if problem is not None:
        raise Forbidden(f'the {obj["kind"]} "{name_of(obj)}" is invalid: {problem}')
    return []


def _auto(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [f for f in spec.get("supportedModelFormats") or () if f.get("autoSelect")]


def _check_own_priorities(obj: Object, plural: str) -> None:
    first: dict[str, Any] = {}
    for entry in _auto(obj.get("spec") or {}):
        name, priority = entry.get("name") or "", entry.get("priority")
        known = first.setdefault(name, priority)
        if known is not None and priority is not None and known != priority:
            raise Forbidden(
                f"different priorities assigned for the model format {name} under the "
                f"{plural.removesuffix('s')} {name_of(obj)}"
            )


def _check_priorities(obj: Object, other: Object, plural: str) -> None:
    new: Mapping[str, Any] = obj.get("spec") or {}
    old: Mapping[str, Any] = other.get("spec") or {}
    if old.get("disabled") or bool(new.get("multiModel")) != bool(old.get("multiModel")):
        return
    if not set(old.get("protocolVersions") or ()) & set(new.get("protocolVersions") or ()):
        return
    for theirs in _auto(old):
        for ours in _auto(new):
            same = (
                str(theirs.get("name")).lower() == str(ours.get("name")).lower()
                and theirs.get("version") == ours.get("version")
                and theirs.get("priority") is not None
                and theirs.get("priority") == ours.get("priority")
            )
            if same:
                where = f" in namespace {namespace_of(obj)}" if plural == "servingruntimes" else ""
                raise Forbidden(
                    f"same priority assigned for the model format {ours.get('name')} in the "
                    f"{plural} {name_of(other)} and {name_of(obj)}{where}"
                )


def _multi_node_problem(
    spec: Mapping[str, Any], before: Mapping[str, Any], config: InferenceServiceConfig
) -> str | None:
    worker = spec.get("workerSpec")
    if worker is None:
        removed = before.get("workerSpec") is not None
        return "removing workerSpec where it already exists is not allowed" if removed else None
    workers: Sequence[Mapping[str, Any]] = worker.get("containers") or ()
    if len(workers) > 1:
        return "setting multiple containers in workerSpec is not allowed"
    annotations = spec.get("annotations") or {}
    gpus = config.gpu_resource_types
    for container in spec.get("containers") or ():
        if container.get("name") != names.PREDICTOR_CONTAINER:
            continue
        for variable in ("PIPELINE_PARALLEL_SIZE", "TENSOR_PARALLEL_SIZE"):
            if has_env(container, variable):
                return f"setting {variable} in environment variables is not allowed"
        if has_unknown_gpu(container, annotations, gpus):
            return f"unknown GPU resource type in a container({names.PREDICTOR_CONTAINER})"
    for container in workers:
        named = container.get("name") == names.WORKER_CONTAINER
        if named and has_unknown_gpu(container, annotations, gpus):
            return f"unknown GPU resource type in a container({names.WORKER_CONTAINER})"
    for field, title in _SIZES:
        size = worker.get(field)
        if size is not None and size < 1:
            return f"the WorkerSpec.{title} cannot be less than 1({size})"
    return None
