"""What a real gateway keeps of calls, over each protocol, and that it stays within its bounds."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from kserve_local.errors import ServiceUnavailable
from kserve_local.interfaces.recorded import REDACTED, REPLAY_HEADER, REPLAY_ID, REPLAY_TRACE
from kserve_local.interfaces.routing import Endpoint, Route, Target
from kserve_local.settings import RequestsConfig
from kserve_local.supervisor.gateway_process import GatewayProcess
from tests.fakes.raw_upstream import Client, Connection, Upstream, answering, ask, echo, response
from tests.integration.gateway_world import HOST, Figures, World, iris, world

V1 = "/v1/models/iris:predict"
LARGE = 300 * 1024


def post(body: bytes, path: str = V1, extra: bytes = b"") -> bytes:
    """Return a call with a length."""
    length = b"Content-Length: %d\r\n" % len(body)
    kind = b"Content-Type: application/json\r\n"
    head = b"POST %b HTTP/1.1\r\n%b%b%b%b\r\n" % (path.encode(), HOST, kind, extra, length)
    return head + body


async def kept(own: World, count: int = 1, **wanted: object) -> list[dict[str, Any]]:
    """Return what the gateway tells, once it is `count` calls: one is kept when it has ended."""
    async with asyncio.timeout(20):
        while True:
            found = await own.process.requests(bodies=True, **wanted)
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


def body_of(call: dict[str, Any], key: str = "body") -> bytes | None:
    return None if call[key] is None else base64.b64decode(call[key])


async def test_a_call_is_kept_with_both_bodies() -> None:
    async with Upstream(answering(response(b'{"predictions": [1]}'))) as upstream, world() as own:
        await own.serve(upstream)
        extra = b"X-Request-Id: r-1\r\nAccept: */*\r\n"
        await ask(own.port, post(b'{"instances": [[1, 2]]}', extra=extra))
        by_path = post(b'{"instances": [[3, 4]]}', f"/serving/default/iris{V1}?a=1")
        await ask(own.port, by_path.replace(HOST, b"Host: localhost\r\n"))
        first, second = await kept(own, 2)
    assert first["id"] == "r-1"
    assert (first["method"], first["path"], first["status"]) == ("POST", V1, 200)
    assert (first["service"], first["component"], first["inner"]) == ("iris", "predictor", False)
    assert first["revision"] == "iris-predictor-00001"
    assert body_of(first) == b'{"instances": [[1, 2]]}'
    assert body_of(first, "answer") == b'{"predictions": [1]}'
    assert first["bytes"] == len(b'{"predictions": [1]}')
    assert first["ms"] > 0
    assert ["Accept", "*/*"] in first["headers"]
    named = {name.lower() for name, _ in first["headers"]}
    assert not named & {"host", "content-length", "traceparent", "x-forwarded-for"}
    # The path is the model server's, however the gateway was addressed.
    assert second["path"] == f"{V1}?a=1"
    assert second["id"] != first["id"]
    assert second["unreplayable"] == ""


async def test_only_calls_of_models_are_kept() -> None:
    paths = (
        "/v2/models/iris/infer",
        "/v2/models/iris/versions/2/infer",
        "/v1/models/iris:explain",
        "/openai/v1/chat/completions",
        "/v1/embeddings?x=1",
    )
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        await ask(own.port, b"GET /v1/models/iris HTTP/1.1\r\n" + HOST + b"\r\n")
        await ask(own.port, post(b"{}", "/v2/repository/models/iris/load"))
        await ask(own.port, post(b"{}", "/v2/health/ready"))
        for path in paths:
            await ask(own.port, post(b"{}", path))
        assert tuple(c["path"] for c in await kept(own, len(paths))) == paths


async def test_bodies_in_pieces_are_kept_whole() -> None:
    """Chunked, in many writes, larger than what travels with its head; the answer as well."""
    body = json.dumps({"instances": ["x" * 1000] * 60}).encode()
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        async with Client(own.port) as client:
            await client.send(
                b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (V1.encode(), HOST)
            )
            for at in range(0, len(body), 7000):
                piece = body[at : at + 7000]
                await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await client.send(b"0\r\n\r\n")
            assert (await client.answer()).status == 200
            head, rest = post(body)[:300], post(body)[300:]
            await client.send(head)
            await asyncio.sleep(0)
            await client.send(rest)
            assert (await client.answer()).status == 200
        chunked, plain = await kept(own, 2)
    assert body_of(chunked) == body == body_of(plain)
    answer = body_of(plain, "answer")
    assert answer is not None
    assert answer.endswith(body)
    assert plain["bytes"] == len(answer)


async def test_calls_over_http2_are_kept_alike() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 1000

    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        async with httpx.AsyncClient(
            http1=False, http2=True, base_url=f"http://127.0.0.1:{own.port}", trust_env=False,
            headers={"host": "iris.default.example.com"},
        ) as http:  # fmt: skip
            await http.post(V1, content=b'{"a": 1}')
            await http.post(V1, content=parts())
        small, large = await kept(own, 2)
    assert (small["protocol"], body_of(small)) == ("HTTP/2", b'{"a": 1}')
    assert body_of(large) == b"x" * 40_000


async def test_what_is_too_large_is_kept_without_its_content() -> None:
    async def handler(connection: Connection) -> None:
        while True:
            request = await connection.request()
            size = int(request.header("x-size") or 2)
            await connection.send(response(b"y" * size))

    async with Upstream(handler) as upstream, world() as own:
        await own.serve(upstream)
        await ask(own.port, post(b"x" * LARGE))
        await ask(own.port, post(b"{}", extra=b"X-Size: %d\r\n" % LARGE))
        request, answer = await kept(own, 2)
    assert (request["body"], request["requestBytes"]) == (None, LARGE)
    assert request["unreplayable"] == "its body is too large: more than 256 KiB"
    assert (answer["answer"], answer["bytes"]) == (None, LARGE)
    assert answer["answerMissing"] == "too large: more than 256 KiB"
    assert answer["unreplayable"] == ""


async def test_of_a_stream_is_kept_what_fits() -> None:
    event = b'data: {"n": "%b"}\n\n' % (b"z" * 1000)

    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(400):
            await connection.send(b"%x\r\n%b\r\n" % (len(event), event))
        await connection.send(b"0\r\n\r\n")

    async with Upstream(handler) as upstream, world() as own:
        await own.serve(upstream)
        answer = await ask(own.port, post(b"{}", "/openai/v1/completions"))
        assert answer.body == event * 400
        [call] = await kept(own)
    beginning = body_of(call, "answer")
    assert beginning is not None
    assert answer.body.startswith(beginning)
    assert 200 * 1024 < len(beginning) <= 256 * 1024
    assert call["bytes"] == len(answer.body)
    assert call["answerMissing"].startswith("too large")


async def test_a_client_that_leaves_is_kept_as_having_no_answer() -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.gone()

    async with Upstream(silent) as upstream, world() as own:
        await own.serve(upstream)
        async with Client(own.port) as client:
            await client.send(post(b'{"instances": [1]}'))
            await asyncio.wait_for(upstream.begun.wait(), 20)
        [call] = await kept(own)
        assert (call["status"], call["bytes"], call["unreplayable"]) == (0, 0, "")
        upstream.begun.clear()
        async with Client(own.port) as client:
            await client.send(post(b"x" * 30_000)[:20_000])
            await asyncio.wait_for(upstream.begun.wait(), 20)
        cut = (await kept(own, 2))[-1]
    assert cut["unreplayable"] == "its client left before it had sent all of it"


async def test_the_gateways_own_answers_are_kept() -> None:
    async with world() as own:
        await own.publish(iris((), state="failed", reason="no model"))
        answer = await ask(own.port, post(b'{"instances": [1]}'))
        [call] = await kept(own)
    assert call["status"] == answer.status >= 500
    assert body_of(call, "answer") == answer.body
    assert body_of(call) == b'{"instances": [1]}'


async def test_a_replay_is_served_and_not_kept() -> None:
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        marked = f"{REPLAY_HEADER}: 1\r\n".encode()
        assert (await ask(own.port, post(b'{"n": 1}', extra=marked))).status == 200
        await ask(own.port, post(b'{"n": 2}'))
        [call] = await kept(own)
    assert body_of(call) == b'{"n": 2}'
    assert REPLAY_HEADER not in upstream.requests[0].headers


async def test_what_a_replay_causes_is_not_kept_either() -> None:
    """A transformer passes its request's id on, a graph its trace."""
    id = f"X-Request-Id: {REPLAY_ID}1\r\n".encode()
    trace = f"traceparent: 00-{REPLAY_TRACE}0000000000000001-0000000000000001-01\r\n".encode()
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        for extra in (id, trace):
            assert (await ask(own.port, post(b'{"n": 1}', extra=extra))).status == 200
        await ask(own.port, post(b"x-request-id: %b" % REPLAY_ID.encode()))
        [call] = await kept(own)
    assert call["requestBytes"] > 20


