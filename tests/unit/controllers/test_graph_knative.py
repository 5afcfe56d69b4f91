"""An InferenceGraph's router on the API: resolved steps, Knative Service, status, Pod."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api import validation
from kserve_local.api.config import parse
from kserve_local.api.manifest import load
from kserve_local.controllers import graph_knative, graph_pod, inferencegraph
from kserve_local.errors import NotFound, ServiceUnavailable

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("KSERVE_LOCAL_SHARED") or REPOSITORY.parent / "shared")
NOW = "2026-01-01T00:00:00Z"


def isvc(name: str = "iris", *, ready: bool = True, **spec: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "gs://a/b"}
    address = {"address": {"url": f"http://{name}.default.svc.cluster.local"}} if ready else {}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"predictor": {"model": model}, **spec},
        "status": address,
    }


def with_model(**fields: Any) -> dict[str, Any]:
    return {"predictor": {"model": {**isvc()["spec"]["predictor"]["model"], **fields}}}


def graph(*steps: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "g", "namespace": "default", "uid": "u"},
        "spec": {"nodes": {"root": {"routerType": "Sequence", "steps": list(steps)}}, **spec},
    }


def no_runtime(name: str) -> None:
    return None


BASE = "http://iris.default.svc.cluster.local"
V1, V2 = f"{BASE}/v1/models/%s:predict", f"{BASE}/v2/models/%s/infer"
CUSTOM = {"containers": [{"name": "kserve-container", "image": "x"}]}


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        ({}, V1 % "iris"),
        (with_model(protocolVersion="v2"), V2 % "iris"),
        (with_model(protocolVersion="grpc-v2"), BASE),
        (with_model(args=["--model_name", "m"]), V1 % "m"),
        (with_model(args=["--model_name=m"]), V1 % "m"),
        (with_model(env=[{"name": "MLSERVER_MODEL_NAME", "value": "n"}]), V1 % "n"),
        (with_model(runtime="both"), V2 % "iris"),
        (with_model(runtime="silent", protocolVersion="v2"), V2 % "iris"),
        (with_model(storageUri=None), BASE),
        ({"predictor": CUSTOM}, V1 % "iris"),
        ({"predictor": {"containers": [{"args": ["--model_name=c"]}]}}, V1 % "c"),
        (
            {"predictor": {"containers": [{"env": [{"name": "PROTOCOL", "value": "v2"}]}]}},
            V2 % "iris",
        ),
        (
            {
                **with_model(protocolVersion="v2", args=["--model_name=m"]),
                "transformer": {"containers": [{"args": ["--model_name", "t"]}]},
            },
            V1 % "t",
        ),
        (
            {"transformer": {"containers": [{"env": [{"name": "PROTOCOL", "value": "v2"}]}]}},
            V2 % "iris",
        ),
    ],
)
def test_a_service_is_called_by_its_model_and_protocol(spec: dict[str, Any], url: str) -> None:
    """GetPredictorEndpoint."""
    runtimes = {"both": {"spec": {"protocolVersions": ["grpc-v2", "v2", "v1"]}}, "silent": {}}
    assert graph_knative.endpoint(isvc(**spec), runtimes.get) == url


@pytest.mark.parametrize(
    ("service", "error", "message"),
    [
        (None, NotFound, "Failed to find graph service iris"),
        (isvc(ready=False), ServiceUnavailable, "service iris is not ready"),
        (
            isvc(**with_model(runtime="grpc")),
            ServiceUnavailable,
            "the runtime does not support a protocol compatible with Inference Graphs",
        ),
        (
            isvc(**with_model(runtime="no")),
            ServiceUnavailable,
            "No ServingRuntimes or ClusterServingRuntimes with the name: no",
        ),
    ],
)
def test_what_a_graph_waits_for(service: Any, error: type[Exception], message: str) -> None:
    """Upstream's words."""
    runtimes = {"grpc": {"spec": {"protocolVersions": ["grpc-v2"]}}}
    with pytest.raises(error) as told:
        graph_knative.resolved(
            graph({"serviceName": "iris"}), service=lambda _: service, runtime=runtimes.get
        )
    assert str(told.value) == message


