"""Databases of one moment and a broker of another: what is refused, and what is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from common.database import Database
from common.errors import NotReady
from common.events.ledger import Places, Stored
from common.settings import Settings
from fleet.backup import BackupFailed
from fleet.backup.rejoining import rejoin, rejoin_given

pytestmark = pytest.mark.store

Make = Callable[..., Awaitable[Database]]
EVENTS = "usage.events"


@pytest.fixture(scope="module")
async def tracker(service_database: Make) -> Database:
    return await service_database("usage_tracker", size=4)


@pytest.fixture(scope="module")
async def analytics(service_database: Make) -> Database:
    return await service_database("analytics", size=4)


@pytest.fixture(autouse=True)
async def _empty(tracker: Database, analytics: Database) -> None:
    for db, tables in ((tracker, ("offsets", "parts")), (analytics, ("offsets", "sources"))):
        async with db.session() as connection:
            for table in tables:
                await connection.execute(f"DELETE FROM {table}")


async def ahead(analytics: Database, number: int) -> None:
    async with analytics.session() as connection:
        await connection.execute(
            "INSERT INTO sources (part, source, last_seq) VALUES (1, 3, $1)", number
        )


async def owned(tracker: Database, lease: timedelta) -> None:
    async with tracker.session() as connection:
        await connection.execute(
            "INSERT INTO offsets (topic, part, token, birth, lease_until)"
            " VALUES ($1, 2, '5-5', $2, now() + $3)",
            EVENTS,
            uuid4().hex,
            lease,
        )


def told(settings: Settings, *, accept_loss: bool = False) -> Awaitable[None]:
    return rejoin(settings, None, accept_loss=accept_loss, tell=lambda _: None)


async def test_analytics_of_a_later_moment_than_the_ledger_is_refused(
    settings: Settings, tracker: Database, analytics: Database
) -> None:
    await ahead(analytics, 7)
    async with tracker.session() as connection:
        await connection.execute("INSERT INTO parts (part, last_seq) VALUES (3, 6)")
    with pytest.raises(BackupFailed, match="delta 7 of part 3, and usage_tracker has 6"):
        await told(settings, accept_loss=True)
    async with tracker.session() as connection:
        await connection.execute("UPDATE parts SET last_seq = 7")
    await told(settings)


async def test_a_broker_that_lacks_what_is_not_counted_is_refused_unless_that_is_accepted(
    settings: Settings, tracker: Database
) -> None:
    await owned(tracker, timedelta())
    places = Places(tracker, EVENTS)
    before = await places.read()
    with pytest.raises(BackupFailed, match=r"usage\.events/2: the broker has .*--accept-loss"):
        await told(settings)
    assert await places.read() == before
    await told(settings, accept_loss=True)
    assert await places.read() == {2: Stored(None, None)}


async def test_databases_whose_services_run_are_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fleet.backup.rejoining.LEASE", 0.1)
    monkeypatch.setattr(Places, "owned", _always)
    monkeypatch.setenv("MINDWEAVE_SECRET", settings.secret)
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    with pytest.raises(NotReady, match="end all services first"):
        await asyncio.to_thread(
            partial(rejoin_given, None, tmp_path, accept_loss=False, tell=print)
        )


async def _always(*_: object) -> int:
    return 1
