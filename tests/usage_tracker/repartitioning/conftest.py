"""A ledger whose number of partitions is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from common.database import Database
from common.events.bus import Bus
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from services.usage_tracker.actions.layout import Layouts, publishers
from services.usage_tracker.actions.repartitioning import Repartition
from services.usage_tracker.store import LayoutStore
from tests.usage_tracker.tracker import PARTS, SKEW, WINDOWS_PARTS

TABLES = (
    *("events", "event_ids", "deltas", "delta_blocks", "parts", "relays", "outbox", "offsets"),
    "session_deltas",
    *("layout", "walks", "partition_members"),
)


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]]) -> Database:
    return await service_database("usage_tracker", size=12)


@pytest.fixture
async def bus(valkey: Valkey, db: Database) -> AsyncIterator[RedisStreamsBus]:
    """A broker and a ledger that hold nothing yet."""
    bus = RedisStreamsBus(valkey.url, telemetry=silent_telemetry())
    await bus.broker.command("FLUSHALL")
    async with db.session() as connection:
        for table in TABLES:
            await connection.execute(f"DELETE FROM {table}")
    await bus.declare("usage.events", PARTS, ["usage_tracker"])
    await bus.declare("usage.windows", WINDOWS_PARTS, ["analytics"])
    yield bus
    await bus.stop()


@pytest.fixture
def store(db: Database) -> LayoutStore:
    return LayoutStore(db)


@pytest.fixture
def layouts(store: LayoutStore, bus: Bus, db: Database) -> Layouts:
    return layouts_of(store, bus, db)


def layouts_of(
    store: LayoutStore, bus: Any, db: Database, told: int | None = None, stands: float = 60.0
) -> Layouts:
    """One more process that takes events in."""
    return Layouts(store, bus, publishers(db, uuid4().hex, stands=stands), told, stands=stands)


def repartition(store: Any, bus: Any, db: Database, told: list[str] | None = None) -> Repartition:
    tell = (told if told is not None else []).append
    return Repartition(store, publishers(db, ""), bus, db.clock, skew=SKEW, tell=tell)


async def rows(db: Database, table: str) -> list[tuple[int, bytes, bytes]]:
    async with db.session() as connection:
        found = await connection.fetch(f"SELECT part, org_id, event_id FROM {table}")
    return [(r["part"], r["org_id"].bytes, r["event_id"].bytes) for r in found]
