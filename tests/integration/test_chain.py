"""The whole Knative chain on a real store with a node agent that only pretends to run things."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kserve_local.aio import running as keep_running
from kserve_local.api.builtin import builtin_objects
from kserve_local.api.meta import Key, Object, get_condition, name_of
from kserve_local.autoscaler.hpa_loop import HPAController, Meter, no_meter
from kserve_local.controllers.chain import ChainSettings, ensure_local_gateway, knative_chain
from kserve_local.errors import AlreadyExists
from kserve_local.interfaces.routing import RouteTable
from kserve_local.reconcile.controller import Engine
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, open_store
from tests.fakes.node_agent import crashed, node_agent, running, storage_failed

ISVC = "inferenceservices.serving.kserve.io"
KSVC = "services.serving.knative.dev"
REVISIONS = "revisions.serving.knative.dev"


@dataclass
class Tables:
    """A RouteSink that keeps every table."""

    seen: list[RouteTable] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self, table: RouteTable) -> None:
        self.seen.append(table)
        self.changed.set()

    @property
    def last(self) -> RouteTable:
        return self.seen[-1]


@dataclass
class World:
    store: Store
    tables: Tables
    engine: Engine

    async def apply(self, obj: Object) -> Object:
        return await self.store.create(obj)

    async def until(self, resource: str, name: str, holds: Callable[[Object], bool]) -> Object:
        """Return the object as soon as it is as wanted."""
        last: Object = {}
        try:
            async with asyncio.timeout(20), self.store.watch(resource) as events:
                async for event in events:
                    if name_of(event.object) == name and event.type != "DELETED":
                        last = event.object
                        if holds(last):
                            return last
        except TimeoutError:
            raise AssertionError(f"{resource} {name} never became as wanted: {last}") from None
        raise AssertionError("the watch ended")

    async def edit(self, name: str, change: Callable[[dict[str, Any]], None]) -> Object:

        obj = copy.deepcopy(self.store.get(Key(ISVC, "default", name)))
        del obj["metadata"]["resourceVersion"]
        change(obj)
        return await self.store.update(obj)

    def route(self, host: str) -> Any:
        return next((r for r in self.tables.last.routes if host in r.hosts), None)

    async def until_route(self, host: str, holds: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(20):
            while True:
                self.tables.changed.clear()
                found = self.route(host) if self.tables.seen else None
                if found is not None and holds(found):
                    return found
                await self.tables.changed.wait()

    async def event(self, reason: str) -> str:
        """Return the message of the first Event with that reason; they follow the status."""
        async with asyncio.timeout(20), self.store.watch("events") as events:
            async for event in events:
                if event.object["reason"] == reason:
                    return str(event.object["message"])
        raise AssertionError("the watch ended")


@asynccontextmanager
async def world(
    path: Path, *, meter: Meter = no_meter, speed: float = 1.0, **settings: Any
) -> AsyncIterator[World]:
    """Run the chain and the HPAs' loop.

    Args:
        meter: What Pods use.
        speed: Of the HPAs' clock.
    """
    async with open_store(path / "state.db") as store:
        for obj in builtin_objects():
            try:
                await store.create(obj)
            except AlreadyExists:
                continue
        await ensure_local_gateway(store, lambda key: "127.64.255.1")
        tables = Tables()
        recorder = EventRecorder(store)
        chain = knative_chain(store, recorder, tables, ChainSettings(**settings))
        hpas = HPAController(store, recorder, meter=meter, speed=speed)
        engine = Engine(store, [*chain, hpas])
        async with keep_running(engine.run(), name="controllers"):
            yield World(store, tables, engine)


def iris(name: str = "sklearn-iris", uri: str = "gs://kfserving/iris", **predictor: Any) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "predictor": {
                "model": {"modelFormat": {"name": "sklearn"}, "storageUri": uri},
                **predictor,
            }
        },
    }


def is_loaded(isvc: Object) -> bool:
    model = (isvc.get("status") or {}).get("modelStatus") or {}
    return (
        model.get("transitionStatus") == "UpToDate"
        and (get_condition(isvc, "Ready") or {}).get("status") == "True"
    )


def without_times(status: dict[str, Any]) -> dict[str, Any]:
    conditions = [
        {k: v for k, v in c.items() if k != "lastTransitionTime"} for c in status["conditions"]
    ]
    return {**status, "conditions": conditions}


async def test_a_fresh_service_becomes_ready_with_the_status_of_a_cluster(tmp_path: Path) -> None:
    """Worked example A of the sheet, through all links of the chain."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        isvc = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert without_times(isvc["status"]) == {
            "address": {"url": "http://sklearn-iris.default.svc.cluster.local"},
            "clusterServingRuntimeName": "kserve-sklearnserver",
            "components": {
                "predictor": {
                    "address": {"url": "http://sklearn-iris-predictor.default.svc.cluster.local"},
                    "latestCreatedRevision": "sklearn-iris-predictor-00001",
                    "latestReadyRevision": "sklearn-iris-predictor-00001",
                    "latestRolledoutRevision": "sklearn-iris-predictor-00001",
                    "traffic": [
                        {
                            "latestRevision": True,
                            "percent": 100,
                            "revisionName": "sklearn-iris-predictor-00001",
                        }
                    ],
                    "url": "http://sklearn-iris-predictor.default.example.com",
                }
            },
            "conditions": [
                {"type": "IngressReady", "status": "True"},
                {"type": "LatestDeploymentReady", "status": "True", "severity": "Info"},
                {"type": "PredictorConfigurationReady", "status": "True", "severity": "Info"},
                {"type": "PredictorReady", "status": "True"},
                {"type": "PredictorRouteReady", "status": "True", "severity": "Info"},
                {"type": "Ready", "status": "True"},
                {"type": "RoutesReady", "status": "True", "severity": "Info"},
                {"type": "Stopped", "status": "False", "severity": "Info"},
            ],
            "deploymentMode": "Knative",
            "modelStatus": {
                "copies": {"failedCopies": 0, "totalCopies": 1},
                "states": {"activeModelState": "Loaded", "targetModelState": "Loaded"},
                "transitionStatus": "UpToDate",
            },
            "observedGeneration": 1,
            "url": "http://sklearn-iris.default.example.com",
        }
        assert await w.event("InferenceServiceReady") == "InferenceService [sklearn-iris] is Ready"
        pods = w.store.list("pods")
        assert len(pods) == 1
        assert name_of(pods[0]).startswith("sklearn-iris-predictor-00001-deployment-")
        labels = pods[0]["metadata"]["labels"]
        assert labels["serving.kserve.io/inferenceservice"] == "sklearn-iris"
        assert labels["serving.knative.dev/revision"] == "sklearn-iris-predictor-00001"
        assert labels["component"] == "predictor"
        route = await w.until_route(
            "sklearn-iris.default.example.com", lambda r: r.targets[0].endpoints
        )
        assert route.targets[0].id == "default/sklearn-iris-predictor-00001"
        assert route.path == "/serving/default/sklearn-iris"
        assert route.models == ("sklearn-iris",)


