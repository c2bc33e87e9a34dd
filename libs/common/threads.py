"""Work that is done in a thread where it is long, and at once where it is short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def off_loop(long: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work, in a thread where it would hold the event loop for more than some milliseconds.

    A busy event loop lets a thread have the interpreter every 5 ms only: for short work the way
    there and back takes longer than the work.
    """
    if long:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)
