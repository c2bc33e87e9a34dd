"""Requests at a steady rate, whatever becomes of the answers; none is ever sent again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

Request = Callable[[httpx.AsyncClient], httpx.Request]


@dataclass
class Calls:
    """What was sent so far, and each answer that was not a success."""

    sent: int = 0
    answered: int = 0
    failed: list[str] = field(default_factory=list)


@asynccontextmanager
async def steadily(address: str, rate: float, requests: Sequence[Request]) -> AsyncIterator[Calls]:
    """Send the requests in turn while the block runs; at its end all answers are in."""
    calls = Calls()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=address, timeout=15, limits=limits) as http:

        async def one(request: Request) -> None:
            try:
                answer = await http.send(request(http))
            except httpx.TransportError as error:
                calls.failed.append(f"{type(error).__name__}: {error}")
                return
            calls.answered += 1
            if not answer.is_success:
                calls.failed.append(f"{answer.request.url}: {answer.status_code} {answer.text}")

        async def send_for_ever(group: asyncio.TaskGroup) -> None:
            begun = time.perf_counter()
            while True:
                await asyncio.sleep(max(0.0, begun + calls.sent / rate - time.perf_counter()))
                group.create_task(one(requests[calls.sent % len(requests)]))
                calls.sent += 1

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send_for_ever(group))
            yield calls
            sending.cancel()
