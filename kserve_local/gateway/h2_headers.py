"""Header blocks of HTTP/2: what a request or an answer says, checked; and blocks written anew.

Reading is hpack's; blocks that only name what both sides know are remembered. Writing never touches
the peer's table, so equal headers are equal bytes and need no state.

Source: RFC 7541; RFC 9113 section 8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from kserve_local.gateway import tracecontext
from kserve_local.gateway.h2_frames import Code, ConnectionBroken

Headers = Sequence[tuple[bytes, bytes]]

MAX_LIST = 64 * 1024
"""Bytes of a header list by HTTP/2's count: 32 more than its text for each header."""
MAX_HEADERS = 200
_KNOWN_LIMIT = 512
_KNOWN_SIZE = 1024
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_PATH = re.compile(rb"/[\x21-\x7e]*|\*")
_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")
# They concern one connection of HTTP/1 only, and do not exist in HTTP/2.
_FORBIDDEN = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_REQUEST = frozenset((b":method", b":scheme", b":path", b":authority"))
_STATIC = {
    (name, value): index
    for index, (name, value) in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))
}
_STATIC_NAMES = {
    name: index for index, (name, _) in reversed(list(enumerate(HeaderTable.STATIC_TABLE, 1)))
}


class Malformed(Exception):
    """The headers of one stream are none; the text says why, in a few words."""


