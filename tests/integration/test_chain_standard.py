"""Standard mode on a real store with a node agent that only pretends to run things."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Key, Object, name_of
from tests.fakes.node_agent import node_agent, running, storage_failed
from tests.integration.standard_world import CLASS, condition, has, standard
from tests.integration.test_chain import (
    ISVC,
    KSVC,
    World,
    iris,
    is_loaded,
    without_times,
    world,
)
from tests.integration.test_chain_changes import settled

DEPLOYMENTS = "deployments.apps"
HPAS = "horizontalpodautoscalers.autoscaling"
INGRESSES = "ingresses.networking.k8s.io"
STOP = "serving.kserve.io/stop"
CANARY = "CanaryPredictorReady"


async def configure(w: World, key: str, **values: Any) -> None:
    """Change some values of one key of `inferenceservice-config`."""
    config = copy.deepcopy(w.store.get(Key("configmaps", "kserve", "inferenceservice-config")))
    before = json.loads(config["data"].get(key, "{}"))
    config["data"][key] = json.dumps({**before, **values})
    await w.store.update(config)


async def until_none(w: World, resource: str, name: str = "") -> None:
    """Wait until there is no object of that name, or of that resource."""

    def there() -> bool:
        return any(name in ("", name_of(obj)) for obj in w.store.list(resource))

    async with asyncio.timeout(20), w.store.watch(resource) as events:
        if there():
            async for event in events:
                if event.type == "DELETED" and not there():
                    return


def is_live(pod: Object) -> bool:
    """Whether a Pod was not told to go."""
    return "deletionTimestamp" not in pod["metadata"]


async def test_a_fresh_service_reads_as_on_a_cluster(tmp_path: Path) -> None:
    """Worked example E of control-plane.md 5.9."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(standard())
        isvc = await w.until(ISVC, "sklearn-iris", is_loaded)
        deployment = w.store.get(Key(DEPLOYMENTS, "default", "sklearn-iris-predictor"))
        message = next(
            c["message"] for c in deployment["status"]["conditions"] if c["type"] == "Progressing"
        )
        assert without_times(isvc["status"]) == {
            "address": {"url": "http://sklearn-iris-predictor.default.svc.cluster.local"},
            "clusterServingRuntimeName": "kserve-sklearnserver",
            "components": {
                "predictor": {"url": "http://sklearn-iris-predictor-default.example.com"}
            },
            "conditions": [
                {"type": "IngressReady", "status": "True"},
                {
                    "type": "PredictorReady",
                    "status": "True",
                    "reason": "NewReplicaSetAvailable",
                    "message": message,
                },
                {"type": "Ready", "status": "True"},
                {"type": "Stopped", "status": "False", "severity": "Info"},
            ],
            "deploymentMode": "Standard",
            "modelStatus": {
                "copies": {"failedCopies": 0, "totalCopies": 1},
                "states": {"activeModelState": "Loaded", "targetModelState": "Loaded"},
                "transitionStatus": "UpToDate",
            },
            "observedGeneration": 1,
            "url": "http://sklearn-iris-default.example.com",
        }


async def test_the_mode_may_come_from_the_configuration(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await configure(w, "deploy", defaultDeploymentMode="RawDeployment")
        await w.apply(iris())
        isvc = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert isvc["status"]["deploymentMode"] == "Standard"
        assert not w.store.list(KSVC)


async def test_until_a_pod_is_ready_the_conditions_say_why(tmp_path: Path) -> None:
    """Available=False wins over everything but a Pod that cannot be created."""
    async with world(tmp_path) as w, node_agent(w.store, lambda pod: None):
        await w.apply(standard())
        isvc = await w.until(
            ISVC, "sklearn-iris", has("PredictorReady", "False", "MinimumReplicasUnavailable")
        )
        assert condition(isvc, "PredictorReady")["message"] == (
            "Deployment does not have minimum availability."
        )
        assert condition(isvc, "IngressReady")["reason"] == "Predictor ingress not created"
        assert condition(isvc, "Ready")["reason"] == "Predictor ingress not created"
        assert "url" not in isvc["status"]
        assert not w.store.list(INGRESSES)
        # By the path, which is ours, a request is answered at once.
        route = await w.until_route(
            "sklearn-iris.default.localhost", lambda r: r.targets[0].state == "failed"
        )
        assert (route.targets[0].endpoints, route.targets[0].plain) == ((), True)
        assert w.route("sklearn-iris-default.example.com") is None


async def test_a_model_that_cannot_be_fetched_fails_like_in_knative_mode(tmp_path: Path) -> None:
    async with (
        world(tmp_path) as w,
        node_agent(w.store, lambda pod: storage_failed(pod, "No model found in x.")),
    ):
        await w.apply(standard())
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                ((o.get("status") or {}).get("modelStatus") or {}).get("transitionStatus")
                == "BlockedByFailedLoad"
                and "reason" in condition(o, "PredictorReady")
            ),
        )
        model = isvc["status"]["modelStatus"]
        assert model["states"] == {"activeModelState": "", "targetModelState": "FailedToLoad"}
        assert model["lastFailureInfo"]["reason"] == "ModelLoadFailed"
        assert condition(isvc, "PredictorReady")["reason"] == "MinimumReplicasUnavailable"


