"""The agent's batcher: several clients' instances become one request to the model.

Copies KServe's batcher with its quirks (pkg/batcher/handler.go; traffic.md section 6.2): only
`:predict`; one batch at a time for a Pod, and nothing is collected meanwhile; nothing of a client's
request but its instances goes on; whatever the model says, a client whose request could be read
gets 200. `read_instances` and `answers` are pure; `Batcher` waits and asks.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kserve_local.gateway import gojson
from kserve_local.gateway.agent_settings import BatcherSettings
from kserve_local.gateway.gojson import GoJSONError

PREDICT = b":predict"
OFF_LOOP = 64 * 1024
"""Bytes of JSON from which on a thread reads and writes it, so that other requests go on."""
_WELL = b'{"message":"",'
SIZE_MISMATCH = "size of prediction is not equal to the size of instances"


class BadBody(ValueError):
    """A request that cannot be batched; the text is for the client, with 400."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a whole batch."""

    status: int
    body: bytes


Ask = Callable[[str, bytes], Awaitable[Answer]]
"""`ask(path, body)`: one request to the model; does not raise."""


def read_instances(body: bytes) -> list[Any]:
    """Return the instances of a V1 request.

    Raises:
        BadBody: There are none, in the agent's words.
    """
    try:
        value = gojson.decode(body)
    except GoJSONError as error:
        raise BadBody("can't Unmarshal body") from error
    if value is not None and not isinstance(value, dict):
        raise BadBody("can't Unmarshal body")
    found = _field(value or {}, "instances")
    if found is not None and not isinstance(found, list):
        raise BadBody("can't Unmarshal body")
    if not found:
        raise BadBody("no instances in the request")
    return found


def request_body(instances: Sequence[Any]) -> bytes:
    """Return what the model is asked."""
    return gojson.encode({"instances": list(instances)})


def answers(answer: Answer, sizes: Sequence[int], batch: str) -> list[bytes]:
    """Return the body of each client's 200, in the order of their requests.

    Args:
        sizes: How many instances each of them had.
        batch: The batch's id.
    """
    if answer.status != 200:
        text = answer.body.decode("utf-8", "replace")
        return [_response(text, "", None)] * len(sizes)
    try:
        predictions = _predictions(answer.body)
    except GoJSONError as error:
        return [_response(str(error), batch, None)] * len(sizes)
    if len(predictions) != sum(sizes):
        return [_response(SIZE_MISMATCH, batch, None)] * len(sizes)
    found = []
    start = 0
    for size in sizes:
        found.append(_response("", batch, predictions[start : start + size]))
        start += size
    return found


def _predictions(body: bytes) -> list[Any]:
    value = gojson.decode(body)
    if value is None:
        return []
    if not isinstance(value, dict):
        raise GoJSONError(
            f"json: cannot unmarshal {_kind(value)} into Go value of type "
            "batcher.PredictionResponse"
        )
    found = _field(value, "predictions")
    if found is not None and not isinstance(found, list):
        raise GoJSONError(
            f"json: cannot unmarshal {_kind(found)} into Go struct field "
            "PredictionResponse.predictions of type []interface {}"
        )
    return found or []


def _field(value: dict[str, Any], name: str) -> Any:
    """Return a struct's field: Go takes any case, the last one counts."""
    found = None
    for key, item in value.items():
        if key == name or key.lower() == name:
            found = item
    return found


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    kinds: dict[type, str] = {float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]


def _response(message: str, batch: str, predictions: list[Any] | None) -> bytes:
    return b'{"message":%b,"batchId":%b,"predictions":%b}' % (
        gojson.encode(message),
        gojson.encode(batch),
        gojson.encode(predictions),
    )


T = TypeVar("T")


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Return `work()`, done in a thread where it is about `size` bytes and that is much."""
    return await asyncio.to_thread(work) if size > OFF_LOOP else work()


@dataclass(slots=True)
class _Waiting:
    path: str
    instances: list[Any]
    size: int
    done: Callable[[bytes], None]


class Batcher:
    """One Pod's batches.

    Args:
        ask: Asks the model.
        spawn: Keeps a piece of work until it ends.
        rest: Called when nobody waits any more.
        tell: Told of a batch that went wrong, which its clients' status does not show.
    """

    def __init__(
        self,
        settings: BatcherSettings,
        ask: Ask,
        spawn: Callable[[Awaitable[None], str], None],
        rest: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self._ask = ask
        self._spawn = spawn
        self._rest = rest
        self._tell = tell
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._runs = False

    def put(
        self, path: str, instances: list[Any], done: Callable[[bytes], None], *, size: int = 0
    ) -> None:
        """Let instances take part in a batch.

        Args:
            size: Bytes they came in.
            done: Called once with the client's answer, also when the client has left.
        """
        self._waiting.append(_Waiting(path, instances, size, done))
        self._arrived.set()
        if not self._runs:
            self._runs = True
            self._spawn(self._run(), "batcher")

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._predict(await self._collect())
        finally:
            self._runs = False
            self._rest()

    async def _collect(self) -> list[_Waiting]:
        """Return the next batch: full, or as old as it may get."""
        loop = asyncio.get_running_loop()
        batch: list[_Waiting] = []
        count = 0
        deadline = loop.time() + self.settings.max_latency
        while True:
            while self._waiting:
                batch.append(self._waiting.popleft())
                count += len(batch[-1].instances)
                if count >= self.settings.max_size:
                    return batch
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                return batch

    async def _predict(self, batch: list[_Waiting]) -> None:
        # The last one's path, whatever the others asked for: as upstream.
        path = batch[-1].path
        instances = [i for each in batch for i in each.instances]
        size = sum(each.size for each in batch)
        body = await off_loop(size, lambda: request_body(instances))
        answer = await self._ask(path, body)
        sizes = [len(each.instances) for each in batch]
        id = str(uuid.uuid4())
        bodies = await off_loop(len(answer.body), lambda: answers(answer, sizes, id))
        if not bodies[0].startswith(_WELL):
            message = str(json.loads(bodies[0])["message"])[:200]
            self._tell(
                f"a batch of {len(instances)} at {path} was answered with {answer.status}, its "
                f"clients with 200: {message}"
            )
        for each, text in zip(batch, bodies, strict=True):
            each.done(text)
