"""Who is served next: tenants in turn, so that whoever sends much waits for itself alone."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager

from common.errors import RateLimited, Unavailable

OVERLOADED = "overloaded"
_AGAIN = 1.0


class Turns:
    """Bounds the bodies of all tenants and of each, and lets tenants work in turn.

    Args:
        at_once: pieces of work at the same time.
        most: bytes of all bodies that are in hand.
        share: bytes of one tenant's.
    """

    def __init__(self, *, at_once: int, most: int, share: int) -> None:
        self._free = at_once
        self._most = most
        self._share = share
        self._held: Counter[Hashable] = Counter()
        self._total = 0
        # Tenants in the order of their turns, each with its work in the order that it came.
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @contextmanager
    def holding(self, tenant: Hashable, size: int) -> Iterator[None]:
        """A body of so many bytes is in hand; one at least is let in, however large.

        Raises:
            RateLimited: the tenant has its share in hand.
            Unavailable: there is no room for anybody.
        """
        if self._held[tenant] and self._held[tenant] + size > self._share:
            raise RateLimited(
                "Too many of your requests are under way; wait for their answers.",
                retry_after=_AGAIN,
            )
        if self._total and self._total + size > self._most:
            raise Unavailable(
                "Too many requests are under way.", code=OVERLOADED, retry_after=_AGAIN
            )
        self._held[tenant] += size
        self._total += size
        try:
            yield
        finally:
            self._total -= size
            self._held[tenant] -= size
            if not self._held[tenant]:
                del self._held[tenant]

    @asynccontextmanager
    async def turn(self, tenant: Hashable) -> AsyncIterator[None]:
        """Work of a tenant, when it is its turn."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: Hashable) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            tenant, work = self._waiting.popitem(last=False)
            chosen = work.popleft()
            if work:
                self._waiting[tenant] = work
            if not chosen.done():
                chosen.set_result(None)
                return
        self._free += 1