async def test_no_runtime_changes_no_condition(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        model = {"modelFormat": {"name": "nothing"}, "storageUri": "gs://a/b"}
        await w.apply(standard(model=model))
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                ((o.get("status") or {}).get("modelStatus") or {}).get("transitionStatus")
                == "InvalidSpec"
            ),
        )
        assert condition(isvc, "PredictorReady") == {"type": "PredictorReady", "status": "Unknown"}
        assert not w.store.list(DEPLOYMENTS)


async def test_a_name_that_makes_no_host_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(standard("x" * 50))
        isvc = await w.until(ISVC, "x" * 50, has("PredictorReady", "False", "ReconcileFailed"))
        assert 'invalid domain name "' in condition(isvc, "PredictorReady")["message"]
        assert not w.store.list(DEPLOYMENTS)


async def test_a_transformer_and_an_explainer_with_an_ingress(tmp_path: Path) -> None:
    """The public host leads to the transformer, its own host to the predictor: KServe's quirk."""
    async with world(tmp_path) as w, node_agent(w.store):
        isvc = standard()
        isvc["spec"]["transformer"] = {"containers": [{"name": "kserve-container", "image": "t"}]}
        isvc["spec"]["explainer"] = {"containers": [{"name": "kserve-container", "image": "e"}]}
        await w.apply(isvc)
        found = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert found["status"]["address"]["url"] == (
            "http://sklearn-iris-transformer.default.svc.cluster.local"
        )
        assert set(found["status"]["components"]) == {"predictor", "transformer", "explainer"}
        deployment = w.store.get(Key(DEPLOYMENTS, "default", "sklearn-iris-transformer"))
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        at = container["args"].index("--predictor_host")
        assert container["args"][at + 1] == "sklearn-iris-predictor.default"
        host = "sklearn-iris{}-default.example.com"
        leads = {
            name: (await w.until_route(host.format(name), bool))
            .targets[0]
            .id.partition("-iris-")[2]
            for name in ("", "-transformer", "-predictor")
        }
        assert leads == {"": "transformer", "-transformer": "explainer", "-predictor": "predictor"}
        assert w.route(host.format("")).explain == ()
        assert w.route("sklearn-iris-explainer.default.svc").targets[0].endpoints


