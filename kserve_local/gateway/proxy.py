"""From a routed request to its end: target, replica, connection, time limit, figures.

`Dataplane` holds one `TargetState` a revision over all table snapshots, so that counts, queues
and pools survive a new table. An `Exchange` is one request; whoever ends it (answer complete,
time up, client gone, replica lost) calls `TargetState.finished` exactly once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, cast

from kserve_local.aio import backoff
from kserve_local.gateway import errors, failures
from kserve_local.gateway.activator import REFUSED_LIMIT, Verdict, judge, poke_due
from kserve_local.gateway.balancer import Balancer
from kserve_local.gateway.breaker import PER_PLACE, Breaker
from kserve_local.gateway.graph_server import GraphHost
from kserve_local.gateway.head import ResponseHead, header_of
from kserve_local.gateway.holds import StoppedPods
from kserve_local.gateway.metrics import TargetFigures
from kserve_local.gateway.recorder import EVENTS, Pieces, Recorder
from kserve_local.gateway.table import CompiledRoute, CompiledTable
from kserve_local.gateway.trace import Hop, Traces
from kserve_local.gateway.upstream import (
    CONNECT_TIMEOUT,
    IDLE_CLOSE,
    EndpointState,
    UpstreamConnection,
)
from kserve_local.interfaces.routing import RouteTable, Target
from kserve_local.interfaces.stats import RequestStat, Woken

if TYPE_CHECKING:
    from kserve_local.gateway.agent import AgentHost
    from kserve_local.gateway.head import RequestHead
    from kserve_local.gateway.http1 import ClientConnection
    from kserve_local.gateway.rpc import Rpc

logger = logging.getLogger(__name__)

TICK = 0.05
DOZE = 0.2
"""Seconds between ticks while no request runs: to wake up is most of what an idle gateway costs."""
MAX_TRIES = 8
MESH_RETRIES = 2
"""How often Istio tries another replica when one takes no connection."""
DIALS = 7
"""Attempts, in about 2 s, at a gRPC port that refuses; whether the HTTP port does is not known."""


class Client(Protocol):
    """A client's connection, of either protocol."""

    transport: asyncio.Transport

    def check(self, now: float) -> None: ...

    def drain(self) -> None: ...


class Exchange:
    """One request on its way.

    Attributes:
        fresh: The head as it is sent upstream.
        pending: Body bytes, framed for the upstream, that wait for a connection.
        body_done: The client has sent all of the request.
        streamed: The body went in more than one piece, so some of it may still be on its way.
        status: Of the answer once its head went out; 0 before.
        heard: The answer, where it is looked at: that of a failure, and what one component answers
            another.
        answer / sent / said: For `recorder.Entry`: the answer's head, what of the body is not in
            `fresh`, the answer.
        declared: The answer carries Content-Length.
        hop: What its trace knows of it; None: it is in none.
        finished: Counted out; late callbacks are ignored.
    """

    __slots__ = (
        "answer",
        "body_done",
        "client",
        "deadline",
        "declared",
        "finished",
        "fresh",
        "head",
        "heard",
        "hop",
        "pending",
        "pending_size",
        "place",
        "refused_at",
        "route",
        "said",
        "sent",
        "started",
        "status",
        "streamed",
        "target",
        "tries",
        "upstream",
    )

    rpc = False
    """Whether it is a gRPC call (`rpc.Rpc`)."""

    def __init__(
        self,
        client: ClientConnection,
        head: RequestHead,
        route: CompiledRoute,
        target: TargetState,
        fresh: bytes,
        pending: list[bytes],
        size: int,
        body_done: bool,
    ) -> None:
        self.client = client
        self.head = head
        self.route = route
        self.target = target
        self.fresh = fresh
        self.pending = pending
        self.pending_size = size
        self.body_done = body_done
        self.upstream: UpstreamConnection | None = None
        self.place: EndpointState | None = None
        self.streamed = False
        self.status = 0
        self.declared = False
        self.heard: failures.Heard | None = None
        self.answer: ResponseHead | None = None
        self.sent: Pieces | None = None
        self.said: bytes | Pieces | None = None
        self.hop: Hop | None = None
        self.finished = False
        self.tries = 0
        self.refused_at = 0.0
        self.started = started = perf_counter()
        self.deadline = started + (target.timeout if route.limit is None else route.limit)

    def ended_with(self, why: str, status: int | str = 0) -> None:
        """Note in its trace what ended it, if that was no answer of the replica's."""
        if self.hop is not None:
            self.hop.error = why
            self.hop.status = status or self.hop.status

    def refusal(self, answer: errors.Answer) -> int | str:
        """Return what a client reads as the status of an answer of ours."""
        return answer.status

    def send(self, pieces: list[bytes]) -> None:
        """Pass body bytes on, or keep them until there is a connection."""
        upstream = self.upstream
        self.streamed = True
        if upstream is not None:
            self.pass_on(pieces)
            if len(pieces) == 1:
                upstream.transport.write(pieces[0])
            else:
                upstream.transport.writelines(pieces)
        elif not self.finished:
            self.pending += pieces
            self.pending_size += sum(map(len, pieces))

    def pass_on(self, pieces: list[bytes]) -> None:
        """Note pieces of the body that leave for the replica."""
        recorder = self.target.plane.recorder
        if recorder is not None:
            if self.sent is None:
                self.sent = recorder.pieces()
            self.sent.take(pieces)

    def answers(self, head: ResponseHead, pieces: list[bytes]) -> None:
        """Note an answer that comes in pieces, of which these are the first."""
        recorder = self.target.plane.recorder
        if recorder is not None:
            streams = header_of(head, b"content-type").startswith(EVENTS)
            self.answer, self.said = head, recorder.pieces(pieces, beginning=streams)


