"""The router of an InferenceGraph: carries one request through the nodes.

What is decided comes from `graph`; this file waits for steps. Where it differs from KServe's
router: a client that leaves, and an Ensemble whose result is known, end the calls that still run;
nodes that call each other in a circle, and bodies that together outgrow the router's memory, are
errors instead of a crash.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import perf_counter
from typing import Any, Protocol, TypeVar

import orjson

from kserve_local.gateway import gojson
from kserve_local.gateway.graph import (
    ROOT,
    Graph,
    GraphError,
    Node,
    Step,
    goes_on,
    is_success,
    merged,
    pick_by_condition,
    pick_by_weight,
    step_input,
)
from kserve_local.gateway.graph_client import Header
from kserve_local.gateway.step_connection import Take

MAX_NESTING = 100
"""Nodes within nodes; upstream has no bound and dies of a circle."""
MAX_CALLS = 10_000
"""Steps of one request."""
LARGE = 64 * 1024
"""Bytes from which JSON is looked at in a thread, so that others' requests go on."""
TRACED = 100
"""Hops that a trace tells of."""

Result = tuple[bytes, int]
T = TypeVar("T")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class Caller(Protocol):
    """What makes the calls: `StepClient`, or a test's."""

    async def post(
        self, url: str, body: bytes, headers: Sequence[Header], *, limit: float, take: Take
    ) -> tuple[int, bytes]: ...


@dataclass(slots=True)
class Hop:
    """One step as it went. Times in milliseconds since the request came.

    Args:
        node: The node that the step belongs to.
        status: 0 where there was no answer; then `error` says why.
    """

    node: str
    step: str
    target: str
    kind: str
    depth: int
    began: float
    took: float = 0.0
    status: int = 0
    error: str = ""