async def test_http_routes_lead_explain_apart_and_limit_the_time(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await configure(w, "ingress", enableGatewayApi=True)
        isvc = standard(timeout=7)
        isvc["spec"]["explainer"] = {"containers": [{"name": "kserve-container", "image": "e"}]}
        await w.apply(isvc)
        await w.until(ISVC, "sklearn-iris", is_loaded)
        assert not w.store.list(INGRESSES)
        route = await w.until_route("sklearn-iris-default.example.com", lambda r: r.explain)
        assert (route.timeout, route.explain_timeout, route.names_service) == (7.0, 60.0, True)
        assert route.explain[0].id == "default/sklearn-iris-explainer"
        inside = w.route("sklearn-iris-predictor.default.svc.cluster.local")
        assert (inside.timeout, inside.names_service) == (0.0, False)


async def test_a_cluster_local_service_has_no_ingress_and_is_ready(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        isvc = standard()
        isvc["metadata"]["labels"] = {"networking.kserve.io/visibility": "cluster-local"}
        await w.apply(isvc)
        found = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert found["status"]["url"] == "http://sklearn-iris-default.example.com"
        assert not w.store.list(INGRESSES)
        assert w.route("sklearn-iris-default.example.com") is None
        assert w.route("sklearn-iris-predictor.default") is not None


async def test_stopped_and_resumed(tmp_path: Path) -> None:
    """Worked example G of control-plane.md 5.9."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(standard())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.edit("sklearn-iris", lambda o: o["metadata"]["annotations"].update({STOP: "true"}))
        isvc = await w.until(ISVC, "sklearn-iris", has("Stopped", "True"))
        assert without_times(isvc["status"]) == {
            "clusterServingRuntimeName": "kserve-sklearnserver",
            "conditions": [
                {"type": "IngressReady", "status": "False", "reason": "Stopped"},
                {"type": "PredictorReady", "status": "False", "reason": "Stopped"},
                {"type": "Ready", "status": "False", "reason": "Stopped"},
                {"type": "Stopped", "status": "True", "severity": "Info"},
            ],
            "deploymentMode": "Standard",
            "modelStatus": {"transitionStatus": ""},
        }
        for resource in (DEPLOYMENTS, INGRESSES, HPAS):
            assert not w.store.list(resource)
        await w.edit("sklearn-iris", lambda o: o["metadata"]["annotations"].pop(STOP))
        await w.until(ISVC, "sklearn-iris", is_loaded)


@pytest.mark.parametrize(
    ("kind", "has_hpa", "has_scaled", "replicas"),
    [("hpa", True, False, 1), ("keda", True, True, 1), ("none", False, False, 2),
     ("external", False, False, 1)],
)  # fmt: skip
async def test_the_autoscaler_class(
    tmp_path: Path, kind: str, has_hpa: bool, has_scaled: bool, replicas: int
) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}
        scaling = {"autoScaling": {"metrics": [{"type": "Resource", "resource": cpu}]}}
        await w.apply(standard(annotations={CLASS: kind}, minReplicas=2, **scaling))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        if has_hpa:
            name = "keda-hpa-sklearn-iris-predictor" if has_scaled else "sklearn-iris-predictor"
            await w.until(HPAS, name, lambda hpa: hpa["spec"]["minReplicas"] == 2)
            replicas = 2
            # Below its least size, whatever the load.
            await w.until(
                DEPLOYMENTS, "sklearn-iris-predictor", lambda d: d["spec"]["replicas"] == 2
            )
        else:
            assert not w.store.list(HPAS)
        assert bool(w.store.list("scaledobjects.keda.sh")) is has_scaled
        deployment = w.store.get(Key(DEPLOYMENTS, "default", "sklearn-iris-predictor"))
        assert deployment["spec"]["replicas"] == replicas
        await w.edit("sklearn-iris", lambda o: o["metadata"]["annotations"].update({CLASS: "none"}))
        await until_none(w, HPAS)


async def test_a_user_may_scale_what_nobody_else_does(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(standard(annotations={CLASS: "external"}))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        key = Key(DEPLOYMENTS, "default", "sklearn-iris-predictor")
        deployment = copy.deepcopy(w.store.get(key))
        deployment["spec"]["replicas"] = 3
        await w.store.update(deployment)
        await w.edit("sklearn-iris", lambda o: o["spec"]["predictor"].update(timeout=5))
        await w.until(
            DEPLOYMENTS,
            "sklearn-iris-predictor",
            lambda d: (d.get("status") or {}).get("readyReplicas") == 3,
        )


def canary(name: str, percent: int, uri: str = "gs://kfserving/v2", **predictor: Any) -> Any:
    return {"predictor": {"name": name, "model": {"storageUri": uri}, **predictor},
            "trafficPercent": percent}  # fmt: skip


HOST = "sklearn-iris-default.example.com"


def weights(route: Any) -> dict[str, int]:
    return {t.id.removeprefix("default/sklearn-iris-"): t.percent for t in route.targets}


async def test_a_canary_from_split_to_promotion_without_a_new_pod(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await configure(w, "ingress", enableGatewayApi=True)
        await w.apply(standard())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.edit("sklearn-iris", lambda o: o["spec"].update(canary=[canary("v2", 25)]))
        isvc = await w.until(ISVC, "sklearn-iris", has(CANARY, "True", "AllCanariesReady"))
        assert isvc["status"]["canaryStatuses"] == [
            {
                "name": "v2",
                "ready": True,
                "trafficPercent": 25,
                "modelStatus": {"transitionStatus": ""},
            }
        ]
        assert condition(isvc, CANARY)["severity"] == "Info"
        route = await w.until_route(HOST, lambda r: len(r.targets) == 2)
        assert weights(route) == {"predictor": 75, "v2-predictor": 25}
        pods = {p["metadata"]["uid"] for p in w.store.list("pods") if "-v2-" in name_of(p)}
        assert len(pods) == 1

        def promote(obj: dict[str, Any]) -> None:
            obj["spec"].pop("canary")
            obj["spec"]["predictor"]["name"] = "v2"
            obj["spec"]["predictor"]["model"]["storageUri"] = "gs://kfserving/v2"

        await w.edit("sklearn-iris", promote)
        route = await w.until_route(HOST, lambda r: weights(r) == {"v2-predictor": 100})
        isvc = await w.until(ISVC, "sklearn-iris", lambda o: "canaryStatuses" not in o["status"])
        assert condition(isvc, CANARY) == {}
        await until_none(w, DEPLOYMENTS, "sklearn-iris-predictor")
        assert pods == {p["metadata"]["uid"] for p in w.store.list("pods") if is_live(p)}
        assert isvc["status"]["url"] == f"http://{HOST}"


async def test_a_canary_that_does_not_come_up_gets_nothing_and_goes(tmp_path: Path) -> None:
    def verdict(pod: Object) -> dict[str, Any] | None:
        return None if "-v2-" in name_of(pod) else running(pod, "127.64.0.2")

    async with world(tmp_path) as w, node_agent(w.store, verdict):
        await configure(w, "ingress", enableGatewayApi=True)
        await w.apply(standard(minReplicas=2))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.edit("sklearn-iris", lambda o: o["spec"].update(canary=[canary("v2", 50)]))
        isvc = await w.until(ISVC, "sklearn-iris", has(CANARY, "False", "CanariesNotReady"))
        assert condition(isvc, "Ready")["status"] == "True"
        assert weights(w.route(HOST)) == {"predictor": 100}
        hpa = w.store.get(Key(HPAS, "default", "sklearn-iris-predictor"))
        assert hpa["spec"]["minReplicas"] == 2
        await w.edit("sklearn-iris", lambda o: o["spec"].pop("canary"))
        await until_none(w, DEPLOYMENTS, "sklearn-iris-v2-predictor")
        assert w.store.find(Key("services", "default", "sklearn-iris-v2-predictor")) is None


async def test_a_ready_canary_takes_room_from_the_stable_predictor(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(standard(minReplicas=4))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.edit("sklearn-iris", lambda o: o["spec"].update(canary=[canary("v2", 50)]))
        await w.until(HPAS, "sklearn-iris-predictor", lambda h: h["spec"]["minReplicas"] == 2)
        await w.until(HPAS, "sklearn-iris-v2-predictor", lambda h: h["spec"]["maxReplicas"] == 2)
        # An Ingress knows no canaries.
        assert weights(w.route(HOST)) == {"predictor": 100}


async def test_a_changed_template_rolls_as_the_strategy_says(tmp_path: Path) -> None:
    """maxUnavailable 0, maxSurge 1: one more, never one less."""
    sizes = set()
    async with world(tmp_path) as w, node_agent(w.store):
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        await w.apply(standard(minReplicas=2, maxReplicas=2, deploymentStrategy=rolling))
        await w.until(
            DEPLOYMENTS,
            "sklearn-iris-predictor",
            lambda d: (d.get("status") or {}).get("readyReplicas") == 2,
        )
        before = {name_of(p) for p in w.store.list("pods")}
        await w.edit(
            "sklearn-iris",
            lambda o: o["spec"]["predictor"]["model"].update(storageUri="gs://kfserving/other"),
        )

        def done(deployment: Object) -> bool:
            status = deployment.get("status") or {}
            sizes.add((status.get("readyReplicas", 0), status.get("replicas", 0)))
            names = {name_of(p) for p in w.store.list("pods") if is_live(p)}
            return not names & before and status.get("updatedReplicas") == 2

        await w.until(DEPLOYMENTS, "sklearn-iris-predictor", done)
    assert min(ready for ready, _ in sizes) >= 2
    assert max(total for _, total in sizes) <= 3


async def test_a_settled_service_is_left_alone(tmp_path: Path) -> None:
    """Level-triggered: looking again writes nothing."""
    async with world(tmp_path) as w, node_agent(w.store):
        await configure(w, "ingress", enableGatewayApi=True)
        # An HPA is looked at for ever.
        isvc = standard(annotations={CLASS: "external"})
        isvc["spec"]["canary"] = [canary("v2", 10)]
        isvc["spec"]["transformer"] = {"containers": [{"name": "kserve-container", "image": "t"}]}
        await w.apply(isvc)
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.until_route(HOST, lambda r: len(r.targets) == 2)
        await settled(w)
        before = w.store.resource_version
    async with world(tmp_path) as w:
        await w.until_route(HOST, lambda r: len(r.targets) == 2)
        await settled(w)
        assert w.store.resource_version == before
