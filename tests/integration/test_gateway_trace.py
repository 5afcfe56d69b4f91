"""The trace of a request through a real gateway process, and its W3C context, in every protocol."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from kserve_local.interfaces.routing import Endpoint, Route, Target
from tests.fakes.raw_upstream import (
    Answer,
    Client,
    Connection,
    Upstream,
    answering,
    ask,
    echo,
    response,
)
from tests.fakes.rpc_upstream import SERVICE, RpcUpstream
from tests.integration.gateway_world import World, endpoints, iris, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "iris.default.example.com"
INNER = "iris-predictor.default"
PATH = "/v1/models/iris:predict"
ASK = "x-kserve-local-trace"
GIVEN = f"00-{'ab' * 16}-{'cd' * 8}-01"
CONTEXT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world() as one:
        yield one


def components(transformer: Upstream, predictor: Upstream, **fields: Any) -> tuple[Route, ...]:
    """Return the routes of a service with a transformer, and of its predictor's own name."""
    entry = replace(
        iris((transformer,)), component="transformer",
        hosts=(HOST, "iris.default.svc.cluster.local"),
    )  # fmt: skip
    target = Target("default/iris-predictor-00001", 100, endpoints([predictor]))
    own = Target("default/iris-transformer-00001", 100, endpoints([transformer]))
    inner = Route(
        "default", "iris", "predictor", (INNER,), (replace(target, **fields),), names_service=False
    )
    return replace(entry, targets=(own,)), inner


class Transformer:
    """Asks the predictor by its name, with the named headers of the request."""

    def __init__(self, gateway: World, *passed_on: str) -> None:
        self.gateway = gateway
        self.passed_on = passed_on

    async def __call__(self, connection: Connection) -> None:
        while True:
            request = await connection.request()
            lines = "".join(f"{n}: {request.header(n)}\r\n" for n in self.passed_on)
            answer = await post(self.gateway, INNER, lines)
            await connection.send(response(answer.body, status=f"{answer.status} Word"))


async def post(gateway: World, host: str, lines: str = "", path: str = PATH) -> Answer:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n{lines}\r\n"
    return await ask(gateway.port, head.encode() + b"{}")


def told(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.headers[ASK])
    return found


def context(upstream: Upstream, number: int = -1) -> tuple[str, str, str]:
    match = CONTEXT.fullmatch(upstream.requests[number].header("traceparent"))
    assert match is not None
    trace_id, span, flags = match.groups()
    return trace_id, span, flags


@pytest.mark.parametrize("passed_on", ["traceparent", "x-request-id", ""])
async def test_a_hop_is_found_by_what_its_caller_passes_on(gateway: World, passed_on: str) -> None:
    names = (passed_on,) if passed_on else ()
    async with Upstream(Transformer(gateway, *names)) as transformer, Upstream(echo) as predictor:
        await gateway.publish(*components(transformer, predictor))
        assert ASK not in (await post(gateway, HOST)).headers
        answer = await post(gateway, HOST, f"{ASK}: 1\r\n")
        trace = told(answer)
        one, two = trace["hops"]
        assert (one["component"], one["revision"], one["pod"], one["status"], one["depth"]) == (
            "transformer", "iris-transformer-00001", "pod-0", 200, 0,
        )  # fmt: skip
        assert (two["component"], two["status"], two["depth"], two.get("by", "")) == (
            "predictor", 200, 1, "" if passed_on else "service",
        )  # fmt: skip
        assert 0 <= two["start"] <= two["start"] + two["ms"] <= one["ms"] <= trace["ms"]
        # Both requests of the trace are in it, and the model does not see that somebody asks.
        assert trace["traceId"] == context(transformer)[0] == context(predictor)[0]
        assert ASK not in transformer.requests[-1].headers
        assert ASK not in answer.body.decode()


