"""Hosts, Ingress and HTTPRoutes of Standard mode, KServe's quirks included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kserve_local.api import builtin
from kserve_local.api.config import InferenceServiceConfig, parse
from kserve_local.api.meta import Object
from kserve_local.controllers import isvc_canary, isvc_ingress
from kserve_local.errors import Invalid

CONFIG = parse(builtin.config_map())


def isvc(*components: str, name: str = "iris", **spec: Any) -> Object:
    found = {c: {} for c in ("predictor", *components)}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default", "uid": "u"},
        "spec": {**found, **spec},
    }


def ingress(**changes: Any) -> InferenceServiceConfig:
    return replace(CONFIG, ingress=replace(CONFIG.ingress, **changes))


def service(name: str, *ports: dict[str, Any]) -> Object:
    return {"metadata": {"name": name}, "spec": {"ports": list(ports)}}


def hosts_of(obj: Object) -> list[tuple[str, str]]:
    return [
        (r["host"], r["http"]["paths"][0]["backend"]["service"]["name"])
        for r in obj["spec"]["rules"]
    ]


D = "-default.example.com"


@pytest.mark.parametrize(
    ("components", "rules"),
    [
        ((), [("iris", "predictor"), ("iris-predictor", "predictor")]),
        (
            ("transformer",),
            [
                ("iris", "transformer"),
                ("iris-transformer", "predictor"),
                ("iris-predictor", "predictor"),
            ],
        ),
        (
            ("transformer", "explainer"),
            [
                ("iris-transformer", "explainer"),
                ("iris", "transformer"),
                ("iris-transformer", "predictor"),
                ("iris-predictor", "predictor"),
            ],
        ),
        (
            ("explainer",),
            [
                ("iris", "predictor"),
                ("iris-explainer", "explainer"),
                ("iris-predictor", "predictor"),
            ],
        ),
    ],
)
def test_the_rules_of_an_ingress(components: tuple[str, ...], rules: list[tuple[str, str]]) -> None:
    made = isvc_ingress.ingress(isvc(*components), CONFIG)
    assert hosts_of(made) == [(f"{host}{D}", f"iris-{to}") for host, to in rules]
    assert made["spec"]["ingressClassName"] == "istio"


def routes(obj: Object, config: InferenceServiceConfig = CONFIG, **more: Any) -> dict[str, Any]:
    made = isvc_ingress.http_routes(obj, config, more.get("services", {}), more.get("canaries", ()))
    return {r["metadata"]["name"]: r for r in made}


def rules_of(route: Object) -> list[tuple[str, list[tuple[str, int]], float]]:
    return [
        (
            r["matches"][0]["path"]["value"],
            isvc_ingress.weights_of(r),
            isvc_ingress.seconds_of(r),
        )
        for r in route["spec"]["rules"]
    ]


def test_http_routes_of_all_components() -> None:
    obj = isvc("transformer", "explainer")
    obj["spec"]["explainer"] = {"timeout": 7}
    made = routes(obj)
    assert {name: r["spec"]["hostnames"] for name, r in made.items()} == {
        name: [f"{name}{D}"]
        for name in ("iris-predictor", "iris-transformer", "iris-explainer", "iris")
    }
    assert rules_of(made["iris"]) == [
        (r"^/v1/models/[\w-]+:explain$", [("iris-explainer", 1)], 7.0),
        ("^/.*$", [("iris-transformer", 1)], 60.0),
    ]
    (filter_,) = made["iris"]["spec"]["rules"][0]["filters"]
    assert filter_["requestHeaderModifier"]["set"] == [
        {"name": "KServe-Isvc-Name", "value": "iris"},
        {"name": "KServe-Isvc-Namespace", "value": "default"},
    ]
    (parent,) = made["iris"]["spec"]["parentRefs"]
    assert (parent["namespace"], parent["name"]) == ("kserve", "kserve-ingress-gateway")


def test_the_time_limit_may_be_left_out() -> None:
    made = routes(isvc(), ingress(disable_http_route_timeout=True))
    assert "timeouts" not in made["iris"]["spec"]["rules"][0]


def test_two_protocols_share_a_host() -> None:
    ports = service(
        "iris-predictor",
        {"name": "http1", "port": 80},
        {"name": "grpc", "port": 9000, "appProtocol": "kubernetes.io/h2c"},
    )
    (calls, rest) = routes(isvc(), services={"iris-predictor": ports})["iris"]["spec"]["rules"]
    assert calls["matches"][0]["headers"][0]["value"] == "^application/grpc.*"
    assert calls["backendRefs"][0]["port"] == 9000
    assert (rest["matches"][0]["path"]["value"], rest["backendRefs"][0]["port"]) == ("^/.*$", 80)


def test_additional_domains_and_the_path() -> None:
    config = ingress(
        additional_domains=("a.org", "a.org", "b.org"),
        path_template="/serving/{{ .Namespace }}/{{ .Name }}",
    )
    top = routes(isvc(), config)["iris"]
    assert top["spec"]["hostnames"] == [
        f"iris{D}",
        "iris-default.a.org",
        "iris-default.b.org",
        "example.com",
    ]
    assert [path for path, _, _ in rules_of(top)] == ["^/.*$", "/serving/default/iris/"]


def canary(name: str, percent: int, **predictor: Any) -> dict[str, Any]:
    return {"predictor": {"name": name, **predictor}, "trafficPercent": percent}


def test_ready_canaries_share_every_rule() -> None:
    obj = isvc("explainer", canary=[canary("v2", 25), canary("v3", 10)])
    shares = isvc_canary.shares(obj, {"v2"})
    made = routes(obj, canaries=shares)
    split = [75, 25]
    assert rules_of(made["iris-predictor"])[0][1] == list(
        zip(("iris-predictor", "iris-v2-predictor"), split, strict=True)
    )
    explain, rest = rules_of(made["iris"])
    assert explain[1] == [("iris-explainer", 75), ("iris-v2-predictor", 25)]
    assert rest[1] == [("iris-predictor", 75), ("iris-v2-predictor", 25)]
    assert rules_of(made["iris-explainer"])[0][1] == [("iris-explainer", 1)]


def test_names_stay_when_a_canary_is_promoted() -> None:
    obj = isvc()
    obj["spec"]["predictor"] = {"name": "v2"}
    made = routes(obj)
    assert set(made) == {"iris-predictor", "iris"}
    assert rules_of(made["iris-predictor"])[0][1] == [("iris-v2-predictor", 1)]


@pytest.mark.parametrize(
    ("template", "host"),
    [
        ("{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}", "iris-default.example.com"),
        ("{{.Name}}.{{.Namespace}}.{{.IngressDomain}}", "iris.default.example.com"),
        ("{{ .Labels.team }}.{{ .IngressDomain }}", "blue.example.com"),
    ],
)
def test_the_domain_template(template: str, host: str) -> None:
    obj = isvc()
    obj["metadata"]["labels"] = {"team": "blue"}
    config = ingress(domain_template=template).ingress
    assert isvc_ingress.host_of("iris", obj, config) == host


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("x" * 60, CONFIG.ingress.domain_template),
        ("iris", "{{ .Name }}"),
        ("iris", "{{ .Name }}_{{ .IngressDomain }}"),
        ("iris", "{{ .Nothing }}.{{ .IngressDomain }}"),
    ],
)
def test_a_host_that_is_none(name: str, template: str) -> None:
    config = ingress(domain_template=template).ingress
    with pytest.raises(Invalid, match=r"invalid domain name|domain template"):
        isvc_ingress.host_of(name, isvc(), config)


def test_the_projects_domain_stands_for_the_shipped_one() -> None:
    assert isvc_ingress.with_domain(CONFIG, "my.org").ingress.domain == "my.org"
    assert isvc_ingress.with_domain(ingress(domain="b.org"), "my.org").ingress.domain == "b.org"


def test_the_address_of_a_headless_service_has_its_port() -> None:
    plain = service("iris-predictor", {"name": "grpc", "targetPort": 9}, {"targetPort": 5000})
    assert isvc_ingress.address_of(isvc(), plain, headless=False) == (
        "http://iris-predictor.default.svc.cluster.local"
    )
    assert isvc_ingress.address_of(isvc(), plain, headless=True).endswith(".local:5000")


# Canaries


def test_a_canary_is_the_stable_predictor_with_its_own_fields_over_it() -> None:
    stable = {
        "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "a", "env": [1]},
        "minReplicas": 4,
        "maxReplicas": 8,
        "scaleTarget": 60,
        "nodeSelector": {"a": "1", "b": "2"},
    }
    entry = canary("v2", 25, model={"storageUri": "b", "env": []}, nodeSelector={"b": "3"})
    obj = isvc(canary=[entry])
    obj["spec"]["predictor"] = stable
    merged = isvc_canary.with_canary(obj, entry)["spec"]["predictor"]
    assert merged == {
        "name": "v2",
        "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "b", "env": [1]},
        "minReplicas": 1,
        "nodeSelector": {"a": "1", "b": "3"},
    }
    assert stable["minReplicas"] == 4


@pytest.mark.parametrize(
    ("stable", "percent", "own", "wanted"),
    [(None, 10, None, 1), (4, 25, None, 1), (4, 26, None, 2), (4, 50, 1, 1), (4, 0, None, 0)],
)
def test_how_many_replicas_a_canary_has(
    stable: int | None, percent: int, own: int | None, wanted: int
) -> None:
    obj = isvc(canary=[canary("v2", percent, **({} if own is None else {"minReplicas": own}))])
    obj["spec"]["predictor"] = {} if stable is None else {"minReplicas": stable}
    (found,) = isvc_canary.canaries_of(obj)
    assert (found.replicas, found.workload) == (wanted, "iris-v2-predictor")


@pytest.mark.parametrize(
    ("least", "ready", "wanted"),
    [(None, {"v2"}, None), (4, set(), 4), (4, {"v2"}, 2), (2, {"v2", "v3"}, 1)],
)
def test_ready_canaries_take_room_from_the_stable_predictor(
    least: int | None, ready: set[str], wanted: int | None
) -> None:
    obj = isvc(canary=[canary("v2", 10, minReplicas=2), canary("v3", 10, minReplicas=1)])
    obj["spec"]["predictor"] = {} if least is None else {"minReplicas": least}
    assert isvc_canary.stable_minimum(obj, ready) == wanted
