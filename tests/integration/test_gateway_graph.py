"""An InferenceGraph's router in a real gateway process: each rule and error of KServe's, a row.

Steps are real HTTP servers: services of the table (by cluster-local names) and external URLs.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kserve_local.interfaces.routing import Endpoint, Route, Target
from tests.fakes.raw_upstream import Answer, Client, Connection, Upstream, ask, response
from tests.integration.gateway_world import World, endpoints, iris, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "graph.default.example.com"
REVISION = "default/graph-00001"
WHY = "Failed to process request"


@dataclass
class Steps:
    """A server whose path says what it answers: `/STATUS/ANYTHING` with the body set for it."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)

    async def __call__(self, connection: Connection) -> None:
        while True:
            try:
                request = await connection.request()
            except EOFError:
                return
            name = request.target.rpartition("/")[2]
            await asyncio.sleep(self.delays.get(name, 0.0))
            body = self.bodies.get(name, request.body)
            status = self.statuses.get(name, 200)
            await connection.send(response(body, status=f"{status} Word"))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world(max_held_requests=20) as one:
        yield one


def graph_route(spec: Mapping[str, Any], propagate: tuple[str, ...] = (), **fields: Any) -> Route:
    """Return the route of a graph whose router is Ready."""
    target = Target(
        REVISION, 100, (Endpoint("graph-pod", "127.64.0.2", 8080),), graph=spec, propagate=propagate
    )
    return Route(
        "default",
        "graph",
        "graph",
        (HOST, "graph.default.localhost"),
        (replace(target, **fields),),
        "/serving/default/graph",
    )


def node(kind: str, /, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"routerType": kind, "steps": list(steps)}


def only(kind: str, /, *steps: Mapping[str, Any], **nodes: Any) -> dict[str, Any]:
    """Return a graph's spec with this root."""
    return {"nodes": {"root": node(kind, *steps), **nodes}}


