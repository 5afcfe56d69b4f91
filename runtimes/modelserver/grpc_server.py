"""`inference.GRPCInferenceService` on grpcio's asyncio server: which method does what.

The calls go the way of REST's: the same registered models, readiness, queue, metrics and latency
log. Messages are parsed and written here, not by grpcio, so that a broken one has an answer. Health
and reflection are `grpc_discovery`'s. Nothing here starts a thread before `GrpcServer.start`: a
zygote imports this module, its forks serve.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from modelserver import oip_grpc
from modelserver.batching import Job
from modelserver.dataplane import DataPlane, Served
from modelserver.errors import DataPlaneError, InvalidInput, ModelNotFound, grpc_answer_of
from modelserver.grpc_discovery import Discovery
from modelserver.latency import LatencyLog
from modelserver.model import InferRequest
from modelserver.oip_proto import MESSAGES, METHODS, SERVICE

logger = logging.getLogger(__name__)

_Context = Any
_Method = Callable[[Any, _Context], Awaitable[bytes]]


class _Call(Job):
    """One inference in its model's queue; `answer` becomes what the model returned."""

    __slots__ = ("answer",)

    def __init__(self, answer: asyncio.Future[Any]) -> None:
        self.answer = answer

    @property
    def abandoned(self) -> bool:
        return self.answer.cancelled()

    def done(self, result: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def failed(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Service:
    """Answers the calls of a model server.

    Args:
        version: What `ServerMetadata` reports.
    """

    def __init__(
        self,
        dataplane: DataPlane,
        loop: asyncio.AbstractEventLoop,
        *,
        version: str,
        latency: LatencyLog | None = None,
    ) -> None:
        self._data = dataplane
        self._loop = loop
        self._version = version
        self._latency = latency

    def handlers(self) -> tuple[Any, ...]:
        """Return all services as grpcio takes them."""
        return (self._handler(), *Discovery(self._data).handlers())

    def _handler(self) -> Any:
        """Return the inference service; requests and responses are bytes."""
        methods: dict[str, _Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(_guarded(name, methods[name]))
                for name in METHODS
            },
        )

    async def _live(self, request: Any, context: _Context) -> bytes:
        return _message("ServerLiveResponse", live=True)

    async def _ready(self, request: Any, context: _Context) -> bytes:
        # True even when a model is not ready, as over REST: the server is.
        return _message("ServerReadyResponse", ready=True)

    async def _metadata(self, request: Any, context: _Context) -> bytes:
        return _message(
            "ServerMetadataResponse",
            name="kserve",
            version=self._version,
            extensions=["model_repository_extension"],
        )

    async def _model_ready(self, request: Any, context: _Context) -> bytes:
        return _message("ModelReadyResponse", ready=self._data.get(request.name).model.healthy())

    async def _model_metadata(self, request: Any, context: _Context) -> bytes:
        model = self._data.get(request.name).model
        return _message(
            "ModelMetadataResponse",
            name=request.name,
            platform=model.platform,
            inputs=model.input_types(),
            outputs=model.output_types(),
        )

    async def _load(self, request: Any, context: _Context) -> bytes:
        await self._data.load(request.model_name)
        return _message("RepositoryModelLoadResponse", model_name=request.model_name, isLoaded=True)

    async def _unload(self, request: Any, context: _Context) -> bytes:
        self._data.unload(request.model_name)
        return _message(
            "RepositoryModelUnloadResponse", model_name=request.model_name, isUnloaded=True
        )

    async def _infer(self, message: Any, context: _Context) -> bytes:
        started = perf_counter()
        request = oip_grpc.decode(message, _headers(context))
        served = self._data.get_ready(request.model_name)
        rows = served.rows
        if rows is not None:
            x = rows.prepare(request)
            prepared = perf_counter()
            call = _Call(self._loop.create_future())
            call.set(rows.batch_key(x), x, rows.compute)
            served.runner.submit(call)
            y = await call.answer
            seconds = call.seconds
            answered = perf_counter()
            result = rows.respond(request, y)
        else:
            prepared = perf_counter()
            result = await self._predict(served, request)
            answered = perf_counter()
            seconds = answered - prepared
        data = oip_grpc.encode(result, request)
        self._count(served, request, prepared - started, seconds, perf_counter() - answered)
        return data

    async def _predict(self, served: Served, request: InferRequest) -> Any:
        """Call a model that is no `RowModel`: a coroutine at once, a function in its queue."""
        work = served.model.predict
        if inspect.iscoroutinefunction(work):
            return await work(request)
        call = _Call(self._loop.create_future())
        call.set(None, request, work)
        served.runner.submit(call)
        result = await call.answer
        return await result if inspect.isawaitable(result) else result

    def _count(
        self,
        served: Served,
        request: InferRequest,
        preprocess: float,
        predict: float,
        postprocess: float,
    ) -> None:
        served.metrics.predicted(preprocess, predict, postprocess)
        latency = self._latency
        if latency is None:
            return
        if latency.full:
            latency.more += 1
        else:
            latency.add(request.headers.get("x-request-id"), preprocess, 0.0, predict, postprocess)


def _message(kind: str, **fields: Any) -> bytes:
    data: bytes = MESSAGES[kind](**fields).SerializeToString()
    return data


def _headers(context: _Context) -> dict[str, str]:
    """Return the call's metadata, of repeated keys the last value; binary ones are left out."""
    return {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}


def _guarded(name: str, method: _Method) -> Callable[[bytes, _Context], Awaitable[bytes]]:
    """Return `method` as grpcio calls it: with the bytes of a request, its errors as statuses."""
    parse = MESSAGES[f"{name}Request"].FromString

    async def answer(data: bytes, context: _Context) -> bytes:
        try:
            try:
                request = parse(data)
            except DecodeError as error:
                raise InvalidInput(f"{name}: the message cannot be parsed") from error
            return await method(request, context)
        except Exception as error:
            code, details = grpc_answer_of(error)
            told = tuple(error.headers().items()) if isinstance(error, ModelNotFound) else ()
            if not isinstance(error, DataPlaneError):
                logger.error("%s failed: %s", name, error, exc_info=error)
        await context.abort(grpc.StatusCode[code], details, told)
        raise AssertionError("abort raises")

    return answer


class GrpcServer:
    """The listening server of one process.

    Args:
        send_bytes, receive_bytes: Limits of one message.
        shared: Several processes listen on the port; the kernel deals out connections.
    """

    def __init__(
        self, service: Service, *, send_bytes: int, receive_bytes: int, shared: bool = False
    ) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_send_message_length", send_bytes),
                ("grpc.max_receive_message_length", receive_bytes),
                ("grpc.so_reuseport", int(shared)),
            )
        )
        self._server.add_generic_rpc_handlers(service.handlers())

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses for 0.

        Raises:
            RuntimeError: The address cannot be had.
        """
        where = f"[{host}]" if ":" in host else host
        bound: int = self._server.add_insecure_port(f"{where}:{port}")
        if not bound:
            raise RuntimeError(f"cannot listen on {where}:{port}")
        await self._server.start()
        return bound

    async def stop(self, grace: float) -> None:
        """Stop accepting calls, let open ones finish for up to `grace` seconds, close."""
        await self._server.stop(grace)
