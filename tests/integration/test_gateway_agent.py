"""Logger and batcher of a real gateway: what a sink and a model get, and what clients see.

Recipes and expectations: traffic.md section 6, and section 8 where it concerns the agent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from kserve_local.interfaces.routing import Route
from tests.fakes.raw_upstream import (
    Answer,
    Client,
    Connection,
    Handler,
    Request,
    Upstream,
    answering,
    ask,
    echo,
    response,
)
from tests.integration.gateway_world import HOST, World, iris, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREDICT = b"/v1/models/iris:predict"
MEBIBYTE = 1 << 20
REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[World]:
    """One gateway for the module; each test publishes its own table."""
    async with world() as one:
        yield one


def post(body: bytes, path: bytes = PREDICT, extra: bytes = b"") -> bytes:
    return (
        b"POST %b HTTP/1.1\r\n%bContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
        % (
            path,
            HOST,
            extra,
            len(body),
            body,
        )
    )


def with_agent(upstream: Upstream, *args: str) -> Route:
    """Return the route of a service whose Pod has an agent with these arguments."""
    route = iris([upstream])
    (target,) = route.targets
    (endpoint,) = target.endpoints
    return replace(route, targets=(replace(target, endpoints=(replace(endpoint, agent=args),)),))


def logging(url: str, *more: str, mode: str = "all") -> list[str]:
    return [
        *("--log-url", url, "--source-uri", "", "--log-mode", mode),
        *("--inference-service", "iris", "--namespace", "default", "--endpoint", ""),
        *("--component", "predictor", *more),
    ]


def batching(size: int, latency_ms: int) -> list[str]:
    return ["--enable-batcher", "--max-batchsize", str(size), "--max-latency", str(latency_ms)]


def url_of(upstream: Upstream) -> str:
    return f"http://{upstream.address}:{upstream.port}"


async def until(upstream: Upstream, count: int) -> list[Request]:
    """Return what has come once there are `count` requests."""
    async with asyncio.timeout(20):
        while len(upstream.requests) < count:  # noqa: ASYNC110  # a list tells nobody
            await asyncio.sleep(0.01)
    return upstream.requests


def by_type(events: list[Request]) -> dict[str, Request]:
    return {event.header("ce-type"): event for event in events}


SINK = answering(response(b""))


def model(delay: float = 0.0) -> Handler:
    """Return a V1 model that says for each instance what it was."""

    async def handler(connection: Connection) -> None:
        upstream = connection.upstream
        while True:
            request = await connection.request()
            upstream.running += 1
            upstream.most = max(upstream.most, upstream.running)
            await asyncio.sleep(delay)
            upstream.running -= 1
            instances = json.loads(request.body)["instances"]
            body = json.dumps({"predictions": instances, "modelVersion": "1"}).encode()
            await connection.send(response(body, extra="Content-Type: application/json\r\n"))

    return handler


# Logger


async def test_both_events_of_a_request(gateway: World) -> None:
    """One id, the bodies as they are, the request's content type for both; nothing is added to what
    the model or the client gets."""
    answer = response(b'{"predictions": [1]}', extra="Content-Type: application/json\r\n")
    async with Upstream(answering(answer)) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(f"{url_of(sink)}/in?x=1")))
        before = time.time()
        found = await ask(gateway.port, post(b'{"instances": [1]}', extra=b"X-Request-Id: 7\r\n"))
        assert (found.status, found.body) == (200, b'{"predictions": [1]}')
        assert "ce-id" not in found.headers
        (seen,) = upstream.requests
        assert seen.body == b'{"instances": [1]}'
        assert "ce-id" not in seen.headers
        events = by_type(await until(sink, 2))
        request, reply = events[REQUEST], events[RESPONSE]
        assert request.body == b'{"instances": [1]}'
        assert reply.body == b'{"predictions": [1]}'
        assert request.header("ce-id") == reply.header("ce-id")
        assert len(request.header("ce-id")) == 36
        for event in (request, reply):
            assert (event.method, event.target) == ("POST", "/in?x=1")
            assert event.header("host") == f"{sink.address}:{sink.port}"
            assert event.header("content-type") == "application/json"
            assert event.header("ce-specversion") == "1.0"
            assert event.header("ce-source") == "http://localhost:9081/"
            assert event.header("ce-inferenceservicename") == "iris"
            assert event.header("ce-namespace") == "default"
            assert event.header("ce-component") == "predictor"
            assert event.headers["ce-endpoint"] == [""]
            assert event.header("ce-metadata") == "{}"
            assert "ce-annotations" not in event.headers
            moment = datetime.fromisoformat(event.header("ce-time")).timestamp()
            assert before - 1 < moment < time.time() + 1


@pytest.mark.parametrize(
    ("mode", "types"),
    [("all", {REQUEST, RESPONSE}), ("request", {REQUEST}), ("response", {RESPONSE})],
)
async def test_modes(gateway: World, mode: str, types: set[str]) -> None:
    async with Upstream(echo) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode=mode)))
        await ask(gateway.port, post(b"x", extra=b"Ce-Id: mine\r\n"))
        events = await until(sink, len(types))
        await asyncio.sleep(0.1)
        assert {e.header("ce-type") for e in events} == types
        assert {e.header("ce-id") for e in events} == {"mine"}


@pytest.mark.parametrize("status", ["201 Created", "404 Not Found", "500 Internal Server Error"])
async def test_only_an_answer_of_200_is_logged(gateway: World, status: str) -> None:
    """The request is logged whatever comes of it."""
    answer = answering(response(b"no", status=status))
    async with Upstream(answer) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        found = await ask(gateway.port, post(b"x"))
        assert found.status == int(status[:3])
        await until(sink, 1)
        await asyncio.sleep(0.2)
        assert [e.header("ce-type") for e in sink.requests] == [REQUEST]


async def test_headers_and_annotations_become_metadata(gateway: World) -> None:
    """Names are compared as Go writes them: `x-lower` never matches."""
    async with Upstream(echo) as upstream, Upstream(SINK) as sink:
        args = ["--metadata-headers", "X-Request-Id,x-lower", "--metadata-annotations", "team=ml"]
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), *args, mode="request")))
        extra = b"x-request-id: a\r\nX-REQUEST-ID: b\r\nX-Lower: c\r\n"
        await ask(gateway.port, post(b"x", extra=extra))
        (event,) = await until(sink, 1)
        assert event.header("ce-metadata") == '{"X-Request-Id":["a","b"]}'
        assert event.header("ce-annotations") == '{"team":"ml"}'


async def test_every_path_is_logged_but_no_probe(gateway: World) -> None:
    async with Upstream(echo) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode="request")))
        probe = b"GET /v1/models/iris HTTP/1.1\r\n%bUser-Agent: kube-probe/1.31\r\n\r\n" % HOST
        assert (await ask(gateway.port, probe)).status == 200
        await ask(gateway.port, b"GET /v2/health/ready HTTP/1.1\r\n%b\r\n" % HOST)
        events = await until(sink, 1)
        await asyncio.sleep(0.1)
        assert [e.body for e in events] == [b""]
        assert len(upstream.requests) == 2


async def test_a_sink_that_says_no_is_asked_once(gateway: World) -> None:
    """No second try, and the client never hears of it; the gateway's log does."""
    busy = answering(response(b"", status="503 Busy"))
    async with Upstream(echo) as upstream, Upstream(busy) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode="request")))
        assert (await ask(gateway.port, post(b"x"))).status == 200
        await until(sink, 1)
        await asyncio.sleep(0.3)
        assert len(sink.requests) == 1
        assert f"{url_of(sink)}: status 503" in gateway.log()


