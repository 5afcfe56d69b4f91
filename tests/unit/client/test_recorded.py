"""Recorded calls: which are sent again, how, and what is said of what came back."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import replace

import pytest

from kserve_local.client.recorded import (
    Answer,
    Recorded,
    changes,
    distinct,
    incomparable,
    replay_at,
)
from kserve_local.interfaces.recorded import REDACTED, REPLAY_ID
from tests.fakes.raw_upstream import Connection, Upstream, answering, echo, response

CALL = Recorded(
    id="a",
    time=1.0,
    namespace="default",
    service="iris",
    component="predictor",
    inner=False,
    revision="iris-predictor-00001",
    protocol="HTTP/1.1",
    method="POST",
    path="/v1/models/iris:predict?a=1",
    status=200,
    ms=1.0,
    size=2,
    unreplayable="",
    headers=(("Content-Type", "application/json"), ("X-Request-Id", "r"), ("X-Key", REDACTED)),
    body=b'{"instances": [1]}',
    answer=b'{"predictions": [1]}',
)


def url(upstream: Upstream, path: str = "") -> str:
    return f"http://{upstream.address}:{upstream.port}{path}"


def test_of_equal_calls_the_last_is_taken() -> None:
    calls = [
        replace(CALL, id="1"),
        replace(CALL, id="2", body=b"x"),
        replace(CALL, id="3"),
        replace(CALL, id="4", path="/v1/models/other:predict"),
        replace(CALL, id="5", body=None, unreplayable="its body is too large"),
    ]
    assert [c.id for c in distinct(calls, 10)] == ["2", "3", "4"]
    assert [c.id for c in distinct(calls, 2)] == ["3", "4"]
    assert distinct([], 3) == []


async def test_a_call_is_sent_as_it_was_but_for_what_was_its_own() -> None:
    async with Upstream(echo) as upstream:
        base_url = url(upstream, "/serving/default/iris/")
        [answer] = await replay_at([CALL], base_url, headers={"Host": "a.b", "X-Key": "mine"})
        [sent] = upstream.requests
    assert (answer.status, answer.error) == (200, "")
    assert answer.body == sent.head + sent.body
    assert (sent.method, sent.target) == ("POST", f"/serving/default/iris{CALL.path}")
    assert sent.body == CALL.body
    assert (sent.header("host"), sent.header("x-key")) == ("a.b", "mine")
    assert sent.header("content-type") == "application/json"
    assert sent.header("x-request-id").startswith(REPLAY_ID)


async def test_a_redacted_header_is_left_out() -> None:
    async with Upstream(echo) as upstream:
        await replay_at([CALL], url(upstream))
        assert upstream.requests[0].header("x-key") == ""


async def test_answers_come_in_the_order_of_the_calls_a_few_at_once() -> None:
    running, most = 0, 0

    async def slow(connection: Connection) -> None:
        nonlocal running, most
        request = await connection.request()
        running += 1
        most = max(most, running)
        # The later the call, the sooner its answer.
        await asyncio.sleep(0.05 / (1 + int(request.body)))
        running -= 1
        await connection.send(response(request.body))

    calls = [replace(CALL, body=b"%d" % n) for n in range(12)]
    async with Upstream(slow) as upstream:
        answers = await replay_at(calls, url(upstream), at_once=3)
    assert [a.body for a in answers] == [b"%d" % n for n in range(12)]
    assert most == 3


async def test_chunked_answers_and_those_without_a_length_are_read_whole() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    async def until_closed(connection: Connection) -> None:
        await connection.request()
        await connection.send(early + b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with Upstream(answering(chunked)) as one, Upstream(until_closed) as two:
        assert (await replay_at([CALL], url(one)))[0].body == b"abcde"
        assert (await replay_at([CALL], url(two)))[0].body == b"all of it"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00\x01\x02\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "no HTTP", "short", "no length", "no chunk", "long"],
)
async def test_a_broken_answer_is_none_and_raises_nothing(said: bytes) -> None:
    async def handler(connection: Connection) -> None:
        await connection.request()
        await connection.send(said)

    async with Upstream(handler) as upstream:
        [answer] = await replay_at([CALL], url(upstream))
    assert answer.status == 0
    assert answer.error.startswith("no answer: ")


async def test_who_does_not_answer_is_waited_for_only_so_long() -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.gone()

    async with Upstream(silent) as upstream:
        answers = await replay_at([CALL] * 4, url(upstream), patience=0.2)
        port = upstream.port
    assert {a.error for a in answers} == {"no answer within 0.2 s"}
    [refused] = await replay_at([CALL], f"http://127.0.0.1:{port}")
    assert "no answer" in refused.error
    [unsendable] = await replay_at([replace(CALL, unreplayable="too large")], "http://127.0.0.1:1")
    assert unsendable.error == "too large"


def answer(body: bytes, status: int = 200, **headers: str) -> Answer:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status, pairs, body, 0.1)


def test_another_status_is_the_only_change_told() -> None:
    [found] = changes(CALL, answer(b'{"error": "x"}', 500))
    assert (found.path, found.before, found.after) == ("status", 200, 500)
    [found] = changes(CALL, Answer(0, (), b"", 0.1, "no answer: refused"))
    assert found.after == "no answer: refused"


def test_changes_are_those_of_the_bodies() -> None:
    assert changes(CALL, answer(b'{"predictions":[1.0]}')) == []
    [found] = changes(CALL, answer(b'{"predictions":[1.5]}'))
    assert (found.path, found.delta) == ("predictions.0", 0.5)
    assert changes(CALL, answer(b'{"predictions":[1.5]}'), tolerance=1.0) == []


def test_compressed_answers_are_compared_by_what_they_say() -> None:
    body = gzip.compress(b'{"predictions": [1]}')
    assert changes(CALL, answer(body, content_encoding="gzip")) == []
    assert changes(CALL, answer(b"no gzip", content_encoding="gzip")) != []


def test_what_was_not_kept_cannot_be_compared() -> None:
    assert incomparable(CALL) == ""
    assert "client left" in incomparable(replace(CALL, status=0))
    assert incomparable(replace(CALL, answer_missing="too large")) == "its answer is too large"
