"""The connections to one replica's gRPC port, and the calls that wait for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kserve_local.gateway.rpc import Rpc, RpcConnection


class RpcPool:
    """What one replica's calls share.

    Attributes:
        dialing: A connection is being made; who comes meanwhile waits for it.
    """

    __slots__ = ("connections", "dialing", "waiting")

    def __init__(self) -> None:
        self.connections: list[RpcConnection] = []
        self.waiting: list[Rpc] = []
        self.dialing = False

    def take(self) -> RpcConnection | None:
        """Return a connection with room for a call."""
        for connection in self.connections:
            if connection.has_room:
                return connection
        return None

    def forget(self, connection: RpcConnection) -> None:
        """Give no more calls to a connection."""
        if connection in self.connections:
            self.connections.remove(connection)

    def close_idle(self, before: float) -> None:
        """Leave connections without calls that were quiet since before `before`."""
        for connection in list(self.connections):
            if not connection.streams and connection.active_at < before:
                self.connections.remove(connection)
                connection.leave()

    def retire(self) -> None:
        """Leave all connections once their calls have ended."""
        gone, self.connections = self.connections, []
        for connection in gone:
            connection.leave()