async def test_a_sink_that_hangs_slows_nobody_down(gateway: World) -> None:
    """Events beyond what is kept are dropped, and the log says so."""

    async def hang(connection: Connection) -> None:
        await connection.gone()

    async with Upstream(answering(response(b"ok"))) as upstream, Upstream(hang) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode="request")))
        started = time.perf_counter()
        async with Client(gateway.port) as client:
            for _ in range(1200):
                assert (await client.ask(post(b"x"))).body == b"ok"
        assert time.perf_counter() - started < 10
        assert f"the sink {url_of(sink)} does not keep up" in gateway.log()


async def test_a_streamed_answer_passes_at_once_and_is_logged_whole(gateway: World) -> None:
    go_on = asyncio.Event()

    async def stream(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        await connection.send(b"3\r\ntwo\r\n0\r\n\r\n")
        await connection.gone()

    async with Upstream(stream) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode="response")))
        async with Client(gateway.port) as client:
            await client.send(post(b"x", path=b"/openai/v1/completions"))
            async with asyncio.timeout(5):
                await client.head()
                assert await client.reader.readexactly(8) == b"3\r\none\r\n"
            go_on.set()
            assert await client.reader.readuntil(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        (event,) = await until(sink, 1)
        assert event.body == b"onetwo"


async def test_chunked_requests_are_logged_decoded(gateway: World) -> None:
    async with Upstream(echo) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink), mode="request")))
        head = b"POST /x HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % HOST
        async with Client(gateway.port) as client:
            await client.send(head + b"2\r\nhi\r\n")
            await asyncio.sleep(0.05)
            await client.send(b"1\r\n!\r\n0\r\n\r\n")
            assert (await client.answer()).status == 200
        (event,) = await until(sink, 1)
        assert event.body == upstream.requests[0].body == b"hi!"


