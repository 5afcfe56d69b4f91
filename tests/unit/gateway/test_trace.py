"""Which request caused which: the hops of a trace, without a connection."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import pytest

from kserve_local.gateway.head import parse_request, part_ids
from kserve_local.gateway.proxy import Dataplane, Exchange
from kserve_local.gateway.table import Found
from kserve_local.gateway.trace import HTTP_LIMIT, Hop, request_id_of
from kserve_local.interfaces.routing import Endpoint, Route, RouteTable, Target

LOCAL = "127.0.0.1"
POD = {"transformer": "127.64.0.1", "predictor": "127.64.0.2", "explainer": "127.64.0.3"}


def component(name: str, service: str = "iris") -> Route:
    pod = f"{service}-{name}-pod"
    address = POD[name] if service == "iris" else f"127.64.1.{len(name)}"
    target = Target(f"d/{service}-{name}-00001", 100, (Endpoint(pod, address, 8080),))
    return Route(
        "d", service, name, (f"{service}-{name}.d",), (target,), names_service=False
    )  # fmt: skip


def entry(service: str = "iris") -> Route:
    """The service's own name, which leads to its transformer."""
    inner = component("transformer", service)
    return Route("d", service, "transformer", (f"{service}.d",), inner.targets, models=(service,))


@dataclass
class World:
    """A gateway's table and the requests that run."""

    plane: Dataplane

    def ask(self, host: str, *lines: str, peer: str = LOCAL) -> Exchange:
        """Begin a request; it is at its replica."""
        text = "".join(f"{line}\r\n" for line in (f"Host: {host}", *lines))
        raw = f"POST /v1/models/iris:predict HTTP/1.1\r\n{text}\r\n".encode()
        raw, ids = part_ids(raw)
        head = parse_request(raw)
        found = self.plane.table.find(head.host, head.target)
        assert isinstance(found, Found)
        target = self.plane.target_of(found.route)
        assert target is not None
        exchange = Exchange(cast("Any", None), head, found.route, target, b"", [], 0, True)
        exchange.fresh = self.plane.traces.lines(exchange, head, ids, peer)
        target.in_flight[exchange] = None
        (exchange.place,) = target.endpoints.values()
        exchange.place.in_flight += 1
        return exchange

    def end(self, exchange: Exchange, status: int = 200) -> None:
        exchange.status = status
        exchange.target.finished(exchange, exchange.started + 0.5)


@pytest.fixture
def world() -> World:
    plane = Dataplane(poke=lambda target: None, seed=1)
    routes = [entry(), entry("rose")]
    routes += [component(name, s) for name in POD for s in ("iris", "rose")]
    plane.apply(RouteTable(1, tuple(routes)))
    return World(plane)


def sent(exchange: Exchange) -> dict[str, str]:
    """What the replica is told."""
    lines = exchange.fresh.decode().split("\r\n")
    return dict(line.split(": ", 1) for line in lines if line)


def told(exchange: Exchange) -> list[dict[str, Any]]:
    assert exchange.hop is not None
    found: list[dict[str, Any]] = json.loads(exchange.hop.trace.encode(HTTP_LIMIT))["hops"]
    return found


ASK = "x-kserve-local-trace: 1"


def test_nobody_asks_nothing_is_kept(world: World) -> None:
    exchange = world.ask("iris.d")
    assert exchange.hop is None
    assert set(sent(exchange)) == {"traceparent"}
    assert not world.plane.traces.spans


def test_a_request_id_is_made_for_a_trace_only(world: World) -> None:
    """The SDK passes it on to the predictor, and nothing else that would tell."""
    made = sent(world.ask("iris.d", ASK))
    assert set(made) == {"traceparent", "x-request-id"}
    own = sent(world.ask("iris.d", ASK, "X-Request-ID: mine"))
    assert own == {"X-Request-ID": "mine", "traceparent": own["traceparent"]}


@pytest.mark.parametrize("passed_on", ["traceparent", "x-request-id", "trace id"])
def test_what_a_component_passes_on_leads_to_its_request(world: World, passed_on: str) -> None:
    one, two = (world.ask("iris.d", ASK) for _ in range(2))
    other = world.ask("iris.d")
    line = f"{passed_on}: {sent(two).get(passed_on, '')}"
    if passed_on == "trace id":
        # As with a tracer of the user's own: a span of its own in our trace.
        line = f"traceparent: {sent(two)['traceparent'][:36]}{'ab' * 8}-01"
    inner = world.ask("iris-predictor.d", line, peer=POD["transformer"])
    assert inner.hop is not None
    assert two.hop is not None
    assert (inner.hop.trace, inner.hop.parent, inner.hop.by) == (two.hop.trace, two.hop, "")
    assert sent(inner)["traceparent"][:36] == sent(two)["traceparent"][:36]
    world.end(inner)
    first, second = told(two)
    assert (first["component"], first["depth"], first["status"]) == ("transformer", 0, 0)
    assert second == {
        "kind": "component", "service": "iris", "namespace": "d", "component": "predictor",
        "revision": "iris-predictor-00001", "pod": "iris-predictor-pod", "protocol": "http",
        "call": "POST /v1/models/iris:predict", "depth": 1, "start": second["start"],
        "ms": 500.0, "status": 200,
    }  # fmt: skip
    assert told(one)[1:] == []
    assert other.hop is None


