"""The traces of requests that ask for one: each hop with its Pod, status and time.

The gateway sees every hop of a service as a request of its own, because components call each other
by their cluster names. Which request caused a hop is found by what the caller passed on, the surest
first: the span of ours in its `traceparent`, its `x-request-id` (which the kserve SDK passes on),
its trace id. A caller that passes nothing on is told by its Pod's address, or by the service it
belongs to, and only where that leaves one request; such a hop says so (`by`), and one that leaves
several is counted and given to none. Nothing is recorded for requests that do not ask.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from kserve_local.gateway import failures, tracecontext
from kserve_local.gateway.head import TRACE_HEADER, wants_trace
from kserve_local.gateway.tracecontext import Context

if TYPE_CHECKING:
    from kserve_local.gateway.head import RequestHead
    from kserve_local.gateway.proxy import Exchange
    from kserve_local.interfaces.routing import Route

HTTP_LIMIT = 24 * 1024
"""Bytes of a trace in a header; clients read heads of 64 KiB."""
GRPC_LIMIT = 6 * 1024
"""The same in gRPC's trailers, of which clients read 8 KiB."""
RECORDED = 100
"""Hops that a trace tells of."""

REQUEST_ID = b"x-request-id"
_REQUEST_ID_LINE = re.compile(rb"^x-request-id:[ \t]*([^\r\n]*?)[ \t]*\r?$", re.I | re.M)
_CALLERS = ("transformer", "explainer", "graph")
_LOCAL = ("127.0.0.1", "::1")


@dataclass(slots=True, eq=False)
class Hop:
    """One hop as it went. Times are of `perf_counter`, seconds.

    Args:
        parent: The hop that caused it; None: the client.
        span: What the next one has as its parent id.
        request_id: The `x-request-id` that we made for it; empty: it has one of its own.
        labels: What it is, in the order it is told.
        by: How it was found to belong to its trace; empty: surely.
        status: HTTP's, or the name of gRPC's; 0: no answer.
        error: What went wrong, in words.
    """

    trace: Trace
    parent: Hop | None
    span: bytes
    labels: dict[str, Any]
    request_id: bytes = b""
    by: str = ""
    began: float = field(default_factory=perf_counter)
    took: float = -1.0
    held: float = 0.0
    status: int | str = 0
    error: str = ""
    exchange: Exchange | None = None

    @property
    def is_root(self) -> bool:
        """Whether it is the request that asked."""
        return self.parent is None

    @property
    def lines(self) -> bytes:
        """Header lines that tell the next hop where it belongs."""
        context = tracecontext.value(self.trace.context, self.span)
        own = self.request_id
        return b"traceparent: %b\r\n%b" % (context, b"x-request-id: %b\r\n" % own if own else b"")

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The same for HTTP/2."""
        pairs = (line.partition(b": ") for line in self.lines.split(b"\r\n") if line)
        return [(name, value) for name, _, value in pairs]

    def end(self, now: float) -> None:
        """Note its end, with what its request came to."""
        self.look(now)
        self.exchange = None
        if self.is_root:
            self.trace.end()

    def look(self, now: float) -> None:
        """Note what its request has come to so far."""
        exchange = self.exchange
        if exchange is None:
            return
        self.took = now - self.began
        self.labels["revision"] = exchange.target.spec.id.rpartition("/")[2]
        if exchange.place is not None:
            self.labels["pod"] = exchange.place.endpoint.pod
            self.labels["collocated"] = exchange.place.endpoint.collocated
        if not exchange.rpc:
            self.status = exchange.status
        if exchange.heard is not None and (exchange.finished or exchange.status >= 400):
            self.error = self.error or exchange.heard.why(exchange.head)

    def step(self, **labels: Any) -> Hop:
        """Return a hop within this one that is no request of the gateway's: a graph's step."""
        return self.trace.add(Hop(self.trace, self, tracecontext.new_span(), labels))

    def over(self, status: int | str, error: str = "") -> None:
        """Note the end of a hop that is no request of the gateway's."""
        self.took = perf_counter() - self.began
        self.status, self.error = status, error

    def told(self, depth: int, now: float) -> dict[str, Any]:
        """Return it as JSON; times in milliseconds, `start` since the client's request came."""
        running = self.exchange is not None
        self.look(now)
        began = self.began - self.trace.root.began
        found = {
            **{k: v for k, v in self.labels.items() if v},
            "depth": depth,
            "start": _ms(began),
            "ms": _ms(self.took if self.took >= 0 else now - self.began),
            "status": self.status,
            "held": _ms(self.held),
            "error": self.error,
            "by": self.by,
            "open": running and not self.is_root,
        }
        kept = ("depth", "start", "ms", "status")
        return {k: v for k, v in found.items() if v or k in kept}


