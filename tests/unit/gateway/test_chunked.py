"""The chunked coding: the same verdict however the bytes are split, and nothing loose."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.gateway.chunked import LAST, ChunkDecoder, ChunkError, encode


def decode(data: bytes, cuts: list[int]) -> tuple[bytes, bool, bytes] | str:
    """Return payload, whether the end came, and the rest; or why it was refused."""
    decoder, payload = ChunkDecoder(), b""
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    rest = b""
    try:
        for start, end in itertools.pairwise(edges):
            if decoder.done:
                rest += data[start:end]
            else:
                payload += b"".join(decoder.feed(data[start:end]))
                rest += decoder.rest
    except ChunkError:
        return "refused"
    return payload, decoder.done, rest


CUTS = st.lists(st.integers(0, 200), max_size=8)
BROKEN = st.lists(
    st.sampled_from(
        [b"5\r\nhello\r\n", b"0\r\n\r\n", b"\r\n", b"\n", b"1;a=b\r\n", b"x", b"A", b" "]
    ),
    max_size=6,
).map(b"".join)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.binary(max_size=20), CUTS)
def test_what_is_encoded_comes_back(parts: list[bytes], after: bytes, cuts: list[int]) -> None:
    data = b"".join(b"".join(encode([part])) for part in parts) + LAST + after
    assert decode(data, cuts) == (b"".join(parts), True, after)


@given(BROKEN, CUTS)
def test_splitting_changes_no_verdict(data: bytes, cuts: list[int]) -> None:
    whole, split = decode(data, []), decode(data, cuts)
    assert whole == split


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b" 1\r\n",
        b"0x1\r\n",
        b"1 2\r\n",
        b"1\n",
        b"1\r\nab",
        b"1\r\na\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\n folded: x\r\n",
        b"1" * 16 + b"\r\n",
        b"1;" + b"x" * 5000,
        b"1;\x00\r\n",
        b"1\rx",
    ],
)
def test_anything_but_the_grammar_is_refused(data: bytes) -> None:
    assert decode(data, []) == "refused"


def test_a_flood_of_extensions_is_refused() -> None:
    with pytest.raises(ChunkError, match="too many"):
        ChunkDecoder().feed((b"1;" + b"x" * 1000 + b"\r\na\r\n") * 100)


def test_nothing_is_encoded_as_nothing() -> None:
    """An empty chunk would end the message."""
    assert encode([]) == []
    assert encode([b""]) == []
