"""Load at a stated rate, and what was seen of it."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; ``fields`` by their names in lower case."""

    status: int
    fields: Mapping[bytes, bytes]
    body: bytes


class HttpConnections:
    """HTTP/1.1 over kept connections with nothing around it, so that the client costs little."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._idle = deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()

    async def exchange(self, request: bytes) -> Answer:
        """The answer to a whole request, head and body.

        Raises:
            ConnectionError: an answer without a length.
        """
        reader, writer = self._kept() or await asyncio.open_connection(*self._target)
        try:
            answer = await _answer(reader, writer, request)
        except BaseException:
            writer.close()
            raise
        if answer.fields.get(b"connection", b"").lower() == b"close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return answer

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection that was not used for longest; none that the other side has closed."""
        while self._idle:
            reader, writer = self._idle.popleft()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def get(self, head: bytes) -> Any:
        """The JSON of a 200; ``head`` is the whole request, its blank line included.

        Raises:
            ConnectionError: another status.
        """
        answer = await self.exchange(head)
        if answer.status != 200:
            raise ConnectionError(f"{answer.status}: {answer.body.decode()[:300]}")
        return json.loads(answer.body)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> Answer:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    fields = {
        name.lower(): value
        for name, value in (line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    }
    length = fields.get(b"content-length")
    if length is None:
        raise ConnectionError("an answer without a length")
    return Answer(int(head[9:12]), fields, await reader.readexactly(int(length)))