async def test_missing_model_is_told_while_conditions_stay_unknown(tmp_path: Path) -> None:
    """Worked example C: the cluster's conditions wait for the deadline, modelStatus does not."""
    text = "Storage initialization failed: Failed to fetch model. No model found in missing."
    async with world(tmp_path) as w, node_agent(w.store, lambda pod: storage_failed(pod, text)):
        await w.apply(iris())
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: "lastFailureInfo" in ((o.get("status") or {}).get("modelStatus") or {}),
        )
        waiting = (
            'Configuration "sklearn-iris-predictor" is waiting for a Revision to become ready.'
        )
        assert without_times(isvc["status"]) == {
            "clusterServingRuntimeName": "kserve-sklearnserver",
            "components": {"predictor": {"latestCreatedRevision": "sklearn-iris-predictor-00001"}},
            "conditions": [
                {
                    "type": "IngressReady",
                    "status": "Unknown",
                    "reason": "Predictor ingress not created",
                },
                {
                    "type": "LatestDeploymentReady",
                    "status": "Unknown",
                    "severity": "Info",
                    "reason": "PredictorConfigurationReady not ready",
                },
                {"type": "PredictorConfigurationReady", "status": "Unknown", "severity": "Info"},
                {
                    "type": "PredictorReady",
                    "status": "Unknown",
                    "reason": "RevisionMissing",
                    "message": waiting,
                },
                {
                    "type": "PredictorRouteReady",
                    "status": "Unknown",
                    "severity": "Info",
                    "reason": "RevisionMissing",
                    "message": waiting,
                },
                {"type": "Ready", "status": "Unknown", "reason": "Predictor ingress not created"},
                {
                    "type": "RoutesReady",
                    "status": "Unknown",
                    "severity": "Info",
                    "reason": "PredictorRouteReady not ready",
                },
                {"type": "Stopped", "status": "False", "severity": "Info"},
            ],
            "deploymentMode": "Knative",
            "modelStatus": {
                "copies": {"failedCopies": 0},
                "lastFailureInfo": {"exitCode": 1, "message": text, "reason": "ModelLoadFailed"},
                "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
                "transitionStatus": "BlockedByFailedLoad",
            },
            "observedGeneration": 1,
        }
        route = await w.until_route(
            "sklearn-iris.default.localhost", lambda r: r.targets[0].state == "failed"
        )
        assert route.targets[0].reason == f"ModelLoadFailed: {text}"


