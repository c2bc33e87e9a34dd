"""What goes and when: by what has been counted, never by the clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest

from common.database import Database
from common.events.envelope import envelope_for
from common.testing import ManualClock, silent_telemetry
from common.timeseries import partition_days
from mindweave.account.v1.events_pb2 import OrgDeleted
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.actions.sessions import Asked, Sessions
from services.usage_tracker.consumer.compaction import SessionCompaction
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.consumer.forgetting import Forgetting
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.store import UsageStore
from services.usage_tracker.store.repricing import order
from services.usage_tracker.store.sessions import SessionStore
from services.usage_tracker.store.walks import Walk
from tests.usage_tracker.conftest import NOW, MakeArrived, MakeRecord, layouts_of
from tests.usage_tracker.deltas import add_up, total
from tests.usage_tracker.plain import Arrived

pytestmark = pytest.mark.store

RAW, IDS = timedelta(days=7), timedelta(days=8)
TABLES = (
    *("events", "event_ids", "deltas", "delta_blocks", "parts", "relays", "deleted_orgs", "walks"),
    *("repricings", "session_deltas", "sessions"),
)
Count = Callable[..., Awaitable[None]]


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
def count(db: Database, store: UsageStore, record: MakeRecord) -> Count:
    """Counts events in part 0."""
    worker = EventsConsumer(
        Accounting(store, CurrentPrices(PriceBook.bundled(), db), IDS),
        db,
        silent_telemetry(),
        RecentDeltas(),
        layouts_of(1),
    )

    async def run(*events: Arrived) -> None:
        async with db.session() as connection, connection.transaction():
            await worker.apply(connection, 0, [record(*events)])

    return run


async def counted(db: Database) -> int:
    return await total(db, "events")


async def in_sessions(db: Database, org_id: UUID) -> int:
    asked = Asked(org_id, 0, microseconds(NOW) * 2)
    found = await Sessions(SessionStore(db, timedelta(minutes=30))).page(asked, None, 500)
    return sum(session.whole.events for session in found.sessions)


async def test_days_are_dropped_by_the_watermark_of_the_slowest_part_and_not_by_the_clock(
    db: Database, store: UsageStore, count: Count, arrived: MakeArrived
) -> None:
    forgetting = Forgetting(store, db.clock, layouts=layouts_of(2), raw=RAW, ids=IDS)
    day = datetime(2024, 2, 1, 12, tzinfo=UTC)
    await count(arrived(received_at=day, at=day))

    async def kept(table: str) -> bool:
        async with db.session() as connection:
            return day.date() in await partition_days(connection, table)

    await store.note_watermarks({0: day + timedelta(days=30)})
    await forgetting.step()
    assert await kept("events")
    # What was received at the end of a day may have been accepted, and stored, minutes later.
    await store.note_watermarks({1: datetime(2024, 2, 9, 0, 4, 59, tzinfo=UTC)})
    await forgetting.step()
    assert await kept("events")
    await store.note_watermarks({1: datetime(2024, 2, 9, 0, 5, tzinfo=UTC)})
    await forgetting.step()
    assert not await kept("events")
    await store.note_watermarks({1: datetime(2024, 2, 10, 0, 4, 59, tzinfo=UTC)})
    await forgetting.step()
    assert await kept("event_ids")
    await store.note_watermarks({1: datetime(2024, 2, 10, 0, 5, tzinfo=UTC)})
    await forgetting.step()
    assert not await kept("event_ids")
    assert await counted(db) == 1
    assert await in_sessions(db, UUID(int=1)) == 1


async def test_an_order_to_reprice_goes_with_the_last_raw_events_it_may_have_been_about(
    db: Database, store: UsageStore
) -> None:
    forgetting = Forgetting(store, db.clock, layouts=layouts_of(1), raw=RAW, ids=IDS)
    finished = datetime(2024, 2, 1, 23, 59, 59, tzinfo=UTC)
    async with db.session() as connection:
        for at in (finished, finished + timedelta(seconds=1), None):
            number = await order(
                connection, UUID(int=1), model=None, unpriced_only=False, since=NOW, until=None
            )
            await connection.execute(
                "UPDATE repricings SET finished_at = $2 WHERE id = $1", number, at
            )
            await connection.execute("INSERT INTO repricing_parts VALUES (0, $1, 1)", number)

    async def kept() -> list[datetime | None]:
        async with db.session() as connection:
            parts = "SELECT finished_at FROM repricings JOIN repricing_parts ON job = id ORDER BY 1"
            return [row["finished_at"] for row in await connection.fetch(parts)]

    await store.note_watermarks({0: datetime(2024, 2, 9, 0, 4, 59, tzinfo=UTC)})
    await forgetting.step()
    assert len(await kept()) == 3
    await store.note_watermarks({0: datetime(2024, 2, 9, 0, 5, tzinfo=UTC)})
    await forgetting.step()
    assert await kept() == [finished + timedelta(seconds=1), None]


async def test_a_watermark_never_goes_back(store: UsageStore) -> None:
    day = datetime(2024, 2, 1, tzinfo=UTC)
    await store.note_watermarks({0: day})
    await store.note_watermarks({0: day - timedelta(hours=1)})

    assert await store.least_watermark(1) == day
    assert await store.least_watermark(2) is None


async def test_a_worker_whose_clock_is_ahead_drops_nothing_before_its_time(
    db: Database, store: UsageStore, count: Count, arrived: MakeArrived
) -> None:
    now = datetime.now(UTC)
    event = arrived(received_at=now, at=now)
    await count(event)
    ahead = ManualClock(now + timedelta(days=30))
    forgetting = Forgetting(store, ahead, layouts=layouts_of(1), raw=RAW, ids=IDS)

    await store.note_watermarks({0: ahead.now()})
    await forgetting.step()
    await count(event)

    async with db.session() as connection:
        assert await connection.fetchval("SELECT count(*) FROM events") == 1
        assert await connection.fetchval("SELECT duplicates FROM parts") == 1


@pytest.mark.parametrize("days", [-3, 3, 40])
async def test_a_repeat_after_the_clock_of_ingest_jumped_counts_nothing(
    db: Database, count: Count, arrived: MakeArrived, days: int
) -> None:
    jumped = NOW + timedelta(days=days)
    event, other = arrived(received_at=jumped), arrived()
    await count(event)
    await count(event._replace(received_at=other.received_at), other)

    async with db.session() as connection:
        assert await connection.fetchval("SELECT count(*) FROM events") == 2
        assert await connection.fetchval("SELECT duplicates FROM parts") == 1
    assert await counted(db) == 2


async def test_a_deleted_organization_goes_once_all_it_sent_is_counted(
    db: Database, store: UsageStore, count: Count, arrived: MakeArrived
) -> None:
    gone, stays = UUID(int=1), UUID(int=2)
    forgetting = Forgetting(store, db.clock, layouts=layouts_of(1), raw=RAW, ids=IDS)
    await count(arrived(org_id=gone), arrived(org_id=stays))
    message = OrgDeleted(org_id=str(gone))
    for _ in range(2):
        async with db.change(call=None) as change:
            envelope = envelope_for(message, "account", ManualClock(NOW))
            await forgetting.org_deleted(change, message, envelope)

    assert await forgetting.step() == 1
    assert await counted(db) == 2
    await store.note_watermarks({0: NOW + timedelta(seconds=10)})
    assert await forgetting.step() == 1
    assert await counted(db) == 2
    await store.note_watermarks({0: NOW + timedelta(seconds=11)})
    # What waits, packed, may hold windows of it.
    assert await forgetting.step() == 1
    await add_up(db)
    assert await forgetting.step() == 0
    assert await counted(db) == 1
    async with db.session() as connection:
        raw = await connection.fetch("SELECT org_id FROM events")
        ids = await connection.fetchval("SELECT count(*) FROM event_ids")
    assert [row["org_id"] for row in raw] == [stays]
    assert ids == 2
    assert (await in_sessions(db, gone), await in_sessions(db, stays)) == (0, 1)


async def test_sessions_of_a_deleted_organization_do_not_move_out_of_the_way(
    db: Database, store: UsageStore, count: Count, arrived: MakeArrived
) -> None:
    gone = UUID(int=1)
    sessions = SessionStore(db, timedelta(minutes=30))
    await count(arrived(org_id=gone))
    await sessions.compact(gone)
    await count(arrived(org_id=gone, at=NOW - timedelta(minutes=1)))
    async with db.change(call=None) as change:
        await store.note_deleted(change, gone, NOW)
    await SessionCompaction(sessions, age=timedelta(0)).step()

    async def rows() -> list[int]:
        async with db.session() as connection:
            tables = ("sessions", "session_deltas")
            return [await connection.fetchval(f"SELECT count(*) FROM {t}") for t in tables]

    assert await rows() == [1, 1]
    await store.begin_forgetting(NOW + timedelta(seconds=1))
    while await store.forget_some():
        pass
    assert await rows() == [0, 0]


async def test_a_removal_goes_on_where_it_was_ended_and_leaves_what_is_others(
    db: Database,
    store: UsageStore,
    count: Count,
    arrived: MakeArrived,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, stays = UUID(int=1), UUID(int=2)
    days = [NOW - timedelta(days=n) for n in range(3)]
    for day in days:
        orgs = (gone, stays) * 300
        await count(*(arrived(org_id=org, received_at=day, at=day) for org in orgs))
    monkeypatch.setattr("services.usage_tracker.store.ledger.FORGETTING", Walk("forget", 3))
    async with db.change(call=None) as change:
        await store.note_deleted(change, gone, NOW)
    await store.begin_forgetting(NOW + timedelta(seconds=1))
    await add_up(db)

    async def left() -> dict[UUID, int]:
        async with db.session() as connection:
            rows = await connection.fetch("SELECT org_id, count(*) AS n FROM events GROUP BY 1")
        return {row["org_id"]: row["n"] for row in rows}

    seen = [(await left())[gone]]
    while await store.forget_some():
        # Another process goes on, and one that is deleted meanwhile waits for its turn.
        store = UsageStore(db)
        await store.begin_forgetting(NOW + timedelta(seconds=1))
        seen.append((await left()).get(gone, 0))
    assert len({*seen}) > 3
    assert sorted(seen, reverse=True) == seen
    assert await left() == {stays: 900}
    assert await counted(db) == 900
    assert await store.to_forget() == 0


async def test_days_to_come_have_their_partitions_before_they_begin(
    db: Database, store: UsageStore, variant: str
) -> None:
    days = [date(2031, 1, 1), date(2031, 1, 2)]
    await store.prepare_days(days)
    await store.prepare_days(days)

    async with db.session() as connection:
        for table in ("events", "event_ids"):
            made = set(days) & set(await partition_days(connection, table))
            # TimescaleDB makes them as rows come.
            assert made == (set() if variant == "timescaledb" else set(days))
        indexes = await connection.fetch(
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'events_p20310101'"
        )
    brin = ["USING brin (at)" in row["indexdef"] for row in indexes]
    assert brin == ([] if variant == "timescaledb" else [True])
