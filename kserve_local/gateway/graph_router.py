"""The router of an InferenceGraph: carries one request through the nodes.

What is decided comes from `graph`; this file waits for steps. Where it differs from KServe's
router: a client that leaves, and an Ensemble whose result is known, end the calls that still run;
nodes that call each other in a circle, and bodies that together outgrow the router's memory, are
errors instead of a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from kserve_local.gateway import failures, gojson, tracecontext
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
from kserve_local.gateway.trace import Hop

MAX_NESTING = 100
"""Nodes within nodes; upstream has no bound and dies of a circle."""
MAX_CALLS = 10_000
"""Steps of one request."""
LARGE = 64 * 1024
"""Bytes from which JSON is looked at in a thread, so that others' requests go on."""

Result = tuple[bytes, int]
Failed = Callable[[str], None]
T = TypeVar("T")


class Caller(Protocol):
    """What makes the calls: `StepClient`, or a test's."""

    async def post(
        self, url: str, body: bytes, headers: Sequence[Header], *, limit: float, take: Take
    ) -> tuple[int, bytes]: ...


@dataclass(slots=True)
class _Run:
    """One request on its way through the graph."""

    headers: list[Header]
    take: Take
    context: tracecontext.Context
    own: bool
    failed: Failed
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
        self,
        body: bytes,
        headers: Sequence[Header],
        *,
        take: Take,
        hop: Hop | None = None,
        failed: Failed = lambda step: None,
    ) -> Result:
        """Return body and status of the answer; status 0: the router breaks the connection.

        Args:
            headers: The request's, with canonical names.
            take: Told of every byte that is kept.
            hop: The request in its trace, which each step is added to; None: nobody asks.
            failed: Told of each call that failed, in words.

        Raises:
            GraphError: The router fails by itself.
        """
        chosen = propagated(self.graph.propagate, headers)
        own = {name.lower() for name, _ in chosen}
        context = context_of(headers)
        if context is not None:
            chosen += [(n, v) for n, v in headers if n == "Tracestate" and "tracestate" not in own]
        run = _Run(
            chosen, take, context or tracecontext.made(), own="traceparent" in own, failed=failed
        )
        return await self._node(run, ROOT, body, hop, depth=0)

    async def _node(
        self, run: _Run, name: str, body: bytes, hop: Hop | None, *, depth: int
    ) -> Result:
        if depth >= MAX_NESTING:
            raise GraphError(
                f'node "{name}": nodes call each other more than {MAX_NESTING} deep; is there a '
                "circle?"
            )
        node = self.graph.nodes.get(name, Node())
        if node.kind == "Splitter":
            step = pick_by_weight(node.steps, self._point())
            return await self._only(run, name, step, body, hop, depth)
        if node.kind == "Switch":
            step = await off_loop(len(body), pick_by_condition, node.steps, body)
            return await self._only(run, name, step, body, hop, depth)
        if node.kind == "Ensemble":
            return await self._ensemble(run, name, node.steps, body, hop, depth)
        if node.kind == "Sequence":
            return await self._sequence(run, name, node.steps, body, hop, depth)
        raise GraphError(f"invalid route type: {node.kind}")

    async def _only(
        self, run: _Run, node: str, step: Step, body: bytes, hop: Hop | None, depth: int
    ) -> Result:
        try:
            return await self._step(run, node, step, body, hop, depth)
        except GraphError as error:
            raise _five_hundred(error) from error

    async def _sequence(
        self,
        run: _Run,
        name: str,
        steps: Sequence[Step],
        body: bytes,
        hop: Hop | None,
        depth: int,
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
                answer, status = await self._step(run, name, step, given, hop, depth)
            except GraphError as error:
                raise _five_hundred(error) from error
            if step.hard and not is_success(status):
                return answer, status
        return answer, status

    async def _ensemble(
        self,
        run: _Run,
        name: str,
        steps: Sequence[Step],
        body: bytes,
        hop: Hop | None,
        depth: int,
    ) -> Result:
        """Run all steps at once; look at them in order, at a failure as soon as it is there."""
        tasks = [
            asyncio.create_task(
                self._member(run, name, step, body, hop, depth), name=f"step {step.name}"
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
        self, run: _Run, name: str, step: Step, body: bytes, hop: Hop | None, depth: int
    ) -> tuple[Any, int, int]:
        """Return a step's answer as a value, its status, and the bytes it took."""
        answer, status = await self._step(run, name, step, body, hop, depth)
        try:
            return await off_loop(len(answer), gojson.decode_object, answer), status, len(answer)
        except gojson.GoJSONError as error:
            raise GraphError(str(error)) from error

    async def _step(
        self, run: _Run, node: str, step: Step, body: bytes, hop: Hop | None, depth: int
    ) -> Result:
        run.calls += 1
        if run.calls > MAX_CALLS:
            raise GraphError(f"more than {MAX_CALLS} steps for one request; is there a circle?")
        if hop is None:
            return await self._go(run, step, body, None, depth)
        own = hop.step(
            kind="node" if step.node else "service", node=node, step=step.name, target=step.target
        )
        try:
            answer, status = await self._go(run, step, body, own, depth)
        except GraphError as error:
            own.over(0, str(error))
            raise
        except asyncio.CancelledError:
            own.over(0, "cancelled")
            raise
        own.over(status)
        return answer, status

    async def _go(self, run: _Run, step: Step, body: bytes, hop: Hop | None, depth: int) -> Result:
        if step.node:
            return await self._node(run, step.node, body, hop, depth=depth + 1)
        try:
            status, answer = await self._call(run, step, body, hop)
        except GraphError as error:
            run.failed(f"{_named(step)}: {error}")
            raise
        if not is_success(status):
            why = failures.reason(answer[: failures.HEARD])
            run.failed(f"{_named(step)}: answered with {status}{': ' if why else ''}{why}")
        return answer, status

    async def _call(self, run: _Run, step: Step, body: bytes, hop: Hop | None) -> tuple[int, bytes]:
        headers = run.headers
        if not run.own:
            span = hop.span if hop is not None else tracecontext.new_span()
            parent = tracecontext.value(run.context, span).decode()
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


def _named(step: Step) -> str:
    name = step.name if step.name != step.target else ""
    return f"step {name} → {step.target}" if name else f"step {step.target}"


def context_of(headers: Sequence[Header]) -> tracecontext.Context | None:
    """Return the trace context of headers with canonical names."""
    return tracecontext.read([v.encode("latin-1") for n, v in headers if n == "Traceparent"])


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
