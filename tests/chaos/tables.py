"""usage_tracker's tables, read beside the platform, by nothing that a fault is meant for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import asyncpg

from fleet.process import Platform
from tests.chaos.brokers import TOPIC
from tests.e2e.raw_rows import connect

PARTS = 4
# Seconds for which a database that is away is asked again.
_PATIENCE = 60.0
_AWAY = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, TimeoutError)
_STARTS = (asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError)


class Tables:
    """Asked again while the database is away."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    @asynccontextmanager
    async def connected(self, patience: float = 10.0) -> AsyncIterator[asyncpg.Connection]:
        """As the superuser, beside every link; once."""
        url = self._platform.run()["database_url"]
        async with asyncio.timeout(patience):
            connection = await connect(url)
        try:
            yield connection
        finally:
            connection.terminate()

    async def stored(self, org_ids: Sequence[str]) -> int:
        """Raw rows of these organizations."""
        query = "SELECT count(*) FROM events WHERE org_id = ANY ($1::text[]::uuid[])"
        return await self._number(query, list(org_ids))

    async def owners(self) -> dict[int, str]:
        """By partition of usage.events: who works on it now."""
        query = "SELECT part, owner FROM offsets WHERE topic = $1 AND lease_until > now()"
        return {row["part"]: row["owner"] for row in await self._rows(query, TOPIC)}

    async def shared(self, workers: int) -> bool:
        """Whether all partitions are worked on, by so many workers."""
        owners = await self.owners()
        return len(owners) == PARTS and len(set(owners.values())) == workers

    async def epochs(self) -> int:
        """The sum of the epochs of usage.events: how often its partitions were taken."""
        return await self._number(
            "SELECT sum(epoch)::bigint AS n FROM offsets WHERE topic = $1", TOPIC
        )

    async def repeats(self) -> int:
        """Repeats and conflicts as the platform has counted them, of all organizations."""
        query = "SELECT coalesce(sum(duplicates + conflicts), 0)::bigint AS n FROM parts"
        return await self._number(query)

    async def a_batch_waits(self) -> bool:
        """Whether a worker has a transaction with events open in which nothing goes on."""
        query = """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'idle in transaction'
                AND state_change < now() - interval '0.1 s' AND query LIKE 'COPY %events%'
        """
        return await self._number(query) > 0

    async def _number(self, query: str, *values: object) -> int:
        ((number,),) = await self._rows(query, *values)
        return int(number)

    async def _rows(self, query: str, *values: object) -> list[Any]:
        deadline = monotonic() + _PATIENCE
        while True:
            try:
                async with self.connected() as connection:
                    return list(await connection.fetch(query, *values, timeout=20.0))
            except (*_AWAY, *_STARTS):
                if monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)
