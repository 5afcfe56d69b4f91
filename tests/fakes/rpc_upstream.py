"""A real gRPC server for the gateway's tests: bytes in, bytes out, by the method's name.

Echo         the request itself            Fail      INVALID_ARGUMENT with details and metadata
Slow         waits until cancelled         Count     a stream: how many bytes each message had
Repeat       a stream: the message, n times, n its first byte
Metadata     the request's metadata as lines; trailing metadata `x-told: yes`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

SERVICE = "test.Echo"
LARGE = 256 * 1024 * 1024


class RpcUpstream(grpc.GenericRpcHandler):
    """One replica. `async with RpcUpstream() as upstream`."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.port = 0
        self.begun = 0
        self.cancelled = 0
        self.ended = asyncio.Event()
        self._more = asyncio.Event()

    async def __aenter__(self) -> RpcUpstream:
        options = [
            ("grpc.max_receive_message_length", LARGE),
            ("grpc.max_send_message_length", LARGE),
            ("grpc.so_reuseport", 0),
        ]
        self.server = grpc.aio.server(options=options)
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port(f"{self.address}:{self.port}")
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(0)

    async def has_begun(self, count: int) -> None:
        """Return once so many calls have begun."""
        async with asyncio.timeout(20):
            while self.begun < count:
                self._more.clear()
                await self._more.wait()

    def _begin(self) -> None:
        self.begun += 1
        self._more.set()

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        unary = {
            "Echo": self._echo, "Fail": self._fail, "Slow": self._slow, "Metadata": self._metadata,
            # What KServe's clients call.
            "ModelInfer": self._echo, "ServerLive": self._echo,
        }  # fmt: skip
        if name in unary:
            return grpc.unary_unary_rpc_method_handler(unary[name])
        if name == "Count":
            return grpc.stream_stream_rpc_method_handler(self._count)
        if name == "Repeat":
            return grpc.unary_stream_rpc_method_handler(self._repeat)
        return None

    async def _echo(self, request: bytes, context: Any) -> bytes:
        self._begin()
        return request

    async def _fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-why", "because"), ("x-raw-bin", b"\x00\xff")))
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no {request.decode()}: ä")
        raise AssertionError

    async def _slow(self, request: bytes, context: Any) -> bytes:
        self._begin()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.ended.set()
            raise
        return b""

    async def _metadata(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-told", "yes"),))
        await context.send_initial_metadata((("x-first", "1"),))
        pairs = [
            (k, v if isinstance(v, str) else v.hex()) for k, v in context.invocation_metadata()
        ]
        return "\n".join(f"{k}={v}" for k, v in pairs).encode()

    async def _count(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield str(len(request)).encode()

    async def _repeat(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(request[0]):
            yield request