async def test_a_large_body_is_kept_whole_and_passed_on(gateway: World) -> None:
    body = bytes(range(256)) * (8 << 12)
    async with Upstream(echo) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        found = await ask(gateway.port, post(body))
        assert found.body.endswith(body)
        events = by_type(await until(sink, 2))
        assert events[REQUEST].body == body
        assert events[RESPONSE].body == found.body


async def test_http2_is_logged_like_http1(gateway: World) -> None:
    async with Upstream(echo) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        async with httpx.AsyncClient(http1=False, http2=True) as client:
            found = await client.post(
                f"http://127.0.0.1:{gateway.port}/serving/default/iris/v1/models/iris:predict",
                json={"instances": [1]},
            )
        assert (found.status_code, found.http_version) == (200, "HTTP/2")
        events = by_type(await until(sink, 2))
        assert json.loads(events[REQUEST].body) == {"instances": [1]}
        assert events[RESPONSE].body == found.content


async def test_no_websocket_passes_a_logger(gateway: World) -> None:
    """Its writer cannot be taken over: Go's words, from the agent on a cluster."""

    async def switch(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        await connection.gone()

    upgrade = b"GET /ws HTTP/1.1\r\n%bConnection: Upgrade\r\nUpgrade: echo\r\n\r\n" % HOST
    async with Upstream(switch) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        found = await ask(gateway.port, upgrade)
        assert found.status == 502
        assert found.body.startswith(b"can't switch protocols using non-Hijacker ResponseWriter")
    async with Upstream(switch) as upstream:
        await gateway.publish(with_agent(upstream, *batching(4, 100)))
        async with Client(gateway.port) as client:
            await client.send(upgrade)
            assert b" 101 " in await client.head()


async def test_a_replica_that_closed_its_resting_connection_is_dialed_again(
    gateway: World,
) -> None:
    async def once(connection: Connection) -> None:
        await connection.request()
        await connection.send(response(b"ok"))

    async with Upstream(once) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        async with Client(gateway.port) as client:
            for _ in range(20):
                assert (await client.ask(post(b"x"))).body == b"ok"
                await asyncio.sleep(0.02)


async def test_a_replica_need_not_wait_for_a_slow_upload(gateway: World) -> None:
    """Nothing of a logged request was sent yet, so an ended connection is no answer to it."""
    left = asyncio.Event()

    async def impatient(connection: Connection) -> None:
        if not left.is_set():
            left.set()
            return
        await connection.request()
        await connection.send(response(b"ok"))

    async with Upstream(impatient) as upstream, Upstream(SINK) as sink:
        await gateway.publish(with_agent(upstream, *logging(url_of(sink))))
        async with Client(gateway.port) as client:
            whole = post(b"x" * 10)
            await client.send(whole[:-5])
            await left.wait()
            # The gateway reads the end of that connection before this part of the body, or after.
            for byte in whole[-5:]:
                await asyncio.sleep(0.02)
                await client.send(bytes((byte,)))
            assert (await client.answer()).body == b"ok"


# Where events go


def kept(gateway: World, id: str) -> list[dict[str, Any]]:
    """Return the events of this id in the built-in sink."""
    path = gateway.settings.state / "payloads" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["id"] == id]


