"""A failed request in a line, for the log and `status`: which call, and what came of it. Pure.

`errors` words what the client reads, as a cluster does. This is for the person who asks which hop
of a service of several components it was.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from kserve_local.gateway.errors import Answer
from kserve_local.gateway.head import ResponseHead, header_of

HEARD = 2048
"""Bytes of an answer in which its reason is looked for."""
CUT = "the answer ended too early"
LEFT = "the caller left"

LONGEST = 300
_INFERENCE = re.compile(
    rb"/(?:v1/models/[^/?]+:(?:predict|explain)|v2/models/[^?]+/infer)(?=\?|\Z)"
)
_JSON = re.compile(rb'\s*[\[{"0-9tfn-]')
_OK = b"0"
# RFC 9113 section 6.
_SETTINGS, _GOAWAY = b"\x04", b"\x07"
# grpc/status.h
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# As 4xx: the client's own fault, or its wish.
_CLIENTS = frozenset((b"1", b"3", b"5", b"6", b"7", b"9", b"11", b"16"))


class Heard:
    """An answer that is looked at.

    Args:
        head: Its head.
        said: The beginning of its body, as far as it has come.
    """

    __slots__ = ("head", "said")

    def __init__(self, head: ResponseHead, said: bytes) -> None:
        self.head = head
        self.said = said[:HEARD]

    def take(self, data: bytes) -> None:
        """Keep what comes of the body, as long as it is its beginning."""
        if len(self.said) < HEARD:
            self.said += data[:HEARD]

    def why(self, asked: Head) -> str:
        """Return what is wrong with it, in its own words; empty: nothing, or it does not say."""
        if self.head.status >= 400:
            return reason(self.said)
        if self.head.status != 200:
            return ""
        return unreadable(asked, header_of(self.head, b"content-type"), self.said)


class Head(Protocol):
    """What of a request's head is shown."""

    method: Any
    target: Any


def counts(status: int, *, inner: bool) -> bool:
    """Whether an answer of a replica is a failure worth telling.

    Args:
        inner: One component asked another, so that also 4xx is no fault of the client's.
    """
    return status >= 500 or (inner and status >= 400)


def answered(head: Head, status: int, why: str = "") -> str:
    """Return what a replica did: `POST /v1/models/iris:predict was answered with 500: ...`."""
    return f"{call(head)} was answered with {status}{': ' if why else ''}{why}"[:LONGEST]


def reason(said: bytes) -> str:
    """Return what the body of an answer, of which `said` is the beginning, gives as its reason.

    Of the shapes that servers give errors in: KServe's, OpenAI's, FastAPI's; else the text. Empty
    for pages and for what is no text.
    """
    try:
        text = said.decode().strip()
    except UnicodeDecodeError as error:
        if len(said) < HEARD or error.start < len(said) - 4:
            return ""
        text = said[: error.start].decode().strip()
    if text[:1] in "{[":
        # Else its rest is missing, or it only looks like JSON.
        with contextlib.suppress(ValueError):
            text = _told(json.loads(text))
    elif text[:1] == "<":
        return ""
    return _line(text)


def _line(text: str) -> str:
    # It ends up on a terminal.
    line = " ".join(text.split())[:LONGEST]
    return "".join(c if c.isprintable() else "?" for c in line)


def _told(found: Any) -> str:
    if isinstance(found, Mapping):
        for key in ("error", "detail", "message", "cause"):
            if (value := found.get(key)) is not None:
                return _told(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def unreadable(head: Head, kind: bytes, said: bytes) -> str:
    """Return why an answer of a model server is none, although it is a success; empty: it is one.

    Args:
        kind: Its Content-Type.
        said: Its beginning.
    """
    if not _INFERENCE.search(bytes(head.target)):
        return ""
    name = kind.partition(b";")[0].strip().lower()
    if name != b"text/html" and (name != b"application/json" or _JSON.match(said)):
        return ""
    text = _line(said[:120].decode(errors="replace"))
    return f"the answer is no JSON{': ' if text else ''}{text[:60]}"


def spoken(data: bytes, *, wanted: str) -> str:
    """Return which other protocol a replica's bytes look like; empty: none that is known.

    Args:
        wanted: `HTTP/1.1` or `gRPC`.
    """
    found = ""
    if data.startswith(b"HTTP/1."):
        found = "HTTP/1.1"
    elif data[3:4] in (_SETTINGS, _GOAWAY) and data[5:9] == bytes(4):
        found = "gRPC"
    elif data[:2] in (b"\x15\x03", b"\x16\x03"):
        found = "TLS"
    return f"it speaks {found}, not {wanted}" if found not in ("", wanted) else ""


def text_of(answer: Answer) -> str:
    """Return what an answer of the gateway's own says."""
    return reason(answer.body) or answer.body.decode(errors="replace").strip()


def cut_short(head: Head, why: str) -> str:
    """Return that an answer has no end, and why."""
    return f"{call(head)}: {CUT}: {why}"[:LONGEST]


def left(head: Head, seconds: float) -> str:
    """Return that a component did not wait for another one's answer."""
    return f"{call(head)}: {LEFT} after {seconds:.1f} s without an answer"


def not_answered(head: Head, answer: Answer, why: str = "") -> str:
    """Return why no replica answered: `POST /v1/...: 502, dial tcp ...: connection refused`.

    Args:
        why: What the answer does not say.
    """
    if why:
        return f"{call(head)}: {answer.status}, {text_of(answer)} ({why})"[:LONGEST]
    return f"{call(head)}: {answer.status}, {text_of(answer)}"[:LONGEST].removesuffix(", ")


def of_rpc(head: Head, trailers: Iterable[tuple[bytes, bytes]], *, inner: bool) -> str:
    """Return what a gRPC call ended with, empty for OK and what is not worth telling.

    Args:
        inner: As of `counts`.
    """
    fields = dict(trailers)
    code = fields.get(b"grpc-status", _OK)
    if code == _OK or (code in _CLIENTS and not inner):
        return ""
    name, message = ended_with(fields)
    return f"{call(head)} ended with {name}{': ' if message else ''}{message}"[:LONGEST]


def ended_with(trailers: Mapping[bytes, bytes]) -> tuple[str, str]:
    """Return the name of a gRPC call's status, and its message."""
    message = _line(unquote(trailers.get(b"grpc-message", b"").decode("latin-1")))
    return code_name(trailers.get(b"grpc-status", _OK)), message


def code_name(code: bytes) -> str:
    """Return the name of a gRPC status; what is none as it is."""
    number = int(code) if code.isdigit() else len(_CODES)
    return _CODES[number] if number < len(_CODES) else code.decode("latin-1")


def reset(head: Head, code: str) -> str:
    """Return that a replica ended a call without a status."""
    return f"{call(head)} was reset: {code}"


def call(head: Head) -> str:
    """Return what was called: `POST /v1/models/iris:predict`, `ModelInfer`."""
    target = bytes(head.target).partition(b"?")[0].decode("latin-1")
    if target.startswith("/serving/"):
        target = "/" + "/".join(target.split("/")[4:])
    if target.startswith("/inference.GRPCInferenceService/"):
        return target.rpartition("/")[2]
    return f"{bytes(head.method).decode('latin-1')} {target}"
