"""The REST surface: which path and method does what, for V1, V2, repository, health and metrics.

Route table, orders of checks and texts are KServe 0.20's (FastAPI's where it answers by itself).
A request whose model may share calls takes the short way: decode, queue, encode, without a task.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import orjson

from modelserver import cloudevents, metrics, oip, v1
from modelserver.batching import Job
from modelserver.dataplane import DataPlane, Served
from modelserver.errors import DataPlaneError, HTTPError, answer_of
from modelserver.http import JSON, Connection, Head
from modelserver.latency import LatencyLog
from modelserver.model import InferRequest, RowModel
from modelserver.oip_schema import SchemaError, missing_body
from modelserver.openapi import HTML, OAUTH_REDIRECT_PAGE, docs_page, document

logger = logging.getLogger(__name__)

Handler = Callable[[Connection, Head, bytes, str], None]
Headers = tuple[tuple[bytes, bytes], ...]

_VERSIONS = b'{"error":"Model versioning not supported yet."}'
_METHOD_NOT_ALLOWED = b'{"detail":"Method Not Allowed"}'
_NOT_FOUND = b'{"detail":"Not Found"}'


class _Route:
    """A path pattern; `{m}` is one segment."""

    __slots__ = ("allow", "handler", "methods", "pattern")

    def __init__(self, methods: str, path: str, handler: Handler) -> None:
        self.methods = methods.split()
        self.allow = ", ".join(self.methods).encode()
        self.pattern = re.compile(re.escape(path).replace(r"\{m\}", "([^/]+)").replace(
            r"\{v\}", "[^/]+") + r"\Z")  # fmt: skip
        self.handler = handler


class Target:
    """Where a request goes, and how it is to be read; remembered with its head.

    Args:
        json: A V2 body is JSON, not a binary request.
        structured, event: A V2 answer is to be a CloudEvent (in structured mode).
    """

    __slots__ = ("event", "handler", "json", "name", "structured")

    def __init__(self, handler: Handler, name: str, headers: Mapping[str, str]) -> None:
        self.handler = handler
        self.name = name
        content_type = headers.get("content-type")
        self.json = oip.is_json(content_type)
        self.structured = content_type == cloudevents.STRUCTURED_TYPE
        self.event = self.structured or cloudevents.is_binary(headers)


class Rest:
    """Answers every request of a model server (`modelserver.http.App`).

    Args:
        version: What `GET /v2` reports.
        docs: Serve `/docs` (`--enable_docs_url`).
    """

    def __init__(
        self,
        dataplane: DataPlane,
        *,
        version: str,
        docs: bool = False,
        latency: LatencyLog | None = None,
    ) -> None:
        self._data = dataplane
        self._latency = latency
        self._version = version
        pages: list[_Route] = [_Route("GET HEAD", "/openapi.json", self._openapi)]
        if docs:
            pages.append(_Route("GET HEAD", "/docs", self._docs))
            pages.append(_Route("GET HEAD", "/docs/oauth2-redirect", self._docs_redirect))
        # Upstream's order: the first route whose path fits decides about a wrong method.
        self._routes = [
            *pages,
            _Route("GET", "/", self._alive),
            _Route("GET", "/metrics", self._metrics),
            _Route("GET", "/v1/models", self._models),
            _Route("GET", "/v1/models/{m}", self._v1_ready),
            _Route("POST", "/v1/models/{m}:predict", self._v1_predict),
            _Route("POST", "/v1/models/{m}:explain", self._v1_explain),
            _Route("GET", "/v2", self._metadata),
            _Route("GET", "/v2/health/live", self._live),
            _Route("GET", "/v2/health/ready", self._ready),
            _Route("GET", "/v2/models", self._models),
            _Route("GET", "/v2/models/{m}", self._model_metadata),
            _Route("GET", "/v2/models/{m}/versions/{v}", self._versioned),
            _Route("GET", "/v2/models/{m}/ready", self._model_ready),
            _Route("GET", "/v2/models/{m}/versions/{v}/ready", self._versioned),
            _Route("POST", "/v2/models/{m}/infer", self._v2_infer),
            _Route("POST", "/v2/models/{m}/versions/{v}/infer", self._v2_infer_versioned),
            _Route("POST", "/v2/repository/models/{m}/load", self._load),
            _Route("POST", "/v2/repository/models/{m}/unload", self._unload),
        ]
        self._by_method: dict[str, list[_Route]] = {}
        for route in self._routes:
            for method in route.methods:
                self._by_method.setdefault(method, []).append(route)

    # -- routing -----------------------------------------------------------------------------------

    def route(self, head: Head) -> Target:
        """Return what a head alone decides about its request."""
        handler, name = self._find(head)
        return Target(handler, name, head.headers)

    def _find(self, head: Head) -> tuple[Handler, str]:
        """Return the handler of a request and the model name in its path ("" without one)."""
        for route in self._by_method.get(head.method, ()):
            match = route.pattern.match(head.path)
            if match is not None:
                return route.handler, match[1] if match.re.groups else ""
        for route in self._routes:
            if route.pattern.match(head.path):
                return self._refuse_method(route.allow), ""
        if head.path != "/" and head.path.endswith("/"):
            path = head.path.rstrip("/")
            if any(route.pattern.match(path) for route in self._routes):
                return self._redirect, ""
        return self._not_found, ""

    def handle(self, connection: Connection, head: Head, body: bytes) -> None:
        """Answer a request."""
        target: Target = head.route
        try:
            target.handler(connection, head, body, target.name)
        except Exception as error:
            self._fail(connection, error)

    def _refuse_method(self, allow: bytes) -> Handler:
        def refuse(connection: Connection, head: Head, body: bytes, name: str) -> None:
            connection.send(405, _METHOD_NOT_ALLOWED, JSON, ((b"allow", allow),))

        return refuse

    def _redirect(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        query = f"?{head.query}" if head.query else ""
        host = head.headers.get("host", "localhost")
        location = f"http://{host}{head.raw_path.rstrip('/')}{query}"
        connection.send(307, b"", None, ((b"location", location.encode("latin-1")),))

    def _not_found(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(404, _NOT_FOUND)

    def _fail(self, connection: Connection, error: Exception) -> None:
        """Send the answer to an error."""
        if isinstance(error, SchemaError):
            connection.send(422, _json({"detail": error.detail}))
            return
        status, body, headers = answer_of(error)
        if not isinstance(error, DataPlaneError | HTTPError):
            logger.error("request failed: %s", error, exc_info=error)
        connection.send(status, _json(body), JSON, _header_pairs(headers))

    # -- server and model state --------------------------------------------------------------------

    def _alive(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(200, b'{"status":"alive"}')

    def _live(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(200, b'{"live":true}')

    def _ready(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        # True even when a model is not ready, as upstream: the server is.
        connection.send(200, b'{"ready":true}')

    def _metadata(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(
            200,
            _json(
                {
                    "name": "kserve",
                    "version": self._version,
                    "extensions": ["model_repository_extension"],
                }
            ),
        )

    def _models(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(200, _json({"models": self._data.names()}))

    def _v1_ready(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        self._data.get_ready(name)
        connection.send(200, _json({"name": name, "ready": True}))

    _model_ready = _v1_ready

    def _model_metadata(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        model = self._data.get(name).model
        connection.send(
            200,
            _json(
                {
                    "name": name,
                    "versions": None,
                    "platform": model.platform,
                    "inputs": model.input_types(),
                    "outputs": model.output_types(),
                }
            ),
        )

    def _versioned(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(501, _VERSIONS)

    def _metrics(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        wanted = metrics.accepts_openmetrics(head.headers.get("accept", ""))
        connection.send(
            200,
            self._data.metrics.text(openmetrics=wanted),
            metrics.OPENMETRICS if wanted else metrics.TEXT,
        )

    def _openapi(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(200, _json(document(self._version)))

    def _docs(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(200, docs_page(self._version), HTML)

    def _docs_redirect(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        connection.send(200, OAUTH_REDIRECT_PAGE, HTML)

    # -- repository --------------------------------------------------------------------------------

    def _load(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        async def load() -> None:
            try:
                await self._data.load(name)
            except Exception as error:
                self._fail(connection, error)
            else:
                connection.send(200, _json({"name": name, "load": True}))

        connection.start_task(load())

    def _unload(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        self._data.unload(name)
        connection.send(200, _json({"name": name, "unload": True}))

    # -- inference ---------------------------------------------------------------------------------

    def _v2_infer_versioned(
        self, connection: Connection, head: Head, body: bytes, name: str
    ) -> None:
        if not body:
            raise missing_body()
        if head.route.json:
            oip.decode_json(body, name, head.headers)
        connection.send(501, _VERSIONS)

    def _v2_infer(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        started = perf_counter()
        headers = head.headers
        request: InferRequest | None = None
        if not body:
            raise missing_body()
        if head.route.json:
            request = oip.decode_json(body, name, headers)
        served = self._data.get_ready(name)
        if request is None:
            request = oip.decode_binary(body, name, headers)
        else:
            oip.check_json_inputs(request)
        _V2Call(self, connection, head, served, request, started).begin()

    def _v1_predict(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        started = perf_counter()
        served = self._data.get_ready(name)
        payload, event = v1.decode(body, head.headers)
        call = _V1Call(self, connection, head, served, payload, started)
        call.event = event
        call.begin()

    def _v1_explain(self, connection: Connection, head: Head, body: bytes, name: str) -> None:
        started = perf_counter()
        served = self._data.get_ready(name)
        payload, event = v1.decode(body, head.headers)
        call = _V1Call(self, connection, head, served, payload, started)
        call.event = event
        call.explain = True
        call.begin()

    def finished(self, call: _Call, preprocess: float, postprocess: float) -> None:
        """Count and log a call that was answered."""
        seconds = call.seconds
        if call.explain:
            call.served.metrics.explained(preprocess, seconds, postprocess)
        else:
            call.served.metrics.predicted(preprocess, seconds, postprocess)
        latency = self._latency
        if latency is None:
            return
        if latency.full:
            latency.more += 1
        else:
            explain, predict = (seconds, 0.0) if call.explain else (0.0, seconds)
            request_id = call.head.headers.get("x-request-id")
            latency.add(request_id, preprocess, explain, predict, postprocess)

    def failed(self, call: _Call, error: Exception) -> None:
        """Answer a call that failed."""
        self._fail(call.connection, error)


class _Call(Job):
    """One inference on its way through the model's queue: the common part of V1 and V2.

    Args:
        request: `InferRequest` or V1 payload.
        started: When the server began on it (`perf_counter`).
    """

    __slots__ = ("app", "connection", "explain", "head", "prepared", "request", "served", "started")

    def __init__(
        self,
        app: Rest,
        connection: Connection,
        head: Head,
        served: Served,
        request: Any,
        started: float,
    ) -> None:
        self.app = app
        self.connection = connection
        self.explain = False
        self.head = head
        self.served = served
        self.request = request
        self.started = started
        self.prepared = started

    @property
    def abandoned(self) -> bool:
        return self.connection.closed

    def begin(self) -> None:
        """Queue the call, or run it as a task when the model's method is a coroutine function."""
        rows = self.served.rows
        if rows is not None and not self.explain:
            x = self.prepare(rows)
            self.prepared = perf_counter()
            self.set(rows.batch_key(x), x, rows.compute)
        else:
            work = self.work()
            if inspect.iscoroutinefunction(work):
                self.connection.start_task(self._run(work))
                return
            self.set(None, self.request, self.bound(work))
        self.served.runner.submit(self)

    async def _run(self, work: Callable[..., Awaitable[Any]]) -> None:
        started = perf_counter()
        try:
            result = await self.bound(work)(self.request)
        except Exception as error:
            self.failed(error)
            return
        self.seconds = perf_counter() - started
        await self._finish(result)

    def prepare(self, model: RowModel) -> Any:
        """Return the model's input."""
        raise NotImplementedError

    def work(self) -> Callable[..., Any]:
        """Return the model's method, for a model that is no `RowModel`."""
        raise NotImplementedError

    def bound(self, work: Callable[..., Any]) -> Callable[[Any], Any]:
        """Return `work` as a function of the request alone."""
        return work

    def answer(self, result: Any) -> None:
        """Send what the model returned."""
        raise NotImplementedError

    def done(self, result: Any) -> None:
        if self.served.rows is None and (
            inspect.isawaitable(result) or isinstance(result, AsyncIterator)
        ):
            self.connection.start_task(self._finish(result))
            return
        started = perf_counter()
        try:
            self.answer(result)
        except Exception as error:
            self.failed(error)
            return
        self.app.finished(self, self.prepared - self.started, perf_counter() - started)

    async def _finish(self, result: Any) -> None:
        """Take a result that has to be awaited, or a stream."""
        if inspect.isawaitable(result):
            try:
                result = await result
            except Exception as error:
                self.failed(error)
                return
        if isinstance(result, AsyncIterator):
            await _stream(self.connection, result)
            self.app.finished(self, self.prepared - self.started, 0.0)
        else:
            self.done(result)

    def failed(self, error: Exception) -> None:
        self.app.failed(self, error)


