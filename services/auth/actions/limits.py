"""Limits on attempts, kept by every process together and never lifted by an outage."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TypeVar
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.clock import Clock
from common.database import Database, Scope
from common.errors import Unavailable
from services.auth.domain.limits import Limit, TooManyAttempts
from services.auth.store.attempts import Attempts, CachedAttempts, StoredAttempts

T = TypeVar("T")

# Seconds until a silent cache counts as down, and until one that was down is asked again.
PATIENCE = 1.0
REST = 5.0
# Questions to the cache at a time, so that they wait here and not for connections.
AT_ONCE = 8

_logger = logging.getLogger(__name__)


class Limiter:
    """Counts attempts in the cache; while it is down, in PostgreSQL, so that the limit holds on.

    The two counts are apart: who has used up one when the cache fails starts anew in the other,
    once. A subject (an address, an account) is kept only as its SHA-256.
    """

    def __init__(self, cache: Redis, database: Database, clock: Clock) -> None:
        self._attempts = CachedAttempts(cache)
        self._database = database
        self._clock = clock
        self._places = asyncio.Semaphore(AT_ONCE)
        self._rests_until = 0.0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def count(self, limit: Limit, subject: str) -> datetime:
        """Count one attempt; when it was made.

        Raises:
            TooManyAttempts: the limit is reached; this one is not counted.
            Unavailable: neither the cache nor the database can count.
        """
        now, digest = self._clock.now(), _digest(subject)
        retry_at = await self._kept(lambda attempts: attempts.count(limit, digest, now))
        if retry_at is not None:
            raise TooManyAttempts(retry_after=max((retry_at - now).total_seconds(), 1))
        return now

    @asynccontextmanager
    async def guess(self, limit: Limit, subject: str) -> AsyncIterator[None]:
        """Around the check of a secret: the guess counts before it is checked.

        A block that ends is a right guess and forgets the wrong ones; an error leaves the guess
        counted, unless it is ``Unavailable``: then nothing was checked. One guess at a subject is
        checked at a time, so that right ones do not use up the limit among themselves.

        Raises:
            TooManyAttempts: the limit is reached.
        """
        digest = _digest(subject)
        async with self._turns.setdefault(f"{limit.name} {digest}", asyncio.Lock()):
            moment = await self.count(limit, subject)
            try:
                yield
            except Unavailable:
                await self._kept(lambda attempts: attempts.withdraw(limit, digest, moment))
                raise
            await self._kept(lambda attempts: attempts.forget(limit, digest))

    async def _kept(self, ask: Callable[[Attempts], Awaitable[T]]) -> T:
        """Ask the cache, or while it is down the database."""
        loop = asyncio.get_running_loop()
        async with self._places:
            if loop.time() >= self._rests_until:
                try:
                    async with asyncio.timeout(PATIENCE):
                        return await ask(self._attempts)
                except (RedisError, OSError, TimeoutError) as error:
                    self._rests_until = loop.time() + REST
                    _logger.warning("the cache is down, the database counts attempts: %r", error)
        async with self._database.change(Scope(), call=None) as change:
            return await ask(StoredAttempts(change.connection))


def _digest(subject: str) -> str:
    return hashlib.sha256(subject.encode()).hexdigest()
