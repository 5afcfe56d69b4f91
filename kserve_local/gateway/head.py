"""Message heads: raw bytes -> what the gateway needs to know, and a fresh head to pass on.

Strict on purpose: whatever two parsers could read differently is refused here, before a byte is
forwarded. A request head passes one regular expression over every byte, then rules on framing,
and last llhttp's own reading (httptools). What goes out is written anew from the parts; nothing
of the raw head is copied unread. Pure and memoised by the callers: equal bytes give equal heads.

Source: RFC 9110, RFC 9112 (sections 2.2, 3.2, 5, 6.3, 11.2).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httptools

from kserve_local.gateway import tracecontext
from kserve_local.interfaces.recorded import REPLAY_HEADER

if TYPE_CHECKING:
    from kserve_local.gateway.recorder import Ring
    from kserve_local.gateway.table import CompiledRoute, CompiledTable

MAX_HEAD = 64 * 1024
MAX_HEADERS = 100
PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
TRACE_HEADER = b"x-kserve-local-trace"
"""A request that has it gets the trace of its hops back in a header of this name."""

_LINES = rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n"
_REQUEST = re.compile(rb"([A-Z][A-Z\-]{0,23}) ([!-~]+) HTTP/1\.([01])\r\n" + _LINES)
_RESPONSE = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n" + _LINES
)
_REQUEST_LINE = re.compile(rb"[A-Z][A-Z\-]{0,23} [!-~]+ HTTP/1\.[01]")
_HEADER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)(?!\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z\-._~]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]+)([^#]*)")
_LENGTH = re.compile(rb"[0-9]{1,18}")

# Never passed on: they concern one connection only.
_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
# What a request header is to us; all others pass untouched.
(
    _DROP,
    _AS_IT_IS,
    _HOST_LINE,
    _LENGTH_LINE,
    _CODING,
    _CONNECTION,
    _UPGRADE,
    _EXPECT,
    _FORWARDED_FOR,
    _AUTHORIZATION,
    _TRACEPARENT,
    _TRACESTATE,
    _ASKS,
    _REPLAYS,
) = range(14)
_REQUEST_KIND = {
    **dict.fromkeys(_HOP, _DROP),
    # Set by the gateway itself, so never believed.
    b"x-forwarded-proto": _DROP,
    b"kserve-isvc-name": _DROP,
    b"kserve-isvc-namespace": _DROP,
    b"knative-serving-revision": _DROP,
    b"knative-serving-namespace": _DROP,
    b"k-proxy-request": _DROP,
    b"x-forwarded-host": _AS_IT_IS,
    b"x-request-id": _AS_IT_IS,
    tracecontext.HEADER: _TRACEPARENT,
    tracecontext.STATE: _TRACESTATE,
    TRACE_HEADER: _ASKS,
    REPLAY_HEADER.encode(): _REPLAYS,
    b"host": _HOST_LINE,
    b"content-length": _LENGTH_LINE,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
    b"expect": _EXPECT,
    b"x-forwarded-for": _FORWARDED_FOR,
    b"authorization": _AUTHORIZATION,
}
# Lines that make each head of a caller another one, and say nothing of where it goes (`id`); and
# lines that tie them to the rest: a Connection header may name them, a tracestate needs its
# traceparent.
_ID_OR_TIE = re.compile(
    rb"\r\n(?:(?P<id>(?:traceparent|x-request-id):[\t\x20-\x7e\x80-\xff]*+)(?=\r\n)"
    rb"|tracestate:|connection:[^\r]*(?:traceparent|x-request-id))",
    re.IGNORECASE,
)
_MAX_IDS = 2
# What a `Connection` header may not take away.
_KEPT = frozenset((b"host", b"content-length", b"content-type", b"authorization"))
_NO_CALLBACKS = object()
# Few hosts, many requests.
_NAMES: dict[bytes, bytes] = {}
_NAMES_LIMIT = 1024

_ANSWERS: dict[bytes, ResponseHead] = {}
_ANSWERS_LIMIT = 1024
_ANSWERS_SIZE = 2048


class HeadError(ValueError):
    """The head is malformed or ambiguous; the text says why, in a few words."""


class RequestHead:
    """One request head.

    Attributes:
        target: As passed on: origin form, or `*`.
        host: Lower case, without port; empty for HTTP/1.0 without Host.
        length: Bytes of the body; 0 without one. Meaningless when `chunked`.
        upgrade: The protocol asked for; empty for none (and for `h2c`, which is not passed on).
        lines: Header lines to pass on, each ending in CRLF.
        forwarded_for: What the request's own X-Forwarded-For said.
        idempotent: A safe method without a body: may be repeated.
        context: The trace it belongs to, for `tracecontext`; None: none yet.
        asks: It wants to be told its hops.
        replays: It is a recorded one, sent again.
        table / route / fresh: The caller's memo: what this head meant in that table.
        ring / ring_route: The recorder's: where requests with this head on that route are kept.
    """

    __slots__ = (
        "asks",
        "authorization",
        "chunked",
        "context",
        "expect",
        "forwarded_for",
        "fresh",
        "has_id",
        "host",
        "idempotent",
        "is_head",
        "keep_alive",
        "length",
        "lines",
        "method",
        "minor",
        "replays",
        "ring",
        "ring_route",
        "route",
        "table",
        "target",
        "upgrade",
    )

    method: bytes
    target: bytes
    minor: int
    host: bytes
    length: int
    chunked: bool
    keep_alive: bool
    expect: bool
    upgrade: bytes
    lines: bytes
    forwarded_for: bytes
    authorization: bytes
    context: tracecontext.Context | None
    asks: bool
    replays: bool
    has_id: bool
    is_head: bool
    idempotent: bool
    table: CompiledTable | None
    route: CompiledRoute | None
    fresh: bytes
    ring: Ring | None
    ring_route: CompiledRoute | None


class ResponseHead:
    """One response head.

    Attributes:
        length: From Content-Length; -1 without.
        keep: The upstream will keep the connection open.
        head: Status line and header lines to pass on, without the closing empty line.
        whole: `head` plus the empty line.
        same: `whole` is byte for byte what came in.
        upgrade: For 101: the protocol switched to.
    """

    __slots__ = ("chunked", "head", "keep", "length", "same", "status", "upgrade", "whole")

    status: int
    length: int
    chunked: bool
    keep: bool
    head: bytes
    whole: bytes
    same: bool
    upgrade: bytes


def parse_request(raw: bytes) -> RequestHead:
    """Return the head that `raw` (up to and with the empty line) is.

    Raises:
        HeadError: Anything malformed or ambiguous.
    """
    match = _REQUEST.fullmatch(raw)
    if match is None:
        raise HeadError(_diagnose(raw))
    head = RequestHead()
    head.method, target, minor, block = match.groups()
    head.minor = 1 if minor == b"1" else 0
    if block.count(b"\n") > MAX_HEADERS:
        raise HeadError(f"more than {MAX_HEADERS} headers")
    kept: list[bytes] = []
    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    connection: list[bytes] = []
    upgrade = expect = forwarded_for = authorization = b""
    parents: list[bytes] | None = None
    states: list[bytes] | None = None
    forwarded_host = has_id = asks = replays = False
    for line in block[:-2].split(b"\r\n") if block else ():
        name, _, value = line.partition(b":")
        name = name.lower()
        kind = _REQUEST_KIND.get(name)
        if kind is None:
            kept.append(line)
            continue
        value = value.strip(b" \t")
        if kind == _DROP:
            continue
        if kind == _AS_IT_IS:
            kept.append(line)
            if value:
                # Which one of several X-Request-Id is the request's is not ours to say.
                forwarded_host = forwarded_host or name == b"x-forwarded-host"
                has_id = has_id or name != b"x-forwarded-host"
        elif kind == _HOST_LINE:
            if host is not None:
                raise HeadError("more than one Host header")
            host = value
        elif kind == _LENGTH_LINE:
            if length is not None:
                raise HeadError("more than one Content-Length header")
            length = value
            kept.append(line)
        elif kind == _CODING:
            if coding is not None:
                raise HeadError("more than one Transfer-Encoding header")
            coding = value
        elif kind == _CONNECTION:
            connection += [t.strip(b" \t").lower() for t in value.split(b",")]
        elif kind == _UPGRADE:
            upgrade = value
        elif kind == _EXPECT:
            expect = value
        elif kind == _FORWARDED_FOR:
            forwarded_for = forwarded_for + b", " + value if forwarded_for else value
        elif kind == _TRACEPARENT:
            parents = [*(parents or ()), value]
            has_id = True
        elif kind == _TRACESTATE:
            states = [*(states or ()), line]
        elif kind == _ASKS:
            asks = wants_trace(value)
        elif kind == _REPLAYS:
            replays = True
        else:
            authorization = value
            kept.append(line)

    if target[:1] != b"/" and target != b"*":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise HeadError("the request target is neither a path nor an http URL")
        if host is None and head.minor:
            raise HeadError("no Host header")
        host, target = absolute.groups()
        if target[:1] != b"/":
            target = b"/" + target
    if b"#" in target:
        raise HeadError("a fragment in the request target")
    if target == b"*" and head.method != b"OPTIONS":
        raise HeadError("the request target * is for OPTIONS only")
    if host is None:
        if head.minor:
            raise HeadError("no Host header")
        host = b""
    name = _NAMES.get(host)
    if name is None:
        if not _HOST.fullmatch(host):
            raise HeadError("a Host header that is no host name")
        name = host_name(host)
        if len(_NAMES) >= _NAMES_LIMIT:
            _NAMES.clear()
        _NAMES[host] = name
    if coding is not None:
        if length is not None:
            raise HeadError("both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise HeadError("a Transfer-Encoding other than chunked")
        if not head.minor:
            raise HeadError("Transfer-Encoding in an HTTP/1.0 request")
    if length is not None and not _LENGTH.fullmatch(length):
        raise HeadError("a Content-Length that is no plain number")
    if expect and expect.lower() != b"100-continue":
        raise HeadError("an expectation other than 100-continue")
    try:
        httptools.HttpRequestParser(_NO_CALLBACKS).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise HeadError(str(error) or "refused by the parser") from error

    head.target = target
    head.host = name
    head.chunked = coding is not None
    head.length = int(length) if length is not None else 0
    head.keep_alive = b"close" not in connection and (
        head.minor == 1 or b"keep-alive" in connection
    )
    head.expect = bool(expect) and head.minor == 1 and (head.chunked or head.length > 0)
    # HTTP/2 in a tunnel would carry requests that nobody here has checked.
    wants_upgrade = b"upgrade" in connection and upgrade and b"h2" not in upgrade.lower()
    head.upgrade = upgrade if wants_upgrade and not head.chunked and not head.length else b""
    if connection and (dropped := {t for t in connection if t} - _KEPT):
        kept = [x for x in kept if x.partition(b":")[0].lower() not in dropped]
    head.context = tracecontext.read(parents) if parents else None
    if states and head.context is not None:
        kept += states
    kept.append(b"")
    out = b"Host: %b\r\n%b" % (host, b"\r\n".join(kept))
    if not forwarded_host and host:
        out += b"X-Forwarded-Host: %b\r\n" % host
    if head.chunked:
        out += b"Transfer-Encoding: chunked\r\n"
    if head.upgrade:
        out += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
    head.lines = out
    head.forwarded_for = forwarded_for
    head.authorization = authorization
    head.asks = asks
    head.replays = replays
    head.has_id = has_id
    head.is_head = head.method == b"HEAD"
    head.idempotent = (
        head.method in (b"GET", b"HEAD", b"OPTIONS") and not head.length and not head.chunked
    )
    head.table = head.route = head.ring = head.ring_route = None
    head.fresh = b""
    return head


def part_ids(raw: bytes) -> tuple[bytes, bytes]:
    """Return a request head without its `traceparent` and `x-request-id` lines, and these lines.

    What is left is the same for all requests of most callers. Lines that cannot be parted from the
    rest stay in it; then the second value is empty.
    """
    rest: list[bytes] = []
    ids: list[bytes] = []
    at = 0
    for match in _ID_OR_TIE.finditer(raw):
        line = match["id"]
        if line is None or len(rest) == _MAX_IDS:
            return raw, b""
        begin, end = match.span()
        rest.append(raw[at:begin])
        ids += (line, b"\r\n")
        at = end
    if not ids:
        return raw, b""
    rest.append(raw[at:])
    return b"".join(rest), b"".join(ids)


def parse_response(raw: bytes) -> ResponseHead:
    """Return the head that `raw` (up to and with the empty line) is.

    Raises:
        HeadError: Anything malformed, or framing that can be read in two ways.
    """
    match = _RESPONSE.fullmatch(raw)
    if match is None:
        raise HeadError("malformed response head")
    minor, code, phrase, block = match.groups()
    lines = block.split(b"\r\n")
    lines.pop()
    if len(lines) > MAX_HEADERS:
        raise HeadError(f"more than {MAX_HEADERS} response headers")
    head = ResponseHead()
    head.status = status = int(code)
    kept: list[tuple[bytes, bytes]] = []
    length: bytes | None = None
    coding: bytes | None = None
    connection: list[bytes] = []
    upgrade = b""
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        low = name.lower()
        if low == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise HeadError("ambiguous Content-Length in the response")
            length = value
            if status == 204 or status < 200:
                continue
        elif low == b"transfer-encoding":
            if coding is not None or value.lower() != b"chunked":
                raise HeadError("a Transfer-Encoding other than chunked in the response")
            coding = value
        elif low == b"connection":
            connection += [t.strip(b" \t").lower() for t in value.split(b",")]
        elif low == b"upgrade":
            upgrade = value
        if low not in _HOP:
            kept.append((name, value))
    if coding is not None and length is not None:
        raise HeadError("both Content-Length and Transfer-Encoding in the response")
    head.chunked = coding is not None
    head.length = int(length) if length is not None else -1
    head.keep = b"close" not in connection and (minor == b"1" or b"keep-alive" in connection)
    head.upgrade = upgrade if status == 101 else b""
    dropped = {t for t in connection if t} - _KEPT
    if dropped:
        kept = [(n, v) for n, v in kept if n.lower() not in dropped]
    out = [b"HTTP/1.1 %b %b\r\n" % (code, phrase or b"")]
    out += [b"%b: %b\r\n" % pair for pair in kept]
    head.head = b"".join(out)
    head.whole = head.head + b"\r\n"
    head.same = head.whole == raw
    return head


def read_response(raw: bytes) -> ResponseHead:
    """Return `parse_response(raw)`, kept for the next equal head.

    Equal heads are common: a server repeats itself within a second.
    """
    head = _ANSWERS.get(raw)
    if head is None:
        head = parse_response(raw)
        if len(raw) <= _ANSWERS_SIZE:
            if len(_ANSWERS) >= _ANSWERS_LIMIT:
                _ANSWERS.clear()
            _ANSWERS[raw] = head
    return head


def header_of(head: ResponseHead, name: bytes) -> bytes:
    """Return the first value of a header of an answer; empty without one.

    Args:
        name: In lower case.
    """
    for line in head.head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


def wants_trace(value: bytes) -> bool:
    """Whether a value of `TRACE_HEADER` asks for the trace."""
    return value.lower() not in (b"", b"0", b"false")


def host_name(host: bytes) -> bytes:
    """Return `host` in lower case, without port and without a closing dot."""
    host = host.lower()
    if host[-1:] != b"]":
        name, colon, port = host.rpartition(b":")
        if colon and (not port or port.isdigit()) and (b":" not in name or name[-1:] == b"]"):
            host = name
    return host[:-1] if host[-1:] == b"." else host


def refuse_early(part: bytes) -> str:
    """Say why a head that is not complete yet can never be right; empty: it may be."""
    if part == b"\r":
        return ""
    if len(part) > MAX_HEAD:
        return f"a head of more than {MAX_HEAD // 1024} KiB"
    if bare := _BARE.search(part):
        return "a bare line feed" if bare.group() == b"\n" else "a control byte in the head"
    line, end, _ = part.partition(b"\r\n")
    if end and not _REQUEST_LINE.fullmatch(line):
        return _bad_request_line(line)
    if line and not line[:1].isupper():
        return "no HTTP request (TLS to a plain port?)" if line[:1] == b"\x16" else "no method"
    if part.count(b"\r\n") > MAX_HEADERS + 2:
        return f"more than {MAX_HEADERS} headers"
    return ""


def _bad_request_line(line: bytes) -> str:
    version = line.rpartition(b" ")[2]
    if version.startswith(b"HTTP/") and version not in (b"HTTP/1.0", b"HTTP/1.1"):
        return "an HTTP version other than 1.0 and 1.1"
    return "a malformed request line"


def _diagnose(raw: bytes) -> str:
    """Name the first thing wrong in a head that did not match."""
    if bare := _BARE.search(raw):
        return "a bare line feed" if bare.group() == b"\n" else "a control byte in the head"
    first, *lines = raw.split(b"\r\n")
    if not _REQUEST_LINE.fullmatch(first):
        return _bad_request_line(first)
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            return "a folded header line"
        if line and not _HEADER_LINE.fullmatch(line):
            return "a malformed header line"
    return "a malformed head"
