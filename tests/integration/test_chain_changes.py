"""The chain while things change: updates, restarts, dead Pods, refusals, late runtimes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.builtin import builtin_objects
from kserve_local.api.meta import Key, Object, get_condition, name_of
from kserve_local.errors import Invalid
from kserve_local.interfaces.holds import Holds, service_group
from tests.fakes.node_agent import node_agent, running
from tests.integration.test_chain import (
    ISVC,
    KSVC,
    REVISIONS,
    World,
    iris,
    is_loaded,
    until_none,
    world,
)

HOST = "sklearn-iris.default.example.com"


def change_uri(obj: dict[str, Any]) -> None:
    obj["spec"]["predictor"]["model"]["storageUri"] = "gs://kfserving/iris-2"


async def test_no_table_is_without_a_replica_while_a_revision_follows_another(
    tmp_path: Path,
) -> None:
    """New up before old goes, and a Pod leaves the table before it is told to stop."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        start = len(w.tables.seen)
        await w.edit("sklearn-iris", change_uri)
        await w.until_route(HOST, lambda r: r.targets[0].id.endswith("00002"))
        await w.until(
            "deployments.apps",
            "sklearn-iris-predictor-00001-deployment",
            lambda d: d["spec"]["replicas"] == 0 and not d["status"].get("replicas"),
        )
        assert len(w.tables.seen) > start
        for table in w.tables.seen[start:]:
            (route,) = [r for r in table.routes if HOST in r.hosts]
            assert sum(t.percent for t in route.targets) == 100
            assert all(t.endpoints for t in route.targets), table


def share(isvc: Object) -> list[tuple[str, int]]:
    """Return number and percent of each entry of the predictor's traffic."""
    predictor = isvc["status"]["components"]["predictor"]
    return [(t["revisionName"][-5:], t["percent"]) for t in predictor["traffic"]]


def gradually(duration: str) -> Object:
    isvc = iris()
    isvc["metadata"]["annotations"] = {"serving.knative.dev/rollout-duration": duration}
    return isvc