class TargetState:
    """One revision: its replicas, the requests at them, the requests that wait."""

    __slots__ = (
        "applied",
        "balancer",
        "breaker",
        "endpoints",
        "figures",
        "in_flight",
        "mark",
        "plane",
        "poked_at",
        "removed",
        "sole",
        "spec",
        "spread",
        "timeout",
        "usable",
        "waker",
    )

    def __init__(self, spec: Target, plane: Dataplane) -> None:
        self.plane = plane
        self.spec = spec
        self.timeout = spec.timeout
        self.endpoints: dict[tuple[str, str, int], EndpointState] = {}
        self.usable: list[EndpointState] = []
        # The one usable replica, if it takes any number of requests: nothing to choose.
        self.sole: EndpointState | None = None
        self.in_flight: dict[Exchange, None] = {}
        self.breaker: Breaker[Exchange] = Breaker(held=plane.max_held)
        self.balancer = Balancer(spec.container_concurrency, plane.draw)
        # Who chooses where the activator is out of the path: it knows no limit.
        self.spread = Balancer(0, plane.draw)
        self.mark = _mark_of(spec)
        self.figures = TargetFigures(perf_counter())
        self.poked_at = 0.0
        # The request that waits longest for the first replica: whose answer ends a cold start.
        self.waker: Exchange | None = None
        self.removed = False
        self.applied = False

    def apply(self, spec: Target) -> None:
        """Take over what a new table says."""
        self.removed, self.applied = False, True
        if spec.container_concurrency != self.spec.container_concurrency:
            self.balancer = Balancer(spec.container_concurrency, self.plane.draw)
        self.spec = spec
        self.timeout = spec.timeout
        self.mark = _mark_of(spec)
        if spec.endpoints:
            # The next time it is at zero, the first request pokes at once.
            self.poked_at = 0.0
        wanted = {(e.pod, e.address, e.port): e for e in spec.endpoints}
        for key in [k for k in self.endpoints if k not in wanted]:
            self.plane.retire(self.endpoints.pop(key))
        for key in sorted(wanted, key=lambda k: (_address_order(k[1]), k[2])):
            if key not in self.endpoints:
                self.endpoints[key] = EndpointState(wanted[key], self)
        if self.endpoints:
            self.plane.awake.add(self)
        self.settle()

    def settle(self) -> None:
        """Look anew at who can take requests, and let the waiting go or fail."""
        self.usable = sorted(
            (p for p in self.endpoints.values() if not p.refused and not self.plane.stopped.has(p)),
            key=lambda p: (_address_order(p.endpoint.address), p.endpoint.port),
        )
        free = len(self.usable) == 1 and not self.spec.container_concurrency
        self.sole = self.usable[0] if free else None
        if not len(self.breaker):
            return
        if self.usable:
            self.release()
        elif self.removed:
            for exchange in self.breaker:
                self.hand_over(exchange)
        elif self.spec.plain or judge(self.spec.state, listed=len(self.endpoints)) is Verdict.FAIL:
            for exchange in self.breaker:
                self.plane.answer(exchange, self.failure(exchange))
        else:
            self.wake(perf_counter())

    def failure(self, exchange: Exchange) -> errors.Answer:
        """Return the answer for a revision that cannot come, or that nobody waits for."""
        if self.spec.plain:
            return errors.no_upstream(self.spec.reason)
        return errors.failed(self.spec.reason, openai=errors.is_openai(exchange.head.target))

    def start(self, exchange: Exchange) -> None:
        """Send the request to a replica now, hold it, or refuse it."""
        self.in_flight[exchange] = None
        self.figures.requests += 1
        if self.spec.direct and self.spec.container_concurrency and self.usable:
            self.queue_up(exchange)
            return
        if not self.breaker.waiting:
            place = self.sole or self.balancer.pick(self.usable)
            if place is not None:
                self.dispatch(exchange, place)
                return
        self.hold(exchange)

    def queue_up(self, exchange: Exchange) -> None:
        """Send the request to a replica whatever it has to do: it queues there, or is refused."""
        place = self.spread.pick(self.usable)
        assert place is not None  # there is one
        limit = self.spec.container_concurrency
        if place.running < limit:
            self.dispatch(exchange, place)
        elif len(place.queue) < PER_PLACE * limit:
            place.in_flight += 1
            exchange.place = place
            place.queue[exchange] = None
            exchange.client.held(exchange)
        else:
            self.plane.answer(exchange, errors.queue_full())

    def hold(self, exchange: Exchange) -> None:
        """Queue the request until a replica can take it."""
        if self.spec.plain:
            self.insist(exchange)
            return
        listed = len(self.endpoints)
        verdict = judge(self.spec.state, listed=listed)
        if verdict is Verdict.FAIL:
            self.plane.answer(exchange, self.failure(exchange))
            return
        if not self.breaker.offer(exchange, replicas=bool(self.usable)):
            self.plane.answer(exchange, errors.queue_full())
            return
        exchange.client.held(exchange)
        self.plane.awake.add(self)
        if verdict is Verdict.WAKE:
            self.wake(perf_counter())

    def insist(self, exchange: Exchange) -> None:
        """Try a replica although each refused before, as Envoy does when no host is healthy."""
        place = self.balancer.pick(list(self.endpoints.values()))
        if place is None:
            self.plane.answer(exchange, self.failure(exchange))
        else:
            self.dispatch(exchange, place)

    def hand_over(self, exchange: Exchange) -> None:
        """Let a held request follow its route, now that this revision is gone.

        Not a byte of it was sent. So a request that came before the service had its first revision
        waits for that one.
        """
        plane = self.plane
        route = plane.table.successor(exchange.route.route)
        target = plane.target_of(route) if route is not None else None
        if route is None or target is None:
            plane.answer(exchange, errors.revision_gone(self.spec.id))
            return
        self.breaker.withdraw(exchange)
        self.in_flight.pop(exchange, None)
        self.waker = None
        exchange.route, exchange.target = route, target
        target.start(exchange)

    def wake(self, now: float) -> None:
        """Tell the supervisor that requests wait."""
        self.waker = self.waker or self.breaker.first()
        if poke_due(self.poked_at, now):
            self.poked_at = now
            self.plane.poke(self.spec.id)

    def release(self) -> None:
        """Let waiting requests go, in order, as long as a replica has a place."""
        breaker = self.breaker
        now = perf_counter()
        while (exchange := breaker.first()) is not None:
            place = self.balancer.pick(self.usable)
            if place is None:
                return
            breaker.withdraw(exchange)
            if exchange.hop is not None:
                exchange.hop.held = now - exchange.started
            self.dispatch(exchange, place)

    def dispatch(self, exchange: Exchange, place: EndpointState) -> None:
        """Send the request to this replica."""
        place.in_flight += 1
        exchange.place = place
        self._send(exchange, place)

    def _send(self, exchange: Exchange, place: EndpointState) -> None:
        if exchange.rpc:
            self.plane.call(exchange, place)
            return
        connection = place.take()
        if connection is not None:
            connection.begin(exchange)
        else:
            self.plane.connect(exchange, place)

    def left(self, exchange: Exchange, place: EndpointState) -> None:
        """Take the request off its replica; the next of those that queue there has its turn."""
        place.in_flight -= 1
        exchange.place = None
        if place.queue.pop(exchange, self) is None:
            return
        while place.queue and place.running < max(1, self.spec.container_concurrency):
            after = next(iter(place.queue))
            del place.queue[after]
            if after.hop is not None:
                after.hop.held = perf_counter() - after.started
            self._send(after, place)

    def finished(self, exchange: Exchange, now: float) -> None:
        """Count the request out; its place is free."""
        if exchange.finished:
            return
        exchange.finished = True
        self.in_flight.pop(exchange, None)
        self.figures.done(exchange.started, now, exchange.status)
        if exchange.heard is not None and not (self.spec.graph and self.figures.failure):
            # A graph's router has told which of its steps it was.
            self.figures.failure = _failed(exchange, exchange.heard) or self.figures.failure
        if exchange.hop is not None:
            exchange.hop.end(now)
        place = exchange.place
        if exchange is self.waker:
            self._woken(exchange, place, now)
        if place is not None:
            self.left(exchange, place)
        if self.breaker.waiting:
            self.breaker.withdraw(exchange)
            self.release()
        if self.plane.recorder is not None:
            self.plane.recorder.take(exchange, now)
        if self.plane.access_log is not None:
            self.plane.access_log(exchange, now)

    def _woken(self, exchange: Exchange, place: EndpointState | None, now: float) -> None:
        """Tell of the end of the request that woke the revision; one that left unanswered is
        followed by who waits longest now.
        """
        self.waker = None
        if place is None:
            self.waker = next((e for e in self.breaker if e is not exchange), None)
        if self.waker is None and self.plane.woken is not None:
            pod = place.name if place is not None else ""
            self.plane.woken(Woken(self.spec.id, pod, exchange.started, now))

    def tick(self, now: float) -> None:
        """Time limits, idle connections, and knocking at replicas that refused."""
        for exchange in list(self.in_flight):
            if exchange.deadline <= now:
                self.plane.expire(exchange)
        if not len(self.breaker) and not self.spec.plain:
            return
        if not self.endpoints:
            if not self.spec.plain:
                self.wake(now)
            return
        for place in self.endpoints.values():
            if place.refused and not place.connecting and place.retry_at <= now:
                self.plane.knock(place)
        if not self.usable:
            for exchange in self.breaker:
                if exchange.refused_at and now - exchange.refused_at > REFUSED_LIMIT:
                    error = next(iter(self.endpoints.values())).error
                    self.plane.answer(exchange, errors.bad_gateway(error))


