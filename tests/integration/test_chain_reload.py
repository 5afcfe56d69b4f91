"""New Pods that a save asked for, on a real store with a node agent that pretends to run things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Key, Object, annotations_of, get_condition, labels_of, name_of
from kserve_local.api.names import CODE, COMPONENT_LABEL, MODEL
from kserve_local.api.reloads import digest_on
from kserve_local.controllers.reload import replace_pods
from tests.fakes.node_agent import FakeNodeAgent, crashed, node_agent, running
from tests.integration.standard_world import has, standard
from tests.integration.test_chain import ISVC, REVISIONS, World, iris, is_loaded, world
from tests.integration.test_chain_changes import HOST, settled
from tests.integration.test_chain_components import with_components
from tests.integration.test_chain_standard import CANARY, canary

DEPLOYMENTS = "deployments.apps"
PREDICTOR = "sklearn-iris-predictor-00001-deployment"


def deployment(w: World, name: str) -> Object:
    return w.store.get(Key(DEPLOYMENTS, "default", name))


def started_for(pod: Object, annotation: str = CODE) -> str:
    return annotations_of(pod).get(annotation, "")


def live(w: World, **labels: str) -> list[Object]:
    pods = w.store.list("pods", labels=labels)
    return [p for p in pods if "deletionTimestamp" not in p["metadata"]]


async def until_pods(
    w: World, holds: Callable[[list[Object]], bool], **labels: str
) -> list[Object]:
    """Wait until the Pods that were not told to go are as wanted, and return them."""
    async with asyncio.timeout(20), w.store.watch("pods") as events:
        while not holds(live(w, **labels)):
            await anext(events)
    return live(w, **labels)


def all_for(digest: str, count: int = 1, annotation: str = CODE) -> Callable[[list[Object]], bool]:
    return lambda pods: [started_for(p, annotation) for p in pods] == [digest] * count


async def statuses(w: World, seen: list[dict[str, Any]]) -> None:
    """Take down each status of the service, times aside, beginning with the one there is."""
    async with w.store.watch(ISVC) as events:
        async for event in events:
            status = event.object["status"]
            told = [(c["type"], c["status"], c.get("reason")) for c in status["conditions"]]
            seen.append({"conditions": told, "model": status["modelStatus"]["transitionStatus"]})


@pytest.mark.parametrize("replicas", [1, 3])
async def test_new_pods_come_before_old_ones_go_and_no_revision_is_made(
    tmp_path: Path, replicas: int
) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris(minReplicas=replicas))
        before = await w.until(ISVC, "sklearn-iris", is_loaded)
        await until_pods(w, all_for("", replicas))
        await settled(w)
        seen: list[dict[str, Any]] = []
        watching = asyncio.create_task(statuses(w, seen))
        start = len(w.tables.seen)
        assert await replace_pods(w.store, deployment(w, PREDICTOR), CODE, "one")
        assert not await replace_pods(w.store, deployment(w, PREDICTOR), CODE, "one")
        await until_pods(w, all_for("one", replicas))
        await settled(w)
        watching.cancel()
        for table in w.tables.seen[start:]:
            (route,) = [r for r in table.routes if HOST in r.hosts]
            (target,) = route.targets
            assert target.percent == 100
            assert replicas <= len(target.endpoints) <= replicas + 1
        assert [name_of(r) for r in w.store.list(REVISIONS)] == ["sklearn-iris-predictor-00001"]
        after = w.store.get(Key(ISVC, "default", "sklearn-iris"))
        assert after["status"]["conditions"] == before["status"]["conditions"]
        assert after["status"]["components"] == before["status"]["components"]
        assert all(s == seen[0] for s in seen)


async def test_a_pod_that_does_not_come_up_takes_nothing_down_and_the_next_save_replaces_it(
    tmp_path: Path,
) -> None:
    def verdict(pod: Object) -> dict[str, Any]:
        if started_for(pod) in ("bad", "worse"):
            return crashed(pod, "ValueError: bad weights")
        return running(pod, agent.address())

    # A deadline that is over before the test is.
    async with world(tmp_path, progress_deadline=1.0) as w:
        agent = FakeNodeAgent(w.store, verdict)
        task = asyncio.create_task(agent.run())
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await settled(w)
        (serving,) = live(w)
        seen: list[dict[str, Any]] = []
        watching = asyncio.create_task(statuses(w, seen))
        for digest in ("bad", "worse"):
            await replace_pods(w.store, deployment(w, PREDICTOR), CODE, digest)
            pods = await until_pods(
                w, lambda pods, d=digest: sorted(map(started_for, pods)) == ["", d]
            )
            assert name_of(serving) in map(name_of, pods)
        await asyncio.sleep(1.2)
        progressing = get_condition(deployment(w, PREDICTOR), "Progressing") or {}
        assert (progressing["status"], progressing["reason"]) == ("True", "NewReplicaSetAvailable")
        await settled(w)
        revision = w.store.get(Key(REVISIONS, "default", "sklearn-iris-predictor-00001"))
        assert (get_condition(revision, "Ready") or {})["status"] == "True"
        await replace_pods(w.store, deployment(w, PREDICTOR), CODE, "good")
        await until_pods(w, all_for("good"))
        await settled(w)
        watching.cancel()
        assert all(s == seen[0] for s in seen)
        task.cancel()


async def test_each_component_is_replaced_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(with_components("transformer", "explainer"))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await settled(w)
        for component in ("transformer", "explainer", "predictor"):
            own = {COMPONENT_LABEL: component}
            others = {name_of(p) for p in live(w) if labels_of(p)[COMPONENT_LABEL] != component}
            name = f"sklearn-iris-{component}-00001-deployment"
            await replace_pods(w.store, deployment(w, name), MODEL, "next")
            await until_pods(w, all_for("next", annotation=MODEL), **own)
            assert others <= {name_of(p) for p in live(w)}
        assert len(w.store.list(REVISIONS)) == 3


async def test_the_revision_keeps_what_a_save_asked_for_and_nothing_starts_at_zero(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(iris())
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await replace_pods(w.store, deployment(w, PREDICTOR), CODE, "one")
        await until_pods(w, all_for("one"))
        # A new spec is a new Revision, whose code and model are read when its Pods start.
        await w.edit("sklearn-iris", lambda o: o["spec"]["predictor"].update(timeout=9))
        await w.until(
            DEPLOYMENTS,
            PREDICTOR,
            lambda o: o["spec"]["replicas"] == 0 and not o["status"].get("replicas"),
        )
        assert digest_on(deployment(w, PREDICTOR), CODE) == "one"
        following = PREDICTOR.replace("00001", "00002")
        assert digest_on(deployment(w, following), CODE) == ""
        assert await replace_pods(w.store, deployment(w, PREDICTOR), CODE, "two")
        await settled(w)
        assert [started_for(p) for p in live(w)] == [""]
        assert digest_on(deployment(w, PREDICTOR), CODE) == "two"


async def test_standard_mode_keeps_what_a_save_asked_for_canaries_included(tmp_path: Path) -> None:
    async with world(tmp_path) as w, node_agent(w.store):
        await w.apply(standard(minReplicas=2))
        await w.until(ISVC, "sklearn-iris", is_loaded)
        await w.edit("sklearn-iris", lambda o: o["spec"].update(canary=[canary("v2", 50)]))
        await w.until(ISVC, "sklearn-iris", has(CANARY, "True", "AllCanariesReady"))
        names = {name_of(d) for d in w.store.list(DEPLOYMENTS)}
        assert len(names) == 2
        for name in names:
            await replace_pods(w.store, deployment(w, name), MODEL, "next")
        await until_pods(w, lambda ps: {started_for(p, MODEL) for p in ps} == {"next"})
        kept = {name_of(p) for p in live(w)}

        # Written anew, for a reason that is no Pod's.
        await w.edit(
            "sklearn-iris", lambda o: o["spec"]["predictor"].update(deploymentStrategy=RECREATE)
        )
        await w.until(
            DEPLOYMENTS,
            "sklearn-iris-predictor",
            lambda o: (
                o["spec"]["strategy"].get("type") == "Recreate"
                and o["status"]["observedGeneration"] == o["metadata"]["generation"]
            ),
        )
        assert all(digest_on(deployment(w, name), MODEL) == "next" for name in names)
        assert {name_of(p) for p in live(w)} == kept


RECREATE = {"type": "Recreate"}
