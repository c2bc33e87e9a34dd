"""The ledger on a real PostgreSQL, and a process that owns one of its parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common.database import Database
from common.events.bus import Record
from common.events.ledger.offsets import Offsets
from common.testing import silent_telemetry
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.consumer.events import Counted, EventsConsumer
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.store import UsageStore
from tests.usage_tracker.conftest import layouts_of
from tests.usage_tracker.plain import Arrived

MakeArrived = Callable[..., Arrived]


MakeRecord = Callable[..., Record]


NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)


TABLES = (
    *("events", "event_ids", "deltas", "delta_blocks", "parts", "relays", "deleted_orgs"),
    *("outbox", "offsets", "session_deltas"),
)


@pytest.fixture(scope="module")
async def db(service_database: Callable[[str], Awaitable[Database]]) -> Database:
    return await service_database("usage_tracker")


@pytest.fixture(autouse=True)
async def _empty(db: Database) -> None:
    async with db.session() as connection:
        for table in TABLES:
            await connection.execute(f"DELETE FROM {table}")


@pytest.fixture
def store(db: Database) -> UsageStore:
    return UsageStore(db)


@pytest.fixture
def worker(db: Database, store: UsageStore) -> EventsConsumer:
    accounting = Accounting(store, CurrentPrices(PriceBook.bundled(), db), timedelta(days=8))
    return EventsConsumer(accounting, db, silent_telemetry(), RecentDeltas(), layouts_of(1))


class Owner:
    """A process that owns part 0: what ``PartitionConsumer`` does, one transaction at a time."""

    def __init__(self, db: Database, worker: EventsConsumer, name: str, lease: float = 60) -> None:
        self._db = db
        self._worker = worker
        self._offsets = Offsets(db, topic="usage.events", owner=name, lease=lease)
        self.epoch = 0
        self.token: str | None = None

    async def take(self) -> None:
        holding = await self._offsets.take(0, "born")
        assert holding is not None
        self.epoch, self.token = holding.epoch, holding.place

    async def process(self, *records: Record, before_commit: Any = None) -> Counted:
        async with self._db.session() as connection, connection.transaction():
            counted = await self._worker.apply(connection, 0, records)
            if before_commit is not None:
                await before_commit()
            last = records[-1].token
            await self._offsets.advance(connection, 0, self.epoch, self.token, last)
        self.token = last
        await self._worker.after(0, counted)
        return counted


@pytest.fixture
async def owner(db: Database, worker: EventsConsumer) -> Owner:
    owner = Owner(db, worker, "first")
    await owner.take()
    return owner
