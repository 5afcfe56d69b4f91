"""What is accepted here and not carried out by this version, field by field, in words. Pure.

`validate` shows all of it before anything runs. While the project runs, the fields of a component
are an Event when its Knative Service is written and a line of `kserve-local status` (`left_out`);
kinds and modes have conditions of their own. A line leaves this module when its behaviour comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kserve_local import __version__
from kserve_local.api import names, scheme
from kserve_local.api.config import InferenceServiceConfig, normal_mode
from kserve_local.api.inferenceservice import COMPONENTS, framework_of, is_multi_model
from kserve_local.api.meta import Object, annotations_of

Path_ = tuple[str | int, ...]
VERSION = __version__.rpartition(".")[0]
_MIG = "nvidia.com/mig-"

UNAVAILABLE: tuple[scheme.ResourceType, ...] = (
    scheme.TRAINED_MODEL,
    scheme.LLM_INFERENCE_SERVICE,
    scheme.LOCAL_MODEL_CACHE,
    scheme.LOCAL_MODEL_NAMESPACE_CACHE,
)
"""Kinds that are checked and stored, and nothing runs for them."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One field or kind that has no effect.

    Args:
        path: Where it is written.
        text: The field, and what happens instead.
    """

    path: Path_
    text: str

    def sentence(self) -> str:
        """Return what `validate` says."""
        return f"kserve-local {VERSION} does not run this yet: {self.text}"


def gaps_of(obj: Object, config: InferenceServiceConfig) -> Iterator[Gap]:
    """Yield what of an object has no effect here and has one on a cluster.

    Args:
        obj: An object that the webhooks take.
    """
    kind = obj["kind"]
    if scheme.of(obj) in UNAVAILABLE:
        yield Gap(("kind",), f"{kind}; it is checked and stored, and nothing runs for it")
    elif scheme.of(obj) is scheme.INFERENCE_SERVICE:
        yield from _of_mode(obj, config) or _of_service(obj, config)
    elif scheme.of(obj) is scheme.INFERENCE_GRAPH:
        yield from _of_mode(obj, config)


def _of_mode(obj: Object, config: InferenceServiceConfig) -> list[Gap]:
    written = annotations_of(obj).get(names.DEPLOYMENT_MODE)
    mode = config.deployment_mode(written)
    if mode != names.MODEL_MESH_MODE:
        return []
    path: Path_ = ("metadata", "annotations", names.DEPLOYMENT_MODE) if written else ("spec",)
    return [
        Gap(path, f"deploymentMode {written or mode}; only Knative and Standard mode are there")
    ]


def _is_standard(obj: Object, config: InferenceServiceConfig | None = None) -> bool:
    """Whether an object is of Standard mode; its status or its annotation says so once stored."""
    mode = str((obj.get("status") or {}).get("deploymentMode") or "")
    written = annotations_of(obj).get(names.DEPLOYMENT_MODE)
    if config is not None:
        mode = config.deployment_mode(written, mode)
    return (mode or normal_mode(written or "")) == names.STANDARD_MODE


def _of_service(isvc: Object, config: InferenceServiceConfig) -> Iterator[Gap]:
    for component in COMPONENTS:
        yield from _of_component(isvc, component, standard=_is_standard(isvc, config))


def left_out(obj: Object) -> list[str]:
    """Return one sentence for each field of the components that has no effect; none for a graph."""
    if obj.get("kind") == scheme.INFERENCE_GRAPH.kind:
        return []
    return [text for component in COMPONENTS for text in left_out_of(obj, component)]


def left_out_of(isvc: Object, component: str) -> list[str]:
    """Return one sentence for each field of one component that has no effect.

    Those of a transformer or explainer say whose they are.
    """
    whose = "" if component == "predictor" else f"{component}: "
    gaps = _of_component(isvc, component, standard=_is_standard(isvc))
    return [whose + gap.text for gap in gaps]


def _of_component(isvc: Object, component: str, *, standard: bool) -> Iterator[Gap]:
    spec = isvc["spec"].get(component)
    if spec is None:
        return
    at: Path_ = ("spec", component)
    if standard:
        yield from _of_keda(isvc, spec, at)
    yield from _of_pod(spec, at)
    yield from _of_logger((*at, "logger"), spec.get("logger") or {})
    if component == "predictor":
        yield from _of_predictor(isvc, spec, at)


def _of_keda(isvc: Object, component: Mapping[str, Any], at: Path_) -> Iterator[Gap]:
    """Yield what KEDA would ask for in the world outside."""
    given = {**annotations_of(isvc), **(component.get("annotations") or {})}
    if given.get(names.AUTOSCALER_CLASS) != "keda":
        return
    metrics = (component.get("autoScaling") or {}).get("metrics") or ()
    for number, metric in enumerate(metrics):
        kind = metric.get("type")
        if kind in ("External", "PodMetric"):
            text = (
                f"autoScaling.metrics[{number}] of type {kind}: nothing is asked for it, so it "
                "scales nothing; cpu and memory do"
            )
            yield Gap((*at, "autoScaling", "metrics", number), text)


_OF_POD = {
    "hostNetwork": "the Pod has an address of its own, as without it",
    "hostPID": "the Pod does not see the machine's processes as one of it",
    "hostIPC": "the Pod does not share the machine's IPC",
    "shareProcessNamespace": "containers do not see each other's processes",
    "dnsConfig": "names are resolved as by this machine",
}


def _of_pod(spec: Mapping[str, Any], at: Path_) -> Iterator[Gap]:
    """Yield the fields of a PodSpec that no Pod here has."""
    for field, instead in _OF_POD.items():
        if spec.get(field):
            yield Gap((*at, field), f"{field}: it has no effect here; {instead}")
    if (spec.get("securityContext") or {}).get("sysctls"):
        text = "securityContext.sysctls: they are not set; the Pod has the kernel's own"
        yield Gap((*at, "securityContext", "sysctls"), text)


def _of_predictor(isvc: Object, predictor: Mapping[str, Any], at: Path_) -> Iterator[Gap]:
    if predictor.get("workerSpec") is not None:
        text = "workerSpec: the head runs alone, without workers on other nodes"
        yield Gap((*at, "workerSpec"), text)
    if annotations_of(isvc).get(names.AUTOSCALING_CLASS) == names.HPA_CLASS:
        text = (
            f"{names.AUTOSCALING_CLASS} {names.HPA_CLASS}: only Knative's own autoscaler is there "
            "in Knative mode; the number of replicas stays at minReplicas"
        )
        yield Gap(("metadata", "annotations", names.AUTOSCALING_CLASS), text)
    framework = framework_of(predictor)
    containers: list[tuple[Path_, Mapping[str, Any]]] = [
        ((*at, "containers", number), container)
        for number, container in enumerate(predictor.get("containers") or ())
    ]
    if framework is not None:
        containers.append(((*at, framework[0]), framework[1]))
    for path, container in containers:
        if container.get("lifecycle"):
            hooks = " and ".join(container["lifecycle"])
            text = f"lifecycle: the hooks {hooks} of a container are not run yet"
            yield Gap((*path, "lifecycle"), text)
        for resource in (container.get("resources") or {}).get("limits") or ():
            if resource.startswith(_MIG):
                text = f"{resource}: MIG slices are not offered; the Pod stays Pending"
                yield Gap((*path, "resources", "limits", resource), text)
    if framework is not None and is_multi_model(predictor):
        text = (
            "model without storageUri: a cluster runs it in multi-model mode (agent, TrainedModel),"
            " which is not there; set spec.predictor.model.storageUri"
        )
        yield Gap((*at, framework[0]), text)


def _of_logger(at: Path_, logger: Mapping[str, Any]) -> Iterator[Gap]:
    if str(logger.get("url") or "").startswith("abfs"):
        text = (
            "logger.url abfs://: objects are not written to Azure; storage.mirrors of "
            "kserve-local.yaml may map its prefix to a folder, which then gets them"
        )
        yield Gap((*at, "url"), text)
