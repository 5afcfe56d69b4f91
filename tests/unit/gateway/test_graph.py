"""A graph router's decisions and its pieces, without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.gateway import graph
from kserve_local.gateway.graph import GraphError, Step
from kserve_local.gateway.graph_client import Header, StepClient, parse_url
from kserve_local.gateway.graph_router import (
    GraphRouter,
    canonical,
    propagated,
)
from kserve_local.gateway.graph_server import GraphHost, TooMuch
from kserve_local.gateway.step_connection import Take


def test_defaults_are_upstreams() -> None:
    """60, 60 and 180 seconds; no limit for calls."""
    read = graph.read_graph({"nodes": {"root": {"routerType": "Ensemble"}}})
    assert (read.read, read.write, read.idle, read.client) == (60.0, 60.0, 180.0, 0.0)
    given = {"serverRead": 0, "serverWrite": 5, "serverIdle": 6, "serviceClient": 7}
    read = graph.read_graph({"nodes": {}, "routerTimeouts": given})
    assert (read.read, read.write, read.idle, read.client) == (0.0, 5.0, 6.0, 7.0)


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://a/b", "a", 80, "/b"),
        ("https://a?x=1", "a", 443, "/?x=1"),
        ("http://a.b:8080", "a.b", 8080, "/"),
        ("http://[::1]:80/x", "::1", 80, "/x"),
        ("http://u:p@a/x y", "a", 80, "/x%20y"),
        ("HTTP://a/é#f", "a", 80, "/%C3%A9"),
    ],
)
def test_urls_that_can_be_called(text: str, host: str, port: int, target: str) -> None:
    """As net/url reads them."""
    url = parse_url(text)
    assert (url.host, url.port, url.target) == (host, port, target)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (":foo", 'parse ":foo": missing protocol scheme'),
        ("http://[::1", "parse \"http://[::1\": missing ']' in host"),
        ("http://a:b/", 'parse "http://a:b/": invalid port ":b" after host'),
        ("http://a/%zz", 'parse "http://a/%zz": invalid URL escape "%zz"'),
        ("1a:b", 'parse "1a:b": first path segment in URL cannot contain colon'),
        ("http://a/\x01", 'parse "http://a/\\x01": net/url: invalid control character in URL'),
        ("mailto:x", 'Post "mailto:x": unsupported protocol scheme "mailto"'),
        ("http://a:99999/", 'Post "http://a:99999/": dial tcp: address 99999: invalid port'),
        ("ftp://u:p@a/", 'Post "ftp://u:***@a/": unsupported protocol scheme "ftp"'),
        ("http:a/b", 'Post "http:a/b": http: no Host in request URL'),
    ],
)
def test_urls_that_cannot(text: str, cause: str) -> None:
    """Go's own words, recorded."""
    with pytest.raises(GraphError) as refused:
        parse_url(text)
    assert str(refused.value) == cause


@pytest.mark.parametrize(
    ("body", "mapped"),
    [
        (b'{"predictions":[1,2.5]}', b'{"instances":[1,2.5]}'),
        (b'{"Predictions":[1],"instances":[2],"x":3}', b'{"instances":[1]}'),
        (b'{"predictions":[1],"predictions":[2]}', b'{"instances":[2]}'),
        (b'{"predictions":[{"b":1,"a":"<"}]}', b'{"instances":[{"a":"\\u003c","b":1}]}'),
    ],
)
def test_predictions_become_instances(body: bytes, mapped: bytes) -> None:
    """Names in any case, the last one wins, all else goes."""
    assert graph.map_predictions(body) == mapped


@pytest.mark.parametrize(
    "body",
    [b"", b"oops", b"[1]", b"null", b"{}", b'{"predictions":null}', b'{"predictions":{}}',
     b'{"predictions":[1],"instances":1}', b'{"outputs":[1]}'],
)  # fmt: skip
def test_a_body_without_predictions_stays(body: bytes) -> None:
    """Byte for byte, whatever it is."""
    assert graph.map_predictions(body) is body


