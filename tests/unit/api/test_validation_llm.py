"""The webhooks of LLMInferenceService and LLMInferenceServiceConfig: llm.md 1.4."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kserve_local.api import config, validation
from kserve_local.api.validation_llm import parallel_size
from kserve_local.errors import Forbidden, Invalid

CONFIG = config.parse(None)
REFS, SPEC = "spec.router.route.http.refs", "spec.router.route.http.spec"


def llm(
    spec: dict[str, Any],
    *,
    version: str = "v1alpha2",
    kind: str = "LLMInferenceService",
    name: str = "qwen",
    namespace: str = "default",
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "apiVersion": f"serving.kserve.io/{version}",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
        "spec": spec,
    }


def admit(obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    return validation.validate(obj, old=old, config=CONFIG, lookup=lambda resource, ns: [])


def errors(obj: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    """`path: message` of every cause."""
    with pytest.raises(Invalid) as caught:
        admit(obj, old)
    return [f"{cause.field}: {cause.message}" for cause in caught.value.causes]


def test_the_answer_is_a_422_with_causes_in_the_webhooks_wrapper() -> None:
    """One error stands alone, several in brackets."""
    spec: Any = {"router": {"scheduler": {"replicas": 0}}}
    with pytest.raises(Invalid) as caught:
        admit(llm(spec, version="v1alpha1"))
    text = (
        "spec.router.scheduler.replicas: Invalid value: 0: scheduler replicas must be greater than "
        "zero"
    )
    assert str(caught.value) == (
        'admission webhook "llminferenceservice.kserve-webhook-server.v1alpha1.validator" denied '
        f'the request: LLMInferenceService.serving.kserve.io "qwen" is invalid: {text}'
    )
    (cause,) = caught.value.causes
    assert cause.reason == "FieldValueInvalid"
    spec["router"]["route"] = {"weight": 1}
    with pytest.raises(Invalid) as caught:
        admit(llm(spec))
    assert str(caught.value).endswith(
        f"is invalid: [spec.router.route.group: Required value: weight requires group, {text}]"
    )


GATEWAY = {"refs": [{"name": "g", "namespace": "n"}]}


def routed(http: dict[str, Any], gateway: dict[str, Any] | None = None, **route: Any) -> Any:
    router: dict[str, Any] = {"route": {"http": http, **route}}
    return {"router": router if gateway is None else {**router, "gateway": gateway}}


ADAPTER = {"name": "a", "uri": "hf://a/b"}
WVA = {"maxReplicas": 2, "wva": {"hpa": {}}}


def scaled(**scaling: Any) -> dict[str, Any]:
    return {"scaling": {"maxReplicas": 2, **scaling}}


def tier(**file_system: Any) -> dict[str, Any]:
    return {"kvCacheOffloading": {"cpu": "1Gi", "secondary": [{"fileSystem": file_system}]}}


CASES: list[Any] = [
    pytest.param(
        routed({"refs": [{"name": "r"}], "spec": {}}),
        "spec.router.route.http",
        "unsupported configuration: cannot use both custom HTTPRoute refs "
        f"('{REFS}') and an inline route spec ('{SPEC}'); choose one",
        id="refs-and-spec",
    ),
    pytest.param(
        routed({"refs": [{"name": "r"}]}, {}),
        REFS,
        f"unsupported configuration: custom HTTP routes ('{REFS}') cannot be used with a managed "
        f"gateway ('spec.router.gateway'); either remove '{REFS}' or set "
        "'spec.router.gateway.refs'",
        id="refs-and-managed-gateway",
    ),
    pytest.param(
        routed({"spec": {"parentRefs": [{"name": "other"}]}}, GATEWAY),
        SPEC,
        f"unsupported configuration: managed HTTP route spec ('{SPEC}') has parentRefs that "
        "conflict with custom gateway refs ('spec.router.gateway.refs'); either remove "
        f"'spec.router.gateway.refs' or '{SPEC}.parentRefs'",
        id="conflicting-parent-refs",
    ),
    pytest.param(
        {"router": {"route": {"group": "g", "weight": 1}, "ingress": {}}},
        "spec.router.route.group",
        "traffic splitting requires Gateway API routing; the controller manages HTTPRoutes, not "
        "Ingress resources",
        id="group-and-ingress",
    ),
    pytest.param(
        {"router": {"route": {"weight": 1}}},
        "spec.router.route.group",
        "Required value: weight requires group",
        id="weight-alone",
    ),
    pytest.param(
        {"router": {"route": {"group": "g"}}},
        "spec.router.route.weight",
        "Required value: group requires weight",
        id="group-alone",
    ),
    pytest.param(
        routed({"refs": [{"name": "r"}]}, group="g", weight=1),
        "spec.router.route.group",
        "traffic splitting cannot be used with custom HTTPRoute refs; controller-managed routes "
        "(route.http.spec or route.http: {}) are required",
        id="group-and-refs",
    ),
    pytest.param(
        {"worker": {}},
        "spec.worker",
        "when worker is specified, parallelism must be configured for either data parallelism or "
        "pipeline parallelism",
        id="worker-alone",
    ),
    pytest.param(
        {"prefill": {"worker": {}, "parallelism": {"tensor": 2}}},
        "spec.prefill.worker",
        "when worker is specified, parallelism must be configured for either data parallelism or "
        "pipeline parallelism",
        id="prefill-worker-tensor-only",
    ),
    pytest.param(
        {"parallelism": {"pipeline": 2, "data": 2, "dataLocal": 1}},
        "spec.parallelism",
        "cannot set both pipeline parallelism and data parallelism (data or dataLocal) "
        "simultaneously",
        id="pipeline-and-data",
    ),
    pytest.param(
        {"parallelism": {"data": 2}},
        "spec.parallelism.dataLocal",
        "dataLocal must be set when data is set",
        id="data-alone",
    ),
    pytest.param(
        {"parallelism": {"dataLocal": 2}},
        "spec.parallelism.data",
        "data must be set when dataLocal is set",
        id="data-local-alone",
    ),
    pytest.param(
        {"parallelism": {"pipeline": 0}},
        "spec.parallelism.pipeline",
        "pipeline parallelism must be greater than 0",
        id="no-pipeline",
    ),
    pytest.param(
        {"router": {"scheduler": {"config": {}}}},
        "spec.router.scheduler.config",
        "either inline or ref is required",
        id="scheduler-config-empty",
    ),
    pytest.param(
        {"router": {"scheduler": {"config": {"inline": {"a": 1}, "ref": {"name": "x"}}}}},
        "spec.router.scheduler.config",
        "both inline and ref are set, either specify inline or ref",
        id="scheduler-config-both",
    ),
    pytest.param(
        {"router": {"scheduler": {"config": {"inline": {}}}}},
        "spec.router.scheduler.config.inline",
        "inline configuration is invalid",
        id="scheduler-config-inline",
    ),
    pytest.param(
        {"router": {"scheduler": {"config": {"ref": {"name": ""}}}}},
        "spec.router.scheduler.config.ref.name",
        "name is empty",
        id="scheduler-config-ref",
    ),
    *(
        pytest.param(
            {"model": {"uri": "hf://a/b", "lora": {field: 0}}},
            f"spec.model.lora.{field}",
            f"{field} must be at least 1",
            id=f"lora-{field}",
        )
        for field in ("maxRank", "maxAdapters", "maxCpuAdapters")
    ),
    *(
        pytest.param(
            {"model": {"uri": "hf://a/b", "name": "base", "lora": {"adapters": adapters}}},
            f"spec.model.lora.adapters[{index}].name",
            message,
            id=f"lora-{message.split()[0]}-{index}",
        )
        for adapters, index, message in (
            ([{"uri": "x"}], 0, "Required value: adapter name is required"),
            (
                [{"name": ".."}],
                0,
                'adapter name must not include "." or ".." (path traversal risk)',
            ),
            ([ADAPTER, ADAPTER], 1, "duplicate name (same as adapters[0])"),
            ([{"name": "base"}], 0, 'adapter name must differ from base model name "base"'),
        )
    ),
    pytest.param(
        {"replicas": 1, "scaling": WVA},
        "spec.scaling",
        "scaling and replicas are mutually exclusive; use scaling for autoscaled deployments or "
        "replicas for static deployments",
        id="scaling-and-replicas",
    ),
    pytest.param(
        {"scaling": {**WVA, "minReplicas": 3}},
        "spec.scaling.minReplicas",
        "minReplicas (3) cannot exceed maxReplicas (2)",
        id="min-over-max",
    ),
    pytest.param(
        scaled(wva={"hpa": {}}, keda={}),
        "spec.scaling",
        "wva and keda are mutually exclusive; choose one scaling mechanism",
        id="wva-and-keda",
    ),
    pytest.param(
        scaled(),
        "spec.scaling",
        "Required value: either wva or keda must be specified when scaling is configured",
        id="no-mechanism",
    ),
    pytest.param(
        scaled(wva={"hpa": {}, "keda": {}}),
        "spec.scaling.wva",
        "hpa and keda are mutually exclusive; choose one actuator backend",
        id="two-actuators",
    ),
    pytest.param(
        scaled(wva={}),
        "spec.scaling.wva",
        "Required value: either hpa or keda must be specified as the actuator backend",
        id="no-actuator",
    ),
    pytest.param(
        scaled(wva={"hpa": {}, "variantCost": "-1"}),
        "spec.scaling.wva.variantCost",
        'variantCost must be a non-negative numeric string (e.g., "10", "10.0", "0.5")',
        id="variant-cost",
    ),
    pytest.param(
        scaled(wva={"keda": {"advanced": {"scalingModifiers": {"formula": "x"}}}}),
        "spec.scaling.wva.keda.advanced.scalingModifiers",
        "Forbidden: scalingModifiers must not be set; WVA controls the scaling metric formula and "
        "logic",
        id="scaling-modifiers",
    ),
    pytest.param(
        scaled(
            keda={
                "triggers": [{}],
                "advanced": {"horizontalPodAutoscalerConfig": {"name": "x"}},
            }
        ),
        "spec.scaling.keda.advanced.horizontalPodAutoscalerConfig.name",
        "Forbidden: horizontalPodAutoscalerConfig.name must not be set; the controller manages the "
        "HPA name",
        id="hpa-name",
    ),
    pytest.param(
        scaled(keda={}),
        "spec.scaling.keda.triggers",
        "Required value: at least one trigger is required when using direct KEDA scaling",
        id="no-triggers",
    ),
    pytest.param(
        scaled(keda={"triggers": [{}], "idleReplicaCount": 0}),
        "spec.scaling.minReplicas",
        "Required value: minReplicas is required when idleReplicaCount is set; idleReplicaCount "
        "(0) must be less than minReplicas",
        id="idle-without-min",
    ),
    pytest.param(
        scaled(minReplicas=1, keda={"triggers": [{}], "idleReplicaCount": 1}),
        "spec.scaling.keda.idleReplicaCount",
        "idleReplicaCount (1) must be less than minReplicas (1); idleReplicaCount defines the "
        "replica floor when no triggers are active",
        id="idle-not-below-min",
    ),
    pytest.param(
        {"scaling": WVA, "prefill": scaled(keda={"triggers": [{}]})},
        "spec.prefill.scaling",
        "decode and prefill must use the same scaling mode; decode uses wva but prefill uses "
        "direct keda",
        id="modes-differ",
    ),
    pytest.param(
        {"scaling": WVA, "prefill": scaled(wva={"keda": {}})},
        "spec.prefill.scaling.wva",
        "decode and prefill must use the same actuator backend; decode uses hpa but prefill uses "
        "keda — mixing backends requires two separate metric pipelines and leads to independent, "
        "unsynchronised scaling decisions",
        id="backends-differ",
    ),
    pytest.param(
        {"kvCacheOffloading": {"secondary": [{"fileSystem": {"emptyDir": {}}}]}},
        "spec.kvCacheOffloading.cpu",
        "Required value: cpu must be set when secondary tiers are configured",
        id="kv-cpu",
    ),
    pytest.param(
        {"kvCacheOffloading": {"cpu": "1Gi", "secondary": [{}]}},
        "spec.kvCacheOffloading.secondary[0].fileSystem",
        "Required value: only fileSystem tiers are supported; fileSystem must be set",
        id="kv-file-system",
    ),
    pytest.param(
        tier(),
        "spec.kvCacheOffloading.secondary[0].fileSystem",
        "Required value: exactly one of emptyDir or pvc must be set",
        id="kv-none",
    ),
    pytest.param(
        tier(emptyDir={}, pvc={}),
        "spec.kvCacheOffloading.secondary[0].fileSystem",
        "exactly one of emptyDir or pvc must be set; multiple are set",
        id="kv-both",
    ),
    pytest.param(
        tier(pvc={"ref": {"name": ""}}),
        "spec.kvCacheOffloading.secondary[0].fileSystem.pvc.ref.name",
        "Required value: name is required",
        id="kv-pvc-name",
    ),
    pytest.param(
        {"rolloutStrategy": {"maxUnavailable": -1}},
        "spec.rolloutStrategy.maxUnavailable",
        "must be greater than or equal to 0",
        id="rollout-negative",
    ),
    pytest.param(
        {"rolloutStrategy": {"maxSurge": "101%"}},
        "spec.rolloutStrategy.maxSurge",
        "must not be greater than 100%",
        id="rollout-over-100",
    ),
    pytest.param(
        {"rolloutStrategy": {"maxUnavailable": 0, "maxSurge": "0%"}},
        "spec.rolloutStrategy",
        "maxUnavailable and maxSurge cannot both be zero; this would prevent any rolling update "
        "progress",
        id="rollout-zero",
    ),
    pytest.param(
        {
            "worker": {},
            "parallelism": {"pipeline": 2},
            "rolloutStrategy": {"maxUnavailable": "50%"},
        },
        "spec.rolloutStrategy.maxSurge",
        "Required value: maxSurge is required for multi-node workloads when maxUnavailable is 0, "
        "otherwise no rolling update progress is possible",
        id="rollout-multi-node",
    ),
    pytest.param(
        {"model": {"uri": "hf://a/b", "confidential": {"enabled": True, "resourceId": "x"}}},
        "spec.model.confidential.resourceId",
        "must be in the format kbs:///<repo>/<type>/<tag>",
        id="confidential",
    ),
]


@pytest.mark.parametrize(("spec", "path", "message"), CASES)
def test_rule(spec: dict[str, Any], path: str, message: str) -> None:
    """One finding, at that path, with that text."""
    (error,) = errors(llm(spec))
    assert error.startswith(f"{path}: ")
    assert error.endswith(message)


DRA = "serving.kserve.io/exp-dra-"


@pytest.mark.parametrize(
    ("annotations", "key", "message"),
    [
        (
            {"device-count": "1"},
            "device-class",
            f"Required value: {DRA}device-class is required to enable managed DRA when "
            f"{DRA}device-count, {DRA}cel-selector, or {DRA}container-name is set",
        ),
        (
            {"device-class": " "},
            "device-class",
            'Invalid value: " ": device class must not be empty',
        ),
        (
            {"device-class": "g", "device-count": "0"},
            "device-count",
            f'Invalid value: "0": invalid {DRA}device-count value "0": must be >= 1',
        ),
        (
            {"device-class": "g", "cel-selector": "\n"},
            "cel-selector",
            'Invalid value: "\\n": cel selector must contain at least one non-empty CEL expression',
        ),
        (
            {"device-class": "g", "container-name": ""},
            "container-name",
            'Invalid value: "": container name must not be empty',
        ),
    ],
)
def test_managed_dra(annotations: dict[str, str], key: str, message: str) -> None:
    """Annotations `exp-dra-*`."""
    obj = llm({}, annotations={DRA + name: value for name, value in annotations.items()})
    assert errors(obj) == [f"metadata.annotations[{DRA}{key}]: {message}"]


def test_managed_dra_names() -> None:
    """A DNS subdomain and a DNS label."""
    obj = llm({}, annotations={DRA + "device-class": "A_b", DRA + "container-name": "a.b"})
    first, second = errors(obj)
    assert ": device class must be a DNS subdomain: a lowercase RFC 1123 subdomain" in first
    assert ": container name must be a DNS label: a lowercase RFC 1123 label" in second


def test_parallel_size_is_immutable() -> None:
    """In both workloads; the size, not the fields, is compared."""
    assert parallel_size({"data": 8, "dataLocal": 2}) == 4
    assert parallel_size({"pipeline": 3}) == 3
    assert parallel_size({"tensor": 8}) == 1
    old = llm({"parallelism": {"pipeline": 2}, "prefill": {"parallelism": {"pipeline": 2}}})
    new = copy.deepcopy(old)
    new["spec"]["parallelism"] = {"data": 4, "dataLocal": 2}
    assert admit(new, old) == []
    new["spec"]["prefill"]["parallelism"]["pipeline"] = 3
    assert errors(new, old) == [
        "spec.prefill.parallelism: Unsupported value: 3: total parallelism size is immutable, "
        "previous size 2, curr size 3"
    ]


def test_versions_differ_about_parent_refs() -> None:
    """Equal references: a warning in v1alpha2, an error in v1alpha1."""
    spec = routed({"spec": {"parentRefs": [{"name": "g", "namespace": "n"}]}}, GATEWAY)
    assert admit(llm(spec)) == [
        f"{SPEC}.parentRefs can be omitted when spec.router.gateway.refs is set; parentRefs will "
        "be derived automatically from gateway refs"
    ]
    (error,) = errors(llm(spec, version="v1alpha1"))
    assert "cannot be used with custom gateway refs ('spec.router.gateway.refs')" in error


def test_confidential_warns() -> None:
    """As for InferenceServices."""
    model = {"uri": "pvc://c/m", "confidential": {"enabled": True}}
    (warning,) = admit(llm({"model": model}))
    assert warning.startswith("confidential has no effect with PVC URIs; ")


def config_obj(spec: dict[str, Any], name: str = "mine", namespace: str = "kserve") -> Any:
    return llm(spec, kind="LLMInferenceServiceConfig", name=name, namespace=namespace)


def test_config_rules() -> None:
    """baseRefs, scheduler replicas."""
    spec = {"baseRefs": [{"name": "x"}], "router": {"scheduler": {"replicas": 0}}}
    first, second = errors(config_obj(spec))
    assert first == (
        "spec.baseRefs: Forbidden: baseRefs is not a permitted field in LLMInferenceServiceConfig, "
        "support for recursive refs has been disabled"
    )
    assert second.startswith("spec.router.scheduler.replicas: ")


def test_well_known_configs() -> None:
    """Changing one warns, deleting one in namespace kserve is refused."""
    name = "kserve-config-llm-template"
    old, new = config_obj({}, name), config_obj({"replicas": 1}, name)
    assert admit(new, old) == [
        f"modifying well-known config kserve/{name} is not recommended. Consider creating a custom "
        "config instead"
    ]
    assert admit(old, old) == []

    def delete(obj: dict[str, Any]) -> list[str]:
        return validation.validate_deletion(obj, config=CONFIG, lookup=lambda resource, ns: [])

    with pytest.raises(Forbidden, match=f"well-known config kserve/{name} cannot be deleted"):
        delete(old)
    assert delete(config_obj({}, name, "default")) == []
    assert delete(config_obj({})) == []


def test_a_full_service_passes() -> None:
    """Prefill and decode, scheduler, traffic."""
    workload = {
        "parallelism": {"data": 4, "dataLocal": 2},
        "worker": {},
        "rolloutStrategy": {"maxUnavailable": 1, "maxSurge": "25%"},
        "scaling": {"minReplicas": 1, "maxReplicas": 2, "wva": {"keda": {"idleReplicaCount": 0}}},
    }
    spec = {
        "model": {"uri": "hf://a/b", "lora": {"adapters": [ADAPTER], "maxRank": 8}},
        **workload,
        "prefill": workload,
        "router": {
            "route": {"http": {"spec": {}}, "group": "g", "weight": 50},
            "gateway": GATEWAY,
            "scheduler": {"replicas": 1, "config": {"ref": {"name": "c", "key": "k"}}},
        },
        "kvCacheOffloading": {
            "cpu": "1Gi",
            "secondary": [{"fileSystem": {"pvc": {"ref": {"name": "c"}}}}],
        },
    }
    assert admit(llm(spec)) == []
