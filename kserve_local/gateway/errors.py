"""The gateway's own answers, worded as the hop that would give them in a cluster.

Envoy/Istio: no route (404, empty body), no endpoint, protocol errors. Knative's activator: time
limits, full queue, connection errors (Go's words). KServe's or OpenAI's JSON shape where the
cluster has no answer of its own: a revision that failed, an unknown model in the short form.

Source: traffic.md sections 2.4, 2.5, 7.7; data-plane.md sections 1, 2.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

PHRASES = {
    100: b"Continue",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Payload Too Large",
    417: b"Expectation Failed",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    200: b"OK",
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

TIMEOUT = b"activator request timeout"
DIRECT_TIMEOUT = b"request timeout"
"""What the activator says, and queue-proxy where the activator is out of the path."""
_RESET = b"upstream connect error or disconnect/reset before headers. reset reason: "
PROTOCOL_ERROR = _RESET + b"protocol error"
UPSTREAM_RESET = _RESET + b"connection termination"
CONNECT_FAILED = (
    _RESET + b"remote connection failure, transport failure reason: delayed connect error: "
    b"Connection refused"
)


class Answer:
    """A complete answer of our own.

    Args:
        headers: Extra header lines, each ending in CRLF.
        close: The connection cannot be used any more.
    """

    __slots__ = ("body", "close", "headers", "kind", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        kind: bytes = b"text/plain; charset=utf-8",
        headers: bytes = b"",
        close: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.kind = kind
        self.headers = headers
        self.close = close

    def encode(self, *, close: bool, head_only: bool) -> bytes:
        """Return the bytes to send."""
        return b"HTTP/1.1 %d %b\r\n%b%b%bContent-Length: %d\r\n\r\n%b" % (
            self.status,
            PHRASES.get(self.status, b"Unknown"),
            b"Content-Type: %b\r\n" % self.kind if self.body else b"",
            self.headers,
            b"Connection: close\r\n" if close or self.close else b"",
            len(self.body),
            b"" if head_only else self.body,
        )


def bad_request(why: str) -> Answer:
    """Refuse a malformed or ambiguous message, and the connection with it."""
    return Answer(400, b"Bad Request", headers=_hint(why), close=True)


def unauthorized() -> Answer:
    """Refuse a request without the token, which any address but loopback needs."""
    return Answer(
        401,
        _error_body(401, "a bearer token is required", "AuthenticationError", openai=False),
        kind=b"application/json",
        headers=b'WWW-Authenticate: Bearer realm="kserve-local"\r\n',
    )


def unknown_host(hint: str) -> Answer:
    """Answer as Istio's gateway where no host or rule matches; the hint header is ours."""
    return Answer(404, headers=_hint(hint))


def unknown_model(text: str, hint: str, *, openai: bool, models: Iterable[str] = ()) -> Answer:
    """Answer as a model server that does not know the model.

    Args:
        models: Those that there are; the header that names them is that of our model servers.
    """
    return Answer(
        404,
        _error_body(404, text, "NotFoundError", openai=openai),
        kind=b"application/json",
        headers=_hint(hint) + _line(b"x-kserve-local-models", ", ".join(models)),
    )


def failed(reason: str, *, openai: bool) -> Answer:
    """Answer for a target that cannot come without a change."""
    return Answer(
        503,
        _error_body(503, reason or "the revision failed", "ServiceUnavailable", openai=openai),
        kind=b"application/json",
    )


def no_upstream(why: str = "") -> Answer:
    """Envoy's words for a route without endpoints; the hint header is ours."""
    return Answer(503, b"no healthy upstream", kind=b"text/plain", headers=_hint(why))


def connect_failed(why: str) -> Answer:
    """Envoy's words for an upstream that takes no connection; `why` is Go's for the hint."""
    return Answer(503, CONNECT_FAILED, kind=b"text/plain", headers=_hint(why))


def upstream_reset() -> Answer:
    """Envoy's words for a connection that ended before an answer."""
    return Answer(503, UPSTREAM_RESET, kind=b"text/plain")


def protocol_error(hint: str = "") -> Answer:
    """Envoy's words for an upstream answer that cannot be read in one way only."""
    return Answer(502, PROTOCOL_ERROR, kind=b"text/plain", headers=_hint(hint))


def bad_gateway(text: str) -> Answer:
    """Go's reverse proxy as the activator: `text` is Go's error."""
    return Answer(502, text.encode() + b"\n", headers=b"X-Content-Type-Options: nosniff\r\n")


def revision_gone(target: str) -> Answer:
    """The activator's words for a revision that no longer exists; `target` is `ns/revision`."""
    name = target.rpartition("/")[2]
    return Answer(
        404,
        b'Error getting active endpoint: revision.serving.knative.dev "%b" not found\n'
        % name.encode(),
        headers=b"X-Content-Type-Options: nosniff\r\n",
    )


def queue_full() -> Answer:
    """The breaker's words; Retry-After is ours."""
    return Answer(
        503,
        b"pending request queue full\n",
        headers=b"X-Content-Type-Options: nosniff\r\nRetry-After: 1\r\n",
    )


def timed_out(text: bytes = TIMEOUT) -> Answer:
    """The total limit, before anything was answered."""
    return Answer(504, text)


def upstream_timed_out() -> Answer:
    """Envoy's words for a route's limit, before anything was answered."""
    return Answer(504, b"upstream request timeout", kind=b"text/plain")


def is_openai(target: bytes) -> bool:
    """Say whether clients of this path expect OpenAI's error shape."""
    return target.startswith(
        (b"/openai/", b"/v1/chat/", b"/v1/completions", b"/v1/embeddings", b"/v1/rerank")
    )


def _error_body(code: int, text: str, kind: str, *, openai: bool) -> bytes:
    if openai:
        return orjson.dumps(
            {"error": {"message": text, "type": kind, "param": "", "code": str(code)}}
        )
    return orjson.dumps({"error": text})


def _hint(text: str) -> bytes:
    return _line(b"x-kserve-local-hint", text)


def _line(name: bytes, text: str) -> bytes:
    """Return a header line of ours, none for an empty text."""
    if not text:
        return b""
    clean = "".join(c if " " <= c <= "~" else "?" for c in text)[:1000]
    return b"%b: %b\r\n" % (name, clean.encode())
