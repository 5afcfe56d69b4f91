"""HTTP/2 without a network: frames, header blocks, and a connection that gets anything at all."""

from __future__ import annotations

import asyncio
from typing import Any

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_local.gateway import errors, h2_headers, http2
from kserve_local.gateway import h2_frames as f
from kserve_local.gateway.h2_connection import CONNECTION_WINDOW, UNREAD, H2Connection
from kserve_local.gateway.h2_frames import Code, ConnectionBroken, FrameReader
from kserve_local.gateway.h2_headers import HeaderReader, Malformed
from kserve_local.gateway.http1 import ClientConnection
from kserve_local.gateway.http2 import Http2Client
from kserve_local.gateway.proxy import Dataplane
from kserve_local.gateway.table import rpc_model_of
from kserve_local.interfaces.routing import Route, RouteTable, Target

FRAMES = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from([0, 1, 4, 5, 8, 9, 13, 0x20, 0x25, 0xFF]),
        st.sampled_from([0, 1, 1, 1, 3, 3, 5, 2, 2**31 - 1]),
        st.binary(max_size=60),
    ),
    max_size=20,
)
NAMES = st.from_regex(rb"\A[a-z][a-z0-9-]{0,12}\Z")
VALUES = st.from_regex(rb"\A[!-~]([ -~]{0,20}[!-~])?\Z")
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


def encode(frames: list[tuple[int, int, int, bytes]]) -> bytes:
    return b"".join(f.frame(*each) for each in frames)


@given(FRAMES, st.lists(st.integers(1, 50), max_size=20))
def test_frames_read_the_same_however_they_are_cut(
    frames: list[tuple[int, int, int, bytes]], cuts: list[int]
):
    data = encode(frames)

    def read(pieces: list[bytes]) -> tuple[list[Any], str]:
        reader, found = FrameReader(16384), []
        try:
            for piece in pieces:
                found += list(reader.feed(piece))
        except ConnectionBroken as error:
            return found, str(error)
        return found, ""

    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    pieces.append(data[at:])
    whole, cut_up = read([data]), read(pieces)
    # A piece that breaks off gives nothing of what came before it in the same piece.
    assert cut_up[1] == whole[1]
    assert cut_up[0][: len(whole[0])] == whole[0][: len(cut_up[0])]
    if not whole[1]:
        assert cut_up == whole


@given(st.lists(HEADERS, max_size=8))
def test_what_is_written_is_what_hpack_reads(lists: list[list[tuple[bytes, bytes]]]):
    """No block changes the peer's table, so any order of them reads the same."""
    decoder = hpack.Decoder()
    for headers in lists:
        read = [tuple(pair) for pair in decoder.decode(h2_headers.write(headers), raw=True)]
        assert read == headers
        assert not decoder.header_table.dynamic_entries


@given(st.lists(st.tuples(HEADERS, st.booleans()), max_size=12))
def test_what_an_encoder_writes_is_read_also_from_memory(
    blocks: list[tuple[list[tuple[bytes, bytes]], bool]],
):
    """Blocks come again and again, between others that change the table."""
    encoder, reader = hpack.Encoder(), HeaderReader()
    seen: list[list[tuple[bytes, bytes]]] = []
    for headers, repeat in blocks:
        chosen = seen[0] if repeat and seen else headers
        seen.append(chosen)
        for _ in range(2):
            assert reader.read(encoder.encode(chosen)) == chosen


@given(st.binary(max_size=200))
def test_any_block_is_read_or_refused(block: bytes):
    reader = HeaderReader()
    codes = refusal(reader, block) or refusal(reader, block)
    assert set(codes) <= {Code.COMPRESSION_ERROR, Code.ENHANCE_YOUR_CALM}


