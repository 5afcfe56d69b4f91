"""Recorded calls as they are shown: put together from what the recorder kept, and redacted. Pure.

Nothing of a recorded call leaves the gateway but through `told`. Headers are the client's; what
concerns one connection only, or was added by the gateway, is left out, so that they can be sent
again as they are.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from kserve_local.gateway.chunked import ChunkDecoder, ChunkError
from kserve_local.gateway.recorder import BODY_LIMIT, Entry, Key, Pieces
from kserve_local.gateway.redaction import WITHHELD, Redaction
from kserve_local.interfaces.recorded import REDACTED

TOO_LARGE = f"too large: more than {BODY_LIMIT // 1024} KiB"
_OURS = frozenset(
    (
        "connection", "content-length", "host", "k-proxy-request", "kserve-isvc-name",
        "kserve-isvc-namespace", "traceparent", "tracestate", "transfer-encoding",
        "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
    )
)  # fmt: skip
TENSORS = "inference-header-content-length"
_ID = "x-request-id"


def identity(entry: Entry) -> str:
    """Return a call's name: its `x-request-id`, else one made of its number."""
    headers = _lines(entry.fresh.partition(b"\r\n\r\n")[0])
    given = next((v for n, v in headers if n.lower() == _ID and v), "")
    return given or f"{binascii.crc32(b'%d' % entry.number):08x}"


def told(
    key: Key, entry: Entry, redaction: Redaction, *, inner: bool, bodies: bool, clock: float
) -> dict[str, Any]:
    """Return a call as JSON; bodies in base64, null where there is none to show (and why).

    Args:
        inner: It is of a component that only others call.
        clock: What is added to a time of the entry for seconds since 1970.
    """
    raw, _, rest = entry.fresh.partition(b"\r\n\r\n")
    line = raw.partition(b"\r\n")[0].decode("latin-1")
    method, target, _ = line.split(" ", 2)
    every = _lines(raw)
    named = {n.lower(): v for n, v in every}
    headers = redaction.headers([(n, v) for n, v in every if n.lower() not in _OURS])
    body, size, missing = _request_body(entry, rest, chunked="transfer-encoding" in named)
    fields: list[str] = []
    if body is not None:
        readable = TENSORS not in named and "content-encoding" not in named
        body, fields = redaction.body(body, readable=readable)
        missing = WITHHELD if body is None else ""
    path = redaction.path(target)
    answer_headers, answer, answer_size, answer_missing = _answer(entry, redaction)
    namespace, service, component = key
    found = {
        "id": identity(entry),
        "time": round(entry.began + clock, 3),
        "namespace": namespace,
        "service": service,
        "component": component,
        "inner": inner,
        "revision": entry.target.rpartition("/")[2],
        "protocol": entry.protocol,
        "method": method,
        "path": path,
        "host": named.get("host", ""),
        "status": entry.status,
        "ms": round((entry.ended - entry.began) * 1000, 1),
        "bytes": answer_size,
        "requestBytes": size,
        "unreplayable": _why_not(entry, missing, fields, path != target),
    }
    if bodies:
        found |= {
            "headers": headers,
            "body": _text(body),
            "bodyMissing": missing,
            "redacted": [*(n for n, v in headers if v == REDACTED), *fields],
            "answerHeaders": answer_headers,
            "answer": _text(answer),
            "answerMissing": answer_missing,
        }
    return found


def _why_not(entry: Entry, missing: str, fields: list[str], path: bool) -> str:
    """Return why a call cannot be sent again; empty: it can."""
    if missing:
        return f"its body is {missing}"
    if not entry.whole:
        return "its client left before it had sent all of it"
    if fields:
        return f"fields of its body are redacted: {', '.join(fields[:3])}"
    return "a parameter of its path is redacted" if path else ""


def _request_body(entry: Entry, rest: bytes, *, chunked: bool) -> tuple[bytes | None, int, str]:
    """Return the body (None: not kept), its size, and why it is missing."""
    sent = entry.sent
    if sent is not None and sent.cut:
        return None, len(rest) + sent.size, TOO_LARGE
    body = rest + b"".join(sent.pieces) if sent is not None else rest
    if chunked:
        try:
            body = b"".join(ChunkDecoder().feed(body))
        except ChunkError:
            return None, len(body), "not readable: its chunks are broken"
    return body, len(body), ""


def _answer(
    entry: Entry, redaction: Redaction
) -> tuple[list[tuple[str, str]], bytes | None, int, str]:
    """Return the answer's headers, its body, the body's size, and why it is missing."""
    head, said, body = b"", entry.said, b""
    if isinstance(said, bytes):
        head, _, body = said.partition(b"\r\n\r\n")
    if entry.answer is not None:
        head = entry.answer.head
    headers = [
        (n, v)
        for n, v in _lines(head)
        if n.lower() not in ("content-length", "transfer-encoding", "connection")
    ]
    named = {n.lower(): v for n, v in headers}
    size, missing = len(body), ""
    if isinstance(said, Pieces):
        body, size = b"".join(said.pieces), said.size
        missing = TOO_LARGE if said.cut else ""
        if said.cut and said.pieces:
            # A stream: its beginning is here, and its last line may be half a one.
            body = body[: body.rfind(b"\n") + 1]
        elif said.cut:
            return redaction.headers(headers), None, size, missing
    elif isinstance(said, bytes) and len(body) > BODY_LIMIT:
        return redaction.headers(headers), None, size, TOO_LARGE
    readable = TENSORS not in named and "content-encoding" not in named
    shown, _ = redaction.body(body, readable=readable)
    return redaction.headers(headers), shown, size, WITHHELD if shown is None else missing


def _lines(head: bytes) -> list[tuple[str, str]]:
    """Return the header lines below the first line of a head."""
    pairs: Iterable[tuple[str, str, str]] = (
        line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line
    )
    return [(name, value.strip()) for name, _, value in pairs]


def _text(body: bytes | None) -> str | None:
    return None if body is None else base64.b64encode(body).decode()
