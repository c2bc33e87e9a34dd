"""Partitions whose batches take turns."""

from __future__ import annotations

import asyncio

import pytest

from common.database import Connection, Database
from common.events.bus import Bus, Record
from tests.common.partition_consumer.conftest import Ledger, Make, publish
from tests.common.waiting import PATIENCE, eventually

pytestmark = pytest.mark.bus


async def test_whoever_waits_for_its_turn_holds_no_connection(
    bus: Bus, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    begun: list[int] = []

    async def apply(connection: Connection, part: int, records: list[Record]) -> int:
        begun.append(part)
        return await ledger.apply(connection, part, records)

    ledger.gate.clear()
    consumer = await make(at_once=1, apply=apply)
    for part in (0, 1):
        await publish(bus, topic, range(5), part=part)
    await ledger.waiting.wait()

    async def both_are_held() -> bool:
        return len(consumer.held()) == 2

    await eventually(both_are_held)
    # The other one has had its records meanwhile, if it ever gets them.
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert len(begun) == 1
        async with db.session() as connection:
            busy = await connection.fetchval(
                """SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND state LIKE 'idle in transaction%'"""
            )
        assert busy == 1
    ledger.gate.set()
    for part in (0, 1):
        await eventually(lambda part=part: ledger.holds(part, list(range(5))))
    assert sorted(set(begun)) == [0, 1]


async def test_records_that_come_soon_after_a_batch_are_gathered_into_one(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    batches: list[int] = []

    async def apply(connection: Connection, part: int, records: list[Record]) -> int:
        batches.append(len(records))
        return await ledger.apply(connection, part, records)

    await make(apply=apply, gather=3.0)
    await publish(bus, topic, range(1))
    await eventually(lambda: ledger.holds(0, [0]))
    for number in range(1, 4):
        await publish(bus, topic, range(number, number + 1))
    await eventually(lambda: ledger.holds(0, [0, 1, 2, 3]))
    assert batches == [1, 3]


async def test_a_full_batch_is_followed_by_the_next_at_once_and_a_stop_by_the_end(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    consumer = await make(gather=100 * PATIENCE, max_records=2)
    await publish(bus, topic, range(5))
    await eventually(lambda: ledger.holds(0, [0, 1, 2, 3, 4]))
    async with asyncio.timeout(PATIENCE):
        await consumer.stop()