class Trace:
    """What became of one request, hop by hop.

    Attributes:
        ids: Hops by their `x-request-id`, the first that had it.
        unassigned: Requests that may have been its hops, or others'.
    """

    __slots__ = (
        "_of", "_within", "context", "hops", "ids", "left_out", "root", "unassigned",
    )  # fmt: skip

    root: Hop

    def __init__(self, of: Traces, context: Context) -> None:
        self._of = of
        self.context = context
        self.ids: dict[bytes, Hop] = {}
        self.hops: list[Hop] = []
        self._within: dict[Hop, list[Hop]] = {}
        self.left_out = 0
        self.unassigned = 0

    def add(self, hop: Hop) -> Hop:
        """Take a hop, as long as there is room; count it else."""
        if hop.parent is None:
            self.root = hop
        if len(self.hops) >= RECORDED:
            self.left_out += 1
            return hop
        self.hops.append(hop)
        if hop.parent is not None:
            self._within.setdefault(hop.parent, []).append(hop)
        self._of.spans[hop.span] = hop
        return hop

    def end(self) -> None:
        """Find no more hops."""
        self._of.forget(self)

    def open(self) -> Iterator[Hop]:
        """Yield the hops that run, the last one first."""
        return (h for h in reversed(self.hops) if h.exchange is not None)

    def encode(self, limit: int) -> bytes:
        """Return it as ASCII JSON of at most `limit` bytes; what does not fit is counted."""
        self._of.before()
        now = perf_counter()
        hops = [hop.told(depth, now) for hop, depth in self._in_order(self.root, 0)]
        whole = {"traceId": self.context.trace_id.decode(), "ms": _ms(now - self.root.began)}
        whole |= {"unassigned": self.unassigned} if self.unassigned else {}
        while True:
            left_out = self.left_out + len(self.hops) - len(hops)
            more = {"leftOut": left_out} if left_out else {}
            text = _ascii(orjson.dumps({**whole, "hops": hops, **more}).decode())
            if len(text) <= limit or not hops:
                return text.encode()
            hops = hops[: len(hops) // 2]

    def _in_order(self, hop: Hop, depth: int) -> Iterator[tuple[Hop, int]]:
        """Yield a hop and then those within it, each with its depth."""
        waiting = [(hop, depth)]
        while waiting:
            hop, depth = waiting.pop()
            yield hop, depth
            then = sorted(self._within.get(hop, ()), key=lambda h: h.began, reverse=True)
            waiting += [(h, depth + 1) for h in then]


class Traces:
    """The traces that are being recorded.

    Args:
        running: All requests of the gateway that run just now.

    Attributes:
        spans: Hops by their span.
        before: Called before a trace is told: takes what was told of calls within Pods.
    """

    def __init__(self, running: Callable[[], Iterable[Exchange]]) -> None:
        self._running = running
        self.before: Callable[[], None] = lambda: None
        self.spans: dict[bytes, Hop] = {}
        self.active: list[Trace] = []

    def begin(
        self,
        exchange: Exchange,
        *,
        context: Context | None,
        asks: bool,
        request_id: bytes,
        peer: str,
    ) -> Hop | None:
        """Return the hop that a request is; None: it belongs to no trace.

        Args:
            context: Of its `traceparent`.
            asks: It asks for a trace of its own.
            request_id: Its `x-request-id`, empty without one.
            peer: The caller's address.
        """
        route = exchange.route.route
        labels = {
            "kind": "component",
            "service": route.service,
            "namespace": route.namespace,
            "component": route.component,
            "revision": "",
            "pod": "",
            "protocol": "grpc" if exchange.rpc else "http",
            "call": failures.call(exchange.head),
        }
        if asks:
            trace = Trace(self, context or tracecontext.made())
            self.active.append(trace)
            hop = Hop(trace, None, tracecontext.new_span(), labels)
        else:
            found = self._find(context, request_id, peer, exchange)
            if found is None:
                return None
            parent, by = found
            hop = Hop(parent.trace, parent, tracecontext.new_span(), labels, by=by)
        if not request_id:
            # As a cluster's Envoy does. The SDK passes it on, and nothing else that would tell.
            hop.request_id = request_id = str(uuid.uuid4()).encode()
        hop.trace.ids.setdefault(request_id, hop)
        hop.began = exchange.started
        hop.exchange = exchange
        exchange.hop = hop
        return hop.trace.add(hop)

    def lines(self, exchange: Exchange, head: RequestHead, ids: bytes, peer: str) -> bytes:
        """Return the header lines that tell the replica which trace a request belongs to.

        Args:
            ids: Lines of ids that are the request's and not in its head: those that pass come back.
        """
        context = head.context
        if ids:
            found, ids = tracecontext.parted(ids)
            context = found or context
        if head.asks or self.active:
            own = ids + head.lines if head.has_id else ids
            hop = self.begin(
                exchange, context=context, asks=head.asks, request_id=request_id_of(own), peer=peer
            )
            if hop is not None:
                return ids + hop.lines
        return b"%btraceparent: %b\r\n" % (ids, tracecontext.onward(context))

    def fields(
        self,
        exchange: Exchange,
        kept: Sequence[tuple[bytes, bytes]],
        told: Sequence[tuple[bytes, bytes]],
        peer: str,
    ) -> list[tuple[bytes, bytes]]:
        """Return the same for a gRPC call.

        Args:
            kept / told: Its metadata; `told` is what does not pass as it is.
        """
        context: Context | None = None
        states: list[tuple[bytes, bytes]] = []
        if told:
            context = tracecontext.read([v for n, v in told if n == tracecontext.HEADER])
            if context is not None:
                states = [pair for pair in told if pair[0] == tracecontext.STATE]
            exchange.head.asks = any(n == TRACE_HEADER and wants_trace(v) for n, v in told)
        if exchange.head.asks or self.active:
            hop = self.begin(
                exchange,
                context=context,
                asks=exchange.head.asks,
                request_id=next((v for n, v in kept if n == REQUEST_ID), b""),
                peer=peer,
            )
            if hop is not None:
                return [*hop.fields, *states]
        return [(tracecontext.HEADER, tracecontext.onward(context)), *states]

    def hop(self, context: Context | None) -> Hop | None:
        """Return the hop whose span is a context's parent."""
        return self.spans.get(context.parent) if context is not None else None

    def within(
        self,
        *,
        pod: str,
        request_id: bytes,
        began: float,
        took: float,
        status: int | str,
        error: str,
        **labels: str,
    ) -> None:
        """Take a call from one container of a Pod to another, which has ended.

        Args:
            request_id: What the caller passed on; empty: nothing.
            began: Of `perf_counter`, which processes share.
        """
        at_pod = [e for e in self._running() if e.place is not None and e.place.endpoint.pod == pod]
        known = [e for e in at_pod if e.hop is not None and request_id in e.hop.trace.ids]
        callers, by = (known, "") if known else (at_pod, "pod")
        if len(callers) != 1:
            for trace in {e.hop.trace for e in callers if e.hop is not None}:
                trace.unassigned += 1
            return
        parent = callers[0].hop
        if parent is None:
            return
        hop = parent.step(kind="within", pod=pod, **labels)
        hop.began, hop.by = began, by
        hop.over(status, error)
        hop.took = took

    def forget(self, trace: Trace) -> None:
        """Find no more hops of a trace."""
        if trace in self.active:
            self.active.remove(trace)
        for hop in trace.hops:
            self.spans.pop(hop.span, None)

    def _find(
        self, context: Context | None, request_id: bytes, peer: str, exchange: Exchange
    ) -> tuple[Hop, str] | None:
        hop = self.hop(context)
        if hop is not None:
            return hop, ""
        known = [t for t in self.active if request_id in t.ids]
        if len(known) == 1:
            hop = known[0].ids[request_id]
            # One that the client chose may have passed through several hops.
            return hop if hop.request_id else _caller(known[0], exchange, peer), ""
        known = [t for t in self.active if context and t.context.trace_id == context.trace_id]
        if len(known) == 1:
            return _caller(known[0], exchange, peer), ""
        return self._guess(exchange, peer)

    def _guess(self, exchange: Exchange, peer: str) -> tuple[Hop, str] | None:
        """Return the one request that can have caused this one, by who runs what just now."""
        route = exchange.route.route
        others = [e for e in self._running() if e is not exchange]
        callers, by = [e for e in others if _is_at(e, peer)], "pod"
        if not callers:
            if peer not in _LOCAL or route.names_service:
                return None
            callers, by = [e for e in others if _may_call(e.route.route, route)], "service"
        if len(callers) == 1:
            hop = callers[0].hop
            return (hop, by) if hop is not None else None
        for trace in {e.hop.trace for e in callers if e.hop is not None}:
            trace.unassigned += 1
        return None


def trace_line(exchange: Exchange) -> bytes:
    """Return the header line with the trace of a request that asked for it."""
    return b"".join(b"%b: %b\r\n" % pair for pair in trace_fields(exchange, HTTP_LIMIT))


def trace_fields(exchange: Exchange, limit: int) -> list[tuple[bytes, bytes]]:
    """Return the same for HTTP/2."""
    hop = exchange.hop
    if hop is None or not hop.is_root:
        return []
    return [(TRACE_HEADER, hop.trace.encode(limit))]


def request_id_of(lines: bytes) -> bytes:
    """Return the (first) `x-request-id` of header lines; empty: none."""
    found = _REQUEST_ID_LINE.search(lines)
    return bytes(found.group(1)) if found else b""


def _is_at(exchange: Exchange, address: str) -> bool:
    place = exchange.place
    return place is not None and address not in _LOCAL and place.endpoint.address == address


def _may_call(caller: Route, called: Route) -> bool:
    """Whether one component asks another of its own service."""
    same = (caller.namespace, caller.service) == (called.namespace, called.service)
    return same and caller.component in _CALLERS and caller.component != called.component


def _caller(trace: Trace, exchange: Exchange, peer: str) -> Hop:
    """Return which hop of its trace most likely made a request: by address, service, or order."""
    route = exchange.route.route
    hops = list(trace.open())
    tests: tuple[Callable[[Exchange], bool], ...] = (
        lambda e: _is_at(e, peer),
        lambda e: _may_call(e.route.route, route),
        lambda e: e.route.route.component in _CALLERS,
        lambda e: e.target is not exchange.target,
    )
    for test in tests:
        for hop in hops:
            if hop.exchange is not None and test(hop.exchange):
                return hop
    return trace.root


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _ascii(text: str) -> str:
    """Return JSON text for a header: signs beyond ASCII as `\\u` escapes."""
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    words = (c if c < "\x7f" else c.encode("utf-16-be").hex() for c in text)
    return "".join(
        w if len(w) == 1 else "".join(f"\\u{w[i : i + 4]}" for i in range(0, len(w), 4))
        for w in words
    )