async def test_past_the_deadline_the_conditions_turn_false(tmp_path: Path) -> None:
    async with (
        world(tmp_path, progress_deadline=1) as w,
        node_agent(w.store, lambda pod: storage_failed(pod, "gone")),
    ):
        await w.apply(iris())
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (get_condition(o, "Ready") or {}).get("status") == "False",
        )
        configuration = get_condition(isvc, "PredictorConfigurationReady") or {}
        assert configuration["reason"] == "RevisionFailed"
        assert configuration["message"].startswith(
            'Revision "sklearn-iris-predictor-00001" failed with message: ReplicaSet '
        )
        for type_ in ("PredictorRouteReady", "PredictorReady"):
            condition = get_condition(isvc, type_) or {}
            assert condition["status"] == "False"
        assert (get_condition(isvc, "PredictorRouteReady") or {})["message"] == (
            'Configuration "sklearn-iris-predictor" does not have any ready Revision.'
        )
        assert (get_condition(isvc, "Ready") or {})["reason"] == "Predictor ingress not created"
        assert isvc["status"]["modelStatus"]["lastFailureInfo"]["message"] == "gone"


async def test_a_container_that_exits_fails_the_revision_at_once(tmp_path: Path) -> None:
    async with (
        world(tmp_path) as w,
        node_agent(w.store, lambda pod: crashed(pod, "ValueError: bad pickle")),
    ):
        await w.apply(iris())
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (get_condition(o, "PredictorReady") or {}).get("status") == "False",
        )
        assert (get_condition(isvc, "PredictorConfigurationReady") or {})["message"] == (
            'Revision "sklearn-iris-predictor-00001" failed with message: '
            "Container failed with: ValueError: bad pickle."
        )
        revision = w.store.get(Key(REVISIONS, "default", "sklearn-iris-predictor-00001"))
        assert (get_condition(revision, "ContainerHealthy") or {})["reason"] == "ExitCode1"
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: "lastFailureInfo" in o["status"]["modelStatus"],
        )
        assert isvc["status"]["modelStatus"]["lastFailureInfo"] == {
            "reason": "ModelLoadFailed",
            "exitCode": 1,
            "message": "ValueError: bad pickle",
        }
        assert await w.event("ModelLoadFailed") == "ValueError: bad pickle"


