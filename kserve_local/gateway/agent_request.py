"""What an agent reads of a request, and keeps of its answer. Pure: no I/O.

Both were written or will be read by the gateway's own data plane, which trusts nothing: so framing
is read here only as far as it must be known where a message ends.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime

from kserve_local.gateway.chunked import ChunkDecoder, ChunkError
from kserve_local.gateway.head import MAX_HEAD, HeadError, parse_response

COPY_LIMIT = 64 * 1024 * 1024
"""Bytes of one answer that are kept for the log."""

PROBE = b"kube-probe/"
"""How the kubelet's User-Agent begins: what it asks is not logged."""

_NO_BODY = frozenset((204, 304))


class AgentRequest:
    """One request as the data plane wrote it.

    Attributes:
        logged / batched: What the agent does with it.
        id: Of its events: what the client said, else a new one.
        metadata: After `prepare`.
    """

    __slots__ = (
        "_decoder",
        "_framed",
        "_headers",
        "_left",
        "_pieces",
        "arrived",
        "batched",
        "content_type",
        "id",
        "is_probe",
        "logged",
        "metadata",
        "method",
        "path",
        "upgrades",
    )

    def __init__(self, head: bytes) -> None:
        self.arrived = datetime.now(UTC)
        line, *lines = head[:-4].split(b"\r\n")
        method, target, _ = line.split(b" ", 2)
        self.method = method.decode("latin-1")
        self.path = target.partition(b"?")[0].decode("latin-1")
        self.logged = self.batched = self.is_probe = self.upgrades = False
        self.id = self.content_type = ""
        self.metadata: dict[str, list[str]] = {}
        self._headers = lines
        self._framed = [head]
        self._pieces: list[bytes] = []
        self._left = 0
        self._decoder: ChunkDecoder | None = None
        for each in lines:
            name, _, value = each.partition(b":")
            name = name.lower()
            if name == b"content-length":
                self._left = int(value)
            elif name == b"transfer-encoding":
                self._decoder = ChunkDecoder()
            elif name == b"upgrade":
                self.upgrades = True
            elif name == b"user-agent":
                self.is_probe = self.is_probe or value.strip().startswith(PROBE)

    @property
    def is_kept(self) -> bool:
        """Whether the agent reads all of it before anything of it goes on."""
        return self.logged or self.batched

    @property
    def is_head(self) -> bool:
        """Whether its answer has no body."""
        return self.method == "HEAD"

    @property
    def is_whole(self) -> bool:
        """Whether all of the body has come."""
        return self._decoder.done if self._decoder is not None else self._left <= 0

    def feed(self, data: bytes) -> int:
        """Take what came of the body; return how many bytes of it that is.

        Raises:
            ChunkError: It is no body.
        """
        decoder = self._decoder
        if decoder is None:
            self._left -= len(data)
            pieces = [data] if data else []
        else:
            pieces = decoder.feed(data)
        if self.is_kept and data:
            self._framed.append(data)
            self._pieces += pieces
        return sum(map(len, pieces))

    def body(self) -> bytes:
        """Return the body."""
        pieces = self._pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def framed(self) -> bytes:
        """Return the request as it came, and keep it no longer."""
        whole = b"".join(self._framed)
        self._framed = []
        self._pieces = []
        return whole

    def prepare(self, names: frozenset[str]) -> None:
        """Read what its events say of it.

        Args:
            names: Canonical names of the headers that become metadata.
        """
        pairs = (each.partition(b":") for each in self._headers)
        headers = ((name, value.strip(b" \t")) for name, _, value in pairs)
        self.id, self.content_type, self.metadata = described(headers, names)


class AnswerCopy:
    """An answer on its way through, as far as its end and the log need it.

    Attributes:
        status: Of its head once that is here; 0 before.
        is_done: It is whole.
        is_broken: It cannot be logged: too large, or not to be understood.
    """

    __slots__ = (
        "_buffer",
        "_decoder",
        "_is_head",
        "_left",
        "_pieces",
        "_size",
        "is_broken",
        "is_done",
        "status",
    )

    def __init__(self, *, is_head: bool) -> None:
        self.status = 0
        self.is_done = self.is_broken = False
        self._is_head = is_head
        self._buffer = b""
        self._left = -1
        self._decoder: ChunkDecoder | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes, *, collect: bool) -> bytes:
        """Take a part of the answer; return what of it may be passed on now.

        Args:
            collect: Keep the body.
        """
        if self.status:
            self._body(data, collect=collect)
            return data
        # The head is held back until it is whole: who may see it depends on it.
        self._buffer += data
        passed = b""
        while not self.status:
            end = self._buffer.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(self._buffer) > MAX_HEAD:
                    return passed + self._give_up()
                return passed
            raw = self._buffer[:end]
            try:
                head = parse_response(raw)
            except HeadError:
                return passed + self._give_up()
            passed += raw
            self._buffer = self._buffer[end:]
            if head.status >= 200 or head.status == 101:
                self.status = head.status
                self._left = head.length
                self._decoder = ChunkDecoder() if head.chunked else None
                if self._is_head or head.status in _NO_BODY or head.status == 101:
                    self._left = 0
                    self._decoder = None
        rest, self._buffer = self._buffer, b""
        self._body(rest, collect=collect)
        return passed + rest

    def _give_up(self) -> bytes:
        """The data plane will say what is wrong with it."""
        self.status = 599
        self.is_broken = self.is_done = True
        rest, self._buffer = self._buffer, b""
        return rest

    def _body(self, data: bytes, *, collect: bool) -> None:
        if self.is_done:
            return
        pieces = [data] if data else []
        if self._decoder is not None:
            try:
                pieces = self._decoder.feed(data)
            except ChunkError:
                self.is_broken = self.is_done = True
                return
            self.is_done = self._decoder.done
        elif self._left >= 0:
            self._left -= len(data)
            self.is_done = self._left <= 0
        if collect and self.status == 200 and not self.is_broken:
            self._pieces += pieces
            self._size += sum(map(len, pieces))
            if self._size > COPY_LIMIT:
                self.is_broken = True
                self._pieces = []

    def end(self) -> bytes:
        """The connection ended: return what was held back."""
        if self.status and not self.is_done:
            cut = self._left >= 0 or self._decoder is not None
            self.is_broken = self.is_broken or cut
            self.is_done = not cut
        rest, self._buffer = self._buffer, b""
        return rest

    def body(self) -> bytes:
        """Return the body."""
        return b"".join(self._pieces)


def described(
    headers: Iterable[tuple[bytes, bytes]], names: frozenset[str]
) -> tuple[str, str, dict[str, list[str]]]:
    """Return what the events of a request say of it: their id, its content type, its metadata.

    Args:
        names: Canonical names of the headers that become metadata.
    """
    id, content_type = "", ""
    metadata: dict[str, list[str]] = {}
    for raw, value in headers:
        name, text = canonical(raw.decode("latin-1")), value.decode("utf-8", "replace")
        if name == "Ce-Id":
            id = id or text
        elif name == "Content-Type":
            content_type = content_type or text
        # Go keeps these two apart from the headers.
        if name in names and name not in ("Host", "Transfer-Encoding"):
            metadata.setdefault(name, []).append(text)
    return id or str(uuid.uuid4()), content_type, metadata


def canonical(name: str) -> str:
    """Return a header's name as Go writes it."""
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))