async def test_two_traces_at_once_stay_apart(gateway: World) -> None:
    async with (
        Upstream(Transformer(gateway, "x-request-id")) as transformer,
        Upstream(echo) as predictor,
    ):
        await gateway.publish(*components(transformer, predictor))
        line = f"{ASK}: 1\r\n"
        answers = await asyncio.gather(*(post(gateway, HOST, line) for _ in range(10)))
        traces = [told(answer) for answer in answers]
        assert [[hop["component"] for hop in t["hops"]] for t in traces] == [
            ["transformer", "predictor"]
        ] * 10
        assert len({t["traceId"] for t in traces}) == 10
        assert not any("unassigned" in t for t in traces)


async def test_a_call_that_may_be_anybodys_is_counted(gateway: World) -> None:
    """Two requests at the transformer, which passes nothing on."""
    async with Upstream(Transformer(gateway)) as transformer:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def wait(connection: Connection) -> None:
            await connection.request()
            begun.set()
            await go_on.wait()
            await connection.send(response(b"{}"))

        async with Upstream(wait) as predictor:
            await gateway.publish(*components(transformer, predictor))
            first = asyncio.create_task(post(gateway, HOST))
            await begun.wait()
            second = asyncio.create_task(post(gateway, HOST, f"{ASK}: 1\r\n"))
            while len(predictor.requests) < 2:  # noqa: ASYNC110  # told by nothing else
                await asyncio.sleep(0.01)
            go_on.set()
            await first
            trace = told(await second)
            assert [hop["component"] for hop in trace["hops"]] == ["transformer"]
            assert trace["unassigned"] == 1


async def test_a_graph_shows_what_its_steps_services_did(gateway: World) -> None:
    async with (
        Upstream(Transformer(gateway, "x-request-id")) as transformer,
        Upstream(answering(response(b'{"error": "no rows"}', status="422 Word"))) as predictor,
        Upstream(echo) as other,
    ):
        steps = [
            {"name": "one", "serviceUrl": f"http://iris.default.svc.cluster.local{PATH}"},
            {"name": "two", "serviceUrl": f"http://127.0.0.1:{other.port}/x"},
        ]
        spec = {"nodes": {"root": {"routerType": "Sequence", "steps": steps}}}
        place = (Endpoint("graph-pod", "127.64.0.2", 8080),)
        graph = Route(
            "default", "graph", "graph", ("graph.default.example.com",),
            (Target("default/graph-00001", 100, place, graph=spec),),
        )  # fmt: skip
        await gateway.publish(*components(transformer, predictor), graph)
        trace = told(await post(gateway, "graph.default.example.com", f"{ASK}: 1\r\n", "/"))
        assert [
            (h["depth"], h["kind"], h.get("step") or h["component"], h["status"], h.get("error"))
            for h in trace["hops"]
        ] == [
            (0, "component", "graph", 200, None),
            (1, "service", "one", 422, None),
            (2, "component", "transformer", 422, "no rows"),
            (3, "component", "predictor", 422, "no rows"),
            (1, "service", "two", 200, None),
        ]  # fmt: skip
        assert trace["hops"][0]["pod"] == "graph-pod"
        assert not any("by" in hop for hop in trace["hops"])
        # The step's own span is its service's parent.
        ids = {context(u)[0] for u in (transformer, predictor, other)}
        assert ids == {trace["traceId"]}


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"state": "failed", "reason": "ModelLoadFailed: no file"}, 503, "ModelLoadFailed"),
        ({"timeout": 0.2, "state": "starting"}, 504, "activator request timeout"),
    ],
)
async def test_the_gateways_own_answers_have_a_trace(
    gateway: World, fields: dict[str, Any], status: int, error: str
) -> None:
    await gateway.publish(iris((), **fields))
    answer = await post(gateway, HOST, f"{ASK}: 1\r\n")
    (hop,) = told(answer)["hops"]
    assert (answer.status, hop["status"]) == (status, status)
    assert error in hop["error"]
    assert "pod" not in hop


