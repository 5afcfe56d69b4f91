"""A service of several components through the Knative chain: who is made, named, routed, told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Key, Object, get_condition, labels_of, name_of
from tests.fakes.node_agent import crashed, node_agent, running
from tests.integration.test_chain import ISVC, KSVC, REVISIONS, World, iris, is_loaded, world

HOST = "sklearn-iris.default.example.com"


def with_components(*components: str, **more: Any) -> Object:
    """The iris service with custom containers for the components."""
    isvc = iris()
    for component in components:
        container = {
            "name": "kserve-container",
            "image": f"example.com/{component}:1",
            "args": ["--x"],
        }
        isvc["spec"][component] = {"containers": [container], **more}
    return isvc


def status_of(isvc: Object, type_: str) -> str:
    return str((get_condition(isvc, type_) or {}).get("status"))


async def test_every_component_is_a_knative_service_of_its_own(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(with_components("transformer", "explainer", minReplicas=2, timeout=7))
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: is_loaded(o) and all(status_of(o, f"{c}Ready") == "True" for c in ALL),
        )
        status = isvc["status"]
        assert status["url"] == f"http://{HOST}"
        assert status["address"]["url"] == "http://sklearn-iris.default.svc.cluster.local"
        for component in ("predictor", "transformer", "explainer"):
            name = f"sklearn-iris-{component}"
            told = status["components"][component]
            assert told["url"] == f"http://{name}.default.example.com"
            assert told["latestReadyRevision"] == f"{name}-00001"
            assert told["traffic"][0]["percent"] == 100
            ksvc = w.store.get(Key(KSVC, "default", name))
            assert labels_of(ksvc)["component"] == component
            (pod, *more) = [
                p for p in w.store.list("pods") if labels_of(p)["component"] == component
            ]
            assert labels_of(pod)["serving.kserve.io/inferenceservice"] == "sklearn-iris"
            assert len(more) == (0 if component == "predictor" else 1)
        revision = w.store.get(Key(REVISIONS, "default", "sklearn-iris-transformer-00001"))
        assert revision["spec"]["timeoutSeconds"] == 7
        (container,) = revision["spec"]["containers"]
        assert container["name"] == "kserve-container"
        assert container["args"] == [
            "--x", "--model_name", "sklearn-iris",
            "--predictor_host", "sklearn-iris-predictor.default", "--http_port", "8080",
        ]  # fmt: skip
        entry = await w.until_route(HOST, lambda r: r.targets[0].endpoints and r.explain)
        assert entry.targets[0].id == "default/sklearn-iris-transformer-00001"
        assert entry.explain[0].id == "default/sklearn-iris-explainer-00001"


ALL = ("Predictor", "Transformer", "Explainer")


async def test_a_canary_is_each_components_own(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(with_components("transformer"))
        await w.until(ISVC, "sklearn-iris", is_loaded)

        def change(obj: dict[str, Any]) -> None:
            transformer = obj["spec"]["transformer"]
            transformer["containers"][0]["image"] = "example.com/transformer:2"
            transformer["canaryTrafficPercent"] = 20

        await w.edit("sklearn-iris", change)
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                [t["revisionName"][-1] for t in o["status"]["components"]["transformer"]["traffic"]]
                == ["2", "1"]
            ),
        )
        split = isvc["status"]["components"]["transformer"]["traffic"]
        assert {(t["revisionName"][-1], t["percent"], t.get("tag")) for t in split} == {
            ("2", 20, None),
            ("1", 80, "prev"),
        }
        assert len(isvc["status"]["components"]["predictor"]["traffic"]) == 1
        entry = await w.until_route(HOST, lambda r: len(r.targets) == 2)
        assert {t.percent for t in entry.targets} == {20, 80}
        assert w.route("prev-sklearn-iris-transformer.default.example.com") is not None
        assert len(w.store.list(REVISIONS)) == 3


async def test_a_component_taken_out_of_the_spec_is_gone(tmp_path: Path) -> None:
    """A cluster lets it run on, out of reach of the service's name; here it would cost memory."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(with_components("transformer", "explainer"))
        await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: is_loaded(o) and status_of(o, "ExplainerReady") == "True",
        )

        def change(obj: dict[str, Any]) -> None:
            del obj["spec"]["transformer"], obj["spec"]["explainer"]

        await w.edit("sklearn-iris", change)
        entry = await w.until_route(
            HOST, lambda r: r.targets[0].id == "default/sklearn-iris-predictor-00001"
        )
        assert entry.explain == ()
        await only_predictor(w)
        isvc = w.store.get(Key(ISVC, "default", "sklearn-iris"))
        assert set(isvc["status"]["components"]) == {"predictor"}
        assert get_condition(isvc, "TransformerReady") is None
        assert isvc["status"]["url"] == f"http://{HOST}"