async def call(
    world: World,
    body: bytes = b"{}",
    *,
    method: str = "POST",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    return await ask(world.port, head.encode() + body)


def failure(cause: str) -> dict[str, str]:
    return {"error": WHY, "cause": cause}


CAT, DOG = b'{"predictions":[{"label":"cat"}]}', b'{"predictions":[{"label":"dog"}]}'
IS_DOG = 'predictions.#(label=="dog")'
MISS = "None of the routes matched with the switch condition"


def a(path: str, /, **fields: Any) -> dict[str, Any]:
    """Return a step that calls `path` of the step server."""
    return {"serviceUrl": f"http://STEPS/{path}", **fields}


@dataclass(frozen=True)
class Row:
    """One rule: a graph, what is sent, what steps answer, and what comes back."""

    rule: str
    spec: dict[str, Any]
    want: Any
    sent: bytes = b'{"instances":[1]}'
    status: int = 200
    bodies: Mapping[str, bytes] = field(default_factory=dict)
    statuses: Mapping[str, int] = field(default_factory=dict)
    got: Mapping[str, Any] = field(default_factory=dict)
    """What steps got, by path; None: were not called."""


SENT = {"instances": [1]}
ROWS = [
    Row("sequence: input is the node's own", only("Sequence", a("x"), a("y")), {"y": 1},
        bodies={"x": b'{"x":1}', "y": b'{"y":1}'}, got={"x": SENT, "y": SENT}),
    Row("sequence: $response is the answer before",
        only("Sequence", a("x"), a("y", data="$response")), {"y": 1},
        bodies={"x": b'{"x":1}', "y": b'{"y":1}'}, got={"y": {"x": 1}}),
    Row("sequence: $response at the first step is the request",
        only("Sequence", a("x", data="$response")), SENT, got={"x": SENT}),
    Row("sequence: only exactly $response counts",
        only("Sequence", a("x"), a("y", data="$response.predictions")), SENT,
        bodies={"x": b'{"x":1}'}, got={"y": SENT}),
    Row("sequence: predictions become instances, other keys go",
        only("Sequence", a("x"), a("y", data="$response", mapPredictionsToInstances=True)),
        {"y": 1},
        bodies={"x": b'{"predictions":[[1.0,2]],"model":"m"}', "y": b'{"y":1}'},
        got={"y": {"instances": [[1, 2]]}}),
    Row("sequence: no predictions, no mapping",
        only("Sequence", a("x", mapPredictionsToInstances=True)), SENT, got={"x": SENT}),
    Row("sequence: empty predictions, no mapping",
        only("Sequence", a("x", mapPredictionsToInstances=True)), {"predictions": []},
        sent=b'{"predictions":[]}', got={"x": {"predictions": []}}),
    Row("sequence: predictions that are no list, no mapping",
        only("Sequence", a("x", mapPredictionsToInstances=True)), {"predictions": 1},
        sent=b'{"predictions":1}', got={"x": {"predictions": 1}}),
    Row("sequence: a condition is about the answer before; met",
        only("Sequence", a("x"), a("y", condition=IS_DOG)), {"y": 1},
        bodies={"x": DOG, "y": b'{"y":1}'}, got={"y": SENT}),
    Row("sequence: unmet, that answer is the result, with 200",
        only("Sequence", a("x"), a("y", condition=IS_DOG)), json.loads(CAT),
        bodies={"x": CAT}, statuses={"x": 207}, got={"y": None}),
    Row("sequence: presence counts, not truth",
        only("Sequence", a("x"), a("y", condition="flag")), {"y": 1},
        bodies={"x": b'{"flag":false}', "y": b'{"y":1}'}),
    Row("sequence: a condition at the first step", only("Sequence", a("x", condition="instances")),
        failure("invalid response"), status=500, got={"x": None}),
    Row("sequence: a condition after an answer that is no JSON",
        only("Sequence", a("x"), a("y", condition="z")), failure("invalid response"),
        bodies={"x": b"oops"}, status=500, got={"y": None}),
    Row("sequence: a hard step's failure ends it",
        only("Sequence", a("x", dependency="Hard"), a("y")), {"e": 1},
        bodies={"x": b'{"e":1}'}, statuses={"x": 418}, status=418, got={"y": None}),
    Row("sequence: a soft step's failure does not",
        only("Sequence", a("x", dependency="Soft"), a("y")), {"y": 1},
        bodies={"y": b'{"y":1}'}, statuses={"x": 500}, got={"y": SENT}),
    Row("sequence: soft is what a step is", only("Sequence", a("x"), a("y")), SENT,
        statuses={"x": 500}),
    Row("sequence: the last step's status is the result's", only("Sequence", a("x"), a("y")),
        {"e": 1}, bodies={"y": b'{"e":1}'}, statuses={"y": 503}, status=503),
    Row("sequence: 299 is a success", only("Sequence", a("x", dependency="Hard"), a("y")), SENT,
        statuses={"x": 299}, got={"y": SENT}),
    Row("sequence: 300 is none", only("Sequence", a("x", dependency="Hard"), a("y")), SENT,
        statuses={"x": 300}, status=300, got={"y": None}),
    Row("switch: the first condition that leads anywhere",
        only("Switch", a("x", condition="b"), a("y", condition="instances"),
             a("z", condition="instances")), {"y": 1},
        bodies={"y": b'{"y":1}'}, got={"x": None, "y": SENT, "z": None}),
    Row("switch: none at the root", only("Switch", a("x", condition="b")), failure(MISS),
        status=404, got={"x": None}),
    Row("switch: a request that is no JSON", only("Switch", a("x", condition="b")), failure(MISS),
        sent=b"b", status=404),
    Row("switch: a step without a condition is never taken", only("Switch", a("x")), failure(MISS),
        status=404),
    Row("switch: none inside a nested node",
        only("Sequence", {"nodeName": "n"}, n=node("Switch", a("x", condition="b"))),
        failure(MISS), status=500),
    Row("switch: a step's failure passes, whatever its dependency",
        only("Switch", a("x", condition="instances", dependency="Hard")), {"e": 1},
        bodies={"x": b'{"e":1}'}, statuses={"x": 422}, status=422),
    Row("switch: KServe's documented condition",
        only("Switch", a("x", condition="[@this].#(decision_picker==ERROR)")), {"x": 1},
        sent=b'{"decision_picker":"ERROR"}', bodies={"x": b'{"x":1}'}),
    Row("splitter: all to one", only("Splitter", a("x", weight=100), a("y", weight=0)), {"x": 1},
        bodies={"x": b'{"x":1}'}, got={"y": None}),
    Row("splitter: a failure passes", only("Splitter", a("x", weight=100, dependency="Hard")),
        SENT, statuses={"x": 503}, status=503),
    Row("splitter: nothing picked", only("Splitter", a("x", weight=0)),
        failure("no route was selected by the splitter"), status=500),
    Row("ensemble: by name, or by index",
        only("Ensemble", a("x", name="one"), a("y")), {"one": {"x": 1}, "1": {"y": 1}},
        bodies={"x": b'{"x":1}', "y": b'{"y":1}'}, got={"x": SENT, "y": SENT}),
    Row("ensemble: empty", only("Ensemble"), {}),
    Row("ensemble: soft failures stay in",
        only("Ensemble", a("x", name="one"), a("y", name="two")), {"one": {"e": 1}, "two": SENT},
        bodies={"x": b'{"e":1}'}, statuses={"x": 500}),
    Row("ensemble: a hard failure is the result",
        only("Ensemble", a("x", name="one"), a("y", name="two", dependency="Hard")), {"e": 1},
        bodies={"y": b'{"e":1}'}, statuses={"y": 404}, status=404),
    Row("ensemble: the first hard failure in order",
        only("Ensemble", a("x", dependency="Hard"), a("y", dependency="Hard")), {"e": 1},
        bodies={"x": b'{"e":1}', "y": b'{"e":2}'}, statuses={"x": 501, "y": 502}, status=501),
    Row("ensemble: an answer that is a list", only("Ensemble", a("x")),
        failure("json: cannot unmarshal array into Go value of type map[string]interface {}"),
        bodies={"x": b"[1]"}, status=500),
    Row("ensemble: an answer that is no JSON", only("Ensemble", a("x")),
        failure("invalid character 'o' looking for beginning of value"),
        bodies={"x": b"oops"}, status=500),
    Row("ensemble: an empty answer", only("Ensemble", a("x")),
        failure("unexpected end of JSON input"), bodies={"x": b""}, status=500),
    Row("ensemble: null is an object to Go", only("Ensemble", a("x", name="x")), {"x": None},
        bodies={"x": b"null"}),
    Row("nested: a node as a step",
        only("Sequence", {"nodeName": "n"}, a("y", data="$response"),
             n=node("Switch", a("x", condition="instances"))), {"y": 1},
        bodies={"x": b'{"x":1}', "y": b'{"y":1}'}, got={"y": {"x": 1}}),
    Row("nested: its failure obeys the step that refers to it",
        only("Sequence", {"nodeName": "n", "dependency": "Hard"}, a("y"),
             n=node("Splitter", a("x", weight=100))), {"e": 1},
        bodies={"x": b'{"e":1}'}, statuses={"x": 500}, status=500, got={"y": None}),
    Row("nested: in an ensemble",
        only("Ensemble", {"nodeName": "n", "name": "in"}, n=node("Ensemble", a("x", name="x"))),
        {"in": {"x": SENT}}),
    Row("unknown node", only("Sequence", {"nodeName": "nope"}), failure("invalid route type: "),
        status=500),
    Row("unknown router type", only("Loop", a("x")), failure("invalid route type: Loop"),
        status=500),
    Row("no connection", only("Sequence", {"serviceUrl": "http://127.0.0.1:1/x"}),
        failure('Post "http://127.0.0.1:1/x": dial tcp 127.0.0.1:1: connect: connection refused'),
        status=500),
    Row("no such host", only("Sequence", {"serviceUrl": "http://nope.invalid/x"}),
        failure('Post "http://nope.invalid/x": dial tcp: lookup nope.invalid: no such host'),
        status=500),
    Row("a URL without a scheme", only("Sequence", {"serviceUrl": "iris/x"}),
        failure('Post "iris/x": unsupported protocol scheme ""'), status=500),
    Row("a URL of another scheme", only("Sequence", {"serviceUrl": "ftp://iris/x"}),
        failure('Post "ftp://iris/x": unsupported protocol scheme "ftp"'), status=500),
    Row("a URL that is none", only("Sequence", {"serviceUrl": "http://a b/x"}),
        failure('parse "http://a b/x": invalid character " " in host name'), status=500),
    Row("a URL without a host", only("Sequence", {"serviceUrl": "http:///x"}),
        failure('Post "http:///x": http: no Host in request URL'), status=500),
    Row("a failing call in an ensemble",
        only("Ensemble", a("x"), {"serviceUrl": "ftp://iris/x"}),
        failure('Post "ftp://iris/x": unsupported protocol scheme "ftp"'), status=500),
    Row("a failing call in a switch",
        only("Switch", {"serviceUrl": "ftp://iris/x", "condition": "instances"}),
        failure('Post "ftp://iris/x": unsupported protocol scheme "ftp"'), status=500),
]  # fmt: skip


def at(spec: Any, address: str) -> Any:
    """Return the spec with the step server's address in it."""
    return json.loads(json.dumps(spec).replace("STEPS", address))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
async def test_rule(gateway: World, row: Row) -> None:
    """Section 9.3 of the control-plane sheet."""
    steps = Steps(dict(row.bodies), dict(row.statuses))
    async with Upstream(steps) as upstream:
        await gateway.publish(graph_route(at(row.spec, f"127.0.0.1:{upstream.port}")))
        answer = await call(gateway, row.sent)
        assert (answer.status, json.loads(answer.body)) == (row.status, row.want)
        assert answer.headers.get("content-type") == "application/json"
        got = {r.target.rpartition("/")[2]: json.loads(r.body) for r in upstream.requests}
        assert {r.method for r in upstream.requests} <= {"POST"}
        for name, body in row.got.items():
            assert got.get(name) == body, name


async def test_every_method_and_path_enters_the_root(gateway: World) -> None:
    """Only /readyz is the router's own."""
    async with Upstream(Steps()) as upstream:
        spec = at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec))
        for method, path in (("GET", "/"), ("PUT", "/v1/models/iris:predict"), ("POST", "/a?b=c")):
            answer = await call(gateway, b'{"a":1}', method=method, path=path)
            assert (answer.status, answer.body) == (200, b'{"a":1}')
        assert {(r.method, r.target) for r in upstream.requests} == {("POST", "/x")}
        ready = await call(gateway, b"", method="GET", path="/readyz")
        assert (ready.status, ready.body) == (200, b"")
        assert len(upstream.requests) == 3


