"""Calls that the gateway has kept, sent again, and what came of it.

`recorded` reads them from the API, `distinct` picks, `replay_at` sends them to an address: a Pod's,
past the gateway, so that they are neither counted nor logged nor scaled for, or of the gateway
itself. `changes` says what another answer has become.
"""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from kserve_local.client.answers import TOLERANCE, Difference, compare
from kserve_local.client.http import send
from kserve_local.client.project import REQUESTS
from kserve_local.interfaces.recorded import REDACTED, REPLAY_HEADER, REPLAY_ID, REPLAY_TRACE

if TYPE_CHECKING:
    from kserve_local.client.client import Client

AT_ONCE = 4
"""Calls that `replay_at` has in flight."""
PATIENCE = 5.0
"""Seconds that each may take."""
_HEAD_LENGTH = "inference-header-content-length"
# Those of before say nothing of the call that is sent now.
_NOT_AGAIN = frozenset(
    ("x-request-id", "traceparent", "tracestate", "host", "content-length", REPLAY_HEADER)
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A call as the gateway kept it.

    Args:
        time: Seconds since 1970.
        component: Who took it; `inner`: on behalf of another component of the service.
        status: 0: the client left before there was one.
        size: Of the answer's body, in bytes.
        unreplayable: Why it cannot be sent again; empty: it can.
        headers: Redacted values are `REDACTED`.
        body, answer: None: not kept, or not asked for; `*_missing` says why.
    """

    id: str
    time: float
    namespace: str
    service: str
    component: str
    inner: bool
    revision: str
    protocol: str
    method: str
    path: str
    status: int
    ms: float
    size: int
    unreplayable: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    body_missing: str = ""
    redacted: tuple[str, ...] = ()
    answer_headers: tuple[tuple[str, str], ...] = ()
    answer: bytes | None = None
    answer_missing: str = ""

    @classmethod
    def of(cls, wire: Mapping[str, Any]) -> Recorded:
        """Return the call that the API's JSON tells of."""
        return cls(
            id=wire["id"],
            time=wire["time"],
            namespace=wire["namespace"],
            service=wire["service"],
            component=wire["component"],
            inner=wire["inner"],
            revision=wire["revision"],
            protocol=wire["protocol"],
            method=wire["method"],
            path=wire["path"],
            status=wire["status"],
            ms=wire["ms"],
            size=wire["bytes"],
            unreplayable=wire["unreplayable"],
            headers=_pairs(wire.get("headers")),
            body=_bytes(wire.get("body")),
            body_missing=wire.get("bodyMissing", ""),
            redacted=tuple(wire.get("redacted", ())),
            answer_headers=_pairs(wire.get("answerHeaders")),
            answer=_bytes(wire.get("answer")),
            answer_missing=wire.get("answerMissing", ""),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call that was sent again.

    Args:
        status: 0: there was no answer.
        error: Why there was none.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Which:
    """Whose calls are meant.

    Args:
        namespace, name: Of the service; empty: all.
        component: Those that this one took. Empty: those of clients, whoever took them.
    """

    namespace: str = ""
    name: str = ""
    component: str = ""


async def recorded(
    client: Client, which: Which, *, last: int = 0, bodies: bool = False
) -> list[Recorded]:
    """Return the calls that the gateway keeps, the newest last.

    Args:
        last: Only so many of the newest; 0: all.
        bodies: With headers, body and answer.

    Raises:
        ServiceUnavailable: The gateway is just being replaced.
    """
    query = {"last": str(last) if last else "", "bodies": "true" if bodies else ""}
    found = await client.call("GET", REQUESTS, query={**asdict(which), **query})
    return [Recorded.of(wire) for wire in found["requests"]]


async def recorded_one(client: Client, id: str, which: Which) -> Recorded:
    """Return the newest call whose id is or begins with `id`, with all of it.

    Raises:
        NotFound: None has.
    """
    path = f"{REQUESTS}/{quote(id, safe='')}"
    return Recorded.of(await client.call("GET", path, query=asdict(which)))


def distinct(requests: Sequence[Recorded], count: int) -> list[Recorded]:
    """Return the newest `count` that can be sent again, of equal ones the last, the newest last."""
    found: dict[tuple[str, str, bytes | None], Recorded] = {}
    for request in reversed(requests):
        if len(found) >= count:
            break
        if not request.unreplayable:
            found.setdefault((request.method, request.path, request.body), request)
    return list(found.values())[::-1]


async def replay_at(
    requests: Sequence[Recorded],
    base_url: str,
    *,
    headers: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
    at_once: int = AT_ONCE,
) -> list[Answer]:
    """Send calls again and return the answers, in their order. What goes wrong is in the answer.

    Args:
        base_url: `http://ADDRESS:PORT`, with the path before a model server's own if there is one.
        headers: In place of those that were recorded; `Host` leads to one revision at the gateway.
        patience: Seconds for each.
    """
    turns = asyncio.Semaphore(at_once)

    async def one(request: Recorded) -> Answer:
        async with turns:
            return await _again(request, base_url, headers or {}, patience)

    return list(await asyncio.gather(*map(one, requests)))


async def _again(
    request: Recorded, base_url: str, headers: Mapping[str, str], patience: float
) -> Answer:
    began = monotonic()

    def without(error: str) -> Answer:
        return Answer(0, (), b"", monotonic() - began, error)

    if request.unreplayable or request.body is None:
        return without(request.unreplayable or "its body was not asked for")
    ours = {name.lower() for name in headers}
    kept = [
        (name, value)
        for name, value in request.headers
        if name.lower() not in _NOT_AGAIN | ours and value != REDACTED
    ]
    kept += [
        ("x-request-id", f"{REPLAY_ID}{uuid4()}"),
        ("traceparent", f"00-{REPLAY_TRACE}{token_hex(8)}-{token_hex(8)}-01"),
    ]
    at = urlsplit(base_url)
    try:
        async with asyncio.timeout(patience):
            status, told, body = await send(
                f"{at.scheme}://{at.netloc}",
                request.method,
                at.path.rstrip("/") + request.path,
                headers=[*kept, *headers.items()],
                body=request.body,
            )
    except TimeoutError:
        return without(f"no answer within {patience:g} s")
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        return without(f"no answer: {error or type(error).__name__}")
    return Answer(status, tuple(told), body, monotonic() - began)


def incomparable(request: Recorded) -> str:
    """Return why nothing can be compared with a recorded answer; empty: it can."""
    if not request.status:
        return "its client left before there was an answer"
    return f"its answer is {request.answer_missing}" if request.answer_missing else ""


def changes(request: Recorded, answer: Answer, *, tolerance: float = TOLERANCE) -> list[Difference]:
    """Return what another answer to a recorded call has become; empty: it says the same.

    Of an answer with another status only that is told.
    """
    if answer.status != request.status:
        return [Difference("status", request.status, answer.status or answer.error)]
    return compare(
        _decoded(request.answer or b"", request.answer_headers),
        _decoded(answer.body, answer.headers),
        tolerance=tolerance,
        before_head=_head_length(request.answer_headers),
        after_head=_head_length(answer.headers),
    )


def header(headers: Sequence[tuple[str, str]], name: str) -> str:
    """Return the first value of a header (lower case); empty without one."""
    return next((value for key, value in headers if key.lower() == name), "")


def _decoded(body: bytes, headers: Sequence[tuple[str, str]]) -> bytes:
    if header(headers, "content-encoding") in ("gzip", "x-gzip", "deflate"):
        try:
            return zlib.decompress(body, wbits=47)
        except zlib.error:
            return body
    return body


def _head_length(headers: Sequence[tuple[str, str]]) -> int | None:
    value = header(headers, _HEAD_LENGTH)
    return int(value) if value.isdecimal() else None


def _pairs(pairs: Sequence[Sequence[str]] | None) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in pairs or ())


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
