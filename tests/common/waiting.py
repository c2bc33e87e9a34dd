"""Waiting for what happens by itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

PATIENCE = 60.0
# At most: beyond it what takes long is a finding, however busy the machine is.
_LONGER = 4.0


def while_busy(seconds: float) -> float:
    """The limit that holds on idle cores, up to four times longer by how many ask for each core."""
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * min(max(waiting, 1.0), _LONGER)


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], patience: float = PATIENCE
) -> None:
    """Returns once the condition holds.

    Raises:
        TimeoutError: it did not within ``patience`` seconds.
    """
    async with asyncio.timeout(patience):
        while True:
            answer = condition()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(0.02)