async def test_a_gradual_rollout_starts_with_a_percent_and_ends_by_itself(tmp_path: Path) -> None:
    """KServe counts a revision as rolled out when it has all the traffic, not before."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(gradually("2s"))
        first = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert share(first) == [("00001", 100)]
        ksvc = w.store.get(Key(KSVC, "default", "sklearn-iris-predictor"))
        assert ksvc["metadata"]["annotations"] == {"serving.knative.dev/rollout-duration": "2s"}
        await w.edit("sklearn-iris", change_uri)
        begun = await w.until(ISVC, "sklearn-iris", lambda o: len(share(o)) == 2)
        assert share(begun) == [("00001", 99), ("00002", 1)]
        assert begun["status"]["components"]["predictor"]["latestRolledoutRevision"][-5:] == "00001"
        for type_ in ("Ready", "PredictorReady", "PredictorRouteReady"):
            condition = get_condition(begun, type_) or {}
            assert (condition["status"], condition["reason"]) == ("Unknown", "RolloutInProgress")
        assert (get_condition(begun, "IngressReady") or {})["status"] == "True"
        route = await w.until_route(HOST, lambda r: len(r.targets) == 2)
        assert [t.percent for t in route.targets] == [99, 1]
        ended = await w.until(
            ISVC, "sklearn-iris", lambda o: is_loaded(o) and share(o) == [("00002", 100)]
        )
        predictor = ended["status"]["components"]["predictor"]
        assert predictor["latestRolledoutRevision"][-5:] == "00002"
        assert predictor["previousRolledoutRevision"][-5:] == "00001"
        ksvc = w.store.get(Key(KSVC, "default", "sklearn-iris-predictor"))
        assert ksvc["metadata"]["annotations"] == {"serving.knative.dev/rollout-duration": "2s"}


async def test_a_gradual_rollout_stands_while_a_replica_is_at_a_breakpoint(tmp_path: Path) -> None:
    now = 1000.0
    holds = Holds()
    group = service_group("default", "sklearn-iris-predictor")
    async with world(tmp_path, clock=lambda: now, holds=holds) as w, node_agent(w.store):
        await w.apply(gradually("60s"))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.edit("sklearn-iris", change_uri)
        await w.until(ISVC, "sklearn-iris", lambda o: share(o) == [("00001", 99), ("00002", 1)])
        holds.stop("pod", [group], now=now)
        now += 3600.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await w.until(
                    ISVC, "sklearn-iris", lambda o: share(o) != [("00001", 99), ("00002", 1)]
                )
        holds.go_on("pod", [group], now=now)
        now += 1.0
        await w.until(ISVC, "sklearn-iris", lambda o: share(o) == [("00001", 97), ("00002", 3)])


async def test_a_gradual_rollout_goes_on_with_the_next_supervisor(tmp_path: Path) -> None:
    async with world(tmp_path, clock=lambda: 1000.0) as w, node_agent(w.store):
        await w.apply(gradually("60s"))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.edit("sklearn-iris", change_uri)
        await w.until(ISVC, "sklearn-iris", lambda o: share(o) == [("00001", 99), ("00002", 1)])
    async with world(tmp_path, clock=lambda: 1001.0) as w, node_agent(w.store):
        await w.until(ISVC, "sklearn-iris", lambda o: share(o) == [("00001", 97), ("00002", 3)])

        def at_once(obj: dict[str, Any]) -> None:
            del obj["metadata"]["annotations"]["serving.knative.dev/rollout-duration"]

        await w.edit("sklearn-iris", at_once)
        await w.until(ISVC, "sklearn-iris", lambda o: share(o) == [("00002", 100)])
        ksvc = w.store.get(Key(KSVC, "default", "sklearn-iris-predictor"))
        assert not ksvc["metadata"].get("annotations")
        # Only the Knative Service had it: no template changed.
        assert len(w.store.list(REVISIONS)) == 2


async def test_a_new_supervisor_finds_nothing_to_do(tmp_path: Path) -> None:
    """Level-triggered: looking at a settled world again writes nothing."""
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await settled(w)
        before = w.store.resource_version
        routes = w.tables.last.routes
    async with world(tmp_path) as w:
        await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        await settled(w)
        assert w.store.resource_version == before
        assert [t.routes for t in w.tables.seen] == [routes]


async def settled(w: World) -> None:
    """Wait until no controller has anything left to look at."""

    async with asyncio.timeout(20):
        quiet = 0
        while quiet < 5:
            await asyncio.sleep(0.02)
            quiet = quiet + 1 if w.engine.idle else 0


async def test_a_pod_that_died_is_replaced(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store) as agent:
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        (pod,) = w.store.list("pods")
        status = {**pod["status"], "phase": "Failed", "reason": "Evicted", "conditions": []}
        await agent.set_status(pod, status)
        route = await w.until_route(
            HOST,
            lambda r: r.targets[0].endpoints and r.targets[0].endpoints[0].pod != name_of(pod),
        )
        assert len(route.targets[0].endpoints) == 1


async def test_requests_wait_while_the_only_replica_restarts(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store) as agent:
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        (pod,) = w.store.list("pods")
        ended = {"terminated": {"reason": "Error", "exitCode": 137, "message": "killed"}}
        container = {**pod["status"]["containerStatuses"][0], "ready": False, "state": ended}
        down = {**pod["status"], "conditions": [], "containerStatuses": [container]}
        await agent.set_status(pod, down)
        route = await w.until_route(HOST, lambda r: not r.targets[0].endpoints)
        assert route.targets[0].state == "starting"
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (get_condition(o, "Ready") or {}).get("status") == "False",
        )
        assert isvc["status"]["modelStatus"]["lastFailureInfo"]["exitCode"] == 137
        assert (await w.event("InferenceServiceNotReady")).startswith(
            "InferenceService [sklearn-iris] is no longer Ready because of: "
        )
        await agent.set_status(pod, running(pod, pod["status"]["podIP"]))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.until_route(HOST, lambda r: r.targets[0].endpoints)


async def test_a_refused_pod_is_told_up_to_the_service(tmp_path: Path) -> None:
    """How the Pod webhook's errors surface: ReplicaFailure, then the Revision, then Ready."""

    def refuse(pod: Object) -> Object:
        raise Invalid('secrets "storage-config" not found')

    async with world(tmp_path, mutate=refuse) as w, node_agent(w.store):
        await w.apply(iris())
        isvc = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                (get_condition(o, "PredictorReady") or {}).get("status") == "False"
                and o["status"]["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
            ),
        )
        assert 'secrets "storage-config" not found' in (
            get_condition(isvc, "PredictorConfigurationReady") or {}
        ).get("message", "")
        assert "not found" in await w.event("FailedCreate")


