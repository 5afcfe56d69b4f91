"""Which (Cluster)ServingRuntime serves an InferenceService's `model`, and why the others do not.

Pure. `select` gives KServe's choice and, when there is none, KServe's reason, message and event
text; `considered` explains every runtime in a few words for people. Rules and texts are
control-plane.md 3.1 to 3.4 (pkg/apis/serving/v1beta1/predictor_model.go,
pkg/apis/serving/v1alpha1/servingruntime_types.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object, annotations_of, name_of, namespace_of
from kserve_local.api.schema import closest
from kserve_local.errors import Invalid

PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")

RUNTIME_NOT_RECOGNIZED = "RuntimeNotRecognized"
RUNTIME_DISABLED = "RuntimeDisabled"
NO_SUPPORTING_RUNTIME = "NoSupportingRuntime"
INVALID_PREDICTOR_SPEC = "InvalidPredictorSpec"

# Where the annotation `serving.kserve.io/server-type` is missing, upstream goes by these names.
_SERVER_TYPES = {
    f"kserve-{server}": server
    for server in (
        "sklearnserver",
        "xgbserver",
        "lgbserver",
        "predictiveserver",
        "pmmlserver",
        "paddleserver",
        "autogluonserver",
        "mlserver",
        "tensorflow-serving",
        "torchserve",
        "tritonserver",
        "huggingfaceserver",
        "vllmserver",
    )
} | {"kserve-huggingfaceserver-multinode": "huggingfaceserver", "kserve-openvino": "ovms"}


@dataclass(frozen=True, slots=True)
class Selection:
    """The runtime in force.

    Args:
        runtime: The ServingRuntime or ClusterServingRuntime.
        kind: `ServingRuntime` or `ClusterServingRuntime`; decides which status field names it.
        protocol: What the service speaks: `model.protocolVersion`, else the server type's own
            default, else the lowest that the runtime lists, else `v1`.
        server_type: `sklearnserver`, `mlserver`, ...; empty when unknown.
        automatic: No `model.runtime` was given.
    """

    runtime: Object
    kind: str
    name: str
    protocol: str
    server_type: str
    automatic: bool


class SelectionError(Invalid):
    """No runtime, or none that a pod can be built from.

    `str(error)` is what the Warning event `InternalError` says; `reason` and `failure` go into
    `modelStatus.lastFailureInfo` with transitionStatus `InvalidSpec` (control-plane.md 3.3).
    """

    def __init__(self, reason: str, message: str, event_message: str = "") -> None:
        super().__init__(event_message or message)
        self.reason = reason
        self.failure = message
        self.event_message = event_message or message


def select(
    isvc: Object, *, runtimes: Sequence[Object], cluster_runtimes: Sequence[Object]
) -> Selection:
    """Return the runtime that KServe would use for `spec.predictor.model`.

    Args:
        isvc: A defaulted InferenceService with a `model`.
        runtimes: ServingRuntimes; those of other namespaces are left out here.
        cluster_runtimes: All ClusterServingRuntimes.

    Raises:
        SelectionError: With the case's reason and texts.

    Source: control-plane.md 3.1, 3.2, 3.3.
    """
    model = model_of(isvc)
    local = _of_namespace(isvc, runtimes)
    wanted = model.get("runtime")
    if wanted:
        return _explicit(model, str(wanted), local, cluster_runtimes)
    for group, kind in ((local, "ServingRuntime"), (cluster_runtimes, "ClusterServingRuntime")):
        fitting = [r for r in group if not _automatic_objection(isvc, model, r)]
        if fitting:
            return _selection(model, _ordered(fitting, model)[0], kind, automatic=True)
    version = model_format(model)[1]
    raise SelectionError(
        NO_SUPPORTING_RUNTIME,
        "No runtime found to support specified framework/version",
        "no runtime found to support predictor with model type: "
        # Upstream prints a pointer's address where the version is; the version itself helps more.
        f"{{{model_format(model)[0]} {'<nil>' if version is None else version}}}",
    )


def candidates(
    isvc: Object, *, runtimes: Sequence[Object], cluster_runtimes: Sequence[Object]
) -> list[Object]:
    """Return all runtimes that automatic selection would take, the first choice first."""
    model = model_of(isvc)
    ordered: list[Object] = []
    for group in (_of_namespace(isvc, runtimes), cluster_runtimes):
        fitting = [r for r in group if not _automatic_objection(isvc, model, r)]
        ordered.extend(_ordered(fitting, model))
    return ordered


def considered(
    isvc: Object, runtimes: Sequence[Object], cluster_runtimes: Sequence[Object]
) -> list[tuple[str, str]]:
    """Return every runtime that does not fit, with why not, the nearest misses first.

    Reasons read `version 1 only`, `autoSelect is off`, `no xgboost`, `protocol v2 only`,
    `disabled`, ... With an explicit `model.runtime` that exists, only that one is looked at.
    """
    model = model_of(isvc)
    everything = [*_of_namespace(isvc, runtimes), *cluster_runtimes]
    wanted = model.get("runtime")
    if wanted:
        found = next((r for r in everything if name_of(r) == wanted), None)
        if found is not None:
            why = _explicit_objection(model, found)
            return [(name_of(found), why)] if why else []
    misses = [(name_of(r), _automatic_objection(isvc, model, r), r) for r in everything]
    name = model_format(model)[0]
    ranked = sorted(
        (miss for miss in misses if miss[1]),
        key=lambda miss: (_distance(name, miss[2]), miss[0]),
    )
    return [(name, why) for name, why, _ in ranked]


def next_step(
    isvc: Object,
    error: SelectionError,
    *,
    runtimes: Sequence[Object],
    cluster_runtimes: Sequence[Object],
) -> str:
    """Return what to change so that a runtime is found, empty where the message says it already.

    Args:
        error: What `select` raised for `isvc`.
    """
    if error.reason == INVALID_PREDICTOR_SPEC:
        return ""
    misses = considered(isvc, runtimes, cluster_runtimes)
    everything = [*_of_namespace(isvc, runtimes), *cluster_runtimes]
    if error.reason == RUNTIME_NOT_RECOGNIZED:
        wanted = str(model_of(isvc).get("runtime"))
        near = closest(wanted, sorted(map(name_of, everything)))
        meant = f' (did you mean "{near}"?)' if near else ""
        return (
            f'there is no runtime "{wanted}"{meant}: correct or remove '
            "spec.predictor.model.runtime, or create it"
        )
    name, version = model_format(model_of(isvc))
    what = f"{name} {version}" if version else name
    formats = {str(f.get("name")) for r in everything for f in _formats(r)}
    if name not in formats and not model_of(isvc).get("runtime"):
        near = closest(name, sorted(formats))
        meant = f'; did you mean "{near}"?' if near else ""
        return f'no runtime knows the model format "{name}"{meant}'
    ways = ways_out(isvc, runtimes=runtimes, cluster_runtimes=cluster_runtimes)
    if ways:
        return f"in spec.predictor.model, {ways}"
    listed = ", ".join(f"{name} ({why})" for name, why in misses[:3])
    return f"change spec.predictor.model so that a runtime takes {what}; considered: {listed}"


def _distance(name: str, runtime: Object) -> int:
    """Return 0 if the runtime has the format, 1 if only the case of its letters differs, else 2."""
    formats = [str(f.get("name")) for f in _formats(runtime)]
    return 0 if name in formats else 1 if name.lower() in map(str.lower, formats) else 2


def near_format(
    isvc: Object, *, runtimes: Sequence[Object], cluster_runtimes: Sequence[Object]
) -> str:
    """Return the format that was probably meant, empty if a runtime has the one that is written."""
    name = model_format(model_of(isvc))[0]
    everything = [*_of_namespace(isvc, runtimes), *cluster_runtimes]
    formats = {str(f.get("name")) for r in everything for f in _formats(r)}
    return "" if name in formats else closest(name, sorted(formats))


def ways_out(
    isvc: Object, *, runtimes: Sequence[Object], cluster_runtimes: Sequence[Object]
) -> str:
    """Return which single changes of the model make a runtime of its format fit, empty if none.

    Reads `set protocolVersion: v2 (kserve-tritonserver) or runtime: kserve-local-onnxserver`; each
    of them has been tried.
    """
    model = model_of(isvc)
    name, version = model_format(model)
    everything = [*_of_namespace(isvc, runtimes), *cluster_runtimes]
    able = [r for r in everything if any(f.get("name") == name for f in _formats(r))]

    def chosen(**change: Any) -> str:
        changed = {k: v for k, v in {**model, **change}.items() if v is not None}
        predictor = {**isvc["spec"]["predictor"], "model": changed}
        tried = {**isvc, "spec": {**isvc["spec"], "predictor": predictor}}
        try:
            return select(tried, runtimes=runtimes, cluster_runtimes=cluster_runtimes).name
        except SelectionError:
            return ""

    reached: dict[str, str] = {}  # runtime -> the first change that leads to it
    for protocol in PROTOCOLS:
        if protocol != model.get("protocolVersion"):
            reached.setdefault(chosen(protocolVersion=protocol), f"protocolVersion: {protocol}")
    listed = {
        str(f["version"])
        for r in able
        for f in _formats(r)
        if f.get("name") == name and f.get("version") is not None
    }
    for other in sorted(listed - {version}):
        changed = {"name": name, "version": other}
        reached.setdefault(chosen(modelFormat=changed), f'modelFormat.version: "{other}"')
    ways = [f"{change} ({found})" for found, change in reached.items() if found]
    multi_node = isvc["spec"]["predictor"].get("workerSpec") is not None
    ways += [
        f"runtime: {name_of(r)}"
        for r in sorted(able, key=name_of)
        if name_of(r) not in reached
        and (_spec(r).get("workerSpec") is not None) is multi_node
        and chosen(runtime=name_of(r))
    ]
    steps = [f"set {' or '.join(ways)}"] if ways else []
    if model.get("runtime") and (found := chosen(runtime=None)):
        steps.insert(0, f"remove runtime ({found} is selected then)")
    return ", or ".join(steps)


def model_of(isvc: Object) -> Mapping[str, Any]:
    """Return `spec.predictor.model`, empty if the predictor has none."""
    predictor = (isvc.get("spec") or {}).get("predictor") or {}
    return predictor.get("model") or {}


def model_format(model: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the format's name and version."""
    wanted = model.get("modelFormat") or {}
    version = wanted.get("version")
    return str(wanted.get("name") or ""), None if version is None else str(version)


