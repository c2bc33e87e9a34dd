"""Load at a stated rate, and what was seen of it."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies in milliseconds, measured from when a request was due, so that a stall counts."""

    values: Sequence[float]

    def quantile(self, q: float) -> float:
        """Nearest rank."""
        return sorted(self.values)[max(0, math.ceil(q * len(self.values)) - 1)]

    def __str__(self) -> str:
        shown = (f"p{round(q * 100)} {self.quantile(q):6.2f}" for q in (0.5, 0.95, 0.99))
        return f"{'  '.join(shown)}  ms  (n={len(self.values)})"


async def at_rate(rate: float, seconds: float, request: Callable[[], Awaitable[None]]) -> Latencies:
    """Send ``rate`` requests a second, due at even times whatever the answers take."""
    found: list[float] = []
    begun = time.perf_counter()

    async def one(due: float) -> None:
        await request()
        found.append((time.perf_counter() - due) * 1000)

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(due))
    return Latencies(found)


async def rate_of(call: Callable[[], Awaitable[None]], seconds: float, concurrency: int) -> float:
    """Calls a second with so many under way at once."""
    count = 0
    end = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await call()
            count += 1

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return count / (time.perf_counter() - begun)


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median with the least and the most."""
    middle = statistics.median(values)
    return f"{middle:.2f}{unit} (of {len(values)}: {min(values):.2f} to {max(values):.2f})"


class HttpConnections:
    """HTTP/1.1 over kept connections with nothing around it, so that the client costs little."""

    def __init__(self, host: str, port: int, head: bytes) -> None:
        """Args: ``head`` is the whole request, its blank line included."""
        self._target = (host, port)
        self._head = head
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self) -> Any:
        """The JSON of a 200.

        Raises:
            ConnectionError: another status, or an answer without a length.
        """
        reader, writer = (
            self._idle.pop() if self._idle else await asyncio.open_connection(*self._target)
        )
        writer.write(self._head)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await reader.readexactly(int(fields[b"content-length"]))
        self._idle.append((reader, writer))
        if status != 200:
            raise ConnectionError(f"{status}: {body.decode()[:300]}")
        return json.loads(body)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()
