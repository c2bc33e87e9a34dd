"""Every record is applied once and in order, whatever passes by."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from common.background import PartStatus
from common.database import Connection, Database
from common.errors import Unavailable
from common.events.bus import Bus, Record, token_of
from tests.common.brokers import Broker
from tests.common.partition_consumer.conftest import NAME, Ledger, LedgerProcess, Make, publish
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


async def test_every_record_is_applied_once_and_in_order(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    await publish(bus, topic, range(50))
    consumer = await make(max_records=7)
    tokens = await publish(bus, topic, range(50, 60))
    await publish(bus, topic, range(100, 130), part=1)
    await eventually(partial(ledger.holds, 0, list(range(60))))
    await eventually(partial(ledger.holds, 1, list(range(100, 130))))
    place = await ledger.place(0)
    assert place is not None
    assert (token_of(place["token"]), place["epoch"]) == (tokens[-1], 1)
    assert place["birth"] == await bus.birth(topic, 0)
    await eventually(lambda: consumer.status() == PartStatus(True, "works on 2 of 2 partitions", 0))
    assert consumer.held() == [0, 1]

    async def broker_may_forget() -> bool:
        return await bus.lag(topic, "ledger") == 0

    await eventually(broker_may_forget)


async def test_after_gets_what_apply_returned_once_it_is_committed(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    told: list[tuple[int, int, list[int]]] = []

    async def after(part: int, count: int) -> None:
        told.append((part, count, await ledger.numbers(part)))

    await publish(bus, topic, range(3))
    await make(after=after)
    await eventually(lambda: told == [(0, 3, [0, 1, 2])])


async def test_a_partition_whose_after_failed_is_prepared_anew(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    told: list[str] = []

    async def on_take(part: int) -> None:
        told.extend(["take"] if part == 0 else [])

    async def after(part: int, count: int) -> None:
        told.append("after")
        if told.count("after") == 1:
            raise KeyError("once")

    await publish(bus, topic, range(3))
    await make(on_take=on_take, after=after)
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    await publish(bus, topic, range(3, 5))
    await eventually(lambda: told == ["take", "after", "take", "after"])
    assert await ledger.numbers(0) == list(range(5))


async def test_a_partition_is_prepared_before_its_first_batch(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    told: list[str] = []

    async def on_take(part: int) -> None:
        place = await ledger.place(part)
        told.append(f"take {part} in epoch {place['epoch'] if place else None}")
        if told.count(f"take {part} in epoch 1") == 1:
            raise Unavailable("not yet")

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        told.append(f"apply {part}")
        await ledger.apply(connection, part, records)

    await publish(bus, topic, range(2), part=1)
    await make(on_take=on_take, apply=apply)
    await eventually(partial(ledger.holds, 1, [0, 1]))
    ones = [line for line in told if line.split()[1] == "1"]
    assert ones == ["take 1 in epoch 1", "take 1 in epoch 1", "apply 1"]


async def test_a_consumer_killed_between_effect_and_commit_neither_loses_nor_doubles(
    bus: Bus, topic: str, make: Make, ledger: Ledger, other_process: LedgerProcess
) -> None:
    await publish(bus, topic, range(40), part=0)
    await publish(bus, topic, range(40), part=1)

    def more_than(before: int) -> bool:
        return other_process.batches() > before

    for batches in (1, 2, 5):
        begun = other_process.batches()
        process = await other_process.start("the same", lease=60.0, pause=0.1)
        await eventually(partial(more_than, begun + batches))
        process.kill()
        await process.wait()
    done = len(await ledger.numbers(0)) + len(await ledger.numbers(1))
    assert 0 < done < 80
    assert done < 4 * other_process.batches()
    await make(owner="the same")
    await eventually(partial(ledger.holds, 0, list(range(40))))
    await eventually(partial(ledger.holds, 1, list(range(40))))


async def test_an_error_that_passes_is_tried_again_for_ever(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    failures = 0

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        nonlocal failures
        await ledger.apply(connection, part, records)
        failures += 1
        if failures < 12:
            raise Unavailable("a while longer")

    await publish(bus, topic, range(5))
    consumer = await make(apply=apply)
    await eventually(lambda: "a while longer" in consumer.status().detail)
    assert consumer.status().live
    await eventually(partial(ledger.holds, 0, list(range(5))))
    await eventually(lambda: consumer.status().ready)


async def test_connections_cut_by_the_database_do_no_harm(
    bus: Bus, topic: str, make: Make, ledger: Ledger, postgres: Any
) -> None:
    await make(max_records=3)
    admin = await asyncpg.connect(postgres.admin_dsn)
    for first in range(0, 100, 10):
        await publish(bus, topic, range(first, first + 10))
        await asyncio.sleep(0.05)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", NAME
        )
    await admin.close()
    await eventually(partial(_holds_at_last, ledger, list(range(100))))


async def _holds_at_last(ledger: Ledger, numbers: list[int]) -> bool:
    try:
        return await ledger.numbers(0) == numbers
    except Unavailable:
        return False


async def test_a_broker_that_comes_back_is_read_on(
    bus: Bus, broker: Broker, topic: str, make: Make, ledger: Ledger
) -> None:
    consumer = await make()
    await publish(bus, topic, range(5))
    await eventually(partial(ledger.holds, 0, list(range(5))))
    broker.kill()
    await eventually(lambda: not consumer.status().ready)
    assert consumer.status().live
    broker.start()
    await eventually(lambda: consumer.status().ready)
    await publish(bus, topic, range(5, 8))
    await eventually(partial(ledger.holds, 0, list(range(8))))


async def test_a_consumer_waits_for_its_topic(bus: Bus, make: Make, db: Database) -> None:
    topic = f"late-{uuid4().hex[:12]}"
    ledger = Ledger(db, topic)
    consumer = await make(topic=topic, apply=ledger.apply)
    await eventually(lambda: "TopicUnknown" in consumer.status().detail)
    await bus.declare(topic, 1)
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))


async def test_stopping_needs_no_broker(
    bus: Bus, broker: Broker, topic: str, make: Make, ledger: Ledger
) -> None:
    consumer = await make(lease=600.0)
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    broker.kill()
    await consumer.stop()
    broker.start()
    heir = await make(lease=600.0)
    await eventually(lambda: heir.held() == [0, 1])


async def test_the_lag_is_told_while_there_is_some(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    ledger.gate.clear()
    consumer = await make(max_records=5)
    await publish(bus, topic, range(20))
    await eventually(lambda: consumer.status().lag == 20)
    ledger.gate.set()
    await eventually(lambda: consumer.status().lag == 0)
