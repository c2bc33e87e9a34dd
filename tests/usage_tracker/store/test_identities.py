from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from common.database import Database
from common.testing import silent_telemetry
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.store import UsageStore
from services.usage_tracker.store.ledger import FIRST_ACCEPTANCES
from tests.common.waiting import eventually
from tests.usage_tracker.conftest import layouts_of
from tests.usage_tracker.deltas import total, waiting
from tests.usage_tracker.plain import Arrived
from tests.usage_tracker.store.conftest import NOW, MakeArrived, MakeRecord, Owner

pytestmark = pytest.mark.store


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
    assert raw is not None
    assert unpriced is not None
    assert (raw["event_id"], raw["api_key_id"]) == (UUID(bytes=event.row.event_id), key)
    assert (raw["user_ref"], raw["metadata"], raw["session_id"]) == ("jané", '{"a":"é"}', "s")
    assert raw["cost_nano"] == 1_000 + 10_000 + 300 + 5_000 + 10_000
    assert (raw["cache_write_nano"], raw["client_cost_nano"]) == (15_000, 99)
    assert raw["price_version"].endswith("anthropic/claude-haiku-4-5")
    assert (unpriced["cost_nano"], unpriced["price_version"]) == (None, None)
    deltas = await waiting(db)
    assert [d["seq"] for d in deltas] == [1, 2]
    assert deltas[0]["minute"] == int(NOW.timestamp()) // 60
    assert (deltas[0]["user_id"], deltas[0]["api_key_id"]) == (user.bytes, key.bytes)
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


async def test_the_look_up_of_identities_uses_their_index(db: Database, store: UsageStore) -> None:
    async with db.session() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = await connection.fetch(f"EXPLAIN {FIRST_ACCEPTANCES}", 0, [uuid4()], [uuid4()], NOW)
    lines = [line for (line,) in plan]
    assert not any("Seq Scan" in line for line in lines)
    conditions = [line for line in lines if "Index Cond" in line]
    assert conditions
    assert all("uuid_hash_extended" in line for line in conditions), lines


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
