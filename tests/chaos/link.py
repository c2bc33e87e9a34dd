"""A proxy between two parts: it cuts their connections, refuses them, slows them, eats answers."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
# SO_LINGER of no seconds: a close is a reset, as of a cut wire.
_RESET = struct.pack("ii", 1, 0)

# The ports of the clients whose connections something is done to, as of now.
Whom = Callable[[], Collection[int]]


def everybody() -> Collection[int]:
    return range(65_536)


def of_processes(*pids: int) -> Whom:
    """Connections of these processes."""

    def ports() -> Collection[int]:
        found: set[int] = set()
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                connections = psutil.Process(pid).net_connections("tcp4")
                found |= {c.laddr.port for c in connections if c.laddr}
        return found

    return ports


@dataclass(eq=False)
class _Connection:
    """One client's, and ours to the target for it."""

    port: int
    client: asyncio.StreamWriter
    target: asyncio.StreamWriter | None = None

    def reset(self) -> None:
        for writer in (self.client, self.target):
            if writer is None or writer.transport.is_closing():
                continue
            connected: socket.socket | None = writer.get_extra_info("socket")
            if connected is not None:
                with suppress(OSError):
                    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Link(AbstractAsyncContextManager["Link"]):
    """Listens on a port of the loopback interface and forwards to ``target``.

    Attributes:
        cuts: connections that were reset.
        refusals: connections that were not let in.
        delays: pieces of data that were held up.
        eaten: answers that were kept from the client, whose connection was reset then.
    """

    def __init__(self, port: int, target: tuple[str, int] | Path) -> None:
        """Args: ``target`` is host and port, or a Unix socket."""
        self.port = port
        self.cuts = self.refusals = self.delays = self.eaten = 0
        self._target = target
        self._whom: Whom = everybody
        self._refuses = False
        self._eats = False
        self._seconds = 0.0
        self._open: dict[_Connection, bool] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._accept, HOST, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cut(self, whom: Whom = everybody) -> int:
        """Reset the connections; how many they were. Data under way are lost."""
        found = await self._concerned(whom)
        for connection in found:
            connection.reset()
        self.cuts += len(found)
        return len(found)

    async def refuse(self, whom: Whom = everybody) -> int:
        """Cut, and let nobody in until it is mended; how many were cut."""
        self._refuses, self._whom = True, whom
        return await self.cut(whom)

    async def slow(self, seconds: float, whom: Whom = everybody) -> None:
        """Hold each piece of data up until it is mended, in both directions."""
        self._seconds, self._whom = seconds, whom
        for connection in await self._concerned(whom):
            self._open[connection] = True

    async def eat(self, whom: Whom = everybody) -> None:
        """Forward what clients send, and reset their connections instead of any answer."""
        self._eats, self._whom = True, whom
        for connection in await self._concerned(whom):
            self._open[connection] = True

    def mend(self) -> None:
        """Forward everything again."""
        self._refuses = self._eats = False
        self._seconds = 0.0
        for connection in self._open:
            self._open[connection] = False

    @property
    def _hurt(self) -> bool:
        return self._refuses or self._eats or self._seconds > 0

    async def _concerned(self, whom: Whom) -> list[_Connection]:
        ports = await asyncio.to_thread(whom)
        return [connection for connection in self._open if connection.port in ports]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        peer = writer.get_extra_info("peername")
        connection = _Connection(peer[1] if peer else 0, writer)
        concerned = self._hurt and connection.port in await asyncio.to_thread(self._whom)
        self._open[connection] = concerned
        try:
            if concerned and self._refuses:
                self.refusals += 1
                return
            await self._forward(connection, reader)
        except OSError:
            # One of the two has gone, and so does the other.
            return
        finally:
            self._open.pop(connection, None)
            connection.reset()

    async def _forward(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        if isinstance(self._target, Path):
            answers, target = await asyncio.open_unix_connection(str(self._target))
        else:
            answers, target = await asyncio.open_connection(*self._target)
        connection.target = target
        there = asyncio.create_task(self._pump(connection, reader, target, answer=False))
        back = asyncio.create_task(self._pump(connection, answers, connection.client, answer=True))
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        if there.done() and not back.done() and there.exception() is None:
            # The client has said all that it has to say; the answer may be under way.
            await asyncio.wait({back}, timeout=5.0)
        for pump in (there, back):
            pump.cancel()
        await asyncio.gather(there, back, return_exceptions=True)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answer: bool,
    ) -> None:
        while data := await reader.read(_CHUNK):
            if self._open.get(connection):
                if self._eats and answer:
                    self.eaten += 1
                    return
                if self._seconds:
                    self.delays += 1
                    await asyncio.sleep(self._seconds)
            writer.write(data)
            await writer.drain()
        if not answer and writer.can_write_eof():
            writer.write_eof()