async def test_a_missing_service_account_keeps_pods_from_being_made(tmp_path: Path) -> None:
    """Kubernetes' admission refuses such a Pod; once the account is there the service starts."""
    async with world(tmp_path) as w, node_agent(w.store):
        isvc = iris()
        isvc["spec"]["predictor"]["serviceAccountName"] = "nosa"
        await w.apply(isvc)
        refused = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (get_condition(o, "PredictorReady") or {}).get("status") == "False",
        )
        (deployment,) = w.store.list("deployments.apps")
        assert w.store.list("pods") == []
        failure = get_condition(deployment, "ReplicaFailure") or {}
        assert (failure["status"], failure["reason"]) == ("True", "FailedCreate")
        message = failure["message"]
        assert message.startswith('pods "sklearn-iris-predictor-00001-deployment-')
        assert message.endswith(
            '-" is forbidden: error looking up service account default/nosa: '
            'serviceaccount "nosa" not found'
        )
        assert await w.event("FailedCreate") == f"Error creating: {message}"
        told = get_condition(refused, "PredictorConfigurationReady") or {}
        assert told["reason"] == "RevisionFailed"
        assert message in told["message"]
        await w.apply(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": "nosa", "namespace": "default"},
            }
        )
        await w.until(ISVC, "sklearn-iris", is_loaded)
        (deployment,) = w.store.list("deployments.apps")
        assert get_condition(deployment, "ReplicaFailure") is None


async def test_a_runtime_that_comes_later_is_picked_up(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        isvc = iris()
        isvc["spec"]["predictor"]["model"]["runtime"] = "mine"
        await w.apply(isvc)
        waiting = await w.until(
            ISVC,
            "sklearn-iris",
            lambda o: (
                ((o.get("status") or {}).get("modelStatus") or {}).get("transitionStatus")
                == "InvalidSpec"
            ),
        )
        info = waiting["status"]["modelStatus"]["lastFailureInfo"]
        assert info == {
            "reason": "RuntimeNotRecognized",
            "message": "Waiting for runtime to become available\n"
            'Next step: there is no runtime "mine": correct or remove '
            "spec.predictor.model.runtime, or create it",
        }
        source = next(o for o in builtin_objects() if name_of(o) == "kserve-sklearnserver")
        runtime = {
            **source,
            "kind": "ServingRuntime",
            "metadata": {"name": "mine", "namespace": "default"},
        }
        await w.store.create(runtime)
        isvc = await w.until(ISVC, "sklearn-iris", is_loaded)
        assert isvc["status"]["servingRuntimeName"] == "mine"
        assert "clusterServingRuntimeName" not in isvc["status"]


async def test_disable_auto_update_freezes_a_ready_service(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)

        def freeze(obj: dict[str, Any]) -> None:
            obj["metadata"]["annotations"] = {"serving.kserve.io/disable-auto-update": "true"}
            change_uri(obj)

        await w.edit("sklearn-iris", freeze)
        await settled(w)
        assert len(w.store.list(REVISIONS)) == 1


async def test_metadata_and_canary_percent_make_no_revision_but_min_replicas_does(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)

        def harmless(obj: dict[str, Any]) -> None:
            obj["spec"]["predictor"]["canaryTrafficPercent"] = 50

        await w.edit("sklearn-iris", harmless)
        await settled(w)
        assert len(w.store.list(REVISIONS)) == 1
        await w.edit("sklearn-iris", lambda o: o["spec"]["predictor"].update(minReplicas=2))
        await w.until_route(HOST, lambda r: any(len(t.endpoints) == 2 for t in r.targets))
        assert len(w.store.list(REVISIONS)) == 2


@pytest.mark.parametrize(
    ("api_version", "kind", "resource"),
    [
        ("serving.kserve.io/v1alpha1", "TrainedModel", "trainedmodels.serving.kserve.io"),
        (
            "serving.kserve.io/v1alpha2",
            "LLMInferenceService",
            "llminferenceservices.serving.kserve.io",
        ),
    ],
)
async def test_kinds_without_behaviour_say_so(
    tmp_path: Path, api_version: str, kind: str, resource: str
) -> None:
    async with world(tmp_path) as w:
        await w.store.create(
            {
                "apiVersion": api_version,
                "kind": kind,
                "metadata": {"name": "x", "namespace": "default"},
                "spec": {},
            }
        )
        obj = await w.until(resource, "x", lambda o: get_condition(o, "Ready") is not None)
        ready = get_condition(obj, "Ready") or {}
        assert (ready["status"], ready["reason"]) == ("False", "NotImplemented")
        assert kind in ready["message"]


async def test_a_knative_service_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        theirs = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": "sklearn-iris-predictor", "namespace": "default"},
            "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
        }
        await w.store.create(theirs)
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", lambda o: get_condition(o, "Ready") is not None)
        key = Key("services.serving.knative.dev", "default", "sklearn-iris-predictor")
        assert "is not owned by" in await w.event("InternalError")
        assert w.store.get(key)["spec"] == theirs["spec"]