@pytest.mark.parametrize(
    "url",
    [
        "http://message-dumper.default",
        "http://default-broker",
        "http://broker-ingress.knative-eventing.svc.cluster.local/default/default",
        "https://sink.other.svc",
        "http://no-such-host.invalid/x",
    ],
)
async def test_what_only_a_cluster_knows_is_kept_here(gateway: World, url: str) -> None:
    async with Upstream(echo) as upstream:
        await gateway.publish(with_agent(upstream, *logging(url, mode="request")))
        await ask(gateway.port, post(b'{"instances": [1]}', extra=b"Ce-Id: %b\r\n" % url.encode()))
        async with asyncio.timeout(20):
            while not (found := kept(gateway, url)):  # noqa: ASYNC110  # a file tells nobody
                await asyncio.sleep(0.01)
        (event,) = found
        assert event["target"] == url
        assert event["type"] == REQUEST
        assert event["data"] == {"instances": [1]}
        assert event["inferenceservicename"] == "iris"


async def test_a_service_of_ours_is_a_sink_like_any_other(gateway: World) -> None:
    """An event for another InferenceService goes through the gateway, held and counted."""
    async with Upstream(echo) as upstream, Upstream(SINK) as drift:
        sink = replace(
            iris([drift], name="drift"), hosts=("drift.default", "drift.default.svc.cluster.local")
        )
        url = "http://drift.default/v1/models/drift:predict"
        await gateway.publish(with_agent(upstream, *logging(url, mode="request")), sink)
        await ask(gateway.port, post(b"x"))
        (event,) = await until(drift, 1)
        assert event.header("ce-type") == REQUEST
        assert event.target == "/v1/models/drift:predict"
        assert event.header("host") == "drift.default"


STORED = [
    *("--log-url", "s3://bucket/logs", "--log-mode", "all", "--inference-service", "iris"),
    *("--namespace", "default", "--component", "predictor", "--log-store-path", "daily"),
]


async def test_records_for_a_bucket_are_handed_to_the_supervisor(gateway: World) -> None:
    """One object a record, unless there are batches."""
    async with Upstream(echo) as upstream:
        await gateway.publish(with_agent(upstream, *STORED))
        await ask(gateway.port, post(b"x", extra=b"Ce-Id: one\r\n"))
        async with asyncio.timeout(20):
            found = [await gateway.process.objects.get() for _ in range(2)]
    assert [o.uri for o in found] == [
        f"s3://bucket/logs/default/iris/predictor/daily/one-{kind}.json"
        for kind in ("request", "response")
    ]
    assert {o.pod for o in found} == {"pod-0"}
    assert json.loads(found[0].data)["id"] == "one"


async def test_batches_of_records(gateway: World) -> None:
    """Requests and responses share one; it is flushed when full, or when its time is over."""
    args = ["--log-store-format", "csv", "--log-batch-size", "3", "--log-batch-interval", "300ms"]
    async with Upstream(echo) as upstream:
        await gateway.publish(with_agent(upstream, *STORED, *args))
        started = time.perf_counter()
        for number in (b"one", b"two"):
            await ask(gateway.port, post(b"x", extra=b"Ce-Id: %b\r\n" % number))
        async with asyncio.timeout(20):
            first = await gateway.process.objects.get()
            second = await gateway.process.objects.get()
    assert time.perf_counter() - started >= 0.25
    assert first.uri.endswith("/one-request.csv")
    assert len(first.data.splitlines()) == 4
    assert second.uri.endswith("/two-response.csv")
    assert len(second.data.splitlines()) == 2


async def test_a_marshaller_of_the_users(gateway: World) -> None:
    async def marshal(connection: Connection) -> None:
        while True:
            request = await connection.request()
            count = len(json.loads(request.body))
            body = f"{count} records".encode()
            await connection.send(response(body, extra="X-Log-Marshal-Extension: txt\r\n"))

    async with Upstream(echo) as upstream, Upstream(marshal) as service:
        url = f"http://localhost:{service.port}/marshal"
        await gateway.publish(with_agent(upstream, *STORED, "--log-marshaller-url", url))
        await ask(gateway.port, post(b"x"))
        async with asyncio.timeout(20):
            found = await gateway.process.objects.get()
            await gateway.process.objects.get()
        assert found.uri.endswith("-request.txt")
        assert found.data == b"1 records"
        assert service.requests[0].target == "/marshal"


