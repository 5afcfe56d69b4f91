"""A failed request in a line, for the log and `status`: which call, and what came of it. Pure.

`errors` words what the client reads, as a cluster does. This is for the person who asks which hop
of a service of several components it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol
from urllib.parse import unquote

from kserve_local.gateway.errors import Answer

_LONGEST = 300
_OK = b"0"
# grpc/status.h
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# As 4xx: the client's own fault, or its wish.
_CLIENTS = frozenset((b"1", b"3", b"5", b"6", b"7", b"9", b"11", b"16"))


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


def answered(head: Head, status: int) -> str:
    """Return what a replica did: `POST /v1/models/iris:predict was answered with 500`."""
    return f"{_call(head)} was answered with {status}"


def not_answered(head: Head, answer: Answer) -> str:
    """Return why no replica answered: `POST /v1/...: 502, dial tcp ...: connection refused`."""
    text = answer.body.decode(errors="replace").strip()
    return f"{_call(head)}: {answer.status}, {text}"[:_LONGEST].removesuffix(", ")


def of_rpc(head: Head, trailers: Iterable[tuple[bytes, bytes]], *, inner: bool) -> str:
    """Return what a gRPC call ended with, empty for OK and what is not worth telling.

    Args:
        inner: As of `counts`.
    """
    fields = dict(trailers)
    code = fields.get(b"grpc-status", _OK)
    if code == _OK or (code in _CLIENTS and not inner):
        return ""
    number = int(code) if code.isdigit() else len(_CODES)
    name = _CODES[number] if number < len(_CODES) else code.decode("latin-1")
    message = unquote(fields.get(b"grpc-message", b"").decode("latin-1"))
    # It ends up on a terminal.
    message = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    text = f"{_call(head)} ended with {name}" + (f": {message}" if message else "")
    return text[:_LONGEST]


def _call(head: Head) -> str:
    target = bytes(head.target).partition(b"?")[0].decode("latin-1")
    if target.startswith("/serving/"):
        target = "/" + "/".join(target.split("/")[4:])
    if target.startswith("/inference.GRPCInferenceService/"):
        return target.rpartition("/")[2]
    return f"{bytes(head.method).decode('latin-1')} {target}"