async def test_nothing_is_kept_when_recording_is_off() -> None:
    async with Upstream(echo) as upstream, world(requests=RequestsConfig(enabled=False)) as own:
        await own.serve(upstream)
        assert (await ask(own.port, post(b"{}"))).status == 200
        assert await own.process.requests(bodies=True) == []


async def test_nothing_leaves_the_gateway_unredacted() -> None:
    """Not what the client sent nor what the model answered; not in the log or on disk either."""
    config = RequestsConfig(
        redact_headers=("x-tenant",), redact_fields=("password", "instances.*.ssn")
    )
    secret = {"instances": [{"ssn": "S-1", "n": 1}], "parameters": {"password": "S-2"}}
    answer = response(
        json.dumps({"echo": {"password": "S-3"}, "n": 1}).encode(), extra="Set-Cookie: S-4\r\n"
    )
    extra = b"Authorization: Bearer S-5\r\nX-Tenant: S-6\r\nCookie: S-7\r\n"
    async with Upstream(answering(answer)) as upstream, world(requests=config, verbose=2) as own:
        await own.serve(upstream)
        await ask(own.port, post(json.dumps(secret).encode(), f"{V1}?password=S-8", extra=extra))
        zipped = gzip.compress(json.dumps(secret).encode())
        await ask(own.port, post(zipped, extra=b"Content-Encoding: gzip\r\n"))
        await ask(own.port, post(b'{"password": "S-9"'))
        found = await kept(own, 3)
        on_disk = written_below(own.settings.state)
    assert "S-" not in json.dumps(found)
    for call in found:
        for key in ("body", "answer"):
            assert b"S-" not in (body_of(call, key) or b"")
    plain, compressed, broken = found
    shown = json.loads(body_of(plain) or b"")
    assert shown == {
        "instances": [{"ssn": REDACTED, "n": 1}], "parameters": {"password": REDACTED},
    }  # fmt: skip
    assert dict(map(tuple, plain["headers"]))["Authorization"] == REDACTED
    assert plain["unreplayable"].startswith("fields of its body are redacted: instances.0.ssn")
    for call in (compressed, broken):
        assert call["body"] is None
        assert "withheld" in call["unreplayable"]
    # A query is in the access log as it is in every server's; bodies and headers are nowhere.
    assert not [n for n in range(1, 10) if n != 8 and b"S-%d" % n in on_disk]


