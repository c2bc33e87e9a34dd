"""The ledger on a real PostgreSQL: exact over repeats, kills and zombies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from common.database import Connection, Database
from common.events.bus import Record
from common.events.ledger import RecordRefused
from common.events.ledger.offsets import Fenced, Offsets
from common.testing import silent_telemetry
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.consumer.events import Counted, EventsConsumer
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.store import UsageStore
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import layouts_of
from tests.usage_tracker.plain import Arrived

pytestmark = pytest.mark.store

MakeArrived = Callable[..., Arrived]
MakeRecord = Callable[..., Record]
NOW = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
TABLES = ("events", "event_ids", "deltas", "parts", "relays", "deleted_orgs", "outbox", "offsets")


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


async def an_owner(db: Database, store: UsageStore, name: str, **sizes: int) -> Owner:
    """One that has learned which identities the part holds."""
    accounting = Accounting(store, CurrentPrices(PriceBook.bundled(), db), timedelta(days=8))
    worker = EventsConsumer(
        accounting, db, silent_telemetry(), RecentDeltas(), layouts_of(1), **sizes
    )
    owner = Owner(db, worker, name)
    await owner.take()
    await worker.take(0)
    return owner


@pytest.fixture
async def owner(db: Database, worker: EventsConsumer) -> Owner:
    owner = Owner(db, worker, "first")
    await owner.take()
    return owner


async def contents(db: Database) -> dict[str, list[Any]]:
    """Every row of the ledger, in an order of its own."""
    async with db.session() as connection:
        return {
            table: sorted(
                (tuple(r) for r in await connection.fetch(f"SELECT * FROM {table}")), key=repr
            )
            for table in ("events", "event_ids", "deltas", "parts", "offsets")
        }


async def total(db: Database, measure: str) -> int:
    async with db.session() as connection:
        return int(await connection.fetchval(f"SELECT coalesce(sum({measure}), 0) FROM deltas"))


async def test_a_batch_becomes_raw_rows_identities_and_deltas_with_exact_sums(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    key, user = uuid4(), uuid4()
    event = arrived(
        api_key_id=key,
        user_id=user,
        user_ref="jané",
        provider="anthropic",
        input_tokens=1,
        output_tokens=2,
        cache_read_tokens=3,
        cache_write_5m_tokens=4,
        cache_write_1h_tokens=5,
        latency_us=1234,
        client_cost_nano=99,
        metadata='{"a":"é"}'.encode(),
        session_id="s",
    )
    await owner.process(record(event, arrived(model="acme-13b", status="error")))

    async with db.session() as connection:
        raw = await connection.fetchrow("SELECT * FROM events WHERE model LIKE 'claude%'")
        unpriced = await connection.fetchrow("SELECT * FROM events WHERE model LIKE 'acme%'")
        deltas = await connection.fetch("SELECT * FROM deltas ORDER BY seq")
    assert raw is not None
    assert unpriced is not None
    assert (raw["event_id"], raw["api_key_id"]) == (UUID(bytes=event.row.event_id), key)
    assert (raw["user_ref"], raw["metadata"], raw["session_id"]) == ("jané", '{"a":"é"}', "s")
    assert raw["cost_nano"] == 1_000 + 10_000 + 300 + 5_000 + 10_000
    assert (raw["cache_write_nano"], raw["client_cost_nano"]) == (15_000, 99)
    assert raw["price_version"].endswith("anthropic/claude-haiku-4-5")
    assert (unpriced["cost_nano"], unpriced["price_version"]) == (None, None)
    assert [d["seq"] for d in deltas] == [1, 2]
    assert deltas[0]["start"] == NOW.replace(second=0)
    assert (deltas[0]["user_id"], deltas[0]["api_key_id"]) == (user, key)
    assert (deltas[0]["latency_bins"], deltas[0]["latency_counts"]) == ([360], [1])
    assert (deltas[1]["errors"], deltas[1]["unpriced_events"], deltas[1]["cost_nano"]) == (1, 1, 0)


async def test_a_repeat_in_a_later_batch_counts_nothing(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    events = [arrived() for _ in range(50)]
    await owner.process(record(*events[:30], number=1))
    counted = await owner.process(record(*events[10:], *events[:5], number=2))

    assert (counted.events, counted.duplicates, counted.conflicts) == (20, 25, 0)
    assert await total(db, "events") == 50
    assert await UsageStore(db).repeats() == {"duplicate": 25, "conflict": 0}


async def test_a_repeat_with_another_body_is_counted_and_told_in_the_same_commit(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    first = arrived(digest=b"one".ljust(16), input_tokens=10)
    again = first._replace(row=first.row._replace(digest=b"two".ljust(16), input_tokens=500))
    await owner.process(record(first, number=1))
    counted = await owner.process(record(again, number=2))

    assert (counted.events, counted.conflicts) == (0, 1)
    assert await total(db, "input_tokens") == 10
    async with db.session() as connection:
        (sent,) = await connection.fetch("SELECT topic, value FROM outbox")
    assert await UsageStore(db).repeats() == {"duplicate": 0, "conflict": 1}
    assert sent["topic"] == "platform.events"
    assert b"usage.conflict" in sent["value"]
    assert str(UUID(bytes=first.row.event_id)).encode() in sent["value"]


async def test_a_model_without_a_price_is_told_once_a_batch(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    await owner.process(record(*(arrived(model="acme-13b") for _ in range(7))))

    async with db.session() as connection:
        (sent,) = await connection.fetch("SELECT value FROM outbox")
    assert b"usage.unpriced" in sent["value"]
    assert b'"events":"7"' in sent["value"]


async def test_deltas_are_numbered_without_gaps_in_the_order_of_commits(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    for number in range(4):
        events = [arrived(org_id=UUID(int=n + 1)) for n in range(3)]
        await owner.process(record(*events, number=number))

    async with db.session() as connection:
        rows = await connection.fetch("SELECT seq FROM deltas ORDER BY seq")
        last = await connection.fetchval("SELECT last_seq FROM parts")
    assert [row["seq"] for row in rows] == list(range(1, 13))
    assert last == 12


class Killed:
    """A connection whose process dies at its n-th statement."""

    def __init__(self, connection: Connection, statement: int) -> None:
        self._connection = connection
        self._statement = statement
        self.ran = 0

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._connection, name)
        if name not in ("execute", "fetch", "fetchval", "copy_to_table"):
            return original

        async def run(*args: Any, **kwargs: Any) -> Any:
            self.ran += 1
            if self.ran == self._statement:
                raise ConnectionResetError("killed")
            return await original(*args, **kwargs)

        return run


async def test_a_kill_at_any_statement_neither_loses_nor_doubles(
    db: Database,
    owner: Owner,
    worker: EventsConsumer,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    await owner.process(record(arrived(), number=1))
    batch = record(
        *(arrived(input_tokens=n) for n in range(20)), arrived(model="acme-13b"), number=2
    )
    before = await contents(db)
    statement, ran = 0, 1
    while ran >= statement:
        statement += 1
        connection = await db.connect()
        await connection.transaction().start()
        killed = Killed(connection, statement)
        with suppress(ConnectionResetError):
            await worker.apply(killed, 0, [batch])
        connection.terminate()
        ran = killed.ran
        assert await contents(db) == before

    assert statement > 5
    await owner.process(batch)
    after = await contents(db)
    assert len(after["events"]) == len(after["event_ids"]) == 22
    assert await total(db, "events") == 22
    assert await total(db, "input_tokens") == sum(range(20)) + 2 * 1000


async def test_what_a_restart_finds_stored_is_known_again(
    db: Database, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    days = [NOW - timedelta(days=n) for n in (0, 3, 7)]
    stored = [arrived(received_at=day, org_id=UUID(int=n)) for day in days for n in range(1, 41)]
    first = await an_owner(db, store, "first")
    await first.process(*(record(event, number=n) for n, event in enumerate(stored)))
    heir = await an_owner(db, store, "first")
    again = [event._replace(received_at=stored[0].received_at) for event in stored]
    new = [arrived() for _ in range(30)]

    counted = await heir.process(record(*again, *new, number=999))
    assert (counted.events, counted.duplicates, counted.conflicts) == (30, 120, 0)
    counted = await heir.process(record(*new, number=1000))
    assert (counted.events, counted.duplicates) == (0, 30)


async def test_an_identity_holds_between_chunks_of_one_transaction(
    db: Database, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    events = [arrived() for _ in range(20)]
    owner = await an_owner(db, store, "first", chunk_events=10)

    counted = await owner.process(*(record(*events[n:], number=n) for n in range(20)))
    assert (counted.events, counted.duplicates) == (20, 190)


async def test_what_was_rolled_back_is_new_when_it_comes_again(
    db: Database, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    events = record(*(arrived() for _ in range(20)))
    owner = await an_owner(db, store, "first")

    async def fail() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await owner.process(events, before_commit=fail)
    counted = await owner.process(events)

    assert (counted.events, counted.duplicates) == (20, 0)


async def test_a_zombie_that_wakes_after_another_took_its_part_changes_nothing(
    db: Database,
    owner: Owner,
    worker: EventsConsumer,
    arrived: MakeArrived,
    record: MakeRecord,
) -> None:
    batch = [record(*(arrived() for _ in range(30)), number=n) for n in (1, 2)]
    await owner.process(batch[0])
    taken = asyncio.Event()
    appended = asyncio.Event()

    async def pause() -> None:
        appended.set()
        await taken.wait()

    zombie = asyncio.create_task(owner.process(batch[1], before_commit=pause))
    await appended.wait()
    async with db.session() as connection:
        await connection.execute("UPDATE offsets SET lease_until = now() - interval '1 s'")
    heir = Owner(db, worker, "second")
    await heir.take()
    heirs = asyncio.create_task(heir.process(batch[1]))
    taken.set()

    with pytest.raises(Fenced):
        await zombie
    await heirs
    assert await total(db, "events") == 60
    found = await contents(db)
    assert len(found["events"]) == len(found["event_ids"]) == 60
    async with db.session() as connection:
        seqs = await connection.fetch("SELECT seq FROM deltas ORDER BY seq")
    assert [row["seq"] for row in seqs] == [1, 2]


async def test_owners_of_different_parts_do_not_wait_for_each_other(
    db: Database, worker: EventsConsumer, arrived: MakeArrived, record: MakeRecord
) -> None:
    async with db.session() as one, one.transaction():
        await worker.apply(one, 0, [record(arrived())])
        async with db.session() as other, other.transaction():
            await worker.apply(other, 1, [record(arrived(), part=1)])

    assert await total(db, "events") == 2


async def test_what_cannot_be_read_is_refused_and_stops_the_part(
    owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    good = record(arrived())
    for value in (b"", b"\x00", b"{}", good.value[:-10], good.value[:40] + good.value[60:]):
        broken = Record(good.topic, 0, "1-1", "", value, good.headers)
        with pytest.raises(RecordRefused):
            await owner.process(broken)


async def test_a_record_of_another_kind_is_refused(
    owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    with pytest.raises(RecordRefused, match=r"usage\.windows"):
        await owner.process(record(arrived(), kind="usage.windows"))


async def test_an_identity_is_exact_to_eight_days_across_partitions(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    event = arrived(received_at=NOW - timedelta(days=8))

    def again(received_at: datetime) -> Arrived:
        return arrived(received_at=received_at, event_id=UUID(bytes=event.row.event_id))

    await owner.process(record(event, number=1))
    second = await owner.process(record(again(NOW - timedelta(microseconds=1)), number=2))
    third = await owner.process(record(again(NOW), number=3))

    assert (second.events, second.duplicates) == (0, 1)
    assert (third.events, third.duplicates) == (1, 0)


async def test_what_is_unsent_comes_as_the_columns_of_the_contract(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    project = uuid4()
    for number in (1, 2, 3):
        await owner.process(record(arrived(project_id=project, latency_us=10), number=number))
    first = await store.unsent(0, 2)
    assert first is not None
    assert first["seq"] == [1, 2]
    assert first["org_id"] == [UUID(int=1).bytes] * 2
    assert first["project_id"] == [project.bytes] * 2
    assert first["team_id"] == [None, None]
    assert first["minute"] == [int(NOW.timestamp()) // 60] * 2
    assert first["latency_bins"] == [[117], [117]]
    assert first["reason"] == [None, None]
    await store.sent(0, 2)
    await store.sent(0, 1)
    rest = await store.unsent(0, 2)
    assert rest is not None
    assert rest["seq"] == [3]
    await store.sent(0, 3)
    assert await store.unsent(0, 2) is None


async def test_what_is_kept_to_be_sent_on_is_what_the_database_holds(
    owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    events = [
        *(arrived(org_id=UUID(int=n % 3 + 1), latency_us=7**n) for n in range(9)),
        *(arrived(project_id=uuid4(), tool="search", mcp_server="s", status="error"),) * 2,
        arrived(model="acme-13b", at=NOW - timedelta(days=1)),
    ]
    counted = await owner.process(record(*events))

    ((first, deltas),) = counted.deltas
    assert deltas.columns(first, np.arange(len(deltas))) == await store.unsent(0, 100)


async def test_the_look_up_of_identities_uses_their_index(db: Database, store: UsageStore) -> None:
    async with db.session() as connection:
        indexes = await connection.fetch(
            "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'event_ids%'"
        )
    assert indexes
    assert all("(part, org_id, event_id)" in row["indexdef"] for row in indexes)


async def test_an_event_of_the_largest_counts_fits_and_costs_what_it_costs_or_nothing(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    huge = [arrived(input_tokens=2**53, output_tokens=0, model="gpt-5-mini") for _ in range(3)]
    beyond = [arrived(input_tokens=2**53, output_tokens=2**53, model="o1-pro") for _ in range(3)]
    counted = await owner.process(record(*huge, *beyond))

    assert (counted.events, counted.unpriced) == (6, 3)
    async with db.session() as connection:
        costs = await connection.fetch("SELECT cost_nano FROM events ORDER BY cost_nano")
    assert [row["cost_nano"] for row in costs] == [2**53 * 250] * 3 + [None] * 3


async def test_identities_are_read_one_part_at_a_time_beside_the_pool(
    db: Database, store: UsageStore
) -> None:
    reads = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ $1"

    async def reading() -> int:
        async with db.session() as connection:
            return int(await connection.fetchval(reads, "FROM event_ids WHERE part"))

    async def begun() -> bool:
        return await reading() > 0

    blocking = await db.connect()
    async with blocking.transaction():
        await blocking.execute("LOCK TABLE event_ids IN ACCESS EXCLUSIVE MODE")
        loads = [asyncio.create_task(store.identities(part)) for part in range(8)]
        await eventually(begun)
        async with AsyncExitStack() as pool:
            for _ in range(db.pool.get_max_size() - 1):
                await pool.enter_async_context(db.session())
            assert await reading() == 1
    await blocking.close()
    assert [found.count for found in await asyncio.gather(*loads)] == [0] * 8
