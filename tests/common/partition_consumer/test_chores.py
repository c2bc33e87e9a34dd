"""What the owner of a partition does between two batches."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from common.database import Connection, Database
from common.events.bus import Bus
from tests.common.partition_consumer.conftest import Ledger, Make, publish
from tests.common.waiting import PATIENCE, eventually

pytestmark = pytest.mark.bus


class Chores:
    """So many steps in each part, each of which inserts a number; ``broken`` ones fail."""

    def __init__(self, topic: str, steps: int) -> None:
        self.left = {0: steps, 1: steps}
        self.broken: Exception | None = None
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.tries = 0
        self._topic = topic

    def due(self, part: int) -> bool:
        return self.left[part] > 0

    async def step(self, connection: Connection, part: int) -> None:
        self.tries += 1
        number = 1_000 + self.left[part]
        query = "INSERT INTO applied (topic, part, n) VALUES ($1, $2, $3)"
        await connection.execute(query, self._topic, part, number)
        if self.broken is not None:
            raise self.broken
        await self.going_on.wait()
        self.left[part] -= 1


async def test_they_are_done_where_no_records_come_and_between_those_that_do(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    chores = Chores(topic, 5)
    await make(chores=chores, max_records=1)
    await publish(bus, topic, range(10), part=1)
    await eventually(partial(ledger.holds, 0, [1_005, 1_004, 1_003, 1_002, 1_001]))

    async def all_of_one() -> bool:
        numbers = await ledger.numbers(1)
        return sorted(numbers) == [*range(10), *range(1_001, 1_006)]

    await eventually(all_of_one)
    assert [n for n in await ledger.numbers(1) if n < 1_000] == list(range(10))


async def test_they_do_not_wait_while_records_are_gathered(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    await publish(bus, topic, range(1))
    await make(chores=Chores(topic, 3), gather=100 * PATIENCE)

    async def all_of_it() -> bool:
        return sorted(await ledger.numbers(0)) == [0, 1_001, 1_002, 1_003]

    await eventually(all_of_it)


@pytest.mark.parametrize("error", [KeyError("a bug"), TimeoutError("it takes too long")])
async def test_those_that_fail_leave_nothing_and_stop_no_records(
    bus: Bus, topic: str, make: Make, ledger: Ledger, error: Exception
) -> None:
    chores = Chores(topic, 1)
    chores.broken = error
    consumer = await make(chores=chores)
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    await eventually(lambda: chores.tries >= 2)
    await publish(bus, topic, range(3, 6))
    await eventually(partial(ledger.holds, 0, list(range(6))))
    assert consumer.status().ready


async def test_one_that_lasts_neither_holds_up_leases_nor_ends_well_where_the_part_is_lost(
    bus: Bus, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    chores = Chores(topic, 1)
    chores.going_on.clear()
    await make(chores=chores)
    await eventually(lambda: chores.tries == 2)
    # In time, as the lease of one that works on must be renewed, and lost ones must be taken.
    async with asyncio.timeout(5), db.session() as connection:
        await connection.execute("UPDATE offsets SET epoch = epoch + 1 WHERE topic = $1", topic)
    chores.going_on.set()
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    assert await ledger.numbers(1) == []
