"""Prices that are stated while workers run: what analytics is sent comes to the present price."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from common.clock import SystemClock
from common.database import Change, Database, Scope
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from fleet.repricing import ordered
from services.usage_tracker.actions.prices import PriceActions
from services.usage_tracker.domain.pricing import Rate
from services.usage_tracker.store.prices import Stated
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import MakeArrived, MakeRecord
from tests.usage_tracker.plain import Arrived
from tests.usage_tracker.tracker import PARTS, WINDOWS_PARTS, Reader, Tracker, publish

pytestmark = pytest.mark.bus

ORG, OWN = UUID(int=1), "a model of our own"
TABLES = (
    *("events", "event_ids", "deltas", "delta_blocks", "parts", "relays", "outbox", "offsets"),
    *("adjustments", "session_deltas"),
    *("unpriced", "walks", "repricings", "prices"),
)


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]]) -> Database:
    return await service_database("usage_tracker", size=8)


@pytest.fixture
async def bus(valkey: Valkey, db: Database) -> AsyncIterator[RedisStreamsBus]:
    """A broker and a ledger that hold nothing yet."""
    bus = RedisStreamsBus(valkey.url, telemetry=silent_telemetry(), max_records=50_000)
    await bus.broker.command("FLUSHALL")
    async with db.change(Scope((ORG,)), call=None) as change:
        for table in TABLES:
            await change.connection.execute(f"DELETE FROM {table}")
    await bus.declare("usage.events", PARTS, ["usage_tracker"])
    await bus.declare("usage.windows", WINDOWS_PARTS, ["analytics"])
    yield bus
    await bus.stop()


async def state(db: Database, usd: int, **given: Any) -> Stated:
    def answer(_: Change, stated: Stated) -> Stated:
        return stated

    fields: dict[str, Any] = {
        "provider": None,
        "service_tier": None,
        "since": datetime.now(UTC) - timedelta(days=2),
        "until": None,
        "rates": (Rate(usd * 10**9), None, None, None, None),
        "discount_bp": 0,
    }
    actions = PriceActions(db, SystemClock())
    return await actions.create(ORG, OWN, answer=answer, **fields | given)


def some(arrived: MakeArrived, count: int) -> list[Arrived]:
    now = datetime.now(UTC)
    given = {"model": OWN, "output_tokens": 0, "received_at": now, "at": now}
    return [arrived(input_tokens=1_000, **given) for _ in range(count)]


async def test_a_price_that_arrives_corrects_the_windows_while_events_come(
    bus: RedisStreamsBus, db: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    reader = Reader(bus)
    async with Tracker(bus, db, "one"), Tracker(bus, db, "two"):
        await publish(bus, record, *some(arrived, 40))
        await reader.until(lambda: reader.sum("unpriced_events") == 40)

        async def more() -> None:
            for _ in range(20):
                await publish(bus, record, *some(arrived, 10))
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(more())
        await state(db, 3)
        await sending
        await reader.until(
            lambda: reader.events() == 240 and reader.sum("cost_nano") == 240 * 3_000_000
        )
        assert reader.sum("unpriced_events") == 0
        assert reader.sum("input_nano") == 240 * 3_000_000

        await state(db, 7)
        told: list[str] = []
        now = datetime.now(UTC)
        await ordered(db, ORG, now - timedelta(days=1), now + timedelta(days=1), told.append)
        await reader.until(lambda: reader.sum("cost_nano") == 240 * 7_000_000)
    assert told[-1] == "240 events cost otherwise; together 0.960000000 USD more"


async def test_a_worker_that_dies_at_it_leaves_the_rest_to_the_next(
    bus: RedisStreamsBus, db: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    reader = Reader(bus)
    async with Tracker(bus, db, "one"):
        await publish(bus, record, *some(arrived, 100))
        await reader.until(lambda: reader.events() == 100)
    await state(db, 3)
    for name in ("two", "three"):
        async with Tracker(bus, db, name) as tracker:
            await eventually(lambda tracker=tracker: _holds(tracker))
    async with Tracker(bus, db, "four"):
        await reader.until(lambda: reader.sum("cost_nano") == 300_000_000)
        await eventually(lambda: _all_finished(db))
        await reader.read()
    assert reader.sum("cost_nano") == 300_000_000


async def _holds(tracker: Tracker) -> bool:
    return bool(tracker.worker.held())


async def _all_finished(db: Database) -> bool:
    async with db.session() as connection:
        left = await connection.fetchval(
            "SELECT count(*) FROM repricings WHERE finished_at IS NULL"
        )
    return bool(left == 0)
