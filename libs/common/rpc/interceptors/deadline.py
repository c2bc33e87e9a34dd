"""Until when a call may take."""

from __future__ import annotations

import asyncio
import time

from common.errors import DeadlineExceeded
from common.rpc.contract import Operation
from common.rpc.exchange import Exchange, Handler


class Deadline:
    """Ends a call that brings no deadline; gRPC cancels the others at theirs.

    Args:
        default: seconds for a call that brings none.
    """

    def __init__(self, default: float) -> None:
        self._default = default

    def wrap(self, operation: Operation, handler: Handler) -> Handler:
        async def limited(exchange: Exchange) -> bytes:
            remaining: float | None = exchange.context.time_remaining()
            seconds = self._default if remaining is None else remaining
            exchange.call.deadline = time.monotonic() + seconds
            if remaining is not None:
                return await handler(exchange)
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await handler(exchange)
            except TimeoutError:
                if limit.expired():
                    raise DeadlineExceeded from None
                raise

        return limited