def test_the_knative_service_is_upstreams() -> None:
    """Container, probe, resources, labels, annotations, the fields of the Pod, the headers."""
    config = parse(
        {
            "data": {
                "router": json.dumps(
                    {
                        "image": "kserve/router:v0.20.0",
                        "cpuRequest": "100m", "cpuLimit": "1",
                        "memoryRequest": "100Mi", "memoryLimit": "1Gi",
                        "headers": {"propagate": ["Authorization", "^X-"]},
                        "imagePullPolicy": "Always",
                        "imagePullSecrets": ["mine"],
                    }
                )
            }
        }
    )  # fmt: skip
    obj = graph(
        {"condition": "a", "serviceName": "iris", "name": "s"},
        timeout=7, minReplicas=2, maxReplicas=3, scaleTarget=4, scaleMetric="rps",
        nodeSelector={"a": "b"},
    )  # fmt: skip
    obj["metadata"]["labels"] = {"team": "x", "networking.knative.dev/visibility": "cluster-local"}
    obj["metadata"]["annotations"] = {
        "note": "y",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }
    spec = graph_knative.resolved(obj, service=lambda name: isvc(name), runtime=no_runtime)
    ksvc = graph_knative.knative_service(obj, spec, config)
    assert ksvc["metadata"]["name"] == "g"
    assert ksvc["metadata"]["labels"] == obj["metadata"]["labels"]
    template = ksvc["spec"]["template"]
    assert template["metadata"] == {
        "labels": {
            "team": "x",
            "serving.kserve.io/inferencegraph": "g",
            "serving.kserve.io/kind": "InferenceGraph",
        },
        "annotations": {
            "note": "y",
            "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
            "autoscaling.knative.dev/min-scale": "2",
            "autoscaling.knative.dev/max-scale": "3",
            "autoscaling.knative.dev/target": "4",
            "autoscaling.knative.dev/metric": "rps",
        },
    }
    pod = template["spec"]
    assert (pod["timeoutSeconds"], pod["nodeSelector"]) == (7, {"a": "b"})
    assert pod["imagePullSecrets"] == [{"name": "mine"}]
    (container,) = pod["containers"]
    assert container["image"] == "kserve/router:v0.20.0"
    assert container["imagePullPolicy"] == "Always"
    assert container["env"] == [{"name": "PROPAGATE_HEADERS", "value": "Authorization,^X-"}]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
    assert container["readinessProbe"]["httpGet"] == {
        "path": "/readyz", "port": 8080, "scheme": "HTTP",
    }  # fmt: skip
    assert container["args"][0] == "--graph-json"
    assert container["args"][1].startswith(
        '{"nodes":{"root":{"routerType":"Sequence","steps":[{"name":"s","serviceName":"iris",'
        f'"serviceUrl":"{V1 % "iris"}","condition":"a"}}]}}}},"resources":{{}},"timeout":7,'
    )
    found = graph_pod.routes_by(pod)
    assert found is not None
    assert found[0]["nodes"] == spec["nodes"]
    assert found[1] == ("Authorization", "^X-")


@pytest.mark.parametrize(
    "change",
    [
        {"image": "me/router:1"},
        {"command": ["/mine"]},
        {"args": ["--graph-json"]},
        {"args": ["--graph-json", "[1]"]},
        {"args": ["--graph-json", "{"]},
        {"args": []},
    ],
)
def test_only_kserves_router_is_the_gateways(change: dict[str, Any]) -> None:
    """A router of one's own runs as every other container."""
    config = parse(None)
    pod = graph_knative.knative_service(graph(), graph()["spec"], config)["spec"]["template"][
        "spec"
    ]
    assert graph_pod.routes_by(pod) is not None
    changed = {**pod, "containers": [{**pod["containers"][0], **change}]}
    assert graph_pod.routes_by(changed) is None
    assert graph_pod.routes_by({**pod, "initContainers": [{}]}) is None


def conditions(*pairs: tuple[str, str], reason: str = "") -> list[dict[str, str]]:
    more = {"reason": reason} if reason else {}
    return [{"type": t, "status": s, "lastTransitionTime": NOW, **more} for t, s in pairs]


def test_the_status_is_the_knative_services() -> None:
    """Its conditions plus Stopped; the URL only while it is Ready."""
    url = "http://g.default.example.com"
    three = conditions(("ConfigurationsReady", "True"), ("Ready", "True"), ("RoutesReady", "True"))
    ksvc = {"status": {"url": url, "conditions": three}}
    status = inferencegraph.plan_status(graph(), ksvc, now="later")
    assert status["url"] == url
    assert status["conditions"][:3] == three
    assert status["conditions"][3] == {
        "type": "Stopped", "status": "False", "lastTransitionTime": "later",
    }  # fmt: skip
    again = inferencegraph.plan_status({**graph(), "status": status}, ksvc, now="much later")
    assert again == status
    unready = {"status": {"url": url, "conditions": conditions(("Ready", "Unknown"))}}
    after = inferencegraph.plan_status({**graph(), "status": status}, unready, now="x")
    assert "url" not in after
    stopped = inferencegraph.plan_status({**graph(), "status": status}, None, now="then")
    assert "url" not in stopped
    assert [(c["type"], c["status"], c.get("reason")) for c in stopped["conditions"]] == [
        ("Ready", "False", "Stopped"),
        ("Stopped", "True", None),
    ]


def published() -> list[dict[str, Any]]:
    file = SHARED / "corpus" / "manifests.jsonl"
    assert file.is_file(), f"{file} is missing; set KSERVE_LOCAL_SHARED"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [r for r in rows if r["kind"] == "InferenceGraph" and r["live_valid"]]


def test_every_published_graph_gets_a_router() -> None:
    """KServe's documentation and samples: valid, resolved, and what the gateway routes by."""
    config = parse(None)
    rows = published()
    assert len(rows) >= 6
    for row in rows:
        (document,) = load(row["yaml"], row["id"])
        obj = json.loads(json.dumps(document.object))
        obj["metadata"] |= {"namespace": "default", "uid": "u"}
        assert validation.validate(obj, old=None, config=config, lookup=lambda r, n: ()) == []
        spec = graph_knative.resolved(obj, service=lambda name: isvc(name), runtime=no_runtime)
        ksvc = graph_knative.knative_service(obj, spec, config)
        assert validation.validate(ksvc, old=None, config=config, lookup=lambda r, n: ()) == []
        found = graph_pod.routes_by(ksvc["spec"]["template"]["spec"])
        assert found is not None
        for node in found[0]["nodes"].values():
            assert all(s.get("nodeName") or s["serviceUrl"] for s in node["steps"])
