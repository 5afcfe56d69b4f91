"""The last calls of each service: what `kserve-local requests`, `replay` and `diff` look at.

On the request path nothing is read or copied: a call that has ended leaves references to the bytes
that passed anyway, in the ring of its component. They are put together, and redacted, when somebody
asks (`recorded`). A ring is bounded by number and by bytes, all rings together by bytes, and so is
what bodies in several pieces hold while their calls run. Of calls that come faster than `RATE` for
longer than `BURST` of them a sample is kept, the newest among them. Nothing is written anywhere.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from kserve_local.interfaces.recorded import REPLAY_ID, REPLAY_TRACE

if TYPE_CHECKING:
    from kserve_local.gateway.head import RequestHead, ResponseHead
    from kserve_local.gateway.proxy import Exchange
    from kserve_local.interfaces.routing import Route

BODY_LIMIT = 256 * 1024
"""Bytes of a body; a larger one is kept without its content."""
TOTAL = 64 * 1024 * 1024
"""Bytes of all rings."""
RUNNING = 16 * 1024 * 1024
"""Bytes that bodies in pieces may hold while their calls run."""
RATE = 200.0
"""Calls a second of one component that are all kept."""
BURST = 200
EVENTS = b"text/event-stream"
_ENTRY = 512
"""About what an entry holds besides its bytes."""
_ROOM = TOTAL // 16
"""What is freed at once when all rings are full: to find the largest one is not free."""

_CALL = re.compile(
    rb"[^?]*/(?:v1/models/[^/?]+:(?:predict|explain)"
    rb"|v2/models/[^/?]+(?:/versions/[^/?]+)?/(?:infer|explain|generate|generate_stream)"
    rb"|v1/(?:chat/completions|completions|embeddings|rerank|score|responses|classify|pooling))"
    rb"/?(?=\?|\Z)"
)

_CAUSED = re.compile(
    rb"^(?:traceparent:[ \t]*00-%b|x-request-id:[ \t]*%b)"
    % (REPLAY_TRACE.encode(), REPLAY_ID.encode()),
    re.IGNORECASE | re.MULTILINE,
)
"""In the head of what a replay has caused."""

Key = tuple[str, str, str]
"""Namespace, service, component."""


class Entry(NamedTuple):
    """A call as it was left behind.

    Args:
        number: Counts all of them.
        fresh: Its head as the replica got it, and the body if that is small.
        sent: The body's other pieces, framed as they passed.
        said: The whole answer in one piece, with its head; or its body's pieces.
        status: 0: the client left before there was one.
        began, ended: Of `perf_counter`.
        whole: All of the request has come.
    """

    number: int
    size: int
    fresh: bytes
    sent: Pieces | None
    answer: ResponseHead | None
    said: bytes | Pieces | None
    status: int
    began: float
    ended: float
    target: str
    protocol: str
    whole: bool


class Pieces:
    """A body that comes in pieces.

    Args:
        beginning: Of one that is too large, keep what fits.

    Attributes:
        size: Of all that passed.
        cut: It is not all here.
    """

    __slots__ = ("_beginning", "_recorder", "cut", "held", "pieces", "size")

    def __init__(
        self, recorder: Recorder, pieces: Sequence[bytes] = (), *, beginning: bool = False
    ) -> None:
        self._recorder = recorder
        self._beginning = beginning
        self.pieces: list[bytes] = []
        self.size = 0
        self.held = 0
        self.cut = False
        self.take(pieces)

    def take(self, pieces: Iterable[bytes]) -> None:
        """Keep further pieces, as long as there is room."""
        for piece in pieces:
            size = len(piece)
            self.size += size
            if self.cut:
                continue
            if self.size > BODY_LIMIT or self._recorder.running + size > RUNNING:
                self.cut = True
                if not self._beginning:
                    self.let_go()
                    self.pieces = []
                continue
            self.pieces.append(piece)
            self.held += size
            self._recorder.running += size

    def let_go(self) -> None:
        """Hold nothing of the running calls' share any more."""
        self._recorder.running -= self.held
        self.held = 0


class Ring:
    """The last calls of one component.

    Attributes:
        left: How many more may be kept before the next tick.
        latest, ended: The newest of those beyond that, and when it ended.
    """

    __slots__ = ("ended", "entries", "latest", "left", "size")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.size = 0
        self.left = float(BURST)
        self.latest: Exchange | None = None
        self.ended = 0.0

    def drop(self) -> int:
        """Forget the oldest; return the bytes that frees."""
        size = self.entries.popleft().size
        self.size -= size
        return size