def server_type(runtime: Object) -> str:
    """Return the server type: the runtime's annotation, else by a built-in's name, else empty."""
    return str(
        annotations_of(runtime).get(names.SERVER_TYPE) or _SERVER_TYPES.get(name_of(runtime), "")
    )


def lowest_protocol(runtime: Object) -> str | None:
    """Return the lowest protocol that the runtime lists (v1 < v2 < grpc-v1 < grpc-v2)."""
    listed = [p for p in PROTOCOLS if p in _protocols(runtime)]
    return listed[0] if listed else None


def _explicit(
    model: Mapping[str, Any],
    wanted: str,
    local: Sequence[Object],
    cluster: Sequence[Object],
) -> Selection:
    found = next((r for r in (*local, *cluster) if name_of(r) == wanted), None)
    if found is None:
        raise SelectionError(
            RUNTIME_NOT_RECOGNIZED,
            "Waiting for runtime to become available",
            f"No ServingRuntimes or ClusterServingRuntimes with the name: {wanted}",
        )
    kind = "ServingRuntime" if any(r is found for r in local) else "ClusterServingRuntime"
    if _spec(found).get("disabled"):
        raise SelectionError(
            RUNTIME_DISABLED,
            "Specified runtime is disabled",
            f"specified runtime {wanted} is disabled",
        )
    if not _speaks(found, model.get("protocolVersion")):
        raise SelectionError(
            NO_SUPPORTING_RUNTIME,
            "Specified runtime does not support specified protocol version",
            f"specified runtime {wanted} does not support specified protocol version",
        )
    if not any(_matches(f, model) for f in _formats(found)):
        raise SelectionError(
            NO_SUPPORTING_RUNTIME,
            "Specified runtime does not support specified framework/version",
            f"specified runtime {wanted} does not support specified framework/version",
        )
    return _selection(model, found, kind, automatic=False)