async def only_predictor(w: World) -> None:
    for _ in range(1000):
        if [name_of(k) for k in w.store.list(KSVC)] == ["sklearn-iris-predictor"] and len(
            w.store.list("pods")
        ) == 1:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("what the spec no longer has is still there")


@pytest.mark.parametrize("component", ["transformer", "explainer"])
async def test_a_component_that_fails_is_named_by_its_condition(
    tmp_path: Path, component: str
) -> None:
    """The model is loaded all the same: `modelStatus` is about the predictor's Pods."""

    def verdict(pod: Object) -> dict[str, Any]:
        if labels_of(pod)["component"] == component:
            return crashed(pod, "ModuleNotFoundError: No module named 'cv2'")
        return running(pod, "127.64.0.2")

    async with world(tmp_path) as w, node_agent(w.store, verdict):
        await w.apply(with_components(component))
        name = component.capitalize()
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                status_of(o, f"{name}ConfigurationReady") == "False"
                and status_of(o, "PredictorReady") == "True"
            ),
        )
        failed = get_condition(isvc, f"{name}ConfigurationReady") or {}
        assert "No module named 'cv2'" in failed["message"]
        assert failed["reason"] == "RevisionFailed"
        assert status_of(isvc, "LatestDeploymentReady") == "False"
        entry = await w.until_route(
            HOST, lambda r: [t for t in (*r.targets, *r.explain) if t.state == "failed"]
        )
        broken = entry.explain if component == "explainer" else entry.targets
        assert "No module named 'cv2'" in broken[0].reason
        if component == "transformer":
            ingress = get_condition(isvc, "IngressReady") or {}
            assert ingress["reason"] == "Transformer ingress not created"
            assert status_of(isvc, "Ready") == "False"
            assert "url" not in isvc["status"]


async def test_stop_and_resume_take_all_components_along(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(with_components("transformer", "explainer"))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        annotation = {"serving.kserve.io/stop": "true"}
        await w.edit("sklearn-iris", lambda o: o["metadata"].update(annotations=annotation))
        isvc = await w.until(ISVC, "sklearn-iris", lambda o: status_of(o, "Stopped") == "True")
        for name in ALL:
            assert (get_condition(isvc, f"{name}Ready") or {})["reason"] == "Stopped"
        assert w.store.list(KSVC) == []
        await w.edit("sklearn-iris", lambda o: o["metadata"].update(annotations={}))
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: is_loaded(o) and status_of(o, "ExplainerReady") == "True",
        )
        assert set(isvc["status"]["components"]) == {"predictor", "transformer", "explainer"}


async def test_storage_that_an_explainer_cannot_have_is_an_event(tmp_path: Path) -> None:
    """As for a predictor: an Event, no condition; what comes before it runs."""
    isvc = with_components("explainer")
    isvc["spec"]["explainer"]["containers"][0]["env"] = [
        {"name": "STORAGE_URI", "value": "foo://bar/e"}
    ]
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(isvc)
        assert "foo://bar/e" in await w.event("InternalError")
        isvc = await w.until(
            ISVC, "sklearn-iris", lambda o: status_of(o, "PredictorReady") == "True"
        )
        assert w.store.find(Key(KSVC, "default", "sklearn-iris-explainer")) is None


async def test_collocated_containers_share_a_pod_and_the_transformer_is_called(
    tmp_path: Path,
) -> None:
    isvc = iris()
    isvc["spec"]["predictor"]["containers"] = [
        {
            "name": "transformer-container",
            "image": "example.com/transformer:1",
            "args": [
                "--model_name=sklearn-iris", "--predictor_host=localhost:8085",
                "--http_port=8080", "--grpc_port=8091",
            ],
            "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        }
    ]  # fmt: skip
    isvc["spec"]["predictor"]["model"]["args"] = ["--http_port=8085", "--grpc_port=8090"]
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(isvc)
        made = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert get_condition(made, "TransformerReady") is None
        (pod,) = w.store.list("pods")
        containers = {c["name"]: c for c in pod["spec"]["containers"]}
        assert containers.keys() == {"kserve-container", "transformer-container"}
        transformer = containers["transformer-container"]
        assert transformer["args"][0] == "--model_name=sklearn-iris"
        assert len(transformer["args"]) == 4
        names = [e["name"] for e in transformer["env"]]
        assert "INFERENCE_SERVICE_NAME" in names
        route = await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        (endpoint,) = route.targets[0].endpoints
        assert (endpoint.port, endpoint.grpc_port) == (8080, 8091)