async def test_a_grpc_call_is_told_that_a_graph_takes_none(gateway: World) -> None:
    """A cluster's router takes HTTP/1.1 only, which Envoy says in these words."""
    await gateway.publish(graph_route(only("Sequence")))
    options = [("grpc.default_authority", HOST)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await infer(b"", timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "reset reason: protocol error" in (raised.value.details() or "")
    trailers = dict(raised.value.trailing_metadata() or ())
    assert trailers["x-kserve-local-hint"] == "an InferenceGraph takes HTTP requests, no gRPC calls"


async def test_a_sequence_without_steps_breaks_the_connection(gateway: World) -> None:
    """Upstream's router panics over status 0; the caller sees the proxy before it complain."""
    await gateway.publish(graph_route(only("Sequence")))
    answer = await call(gateway)
    assert (answer.status, answer.body) == (502, b"EOF\n")


async def test_an_answer_that_is_no_json_gets_the_type_go_finds(gateway: World) -> None:
    """The router names JSON only; net/http looks at the rest."""
    steps = Steps({"x": b"hello"})
    async with Upstream(steps) as upstream:
        spec = at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec))
        answer = await call(gateway)
        assert (answer.body, answer.headers.get("content-type")) == (
            b"hello",
            "text/plain; charset=utf-8",
        )


