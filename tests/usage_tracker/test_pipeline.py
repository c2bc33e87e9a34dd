"""From records of usage.events to windows, on a real broker and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID

import pytest

from common.database import Database
from common.errors import Unavailable
from common.events.bus import Bus, BusFull, Outgoing
from common.events.envelope import unpack
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from services.analytics.domain.windows import Windows
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.consumer.relay import WindowsRelay
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.records import events_partition, windows_partition
from services.usage_tracker.store import BlockStore, UsageStore
from tests.analytics.deltas import rows_of
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import MakeArrived, MakeRecord, layouts_of
from tests.usage_tracker.tracker import (
    PARTS,
    SKEW,
    WINDOWS_PARTS,
    Reader,
    Tracker,
    publish,
)

pytestmark = pytest.mark.bus

TABLES = (
    *("events", "event_ids", "deltas", "delta_blocks", "parts", "relays", "outbox", "offsets"),
    *("session_deltas", "sessions"),
)


@pytest.fixture(scope="module")
async def db(service_database: Callable[..., Awaitable[Database]]) -> Database:
    return await service_database("usage_tracker", size=8)


@pytest.fixture
async def bus(valkey: Valkey, db: Database) -> AsyncIterator[RedisStreamsBus]:
    """A broker and a ledger that hold nothing yet."""
    bus = RedisStreamsBus(valkey.url, telemetry=silent_telemetry(), max_records=500)
    await bus.broker.command("FLUSHALL")
    async with db.session() as connection:
        for table in TABLES:
            await connection.execute(f"DELETE FROM {table}")
    await bus.declare("usage.events", PARTS, ["usage_tracker"])
    await bus.declare("usage.windows", WINDOWS_PARTS, ["analytics"])
    yield bus
    await bus.stop()


async def test_what_was_published_arrives_in_windows_before_the_watermark_that_covers_it(
    bus: RedisStreamsBus, db: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    orgs = [UUID(int=n) for n in range(1, 9)]
    reader = Reader(bus)
    async with Tracker(bus, db):
        acknowledged: list[tuple[datetime, int]] = []
        for number in range(1, 11):
            events = [arrived(org_id=org, latency_us=5) for org in orgs for _ in range(5)]
            acknowledged.append((await publish(bus, record, *events), 40 * number))
            while not reader.fresh(acknowledged[-1][0]) and number % 5 == 0:
                await reader.read()
                await asyncio.sleep(0.01)
                # Whatever is fresh must be in the deltas that were sent before.
                covered = [n for at, n in acknowledged if reader.fresh(at)]
                assert reader.events() >= max(covered, default=0)
        await reader.until(lambda: reader.fresh(acknowledged[-1][0]))

    assert reader.events() == 400
    for part, windows in reader.seen:
        if windows.columns is not None:
            rows = rows_of(windows.columns)
            assert rows == sorted(rows, key=lambda row: row["seq"])
            partitions = {
                windows_partition(UUID(bytes=row["org_id"]), WINDOWS_PARTS) for row in rows
            }
            assert partitions == {part}


async def test_the_watermark_moves_on_while_nothing_arrives(
    bus: RedisStreamsBus, db: Database
) -> None:
    reader = Reader(bus)
    async with Tracker(bus, db) as tracker:
        for _ in range(2):
            now = datetime.now(UTC)
            await reader.until(lambda now=now: reader.fresh(now))
        await eventually(lambda: _known(tracker.store))

    assert all(windows.columns is None for _, windows in reader.seen)


async def _known(store: UsageStore) -> bool:
    return await store.least_watermark(PARTS) is not None


async def test_a_restart_in_the_middle_neither_loses_nor_doubles(
    bus: RedisStreamsBus, db: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    reader = Reader(bus)
    events = [arrived() for _ in range(400)]
    for number in range(4):
        for at in range(0, 400, 50):
            await publish(bus, record, *events[at : at + 50])
        async with Tracker(bus, db, owner=f"process {number}"):
            await asyncio.sleep(0.05 * number)
    async with Tracker(bus, db, owner="the last"):
        end = await publish(bus, record, arrived())
        await reader.until(lambda: reader.fresh(end))

    assert reader.events() == 401
    async with db.session() as connection:
        assert await connection.fetchval("SELECT count(*) FROM events") == 401
        assert await connection.fetchval("SELECT count(*) FROM event_ids") == 401
        assert await connection.fetchval("SELECT sum(duplicates) FROM parts") == 1200


async def test_two_processes_share_the_parts_and_the_watermarks_of_all_are_known(
    bus: RedisStreamsBus, db: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    reader = Reader(bus)
    async with Tracker(bus, db, "one") as one:
        await reader.until(lambda: len(one.worker.held()) == PARTS)
        async with Tracker(bus, db, "two") as two:
            end = await publish(bus, record, *(arrived() for _ in range(20)))
            await reader.until(lambda: reader.fresh(end))
            assert two.worker.held() == []
            await one.worker.stop()
            end = await publish(bus, record, *(arrived() for _ in range(20)))
            await reader.until(lambda: reader.fresh(end))
            assert two.worker.held() == [0, 1]

    assert reader.events() == 40


class Choosy:
    """A bus of which windows are taken only while it is willing."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.willing = True
        self.taken: list[Windows] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        if topic == "usage.windows" and not self.willing:
            raise BusFull
        tokens = await self._bus.publish(topic, records)
        self.taken += [unpack(r.value, Windows)[1] for r in records]
        return tokens