class Dataplane:
    """All targets under the current table.

    Args:
        poke: Called with a target's id when requests wait for its first replica.
        max_held: Requests one revision may hold while there is no replica.
        token: Demanded as bearer token of every request; empty: none.
        seed: Repeats the draws of a run; None: at random.
    """

    def __init__(
        self,
        *,
        poke: Callable[[str], None],
        max_held: int = 1000,
        token: bytes = b"",
        seed: int | None = None,
    ) -> None:
        self.token = token
        self.poke = poke
        self.max_held = max_held
        self.draw = random.Random(seed)
        self.table = CompiledTable(RouteTable(version=0), any_host=bool(token))
        self.targets: dict[str, TargetState] = {}
        self.clients: set[Client] = set()
        self.draining = False
        self._gone = asyncio.Event()
        self.access_log: Callable[[Exchange, float], None] | None = None
        self.woken: Callable[[Woken], None] | None = None
        self.traces = Traces(self.running)
        # None: nothing is kept.
        self.recorder: Recorder | None = None
        self.graphs: GraphHost | None = None
        self.agents: AgentHost | None = None
        self.connections = 0
        self.refusals = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._slow_tick = 0.0
        self._ticked = perf_counter()
        self.stopped = StoppedPods()
        # Targets that have replicas or hold requests: the others need no look.
        self.awake: set[TargetState] = set()
        self._retired: set[EndpointState] = set()
        self._releases: dict[str, Callable[[str], None]] = {}

    # Tables

    def apply(self, table: RouteTable) -> None:
        """Swap the table: one assignment, then what waits is looked at again."""
        compiled = self.table.following(table)
        specs = {t.id: t for r in table.routes for t in r.targets}
        specs |= {t.id: t for r in table.routes if r.explain for t in r.explain}
        for key, spec in specs.items():
            if key not in self.targets:
                self.targets[key] = TargetState(spec, self)
        # Not before all of its targets exist: a look-up must find whatever the table names.
        self.table = compiled
        for key, spec in specs.items():
            state = self.targets[key]
            # What came with a table before is the same object; most of a table is.
            if state.spec is not spec or state.removed or not state.applied:
                state.apply(spec)
        # What they held goes to those that are there now.
        for key, state in self.targets.items():
            if key not in specs and not state.removed:
                state.removed = True
                for place in state.endpoints.values():
                    self.retire(place)
                state.endpoints = {}
                state.settle()
        self._tell_released()
        if self.agents is not None:
            self.agents.keep_only(key for state in self.targets.values() for key in state.endpoints)

    def retire(self, place: EndpointState) -> None:
        """Take a replica out of use; what runs there may finish."""
        place.retire()
        if place.in_flight:
            self._retired.add(place)

    def when_released(self, pod: str, tell: Callable[[str], None]) -> None:
        """Call `tell` once the table does not name the Pod and nothing runs there any more.

        Args:
            pod: `namespace/name`.
        """
        self._releases[pod] = tell
        self._tell_released()

    def _tell_released(self) -> None:
        self._retired = {p for p in self._retired if p.in_flight}
        if not self._releases:
            return
        listed = (p for state in self.targets.values() for p in state.endpoints.values())
        busy = {p.name for p in (*listed, *self._retired)}
        for pod in [p for p in self._releases if p not in busy]:
            self._releases.pop(pod)(pod)

    def target_of(self, compiled: CompiledRoute) -> TargetState | None:
        """Draw the target of one request by the route's weights; None: the route has none."""
        ids = compiled.ids
        if len(ids) == 1:
            return self.targets[ids[0]]
        if not ids:
            return None
        return self.targets[ids[compiled.draw(self.draw.random())]]

    def hold(self, pods: Mapping[str, Collection[str]]) -> None:
        """Take which Pods a debugger has stopped; see `StoppedPods.replace`."""
        self.tick(perf_counter())
        self.stopped.replace(pods)
        for state in self.targets.values():
            state.settle()

    def failed(self, target: str, why: str) -> None:
        """Keep why a request to a target failed, for `status` and the log."""
        state = self.targets.get(target)
        if state is not None:
            state.figures.failure = why

    def running(self) -> Iterator[Exchange]:
        """Yield all requests that run or are held."""
        for state in self.targets.values():
            yield from state.in_flight

    # Connections to replicas

    def connect(self, exchange: Exchange, place: EndpointState) -> None:
        """Open a connection for this request."""
        self._own(self._connect(place, exchange), f"connect {place.endpoint.pod}")

    def call(self, exchange: Exchange, place: EndpointState) -> None:
        """Send a gRPC call over one of the replica's connections, or the next that is made."""
        if place.target.spec.graph is not None:
            hint = "an InferenceGraph takes HTTP requests, no gRPC calls"
            self.answer(exchange, errors.protocol_error(hint))
            return
        pool = place.rpc
        rpc = cast("Rpc", exchange)
        endpoint, agents = place.endpoint, self.agents
        if endpoint.agent and agents is not None and not rpc.is_read(agents, endpoint):
            return
        connection = pool.take()
        if connection is not None:
            connection.begin(rpc)
            return
        pool.waiting.append(rpc)
        if not pool.dialing:
            pool.dialing = True
            self._own(self._dial(place), f"dial {place.endpoint.pod}")

    async def _dial(self, place: EndpointState) -> None:
        """Make a connection for the calls that wait for one."""
        from kserve_local.gateway.rpc import RpcConnection

        endpoint, pool = place.endpoint, place.rpc
        port = endpoint.grpc_port or endpoint.port
        attempts = 0
        while True:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    _, connection = await asyncio.get_running_loop().create_connection(
                        lambda: RpcConnection(place), endpoint.address, port
                    )
                break
            except (OSError, TimeoutError) as error:
                attempts += 1
                believed = port != endpoint.port and not place.retired
                held = believed and not place.target.spec.plain
                if held and attempts < DIALS and any(not e.finished for e in pool.waiting):
                    # It may have died, or not listen yet: the table says so in a moment.
                    place.target.wake(perf_counter())
                    await asyncio.sleep(backoff(attempts - 1, first=0.05, cap=0.5))
                    continue
                waiting, pool.waiting, pool.dialing = pool.waiting, [], False
                for exchange in waiting:
                    if believed:
                        # The replica is well; it only speaks no gRPC.
                        self.answer(exchange, errors.bad_gateway(_dial_error(place, error, port)))
                    else:
                        self._refused(place, exchange, error)
                return
        waiting, pool.waiting, pool.dialing = pool.waiting, [], False
        pool.connections.append(connection)
        if port == endpoint.port:
            place.attempts = 0
        for exchange in waiting:
            if exchange.finished or exchange.place is not place:
                continue
            if connection.has_room:
                connection.begin(exchange)
            else:
                self.call(exchange, place)
        if place.retired:
            pool.retire()

    def knock(self, place: EndpointState) -> None:
        """Try a replica that refused, for the sake of those who wait."""
        place.connecting = True
        self._own(self._connect(place, None), f"knock {place.endpoint.pod}")

    async def _connect(self, place: EndpointState, exchange: Exchange | None) -> None:
        endpoint = place.endpoint
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if place.target.spec.graph is not None and self.graphs is not None:
                    # The router of a graph is in this process.
                    connection = self.graphs.connect(
                        lambda: place.target.spec, lambda: UpstreamConnection(place)
                    )
                elif endpoint.agent and self.agents is not None:
                    connection = await self.agents.connect(
                        endpoint, lambda: UpstreamConnection(place)
                    )
                else:
                    _, connection = await loop.create_connection(
                        lambda: UpstreamConnection(place), endpoint.address, endpoint.port
                    )
        except (OSError, TimeoutError) as error:
            place.connecting = False
            self._refused(place, exchange, error)
            return
        place.connecting = False
        place.attempts = 0
        was_refused, place.refused = place.refused, False
        if exchange is not None and not exchange.finished and exchange.place is place:
            connection.begin(exchange)
        elif place.retired:
            connection.close()
        else:
            connection.since = perf_counter()
            place.idle.append(connection)
        if was_refused:
            place.target.settle()

    def _refused(
        self, place: EndpointState, exchange: Exchange | None, error: OSError | TimeoutError
    ) -> None:
        now = perf_counter()
        self.refusals += 1
        place.refused = True
        place.error = _dial_error(place, error)
        place.retry_at = now + backoff(place.attempts, first=0.05, cap=1.0)
        place.attempts += 1
        target = place.target
        if target.spec.plain:
            target.settle()
            if exchange is not None and not exchange.finished:
                self._elsewhere(place, exchange)
            return
        if exchange is not None and not exchange.finished:
            # Not a byte was sent, so another replica, or this one later, may have it.
            if exchange.place is not None:
                target.left(exchange, exchange.place)
            exchange.refused_at = exchange.refused_at or now
            target.breaker.give_back(exchange)
            exchange.client.held(exchange)
            # The table may be behind: whoever watches the replicas should look now.
            target.wake(now)
        target.settle()

    def _elsewhere(self, place: EndpointState, exchange: Exchange) -> None:
        """Give a request that a replica refused to another one, as Istio retries, or end it."""
        target = place.target
        if exchange.place is not None:
            target.left(exchange, exchange.place)
        other = target.balancer.pick(target.usable)
        if other is None or exchange.tries >= MESH_RETRIES:
            self.answer(exchange, errors.connect_failed(place.error))
            return
        exchange.tries += 1
        target.dispatch(exchange, other)

    def _own(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._disown)

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    # Ends of requests

    def answer(self, exchange: Exchange, answer: errors.Answer, why: str = "") -> None:
        """End a request with an answer of our own; its replica, if any, is let go.

        Args:
            why: What the answer does not say, for `status`, log and trace.
        """
        if exchange.finished:
            return
        upstream = exchange.upstream
        if upstream is not None:
            upstream.detach()
        exchange.status = answer.status
        if self.recorder is not None:
            exchange.answer, exchange.said = None, answer.encode(close=False, head_only=False)
        text = failures.text_of(answer)
        exchange.ended_with(f"{text} ({why})" if why else text, exchange.refusal(answer))
        exchange.target.finished(exchange, perf_counter())
        exchange.target.figures.failure = failures.not_answered(exchange.head, answer, why)
        exchange.client.answer(answer, exchange)

    def cancel(self, exchange: Exchange) -> None:
        """The client left: the replica sees a disconnect, the place is free at once."""
        upstream = exchange.upstream
        if upstream is not None:
            upstream.detach()
        now = perf_counter()
        exchange.ended_with(failures.LEFT)
        exchange.target.finished(exchange, now)
        if exchange.route.inner and not exchange.status:
            exchange.target.figures.failure = failures.left(exchange.head, now - exchange.started)

    def expire(self, exchange: Exchange) -> None:
        """The total limit is over: 504, or the text glued to an answer that has begun."""
        if exchange.finished or exchange.status == 101:
            return
        plain = exchange.target.spec.plain
        text = errors.DIRECT_TIMEOUT if exchange.target.spec.direct else errors.TIMEOUT
        if not exchange.status:
            over = errors.upstream_timed_out() if plain else errors.timed_out(text)
            self.answer(exchange, over)
            return
        upstream = exchange.upstream
        if upstream is not None:
            upstream.detach()
        if plain:
            self._cut(exchange, "its time is up")
            return
        self._cut_short(exchange, text.decode())
        client = exchange.client
        if exchange.declared:
            # The text does not fit the length that was declared: the answer is cut short.
            client.close()
        else:
            client.send_body(exchange, [text], last=True)
            client.response_done(exchange)

    def upstream_broken(self, exchange: Exchange, why: str) -> None:
        """The replica's answer cannot be read in one way only."""
        if exchange.status:
            self._cut(exchange, "the rest of it cannot be read")
        else:
            self.answer(exchange, errors.protocol_error(), why)

    def upstream_lost(
        self, exchange: Exchange, error: Exception | None, *, reused: bool, why: str = ""
    ) -> None:
        """The replica's connection ended before the answer did."""
        if exchange.finished:
            return
        if exchange.status:
            self._cut(exchange, _read_error(exchange.place, error))
            return
        place = exchange.place
        if reused and exchange.head.idempotent and exchange.tries < MAX_TRIES and place:
            # A rested connection that closed under a request which may be repeated.
            exchange.tries += 1
            exchange.target.left(exchange, place)
            exchange.target.breaker.give_back(exchange)
            exchange.target.settle()
            return
        if exchange.target.spec.plain:
            self.answer(exchange, errors.upstream_reset(), why or _read_error(place, error))
            return
        self.answer(exchange, errors.bad_gateway(_read_error(place, error)), why)

    def _cut(self, exchange: Exchange, why: str) -> None:
        """Nothing can be said any more: the client sees the answer end too early."""
        self._cut_short(exchange, why)
        exchange.client.cut(exchange)

    def _cut_short(self, exchange: Exchange, why: str) -> None:
        exchange.ended_with(f"{failures.CUT}: {why}")
        exchange.target.finished(exchange, perf_counter())
        exchange.target.figures.failure = failures.cut_short(exchange.head, why)

    def client_gone(self, client: Client) -> None:
        """A client's connection has ended."""
        self.clients.discard(client)
        if self.draining and not self.clients:
            self._gone.set()

    async def all_gone(self) -> None:
        """Return when the last client has left; only while draining."""
        if self.clients:
            await self._gone.wait()

    # Time and figures

    async def keep_time(self) -> None:
        """Run time limits and housekeeping until cancelled."""
        while True:
            await asyncio.sleep(TICK if self._is_busy() else DOZE)
            try:
                self.tick(perf_counter())
            except Exception:
                logger.exception("housekeeping failed")

    def _is_busy(self) -> bool:
        return bool(self._retired or self._releases) or any(s.in_flight for s in self.awake)

    def tick(self, now: float) -> None:
        """Do what is due at `now` (`perf_counter`)."""
        passed, self._ticked = now - self._ticked, now
        if self.stopped:
            self.stopped.move_deadlines(self.running(), passed)
        for state in list(self.awake):
            if state.in_flight:
                state.tick(now)
        if self._retired or self._releases:
            self._tell_released()
        if self.recorder is not None:
            self.recorder.tick(now)
        if now - self._slow_tick < 1.0:
            return
        self._slow_tick = now
        for state in self.awake:
            for place in state.endpoints.values():
                if place.idle or place.rpc.connections:
                    place.close_idle(now - IDLE_CLOSE)
        self.awake = {s for s in self.awake if s.endpoints or s.in_flight}
        for client in list(self.clients):
            client.check(now)
        if self.graphs is not None:
            self.graphs.client.tidy(now)

    def stats(self, now: float) -> list[RequestStat]:
        """Return the period's figures of targets that have any, and start a new period."""
        found: list[RequestStat] = []
        for key, state in list(self.targets.items()):
            if state.figures.is_silent and not state.in_flight and not state.removed:
                # A thousand services at zero, once a second: nothing to work out.
                state.figures.pass_over(now)
                continue
            stat = state.figures.close_period(
                key, now, [e.started for e in state.in_flight], held=len(state.breaker)
            )
            if stat is not None:
                found.append(stat)
                if stat.failure:
                    # Once a period at most, however many there are.
                    logger.warning("%s: %s", key, stat.failure)
            if state.removed and not state.in_flight:
                del self.targets[key]
        return found