async def test_an_ensemble_writes_json_as_go(gateway: World) -> None:
    """Sorted keys, float64 numbers, escaped signs."""
    steps = Steps({"x": b'{"z":1.0,"a":"<&>","n":12345678901234567890,"e":1e-9}'})
    async with Upstream(steps) as upstream:
        spec = at(only("Ensemble", a("x", name="m")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec))
        answer = await call(gateway)
        assert answer.body == (
            b'{"m":{"a":"\\u003c\\u0026\\u003e","e":1e-9,"n":12345678901234567000,"z":1}}'
        )


async def test_a_splitter_follows_its_weights(gateway: World) -> None:
    """Two thousand draws of 30 to 70."""
    async with Upstream(Steps()) as upstream:
        spec = at(
            only("Splitter", a("x", weight=30), a("y", weight=70)), f"127.0.0.1:{upstream.port}"
        )
        await gateway.publish(graph_route(spec))
        for _ in range(20):
            await asyncio.gather(*(call(gateway) for _ in range(50)))
        count = Counter(r.target for r in upstream.requests)
        assert 0.24 < count["/x"] / 1000 < 0.36


async def test_headers_go_to_steps_by_pattern(gateway: World) -> None:
    """Go's regular expressions on canonical names, anywhere in them; bad ones match nothing."""
    async with Upstream(Steps()) as upstream:
        spec = at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}")
        patterns = ("Custom", "^X-Trace-\\d+$", "*Trace-Id*", "(?i)authoriz", "Content-Type")
        await gateway.publish(graph_route(spec, patterns))
        await call(
            gateway,
            headers={
                "my-custom-header": "1",
                "X-TRACE-12": "2",
                "X-Trace-Id": "3",
                "authorization": "Bearer 4",
                "Cookie": "5",
                "Content-Type": "text/special",
            },
        )
        got = upstream.requests[0].headers
        assert got["my-custom-header"] == ["1"]
        assert got["x-trace-12"] == ["2"]
        assert got["authorization"] == ["Bearer 4"]
        assert got["content-type"] == ["text/special"]
        assert "x-trace-id" not in got
        assert "cookie" not in got
        assert got["user-agent"] == ["Go-http-client/1.1"]


