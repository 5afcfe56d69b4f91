"""The last calls of each service: what `kserve-local requests`, `replay` and `diff` look at.

On the request path nothing is read or copied: a call that has ended leaves references to the bytes
that passed anyway, in the ring of its component. They are put together, and redacted, when somebody
asks (`recorded`). A ring is bounded by number and by bytes, all rings together by bytes, and so is
what bodies in several pieces hold while their calls run. Nothing of it is written anywhere.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kserve_local.gateway.head import ResponseHead
    from kserve_local.gateway.proxy import Exchange

BODY_LIMIT = 256 * 1024
"""Bytes of a body; a larger one is kept without its content."""
TOTAL = 64 * 1024 * 1024
"""Bytes of all rings."""
RUNNING = 16 * 1024 * 1024
"""Bytes that bodies in pieces may hold while their calls run."""
EVENTS = b"text/event-stream"
_ENTRY = 512
"""About what an entry holds besides its bytes."""
_ROOM = TOTAL // 16
"""What is freed at once when all rings are full: to find the largest one is not free."""

_CALL = re.compile(
    rb"/(?:v1/models/[^/?]+:(?:predict|explain)"
    rb"|v2/models/[^/?]+(?:/versions/[^/?]+)?/(?:infer|explain|generate|generate_stream)"
    rb"|v1/(?:chat/completions|completions|embeddings|rerank|score|responses|classify|pooling))"
    rb"/?(?=\?|\Z)"
)
_CALLS_LIMIT = 1024

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
        inner: One component asked another.
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
    inner: bool


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


class _Ring:
    """The last calls of one component."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.size = 0

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

    def __init__(self, keep: int, max_bytes: int) -> None:
        self.keep = keep
        self.max_bytes = max_bytes
        self.running = 0
        self.size = 0
        self._rings: dict[Key, _Ring] = {}
        self._numbers = count(1)
        # Few paths, many requests.
        self._calls: dict[bytes, bool] = {}

    def limit(self, keep: int, max_bytes: int) -> None:
        """Take other limits; what is there is held to them."""
        self.keep, self.max_bytes = keep, max_bytes
        for ring in self._rings.values():
            self._trim(ring)

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
        head = exchange.head
        if exchange.rpc or head.method != b"POST" or head.replays:
            return
        route = exchange.route.route
        is_call = self._calls.get(head.target)
        if is_call is None:
            is_call = self._is_call(head.target)
        if not (is_call or route.component == "graph") or exchange.status == 101:
            return
        fresh = exchange.fresh
        size = len(fresh) + _ENTRY
        if sent is None and exchange.pending:
            # It never had a replica.
            sent = self.pieces(exchange.pending)
            sent.let_go()
        if sent is not None:
            size += sum(map(len, sent.pieces))
        if said is not None:
            size += len(said) if isinstance(said, bytes) else sum(map(len, said.pieces))
        key = (route.namespace, route.service, route.component)
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = _Ring()
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
                not route.names_service,
            )
        )
        ring.size += size
        self.size += size
        if len(ring.entries) > self.keep or ring.size > self.max_bytes:
            self._trim(ring)
        if self.size > TOTAL:
            self._make_room()

    def _is_call(self, target: bytes) -> bool:
        if len(self._calls) >= _CALLS_LIMIT:
            self._calls.clear()
        found = self._calls[target] = _CALL.search(target) is not None
        return found

    def _trim(self, ring: _Ring) -> None:
        while ring.entries and (len(ring.entries) > self.keep or ring.size > self.max_bytes):
            self.size -= ring.drop()

    def _make_room(self) -> None:
        """Forget the oldest calls of who holds most."""
        while self.size > TOTAL - _ROOM:
            key, ring = max(self._rings.items(), key=lambda item: item[1].size)
            until = max(ring.size // 2, ring.size - (self.size - TOTAL + _ROOM))
            while ring.entries and ring.size > until:
                self.size -= ring.drop()
            if not ring.entries:
                del self._rings[key]

    def entries(
        self, *, namespace: str = "", service: str = "", component: str = ""
    ) -> Iterator[tuple[Key, Entry]]:
        """Yield what is kept of a service (empty: of all), the newest last.

        Args:
            component: Of this one only. Empty: what clients called, whichever component took it.
        """
        found: list[tuple[Key, Entry]] = []
        for key, ring in self._rings.items():
            if (namespace and key[0] != namespace) or (service and key[1] != service):
                continue
            if component and key[2] != component:
                continue
            found += ((key, e) for e in ring.entries if component or not e.inner)
        yield from sorted(found, key=lambda pair: pair[1].number)
