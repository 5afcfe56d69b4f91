"""What every part may rely on from the store, on a real SQLite file."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Key, owner_reference, uid_of
from kserve_local.errors import AlreadyExists, BadRequest, Conflict, Gone, NotFound
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, open_store

CONFIG_MAPS = "configmaps"
ISVCS = "inferenceservices.serving.kserve.io"


def config_map(name: str, namespace: str = "default", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "data": {"k": "v"},
    }


def isvc(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": {"predictor": {"minReplicas": 1}},
    }


def key(name: str, namespace: str = "default") -> Key:
    return Key(CONFIG_MAPS, namespace, name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "state.db") as opened:
        yield opened


async def gone(store: Store, *keys: Key) -> None:
    """Wait until none of the keys is there."""
    for key in keys:
        obj = store.find(key)
        while obj is not None:
            since = store.resource_version
            async with store.watch(key.resource, since=since) as events:
                if store.find(key) is None:
                    break
                await anext(events)
            obj = store.find(key)


async def test_created_objects_are_read_back_and_counted(store: Store) -> None:
    made = await store.create(config_map("a"))
    assert store.get(key("a")) is made
    assert store.list(CONFIG_MAPS) == [made]
    assert made["metadata"]["resourceVersion"] == str(store.resource_version)


async def test_missing_and_taken_names_speak_like_kubectl(store: Store) -> None:
    with pytest.raises(NotFound, match=f'^{ISVCS} "x" not found$'):
        store.get(Key(ISVCS, "default", "x"))
    await store.create(isvc("x"))
    with pytest.raises(AlreadyExists, match=f'^{ISVCS} "x" already exists$'):
        await store.create(isvc("x"))


async def test_of_two_concurrent_creates_one_wins(store: Store) -> None:
    """The check counts writes that are not on disk yet."""
    results = await asyncio.gather(
        store.create(config_map("a")), store.create(config_map("a")), return_exceptions=True
    )
    assert [type(r) for r in results] == [dict, AlreadyExists]


async def test_a_stale_resource_version_is_a_conflict(store: Store) -> None:
    made = await store.create(config_map("a"))
    await store.update({**made, "data": {"k": "2"}})
    with pytest.raises(Conflict, match="please apply your changes to the latest version"):
        await store.update({**made, "data": {"k": "3"}})


async def test_of_two_concurrent_updates_of_one_version_one_wins(store: Store) -> None:
    made = await store.create(config_map("a"))
    results = await asyncio.gather(
        *(store.update({**made, "data": {"k": str(i)}}) for i in range(5)),
        return_exceptions=True,
    )
    assert [type(r) for r in results] == [dict, *[Conflict] * 4]
    assert store.get(key("a"))["data"] == {"k": "0"}


async def test_a_write_that_changes_nothing_is_no_write(store: Store) -> None:
    made = await store.create(isvc("a"))
    assert await store.update(isvc("a")) is made
    with_status = await store.update_status({**made, "status": {"url": "u"}})
    assert (
        await store.update_status(
            {**made, "metadata": {"name": "a", "namespace": "default"}, "status": {"url": "u"}}
        )
        is with_status
    )
    assert store.resource_version == int(with_status["metadata"]["resourceVersion"])


async def test_status_and_spec_are_written_apart(store: Store) -> None:
    made = await store.create(isvc("a"))
    shown = await store.update_status({**made, "spec": {"predictor": {}}, "status": {"url": "u"}})
    assert shown["spec"] == made["spec"]
    assert shown["metadata"]["generation"] == 1
    changed = await store.update({**shown, "spec": {"predictor": {}}, "status": {"url": "other"}})
    assert changed["status"] == {"url": "u"}
    assert changed["metadata"]["generation"] == 2


async def test_generated_names_differ(store: Store) -> None:
    template = config_map("")
    template["metadata"] = {"generateName": "job-", "namespace": "default"}
    made = await asyncio.gather(*(store.create(template) for _ in range(20)))
    assert len({m["metadata"]["name"] for m in made}) == 20


async def test_labels_and_namespaces_select(store: Store) -> None:
    await store.create(config_map("a", labels={"x": "1", "y": "2"}))
    await store.create(config_map("b", labels={"x": "1"}))
    await store.create(config_map("c", namespace="other", labels={"x": "1"}))

    def names(**how: Any) -> list[str]:
        return [o["metadata"]["name"] for o in store.list(CONFIG_MAPS, **how)]

    assert names(labels={"x": "1"}) == ["a", "b", "c"]
    assert names(labels={"x": "1"}, namespace="default") == ["a", "b"]
    assert names(labels={"x": "1", "y": "2"}) == ["a"]


async def test_dry_runs_leave_no_trace(store: Store) -> None:
    made = await store.create(config_map("a"))
    version = store.resource_version
    assert "resourceVersion" not in (await store.create(config_map("b"), dry_run=True))["metadata"]
    changed = await store.update({**made, "data": {}}, dry_run=True)
    assert changed["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    await store.delete(key("a"), dry_run=True)
    assert store.get(key("a")) is made
    assert store.resource_version == version


# -- watches ------------------------------------------------------------------------------------


async def test_a_watch_starts_with_what_is_there(store: Store) -> None:
    await store.create(config_map("a"))
    async with store.watch(CONFIG_MAPS) as events:
        await store.create(config_map("b"))
        await store.update({**config_map("a"), "data": {}})
        await store.delete(key("b"))
        seen = [await anext(events) for _ in range(4)]
    assert [(e.type, e.object["metadata"]["name"]) for e in seen] == [
        ("ADDED", "a"),
        ("ADDED", "b"),
        ("MODIFIED", "a"),
        ("DELETED", "b"),
    ]
    found = [e.resource_version for e in seen]
    assert found == sorted(set(found))


async def test_a_watch_resumes_where_it_was(store: Store) -> None:
    await store.create(config_map("a"))
    since = store.resource_version
    await store.create(config_map("b"))
    await store.create(isvc("other-kind"))
    await store.delete(key("a"))
    async with store.watch(CONFIG_MAPS, since=since) as events:
        seen = [await anext(events) for _ in range(2)]
    assert [(e.type, e.object["metadata"]["name"]) for e in seen] == [
        ("ADDED", "b"),
        ("DELETED", "a"),
    ]


async def test_a_watch_from_another_database_is_gone(store: Store) -> None:
    """After `down --volumes` a client's old resourceVersion means nothing here."""
    with pytest.raises(Gone):
        async with store.watch(CONFIG_MAPS, since=store.resource_version + 1):
            pass