@given(st.binary(max_size=50), st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_condition_on_any_body_is_decided(body: bytes, one: str, two: str) -> None:
    """A condition is never checked before; here it picks a step or is the router's error."""
    steps = (Step("x", condition=one), Step("y", condition=two))
    try:
        assert graph.pick_by_condition(steps, body) in steps
    except GraphError as error:
        assert error.status == 404  # noqa: PT017  # either outcome is right
    try:
        graph.goes_on(steps[0], body)
    except GraphError as error:
        assert (error.status, str(error)) == (500, graph.INVALID)  # noqa: PT017


def test_a_condition_that_costs_too_much_is_an_error() -> None:
    """It names itself."""
    step = Step("x", condition="|".join(["[@this,@this]"] * 60))
    with pytest.raises(GraphError, match="multiplies the document"):
        graph.goes_on(step, b"[1]")


@pytest.mark.parametrize(
    ("name", "kept"),
    [("x-request-id", "X-Request-Id"), ("CONTENT-type", "Content-Type"), ("a", "A")],
)
def test_header_names_are_gos(name: str, kept: str) -> None:
    """Patterns are about these."""
    assert canonical(name) == kept


def test_a_header_that_two_patterns_match_goes_once() -> None:
    """With all of its values."""
    headers = [("X-A", "1"), ("X-A", "2"), ("Y", "3")]
    assert propagated(["X", "^X-A$", "[", "(?<!a)b"], headers) == headers[:2]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", b"application/json"),
        (b'"a"', b"application/json"),
        (b"", b""),
        (b"oops", b"text/plain; charset=utf-8"),
        (b"\n <!DOCTYPE HTML>", b"text/html; charset=utf-8"),
        (b"<?xml ?>", b"text/xml; charset=utf-8"),
        (b"a\x00b", b"application/octet-stream"),
    ],
)
def test_content_types(body: bytes, kind: bytes) -> None:
    """The router says JSON; net/http sniffs the rest."""
    assert graph.content_type(body) == kind


async def test_bodies_of_all_graphs_are_bounded() -> None:
    """Beyond the limit a request is refused, and what ended is free again."""

    class Echo:
        async def post(
            self, url: str, body: bytes, headers: Sequence[Header], *, limit: float, take: Take
        ) -> tuple[int, bytes]:
            take(1000)
            return 200, body

    def inside(near: asyncio.Protocol) -> asyncio.Transport:
        raise AssertionError

    client = StepClient(knows=lambda host: False, inside=inside)
    host = GraphHost(client, point=lambda: 0, memory=2500)
    spec = {"nodes": {"root": {"routerType": "Sequence", "steps": [{"serviceUrl": "x"}] * 3}}}
    router = GraphRouter(graph.read_graph(spec), Echo(), point=lambda: 0)
    with pytest.raises(TooMuch) as refused:
        await router.route(b"{}", [], take=host.keep)
    assert refused.value.status == 503
    host.let_go(2000)
    host.keep(2500)


async def test_an_ensembles_steps_run_at_once() -> None:
    """All are on their way before one is answered."""
    begun = asyncio.Barrier(3)

    class Meet:
        async def post(
            self, url: str, body: bytes, headers: Sequence[Header], *, limit: float, take: Take
        ) -> tuple[int, bytes]:
            await begun.wait()
            return 200, body

    steps = [{"serviceUrl": name} for name in "abc"]
    spec = {"nodes": {"root": {"routerType": "Ensemble", "steps": steps}}}
    router = GraphRouter(graph.read_graph(spec), Meet(), point=lambda: 0)
    async with asyncio.timeout(5):
        found = await router.route(b"{}", [], take=lambda size: None)
    assert found == (b'{"0":{},"1":{},"2":{}}', 200)