async def test_a_new_supervisor_brings_its_own_rules() -> None:
    """A gateway that outlives its supervisor goes on keeping; what it shows is up to the next."""
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        await ask(own.port, post(b'{"password": "S-1"}'))
        await kept(own)
        own.process.detach()
        await own.process.__aexit__(None, None, None)
        strict = RequestsConfig(redact_fields=("password",))
        async with GatewayProcess(replace(own.settings, requests=strict), Figures()) as successor:
            assert successor.adopted
            own.process = successor
            [call] = await kept_by(successor)
            assert json.loads(body_of(call) or b"") == {"password": REDACTED}


async def test_other_settings_hold_at_once_for_what_is_there_and_what_comes() -> None:
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        await ask(own.port, post(b'{"password": "S-1"}'))
        await kept(own)
        own.process.record(RequestsConfig(redact_fields=("password",)))
        [call] = await own.process.requests(bodies=True)
        assert json.loads(body_of(call) or b"") == {"password": REDACTED}
        own.process.record(RequestsConfig(enabled=False))
        assert await own.process.requests() == []
        await ask(own.port, post(b'{"n": 1}'))
        own.process.record(RequestsConfig(keep=2))
        for n in range(2, 6):
            await ask(own.port, post(b'{"n": %d}' % n))
        last = post(b'{"n": 6}', extra=b"X-Request-Id: last\r\n")
        await ask(own.port, last)
        await kept(own, id="last")
        assert [body_of(c) for c in await kept(own)] == [b'{"n": 5}', b'{"n": 6}']