def test_each_hop_that_has_no_request_id_gets_its_own(world: World) -> None:
    """So a caller that passes it on is known among several at once."""
    root = world.ask("iris.d", ASK)
    assert root.hop is not None
    steps = [root.hop.step(kind="service", node="n", step=s, target="t") for s in "ab"]
    lines = [f"traceparent: 00-{'ab' * 16}-{step.span.decode()}-01" for step in steps]
    outer = [world.ask("rose.d", line) for line in lines]
    ids = [sent(exchange)["x-request-id"] for exchange in (root, *outer)]
    assert len(set(ids)) == 3
    for exchange, id in zip(outer, ids[1:], strict=True):
        inner = world.ask("rose-predictor.d", f"x-request-id: {id}")
        assert inner.hop is not None
        assert (inner.hop.parent, inner.hop.by) == (exchange.hop, "")
        assert sent(inner)["x-request-id"] == id


def test_a_pod_with_one_request_gives_itself_away(world: World) -> None:
    root = world.ask("iris.d", ASK)
    world.ask("rose.d")
    # Also what it asks of another service.
    for host in ("iris-predictor.d", "rose.d"):
        inner = world.ask(host, peer=POD["transformer"])
        assert inner.hop is not None
        assert (inner.hop.parent, inner.hop.by) == (root.hop, "pod")
    assert [hop.get("by") for hop in told(root)] == [None, "pod", "pod"]


def test_a_service_with_one_request_gives_itself_away(world: World) -> None:
    """gRPC's library calls from the machine's address, not the Pod's."""
    root = world.ask("iris.d", ASK)
    world.ask("rose.d")
    inner = world.ask("iris-predictor.d")
    assert inner.hop is not None
    assert (inner.hop.parent, inner.hop.by) == (root.hop, "service")
    # By the service's own name it would be a client's; by another service's anybody's.
    assert world.ask("iris.d").hop is None
    assert world.ask("rose-predictor.d").hop is None


@pytest.mark.parametrize("peer", [LOCAL, POD["transformer"]])
def test_what_may_be_two_requests_is_counted_and_given_to_none(world: World, peer: str) -> None:
    root = world.ask("iris.d", ASK)
    other = world.ask("iris.d")
    assert world.ask("iris-predictor.d", peer=peer).hop is None
    assert root.hop is not None
    assert json.loads(root.hop.trace.encode(HTTP_LIMIT))["unassigned"] == 1
    world.end(other)
    assert world.ask("iris-predictor.d", peer=peer).hop is not None


def test_a_pods_other_request_is_not_ours(world: World) -> None:
    root = world.ask("iris.d", ASK)
    world.ask("rose.d")
    assert world.ask("iris-predictor.d", peer="127.64.1.11").hop is None
    assert told(root)[1:] == []


def test_calls_at_once_have_the_same_caller(world: World) -> None:
    root = world.ask("iris.d", ASK, "x-request-id: a")
    inner = [world.ask("iris-predictor.d", "x-request-id: a") for _ in range(3)]
    assert [e.hop.parent for e in inner if e.hop is not None] == [root.hop] * 3
    assert [hop["depth"] for hop in told(root)] == [0, 1, 1, 1]


def test_a_trace_ends_with_its_request(world: World) -> None:
    root = world.ask("iris.d", ASK, "x-request-id: a")
    inner = world.ask("iris-predictor.d", "x-request-id: a")
    world.end(root, 504)
    assert not world.plane.traces.active
    assert not world.plane.traces.spans
    first, second = told(root)
    assert (first["status"], first["ms"]) == (504, 500.0)
    assert (second["status"], second["open"], second["pod"]) == (0, True, "iris-predictor-pod")
    world.end(inner)
    assert world.ask("iris-predictor.d", "x-request-id: a").hop is None


def test_a_trace_fits_its_header(world: World) -> None:
    """What does not fit is counted, and the text is ASCII; also what is beyond its memory."""
    root = world.ask("iris.d", ASK)
    hop = root.hop
    assert hop is not None
    for _ in range(150):
        hop.step(kind="service", node="n", step="é😀\n", target="x" * 50).over(200)
    text = hop.trace.encode(2000)
    assert len(text) <= 2000
    assert text.isascii()
    assert b"\n" not in text
    found = json.loads(text)
    assert found["hops"][1]["step"] == "é😀\n"
    assert len(found["hops"]) + found["leftOut"] == 151
    assert len(world.plane.traces.spans) == 100


def test_hops_are_told_as_a_tree(world: World) -> None:
    root = world.ask("iris.d", ASK).hop
    assert root is not None

    def step(of: Hop, name: str) -> Hop:
        return of.step(kind="node", node="n", step=name, target="t")

    one, two = step(root, "one"), step(root, "two")
    step(one, "one.one")
    step(two, "two.one")
    found = json.loads(root.trace.encode(HTTP_LIMIT))["hops"][1:]
    assert [(h["step"], h["depth"]) for h in found] == [
        ("one", 1), ("one.one", 2), ("two", 1), ("two.one", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (b"Host: a\r\nX-Request-ID:  r-1 \r\nX: 1\r\n", b"r-1"),
        (b"x-request-id: a\r\nx-request-id: b\r\n", b"a"),
        (b"not-x-request-id: a\r\nx-other: x-request-id: b\r\n", b""),
    ],
)
def test_the_id_of_a_request(lines: bytes, found: bytes) -> None:
    assert request_id_of(lines) == found
