"""`predict --protocol grpc`: the same call over gRPC, through the gateway's one port."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kserve_local.client import oip_grpc
from kserve_local.errors import ServiceUnavailable, TimedOut, UsageError

_NOT_SENT = frozenset(("content-type", "host"))
LIMIT = 256 * 1024 * 1024
# gRPC's codes as the HTTP statuses that its own gateways give for them.
_STATUS = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409,
    "ABORTED": 409, "RESOURCE_EXHAUSTED": 429, "CANCELLED": 499, "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip


def call(
    url: str,
    prefix: str,
    model: str,
    body: bytes,
    *,
    timeout: float,
    headers: Mapping[str, str],
) -> tuple[int, dict[str, str], bytes]:
    """Call `ModelInfer`; return what `predict.call` does for the same call over HTTP.

    Args:
        prefix: Path that leads to the service; empty where `Host` in the headers does.

    Raises:
        UsageError: The body is no V2 request.
        TimedOut: No answer in time.
        ServiceUnavailable: The gateway cannot be reached.
    """
    message = oip_grpc.request(model, oip_grpc.read_body(body))
    try:
        import grpc
    except ImportError as error:
        raise UsageError("gRPC needs grpcio", hint="pip install grpcio") from error
    at = urlsplit(url)
    options: list[tuple[str, object]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", LIMIT),
        ("grpc.max_send_message_length", LIMIT),
    ]
    host = headers.get("Host")
    if host:
        options.append(("grpc.default_authority", host))
    metadata = [(n.lower(), v) for n, v in headers.items() if n.lower() not in _NOT_SENT]
    with grpc.insecure_channel(f"{at.hostname}:{at.port or 80}", options) as channel:
        method = channel.unary_unary(f"{prefix}{oip_grpc.METHOD}")
        try:
            answer, ended = method.with_call(message, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            return _failed(error, url, timeout)
        told = _told(ended)
    return 200, told, json.dumps(oip_grpc.response(answer), separators=(",", ":")).encode()


def _failed(error: object, url: str, timeout: float) -> tuple[int, dict[str, str], bytes]:
    code = error.code().name  # type: ignore[attr-defined]  # every RpcError of a call has both
    details = str(error.details() or "")  # type: ignore[attr-defined]
    # Our own deadline; some versions of grpcio say more around it.
    if code == "DEADLINE_EXCEEDED" and "Deadline Exceeded" in details:
        raise TimedOut(f"no answer within {timeout:g} s from {url}")
    if code == "UNAVAILABLE" and "failed to connect to all addresses" in details:
        raise ServiceUnavailable(
            f"the gateway at {url} did not answer: {details}", hint="kserve-local up"
        )
    return _STATUS.get(code, 500), _told(error), f"{code}: {details}".encode()


def _told(call: Any) -> dict[str, str]:
    """Return the trailing metadata of a call that has ended, but for what is no text."""
    return {str(k): v for k, v in call.trailing_metadata() or () if isinstance(v, str)}


def as_grpcurl(url: str, prefix: str, model: str, headers: Mapping[str, str], body: bytes) -> str:
    """Return the grpcurl command of a call."""
    at = urlsplit(url)
    words = ["grpcurl", "-plaintext"]
    host = headers.get("Host") or prefix_host(prefix)
    words += ["-authority", host]
    words += ["-d", json.dumps(oip_grpc.as_grpcurl(model, oip_grpc.read_body(body)))]
    words += [f"{at.hostname}:{at.port or 80}", oip_grpc.METHOD[1:]]
    return shlex.join(words)


def prefix_host(prefix: str) -> str:
    """Return the host that stands for a service as `/serving/NAMESPACE/NAME` does."""
    _, _, namespace, name = prefix.split("/")
    return f"{name}.{namespace}.localhost"
