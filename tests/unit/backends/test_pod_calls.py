"""What a Pod's containers ask each other is told to the gateway, and not changed by that."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from podlauncher.calls import Calls, watch
from podlauncher.network import Network


class StatusError(Exception):
    """As httpx's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"no such\n path, '{status} Not Found'")
        self.response = SimpleNamespace(status_code=status)


class RpcError(Exception):
    """As grpc.aio's."""

    def code(self) -> Any:
        return SimpleNamespace(name="NOT_FOUND")

    def details(self) -> str:
        return "no model"


class Client:
    """Both of the SDK's clients: answers with `outcome`, or raises it."""

    outcome: Any = None

    def __init__(self, url: str = "", **more: Any) -> None:
        self._config = SimpleNamespace(protocol=more.get("protocol", "v1"))

    async def infer(self, base_url: Any, data: Any = None, model_name: str | None = None,
                    headers: Any = None) -> Any:  # fmt: skip
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    async def grpc_infer(self, infer_request: Any, headers: Any = None) -> Any:
        return await Client.infer(self, infer_request)


class Listener:
    """The gateway's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.socket.recv(65536))
        except BlockingIOError:
            return None
        return found


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    found = Listener(tmp_path / "c.sock")
    yield found
    found.socket.close()


def sdk(path: Path) -> Any:
    """A module with fresh classes, watched."""
    module = SimpleNamespace(
        InferenceRESTClient=type("Rest", (Client,), {"infer": Client.infer}),
        InferenceGRPCClient=type("Rpc", (Client,), {"infer": Client.grpc_infer}),
    )
    net = Network({"ip": "127.64.0.9", "listen": [8080, 8085]})
    calls = Calls(str(path), "pod-a", net.is_within)
    watch(module, calls)
    return SimpleNamespace(module=module, calls=calls)


def infer(client: Any, outcome: Any, *args: Any, **kwargs: Any) -> Any:
    client.outcome = outcome
    return asyncio.run(client.infer(*args, **kwargs))


@pytest.mark.parametrize(
    ("protocol", "call"),
    [("v1", "POST /v1/models/iris:predict"), ("v2", "POST /v2/models/iris/infer")],
)
def test_a_call_within_the_pod_is_told(listener: Listener, protocol: str, call: str) -> None:
    own = sdk(listener.path)
    client = own.module.InferenceRESTClient(protocol=protocol)
    answer = infer(
        client, {"a": 1}, "http://localhost:8085", {}, model_name="iris",
        headers={"X-Request-ID": "r-1"},
    )  # fmt: skip
    assert answer == {"a": 1}
    told = listener.heard()
    assert told is not None
    assert told.pop("took") >= 0 < told.pop("began")
    assert told == {
        "pod": "pod-a", "target": "localhost:8085", "protocol": "http", "call": call,
        "id": "r-1", "status": 200, "error": "",
    }  # fmt: skip
    own.calls.close()


def test_a_grpc_call_within_the_pod_is_told(listener: Listener) -> None:
    own = sdk(listener.path)
    client = own.module.InferenceGRPCClient("localhost:8085")
    infer(client, "x", "request", headers=(("request_type", "grpc_v2"), ("x-request-id", "r-2")))
    told = listener.heard()
    assert told is not None
    assert (told["protocol"], told["call"], told["id"], told["status"]) == (
        "grpc", "ModelInfer", "r-2", "OK",
    )  # fmt: skip
    own.calls.close()


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [
        (StatusError(404), 404, "no such path, '404 Not Found'"),
        (json.JSONDecodeError("no JSON", "<", 0), 200, "the answer cannot be read: no JSON"),
        (ConnectionError("refused"), 0, "ConnectionError: refused"),
        (RpcError(), "NOT_FOUND", "no model"),
        (asyncio.CancelledError(), 0, "cancelled"),
    ],
)
def test_a_failure_is_told_and_raised(
    listener: Listener, outcome: BaseException, status: int | str, error: str
) -> None:
    own = sdk(listener.path)
    with pytest.raises(type(outcome)):
        infer(own.module.InferenceRESTClient(), outcome, "http://127.0.0.1:8085", {})
    told = listener.heard()
    assert told is not None
    assert told["status"] == status
    assert told["error"].startswith(error)
    own.calls.close()


@pytest.mark.parametrize(
    "url", ["http://iris-predictor.default", "http://localhost:9", "http://a:8085", "", "%%%", None]
)
def test_calls_elsewhere_are_not_told(listener: Listener, url: Any) -> None:
    own = sdk(listener.path)
    assert infer(own.module.InferenceRESTClient(), "answer", url, {}) == "answer"
    assert listener.heard() is None


def test_without_a_listener_the_call_is_as_it_was(tmp_path: Path) -> None:
    own = sdk(tmp_path / "nobody")
    assert infer(own.module.InferenceRESTClient(), "a", "http://localhost:8085", {}) == "a"
    own.calls.close()


def test_another_sdk_is_left_alone(tmp_path: Path) -> None:
    calls = Calls(str(tmp_path / "x"), "pod", lambda host, port: True)
    with pytest.raises(AttributeError):
        watch(SimpleNamespace(), calls)


def test_wrong_arguments_are_the_sdks_to_refuse(listener: Listener) -> None:
    own = sdk(listener.path)
    with pytest.raises(TypeError):
        infer(own.module.InferenceRESTClient(), "a", nothing=1)
    assert listener.heard() is None