class HeaderReader:
    """Reads the blocks of one connection, in the order of their arrival."""

    __slots__ = ("_decoder", "_known")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_LIST)
        # Blocks that left the table as it was, since it last changed.
        self._known: dict[bytes, list[tuple[bytes, bytes]]] = {}

    def read(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Return the headers of a block.

        Raises:
            ConnectionBroken: The block cannot be read; nothing after it could be.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            found = [
                (bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)
            ]
        except OversizedHeaderListError as error:
            raise ConnectionBroken(
                Code.ENHANCE_YOUR_CALM, f"more than {MAX_LIST // 1024} KiB of headers"
            ) from error
        except HPACKError as error:
            raise ConnectionBroken(Code.COMPRESSION_ERROR, "headers that cannot be read") from error
        if _changes_table(block):
            self._known.clear()
        elif len(block) <= _KNOWN_SIZE:
            if len(self._known) >= _KNOWN_LIMIT:
                self._known.clear()
            self._known[block] = found
        return found


def _changes_table(block: bytes) -> bool:
    """Whether a block, which was read already, leaves the table other than it was."""
    at, size = 0, len(block)
    while at < size:
        first = block[at]
        if first & 0x80:
            _, at = _read_integer(block, at, 7)
        elif first & 0x60:
            return True  # a header that is kept, or another size of the table
        else:
            index, at = _read_integer(block, at, 4)
            for _ in range(1 if index else 2):
                length, at = _read_integer(block, at, 7)
                at += length
    return False


def _read_integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Return an integer with a prefix of `bits` bits, and where it ends."""
    limit = (1 << bits) - 1
    value = block[at] & limit
    at += 1
    if value == limit:
        shift = 0
        while True:
            byte = block[at]
            at += 1
            value += (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
    return value, at


def write(headers: Headers) -> bytes:
    """Return the block of a header list."""
    return b"".join([_WRITTEN.get(pair) or _write(pair) for pair in headers])


_WRITTEN: dict[tuple[bytes, bytes], bytes] = {}
_WRITTEN_LIMIT = 4096


def _write(pair: tuple[bytes, bytes]) -> bytes:
    name, value = pair
    index = _STATIC.get(pair)
    if index is not None:
        found = _integer(index, 7, 0x80)
    else:
        index = _STATIC_NAMES.get(name)
        # Literals that the peer's table does not keep (RFC 7541 section 6.2.2).
        start = _integer(index, 4, 0) if index else b"\x00" + _integer(len(name), 7, 0) + name
        found = start + _integer(len(value), 7, 0) + value
    # Each of these is written once.
    if len(found) < 256 and name != tracecontext.HEADER:
        if len(_WRITTEN) >= _WRITTEN_LIMIT:
            _WRITTEN.clear()
        _WRITTEN[pair] = found
    return found


def _integer(value: int, bits: int, first: int) -> bytes:
    """Return an integer with a prefix of `bits` bits (RFC 7541 section 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = [first | limit]
    value -= limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class RequestFields:
    """One request's headers.

    Attributes:
        path: Path and query.
        authority: As the client wrote it; empty without.
        fields: All that is not a pseudo header, without `host` and cookies joined.
        length: Declared bytes of the body; -1 without.
    """

    __slots__ = ("authority", "content_type", "fields", "length", "method", "path", "scheme")

    method: bytes
    scheme: bytes
    path: bytes
    authority: bytes
    content_type: bytes
    length: int
    fields: list[tuple[bytes, bytes]]


def request(headers: Headers) -> RequestFields:
    """Return what a request's headers say.

    Raises:
        Malformed: Anything that RFC 9113 section 8 calls so.
    """
    if len(headers) > MAX_HEADERS:
        raise Malformed(f"more than {MAX_HEADERS} headers")
    pseudo: dict[bytes, bytes] = {}
    found = RequestFields()
    fields: list[tuple[bytes, bytes]] = []
    cookies: list[bytes] = []
    host: bytes | None = None
    length: bytes | None = None
    found.content_type = b""
    for pair in headers:
        name, value = pair
        if name[:1] == b":":
            if fields or cookies or host is not None or name not in _REQUEST or name in pseudo:
                raise Malformed("a pseudo header that is unknown, repeated or out of place")
            pseudo[name] = value
            if not _VALUE.fullmatch(value):
                raise Malformed("a control byte in a header")
            continue
        if pair not in _CHECKED:
            _check(pair)
        if name == b"host":
            if host is not None:
                raise Malformed("more than one host")
            host = value
            continue
        if name == b"cookie":
            cookies.append(value)
            continue
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > 18:
                raise Malformed("a content-length that is repeated or no number")
            length = value
        elif name == b"content-type":
            found.content_type = value
        fields.append(pair)
    if cookies:
        fields.append((b"cookie", b"; ".join(cookies)))
    try:
        found.method = pseudo[b":method"]
        found.scheme = pseudo[b":scheme"]
        found.path = pseudo[b":path"]
    except KeyError as missing:
        raise Malformed(f"no {missing.args[0].decode()}") from None
    if not _PATH.fullmatch(found.path):
        raise Malformed("a :path that is none")
    authority = pseudo.get(b":authority", b"")
    if authority and host is not None and host != authority:
        raise Malformed("a host that is not the :authority")
    found.authority = authority or host or b""
    found.length = int(length) if length is not None else -1
    found.fields = fields
    return found


# Pairs that passed the check: clients repeat themselves.
_CHECKED: set[tuple[bytes, bytes]] = set()


def _check(pair: tuple[bytes, bytes]) -> None:
    name, value = pair
    if not _NAME.fullmatch(name):
        raise Malformed("a header name that is none")
    if not _VALUE.fullmatch(value):
        raise Malformed("a control byte in a header")
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        raise Malformed(f"a {name.decode()} header")
    if len(name) + len(value) < 256:
        if len(_CHECKED) >= _WRITTEN_LIMIT:
            _CHECKED.clear()
        _CHECKED.add(pair)


def answer(headers: Headers) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return status and fields of an answer's headers.

    Raises:
        Malformed: As `request`.
    """
    if not headers or headers[0][0] != b":status":
        raise Malformed("no :status")
    status = headers[0][1]
    if len(status) != 3 or not status.isdigit():
        raise Malformed("a :status that is no number")
    return int(status), trailers(headers[1:])


def trailers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the fields of trailers.

    Raises:
        Malformed: As `request`; a pseudo header among them.
    """
    if len(headers) > MAX_HEADERS:
        raise Malformed(f"more than {MAX_HEADERS} headers")
    for pair in headers:
        if pair not in _CHECKED:
            _check(pair)
    return list(headers)
