from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from common.database import Connection, Database
from common.events.bus import Record
from common.events.ledger import RecordRefused
from common.events.ledger.offsets import Fenced
from services.analytics.domain.windows import Columns
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.store import UsageStore
from tests.analytics.deltas import rows_of
from tests.usage_tracker.deltas import total, waiting
from tests.usage_tracker.store.conftest import NOW, MakeArrived, MakeRecord, Owner

pytestmark = pytest.mark.store


async def contents(db: Database) -> dict[str, list[Any]]:
    """Every row of the ledger, in an order of its own."""
    async with db.session() as connection:
        return {
            table: sorted(
                (tuple(r) for r in await connection.fetch(f"SELECT * FROM {table}")), key=repr
            )
            for table in (
                *("events", "event_ids", "delta_blocks", "parts", "offsets"),
                "session_deltas",
            )
        }


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
        last = await connection.fetchval("SELECT last_seq FROM parts")
    assert [row["seq"] for row in await waiting(db)] == list(range(1, 13))
    assert last == 12


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
    assert [row["seq"] for row in await waiting(db)] == [1, 2]


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


async def test_what_is_unsent_comes_as_the_columns_of_the_contract(
    db: Database, owner: Owner, store: UsageStore, arrived: MakeArrived, record: MakeRecord
) -> None:
    project = uuid4()
    for number in (1, 2, 3):
        await owner.process(record(arrived(project_id=project, latency_us=10), number=number))
    found = await waiting(db)
    assert [row["seq"] for row in found] == [1, 2, 3]
    for row in found:
        assert (row["org_id"], row["project_id"]) == (UUID(int=1).bytes, project.bytes)
        assert (row["team_id"], row["reason"]) == (None, None)
        assert row["minute"] == int(NOW.timestamp()) // 60
        assert row["latency_bins"] == [117]
    await store.sent(0, 2)
    await store.sent(0, 1)
    assert await store.sent_up_to(0) == 2
    assert [row["seq"] for row in await waiting(db, after=2)] == [3]
    assert await waiting(db, after=3) == []


async def test_what_is_kept_to_be_sent_on_is_what_the_database_holds(
    db: Database, owner: Owner, arrived: MakeArrived, record: MakeRecord
) -> None:
    events = [
        *(arrived(org_id=UUID(int=n % 3 + 1), latency_us=7**n) for n in range(9)),
        *(arrived(project_id=uuid4(), tool="search", mcp_server="s", status="error"),) * 2,
        arrived(model="acme-13b", at=NOW - timedelta(days=1)),
    ]
    counted = await owner.process(record(*events))

    ((first, deltas, _),) = counted.deltas
    kept = Columns(**deltas.packed(first, np.arange(len(deltas))))
    held = await waiting(db)
    assert rows_of(kept) == held
    assert len(held) == len(deltas)


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