def memory_kib(pid: int) -> int:
    """Return the most memory the process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


async def test_what_an_agent_only_passes_on_goes_at_the_pace_of_the_slowest() -> None:
    """64 MiB to a replica that reads late, and back to a client that reads late: never kept."""
    size = 64 * MEBIBYTE
    late, stuck = asyncio.Event(), asyncio.Event()

    async def handler(connection: Connection) -> None:
        await connection.head()
        await late.wait()
        await connection.reader.readexactly(size)
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            connection.writer.write(b"y" * MEBIBYTE)
            try:
                async with asyncio.timeout(1.0):
                    await connection.writer.drain()
            except TimeoutError:
                stuck.set()
                await connection.writer.drain()

    async with world() as gateway, Upstream(handler) as upstream:
        await gateway.publish(with_agent(upstream, *batching(4, 10)))
        async with Client(gateway.port) as client:
            before = memory_kib(gateway.process.pid)
            head = b"POST /other HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (HOST, size)
            client.writer.write(head + b"x" * size)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await client.writer.drain()
            late.set()
            async with asyncio.timeout(30):
                await stuck.wait()
            answer = await client.answer()
            assert answer.body == b"y" * size
            assert memory_kib(gateway.process.pid) - before < 16 * 1024


# Batcher


async def many(gateway: World, bodies: list[bytes], path: bytes = PREDICT) -> list[Answer]:
    return await asyncio.gather(*(ask(gateway.port, post(b, path=path)) for b in bodies))


def instances(*values: object) -> bytes:
    return json.dumps({"instances": list(values), "signature_name": "s"}).encode()


async def test_concurrent_requests_become_one(gateway: World) -> None:
    """Each client gets its own slice; the model sees instances and nothing else of theirs."""
    async with Upstream(model()) as upstream:
        await gateway.publish(with_agent(upstream, *batching(4, 5000)))
        first, second, third = await many(
            gateway, [instances([1, 2]), instances([3, 4], [5, 6]), instances({"b": 1, "a": 2})]
        )
        (seen,) = upstream.requests
        assert (seen.method, seen.target) == ("POST", "/v1/models/iris:predict")
        assert seen.header("host") == "example.com"
        assert set(seen.headers) == {"host", "x-forwarded-for", "content-length"}
        assert seen.body.startswith(b'{"instances":[')
        assert b"signature_name" not in seen.body
        found = [json.loads(a.body) for a in (first, second, third)]
        assert [f["predictions"] for f in found] == [[[1, 2]], [[3, 4], [5, 6]], [{"a": 2, "b": 1}]]
        assert len({f["batchId"] for f in found}) == 1
        assert [f["message"] for f in found] == [""] * 3
        assert first.status == 200
        assert first.headers["content-type"] == "text/plain; charset=utf-8"
        assert list(found[0]) == ["message", "batchId", "predictions"]


async def test_large_bodies_are_batched_without_holding_others_up(gateway: World) -> None:
    """They are read and written by a thread."""
    rows = [[float(n), 0.5] for n in range(40_000)]
    async with Upstream(model()) as upstream:
        await gateway.publish(with_agent(upstream, *batching(2, 5000)))
        large = asyncio.create_task(ask(gateway.port, post(instances(*rows))))
        answered = 0
        while not large.done():
            await ask(gateway.port, b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered += 1
            await asyncio.sleep(0.01)
        assert json.loads((await large).body)["predictions"] == rows
        # Held up, the first would be answered when the batch is: one, and perhaps another.
        assert answered > 3
        bad = await ask(gateway.port, post(b"[" + b"1," * 40_000 + b"1]"))
        assert (bad.status, bad.body) == (400, b"can't Unmarshal body\n")


async def test_a_batch_waits_for_its_latency(gateway: World) -> None:
    async with Upstream(model()) as upstream:
        await gateway.publish(with_agent(upstream, *batching(32, 300)))
        started = time.perf_counter()
        (found,) = await many(gateway, [instances(1)])
        took = time.perf_counter() - started
        assert found.status == 200
        assert took > 0.29


async def test_a_request_is_never_split(gateway: World) -> None:
    """5 wait and 40 come: one batch of 45, although 32 would do."""
    async with Upstream(model()) as upstream:
        await gateway.publish(with_agent(upstream, *batching(32, 3000)))
        small = asyncio.create_task(ask(gateway.port, post(instances(*range(5)))))
        await asyncio.sleep(0.1)
        await ask(gateway.port, post(instances(*range(40))))
        await small
        assert len(json.loads(upstream.requests[0].body)["instances"]) == 45


async def test_one_batch_at_a_time(gateway: World) -> None:
    """While one is predicted nothing else is collected: the model sees concurrency 1."""
    async with Upstream(model(delay=0.15)) as upstream:
        await gateway.publish(with_agent(upstream, *batching(1, 5000)))
        found = await many(gateway, [instances(n) for n in range(5)])
        assert [json.loads(a.body)["predictions"] for a in found] == [[n] for n in range(5)]
        assert len(upstream.requests) == 5
        assert upstream.most == 1


async def test_other_paths_pass_untouched(gateway: World) -> None:
    async with Upstream(echo) as upstream:
        await gateway.publish(with_agent(upstream, *batching(4, 5000)))
        for path in (b"/v2/models/iris/infer", b"/v1/models/iris:explain", b"/v1/models/iris"):
            found = await ask(gateway.port, post(b"raw", path=path, extra=b"X-Mine: 1\r\n"))
            assert found.body.endswith(b"raw")
            assert b"X-Mine: 1" in found.body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"nonsense", b"can't Unmarshal body\n"),
        (b'{"inputs": [1]}', b"no instances in the request\n"),
    ],
)
async def test_what_cannot_be_batched_is_refused(gateway: World, body: bytes, text: bytes) -> None:
    async with Upstream(model()) as upstream:
        await gateway.publish(with_agent(upstream, *batching(4, 100)))
        async with Client(gateway.port) as client:
            found = await client.ask(post(body))
            assert (found.status, found.body) == (400, text)
            assert found.headers["content-type"] == "text/plain; charset=utf-8"
            assert found.headers["x-content-type-options"] == "nosniff"
            # The connection serves on.
            assert (await client.ask(post(instances(1)))).status == 200
        assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("raw", "message", "named"),
    [
        (response(b"boom", status="500 Internal Server Error"), "boom", False),
        (response(b"oops"), "invalid character 'o' looking for beginning of value", True),
        (
            response(b'{"predictions": []}'),
            "size of prediction is not equal to the size of instances",
            True,
        ),
    ],
)
async def test_errors_of_the_model_are_answered_200(
    gateway: World, raw: bytes, message: str, named: bool
) -> None:
    async with Upstream(answering(raw)) as upstream:
        await gateway.publish(with_agent(upstream, *batching(2, 5000)))
        for found in await many(gateway, [instances(1), instances(2)]):
            assert found.status == 200
            body = json.loads(found.body)
            assert body["message"] == message
            assert body["predictions"] is None
            assert bool(body["batchId"]) is named
    # The status tells nobody, so the log does.
    assert "a batch of 2 at /v1/models/iris:predict was answered with" in gateway.log()


async def test_a_model_that_hangs_up_is_an_error_in_200(gateway: World) -> None:
    async def leave(connection: Connection) -> None:
        await connection.request()

    async with Upstream(leave) as upstream:
        await gateway.publish(with_agent(upstream, *batching(1, 5000)))
        (found,) = await many(gateway, [instances(1)])
        assert found.status == 200
        assert json.loads(found.body) == {"message": "EOF\n", "batchId": "", "predictions": None}


async def test_instances_of_a_client_that_left_go_on(gateway: World) -> None:
    async with Upstream(model()) as upstream:
        await gateway.publish(with_agent(upstream, *batching(2, 5000)))
        async with Client(gateway.port) as client:
            await client.send(post(instances("gone")))
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
        (found,) = await many(gateway, [instances("stayed")])
        assert json.loads(found.body)["predictions"] == ["stayed"]
        assert json.loads(upstream.requests[0].body)["instances"] == ["gone", "stayed"]


async def test_a_replica_that_rests_longer_than_it_keeps_connections(gateway: World) -> None:
    """The connection that was opened for the request may close while its batch waits."""

    async def impatient(connection: Connection) -> None:
        async with asyncio.timeout(0.1):
            request = await connection.request()
        body = {"predictions": json.loads(request.body)["instances"]}
        await connection.send(response(json.dumps(body).encode()))

    async with Upstream(impatient) as upstream:
        await gateway.publish(with_agent(upstream, *batching(32, 400)))
        async with Client(gateway.port) as client:
            for _ in range(2):
                found = await client.ask(post(instances(1)))
                assert json.loads(found.body)["predictions"] == [1]


async def test_behaviour_23(gateway: World) -> None:
    """One 200 and one 500 with mode all: two request events, one response event."""

    async def by_path(connection: Connection) -> None:
        while True:
            request = await connection.request()
            status = "500 Internal Server Error" if request.body == b"bad" else "200 OK"
            await connection.send(response(b"{}", status=status))

    async with Upstream(by_path) as upstream, Upstream(SINK) as sink:
        args = logging(url_of(sink), "--metadata-headers", "x-request-id")
        await gateway.publish(with_agent(upstream, *args))
        for id, body in ((b"good", b"good"), (b"bad", b"bad")):
            extra = b"Ce-Id: %b\r\nX-Request-Id: r\r\n" % id
            await ask(gateway.port, post(body, extra=extra))
        await until(sink, 3)
        await asyncio.sleep(0.2)
        seen = sorted((e.header("ce-id"), e.header("ce-type")) for e in sink.requests)
        assert seen == [("bad", REQUEST), ("good", REQUEST), ("good", RESPONSE)]
        assert {e.header("ce-metadata") for e in sink.requests} == {"{}"}


async def test_behaviour_24(gateway: World) -> None:
    """Two requests of two instances, maxBatchSize 4: one call; a 500 of the model is a 200."""
    async with Upstream(model()) as upstream:
        await gateway.publish(with_agent(upstream, *batching(4, 5000)))
        found = await many(gateway, [instances(1, 2), instances(3, 4)])
        assert [len(json.loads(r.body)["instances"]) for r in upstream.requests] == [4]
        assert len({json.loads(a.body)["batchId"] for a in found}) == 1
        assert {a.headers["content-type"] for a in found} == {"text/plain; charset=utf-8"}
    async with Upstream(answering(response(b"no", status="500 Oops"))) as upstream:
        await gateway.publish(with_agent(upstream, *batching(4, 5000)))
        for answer in await many(gateway, [instances(1, 2), instances(3, 4)]):
            assert answer.status == 200
            assert json.loads(answer.body) == {"message": "no", "batchId": "", "predictions": None}


# Together


async def test_batched_answers_are_never_logged(gateway: World) -> None:
    """The batcher writes no status, and the logger waits for one; requests are logged singly, and
    what is not batched is logged both ways."""
    async with Upstream(model()) as upstream, Upstream(SINK) as sink:
        args = [*batching(2, 5000), *logging(url_of(sink))]
        await gateway.publish(with_agent(upstream, *args))
        await many(gateway, [instances(1), instances(2)])
        assert len(upstream.requests) == 1
        await ask(gateway.port, post(instances(3), path=b"/v1/models/iris:explain"))
        events = await until(sink, 4)
        await asyncio.sleep(0.2)
        kinds = [e.header("ce-type") for e in events]
        assert sorted(kinds) == sorted([REQUEST] * 3 + [RESPONSE])
        assert by_type(events)[RESPONSE].body.startswith(b'{"predictions"')


async def test_limits_count_every_client_of_a_batch(gateway: World) -> None:
    """queue-proxy stands before the agent: with containerConcurrency 1 no batch has two clients."""
    async with Upstream(model()) as upstream:
        route = with_agent(upstream, *batching(2, 200))
        target = replace(route.targets[0], container_concurrency=1)
        await gateway.publish(replace(route, targets=(target,)))
        await many(gateway, [instances(1), instances(2)])
        assert [len(json.loads(r.body)["instances"]) for r in upstream.requests] == [1, 1]