async def test_a_watch_older_than_the_history_is_gone(tmp_path: Path) -> None:
    async with open_store(tmp_path / "state.db", history=2) as store:
        for name in "abcd":
            await store.create(config_map(name))
        with pytest.raises(Gone, match="too old resource version"):
            async with store.watch(CONFIG_MAPS, since=1):
                pass
        async with store.watch(CONFIG_MAPS, since=2) as events:
            assert (await anext(events)).object["metadata"]["name"] == "c"


async def test_versions_survive_a_restart(tmp_path: Path) -> None:
    """Deletions count too: a version is never given out twice."""
    async with open_store(tmp_path / "state.db") as store:
        await store.create(config_map("a"))
        kept = await store.create(config_map("b"))
        await store.delete(key("a"))
        last = store.resource_version
    async with open_store(tmp_path / "state.db") as store:
        assert store.resource_version == last
        assert store.list(CONFIG_MAPS) == [kept]
        async with store.watch(CONFIG_MAPS, since=last) as events:
            made = await store.create(config_map("c"))
            assert (await anext(events)).object is made
        with pytest.raises(Gone):
            async with store.watch(CONFIG_MAPS, since=last - 1):
                pass


async def test_watchers_see_nothing_before_its_commit(store: Store) -> None:
    async with store.watch(CONFIG_MAPS) as events:
        writing = asyncio.ensure_future(store.create(config_map("a")))
        event = await anext(events)
        assert store.find(key("a")) is event.object
        assert await writing is event.object