def _selection(
    model: Mapping[str, Any], runtime: Object, kind: str, *, automatic: bool
) -> Selection:
    server = server_type(runtime)
    own = {"mlserver": "v2", "tritonserver": "v2", "torchserve": "v1"}.get(server)
    return Selection(
        runtime=runtime,
        kind=kind,
        name=name_of(runtime),
        protocol=model.get("protocolVersion") or own or lowest_protocol(runtime) or "v1",
        server_type=server,
        automatic=automatic,
    )


def _of_namespace(isvc: Object, runtimes: Iterable[Object]) -> list[Object]:
    namespace = namespace_of(isvc)
    return [r for r in runtimes if not namespace or namespace_of(r) in ("", namespace)]


def _spec(runtime: Object) -> Mapping[str, Any]:
    return runtime.get("spec") or {}


def _formats(runtime: Object) -> Sequence[Mapping[str, Any]]:
    return _spec(runtime).get("supportedModelFormats") or ()


def _protocols(runtime: Object) -> Sequence[str]:
    return _spec(runtime).get("protocolVersions") or ()


def _speaks(runtime: Object, protocol: str | None) -> bool:
    listed = _protocols(runtime)
    return not listed or not protocol or protocol in listed


def _matches(entry: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether the entry has the format and, if the service names one, exactly its version."""
    name, version = model_format(model)
    return entry.get("name") == name and (version is None or entry.get("version") == version)


def _ordered(runtimes: Iterable[Object], model: Mapping[str, Any]) -> list[Object]:
    """Return the runtimes of one group in KServe's order (control-plane.md 3.1)."""
    name = model_format(model)[0]

    def protocol_rank(runtime: Object) -> int:
        lowest = lowest_protocol(runtime)
        return len(PROTOCOLS) if lowest is None else PROTOCOLS.index(lowest)

    def priority(runtime: Object) -> int:
        first: Mapping[str, Any] = next((f for f in _formats(runtime) if f.get("name") == name), {})
        return int(first.get("priority") or 0)

    ordered = sorted(runtimes, key=name_of)
    ordered.sort(key=lambda r: str(r["metadata"].get("creationTimestamp") or ""), reverse=True)
    ordered.sort(key=protocol_rank)
    ordered.sort(key=priority, reverse=True)
    return ordered


def _automatic_objection(isvc: Object, model: Mapping[str, Any], runtime: Object) -> str:
    """Return why automatic selection leaves the runtime out; empty if it does not."""
    if _spec(runtime).get("disabled"):
        return "disabled"
    objection = _format_objection(model, runtime, automatic=True)
    if objection:
        return objection
    protocol = model.get("protocolVersion") or "v1"
    if not _speaks(runtime, protocol):
        return f"protocol {' and '.join(_protocols(runtime))} only"
    if _spec(runtime).get("multiModel"):
        return "for multi-model serving"
    predictor = (isvc.get("spec") or {}).get("predictor") or {}
    wants_worker = predictor.get("workerSpec") is not None
    if wants_worker and _spec(runtime).get("workerSpec") is None:
        return "has no workerSpec"
    if not wants_worker and _spec(runtime).get("workerSpec") is not None:
        return "for multi-node serving: needs a workerSpec"
    return ""


def _explicit_objection(model: Mapping[str, Any], runtime: Object) -> str:
    if _spec(runtime).get("disabled"):
        return "disabled"
    if not _speaks(runtime, model.get("protocolVersion")):
        return f"protocol {' and '.join(_protocols(runtime))} only"
    return _format_objection(model, runtime, automatic=False)


def _format_objection(model: Mapping[str, Any], runtime: Object, *, automatic: bool) -> str:
    name = model_format(model)[0]
    same = [f for f in _formats(runtime) if f.get("name") == name]
    if not same:
        near = next(
            (f for f in _formats(runtime) if str(f.get("name")).lower() == name.lower()), None
        )
        return f"no {name}" + (f", but {near['name']}" if near else "")
    fitting = [f for f in same if _matches(f, model)]
    if not fitting:
        versions = [str(f["version"]) for f in same if f.get("version") is not None]
        if not versions:
            return "no versions listed"
        return f"version{'s' if len(versions) > 1 else ''} {' and '.join(versions)} only"
    if automatic and not any(f.get("autoSelect") for f in fitting):
        return "autoSelect is off"
    return ""
