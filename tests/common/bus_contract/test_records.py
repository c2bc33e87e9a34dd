"""What is published arrives whole, in its order and in its partition."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest

from common.events.bus import Bus, Outgoing, TopicMismatch, TopicUnknown
from tests.common.bus_contract.conftest import MakeBus, Seen, numbered, read_all, running
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

MEGABYTE = 1024 * 1024


async def test_records_of_a_partition_keep_their_order(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 3, ["readers"])
    for first in range(0, 90, 10):
        await bus.publish(
            topic, [Outgoing(str(n).encode(), partition=n % 3) for n in range(first, first + 10)]
        )
    seen = Seen()
    async with running(bus.subscribe([topic], "readers", seen)):
        await eventually(lambda: len(seen.records) == 90)
    for partition in range(3):
        expected = [str(n).encode() for n in range(partition, 90, 3)]
        assert seen.by_partition()[partition] == expected
        assert [r.value for r in await read_all(bus, topic, partition)] == expected


async def test_a_record_arrives_as_it_was_sent(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    value = bytes(range(256))
    tokens = await bus.publish(
        topic, [Outgoing(value, key="ключ", headers={"content-type": "x/y", "note": "ü"})]
    )
    record = (await bus.fetch(topic, 0, None, max_records=10, wait=0))[0]
    assert (record.topic, record.partition, record.token) == (topic, 0, tokens[0])
    assert (record.key, record.value) == ("ключ", value)
    assert record.headers["content-type"] == "x/y"
    assert record.headers["note"] == "ü"


async def test_records_with_the_same_key_go_to_the_same_partition(
    make_bus: MakeBus, topic: str
) -> None:
    one, other = await make_bus(), await make_bus()
    await one.declare(topic, 8, ["readers"])
    await one.publish(topic, [Outgoing(b"1", key=f"key {n}") for n in range(40)])
    await other.publish(topic, [Outgoing(b"2", key=f"key {n}") for n in range(40)])
    where = defaultdict(set)
    for partition in range(8):
        for record in await read_all(one, topic, partition):
            where[record.key].add(partition)
    assert len(where) == 40
    assert all(len(partitions) == 1 for partitions in where.values())
    assert len(set.union(*where.values())) == 8


async def test_a_large_record_arrives_whole(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    values = [bytes([n]) * MEGABYTE for n in range(3)]
    await bus.publish(topic, [Outgoing(value) for value in values])
    seen = Seen()
    async with running(bus.subscribe([topic], "readers", seen)):
        await eventually(lambda: len(seen.records) == 3)
    assert seen.values == values


async def test_a_place_of_ones_own_is_read_from_any_token(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["ledger"])
    assert await bus.end(topic, 0) is None
    assert await bus.fetch(topic, 0, None, max_records=5, wait=0) == []
    tokens = await bus.publish(topic, numbered(range(10)))
    assert len(set(tokens)) == 10
    assert await bus.end(topic, 0) == tokens[-1]

    some = await bus.fetch(topic, 0, None, max_records=3, wait=0)
    assert [r.token for r in some] == tokens[: len(some)]
    assert 1 <= len(some) <= 3
    rest = await read_all(bus, topic, 0, tokens[6])
    assert [r.value for r in rest] == [b"7", b"8", b"9"]
    assert await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0) == []


async def test_a_waiting_fetch_is_answered_by_the_next_record(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["ledger"])
    (first,) = await bus.publish(topic, numbered(range(1)))
    waiting = asyncio.create_task(bus.fetch(topic, 0, first, max_records=5, wait=60))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await bus.publish(topic, numbered(range(1, 2)))
    async with asyncio.timeout(20):
        assert [r.value for r in await waiting] == [b"1"]
    assert await bus.fetch(topic, 0, await bus.end(topic, 0), max_records=5, wait=0.05) == []


async def test_another_number_of_partitions_is_refused(make_bus: MakeBus, topic: str) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 4, ["one"])
    await bus.declare(topic, 4, ["other"])
    for count_asked in (2, 8):
        with pytest.raises(TopicMismatch):
            await other.declare(topic, count_asked)
    assert await other.partitions(topic) == 4


async def test_a_topic_that_nobody_declared_is_unknown(bus: Bus, topic: str) -> None:
    with pytest.raises(TopicUnknown):
        await bus.partitions(topic)
    with pytest.raises(TopicUnknown):
        await bus.publish(topic, numbered(range(1)))
