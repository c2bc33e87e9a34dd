"""`mindweave rejoin`, killed between its steps, and run again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.database import Database
from common.events.ledger import Places
from common.settings import Settings
from fleet.environment import without_settings
from services.analytics.consumer import TOPIC as WINDOWS
from tests.common.waiting import eventually
from tests.fleet.rejoin.conftest import EVENTS, PART, Sent, held, told

pytestmark = pytest.mark.store

PARTITIONS = 4


@asynccontextmanager
async def locked(db: Database, statement: str, *given: Any) -> AsyncIterator[None]:
    """While the block runs, whoever would write what the statement locks waits."""
    async with db.session() as connection, connection.transaction():
        await connection.execute(statement, *given)
        yield


async def waits(db: Database) -> bool:
    """Whether somebody waits for a lock."""
    async with db.session() as connection:
        return await connection.fetchval(
            """
            SELECT EXISTS (
                SELECT FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'
            )
            """
        )


@pytest.mark.parametrize("before", ["windows are applied", "places are put", "it releases"])
async def test_ended_between_its_steps_it_keeps_workers_away_and_is_exact_when_it_is_run_again(
    before: str,
    settings: Settings,
    tracker: Database,
    analytics: Database,
    sent: Sent,
    tmp_path: Path,
) -> None:
    async with tracker.session() as connection:
        await connection.execute("INSERT INTO layout (partitions) VALUES ($1)", PARTITIONS)
    then = {"places are put": (analytics, WINDOWS), "it releases": (tracker, EVENTS)}.get(before)
    servers = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    async with AsyncExitStack() as lasting:
        async with locked(analytics, "LOCK TABLE blocks IN SHARE MODE"):
            command = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fleet", "rejoin", f"--data={tmp_path}"),
                env={**without_settings(), **servers, "MINDWEAVE_SECRET": settings.secret},
            )
            await eventually(partial(waits, analytics))
            if then is not None:
                db, topic = then
                row = "SELECT FROM offsets WHERE topic = $1 AND part = 0 FOR UPDATE"
                await lasting.enter_async_context(locked(db, row, topic))
        if then is not None:
            await eventually(partial(waits, db))
        command.kill()
        await command.wait()
        assert await held(tracker) == PARTITIONS
        assert await held(analytics) == settings.windows_partitions
    await told(settings)
    await sent.require_counted(analytics)
    assert (await Places(analytics, WINDOWS).read())[PART].place == sent.tokens[-1]
    assert await held(tracker) + await held(analytics) == 0