class Recorder:
    """Keeps the last calls of models.

    Args:
        keep: Calls per component.
        max_bytes: Bytes per component.

    Attributes:
        running: Bytes that bodies of running calls hold.
        size: Bytes of all rings.
    """

    def __init__(self, keep: int = 100, max_bytes: int = TOTAL) -> None:
        self.keep = keep
        self.max_bytes = max_bytes
        self.running = 0
        self.size = 0
        self._rings: dict[Key, Ring] = {}
        # Those that have not all of their burst left.
        self._spent: set[Ring] = set()
        self._ticked = 0.0
        self._numbers = count(1)

    def limit(self, keep: int, max_bytes: int) -> None:
        """Take other limits; what is there is held to them."""
        self.keep, self.max_bytes = keep, max_bytes
        for ring in self._rings.values():
            self._trim(ring)

    def forget(self) -> None:
        """Forget all calls."""
        for ring in self._rings.values():
            ring.latest = None
            while ring.entries:
                self.size -= ring.drop()

    def pieces(self, pieces: Sequence[bytes] = (), *, beginning: bool = False) -> Pieces:
        """Return a body that is to be kept, of which these have come."""
        return Pieces(self, pieces, beginning=beginning)

    def take(self, exchange: Exchange, now: float) -> None:
        """Keep a request that has ended, if it is a call of a model."""
        sent, said = exchange.sent, exchange.said
        if sent is not None:
            sent.let_go()
        if isinstance(said, Pieces):
            said.let_go()
        if exchange.rpc:
            return
        head = exchange.head
        if head.ring_route is exchange.route:
            ring = head.ring
        else:
            # Heads are kept by who reads them, so this is looked up once for equal ones.
            head.ring_route = exchange.route
            ring = head.ring = self._ring_of(head, exchange.route.route)
        if ring is None:
            return
        if ring.left >= 1:
            ring.left -= 1
            self._spent.add(ring)
            self._keep(ring, exchange, now)
        else:
            # To build an entry costs a fifth of a small request; of very many a sample will do.
            ring.latest, ring.ended = exchange, now

    def tick(self, now: float) -> None:
        """Let rings take more calls, as time has passed, and the newest of those they did not."""
        more = (now - self._ticked) * RATE
        self._ticked = now
        for ring in list(self._spent):
            self._catch_up(ring)
            ring.left = min(BURST, ring.left + more)
            if ring.left == BURST:
                self._spent.discard(ring)

    def _catch_up(self, ring: Ring) -> None:
        latest, ring.latest = ring.latest, None
        if latest is not None:
            self._keep(ring, latest, ring.ended)

    def _keep(self, ring: Ring, exchange: Exchange, now: float) -> None:
        fresh = exchange.fresh
        if exchange.status == 101 or _CAUSED.search(fresh, 0, fresh.find(b"\r\n\r\n")):
            return
        sent, said = exchange.sent, exchange.said
        size = len(fresh) + _ENTRY
        if sent is None and exchange.pending:
            # It never had a replica.
            sent = self.pieces(exchange.pending)
            sent.let_go()
        if sent is not None:
            size += sum(map(len, sent.pieces))
        if said is not None:
            size += len(said) if isinstance(said, bytes) else sum(map(len, said.pieces))
        ring.entries.append(
            Entry(
                next(self._numbers),
                size,
                fresh,
                sent,
                exchange.answer,
                said,
                exchange.status,
                exchange.started,
                now,
                exchange.target.spec.id,
                exchange.client.protocol,
                exchange.body_done,
            )
        )
        ring.size += size
        self.size += size
        self._trim(ring)
        if self.size > TOTAL:
            self._make_room()

    def _ring_of(self, head: RequestHead, route: Route) -> Ring | None:
        """Return where requests with this head are kept; None: nowhere, they call no model."""
        if head.method != b"POST" or head.replays:
            return None
        if route.component != "graph" and not _CALL.match(head.target):
            return None
        key = (route.namespace, route.service, route.component)
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = Ring()
        return ring

    def _trim(self, ring: Ring) -> None:
        while ring.entries and (len(ring.entries) > self.keep or ring.size > self.max_bytes):
            self.size -= ring.drop()

    def _make_room(self) -> None:
        """Forget the oldest calls of who holds most."""
        while self.size > TOTAL - _ROOM:
            ring = max(self._rings.values(), key=lambda ring: ring.size)
            until = max(ring.size // 2, ring.size - (self.size - TOTAL + _ROOM))
            while ring.entries and ring.size > until:
                self.size -= ring.drop()

    def entries(
        self, *, namespace: str = "", service: str = "", component: str = ""
    ) -> list[tuple[Key, Entry]]:
        """Return what is kept of a service's component (empty: of all), the newest last."""
        wanted = (namespace, service, component)
        found: list[tuple[Key, Entry]] = []
        for key, ring in self._rings.items():
            if all(not part or part == own for part, own in zip(wanted, key, strict=True)):
                self._catch_up(ring)
                found += ((key, entry) for entry in ring.entries)
        return sorted(found, key=lambda pair: pair[1].number)