# -- deletion -----------------------------------------------------------------------------------


async def test_finalizers_hold_an_object_until_they_are_off(store: Store) -> None:
    await store.create(config_map("a", finalizers=["example.com/x"]))
    marked = await store.delete(key("a"))
    assert "deletionTimestamp" in marked["metadata"]
    assert store.get(key("a")) is marked
    metadata = {k: v for k, v in marked["metadata"].items() if k != "finalizers"}
    await store.update({**marked, "metadata": metadata})
    assert store.find(key("a")) is None


async def test_dependents_are_collected(store: Store) -> None:
    owner = await store.create(isvc("owner"))
    child = await store.create(config_map("child", ownerReferences=[owner_reference(owner)]))
    await store.create(config_map("grandchild", ownerReferences=[owner_reference(child)]))
    assert store.owned_by(uid_of(owner)) == [child]
    await store.delete(Key(ISVCS, "default", "owner"))
    await gone(store, key("child"), key("grandchild"))


async def test_an_object_whose_owner_never_was_is_collected(store: Store) -> None:
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "missing"}
    await store.create(config_map("a", ownerReferences=[reference]))
    await gone(store, key("a"))


async def test_an_object_stays_while_one_owner_lives(store: Store) -> None:
    one = await store.create(config_map("one"))
    two = await store.create(config_map("two"))
    both = [owner_reference(one), owner_reference(two, controller=False)]
    await store.create(config_map("child", ownerReferences=both))
    bait = await store.create(config_map("bait", ownerReferences=[owner_reference(one)]))
    await store.delete(key("one"))
    await gone(store, key("bait"))
    assert bait["metadata"]["name"] == "bait"
    assert store.find(key("child")) is not None


async def test_foreground_keeps_the_owner_until_dependents_are_gone(store: Store) -> None:
    owner = await store.create(config_map("owner"))
    reference = owner_reference(owner)
    await store.create(config_map("child", ownerReferences=[reference], finalizers=["a.com/b"]))
    await store.delete(key("owner"), propagation="Foreground")
    async with store.watch(CONFIG_MAPS) as events:
        async for event in events:
            metadata = event.object["metadata"]
            if metadata["name"] == "child" and "deletionTimestamp" in metadata:
                break
    assert store.find(key("owner")) is not None
    child = store.get(key("child"))
    metadata = {k: v for k, v in child["metadata"].items() if k != "finalizers"}
    await store.update({**child, "metadata": {**metadata, "finalizers": []}})
    await gone(store, key("child"), key("owner"))


async def test_orphans_live_on_without_their_owner(store: Store) -> None:
    owner = await store.create(config_map("owner"))
    await store.create(config_map("child", ownerReferences=[owner_reference(owner)]))
    await store.delete(key("owner"), propagation="Orphan")
    assert store.find(key("owner")) is None
    assert "ownerReferences" not in store.get(key("child"))["metadata"]


async def test_collection_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with open_store(path, collect=False) as store:
        owner = await store.create(config_map("owner"))
        await store.create(config_map("child", ownerReferences=[owner_reference(owner)]))
        await store.delete(key("owner"))
    async with open_store(path) as store:
        await gone(store, key("child"))


async def test_a_running_pod_stays_until_its_node_agent_confirms(store: Store) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c"}], "nodeName": "here"},
    }
    made = await store.create(pod)
    assert made["status"] == {"phase": "Pending"}
    at = Key("pods", "default", "p")
    marked = await store.delete(at)
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    assert await store.delete(at) is marked
    await store.update_status({**marked, "status": {"phase": "Running"}})
    assert store.find(at) is not None
    await store.delete(at, grace=0)
    assert store.find(at) is None


