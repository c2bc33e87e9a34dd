"""How many connections a server keeps, and which one goes when another comes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Connection(Protocol):
    """A client's connection, as far as its place among the others goes."""

    def make_room(self) -> None:
        """Tell the client what can still be told, and close."""


class Connections:
    """The open connections of a server, ``limit`` at most.

    For a new one over the limit the one goes whose client has kept us waiting longest: for a
    request, its head or its body. One whose request is being answered never goes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._waiting: OrderedDict[Connection, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Take in a connection that waits for its client; False where there is no room."""
        if len(self._open) >= self._limit:
            if not self._waiting:
                return False
            oldest = next(iter(self._waiting))
            self.leave(oldest)
            oldest.make_room()
        self._open.add(connection)
        self._waiting[connection] = None
        return True

    def wait(self, connection: Connection) -> None:
        """From now on the client is waited for."""
        if connection in self._open:
            self._waiting[connection] = None
            self._waiting.move_to_end(connection)

    def work(self, connection: Connection) -> None:
        """The client has sent a whole request, which is now answered."""
        self._waiting.pop(connection, None)

    def leave(self, connection: Connection) -> None:
        """The connection is closed, or about to be."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
