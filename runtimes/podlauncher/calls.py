"""Tells the gateway of calls between the containers of one Pod, which do not pass it.

A collocated transformer asks its predictor at `localhost`. What the kserve SDK's clients send there
is told when it has ended, as one datagram of JSON on the gateway's Unix socket; the calls
themselves are not changed. Without somebody who listens nothing happens.

    {"pod": NAME, "id": the request's x-request-id or "", "target": "localhost:8085",
     "protocol": "http" | "grpc", "call": "ModelInfer",
     "began": seconds of `perf_counter`, which processes share, "took": seconds,
     "status": 200 or the name of a gRPC status, 0 without an answer, "error": why}
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any

_LONGEST = 300


class Calls:
    """Tells of the calls of one Pod.

    Args:
        path: The gateway's socket.
        pod: The Pod's name.
        is_within: Whether host and port are the Pod's own.
    """

    def __init__(self, path: str, pod: str, is_within: Callable[[str, int], bool]) -> None:
        self._path = path
        self._pod = pod
        self._is_within = is_within
        self._socket: socket.socket | None = None

    def target_of(self, url: Any) -> str:
        """Return `host:port` of a URL or a gRPC target within the Pod; empty: it is elsewhere."""
        text = str(url)
        authority = text.partition("://")[2] or text
        authority = authority.rpartition("@")[2].partition("/")[0]
        host, _, port = authority.rpartition(":")
        if not port.isdigit() or not self._is_within(host.strip("[]"), int(port)):
            return ""
        return authority

    def tell(self, **call: Any) -> None:
        """Tell of a call that has ended."""
        data = json.dumps({"pod": self._pod, **call}).encode()
        # Nobody listens, or does not keep up: the call itself is what counts.
        with contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(data, self._path)

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def watch(sdk: Any, calls: Calls) -> None:
    """Tell of what the SDK's clients (module `kserve.inference_client`) call within the Pod.

    Raises:
        AttributeError: A version with other names.
    """
    rest, grpc = sdk.InferenceRESTClient, sdk.InferenceGRPCClient
    rest.infer = _watched(rest.infer, calls, _rest_call)
    grpc.infer = _watched(grpc.infer, calls, _grpc_call)
    _remember_target(grpc)


def _remember_target(client: Any) -> None:
    init = client.__init__

    @functools.wraps(init)
    def remembering(self: Any, url: Any, *args: Any, **kwargs: Any) -> None:
        self._kserve_local_target = url
        init(self, url, *args, **kwargs)

    client.__init__ = remembering


def _rest_call(client: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    v1 = client._config.protocol == "v1"
    path = f"/v1/models/{given.get('model_name')}:predict"
    call = path if v1 else f"/v2/models/{given.get('model_name')}/infer"
    headers = {str(k).lower(): str(v) for k, v in dict(given.get("headers") or {}).items()}
    told = {"protocol": "http", "call": f"POST {call}", "id": headers.get("x-request-id", "")}
    return given.get("base_url"), told


def _grpc_call(client: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    metadata = {str(k).lower(): str(v) for k, v in given.get("headers") or ()}
    told = {"protocol": "grpc", "call": "ModelInfer", "id": metadata.get("x-request-id", "")}
    return getattr(client, "_kserve_local_target", ""), told


def _watched(
    infer: Any,
    calls: Calls,
    describe: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]],
) -> Any:
    signature = inspect.signature(infer)

    @functools.wraps(infer)
    async def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            url, told = describe(self, signature.bind(self, *args, **kwargs).arguments)
            target = calls.target_of(url)
        except (TypeError, ValueError, AttributeError):
            target = ""  # the call itself says what is wrong with it
        if not target:
            return await infer(self, *args, **kwargs)
        began = perf_counter()
        ended: dict[str, Any] = {"status": 0, "error": "cancelled"}
        try:
            answer = await infer(self, *args, **kwargs)
            ended = {"status": "OK" if told["protocol"] == "grpc" else 200, "error": ""}
            return answer
        except Exception as error:
            ended = _failed(error)
            raise
        finally:
            calls.tell(target=target, began=began, took=perf_counter() - began, **told, **ended)

    return watched


def _failed(error: Exception) -> dict[str, Any]:
    """Return status and reason of a call that ended with an exception of httpx or grpc."""
    status: Any = getattr(getattr(error, "response", None), "status_code", 0)
    text = str(error)
    code = getattr(error, "code", None)
    if callable(code):
        status = getattr(code(), "name", 0)
        text = str(getattr(error, "details", lambda: "")() or "")
    elif isinstance(error, ValueError) and not status:
        # The SDK reads an answer only after it has looked at its status.
        status, text = 200, f"the answer cannot be read: {text}"
    if not status:
        text = f"{type(error).__name__}: {text}"
    return {"status": status, "error": " ".join(text.split())[:_LONGEST]}
