"""A host in this process, from its start to the signal that ends it."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable

# Objects made since the last look for garbage, and looks until older ones are looked at, too.
_GARBAGE = (50_000, 20, 20)


def ending_signal() -> asyncio.Event:
    """Set when this process is asked to end (SIGTERM, SIGINT)."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    return ending


async def until_asked_to_end(starting: Awaitable[None], ready: Callable[[], None]) -> None:
    """Start, tell that it is ready, and stay until this process is asked to end.

    Where it is asked before, the start is cancelled.
    """
    # What imports made is no garbage; only from here on is any looked for.
    gc.freeze()
    # A batch is some hundred thousand objects without a cycle among them.
    gc.set_threshold(*_GARBAGE)
    gc.enable()
    ending = ending_signal()
    started = asyncio.ensure_future(starting)
    asked = asyncio.create_task(ending.wait())
    try:
        await asyncio.wait({started, asked}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            started.result()
            ready()
            await asked
    finally:
        for task in (started, asked):
            task.cancel()
        await asyncio.gather(started, asked, return_exceptions=True)
