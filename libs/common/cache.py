"""The cache: what is kept there may be gone at any time."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from common.errors import Unavailable

# Seconds until a cache that does not answer is done without.
_TIMEOUT = 0.5


def open_cache(address: str) -> Redis:
    """A client that connects when it is first asked, and tries nothing twice."""
    cache: Redis = Redis.from_url(
        address,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )
    return cache


async def ping(cache: Redis) -> None:
    """Ask whether it is there.

    Raises:
        Unavailable: it is not.
    """
    try:
        await cache.ping()
    except (RedisError, OSError) as error:
        raise Unavailable("The cache is not available.") from error