@dataclass(slots=True)
class Trace:
    """What became of one request, step by step."""

    trace_id: str
    hops: list[Hop] = field(default_factory=list)
    left_out: int = 0
    started: float = field(default_factory=perf_counter)

    def now(self) -> float:
        """Return the milliseconds since the request came."""
        return round((perf_counter() - self.started) * 1000, 3)

    def encode(self, limit: int) -> bytes:
        """Return it as ASCII JSON of at most `limit` bytes; what does not fit is counted."""
        hops = [
            {
                "node": h.node,
                "step": h.step,
                "kind": h.kind,
                "target": h.target,
                "depth": h.depth,
                "start": h.began,
                "ms": h.took,
                "status": h.status,
                **({"error": h.error} if h.error else {}),
            }
            for h in self.hops
        ]
        while True:
            left_out = self.left_out + len(self.hops) - len(hops)
            whole: dict[str, Any] = {"traceId": self.trace_id, "ms": self.now(), "hops": hops}
            if left_out:
                whole["leftOut"] = left_out
            text = _ascii(orjson.dumps(whole).decode())
            if len(text) <= limit or not hops:
                return text.encode()
            hops = hops[: len(hops) // 2]


def _ascii(text: str) -> str:
    """Return JSON text for a header: signs beyond ASCII as `\\u` escapes."""
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    words = (c if c < "\x7f" else c.encode("utf-16-be").hex() for c in text)
    return "".join(
        w if len(w) == 1 else "".join(f"\\u{w[i : i + 4]}" for i in range(0, len(w), 4))
        for w in words
    )


@dataclass(slots=True)
class _Run:
    """One request on its way through the graph."""

    headers: list[Header]
    take: Take
    trace: Trace
    flags: str
    version: str
    traced: bool
    calls: int = 0


class GraphRouter:
    """Routes requests through one graph.

    Args:
        point: Draws 0 to 99 for Splitters.
    """

    def __init__(self, graph: Graph, caller: Caller, *, point: Callable[[], int]) -> None:
        self.graph = graph
        self._caller = caller
        self._point = point

    async def route(
        self, body: bytes, headers: Sequence[Header], *, take: Take, trace: Trace
    ) -> Result:
        """Return body and status of the answer; status 0: the router breaks the connection.

        Args:
            headers: The request's, with canonical names.
            take: Told of every byte that is kept.

        Raises:
            GraphError: The router fails by itself.
        """
        chosen = propagated(self.graph.propagate, headers)
        own = {name.lower() for name, _ in chosen}
        given = next((v for n, v in headers if n.lower() == "traceparent"), "")
        flags = "01"
        if match := _TRACEPARENT.fullmatch(given):
            trace.trace_id, flags = match.group(2), match.group(4)
            chosen += [(n, v) for n, v in headers if n == "Tracestate" and "tracestate" not in own]
        run = _Run(chosen, take, trace, flags, "00", traced="traceparent" in own)
        return await self._node(run, ROOT, body, depth=0)

    async def _node(self, run: _Run, name: str, body: bytes, *, depth: int) -> Result:
        if depth >= MAX_NESTING:
            raise GraphError(
                f'node "{name}": nodes call each other more than {MAX_NESTING} deep; is there a '
                "circle?"
            )
        node = self.graph.nodes.get(name, Node())
        if node.kind == "Splitter":
            step = pick_by_weight(node.steps, self._point())
            return await self._only(run, name, step, body, depth)
        if node.kind == "Switch":
            step = await off_loop(len(body), pick_by_condition, node.steps, body)
            return await self._only(run, name, step, body, depth)
        if node.kind == "Ensemble":
            return await self._ensemble(run, name, node.steps, body, depth)
        if node.kind == "Sequence":
            return await self._sequence(run, name, node.steps, body, depth)
        raise GraphError(f"invalid route type: {node.kind}")

    async def _only(self, run: _Run, node: str, step: Step, body: bytes, depth: int) -> Result:
        try:
            return await self._step(run, node, step, body, depth)
        except GraphError as error:
            raise _five_hundred(error) from error

    async def _sequence(
        self, run: _Run, name: str, steps: Sequence[Step], body: bytes, depth: int
    ) -> Result:
        answer, status = b"", 0
        for index, step in enumerate(steps):
            given = await off_loop(
                max(len(body), len(answer)) if step.maps else 0,
                step_input, step, index, body, answer,
            )  # fmt: skip
            if not await off_loop(len(answer) if step.condition else 0, goes_on, step, answer):
                return answer, 200
            try:
                answer, status = await self._step(run, name, step, given, depth)
            except GraphError as error:
                raise _five_hundred(error) from error
            if step.hard and not is_success(status):
                return answer, status
        return answer, status

    async def _ensemble(
        self, run: _Run, name: str, steps: Sequence[Step], body: bytes, depth: int
    ) -> Result:
        """Run all steps at once; look at them in order, at a failure as soon as it is there."""
        tasks = [
            asyncio.create_task(
                self._member(run, name, step, body, depth), name=f"step {step.name}"
            )
            for step in steps
        ]
        found: dict[str, Any] = {}
        size = 0
        try:
            for index, (step, task) in enumerate(zip(steps, tasks, strict=True)):
                await _ended_or_failed(task, tasks)
                value, status, length = task.result()
                size += length
                if step.hard and not is_success(status):
                    return await off_loop(length, gojson.encode, value), status
                found[step.name or str(index)] = value
            combined = await off_loop(size, merged, found)
            run.take(len(combined))
            return combined, 200
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _member(
        self, run: _Run, name: str, step: Step, body: bytes, depth: int
    ) -> tuple[Any, int, int]:
        """Return a step's answer as a value, its status, and the bytes it took."""
        answer, status = await self._step(run, name, step, body, depth)
        try:
            return await off_loop(len(answer), gojson.decode_object, answer), status, len(answer)
        except gojson.GoJSONError as error:
            raise GraphError(str(error)) from error

    async def _step(self, run: _Run, node: str, step: Step, body: bytes, depth: int) -> Result:
        run.calls += 1
        if run.calls > MAX_CALLS:
            raise GraphError(f"more than {MAX_CALLS} steps for one request; is there a circle?")
        hop = Hop(node, step.name, step.target, "node" if step.node else "service", depth,
                  run.trace.now())  # fmt: skip
        if len(run.trace.hops) < TRACED:
            run.trace.hops.append(hop)
        else:
            run.trace.left_out += 1
        try:
            if step.node:
                answer, hop.status = await self._node(run, step.node, body, depth=depth + 1)
            else:
                hop.status, answer = await self._call(run, step, body)
            return answer, hop.status
        except GraphError as error:
            hop.error = str(error)
            raise
        except asyncio.CancelledError:
            hop.error = "cancelled"
            raise
        finally:
            hop.took = round(run.trace.now() - hop.began, 3)

    async def _call(self, run: _Run, step: Step, body: bytes) -> tuple[int, bytes]:
        headers = run.headers
        if not run.traced:
            span = secrets.token_hex(8)
            parent = f"{run.version}-{run.trace.trace_id}-{span}-{run.flags}"
            headers = [*headers, ("Traceparent", parent)]
        return await self._caller.post(
            step.url, body, headers, limit=self.graph.client, take=run.take
        )


async def _ended_or_failed(task: asyncio.Task[Any], tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Return once `task` has ended well.

    Raises:
        GraphError: Some task failed first.
    """
    while not task.done():
        pending = [t for t in tasks if not t.done()]
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for other in tasks:
            if not task.done() and other.done() and (error := other.exception()) is not None:
                raise _five_hundred(error)
    if (error := task.exception()) is not None:
        raise _five_hundred(error)


def _five_hundred(error: BaseException) -> BaseException:
    """Return a step's failure as its node's: only the root itself can say 404."""
    if isinstance(error, GraphError) and error.status == 404:
        return GraphError(str(error))
    return error


async def off_loop(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Run `work`, in a thread where it has much to read."""
    if size < LARGE:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def new_trace() -> Trace:
    """Return a trace with an id of its own."""
    return Trace(secrets.token_hex(16))


@lru_cache(maxsize=256)
def canonical(name: str) -> str:
    """Return a header name as Go's net/http keeps it: `x-request-id` -> `X-Request-Id`."""
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


def propagated(patterns: Sequence[str], headers: Sequence[Header]) -> list[Header]:
    """Return the headers whose canonical names match a pattern somewhere; bad patterns match none.

    Patterns are Go's regular expressions, so RE2 looks at them.
    """
    compiled = [found for p in patterns if (found := _compiled(p)) is not None]
    return [(n, v) for n, v in headers if any(c.search(n) is not None for c in compiled)]


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    import re2  # only graphs with such a setting need it

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None
