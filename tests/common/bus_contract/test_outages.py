"""A broker that is down, killed or without its data."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count

import pytest

from common.events.bus import Bus, BusUnavailable, OffsetLost, Outgoing
from tests.common.brokers import OWN, Broker
from tests.common.bus_contract.conftest import MakeBus, Seen, back, numbered, read_all, running
from tests.common.waiting import eventually

pytestmark = [pytest.mark.bus, pytest.mark.parametrize("server", OWN, indirect=True)]


async def test_stopping_needs_no_broker(broker: Broker, bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    seen, tailed = Seen(), Seen()
    async with running(bus.subscribe([topic], "readers", seen), bus.tail([topic], tailed)):
        await bus.publish(topic, numbered(range(1)))
        await eventually(lambda: seen.values == tailed.values == [b"0"])
        broker.kill()
    broker.start()


async def test_nothing_hangs_while_the_broker_is_down_and_all_goes_on_after(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 2, ["readers"])
    seen, tailed = Seen(), Seen()
    reading = bus.subscribe([topic], "readers", seen)
    async with running(reading, bus.tail([topic], tailed)):
        await bus.publish(topic, numbered(range(10), partition=0))
        await eventually(lambda: len(seen.records) == len(tailed.records) == 10)
        broker.kill()
        async with asyncio.timeout(20):
            with pytest.raises(BusUnavailable):
                await bus.publish(topic, numbered(range(1)))
            with pytest.raises(BusUnavailable):
                await bus.fetch(topic, 0, None, max_records=1, wait=60)
            with pytest.raises(BusUnavailable):
                await bus.ping()
        await eventually(lambda: not reading.status().ready)
        assert reading.status().live
        broker.start()
        await back(bus)
        await bus.publish(topic, numbered(range(10, 20), partition=1))
        await eventually(lambda: {b"%d" % n for n in range(20)} == set(seen.values))
        await eventually(lambda: {b"%d" % n for n in range(20)} == set(tailed.values))
        await eventually(lambda: reading.status().ready)


async def test_a_subscription_starts_before_its_broker(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    seen, tailed = Seen(), Seen()
    broker.kill()
    async with running(bus.subscribe([topic], "readers", seen), bus.tail([topic], tailed)):
        broker.start()
        await back(bus)
        await bus.publish(topic, numbered(range(1)))
        await eventually(lambda: seen.values == [b"0"])


def longer(items: list[int], length: int) -> bool:
    return len(items) > length


async def is_there(bus: Bus, topic: str, partition: int) -> bool:
    """Whether a partition can be read again."""
    try:
        await bus.fetch(topic, partition, None, max_records=1, wait=0)
    except BusUnavailable:
        return False
    return True


async def test_no_confirmed_record_is_lost_with_a_killed_broker(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 2, ["ledger"])
    confirmed: list[int] = []
    numbers = count()
    stopping = False

    async def publish() -> None:
        while not stopping:
            number = next(numbers)
            try:
                await bus.publish(topic, [Outgoing(b"%d" % number, partition=number % 2)])
            except BusUnavailable:
                await asyncio.sleep(0.05)
            else:
                confirmed.append(number)

    writers = [asyncio.create_task(publish()) for _ in range(8)]
    births = [await bus.birth(topic, p) for p in range(2)]
    for _ in range(3):
        goal = len(confirmed) + 100
        await eventually(partial(longer, confirmed, goal))
        broker.kill()
        broker.start()
    stopping = True
    await asyncio.gather(*writers)
    for partition in range(2):
        await eventually(partial(is_there, bus, topic, partition))
    stored = [int(record.value) for p in range(2) for record in await read_all(bus, topic, p)]
    assert set(confirmed) <= set(stored)
    assert [await bus.birth(topic, p) for p in range(2)] == births


async def test_a_stream_is_born_again_when_the_brokers_data_is_replaced(
    broker: Broker, make_bus: MakeBus, topic: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 2, ["ledger"])
    await other.declare(topic, 2, ["ledger"])
    births = [await bus.birth(topic, p) for p in range(2)]
    assert [await other.birth(topic, p) for p in range(2)] == births
    assert len(set(births)) == 2
    tokens = await bus.publish(topic, numbered(range(5), partition=0))
    broker.replace()
    await back(bus)
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0)
    again = await bus.publish(topic, numbered(range(5, 12), partition=0))
    reborn = [await bus.birth(topic, p) for p in range(2)]
    assert not set(reborn) & set(births)
    assert [await other.birth(topic, p) for p in range(2)] == reborn
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0)
    assert [r.token for r in await read_all(bus, topic, 0)] == again


async def test_a_group_reads_on_when_the_brokers_data_was_replaced(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    seen = Seen()
    async with running(bus.subscribe([topic], "readers", seen)):
        await bus.publish(topic, numbered(range(5)))
        await eventually(lambda: len(seen.records) == 5)
        broker.replace()
        await back(bus)
        await bus.publish(topic, numbered(range(5, 7)))
        await eventually(lambda: {b"5", b"6"} <= set(seen.values))