async def test_a_service_deleted_and_applied_again_at_once_comes_up(tmp_path: Path) -> None:
    """The old chain is still being collected while the new one, of the same names, is made."""
    async with world(tmp_path) as w, node_agent(w.store):
        for _ in range(3):
            await w.apply(iris())
            await w.until(ISVC, "sklearn-iris", is_loaded)
            await w.store.delete(Key(ISVC, "default", "sklearn-iris"))
            await until_none(w, ISVC)
        await w.apply(iris())
        isvc = await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        await settled(w)
        (revision,) = w.store.list(REVISIONS)
        assert revision["metadata"]["ownerReferences"][0]["uid"] in {
            k["metadata"]["uid"] for k in w.store.owned_by(isvc["metadata"]["uid"])
        }
        services = {name_of(s) for s in w.store.list("services", namespace="default")}
        assert services == {
            "sklearn-iris",
            "sklearn-iris-predictor",
            "sklearn-iris-predictor-00001",
            "sklearn-iris-predictor-00001-private",
        }
        assert not [e for e in w.store.list("events") if e["reason"] == "InternalError"]


async def test_what_a_user_deletes_of_the_chain_comes_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        revision = "sklearn-iris-predictor-00001"
        for resource, name in (
            ("services", "sklearn-iris"),
            ("services", "sklearn-iris-predictor"),
            ("services", revision),
            ("deployments.apps", f"{revision}-deployment"),
            ("pods", name_of(w.store.list("pods")[0])),
        ):
            key = Key(resource, "default", name)
            uid = w.store.get(key)["metadata"]["uid"]
            await w.store.delete(key)
            if resource != "pods":
                await w.until(resource, name, lambda o, u=uid: o["metadata"]["uid"] != u)
            await w.until_route(HOST, lambda r: r.targets[0].endpoints)
        await settled(w)
        assert len(w.store.list("pods")) == 1


async def test_a_broken_configuration_is_told_by_an_event(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        key = Key("configmaps", "kserve", "inferenceservice-config")
        config = w.store.get(key)
        await w.store.update({**config, "data": {"deploy": "{no json"}})
        await w.apply(iris())
        assert "data.deploy is no JSON" in await w.event("InternalError")
        await w.store.update({**w.store.get(key), "data": config["data"]})
        await w.until(ISVC, "sklearn-iris", is_loaded)