class _V2Call(_Call):
    """A V2 inference; `request` is the `InferRequest`, then what the model returned is encoded."""

    __slots__ = ()

    def prepare(self, model: RowModel) -> Any:
        return model.prepare(self.request)

    def work(self) -> Callable[..., Any]:
        return self.served.model.predict

    def answer(self, result: Any) -> None:
        rows = self.served.rows
        target: Target = self.head.route
        if rows is not None:
            if rows.only_output is not None and not target.event:
                data = oip.encode_rows(rows.name, rows.only_output, result, self.request)
                if data is not None:
                    self.connection.send(200, data)
                    return
            result = rows.respond(self.request, result)
        body, json_length = oip.encode(result, self.request)
        if target.event:
            self._answer_event(body, target.structured)
        elif json_length is None:
            self.connection.send(200, body)
        else:
            header = (oip.LENGTH_HEADER.encode(), str(json_length).encode())
            self.connection.send(200, body, None, (header,))

    def _answer_event(self, body: bytes, structured: bool) -> None:
        """Send a V2 answer as a CloudEvent, as the reference does for requests that are one."""
        attributes = cloudevents.answer_attributes(self.served.model.name, None)
        if structured:
            data = cloudevents.structured_body(attributes, orjson.loads(body))
            self.connection.send(200, data, cloudevents.STRUCTURED_TYPE.encode())
        else:
            self.connection.send(200, body, JSON, cloudevents.header_lines(attributes))


