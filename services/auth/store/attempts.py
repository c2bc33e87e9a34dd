"""Counted attempts: in the cache, which every process shares, or in PostgreSQL without it.

Both do the same in one atomic step: drop the moments that left the window, then count one more or
refuse. ``subject`` is a digest, so that neither keeps addresses.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
from redis.asyncio import Redis

from services.auth.domain.limits import Limit, admit

# A sorted set of attempts by their moments in microseconds; the answer is 0, or the moment at
# which the next one is admitted.
_COUNT = """
local now, window, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
local count = redis.call('ZCARD', KEYS[1])
if count < most then
    redis.call('ZADD', KEYS[1], now, ARGV[4])
    redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
    return 0
end
local first = redis.call('ZRANGE', KEYS[1], count - most, count - most, 'WITHSCORES')
return tonumber(first[2]) + window
"""


class CachedAttempts:
    """Attempts in the cache.

    Raises:
        RedisError, OSError, TimeoutError: from each method, when the cache is down.
    """

    def __init__(self, cache: Redis) -> None:
        self._cache = cache
        self._count = cache.register_script(_COUNT)

    async def count(self, limit: Limit, subject: str, now: datetime) -> datetime | None:
        """Count an attempt; when it is refused instead, from when the next one is not."""
        admitted_at = await self._count(
            keys=[_name(limit, subject)],
            args=[
                _microseconds(now),
                int(limit.window.total_seconds() * 1_000_000),
                limit.most,
                uuid4().hex,
            ],
        )
        return datetime.fromtimestamp(admitted_at / 1_000_000, UTC) if admitted_at else None

    async def forget(self, limit: Limit, subject: str) -> None:
        """Forget the subject's attempts."""
        await self._cache.delete(_name(limit, subject))

    async def withdraw(self, limit: Limit, subject: str, moment: datetime) -> None:
        """Take back one attempt that was counted at ``moment``."""
        score = _microseconds(moment)
        name = _name(limit, subject)
        counted = await self._cache.zrangebyscore(name, score, score, start=0, num=1)
        if counted:
            await self._cache.zrem(name, *counted)


class StoredAttempts:
    """Attempts in PostgreSQL, within one transaction."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def count(self, limit: Limit, subject: str, now: datetime) -> datetime | None:
        """Count an attempt; when it is refused instead, from when the next one is not."""
        name = _name(limit, subject)
        await self._connection.execute(
            """
            INSERT INTO attempts (subject, moments, updated_at) VALUES ($1, '{}', $2)
            ON CONFLICT (subject) DO NOTHING
            """,
            name,
            now,
        )
        moments = await self._connection.fetchval(
            "SELECT moments FROM attempts WHERE subject = $1 FOR UPDATE", name
        )
        admission = admit(limit, moments or (), now)
        await self._connection.execute(
            "UPDATE attempts SET moments = $2, updated_at = $3 WHERE subject = $1",
            name,
            list(admission.moments),
            now,
        )
        return admission.retry_at

    async def forget(self, limit: Limit, subject: str) -> None:
        await self._connection.execute(
            "DELETE FROM attempts WHERE subject = $1", _name(limit, subject)
        )

    async def withdraw(self, limit: Limit, subject: str, moment: datetime) -> None:
        await self._connection.execute(
            "UPDATE attempts SET moments = array_remove(moments, $2) WHERE subject = $1",
            _name(limit, subject),
            moment,
        )

    async def delete_before(self, moment: datetime) -> int:
        """Drop what no window reaches any more."""
        status = await self._connection.execute(
            "DELETE FROM attempts WHERE updated_at < $1", moment
        )
        return int(status.removeprefix("DELETE "))


Attempts = CachedAttempts | StoredAttempts


def _name(limit: Limit, subject: str) -> str:
    return f"auth:{limit.name}:{subject}"


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)
