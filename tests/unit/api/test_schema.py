"""Structural schema rules and the texts of the API server."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kserve_local.api import schema, scheme
from kserve_local.errors import NotFound, status_of


def isvc(predictor: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    if predictor is None:
        predictor = {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://b/m"}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", **metadata},
        "spec": {"predictor": predictor},
    }


def llm(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "qwen"},
        "spec": {"model": {"uri": "hf://a/b"}, **spec},
    }


def custom(container: dict[str, Any]) -> dict[str, Any]:
    return isvc({"containers": [{"name": "kserve-container", "image": "i", **container}]})


def texts(obj: dict[str, Any], **kwargs: Any) -> list[str]:
    return [str(finding) for finding in schema.check(obj, **kwargs)]


def test_a_plain_service_is_valid() -> None:
    assert texts(isvc()) == []


P = "spec.predictor"
C = f"{P}.containers[0]"


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        (isvc({"model": {"modelFormat": {}}}), f"{P}.model.modelFormat.name: Required value"),
        (
            isvc({"minReplicas": "one"}),
            f'{P}.minReplicas: Invalid value: "string": {P}.minReplicas in body must be of type'
            ' integer: "string"',
        ),
        (
            isvc({"minReplicas": 1.5}),
            f'{P}.minReplicas: Invalid value: "number": {P}.minReplicas in body must be of type'
            ' integer: "number"',
        ),
        (
            isvc({"minReplicas": True}),
            f'{P}.minReplicas: Invalid value: "boolean": {P}.minReplicas in body must be of type'
            ' integer: "boolean"',
        ),
        (
            isvc({"scaleMetric": "CPU"}),
            f'{P}.scaleMetric: Unsupported value: "CPU": supported values: "cpu", "memory",'
            ' "concurrency", "rps"',
        ),
        (
            isvc({"name": "Big"}),
            f'{P}.name: Invalid value: "Big": {P}.name in body should match'
            " '^[a-z]([-a-z0-9]*[a-z0-9])?$'",
        ),
        (
            isvc({"storageUris": []}),
            f"{P}.storageUris: Invalid value: 0: {P}.storageUris in body should have at least 1"
            " items",
        ),
        (
            isvc({"storageUris": [{"uri": ""}]}),
            f'{P}.storageUris[0].uri: Invalid value: "": {P}.storageUris[0].uri in body should be'
            " at least 1 chars long",
        ),
        (
            isvc({"storageUris": [{"uri": "a", "mountPath": "/" + "x" * 255}]}),
            f"{P}.storageUris[0].mountPath: Too long: may not be more than 255 bytes",
        ),
        (
            custom({"env": [{"name": "A"}, {"name": "A"}]}),
            f'{C}.env[1]: Duplicate value: {{"name":"A"}}',
        ),
        (
            custom({"ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]}),
            f'{C}.ports[1]: Duplicate value: {{"containerPort":1,"protocol":"TCP"}}',
        ),
        (
            custom({"resources": {"limits": {"cpu": "1 core"}}}),
            f'{C}.resources.limits.cpu: Invalid value: "1 core": {C}.resources.limits.cpu in body'
            r" should match '^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|"
            r"([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$'",
        ),
        (
            custom({"resources": {"limits": {"cpu": 0.5}}}),
            f'{C}.resources.limits.cpu: Invalid value: "number": {C}.resources.limits.cpu in body'
            ' must be of type integer,string: "number"',
        ),
        (
            custom({"livenessProbe": {"httpGet": {"path": "/"}}, "ports": [{"name": "http"}]}),
            f"{C}.ports[0].containerPort: Required value",
        ),
        (
            isvc({"model": {"modelFormat": "sklearn"}}),
            f'{P}.model.modelFormat: Invalid value: "string": {P}.model.modelFormat in body must'
            ' be of type object: "string"',
        ),
        (
            isvc({"containers": [None]}),
            f'{P}.containers[0]: Invalid value: "null": {P}.containers[0] in body must be of type'
            ' object: "null"',
        ),
        (
            isvc({"minReplicas": 2**31}),
            f"{P}.minReplicas: Invalid value: 2147483648: {P}.minReplicas in body should be less"
            " than or equal to 2147483647",
        ),
        (
            llm(parallelism={"data": 0}),
            "spec.parallelism.data: Invalid value: 0: spec.parallelism.data in body should be"
            " greater than or equal to 1",
        ),
    ],
)
def test_findings_read_as_the_api_server_writes_them(obj: dict[str, Any], text: str) -> None:
    assert text in texts(obj)


def test_no_spec_is_no_error_but_an_empty_one_is() -> None:
    """`spec` itself is not required by the CRD; `spec.predictor` is."""
    obj = isvc()
    assert texts({**obj, "spec": {}}) == ["spec.predictor: Required value"]
    assert texts({**obj, "spec": None}) == []


@pytest.mark.parametrize("value", [1, "1", "500m", "2Gi", "1e3", 1.0])
def test_quantities_may_be_numbers_or_text(value: Any) -> None:
    assert texts(custom({"resources": {"limits": {"x.y/z": value}}})) == []


@pytest.mark.parametrize("port", [8080, "http"])
def test_ports_of_probes_may_be_numbers_or_names(port: int | str) -> None:
    probe = {"httpGet": {"port": port}}
    assert (
        texts(custom({"readinessProbe": probe, "livenessProbe": {"tcpSocket": {"port": port}}}))
        == []
    )


def test_null_at_a_field_counts_as_not_given() -> None:
    """Kubernetes drops null where it is not `nullable`, before anything else looks."""
    assert texts(custom({"env": None, "resources": {"limits": {"cpu": None}}})) == []
    assert texts(isvc({"model": {"modelFormat": {"name": None}}})) == [
        f"{P}.model.modelFormat.name: Required value"
    ]


def test_a_required_field_with_a_default_may_be_missing() -> None:
    obj = {**isvc(), "status": {"modelStatus": {"copies": {"totalCopies": 1}}}}
    assert texts(obj) == []


def test_sets_hold_each_value_once() -> None:
    rule = {"action": "Restart", "exitCodes": {"operator": "In", "values": [1, 2, 1]}}
    assert texts(custom({"restartPolicyRules": [rule]})) == [
        f"{C}.restartPolicyRules[0].exitCodes.values[2]: Duplicate value: 1"
    ]


def test_the_whole_pod_spec_is_there() -> None:
    obj = isvc(
        {
            "containers": [{"name": "a", "image": "i", "securityContext": {"runAsUser": 2**40}}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]}
                        ]
                    }
                }
            },
            "volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}],
            "tolerations": [{"key": "k", "tolerationSeconds": 5}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}
            ],
        }
    )
    assert texts(obj) == []
    assert schema.unknown_fields(obj) == []


# --- unknown fields, pruning, defaults -------------------------------------------------------


def test_unknown_fields_are_named_as_the_api_server_names_them() -> None:
    obj = isvc({"model": {"modelformat": {}, "env": [{"name": "a", "val": "b"}]}, "foo": 1})
    obj["extra"] = {}
    obj["metadata"]["labelz"] = {}
    assert schema.unknown_fields(obj) == [
        "metadata.labelz",
        "spec.predictor.model.modelformat",
        "spec.predictor.model.env[0].val",
        "spec.predictor.foo",
        "extra",
    ]
    by_field = {f.field: f.suggestion for f in schema.unknown(obj)}
    assert by_field["spec.predictor.model.modelformat"] == "modelFormat"
    assert by_field["metadata.labelz"] == "labels"
    assert by_field["spec.predictor.foo"] == ""


def test_pruning_drops_exactly_the_unknown_fields() -> None:
    obj = isvc({"model": {"modelFormat": {"name": "a", "x": 1}}, "foo": 1})
    before = copy.deepcopy(obj)
    pruned = schema.prune(obj)
    assert pruned["spec"] == {"predictor": {"model": {"modelFormat": {"name": "a"}}}}
    assert schema.unknown_fields(pruned) == []
    assert obj == before


def test_preserved_fields_survive_pruning() -> None:
    obj = {**isvc(), "status": {"mine": {"a": 1}, "modelStatus": {"mine": 1, "states": {}}}}
    kept = schema.prune(obj)["status"]
    assert kept == {"mine": {"a": 1}, "modelStatus": {"states": {}}}
    inline = {"router": {"scheduler": {"config": {"inline": {"any": [{"thing": 1}]}}}}}
    assert schema.prune(llm(**inline)) == llm(**inline)


def test_labels_and_free_maps_are_not_unknown() -> None:
    obj = isvc(labels={"a": "b"}, annotations={"x.y/z": ""})
    obj["spec"]["predictor"]["nodeSelector"] = {"a.b/c": "d"}
    assert schema.unknown_fields(obj) == []


def test_defaults_are_filled_in_at_every_depth() -> None:
    obj = llm(
        router={"route": {"http": {"spec": {"parentRefs": [{"name": "gw"}]}}}},
        scaling={"maxReplicas": 2, "minReplicas": None, "wva": {"hpa": {}}},
    )
    before = copy.deepcopy(obj)
    spec = schema.apply_defaults(obj)["spec"]
    route = spec["router"]["route"]["http"]["spec"]
    assert route["parentRefs"] == [
        {"name": "gw", "group": "gateway.networking.k8s.io", "kind": "Gateway"}
    ]
    assert route["rules"] == [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]
    assert spec["scaling"] == {
        "maxReplicas": 2,
        "minReplicas": 1,
        "wva": {"hpa": {}, "variantCost": "10.0"},
    }
    assert obj == before
    assert schema.apply_defaults(schema.apply_defaults(obj)) == schema.apply_defaults(obj)


def test_filled_in_defaults_are_not_shared() -> None:
    one = schema.apply_defaults(llm(router={"route": {"http": {"spec": {}}}}))
    two = schema.apply_defaults(llm(router={"route": {"http": {"spec": {}}}}))
    first = one["spec"]["router"]["route"]["http"]["spec"]["rules"]
    assert first is not two["spec"]["router"]["route"]["http"]["spec"]["rules"]


def test_plain_numbers_become_quantities_and_null_goes() -> None:
    """What decoding into Go types and back makes of them."""
    obj = custom({"resources": {"limits": {"cpu": 0.5}, "requests": {"cpu": 2}}, "args": None})
    container = schema.normalize_quantities(obj)["spec"]["predictor"]["containers"][0]
    assert container["resources"] == {"limits": {"cpu": "500m"}, "requests": {"cpu": 2}}
    assert "args" not in container


# --- CEL -------------------------------------------------------------------------------------


def test_cel_rules_are_checked_with_defaults_applied() -> None:
    route = {"http": {"spec": {"rules": [{"backendRefs": [{"name": "s"}]}]}}}
    where = "spec.router.route.http.spec.rules[0].backendRefs[0]"
    assert texts(llm(router={"route": route})) == [
        f'{where}: Invalid value: "object": Must have port for Service reference'
    ]
    route["http"]["spec"]["rules"][0]["backendRefs"][0]["port"] = 80
    assert texts(llm(router={"route": route})) == []


def test_cel_rules_wait_until_the_schema_is_right() -> None:
    scaling = {"maxReplicas": "x", "keda": {"triggers": []}}
    assert not any("mutually" in text for text in texts(llm(replicas=1, scaling=scaling)))


def test_mutually_exclusive_fields() -> None:
    keda = {"triggers": [{"type": "cpu", "metadata": {}}]}
    found = texts(llm(replicas=1, scaling={"maxReplicas": 2, "keda": keda}))
    assert found == [
        'spec: Invalid value: "object": replicas and scaling are mutually exclusive; use scaling'
        " for autoscaled deployments or replicas for static deployments"
    ]


@pytest.mark.parametrize("kind", ["LocalModelCache", "LocalModelNamespaceCache"])
def test_rules_about_updates_see_the_old_object(kind: str) -> None:
    def cache(uri: str) -> dict[str, Any]:
        return {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": kind,
            "metadata": {"name": "c"},
            "spec": {"modelSize": "1Gi", "nodeGroups": ["g"], "sourceModelUri": uri},
        }

    assert texts(cache("hf://b")) == []
    assert texts(cache("hf://a"), old=cache("hf://a")) == []
    assert texts(cache("hf://b"), old=cache("hf://a")) == [
        'spec.sourceModelUri: Invalid value: "string": StorageUri is immutable'
    ]


# --- metadata --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "field", "part"),
    [
        ({"name": "Iris"}, "metadata.name", "a lowercase RFC 1123 subdomain must consist of"),
        ({"name": "-a"}, "metadata.name", "a lowercase RFC 1123 subdomain must consist of"),
        ({"name": "a" * 254}, "metadata.name", "must be no more than 253 characters"),
        ({"name": ""}, "metadata.name", "Required value: name or generateName is required"),
        ({"name": 5}, "metadata.name", 'must be of type string: "integer"'),
        ({"namespace": "A"}, "metadata.namespace", "a lowercase RFC 1123 label must consist of"),
        ({"labels": {"a": "b c"}}, "metadata.labels.a", "a valid label must be an empty string"),
        ({"labels": {"a b": "c"}}, "metadata.labels.a b", "name part must consist of"),
        ({"labels": {"/a": "c"}}, "metadata.labels./a", "prefix part must be non-empty"),
        ({"labels": {"A.b/c": "c"}}, "metadata.labels.A.b/c", "prefix part a lowercase RFC 1123"),
        ({"labels": {"a": "x" * 64}}, "metadata.labels.a", "must be no more than 63 characters"),
        ({"labels": {"a": 1}}, "metadata.labels.a", 'must be of type string: "integer"'),
        ({"labels": ["a"]}, "metadata.labels", 'must be of type object: "array"'),
        ({"annotations": {"a": True}}, "metadata.annotations.a", 'type string: "boolean"'),
        ({"annotations": {"a/b/c": ""}}, "metadata.annotations.a/b/c", "a qualified name must"),
        ({"annotations": {"a": "x" * 262144}}, "metadata.annotations", "Too long: may not be"),
    ],
)
def test_metadata_rules(metadata: dict[str, Any], field: str, part: str) -> None:
    (found,) = schema.check(isvc(**metadata))
    assert found.field == field
    assert part in found.message


def test_generated_names_and_odd_but_legal_metadata_pass() -> None:
    obj = isvc(
        labels={"a.b/C_d.e": "", "x": "Y-1_z.0"},
        annotations={"Prometheus.io/Port": "any text\n ü", "b": None},
        generateName="iris-",
    )
    del obj["metadata"]["name"]
    assert texts(obj) == []


def test_services_have_stricter_names() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "1a"}, "spec": {}}
    (text,) = texts(service)
    assert "a DNS-1035 label must consist of" in text


# --- kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", scheme.ALL, ids=lambda kind: kind.id)
def test_every_kind_has_a_schema(kind: scheme.ResourceType) -> None:
    for version in kind.versions:
        api_version = f"{kind.group}/{version}" if kind.group else version
        assert "metadata" in schema.fields_of(api_version, kind.kind, ())


def test_unknown_kinds_are_said_in_kubectls_words() -> None:
    obj = {"apiVersion": "serving.kserve.io/v1", "kind": "InferenceService", "metadata": {}}
    with pytest.raises(NotFound, match='no matches for kind "InferenceService" in version'):
        schema.check(obj)


def test_built_in_kinds_take_null_and_plain_numbers() -> None:
    """They have no CRD: a cluster decodes them into Go types."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "creationTimestamp": None},
        "spec": {
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": 0.5}}}],
            "volumes": [{"name": "v", "emptyDir": None}, None],
        },
        "status": {},
    }
    assert texts(pod) == []