async def test_without_patterns_only_our_own_headers_go(gateway: World) -> None:
    """Content-Type is JSON then; what the client said of it does not count."""
    async with Upstream(Steps()) as upstream:
        spec = at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec))
        await call(gateway, headers={"X-Any": "1", "Content-Type": "text/special"})
        assert set(upstream.requests[0].headers) == {
            "host", "user-agent", "content-length", "content-type", "traceparent",
        }  # fmt: skip
        assert upstream.requests[0].header("content-type") == "application/json"


async def test_traces_go_on(gateway: World) -> None:
    """A caller's trace id goes to every step with a span of its own; without one it is made."""
    async with Upstream(Steps()) as upstream:
        spec = at(only("Sequence", a("x"), a("y")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec))
        given = f"00-{'ab' * 16}-{'cd' * 8}-00"
        await call(gateway, headers={"traceparent": given, "tracestate": "v=1"})
        one, two = (r.header("traceparent") for r in upstream.requests)
        assert one[:36] == two[:36] == given[:36]
        assert len({one, two, given}) == 3
        assert one.endswith("-00")
        assert upstream.requests[0].header("tracestate") == "v=1"
        await call(gateway)
        three, four = (r.header("traceparent") for r in upstream.requests[2:])
        assert three[3:35] == four[3:35] != given[3:35]


async def test_a_request_may_ask_for_its_trace(gateway: World) -> None:
    """One hop a step: where, status, time, and what went wrong."""
    steps = Steps(statuses={"x": 503}, delays={"x": 0.05})
    async with Upstream(steps) as upstream:
        spec = at(
            only(
                "Sequence",
                {"nodeName": "n", "name": "inner"},
                {"serviceUrl": "ftp://é/", "name": "bad"},
                n=node("Splitter", a("x", weight=100, name="x")),
            ),
            f"127.0.0.1:{upstream.port}",
        )
        await gateway.publish(graph_route(spec))
        assert "x-kserve-local-trace" not in (await call(gateway)).headers
        answer = await call(gateway, headers={"x-kserve-local-trace": "1"})
        trace = json.loads(answer.headers.get("x-kserve-local-trace"))
        graph, inner, x, bad = trace["hops"]
        assert (graph["component"], graph["depth"], graph["status"]) == ("graph", 0, 500)
        assert (inner["step"], inner["kind"], inner["depth"], inner["status"]) == (
            "inner", "node", 1, 503,
        )  # fmt: skip
        assert (x["node"], x["kind"], x["depth"], x["status"]) == ("n", "service", 2, 503)
        assert 50 <= x["ms"] <= inner["ms"] <= trace["ms"]
        assert bad["status"] == 0
        assert bad["error"].endswith('unsupported protocol scheme "ftp"')
        assert bad["target"] == "ftp://é/"


async def test_a_step_by_its_cluster_name_is_served_by_this_gateway(gateway: World) -> None:
    """Also one at zero: it is woken, and the graph's request waits with it."""
    async with Upstream(Steps()) as upstream:
        at_zero = iris((), state="zero")
        host = "iris.default.svc.cluster.local"
        named = replace(at_zero, hosts=(*at_zero.hosts, host))
        spec = only("Sequence", {"serviceUrl": f"http://{host}/v1/models/iris:predict"})
        await gateway.publish(named, graph_route(spec))
        gateway.figures.pokes.clear()
        asked = asyncio.create_task(call(gateway, b'{"instances":[1]}'))
        await gateway.figures.until(lambda: "default/iris-predictor-00001" in gateway.figures.pokes)
        assert not asked.done()
        ready = replace(named.targets[0], state="ready", endpoints=endpoints([upstream]))
        await gateway.publish(replace(named, targets=(ready,)), graph_route(spec))
        answer = await asked
        assert (answer.status, answer.body) == (200, b'{"instances":[1]}')
        assert upstream.requests[0].target == "/v1/models/iris:predict"
        assert upstream.requests[0].header("host") == host
        assert upstream.requests[0].header("kserve-isvc-name") == "iris"
        # The connections inside are used again.
        for _ in range(20):
            assert (await call(gateway)).status == 200
        assert upstream.connections <= 2


