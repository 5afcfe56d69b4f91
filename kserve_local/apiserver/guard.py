"""Who may call: Host, Origin, bearer token, body size. An ASGI layer around the whole API.

The API can start commands, so every request needs the kubeconfig's token, even on loopback; a
browser page cannot have it, and is refused by Host and Origin as well (DNS rebinding).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kserve_local.apiserver.errors import failure
from kserve_local.errors import ApiError, BadRequest, Forbidden, KServeLocalError, Unauthorized

MAX_BODY_BYTES = 3 * 1024 * 1024
_OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/version", "/version/"})
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Lets only our own clients through.

    Args:
        token: Bearer token of every request but health and version.
        hosts: Names, beside those of loopback, that the server is called by.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._hosts = frozenset(h.lower() for h in (*LOCAL_NAMES, *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            self._check(scope["path"], headers)
        except KServeLocalError as error:
            await _refuse(error, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > MAX_BODY_BYTES:
                    raise too_large()
            return message

        await self._app(scope, bounded, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if _without_port(host).lower() not in self._hosts:
            raise Forbidden(
                f'Host "{host}" is not a name of this server; call it as localhost or 127.0.0.1'
            )
        if b"origin" in headers:
            raise Forbidden("requests of web pages (with an Origin header) are refused")
        if path not in _OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                raise Unauthorized("Unauthorized")
        length = headers.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                raise BadRequest("Content-Length is not a number")
            if int(length) > MAX_BODY_BYTES:
                raise too_large()


def too_large() -> ApiError:
    """Return the 413."""
    return ApiError(
        f"Request entity too large: limit is {MAX_BODY_BYTES}",
        code=413,
        reason="RequestEntityTooLarge",
    )


def _without_port(host: str) -> str:
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name if not rest or (rest[0] == ":" and rest[1:].isdigit()) else host
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


async def _refuse(error: KServeLocalError, send: Send) -> None:
    status = failure(error)
    body = orjson.dumps(status)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The body of the request was not read: this connection cannot be used again.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status["code"], "headers": headers})
    await send({"type": "http.response.body", "body": body})