async def test_preconditions_protect_a_namesake(store: Store) -> None:
    made = await store.create(config_map("a"))
    with pytest.raises(Conflict, match="UID in precondition"):
        await store.delete(key("a"), uid="other")
    with pytest.raises(Conflict, match="ResourceVersion in precondition"):
        await store.delete(key("a"), resource_version=999)
    with pytest.raises(BadRequest):
        await store.delete(key("a"), propagation="Sideways")
    assert store.get(key("a")) is made


async def test_a_namespace_comes_with_an_account_and_goes_with_its_content(store: Store) -> None:
    await store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})
    account = Key("serviceaccounts", "n", "default")
    assert store.find(account) is not None
    await store.create(config_map("a", namespace="n"))
    marked = await store.delete(Key("namespaces", "", "n"))
    assert marked["status"] == {"phase": "Terminating"}
    await gone(store, Key("namespaces", "", "n"))
    assert store.find(key("a", "n")) is None
    assert store.find(account) is None


# -- events -------------------------------------------------------------------------------------


async def test_repeated_events_are_counted_not_repeated(store: Store) -> None:
    owner = await store.create(isvc("a"))
    recorder = EventRecorder(store)
    async with store.watch("events") as events:
        for _ in range(5):
            await recorder.event(owner, "Warning", "InternalError", "no", component="c")
        await recorder.event(owner, "Normal", "Created", "yes")
        async for change in events:
            if change.object["reason"] == "InternalError" and change.object["count"] == 5:
                break
    found = {e["reason"]: e for e in store.list("events")}
    assert len(found) == len(store.list("events")) == 2
    assert found["InternalError"]["involvedObject"]["uid"] == uid_of(owner)
    assert found["InternalError"]["source"] == {"component": "c"}
    assert found["Created"]["count"] == 1


# -- everything at once -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_list_and_watch_tell_the_same_story(tmp_path: Path, seed: int) -> None:
    """A client that lists once and follows the watch always ends up with what a list shows."""
    dice = random.Random(seed)
    names = [f"n{i}" for i in range(6)]

    async def writer(store: Store) -> None:
        for _ in range(60):
            name = dice.choice(names)
            with suppress(NotFound, AlreadyExists, Conflict):
                match dice.randrange(4):
                    case 0:
                        await store.delete(key(name))
                    case 1:
                        found = store.find(key(name))
                        if found is not None:
                            await store.update({**found, "data": {"k": str(dice.random())}})
                    case _:
                        await store.create(config_map(name))

    async def follower(store: Store, pause: int) -> tuple[dict[str, Any], int]:
        for _ in range(pause):
            await asyncio.sleep(0)
        known = {o["metadata"]["name"]: o for o in store.list(CONFIG_MAPS)}
        last = store.resource_version
        async with store.watch(CONFIG_MAPS, since=last) as events:
            async for event in events:
                assert event.resource_version > last
                last = event.resource_version
                name = event.object["metadata"]["name"]
                assert (event.type == "ADDED") == (name not in known)
                assert event.previous == known.get(name)
                known[name] = event.object
                if event.type == "DELETED":
                    del known[name]
                if name == "end":
                    return known, last
        raise AssertionError("the watch ended")

    async with open_store(tmp_path / "state.db", collect=False) as store:
        followers = [asyncio.ensure_future(follower(store, dice.randrange(200))) for _ in range(5)]
        await asyncio.gather(*(writer(store) for _ in range(4)))
        await store.create(config_map("end"))
        for known, last in await asyncio.gather(*followers):
            assert list(known[name] for name in sorted(known)) == store.list(CONFIG_MAPS)
            assert last == store.resource_version
        kept, version = store.list(CONFIG_MAPS), store.resource_version
    async with open_store(tmp_path / "state.db", collect=False) as store:
        assert store.list(CONFIG_MAPS) == kept
        assert store.resource_version == version