async def test_what_ends_a_hop_without_an_answer_is_told(gateway: World) -> None:
    """A component that does not wait for another; an answer that breaks off."""

    async def waits(connection: Connection) -> None:
        await connection.request()
        await connection.gone()

    async def breaks(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nha")

    def failures() -> list[str]:
        return [s.failure for s in gateway.figures.stats if s.target.endswith("predictor-00001")]

    async with Upstream(echo) as other, Upstream(waits) as deaf, Upstream(breaks) as broken:
        await gateway.publish(*components(other, deaf))
        async with Client(gateway.port) as client:
            head = f"POST {PATH} HTTP/1.1\r\nHost: {INNER}\r\nContent-Length: 0\r\n\r\n"
            await client.send(head.encode())
            await deaf.begun.wait()
        left = f"POST {PATH}: the caller left after "
        await gateway.figures.until(lambda: any(f.startswith(left) for f in failures()))
        await gateway.publish(*components(other, broken))
        assert not (await post(gateway, INNER)).whole
        cut = f"POST {PATH}: the answer ended too early: EOF"
        await gateway.figures.until(lambda: cut in failures())


async def test_a_request_that_reaches_no_service_has_none(gateway: World) -> None:
    await gateway.publish(iris(()))
    answer = await post(gateway, "other.example.com", f"{ASK}: 1\r\n")
    assert answer.status == 404
    assert ASK not in answer.headers


async def test_a_trace_tells_how_long_a_hop_was_held(gateway: World) -> None:
    async with Upstream(echo) as upstream:
        await gateway.publish(iris((), state="zero"))
        gateway.figures.pokes.clear()
        asked = asyncio.create_task(post(gateway, HOST, f"{ASK}: 1\r\n"))
        await gateway.figures.until(lambda: bool(gateway.figures.pokes))
        await gateway.publish(iris([upstream]))
        (hop,) = told(await asked)["hops"]
        assert 0 < hop["held"] <= hop["ms"]


async def test_a_client_of_any_sort_reads_its_trace(gateway: World) -> None:
    """Kept connections go on as they were; HTTP/1.0 and chunked answers have it, too."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    head = f"Host: {HOST}\r\n{ASK}: 1\r\n".encode()
    async with Upstream(answering(chunked)) as upstream:
        await gateway.publish(iris([upstream]))
        async with Client(gateway.port) as client:
            for asks in (True, False, True):
                lines = head if asks else f"Host: {HOST}\r\n".encode()
                answer = await client.ask(b"GET / HTTP/1.1\r\n" + lines + b"\r\n")
                assert (answer.body, ASK in answer.headers) == (b"ok", asks)
        old = await ask(gateway.port, b"GET / HTTP/1.0\r\n" + head + b"\r\n")
        assert (old.body, len(told(old)["hops"])) == (b"ok", 1)
        async with httpx.AsyncClient(http1=False, http2=True, trust_env=False) as http:
            two = await http.post(
                f"http://127.0.0.1:{gateway.port}{PATH}", headers={"host": HOST, ASK: "1"}
            )
        assert two.content == b"ok"
        assert json.loads(two.headers[ASK])["hops"][0]["pod"] == "pod-0"


@pytest.mark.parametrize("http2", [False, True])
async def test_a_context_is_made_and_goes_on(gateway: World, http2: bool) -> None:
    """Always; with the caller's trace id and state, where it has a valid one."""
    async with (
        Upstream(echo) as upstream,
        httpx.AsyncClient(http1=not http2, http2=http2, trust_env=False) as http,
    ):
        await gateway.publish(iris([upstream]))
        state = {"tracestate": "mine=1"}
        for more in ({}, {"traceparent": GIVEN, **state}, {"traceparent": "nonsense", **state}):
            url = f"http://127.0.0.1:{gateway.port}{PATH}"
            await http.post(url, headers={"host": HOST, **more}, content=b"{}")
        contexts = [context(upstream, number) for number in (0, 1, 2)]
        assert contexts[1][0] == "ab" * 16
        assert len({span for _, span, _ in contexts} | {"cd" * 8}) == 4
        assert len({trace_id for trace_id, _, _ in contexts}) == 3
        assert [flags for _, _, flags in contexts] == ["01"] * 3
        assert [r.header("tracestate") for r in upstream.requests] == ["", "mine=1", ""]
        assert all(r.header("x-request-id") == "" for r in upstream.requests)


class RpcTransformer(RpcUpstream):
    """Asks the predictor over gRPC, as the SDK does: with the request's id."""

    def __init__(self, gateway: World) -> None:
        super().__init__()
        self.gateway = gateway

    async def _echo(self, request: bytes, context: Any) -> bytes:
        found = dict(context.invocation_metadata())
        options = [("grpc.default_authority", INNER)]
        at = f"127.0.0.1:{self.gateway.port}"
        async with grpc.aio.insecure_channel(at, options=options) as channel:
            method = channel.unary_unary(f"/{SERVICE}/{request.decode()}")
            try:
                answer: bytes = await method(
                    b"x", metadata=(("x-request-id", str(found["x-request-id"])),), timeout=20
                )
            except grpc.aio.AioRpcError as error:
                await context.abort(grpc.StatusCode.INTERNAL, f"predictor: {error.details()}")
        return answer


@pytest.mark.parametrize(
    ("method", "code", "error"), [("Echo", "OK", None), ("Fail", "INVALID_ARGUMENT", "no x: ä")]
)
async def test_a_grpc_call_has_its_trace_in_the_trailers(
    gateway: World, method: str, code: str, error: str | None
) -> None:
    async with RpcTransformer(gateway) as transformer, RpcUpstream() as predictor:
        entry, inner = components(Upstream(echo), Upstream(echo))

        def at(route: Route, upstream: RpcUpstream) -> Route:
            place = (Endpoint(f"{route.component}-{upstream.port}", "127.0.0.1", 1, upstream.port),)
            return replace(route, targets=(replace(route.targets[0], endpoints=place),))

        await gateway.publish(at(entry, transformer), at(inner, predictor))
        options = [("grpc.default_authority", HOST), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{gateway.port}", options=options
        ) as channel:
            call = channel.unary_unary(f"/{SERVICE}/Echo")(
                method.encode(), metadata=((ASK, "1"), ("traceparent", GIVEN)), timeout=20
            )
            outer = await call.code()
            trailers = dict(await call.trailing_metadata())
            trace = json.loads(trailers[ASK])
            one, two = trace["hops"]
            assert trace["traceId"] == "ab" * 16
            assert (one["status"], one["pod"]) == (outer.name, f"transformer-{transformer.port}")
            assert (two["status"], two["pod"], two["depth"], two.get("error")) == (
                code, f"predictor-{predictor.port}", 1, error,
            )  # fmt: skip
            seen = await channel.unary_unary(f"/{SERVICE}/Metadata")(
                b"", metadata=(("tracestate", "mine=1"), ("traceparent", GIVEN)), timeout=20
            )
    lines = dict(line.split("=", 1) for line in seen.decode().splitlines())
    assert lines["traceparent"][:36] == GIVEN[:36]
    assert lines["traceparent"] != GIVEN
    assert lines["tracestate"] == "mine=1"
    assert ASK not in lines


async def test_a_grpc_answer_of_the_gateway_has_its_trace(gateway: World) -> None:
    await gateway.publish(iris((), state="failed", reason="RevisionFailed: it broke"))
    options = [("grpc.default_authority", HOST), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options=options) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Echo")(b"", metadata=((ASK, "1"),), timeout=20)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        (hop,) = json.loads(dict(await call.trailing_metadata())[ASK])["hops"]
        assert (hop["status"], hop["error"]) == ("UNAVAILABLE", "RevisionFailed: it broke")