async def test_a_failed_step_service_answers_in_the_step(gateway: World) -> None:
    """A 503 of the gateway is a step's status like any other."""
    broken = iris((), state="failed", reason="ModelLoadFailed: no model")
    host = "iris.default.svc.cluster.local"
    spec = only("Sequence", {"serviceUrl": f"http://{host}/v1/models/iris:predict"})
    await gateway.publish(replace(broken, hosts=(*broken.hosts, host)), graph_route(spec))
    answer = await call(gateway)
    assert (answer.status, json.loads(answer.body)) == (503, {"error": "ModelLoadFailed: no model"})


async def test_a_graph_may_be_a_step_of_a_graph(gateway: World) -> None:
    """Routers call routers by name."""
    async with Upstream(Steps({"x": b'{"x":1}'})) as upstream:
        inner = graph_route(at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}"))
        inner = replace(
            inner,
            service="inner",
            hosts=("inner.default.svc.cluster.local",),
            path="/serving/default/inner",
            targets=(replace(inner.targets[0], id="default/inner-00001"),),
        )
        spec = only(
            "Ensemble", {"serviceUrl": "http://inner.default.svc.cluster.local", "name": "in"}
        )
        await gateway.publish(inner, graph_route(spec))
        answer = await call(gateway)
        assert json.loads(answer.body) == {"in": {"x": 1}}


async def test_a_graph_is_held_for_as_every_service(gateway: World) -> None:
    """The router's own revision may be on its way, or have failed."""
    spec = only("Ensemble")
    await gateway.publish(graph_route(spec, endpoints=(), state="zero"))
    gateway.figures.pokes.clear()
    asked = asyncio.create_task(call(gateway))
    await gateway.figures.until(lambda: REVISION in gateway.figures.pokes)
    await gateway.publish(graph_route(spec))
    assert (await asked).body == b"{}"
    await gateway.publish(graph_route(spec, endpoints=(), state="failed", reason="Why"))
    assert (await call(gateway)).status == 503


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies_pass(gateway: World, chunked: bool) -> None:
    """Several MiB each way, with and without a declared length."""
    body = json.dumps({"instances": ["x" * 3_000_000]}).encode()
    async with Upstream(Steps()) as upstream:
        spec = at(only("Switch", a("x", condition="instances.0")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec))
        if chunked:
            framed = b"".join(
                b"%x\r\n%b\r\n" % (len(part), part)
                for part in (body[i : i + 70_000] for i in range(0, len(body), 70_000))
            )
            head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer = await ask(gateway.port, head.encode() + framed + b"0\r\n\r\n")
        else:
            answer = await call(gateway, body)
        assert (answer.status, answer.body == body) == (200, True)


async def test_a_client_that_leaves_ends_the_steps(gateway: World) -> None:
    """Down to the last replica, and the places are free again."""
    gone = asyncio.Event()

    async def stuck(connection: Connection) -> None:
        await connection.request()
        await connection.gone()
        gone.set()

    async with Upstream(stuck) as upstream:
        host = "iris.default.svc.cluster.local"
        service = iris([upstream])
        service = replace(service, hosts=(*service.hosts, host))
        spec = only(
            "Ensemble", {"nodeName": "n"}, n=node("Sequence", {"serviceUrl": f"http://{host}/"})
        )
        await gateway.publish(service, graph_route(spec))
        _reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        async with asyncio.timeout(10):
            await upstream.begun.wait()
            assert not gone.is_set()
            writer.close()
            await gone.wait()


async def test_an_ensemble_that_is_decided_ends_its_other_steps(gateway: World) -> None:
    """A hard failure is the result whatever the others would say."""
    left = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await connection.request()
        await connection.gone()
        left.set()

    async def refuses(connection: Connection) -> None:
        await connection.request()
        await one.begun.wait()
        await connection.send(response(b"{}", status="500 Word"))

    async with Upstream(slow) as one, Upstream(refuses) as two:
        spec = only(
            "Ensemble",
            {"serviceUrl": f"http://127.0.0.1:{two.port}/x", "dependency": "Hard"},
            {"serviceUrl": f"http://127.0.0.1:{one.port}/y"},
        )
        await gateway.publish(graph_route(spec))
        assert (await call(gateway)).status == 500
        async with asyncio.timeout(10):
            await left.wait()


async def test_service_client_limits_a_step(gateway: World) -> None:
    """Go's words of http.Client.Timeout, before the head."""
    async with Upstream(Steps(delays={"x": 30.0})) as upstream:
        url = f"http://127.0.0.1:{upstream.port}/x"
        spec = only("Sequence", {"serviceUrl": url}) | {"routerTimeouts": {"serviceClient": 1}}
        await gateway.publish(graph_route(spec))
        answer = await call(gateway)
        assert (answer.status, json.loads(answer.body)) == (
            500,
            failure(
                f'Post "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting '
                "headers)"
            ),
        )


