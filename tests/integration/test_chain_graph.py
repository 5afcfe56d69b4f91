"""An InferenceGraph through the whole chain: what it waits for, its router, changes, the end."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from kserve_local.api.meta import Key, condition_is, get_condition
from tests.fakes.node_agent import node_agent
from tests.integration.test_chain import (
    ISVC,
    KSVC,
    REVISIONS,
    World,
    iris,
    is_loaded,
    without_times,
    world,
)
from tests.integration.test_chain_changes import settled

GRAPH = "inferencegraphs.serving.kserve.io"
HOST = "chain.default.example.com"
URL = "http://iris.default.svc.cluster.local/v1/models/iris:predict"


def chain(*steps: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "chain", "namespace": "default", **metadata},
        "spec": {
            "nodes": {
                "root": {"routerType": "Sequence", "steps": steps or ({"serviceName": "iris"},)}
            }
        },
    }


def is_ready(obj: Any) -> bool:
    return condition_is(obj, "Ready")


async def edit(w: World, change: Any) -> None:
    obj = copy.deepcopy(w.store.get(Key(GRAPH, "default", "chain")))
    del obj["metadata"]["resourceVersion"]
    change(obj)
    await w.store.update(obj)


async def test_a_graph_waits_for_its_services_and_becomes_ready(tmp_path: Path) -> None:
    """In any order of creation; until then it has no status, and requests are told why."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(chain())
        assert await w.event("ServiceNotFound") == "Failed to find graph service iris"
        route = await w.until_route(HOST, lambda r: r.targets[0].state == "failed")
        assert route.targets[0].reason == "Failed to find graph service iris"
        assert "status" not in w.store.get(Key(GRAPH, "default", "chain"))
        await w.apply(iris("iris"))
        graph = await w.until(GRAPH, "chain", is_ready)
        assert graph["status"]["url"] == f"http://{HOST}"
        assert [(c["type"], c["status"]) for c in graph["status"]["conditions"]] == [
            ("ConfigurationsReady", "True"),
            ("Ready", "True"),
            ("RoutesReady", "True"),
            ("Stopped", "False"),
        ]
        assert await w.event("InferenceGraphReady") == "InferenceGraph [chain] is Ready"
        route = await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        assert route.component == "graph"
        assert route.path == "/serving/default/chain"
        assert "chain.default.svc.cluster.local" in route.hosts
        (step,) = route.targets[0].graph["nodes"]["root"]["steps"]
        assert step == {"serviceName": "iris", "serviceUrl": URL}


async def test_a_service_that_is_not_ready_is_waited_for(tmp_path: Path) -> None:
    """Without an address there is no URL to call."""
    async with world(tmp_path) as w:
        await w.apply(iris("iris"))
        await w.apply(chain())
        assert await w.event("ServiceNotReady") == "service iris is not ready"
        assert w.store.find(Key(KSVC, "default", "chain")) is None


async def test_a_changed_graph_is_a_new_revision(tmp_path: Path) -> None:
    """The old one routes until the new one is ready, and no table is without a router."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(chain({"serviceUrl": "http://a/"}))
        await w.until(GRAPH, "chain", is_ready)
        await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        begun = len(w.tables.seen)

        def other(obj: dict[str, Any]) -> None:
            obj["spec"]["nodes"]["root"]["steps"] = [{"serviceUrl": "http://b/"}]

        await edit(w, other)
        route = await w.until_route(HOST, lambda r: r.targets[0].id.endswith("00002"))
        assert route.targets[0].graph["nodes"]["root"]["steps"][0]["serviceUrl"] == "http://b/"
        for table in w.tables.seen[begun:]:
            (found,) = [r for r in table.routes if HOST in r.hosts]
            assert found.targets[0].endpoints
        await edit(w, lambda obj: obj["metadata"].update(annotations={"note": "x"}))
        await w.until(REVISIONS, "chain-00003", is_ready)


async def test_headers_come_from_the_config(tmp_path: Path) -> None:
    """`router.headers.propagate` reaches the gateway with the route."""
    async with world(tmp_path) as w, node_agent(w.store):
        key = Key("configmaps", "kserve", "inferenceservice-config")
        config = copy.deepcopy(w.store.get(key))
        router = json.loads(config["data"]["router"])
        router["headers"] = {"propagate": ["Authorization", "^X-"]}
        config["data"]["router"] = json.dumps(router)
        await w.store.update(config)
        await w.apply(chain({"serviceUrl": "http://a/"}))
        route = await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        assert route.targets[0].propagate == ("Authorization", "^X-")


async def test_stop_and_resume(tmp_path: Path) -> None:
    """Everything below goes, the route too; without the annotation it starts again at 00001."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(chain({"serviceUrl": "http://a/"}))
        await w.until(GRAPH, "chain", is_ready)
        stop = {"serving.kserve.io/stop": "TRUE"}
        await edit(w, lambda obj: obj["metadata"].update(annotations=stop))
        graph = await w.until(GRAPH, "chain", lambda o: condition_is(o, "Stopped"))
        ready = get_condition(graph, "Ready") or {}
        assert (ready["status"], ready["reason"]) == ("False", "Stopped")
        assert "url" not in graph["status"]
        assert (
            await w.event("InferenceGraphNotReady") == "InferenceGraph [chain] is no longer Ready"
        )
        await edit(w, lambda obj: obj["metadata"].pop("annotations"))
        graph = await w.until(GRAPH, "chain", is_ready)
        assert (get_condition(graph, "Stopped") or {})["status"] == "False"
        route = await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        assert route.targets[0].id == "default/chain-00001"


async def test_a_graph_of_standard_mode_is_a_deployment_without_ingress(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        mode = {"serving.kserve.io/deploymentMode": "RawDeployment"}
        stop = {"serving.kserve.io/stop": "true"}
        await w.apply(chain({"serviceUrl": "http://a/"}, annotations=mode))
        graph = await w.until(GRAPH, "chain", is_ready)
        status = without_times(graph["status"])
        assert status == {
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "Stopped", "status": "False"},
            ],
            "observedGeneration": 1,
            "url": "http://chain-default.example.com",
        }
        assert w.store.find(Key(KSVC, "default", "chain")) is None
        deployment = w.store.get(Key("deployments.apps", "default", "chain"))
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert (container["name"], container["args"][0]) == ("chain", "--graph-json")
        assert w.store.find(Key("horizontalpodautoscalers.autoscaling", "default", "chain"))
        assert not w.store.list("ingresses.networking.k8s.io")
        route = await w.until_route("chain.default.svc", lambda r: r.targets[0].endpoints)
        assert (route.targets[0].id, route.targets[0].plain) == ("default/chain", True)
        assert route.targets[0].graph["nodes"]["root"]["routerType"] == "Sequence"
        assert w.route("chain-default.example.com") is None
        await edit(w, lambda obj: obj["metadata"]["annotations"].update(stop))
        graph = await w.until(GRAPH, "chain", lambda o: not is_ready(o))
        assert "url" not in graph["status"]
        assert w.store.find(Key("deployments.apps", "default", "chain")) is None


async def test_a_settled_graph_is_left_alone(tmp_path: Path) -> None:
    """Level-triggered: looking again writes nothing."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris("iris"))
        await w.apply(chain())
        await w.until(ISVC, "iris", is_loaded)
        await w.until(GRAPH, "chain", is_ready)
        await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        await settled(w)
        before = w.store.resource_version
    async with world(tmp_path) as w:
        await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        await settled(w)
        assert w.store.resource_version == before
