"""Who owns a partition: taking it, losing it and giving it back."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from common.database import Connection, Database
from common.errors import Unavailable
from common.events.bus import Bus, Record
from tests.common.brokers import Broker
from tests.common.partition_consumer.conftest import Ledger, Make, publish
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


async def test_an_owner_that_lost_its_partition_rolls_back(
    bus: Bus, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    ledger.gate.clear()
    zombie = await make(lease=60.0)
    await publish(bus, topic, range(10))
    await ledger.waiting.wait()
    await eventually(lambda: zombie.held() == [0, 1])
    await ledger.expire()
    heir = Ledger(db, topic)
    await make(apply=heir.apply, owner="heir")
    await eventually(partial(ledger.holds, 0, list(range(10))))
    ledger.gate.set()
    await publish(bus, topic, range(10, 15))
    await eventually(partial(ledger.holds, 0, list(range(15))))
    place = await ledger.place(0)
    assert place is not None
    assert place["epoch"] > 1


async def test_a_lease_that_was_lost_is_noticed_while_nothing_arrives(
    topic: str, make: Make, db: Database
) -> None:
    consumer = await make(lease=0.5)
    await eventually(lambda: consumer.held() == [0, 1])
    async with db.session() as connection:
        await connection.execute(
            """
            UPDATE offsets SET owner = 'another', epoch = epoch + 1,
                lease_until = 'infinity'
            WHERE topic = $1 AND part = 1
            """,
            topic,
        )
    await eventually(lambda: consumer.held() == [0])
    assert consumer.caught_up_at(1) is None
    assert consumer.status().live


async def test_a_lease_of_before_the_databases_clock_was_set_back_keeps_nobody_out(
    topic: str, make: Make, db: Database
) -> None:
    async with db.session() as connection:
        await connection.execute(
            """
            INSERT INTO offsets (topic, part, owner, epoch, lease_until)
            VALUES ($1, 0, 'dead', 1, now() + interval '1 hour'), ($1, 1, 'nobody', 1, 'infinity')
            """,
            topic,
        )
        await connection.execute(
            "INSERT INTO partition_members VALUES ($1, 'dead', now() + interval '1 hour')", topic
        )
    consumer = await make(owner="zz alive")

    await eventually(lambda: consumer.held() == [0])
    async with db.session() as connection:
        await connection.execute(
            "UPDATE offsets SET lease_until = now() WHERE topic = $1 AND part = 1", topic
        )
    await eventually(lambda: consumer.held() == [0, 1])


async def test_a_consumer_that_stops_gives_its_partitions_back_at_once(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    first = await make(lease=600.0)
    await publish(bus, topic, range(5))
    await eventually(partial(ledger.holds, 0, list(range(5))))
    await first.stop()
    assert first.held() == []
    second = await make(lease=600.0)
    await eventually(lambda: second.held() == [0, 1])
    await publish(bus, topic, range(5, 8))
    await eventually(partial(ledger.holds, 0, list(range(8))))


async def test_stopping_lets_the_batch_at_hand_commit(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    ledger.gate.clear()
    consumer = await make()
    await publish(bus, topic, range(5))
    await ledger.waiting.wait()
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    ledger.gate.set()
    await stopping
    assert await ledger.numbers(0) == list(range(5))


async def test_an_owner_whose_records_an_heir_has_applied_gives_up_and_does_not_stop(
    bus: Bus, broker: Broker, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    paused = False

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        if paused:
            raise Unavailable("paused")
        await ledger.apply(connection, part, records)

    zombie = await make(apply=apply, lease=60.0)
    await publish(bus, topic, range(1))
    await eventually(partial(ledger.holds, 0, [0]))
    paused = True
    tokens = await publish(bus, topic, range(1, 6))
    async with db.session() as connection:
        await connection.execute(
            """
            UPDATE offsets SET owner = 'another', epoch = epoch + 1, token = $2,
                lease_until = 'infinity'
            WHERE topic = $1 AND part = 0
            """,
            topic,
            tokens[-1],
        )
    await broker.forget(topic, 0, tokens[2])
    await eventually(lambda: zombie.held() == [1])
    assert zombie.status().live
    await eventually(lambda: zombie.status().ready)