async def test_an_answer_after_server_write_is_lost(gateway: World) -> None:
    """net/http's WriteTimeout: the router goes on, but nothing can be written any more."""
    async with Upstream(Steps(delays={"x": 1.3})) as upstream:
        spec = at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec | {"routerTimeouts": {"serverWrite": 1}}))
        answer = await call(gateway)
        assert (answer.status, answer.body) == (502, b"EOF\n")


async def test_a_request_slower_than_server_read_is_taken_as_it_is(gateway: World) -> None:
    """Upstream does not look at the read error; what has come is the body."""
    async with Upstream(Steps()) as upstream:
        spec = at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec | {"routerTimeouts": {"serverRead": 1}}))
        async with Client(gateway.port) as client:
            await client.send(
                f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\n[1]".encode()
            )
            answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"[1]")


async def test_the_graphs_timeout_is_its_revisions(gateway: World) -> None:
    """`spec.timeout` becomes the Revision's limit, with the activator's words."""
    async with Upstream(Steps(delays={"x": 30.0})) as upstream:
        spec = at(only("Sequence", a("x")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec, timeout=0.5))
        answer = await call(gateway)
        assert (answer.status, answer.body) == (504, b"activator request timeout")


async def test_nodes_in_a_circle_end(gateway: World) -> None:
    """Nobody checks for circles; upstream's router dies of one."""
    spec = only("Sequence", {"nodeName": "root"})
    await gateway.publish(graph_route(spec))
    answer = await call(gateway)
    assert answer.status == 500
    assert "is there a circle?" in json.loads(answer.body)["cause"]
    wide = only("Ensemble", {"nodeName": "root"}, {"nodeName": "root"})
    await gateway.publish(graph_route(wide))
    assert (await call(gateway)).status == 500


async def test_redirects_are_followed_as_go_follows_them(gateway: World) -> None:
    """307 with the body, 302 by GET, ten at most."""

    async def moving(connection: Connection) -> None:
        while True:
            try:
                request = await connection.request()
            except EOFError:
                return
            status, _, then = request.target[1:].partition("/")
            if status.isdigit():
                extra = f"Location: /{then or status}\r\n"
                await connection.send(response(b"", status=f"{status} Moved", extra=extra))
            else:
                body = f'{{"method":"{request.method}","size":{len(request.body)}}}'
                await connection.send(response(body.encode()))

    async with Upstream(moving) as upstream:
        for path, want in (
            ("307/here", {"method": "POST", "size": 2}),
            ("302/here", {"method": "GET", "size": 0}),
        ):
            spec = at(only("Sequence", a(path)), f"127.0.0.1:{upstream.port}")
            await gateway.publish(graph_route(spec))
            assert json.loads((await call(gateway)).body) == want
        spec = at(only("Sequence", a("307")), f"127.0.0.1:{upstream.port}")
        await gateway.publish(graph_route(spec))
        cause = json.loads((await call(gateway)).body)["cause"]
        assert cause == f'Post "http://127.0.0.1:{upstream.port}/307": stopped after 10 redirects'


async def test_a_redirect_to_another_host_takes_no_secrets_along(gateway: World) -> None:
    """Authorization and cookies stay with the host that the graph names."""

    async def moving(connection: Connection) -> None:
        request = await connection.request()
        there = f"http://{request.target.partition('=')[2]}/end"
        body = b"{}" if request.target == "/end" else b""
        status = "200 OK" if body else "307 Moved"
        extra = f"Location: {there}\r\nConnection: close\r\n"
        await connection.send(response(body, status=status, extra=extra))

    async with Upstream(moving) as upstream:
        for host, kept in (("127.0.0.1", True), ("localhost", False)):
            upstream.requests.clear()
            spec = at(
                only("Sequence", a(f"?to={host}:{upstream.port}")), f"127.0.0.1:{upstream.port}"
            )
            await gateway.publish(graph_route(spec, (".*",)))
            answer = await call(gateway, headers={"Authorization": "Bearer x", "X-A": "1"})
            assert answer.body == b"{}"
            last = upstream.requests[-1].headers
            assert ("authorization" in last) is kept
            assert last["x-a"] == ["1"]


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".invalid", "é.invalid"])
async def test_hosts_that_cannot_be_looked_up(gateway: World, host: str) -> None:
    """The resolver refuses them in ways of its own."""
    await gateway.publish(graph_route(only("Sequence", {"serviceUrl": f"http://{host}/"})))
    answer = await call(gateway)
    cause = f'Post "http://{host}/": dial tcp: lookup {host}: no such host'
    assert (answer.status, json.loads(answer.body)) == (500, failure(cause))