async def test_canary_promote_and_rollback_move_traffic_and_status(tmp_path: Path) -> None:
    """Worked example B, then promotion, then the two-pass rollback of the sheet."""
    one, two = "sklearn-iris-predictor-00001", "sklearn-iris-predictor-00002"
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)

        def canary(obj: dict[str, Any]) -> None:
            obj["spec"]["predictor"]["canaryTrafficPercent"] = 10
            obj["spec"]["predictor"]["model"]["storageUri"] = "gs://kfserving/iris-2"

        await w.edit("sklearn-iris", canary)
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                is_loaded(o)
                and o["status"]["components"]["predictor"].get("latestReadyRevision") == two
            ),
        )
        predictor = isvc["status"]["components"]["predictor"]
        assert predictor["latestRolledoutRevision"] == one
        assert "previousRolledoutRevision" not in predictor
        assert predictor["traffic"] == [
            {"latestRevision": True, "percent": 10, "revisionName": two},
            {
                "latestRevision": False,
                "percent": 90,
                "revisionName": one,
                "tag": "prev",
                "url": "http://prev-sklearn-iris-predictor.default.example.com",
            },
        ]
        assert isvc["status"]["observedGeneration"] == 2
        route = await w.until_route(
            "sklearn-iris.default.example.com", lambda r: len(r.targets) == 2
        )
        assert {t.id: t.percent for t in route.targets} == {
            f"default/{two}": 10,
            f"default/{one}": 90,
        }
        tagged = w.route("prev-sklearn-iris-predictor.default.example.com")
        assert [t.id for t in tagged.targets] == [f"default/{one}"]

        await w.edit("sklearn-iris", lambda o: o["spec"]["predictor"].pop("canaryTrafficPercent"))
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: o["status"]["components"]["predictor"]["latestRolledoutRevision"] == two,
        )
        assert isvc["status"]["components"]["predictor"]["previousRolledoutRevision"] == one
        await w.until("deployments.apps", f"{one}-deployment", lambda d: d["spec"]["replicas"] == 0)

        def rollback(obj: dict[str, Any]) -> None:
            obj["spec"]["predictor"]["canaryTrafficPercent"] = 0

        await w.edit("sklearn-iris", rollback)
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                any(
                    t.get("tag") == "prev" and t["revisionName"] == one
                    for t in o["status"]["components"]["predictor"].get("traffic") or ()
                )
                and is_loaded(o)
            ),
        )
        percents = {
            t["revisionName"]: t["percent"]
            for t in isvc["status"]["components"]["predictor"]["traffic"]
        }
        assert percents == {two: 0, one: 100}
        route = await w.until_route(
            "sklearn-iris.default.example.com",
            lambda r: [t.id for t in r.targets] == [f"default/{one}"] and r.targets[0].endpoints,
        )
        assert route.targets[0].percent == 100
        assert len(w.store.list(REVISIONS)) == 2


async def test_failed_update_leaves_the_old_revision_serving(tmp_path: Path) -> None:
    one, two = "sklearn-iris-predictor-00001", "sklearn-iris-predictor-00002"

    def verdict(pod: Object) -> dict[str, Any]:
        if pod["metadata"]["labels"]["serving.knative.dev/revision"] == one:
            return running(pod, "127.64.0.2")
        return crashed(pod, "no model.joblib")

    async with world(tmp_path) as w, node_agent(w.store, verdict):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)

        def change(obj: dict[str, Any]) -> None:
            obj["spec"]["predictor"]["model"]["storageUri"] = "gs://kfserving/broken"

        await w.edit("sklearn-iris", change)
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                (get_condition(o, "Ready") or {}).get("status") == "False"
                and "lastFailureInfo" in o["status"]["modelStatus"]
            ),
        )
        status = isvc["status"]
        predictor = status["components"]["predictor"]
        assert predictor["latestCreatedRevision"] == two
        assert predictor["latestReadyRevision"] == one
        assert [t["revisionName"] for t in predictor["traffic"]] == [one]
        assert (get_condition(isvc, "IngressReady") or {})["status"] == "True"
        assert status["modelStatus"]["states"] == {
            "activeModelState": "Loaded",
            "targetModelState": "FailedToLoad",
        }
        assert status["url"] == "http://sklearn-iris.default.example.com"
        route = w.route("sklearn-iris.default.example.com")
        assert [t.id for t in route.targets] == [f"default/{one}"]
        assert route.targets[0].endpoints