async def test_no_watermark_overtakes_deltas_that_could_not_be_sent(
    bus: RedisStreamsBus, db: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    choosy = Choosy(bus)
    choosy.willing = False
    reader = Reader(bus)
    async with Tracker(cast(Bus, choosy), db) as tracker:
        end = await publish(bus, record, *(arrived() for _ in range(10)))
        await reader.until(lambda: not tracker.relay.status().ready)
        await reader.until(
            lambda: all((tracker.worker.caught_up_at(p) or end) > end for p in range(PARTS))
        )
        assert reader.seen == []
        choosy.willing = True
        await reader.until(lambda: reader.fresh(end))
        assert tracker.relay.status().ready

    assert reader.events() == 10


class Standing:
    """A worker that is where it is."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def held(self) -> list[int]:
        return [0]

    def caught_up_at(self, part: int) -> datetime:
        return self.at


async def test_a_relay_that_died_before_its_cursor_moved_sends_the_same_numbers_again(
    bus: RedisStreamsBus,
    db: Database,
    arrived: MakeArrived,
    record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = UsageStore(db)
    counting = EventsConsumer(
        Accounting(store, CurrentPrices(PriceBook.bundled(), db), timedelta(days=8)),
        db,
        silent_telemetry(),
        RecentDeltas(),
        layouts_of(PARTS),
    )
    async with db.session() as connection, connection.transaction():
        events = [arrived(org_id=UUID(int=n)) for n in range(1, 6)]
        await counting.apply(connection, 0, [record(*events)])
    at = datetime(2026, 11, 21, tzinfo=UTC)

    def relay() -> WindowsRelay:
        return WindowsRelay(
            bus=bus,
            store=store,
            blocks=BlockStore(db),
            progress=Standing(at),
            clock=db.clock,
            telemetry=silent_telemetry(),
            partitions=WINDOWS_PARTS,
            skew=SKEW,
            layouts=layouts_of(PARTS),
            recent=RecentDeltas(),
        )

    with monkeypatch.context() as killed:
        killed.setattr(store, "sent", _dies)
        with pytest.raises(Unavailable):
            await relay().step()
    again = relay()
    await again.step()
    await again.step()
    reader = Reader(bus)
    await reader.read()

    assert reader.events() == 5
    sent = [w.columns.numbered.tolist() for _, w in reader.seen if w.columns is not None]
    assert sorted(n for numbers in sent for n in numbers) == sorted([1, 2, 3, 4, 5] * 2)
    assert {w.watermarks[0] for _, w in reader.seen if w.watermarks} == {microseconds(at - SKEW)}


async def test_an_unexpected_error_is_shown_and_the_relay_goes_on_after_it(
    bus: RedisStreamsBus,
    db: Database,
    arrived: MakeArrived,
    record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(bus)
    async with Tracker(bus, db) as tracker:
        with monkeypatch.context() as broken:
            broken.setattr(tracker.blocks, "unsent", _breaks)
            await eventually(lambda: not tracker.relay.status().ready)
            assert tracker.relay.status().detail == "ZeroDivisionError"
            assert tracker.relay.status().live
        end = await publish(bus, record, arrived())
        await reader.until(lambda: reader.fresh(end))
        assert tracker.relay.status().ready

    assert reader.events() == 1


async def _breaks(*_: object) -> None:
    raise ZeroDivisionError


async def _dies(*_: object) -> None:
    raise Unavailable("killed")


async def test_a_record_that_cannot_be_read_stops_its_part_and_no_other(
    bus: RedisStreamsBus, db: Database, arrived: MakeArrived, record: MakeRecord
) -> None:
    reader = Reader(bus)
    async with Tracker(bus, db) as tracker:
        await publish(bus, record, *(arrived() for _ in range(20)))
        await reader.until(lambda: reader.events() == 20)
        await bus.publish("usage.events", [Outgoing(b"broken", partition=0)])
        await reader.until(lambda: not tracker.worker.status().ready)
        later = [arrived() for _ in range(40)]
        await publish(bus, record, *later)
        of_one = [e for e in later if events_partition(e.row.org_id, e.row.event_id, PARTS) == 1]
        await reader.until(lambda: reader.events() == 20 + len(of_one))
        assert tracker.worker.held() == [1]
        assert "RecordRefused" in tracker.worker.status().detail
