"""A wire to a server that a test cuts or holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Wire:
    """Passes connections on to ``to`` ("host:port"), as long as nothing was done to it.

    Attributes:
        address: where it listens, "host:port".
    """

    def __init__(self, to: str) -> None:
        self._host, _, port = to.rpartition(":")
        self._port = int(port)
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = "127.0.0.1:0"

    async def open(self) -> None:
        """Listen, again at the same address."""
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.start_server(self._connected, host, int(port))
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Nobody listens, and what was connected is not: as when the server was killed."""
        if self._server is not None:
            self._server.close()
        for stream in self._streams:
            stream.transport.abort()

    def hold(self) -> None:
        """Connections stay and are taken, and nothing goes through: as when it is frozen."""
        self._flows.clear()

    async def close(self) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        for source, sink in ((reader, back), (there, writer)):
            self._streams.add(sink)
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            return
        finally:
            self._streams.discard(sink)
            sink.close()


@asynccontextmanager
async def wire(to: str) -> AsyncIterator[Wire]:
    """An open wire."""
    made = Wire(to)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