def refusal(reader: HeaderReader, block: bytes) -> list[Code]:
    """Return why a block was refused; nothing if it was not."""
    try:
        reader.read(block)
    except ConnectionBroken as error:
        return [error.code]
    return []


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=6))
def test_any_headers_are_a_request_or_malformed(headers: list[tuple[bytes, bytes]]):
    base = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
    try:
        found = h2_headers.request([*base, *headers])
    except Malformed:
        return
    for name, value in found.fields:
        assert not set(value) & set(b"\r\n\0")
        assert name == name.lower()
        assert name[:1] != b":"


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b"", None),
        (b"\0\0\0", None),
        (b"\0\0\0\0\0", ""),
        (b"\0\0\0\0\x06\x0a\x04iris", "iris"),
        (b"\0\0\0\0\x06\x0a\x04iri", None),
        (b"\0\0\0\0\x06\x1a\x04iris", ""),
        (b"\1\0\0\0\x06\x0a\x04iris", ""),
        (b"\0\0\0\0\xff\x0a\xc8\x01" + b"n" * 200, "n" * 200),
        (b"\0\0\0\0\xff\x0a\xff\xff\xff\xff\xff\xff", ""),
        (b"\0\0\0\0\x03\x0a\x01\xff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_model_of_a_message(body: bytes, model: str | None):
    assert rpc_model_of(body) == model


@given(st.binary(max_size=60))
def test_the_model_of_any_message(body: bytes):
    assert rpc_model_of(body) is None or isinstance(rpc_model_of(body), str)


class Transport(asyncio.Transport):
    """Keeps what is written; closing is remembered."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written = bytearray()
        self.closed = False
        self.protocol: Any = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def plane(*names: str) -> Dataplane:
    """Return a data plane whose services (`iris`) wait for their first replicas."""
    own = Dataplane(poke=lambda target: None, max_held=1000)
    routes = []
    for name in names or ("iris",):
        target = Target(f"default/{name}-predictor-00001", 100, (), state="starting")
        routes.append(Route("default", name, "predictor", (name,), (target,), "", (name,)))
    own.apply(RouteTable(1, tuple(routes)))
    return own


def headers_frame(stream: int, grpc: bool, end: bool) -> tuple[int, int, int, bytes]:
    block = h2_headers.write(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
            (b":authority", b"iris"),
            *([(b"content-type", b"application/grpc")] if grpc else []),
        ]
    )
    return f.HEADERS, f.END_HEADERS | (f.END_STREAM if end else 0), stream, block


def padded(flags: int, stream: int, size: int) -> tuple[int, int, int, bytes]:
    return f.DATA, flags | f.PADDED, stream, bytes([size]) + b"data" + b"\0" * size


GOOD = st.one_of(
    st.builds(headers_frame, st.sampled_from([1, 3, 5, 7]), st.booleans(), st.booleans()),
    st.tuples(
        st.just(f.DATA),
        st.sampled_from([f.PADDED, f.PADDED | f.END_STREAM]),
        st.sampled_from([1, 3, 5]),
        st.binary(max_size=20).map(lambda data: b"\x04" + data + b"\0\0\0\0"),
    ),
    st.tuples(
        st.just(f.DATA), st.sampled_from([0, 1]), st.sampled_from([1, 3, 5]), st.binary(max_size=40)
    ),
    st.builds(padded, st.sampled_from([0, 1]), st.sampled_from([1, 3, 5]), st.integers(0, 9)),
    st.tuples(
        st.just(f.RST_STREAM), st.just(0), st.sampled_from([1, 3, 5]), st.just(b"\0\0\0\x08")
    ),
    st.tuples(
        st.just(f.WINDOW_UPDATE), st.just(0), st.sampled_from([0, 1, 3]), st.just(b"\0\0\x10\0")
    ),
    st.tuples(st.just(f.SETTINGS), st.just(0), st.just(0), st.just(b"\0\4\0\0\0\x10")),
    st.tuples(st.just(f.PING), st.just(0), st.just(0), st.just(b"12345678")),
    st.tuples(st.just(f.GOAWAY), st.just(0), st.just(0), st.just(b"\0" * 8)),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(GOOD, FRAMES.map(lambda frames: frames[0] if frames else (6, 0, 0, b"")))),
    st.booleans(),
    st.lists(st.integers(1, 40), max_size=12),
)
def test_a_connection_stands_whatever_comes(
    frames: list[tuple[int, int, int, bytes]], settle: bool, cuts: list[int]
):
    """It answers in whole frames, keeps count of its requests, and lets go of all at its end."""

    async def run() -> None:
        own = plane()
        transport = Transport()
        client = ClientConnection(own, lambda target: errors.Answer(200))
        transport.protocol = client
        client.connection_made(transport)
        data = f.PREFACE + (f.settings({}) if settle else b"") + encode(frames)
        at = 0
        for cut in [*cuts, len(data)]:
            if not transport.closed and at < len(data):
                transport.protocol.data_received(data[at : at + cut])
                at += cut
        state = own.targets["default/iris-predictor-00001"]
        assert len(state.in_flight) <= len(transport.protocol.streams) or transport.closed
        if isinstance(peer := transport.protocol, H2Connection):
            # What came is unread, or was given back to the connection's window.
            unread = sum(stream.unread for stream in peer.streams.values())
            if not transport.closed:
                assert peer.receive_window + peer._credit + unread == CONNECTION_WINDOW
        transport.closed = True
        transport.protocol.connection_lost(None)
        assert not state.in_flight
        assert not len(state.breaker)
        assert not own.clients
        reader = FrameReader(f.MAX_FRAME)
        written = list(reader.feed(bytes(transport.written)))
        assert not reader._buffer
        for kind, flags, stream, payload in written:
            if kind == f.HEADERS:
                assert flags & f.END_HEADERS
                assert stream
            if kind == f.WINDOW_UPDATE:
                assert int.from_bytes(payload, "big") > 0

    asyncio.run(run())


@pytest.mark.parametrize("path", [b"", b"x", b"/x HTTP/1.1", b"http://other/x", b"/\xff", b"**"])
def test_a_path_that_is_none(path: bytes):
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"i")]
    with pytest.raises(Malformed):
        h2_headers.request(pairs)


def connected(*names: str) -> tuple[Http2Client, Transport]:
    """Return a connection that has begun, with a client that takes what it likes."""
    transport = Transport()
    client = Http2Client(plane(*names), lambda target: errors.Answer(200))
    client.connection_made(transport)
    client.data_received(f.PREFACE + f.settings({}))
    return client, transport


async def test_a_body_in_tiny_frames_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch):
    """Else each of its bytes costs as much as all that came before it."""
    looks: list[int] = []

    def model_of(body: bytes) -> str | None:
        looks.append(len(body))
        return None

    monkeypatch.setattr(http2, "model_of", model_of)
    client, _ = connected("iris", "wine")
    block = h2_headers.write(
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/openai/v1/completions"),
         (b":authority", b"localhost")]
    )  # fmt: skip
    client.data_received(f.headers(1, block, end=False, max_frame=16384))
    for _ in range(3000):
        client.data_received(f.frame(f.DATA, 0, 1, b"x"))
    client.data_received(f.frame(f.DATA, f.END_STREAM, 1, b"x"))
    assert looks[-1] == 3001
    assert len(looks) < 20


async def test_as_many_pings_as_a_reading_peer_likes():
    client, transport = connected()
    for _ in range(5000):
        client.data_received(f.frame(f.PING, 0, 0, b"12345678"))
    kinds = [kind for kind, _, _, _ in FrameReader(f.MAX_FRAME).feed(bytes(transport.written))]
    assert kinds.count(f.PING) == 5000
    assert not transport.closed


@pytest.mark.parametrize("kind", [f.PING, f.HEADERS], ids=["pings", "requests"])
async def test_a_peer_that_asks_and_never_reads_is_left(kind: int):
    client, transport = connected()
    client.pause_writing()
    most = 0
    for stream in range(1, 400_000, 2):
        if transport.closed:
            break
        if kind == f.PING:
            client.data_received(f.frame(f.PING, 0, 0, b"12345678"))
        else:
            block = h2_headers.write(
                [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"),
                 (b":authority", b"nobody")]
            )  # fmt: skip
            client.data_received(f.headers(stream, block, end=True, max_frame=16384))
        most = len(transport.written)
    assert transport.closed
    assert most < UNREAD + 100_000