class _V1Call(_Call):
    """A V1 prediction or explanation; `request` is the payload."""

    __slots__ = ("event",)

    event: cloudevents.Attributes | None

    def prepare(self, model: RowModel) -> Any:
        return model.prepare_v1(self.request, self.head.headers)

    def work(self) -> Callable[..., Any]:
        model = self.served.model
        return model.explain_v1 if self.explain else model.predict_v1

    def bound(self, work: Callable[..., Any]) -> Callable[[Any], Any]:
        headers = self.head.headers
        return lambda payload: work(payload, headers)

    def answer(self, result: Any) -> None:
        rows = self.served.rows
        if rows is not None and not self.explain:
            result = rows.respond_v1(result)
        structured = self.head.route.structured
        if self.event is None and not structured:
            body, kind = v1.encode_explanation(result) if self.explain else v1.encode(result)
            self.connection.send(200, body, kind)
            return
        attributes = cloudevents.answer_attributes(self.served.model.name, self.event)
        if structured:
            self.connection.send(
                200,
                cloudevents.structured_body(attributes, result),
                cloudevents.STRUCTURED_TYPE.encode(),
            )
        else:
            body, _ = v1.encode(result)
            self.connection.send(200, body, JSON, cloudevents.header_lines(attributes))


async def _stream(connection: Connection, chunks: AsyncIterator[Any]) -> None:
    await connection.stream_start(200, None)
    async for chunk in chunks:
        await connection.stream_write(chunk.encode() if isinstance(chunk, str) else chunk)
    connection.stream_end()


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # Lone surrogates (of a 422's input, of an exception's text) have no UTF-8 form.
        return str(value).encode("utf-8", "backslashreplace")


def _header_pairs(headers: dict[str, str]) -> Headers:
    return tuple(
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
    )
