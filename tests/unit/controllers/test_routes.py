"""Routes: hosts, weights and states of one service; when tables are published."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.api.meta import Key, Object
from kserve_local.controllers import knative_names as names
from kserve_local.controllers.endpoints import endpoint_of, model_names
from kserve_local.controllers.routes import Backing, RoutesController, Served, compile_routes
from kserve_local.interfaces.routing import Endpoint, Route, RouteTable

ONE, TWO = "iris-predictor-00001", "iris-predictor-00002"
ISVC = "inferenceservices.serving.kserve.io"


def isvc(name: str = "iris", **metadata: Any) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "default", "uid": name, **metadata},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}}}},
    }


def ksvc(*traffic: tuple[str, int, str]) -> Object:
    entries = [
        {"revisionName": r, "percent": p, **({"tag": t} if t else {})} for r, p, t in traffic
    ]
    return {
        "metadata": {"name": "iris-predictor", "namespace": "default", "uid": "k"},
        "status": {"traffic": entries},
    }


def backing(
    name: str = ONE, *pods: Object, args: tuple[str, ...] = (), **conditions: tuple[str, str]
) -> Backing:
    revision: Object = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {names.CONFIGURATION_GENERATION: name[-1], names.ROUTING_STATE: "active"},
        },
        "spec": {
            "containerConcurrency": 2,
            "timeoutSeconds": 60,
            "containers": [{"name": "kserve-container", "args": list(args)}],
        },
        "status": {
            "conditions": [
                {"type": t, "status": s, "reason": "R", "message": m}
                for t, (s, m) in conditions.items()
            ]
        },
    }
    return Backing(revision, pods)


def pod(name: str = "p", address: str = "127.64.0.2", **metadata: Any) -> Object:
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **metadata,
        },
        "spec": {"containers": [{"name": "kserve-container"}]},
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def unready(container: dict[str, Any]) -> Object:
    made = pod()
    made["status"]["conditions"] = []
    made["status"]["containerStatuses"] = [{"name": "kserve-container", **container}]
    return made


def routes(service: Object | None, *backings: Backing, of: Object | None = None) -> Any:
    by_name = {b.revision["metadata"]["name"]: b for b in backings}
    served = {"predictor": Served(service, by_name)}
    return compile_routes(of or isvc(), served, domain="example.com")


def test_every_way_of_addressing_leads_to_the_service() -> None:
    entry, component, own = routes(ksvc((ONE, 100, "")), backing(ONE, pod()))
    assert entry.hosts == (
        "iris.default.example.com",
        "iris.default.localhost",
        "iris.default",
        "iris.default.svc",
        "iris.default.svc.cluster.local",
    )
    assert entry.path == "/serving/default/iris"
    assert entry.models == ("iris",)
    assert "iris-predictor.default" in component.hosts
    assert component.path == own.path == ""
    assert component.models == own.models == ()
    (target,) = entry.targets
    assert target.id == f"default/{ONE}"
    assert target.endpoints == (Endpoint("p", "127.64.0.2", 8080, 8081),)
    assert (target.state, target.container_concurrency, target.timeout) == ("ready", 2, 60.0)


def test_weights_add_up_tags_get_hosts_and_zero_percent_is_left_out() -> None:
    one, two = backing(ONE, pod("a")), backing(TWO, pod("b"))
    entry, _, tagged, *_ = routes(ksvc((TWO, 10, ""), (ONE, 90, "prev")), one, two)
    assert {t.id[-1]: t.percent for t in entry.targets} == {"2": 10, "1": 90}
    assert tagged.hosts[0] == "prev-iris-predictor.default.example.com"
    assert [(t.id, t.percent) for t in tagged.targets] == [(f"default/{ONE}", 100)]
    entry, *_ = routes(ksvc((TWO, 0, ""), (ONE, 100, "prev")), one, two)
    assert [t.id for t in entry.targets] == [f"default/{ONE}"]
    entry, *_ = routes(ksvc((TWO, 0, ""), (TWO, 100, "prev")), one, two)
    assert [(t.id, t.percent) for t in entry.targets] == [(f"default/{TWO}", 100)]


def test_a_revision_is_reached_by_its_own_name_inside_the_cluster() -> None:
    """As by its Service on a cluster: whatever its share is, and not from outside."""
    one, two = backing(ONE, pod("a", "127.64.0.2")), backing(TWO, pod("b", "127.64.0.3"))
    *_, first, second = routes(ksvc((TWO, 0, ""), (ONE, 100, "prev")), one, two)
    for name, route in ((ONE, first), (TWO, second)):
        assert route.hosts == (
            f"{name}.default",
            f"{name}.default.svc",
            f"{name}.default.svc.cluster.local",
        )
        assert [(t.id, t.percent) for t in route.targets] == [(f"default/{name}", 100)]
        assert not route.names_service


def test_a_gradual_rollout_divides_every_host_of_the_latest_target() -> None:
    one, two = backing(ONE, pod("a", "127.64.0.2")), backing(TWO, pod("b", "127.64.0.3"))
    traffic = ksvc((ONE, 9, "latest"), (TWO, 1, "latest"), (ONE, 90, "prev"))
    entry, component, latest, prev, *_ = routes(traffic, one, two)
    divided = [(f"default/{ONE}", 99), (f"default/{TWO}", 1)]
    assert [(t.id, t.percent) for t in entry.targets] == divided
    assert [(t.id, t.percent) for t in component.targets] == divided
    # Of what the target has: 9 of 10.
    assert latest.hosts[0] == "latest-iris-predictor.default.example.com"
    assert [t.percent for t in latest.targets] == [90, 10]
    assert [(t.id, t.percent) for t in prev.targets] == [(f"default/{ONE}", 100)]


def test_a_pod_on_its_way_out_takes_no_more_requests() -> None:
    leaving = pod("a", deletionTimestamp="2026-01-01T00:00:00Z")
    entry, *_ = routes(ksvc((ONE, 100, "")), backing(ONE, leaving, pod("b", "127.64.0.3")))
    assert [e.pod for e in entry.targets[0].endpoints] == ["b"]


CRASH = {"state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no model"}}}


BAD = "ModelLoadFailed: bad"
SERVED = {"ResourcesAvailable": ("True", "")}
RETRY = {"state": {"running": {}}, "lastState": CRASH["state"]}
BACK_OFF = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": CRASH["state"]}
NO_IMAGE = {"state": {"waiting": {"reason": "ErrImagePull"}}}
SINCE, LATER = "2026-01-01T00:00:01Z", "2026-01-01T00:00:09Z"
STARTED: dict[str, Any] = {
    "state": {
        "terminated": {
            "exitCode": 1, "reason": "Error", "message": "bad", "startedAt": "2026-01-01T00:00:05Z",
        }
    }
}  # fmt: skip


def new_pod(
    container: dict[str, Any] | None = None,
    unready_since: str = SINCE,
    *,
    init: dict[str, Any] | None = None,
) -> Object:
    """Return a Pod that is not Ready."""
    made = unready(container or {"state": {"waiting": {"reason": "PodInitializing"}}})
    made["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "lastTransitionTime": unready_since}
    ]
    if init is not None:
        made["status"]["initContainerStatuses"] = [{"name": "any", **init}]
    return made


@pytest.mark.parametrize(
    ("given", "state", "reason"),
    [
        (backing(), "starting", ""),
        (backing(ONE, unready({"state": {"running": {}}})), "starting", ""),
        (backing(ONE, unready(CRASH)), "failed", "ModelLoadFailed: no model"),
        # It served before, so its Pod will come back: requests wait.
        (backing(ONE, unready(CRASH), ResourcesAvailable=("True", "")), "starting", ""),
        (backing(ONE, Ready=("False", "too late")), "failed", "R: too late"),
        # Unless that Pod does not come up either.
        (backing(ONE, new_pod(init=CRASH), **SERVED), "failed", "ModelLoadFailed: no model"),
        (backing(ONE, new_pod(init=BACK_OFF), **SERVED), "failed", "ModelLoadFailed: no model"),
        (backing(ONE, new_pod(init=RETRY), **SERVED), "starting", ""),
        (backing(ONE, new_pod(STARTED), **SERVED), "starting", ""),
        (backing(ONE, new_pod({**STARTED, "restartCount": 1}), **SERVED), "failed", BAD),
        (backing(ONE, new_pod({**STARTED, "restartCount": 1}, LATER), **SERVED), "starting", ""),
        (backing(ONE, new_pod(NO_IMAGE), **SERVED), "failed", "ModelLoadFailed: ErrImagePull"),
    ],
)
def test_state_without_a_ready_pod(given: Backing, state: str, reason: str) -> None:
    entry, *_ = routes(ksvc((ONE, 100, "")), given)
    assert (entry.targets[0].state, entry.targets[0].reason) == (state, reason)
    assert entry.targets[0].percent == 100


def test_a_first_revision_is_waited_for_before_it_is_routed() -> None:
    entry, *_ = routes(ksvc(), backing(ONE))
    assert [(t.id, t.state) for t in entry.targets] == [(f"default/{ONE}", "starting")]


def test_a_spec_that_makes_no_pod_fails_at_once_with_kserves_reason() -> None:
    broken = isvc()
    broken["status"] = {
        "modelStatus": {
            "transitionStatus": "InvalidSpec",
            "lastFailureInfo": {"reason": "NoSupportingRuntime", "message": "none"},
        }
    }
    entry, _ = routes(None, of=broken)
    assert (entry.targets[0].state, entry.targets[0].reason) == (
        "failed",
        "NoSupportingRuntime: none",
    )
    entry, _ = routes(None)
    assert entry.targets[0].state == "starting"


def test_stopped_or_deleted_services_have_no_route() -> None:
    assert routes(None, of=isvc(annotations={"serving.kserve.io/stop": "TRUE"})) == ()
    assert routes(None, of=isvc(deletionTimestamp="2026-01-01T00:00:00Z")) == ()


def test_cluster_local_services_have_no_public_host() -> None:
    local = isvc(labels={"networking.knative.dev/visibility": "cluster-local"})
    entry, *_ = routes(ksvc(), backing(ONE), of=local)
    assert entry.hosts == ("iris.default", "iris.default.svc", "iris.default.svc.cluster.local")


@pytest.mark.parametrize(
    ("args", "model"),
    [
        ((), "iris"),
        (("--model_name=flowers",), "flowers"),
        (("--model_dir", "/mnt/models", "--model_name", "flowers"), "flowers"),
        (("--served-model-name=gpt",), "gpt"),
    ],
)
def test_the_model_name_is_what_the_server_was_told(args: tuple[str, ...], model: str) -> None:
    assert model_names(isvc(), [backing(ONE, args=args).revision["spec"]]) == (model,)


def test_ports_are_the_pods_own_or_where_they_really_are() -> None:
    made = pod()
    made["spec"]["containers"][0]["ports"] = [
        {"containerPort": 9000},
        {"name": "h2c", "containerPort": 9001},
    ]
    assert endpoint_of(made) == Endpoint("p", "127.64.0.2", 9000, 9001)
    made["metadata"]["annotations"] = {"kserve-local.dev/ports": '{"9000": 41000}'}
    assert endpoint_of(made) == Endpoint("p", "127.64.0.2", 41000, 9001)


class FakeStore:
    """Just enough of a store: InferenceServices without anything below."""

    def __init__(self) -> None:
        self.services: dict[str, Object] = {}

    def find(self, key: Key) -> Object | None:
        return self.services.get(key.name) if key.resource == ISVC else None

    def list(self, resource: str, **_: Any) -> list[Object]:
        return list(self.services.values())


class Sink:
    def __init__(self) -> None:
        self.tables: list[RouteTable] = []

    def publish(self, table: RouteTable) -> None:
        self.tables.append(table)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def names_in(found: tuple[Route, ...]) -> set[str]:
    return {route.service for route in found}


async def test_the_first_table_is_whole_and_changes_are_collected() -> None:
    """A gateway that outlived the supervisor must never get a table that lacks services."""
    store, sink, clock = FakeStore(), Sink(), Clock()
    store.services = {"a": isvc("a"), "b": isvc("b")}
    controller = RoutesController(store, sink, domain="example.com", clock=clock)  # type: ignore[arg-type]  # a fake that is read only
    await controller.reconcile(Key(ISVC, "default", "a"))
    assert [names_in(t.routes) for t in sink.tables] == [{"a", "b"}]
    await controller.reconcile(Key(ISVC, "default", "b"))
    assert len(sink.tables) == 1

    clock.now += 1
    store.services["c"] = isvc("c")
    await controller.reconcile(Key(ISVC, "default", "c"))
    assert len(sink.tables) == 2  # quiet before: at once
    for name in ("d", "e"):
        store.services[name] = isvc(name)
        await controller.reconcile(Key(ISVC, "default", name))
    assert len(sink.tables) == 2  # collected
    controller.close()
    assert names_in(sink.tables[-1].routes) == {"a", "b", "c", "d", "e"}
    assert [t.version for t in sink.tables] == [1, 2, 3]


async def test_an_empty_project_gets_a_table_too() -> None:
    sink = Sink()
    added: list[Key] = []
    controller = RoutesController(FakeStore(), sink, domain="example.com")  # type: ignore[arg-type]  # a fake that is read only
    controller.attach(added.append)
    for key in added:
        await controller.reconcile(key)
    assert [t.routes for t in sink.tables] == [()]


async def test_a_removed_service_leaves_the_table() -> None:
    store, sink, clock = FakeStore(), Sink(), Clock()
    store.services = {"a": isvc("a")}
    controller = RoutesController(store, sink, domain="example.com", clock=clock)  # type: ignore[arg-type]  # a fake that is read only
    await controller.reconcile(Key(ISVC, "default", "a"))
    store.services.clear()
    clock.now += 1
    await controller.reconcile(Key(ISVC, "default", "a"))
    assert sink.tables[-1].routes == ()


def test_the_host_that_the_status_shows_for_a_named_predictor_is_routed() -> None:
    """`status.url` keeps `predictor.name`: `<isvc>-<name>`."""
    service = isvc()
    service["spec"]["predictor"]["name"] = "v2"
    entry, predictor = compile_routes(service, {}, domain="example.com")
    assert {"iris-v2.default.example.com", "iris-v2.default.localhost"} <= set(entry.hosts)
    assert "iris.default.svc.cluster.local" in entry.hosts
    assert "iris-v2-predictor.default.example.com" in predictor.hosts
    local = isvc(labels={"networking.knative.dev/visibility": "cluster-local"})
    local["spec"]["predictor"]["name"] = "v2"
    hosts = compile_routes(local, {}, domain="example.com")[0].hosts
    assert all(h.startswith("iris.default") for h in hosts)


def test_a_name_with_default_in_it_keeps_its_predictor_host() -> None:
    """KServe's leftover rule: nothing is taken off, so the predictor's host is the URL."""
    entry, predictor = compile_routes(isvc("my-default"), {}, domain="example.com")
    assert "my-default-predictor.default.example.com" in predictor.hosts
    assert not set(entry.hosts) & set(predictor.hosts)


def three_components() -> Object:
    service = isvc()
    for component in ("transformer", "explainer"):
        service["spec"][component] = {"containers": [{"image": component}]}
    return service


def component_of(name: str, *pods: Object, args: tuple[str, ...] = ()) -> Served:
    revision = f"iris-{name}-00001"
    made = ksvc((revision, 100, "latest"))
    made["metadata"]["name"] = f"iris-{name}"
    return Served(made, {revision: backing(revision, *pods, args=args)})


def test_each_component_has_its_hosts_and_the_entry_leads_to_the_transformer() -> None:
    served = {
        "predictor": component_of("predictor", pod("p", "127.64.0.2")),
        "transformer": component_of(
            "transformer", pod("t", "127.64.0.3"), args=("--model_name=m",)
        ),
        "explainer": component_of("explainer", pod("e", "127.64.0.4")),
    }
    found = compile_routes(three_components(), served, domain="example.com")  # type: ignore[arg-type]  # keys are Literals
    entry = found[0]
    assert (entry.component, entry.models) == ("transformer", ("m",))
    assert [t.id for t in entry.targets] == ["default/iris-transformer-00001"]
    assert [t.id for t in entry.explain] == ["default/iris-explainer-00001"]
    by_host = {r.hosts[0]: r for r in found[1:]}
    assert by_host.keys() == {
        f"{tag}iris-{c}.default.example.com" for c in served for tag in ("", "latest-")
    } | {f"iris-{c}-00001.default" for c in served}
    for component in served:
        for tag in ("", "latest-"):
            route = by_host[f"{tag}iris-{component}.default.example.com"]
            assert [t.id for t in route.targets] == [f"default/iris-{component}-00001"]
            assert f"{tag}iris-{component}.default" in route.hosts
            assert (route.component, route.explain, route.path) == (component, (), "")
            assert not route.names_service


def test_a_transformer_waits_while_it_starts_and_fails_with_its_own_reason() -> None:
    service = three_components()
    (entry, *_) = compile_routes(service, {}, domain="example.com")
    assert (entry.targets[0].id, entry.targets[0].state) == (
        "default/iris-transformer",
        "starting",
    )
    conditions = [
        {"type": "TransformerReady", "status": "False", "reason": "R", "message": "no image"}
    ]
    service["status"] = {"conditions": conditions}
    (entry, *_) = compile_routes(service, {}, domain="example.com")
    assert (entry.targets[0].state, entry.targets[0].reason) == ("failed", "R: no image")
    assert entry.explain[0].state == "starting"


def test_a_predictor_that_cannot_be_made_fails_what_comes_after_it() -> None:
    """The controller makes no transformer before something could be made of the predictor."""
    service = three_components()
    condition = {"type": "PredictorReady", "status": "False", "message": "denied"}
    service["status"] = {"conditions": [{**condition, "reason": "ReconcileFailed"}]}
    (entry, *_) = compile_routes(service, {}, domain="example.com")
    reason = "ReconcileFailed: denied"
    assert [t.reason for t in (*entry.targets, *entry.explain)] == [reason, reason]
    failure = {"reason": "NoSupportingRuntime", "message": "none"}
    service["status"] = {
        "modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}
    }
    (entry, *_) = compile_routes(service, {}, domain="example.com")
    assert entry.targets[0].reason == "NoSupportingRuntime: none"