def test_built_in_kinds_keep_their_lists_unique() -> None:
    containers = [{"name": "c", "image": "i"}, {"name": "c", "image": "j"}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    assert texts({**pod, "spec": {"containers": containers}}) == [
        'spec.containers[1]: Duplicate value: {"name":"c"}'
    ]


def test_a_claim_template_in_a_pod_keeps_its_labels() -> None:
    """controller-gen leaves embedded metadata empty in CRDs; a Pod has all of it."""
    volume = {
        "name": "v",
        "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {}}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": [volume]},
    }
    assert schema.prune(pod) == pod
    claim = "spec.predictor.volumes[0].ephemeral.volumeClaimTemplate.metadata.labels"
    assert schema.unknown_fields(isvc({"volumes": [volume]})) == [claim]


def test_templates_in_a_config_are_not_checked_as_values() -> None:
    """LLMInferenceServiceConfig holds Go templates where a service holds values."""
    route = {"http": {"spec": {"parentRefs": [{"name": "gw", "namespace": "{{ .Namespace }}"}]}}}
    config = {**llm(router={"route": route}), "kind": "LLMInferenceServiceConfig"}
    assert texts(config) == []
    assert len(texts(llm(router={"route": route}))) == 1


def test_the_refusal_is_a_422_with_a_cause_for_each_finding() -> None:
    obj = isvc({"scaleMetric": "x", "model": {"modelFormat": {}}})
    found = schema.check(obj)
    error = schema.refuse(obj, found)
    assert status_of(error) == (422, "Invalid")
    assert error.message.startswith('InferenceService.serving.kserve.io "iris" is invalid: [')
    assert {(c.field, c.reason) for c in error.causes} == {
        ("spec.predictor.model.modelFormat.name", "FieldValueRequired"),
        ("spec.predictor.scaleMetric", "FieldValueNotSupported"),
    }


@pytest.mark.parametrize("kind", scheme.ALL, ids=lambda kind: kind.id)
def test_every_reference_leads_to_a_type(kind: scheme.ResourceType) -> None:
    """kubectl explain follows them all."""
    for version in kind.versions:
        api_version = f"{kind.group}/{version}" if kind.group else version
        node, types = schema.openapi(api_version, kind.kind)
        assert _references([node, types]) <= types.keys()


def _references(node: Any) -> set[str]:
    found: set[str] = set()
    waiting = [node]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            name = item.get("$ref")
            if isinstance(name, str):
                found.add(name)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return found
