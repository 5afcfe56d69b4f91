"""What the live autoscaler writes, on a real store, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api import pod_autoscaler
from kserve_local.api.meta import Key, get_condition
from kserve_local.api.scheme import DEPLOYMENT, EVENT, POD_AUTOSCALER
from kserve_local.autoscaler.loop import Autoscaler
from kserve_local.interfaces.holds import Holds, scale_group
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, open_store
from tests.unit.autoscaler.replay import stat

NAME = "iris-00001"
KEY = Key(POD_AUTOSCALER.id, "default", NAME)


class World:
    """One Revision's PodAutoscaler and Deployment.

    Attributes:
        now: Seconds, the autoscaler's.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = 1000.0
        self.holds = Holds()
        self.autoscaler = Autoscaler(
            store,
            EventRecorder(store),
            clock=lambda: self.now,
            holds=self.holds,
            epoch=lambda: self.now,
        )

    async def begin(self, *, least: int = 0, replicas: int = 1) -> None:
        """Make the objects, with that many replicas ready."""
        await self.store.create(
            {
                "apiVersion": DEPLOYMENT.api_version,
                "kind": DEPLOYMENT.kind,
                "metadata": {"name": f"{NAME}-deployment", "namespace": "default"},
                "spec": {"replicas": replicas},
            }
        )
        await self.store.create(
            {
                "apiVersion": POD_AUTOSCALER.api_version,
                "kind": POD_AUTOSCALER.kind,
                "metadata": {
                    "name": NAME,
                    "namespace": "default",
                    "annotations": {"autoscaling.knative.dev/min-scale": str(least)},
                },
                "spec": {
                    "scaleTargetRef": {"name": f"{NAME}-deployment"},
                    "reachability": pod_autoscaler.REACHABLE,
                },
            }
        )
        await self.have(replicas)

    async def have(self, ready: int) -> None:
        """Let so many replicas be ready, and have the autoscaler look."""
        found = self.store.get(Key(DEPLOYMENT.id, "default", f"{NAME}-deployment"))
        await self.store.update_status({**found, "status": {"readyReplicas": ready}})
        await self.look()

    async def load(self, concurrency: float, seconds: int) -> None:
        """Pass that much time under that load; a decision each second."""
        for _ in range(seconds):
            self.now += 1.0
            self.autoscaler.record((stat(concurrency, int(concurrency)),))
            entry = self.autoscaler._entries[KEY]
            self.autoscaler._tick(KEY, entry, self.autoscaler._now(entry))
            await self.look()

    async def route(self, reachability: str) -> None:
        """Let routes refer to the Revision, or none."""
        found = self.store.get(KEY)
        await self.store.update({**found, "spec": {**found["spec"], "reachability": reachability}})
        await self.look()

    async def look(self) -> None:
        await self.autoscaler.reconcile(KEY)

    @property
    def shown(self) -> tuple[int, int, str, str]:
        """Replicas to have, desiredScale, and the condition Ready with its reason."""
        found: dict[str, Any] = dict(self.store.get(KEY))
        ready = get_condition(found, "Ready") or {}
        return (
            pod_autoscaler.replicas(found),
            found["status"]["desiredScale"],
            ready.get("status", ""),
            ready.get("reason", ""),
        )

    @property
    def scaled(self) -> list[str]:
        """The Events `Scaled`, oldest first."""
        return [e["message"] for e in self.store.list(EVENT.id) if e["reason"] == "Scaled"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_store(tmp_path / "state.db", collect=False) as store:
        yield World(store)


async def test_a_revision_without_a_route_is_at_zero_and_waits_for_nothing(world: World) -> None:
    """It has no replicas from that moment on, so it cannot be on its way to one for ever."""
    await world.begin(least=1)
    await world.load(300.0, 10)
    assert world.shown[0] > 1
    await world.route(pod_autoscaler.UNREACHABLE)
    assert world.shown == (0, 0, "False", "NoTraffic")
    assert world.scaled[-1].endswith("to 0: no route refers to the revision")
    # A late answer's figures change nothing, nor does the time that passes.
    await world.have(0)
    await world.load(1.0, 2)
    await world.load(0.0, 700)
    assert world.shown == (0, 0, "False", "NoTraffic")


async def test_a_rollback_begins_at_min_scale_again(world: World) -> None:
    """What its traffic of long ago asked for says nothing of the traffic that comes now."""
    await world.begin(least=1)
    await world.load(300.0, 10)
    await world.route(pod_autoscaler.UNREACHABLE)
    await world.have(0)
    world.now += 3600
    await world.route(pod_autoscaler.REACHABLE)
    assert world.shown == (1, 1, "Unknown", "Queued")


async def test_the_first_change_is_told_too(world: World) -> None:
    """A Revision under load from its first second on grows before it ever had a decision."""
    await world.begin()
    assert world.scaled == []
    await world.load(300.0, 1)
    assert world.scaled[0].startswith("Scaled from 1 to 5: ")


async def test_a_revision_that_is_debugged_keeps_its_scale(world: World) -> None:
    """Neither requests that wait nor time that passes count; then all goes on from there."""
    group = scale_group("default", f"{NAME}-deployment")
    await world.begin()
    await world.load(1.0, 10)
    world.holds.stop("pod", [group], now=world.now)
    await world.load(300.0, 700)
    assert world.shown[0] == 1
    world.now += 7000.0
    await world.look()
    assert world.shown[0] == 1
    world.holds.go_on("pod", [group], now=world.now)
    await world.load(1.0, 5)
    assert world.shown[0] == 1
    await world.load(0.0, 200)
    assert world.shown[0] == 0


async def test_the_end_of_a_session_has_the_revision_looked_at(world: World) -> None:
    group = scale_group("default", f"{NAME}-deployment")
    added: list[Key] = []
    world.autoscaler.attach(added.append)
    await world.begin()
    world.holds.stop("pod", [group, "another"], now=world.now)
    world.holds.go_on("pod", [group], now=world.now)
    assert added == [KEY, KEY]