def _mark_of(spec: Target) -> bytes:
    """Return the header line by which a replica sees that the activator is in the path."""
    return b"" if spec.direct or spec.plain else b"K-Proxy-Request: activator\r\n"


def _failed(exchange: Exchange, heard: failures.Heard) -> str:
    """Return what is wrong with a replica's answer, in words; empty: nothing."""
    status, why = exchange.status, heard.why(exchange.head)
    if failures.counts(status, inner=exchange.route.inner) or (status < 400 and why):
        return failures.answered(exchange.head, status, why)
    return ""


def _address_order(address: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in address.split("."))
    except ValueError:
        return (0,)


def _dial_error(place: EndpointState, error: OSError | TimeoutError, port: int = 0) -> str:
    """Return Go's words for a connection that could not be made."""
    where = f"{place.endpoint.address}:{port or place.endpoint.port}"
    if isinstance(error, TimeoutError):
        return f"dial tcp {where}: i/o timeout"
    code = error.errno or errno.ECONNREFUSED
    return f"dial tcp {where}: connect: {os.strerror(code).lower()}"


def _read_error(place: EndpointState | None, error: Exception | None) -> str:
    """Return Go's words for a connection that ended before an answer."""
    if isinstance(error, OSError) and error.errno and place is not None:
        where = f"{place.endpoint.address}:{place.endpoint.port}"
        return f"read tcp {where}: read: {os.strerror(error.errno).lower()}"
    return "EOF"