async def test_stop_and_resume(tmp_path: Path) -> None:
    """Worked example G; numbering starts anew since the Knative Service is a new one."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)

        def stop(obj: dict[str, Any]) -> None:
            obj["metadata"]["annotations"] = {"serving.kserve.io/stop": "True"}

        await w.edit("sklearn-iris", stop)
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (get_condition(o, "Stopped") or {}).get("status") == "True",
        )
        assert without_times(isvc["status"]) == {
            "clusterServingRuntimeName": "kserve-sklearnserver",
            "conditions": [
                {"type": "IngressReady", "status": "False", "reason": "Stopped"},
                {"type": "PredictorReady", "status": "False", "reason": "Stopped"},
                {"type": "Ready", "status": "False", "reason": "Stopped"},
                {"type": "Stopped", "status": "True", "severity": "Info"},
            ],
            "deploymentMode": "Knative",
            "modelStatus": {"transitionStatus": ""},
        }
        await until_none(w, KSVC)
        await until_none(w, "pods")
        await w.edit("sklearn-iris", lambda o: o["metadata"].pop("annotations"))
        isvc = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert (
            isvc["status"]["components"]["predictor"]["latestReadyRevision"]
            == "sklearn-iris-predictor-00001"
        )


async def test_deleting_takes_the_whole_chain_along(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.store.delete(Key(ISVC, "default", "sklearn-iris"))
        for resource in (ISVC, KSVC, REVISIONS, "deployments.apps", "pods"):
            await until_none(w, resource)
        async with asyncio.timeout(10):
            while w.tables.last.routes:
                w.tables.changed.clear()
                await w.tables.changed.wait()


async def test_no_runtime_is_told_in_the_model_status_and_by_an_event(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        isvc = iris()
        isvc["spec"]["predictor"]["model"]["modelFormat"]["name"] = "sklern"
        await w.apply(isvc)
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                ((o.get("status") or {}).get("modelStatus") or {}).get("transitionStatus")
                == "InvalidSpec"
            ),
        )
        assert isvc["status"]["modelStatus"] == {
            "transitionStatus": "InvalidSpec",
            "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
            "lastFailureInfo": {
                "reason": "NoSupportingRuntime",
                "message": "No runtime found to support specified framework/version\n"
                'Next step: no runtime knows the model format "sklern"; did you mean "sklearn"?',
            },
        }
        assert {c["type"]: c["status"] for c in isvc["status"]["conditions"]} == {
            "IngressReady": "Unknown",
            "PredictorReady": "Unknown",
            "Ready": "Unknown",
            "Stopped": "False",
        }
        route = await w.until_route(
            "sklearn-iris.default.localhost", lambda r: r.targets[0].state == "failed"
        )
        assert route.targets[0].reason.startswith("NoSupportingRuntime: ")
        assert "{sklern <nil>}" in await w.event("InternalError")


async def test_unsupported_storage_is_an_event_only(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris(uri="s4://bucket/model"))
        message = await w.event("InternalError")
        first, step = message.splitlines()
        assert first.endswith("StorageUri [s4://bucket/model] is not supported")
        assert step.startswith("Next step: ")
        assert step.endswith(
            "a local path, file://, gs://, hf://, http://, https://, oci://, pvc://, s3://"
        )
        isvc = w.store.get(Key(ISVC, "default", "sklearn-iris"))
        assert "modelStatus" not in isvc["status"]
        assert (get_condition(isvc, "Ready") or {})["status"] == "Unknown"


async def until_none(w: World, resource: str) -> None:
    async with asyncio.timeout(20), w.store.watch(resource) as events:
        if not w.store.list(resource):
            return
        async for event in events:
            if event.type == "DELETED" and not w.store.list(resource):
                return


async def test_model_mesh_says_that_it_is_not_there(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        isvc = iris()
        isvc["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "ModelMesh"}
        await w.apply(isvc)
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (get_condition(o, "PredictorReady") or {}).get("status") == "False",
        )
        assert (get_condition(isvc, "Ready") or {})["reason"] == "NotImplemented"
        assert not w.store.list(KSVC)
        await w.edit("sklearn-iris", lambda o: o["metadata"].pop("annotations"))
        await w.until(ISVC, "sklearn-iris", is_loaded)
