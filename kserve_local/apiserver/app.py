"""The Kubernetes API as an ASGI app over one store.

One catch-all route serves every resource path; the rest is discovery, OpenAPI, health and version.
CLI, TUI, watcher and kubectl use only this. Errors are always a `metav1.Status` in JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from kserve_local.apiserver import discovery, openapi
from kserve_local.apiserver.admission import Admission
from kserve_local.apiserver.errors import failure
from kserve_local.apiserver.guard import Guard
from kserve_local.apiserver.logs import LogReader
from kserve_local.apiserver.paths import UNKNOWN_PATH, Target, parse
from kserve_local.apiserver.resources import Answer, Resources
from kserve_local.apiserver.watch import OpenStreams
from kserve_local.errors import KServeLocalError, MethodNotAllowed, NotFound
from kserve_local.store.store import Store

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    store: Store,
    *,
    token: str,
    hosts: Iterable[str] = (),
    log_reader: LogReader | None = None,
    extra_routes: Sequence[BaseRoute] = (),
    streams: OpenStreams | None = None,
) -> ASGIApp:
    """Return the API.

    Args:
        token: Bearer token that every request but health and version must carry.
        hosts: Names beside localhost, 127.0.0.1 and ::1 that the server may be called by.
        log_reader: Where `pods/log` comes from; None: there are no logs.
        extra_routes: More routes, served first, behind the same token; their KServeLocalErrors are
            answered as `Status` like all others. Put them under `/apis/kserve-local.dev/v1/`.
        streams: Ends watches and followed logs when the server stops (`serve.serving` does).
    """
    streams = streams or OpenStreams()
    admission = Admission(store)
    resources = Resources(store, admission, log_reader=log_reader, streams=streams)

    async def resource(request: Request) -> Response:
        path = request.url.path
        if request.method == "GET" and path.count("/") <= (2 if path.startswith("/api/") else 3):
            return _discovered(request)
        target = parse(path)
        request.state.target = target
        return await resources.handle(request, target)

    async def discovered(request: Request) -> Response:
        return _discovered(request)

    async def healthy(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def schemas(request: Request) -> Response:
        return _document(request, openapi.find(request.url.path))

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    everything = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    app.router.routes[:] = [
        *extra_routes,
        *(Route(path, healthy) for path in ("/healthz", "/livez", "/readyz")),
        *(Route(path, discovered) for path in ("/version", "/version/", "/api", "/apis")),
        Route("/openapi/v3", schemas),
        Route("/openapi/v3/{path:path}", schemas),
        Route("/api/{path:path}", resource, methods=everything),
        Route("/apis/{path:path}", resource, methods=everything),
    ]
    app.router.redirect_slashes = False
    app.add_exception_handler(KServeLocalError, _failed)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _unexpected)
    return Guard(app, token=token, hosts=hosts)


def _discovered(request: Request) -> Response:
    path = "/version" if request.url.path == "/version/" else request.url.path
    return _document(request, discovery.find(path, request.headers.get("accept", "")))


def _document(request: Request, document: discovery.Document) -> Response:
    headers = {"etag": document.etag, "vary": "Accept"}
    if request.headers.get("if-none-match") == document.etag:
        return Response(status_code=304, headers=headers)
    return Response(document.body, media_type=document.media_type, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, KServeLocalError)
    target: Target | None = getattr(request.state, "target", None)
    status = failure(error, target)
    headers = {"retry-after": "1"} if status["code"] in (429, 503, 504) else None
    return Answer(status, status_code=status["code"], headers=headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        text = "the server does not allow this method on the requested resource"
        return await _failed(request, MethodNotAllowed(text))
    return await _failed(request, NotFound(UNKNOWN_PATH))


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    text = f"Internal error occurred: {type(error).__name__}: {error}"
    return Answer(failure(KServeLocalError(text)), status_code=500)


def json_route(path: str, handler: Callable[[Request], Awaitable[object]], method: str) -> Route:
    """Return a route whose handler's result is answered as JSON; for `extra_routes`."""

    async def endpoint(request: Request) -> Response:
        body = orjson.dumps(await handler(request))
        return Response(body, media_type="application/json")

    return Route(path, endpoint, methods=[method])