async def test_broken_answers_of_steps_are_errors(gateway: World) -> None:
    """What is no HTTP, or ends too early."""

    async def broken(connection: Connection) -> None:
        request = await connection.request()
        data = {
            "/nothing": b"",
            "/noise": b"SSH-2.0-OpenSSH\r\n\r\n",
            "/short": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        }[request.target]
        if data:
            await connection.send(data)

    async with Upstream(broken) as upstream:
        where = f"127.0.0.1:{upstream.port}"
        for path, cause in (
            ("nothing", f'Post "http://{where}/nothing": EOF'),
            (
                "noise",
                f'Post "http://{where}/noise": net/http: HTTP/1.x transport connection broken: '
                "malformed HTTP response",
            ),
            ("short", "unexpected EOF"),
        ):
            await gateway.publish(graph_route(at(only("Sequence", a(path)), where)))
            answer = await call(gateway)
            assert (answer.status, json.loads(answer.body)) == (500, failure(cause))


async def test_many_graphs_requests_at_once(gateway: World) -> None:
    """Ensembles of ensembles under load: every answer is whole and its own."""
    async with Upstream(Steps()) as upstream:
        inner = node("Ensemble", a("x", name="x"), a("y", name="y"))
        spec = at(
            only(
                "Ensemble", {"nodeName": "n", "name": "a"}, {"nodeName": "n", "name": "b"}, n=inner
            ),
            f"127.0.0.1:{upstream.port}",
        )
        await gateway.publish(graph_route(spec))

        async def one(number: int) -> None:
            sent = {"id": number}
            answer = await call(gateway, json.dumps(sent).encode())
            both = {"x": sent, "y": sent}
            assert json.loads(answer.body) == {"a": both, "b": both}

        await asyncio.gather(*(one(n) for n in range(200)))


async def test_steps_by_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's certificates are trusted, and others told apart in Go's words."""
    files = certificate(tmp_path, "localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*files)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        writer.write(response(await reader.readexactly(size)))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    spec = only("Sequence", {"serviceUrl": f"https://localhost:{port}/x"})
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    async with server:
        async with world() as trusting:
            await trusting.publish(graph_route(spec))
            for _ in range(2):
                answer = await call(trusting, b'{"a":1}')
                assert (answer.status, answer.body) == (200, b'{"a":1}')
        monkeypatch.delenv("SSL_CERT_FILE")
        async with world() as other:
            await other.publish(graph_route(spec))
            cause = json.loads((await call(other)).body)["cause"]
            assert cause == (
                f'Post "https://localhost:{port}/x": tls: failed to verify certificate: x509: '
                "certificate signed by unknown authority"
            )


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Return a certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    crt, pem = folder / "crt.pem", folder / "key.pem"
    crt.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return crt, pem


async def test_a_stopping_gateway_lets_a_graph_finish() -> None:
    """Also its later steps, which are new requests inside."""
    async with world() as stopping, Upstream(Steps(delays={"x": 0.5})) as upstream:
        service = iris([upstream])
        host = "iris.default.svc.cluster.local"
        service = replace(service, hosts=(*service.hosts, host))
        step = {"serviceUrl": f"http://{host}/x"}
        await stopping.publish(service, graph_route(only("Sequence", step, step)))
        asked = asyncio.create_task(call(stopping, b'{"a":1}'))
        async with asyncio.timeout(10):
            await upstream.begun.wait()
            await stopping.process.stop(8)
        answer = await asked
        assert (answer.status, answer.body) == (200, b'{"a":1}')
        assert len(upstream.requests) == 2


async def test_the_gateways_token_is_the_clients_alone() -> None:
    """Steps inside need none, and see none."""
    async with (
        world(gateway_host="0.0.0.0", auth_token="secret") as guarded,
        Upstream(Steps()) as upstream,
    ):
        host = "iris.default.svc.cluster.local"
        service = iris([upstream])
        service = replace(service, hosts=(*service.hosts, host))
        spec = only("Sequence", {"serviceUrl": f"http://{host}/x"})
        await guarded.publish(service, graph_route(spec, (".*",)))
        assert (await call(guarded)).status == 401
        answer = await call(guarded, headers={"Authorization": "Bearer secret"})
        assert answer.status == 200
        assert "authorization" not in upstream.requests[0].headers
