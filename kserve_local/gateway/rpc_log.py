"""The logger of KServe's agent, for gRPC calls: what it reads of one, and keeps of its answer.

On a cluster the agent takes h2c with the handler that it has for HTTP/1.1 (cmd/agent/main.go,
pkg/logger/handler.go). So it reads the client's side to its end before anything of it goes on, and
one event holds all of its messages as they were framed (five bytes before each). The answer is
logged once it is whole, its messages alone, and whatever its grpc-status says, because HTTP's is
200. A client that waits for an answer before it ends its own side waits until its time is up.

The batcher takes no gRPC call: their paths do not end in `:predict`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from kserve_local.gateway.agent import Agent
from kserve_local.gateway.agent_request import COPY_LIMIT, PROBE, described
from kserve_local.gateway.payload import REQUEST, RESPONSE

logger = logging.getLogger(__name__)


class RpcLog:
    """What one Pod's logger sees of one call."""

    __slots__ = ("_agent", "_answer", "_arrived", "_kept", "_said", "_size", "_told")

    def __init__(self, agent: Agent, fields: Sequence[tuple[bytes, bytes]]) -> None:
        assert agent.logs is not None  # `of` has looked
        self._agent = agent
        self._arrived = datetime.now(UTC)
        self._said = described(fields, agent.logs.headers)
        self._told = False
        self._kept = 0
        self._answer: list[bytes] | None = [] if agent.wants(RESPONSE) else None
        self._size = 0

    @classmethod
    def of(cls, agent: Agent, fields: Sequence[tuple[bytes, bytes]]) -> RpcLog | None:
        """Return the logger of a call with these headers; None: the agent does not log it."""
        if agent.logs is None or any(n == b"user-agent" and v.startswith(PROBE) for n, v in fields):
            return None
        return cls(agent, fields)

    def keep(self, size: int) -> None:
        """Count bytes in that wait for the end of the client's side.

        Raises:
            TooMuch: There is no room for them.
        """
        self._agent.host.keep(size)
        self._kept += size

    def let_go(self) -> None:
        """Count out what was counted in."""
        self._agent.host.let_go(self._kept)
        self._kept = 0

    def request(self, pieces: Sequence[bytes]) -> None:
        """Log the client's side, the first time that it is whole."""
        if not self._told:
            self._told = True
            self._log(REQUEST, b"".join(pieces), self._arrived)

    def answer(self, data: bytes) -> None:
        """Take a part of the answer's messages."""
        if self._answer is None:
            return
        self._size += len(data)
        if self._size > COPY_LIMIT:
            self._answer = None
            logger.warning("event %s: the answer is too large to be logged", self._said[0])
        else:
            self._answer.append(data)

    def finish(self, status: int) -> None:
        """Log the answer, which is whole.

        Args:
            status: HTTP's.
        """
        if self._answer is not None and status == 200:
            self._log(RESPONSE, b"".join(self._answer), datetime.now(UTC))

    def _log(self, kind: str, body: bytes, moment: datetime) -> None:
        id, content_type, metadata = self._said
        self._agent.log(kind, id, content_type, body, metadata, moment)