async def kept_by(process: GatewayProcess) -> list[dict[str, Any]]:
    """Return what a gateway tells a supervisor that has just come."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await process.requests(bodies=True)
            except ServiceUnavailable:
                await asyncio.sleep(0.01)


async def test_a_call_is_found_by_the_beginning_of_its_id() -> None:
    async with Upstream(echo) as upstream, world() as own:
        await own.serve(upstream)
        for number in range(3):
            id = b"X-Request-Id: abc-%d\r\n" % number
            await ask(own.port, post(b'{"n": %d}' % number, extra=id))
        await kept(own, 3)
        [newest] = await own.process.requests(id="abc", bodies=True)
        [exact] = await own.process.requests(id="abc-1", bodies=True)
        assert (newest["id"], exact["id"]) == ("abc-2", "abc-1")
        assert await own.process.requests(id="abd") == []
        assert [c["id"] for c in await own.process.requests(last=2)] == ["abc-1", "abc-2"]
        assert await own.process.requests(name="other") == []


async def test_ten_thousand_calls_leave_the_last_hundred_and_bounded_memory() -> None:
    """Faster than all can be kept: the newest is there nevertheless when it calms down."""
    body = b'{"instances": [%b]}' % b",".join([b"1.5"] * 400)
    async with Upstream(answering(response(b'{"predictions": [1]}'))) as upstream, world() as own:
        await own.serve(upstream)

        async def many(first: int, count: int) -> None:
            async with Client(own.port) as client:
                for number in range(first, first + count):
                    id = b"X-Request-Id: n-%d\r\n" % number
                    assert (await client.ask(post(body, extra=id))).status == 200

        await many(0, 1000)
        before = memory_of(own.process.pid)
        await asyncio.gather(*(many(1000 + n * 1000, 1000) for n in range(9)))
        after = memory_of(own.process.pid)
        async with Client(own.port) as client:
            await client.ask(post(body, extra=b"X-Request-Id: last\r\n"))
        await kept(own, id="last")
        found = await own.process.requests()
    assert (len(found), found[-1]["id"]) == (100, "last")
    assert after - before < 8 * 1024 * 1024


def written_below(folder: Path) -> bytes:
    """Return what is in all files below a folder."""
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def memory_of(pid: int) -> int:
    """Return the resident bytes of a process."""
    text = Path(f"/proc/{pid}/statm").read_text()
    return int(text.split()[1]) * 4096


async def test_components_that_only_others_call_are_shown_by_their_name() -> None:
    """A transformer's calls of its predictor are kept, apart from those of clients."""
    async with Upstream(echo) as upstream, world() as own:
        entry = replace(iris((upstream,)), component="transformer")
        inner = replace(
            iris((upstream,)), hosts=("iris-predictor.default",), path="", models=(),
            names_service=False,
        )  # fmt: skip
        await own.publish(entry, inner)
        await ask(own.port, post(b'{"n": 1}'))
        call = post(b'{"n": 2}').replace(b"iris.default.example.com", b"iris-predictor.default")
        await ask(own.port, call)
        [clients] = await kept(own)
        [others] = await kept(own, component="predictor")
        assert (body_of(clients), clients["inner"]) == (b'{"n": 1}', False)
        assert (body_of(others), others["inner"]) == (b'{"n": 2}', True)
        assert len(await own.process.requests(id=others["id"])) == 1


async def test_a_graphs_calls_are_kept_and_its_steps_unless_it_was_replayed() -> None:
    step = {"serviceUrl": f"http://iris.default.svc.cluster.local{V1}"}
    spec = {"nodes": {"root": {"routerType": "Sequence", "steps": [step]}}}
    router = Target(
        "default/graph-00001", 100, (Endpoint("graph-pod", "127.64.0.2", 8080),), graph=spec
    )
    host = "graph.default.example.com"
    graph = Route("default", "graph", "graph", (host,), (router,))
    async with Upstream(answering(response(b'{"predictions": [1]}'))) as upstream, world() as own:
        route = iris((upstream,))
        await own.publish(
            graph, replace(route, hosts=(*route.hosts, "iris.default.svc.cluster.local"))
        )
        call = post(b'{"instances": [1]}', "/").replace(HOST, f"Host: {host}\r\n".encode())
        again = f"{REPLAY_HEADER}: 1\r\n"
        again += f"traceparent: 00-{REPLAY_TRACE}0000000000000001-0000000000000001-01\r\n"
        replayed = call.replace(b"Content-Length", again.encode() + b"Content-Length")
        assert (await ask(own.port, replayed)).status == 200
        assert (await ask(own.port, call)).status == 200
        step_call, graph_call = await kept(own, 2)
        assert len(upstream.requests) == 2
    assert (graph_call["service"], graph_call["path"]) == ("graph", "/")
    assert (step_call["service"], step_call["path"]) == ("iris", V1)
    for each in (graph_call, step_call):
        assert body_of(each) == b'{"instances": [1]}'
        assert body_of(each, "answer") == b'{"predictions": [1]}'
