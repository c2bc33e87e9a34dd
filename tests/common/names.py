"""A server of names for tests, whose answers change while it runs."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

_IPV4 = 1


class Names(asyncio.DatagramProtocol):
    """Answers every question for IPv4 with ``addresses``, every other one with nothing."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The loop's own transport is of no class of asyncio's.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(0, 12) + 5
        question, (kind,) = data[12:end], struct.unpack("!H", data[end - 4 : end - 2])
        found = self.addresses if kind == _IPV4 else []
        # An answer without recursion; each address is of the name at byte 12, for no time at all.
        answer = data[:2] + struct.pack("!5H", 0x8580, 1, len(found), 0, 0) + question
        for address in found:
            answer += struct.pack("!3HIH", 0xC00C, _IPV4, 1, 0, 4) + socket.inet_aton(address)
        self._transport.sendto(answer, addr)


@asynccontextmanager
async def names(*addresses: str) -> AsyncIterator[tuple[Names, str]]:
    """One that runs, and its "host:port"."""
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_datagram_endpoint(
        lambda: Names(*addresses), local_addr=("127.0.0.1", 0)
    )
    try:
        host, port = transport.get_extra_info("sockname")
        yield made, f"{host}:{port}"
    finally:
        transport.close()
