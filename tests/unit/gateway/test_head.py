"""Request and response heads: what is read, what is refused, what is written anew."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kserve_local.gateway.head import (
    HeadError,
    host_name,
    parse_request,
    parse_response,
    part_ids,
    refuse_early,
)

SEEDS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v2/models/m/infer?x=1 HTTP/1.1\r\nHost: a.b:80\r\nContent-Length: 5\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive, X-A\r\nX-A: b\r\n\r\n",
    b"GET http://a:1/b HTTP/1.1\r\nHost: c\r\nX-Forwarded-For: 1\r\nUpgrade: x\r\n\r\n",
]
PIECES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b"\t",
        b":",
        b"Content-Length: 5\r\n",
        b"Content-Length: 05\r\n",
        b"content-length:6\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: x\r\n",
        b"Host: b\r\n",
        b"Connection: upgrade, host\r\n",
        b"Upgrade: websocket\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\r\n\r\n",
        b"\xff",
        b"A" * 100,
    ]
)


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Return a head with pieces put in, cut out or overwritten."""
    raw = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        piece = draw(PIECES | st.binary(max_size=4))
        raw = raw[:at] + piece + raw[at + draw(st.integers(0, 3)) :]
    end = raw.find(b"\r\n\r\n")
    return raw[: end + 4] if end >= 0 else raw + b"\r\n\r\n"


@given(mangled())
def test_what_is_passed_on_reads_the_same_again(raw: bytes) -> None:
    """The safety of the whole gateway: one head in, exactly one head out, equal framing."""
    try:
        head = parse_request(raw)
    except HeadError:
        return
    out = b"%b %b HTTP/1.1\r\n%b\r\n" % (head.method, head.target, head.lines)
    assert out.count(b"\r\n\r\n") == 1
    assert out.count(b"\n") == out.count(b"\r\n") == out.count(b"\r")
    if head.minor == 0 and not head.host:
        return
    again = parse_request(out)
    assert (again.method, again.target, again.host) == (head.method, head.target, head.host)
    assert (again.length, again.chunked) == (head.length, head.chunked)
    names = [line.partition(b":")[0].lower() for line in head.lines.split(b"\r\n")]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1


@given(st.binary(max_size=300))
@example(b"HTTP/1.0 100\r\n\r\n")
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for parse in (parse_request, parse_response):
        with contextlib.suppress(HeadError):
            assert parse(raw)
    assert isinstance(refuse_early(raw), str)


@given(mangled(), st.integers(0, 400))
def test_a_good_head_is_never_refused_early(raw: bytes, at: int) -> None:
    """However it is split over packets."""
    try:
        parse_request(raw)
    except HeadError:
        return
    part = raw[: min(at, len(raw) - 1)]
    assert refuse_early(part) == ""


@given(mangled())
def test_responses_read_the_same_again(raw: bytes) -> None:
    raw = b"HTTP/1.1 200 OK\r\n" + raw.partition(b"\r\n")[2]
    try:
        head = parse_response(raw)
    except HeadError:
        return
    again = parse_response(head.whole)
    assert (again.status, again.length) == (head.status, head.length)
    assert not again.chunked


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b"Keep-Alive: 5", False),
        (b"TE: trailers", False),
        (b"Proxy-Authorization: Basic x", False),
        (b"Knative-Serving-Revision: other", False),
        (b"X-Forwarded-Proto: https", False),
        (b"Authorization: Bearer x", True),
        (b"Ce-Id: 1", True),
        (b"x-request-id: abc", True),
    ],
)
def test_which_headers_pass(line: bytes, kept: bool) -> None:
    head = parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n")
    assert (line in head.lines) is kept


@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        (b"a: 1\r\nTraceparent: 00-ab\r\n", b"Traceparent: 00-ab\r\n"),
        (b"x-request-id: 7\r\na: 1\r\n", b"x-request-id: 7\r\n"),
        (
            b"X-Request-Id: 7\r\na: 1\r\ntraceparent:\r\n",
            b"X-Request-Id: 7\r\ntraceparent:\r\n",
        ),
        (b"a: 1\r\n", b""),
        (b"a: x-request-id: 7\r\n", b""),
        (b"x-request-id-too: 7\r\n", b""),
        (b"x-request-id: a\r\nx-request-id: b\r\nx-request-id: c\r\n", b""),
        (b"x-request-id: 7\r\nconnection: close, X-Request-Id\r\n", b""),
        (b"traceparent: 00-ab\r\nTraceState: v=1\r\n", b""),
        (b"traceparent: a\nb\r\n", b""),
        (b"traceparent: a\x00b\r\n", b""),
    ],
)
def test_ids_are_parted_from_a_head(lines: bytes, ids: bytes) -> None:
    """What is left is what the other requests of the same caller are; nothing is lost."""
    begun = b"GET / HTTP/1.1\r\nHost: a\r\n"
    raw = begun + lines + b"\r\n"
    left, found = part_ids(raw)
    assert found == ids
    assert sorted((left[:-2] + found).split(b"\r\n")) == sorted(raw[:-2].split(b"\r\n"))
    if ids:
        assert left == begun + b"a: 1\r\n\r\n" or left == begun + b"\r\n"


def test_parting_ids_lets_no_malformed_head_pass() -> None:
    """A folded line does not become the part of another header."""
    left, _ = part_ids(b"GET / HTTP/1.1\r\nHost: a\r\nx-request-id: 7\r\n b\r\n\r\n")
    with pytest.raises(HeadError, match="folded"):
        parse_request(left)


@pytest.mark.parametrize(
    ("raw", "alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_when_a_connection_goes_on(raw: bytes, alive: bool) -> None:
    assert parse_request(raw).keep_alive is alive


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"Iris.Default.Example.com:8080", b"iris.default.example.com"),
        (b"localhost", b"localhost"),
        (b"[::1]:8080", b"[::1]"),
        (b"[::1]", b"[::1]"),
        (b"a.b.", b"a.b"),
        (b"a.b.:80", b"a.b"),
        (b"a:", b"a"),
    ],
)
def test_a_host_is_compared_without_case_and_port(host: bytes, name: bytes) -> None:
    assert host_name(host) == name


def test_a_clean_answer_passes_unchanged() -> None:
    raw = b"HTTP/1.1 200 OK\r\ndate: x\r\ncontent-length: 3\r\n\r\n"
    assert parse_response(raw).same
    assert not parse_response(raw.replace(b"date", b"keep-alive")).same
