"""How long a record is kept, and what is said when it is gone or finds no room."""

from __future__ import annotations

import pytest

from common.events.bus import Bus, BusFull, OffsetLost, Outgoing
from tests.common.brokers import BOUNDED, Broker
from tests.common.bus_contract.conftest import MakeBus, numbered, read_all

pytestmark = pytest.mark.bus
bounded = pytest.mark.parametrize("server", BOUNDED, indirect=True)


@bounded
async def test_a_full_partition_refuses_the_whole_call_and_loses_nothing(
    make_bus: MakeBus, topic: str
) -> None:
    bus = await make_bus(max_records=10)
    await bus.declare(topic, 2, ["fast", "slow"])
    tokens = await bus.publish(topic, numbered(range(10), partition=0))
    mixed = [Outgoing(b"a", partition=1), Outgoing(b"b", partition=0), Outgoing(b"c", partition=1)]
    with pytest.raises(BusFull):
        await bus.publish(topic, mixed)
    assert await bus.end(topic, 1) is None
    await bus.commit(topic, 0, "fast", tokens[-1])
    with pytest.raises(BusFull):
        await bus.publish(topic, mixed)
    assert [r.value for r in await read_all(bus, topic, 0)] == [b"%d" % n for n in range(10)]

    await bus.commit(topic, 0, "slow", tokens[0])
    await bus.publish(topic, mixed)
    with pytest.raises(BusFull):
        await bus.publish(topic, mixed)
    left = [r.value for r in await read_all(bus, topic, 0, tokens[0])]
    assert left == [*(b"%d" % n for n in range(1, 10)), b"b"]
    assert [r.value for r in await read_all(bus, topic, 1)] == [b"a", b"c"]


@bounded
async def test_records_are_kept_until_every_group_has_committed(
    make_bus: MakeBus, topic: str
) -> None:
    bus = await make_bus(max_records=100)
    await bus.declare(topic, 1, ["one", "other"])
    tokens = await bus.publish(topic, numbered(range(100)))
    await bus.commit(topic, 0, "one", tokens[-1])
    assert len(await read_all(bus, topic, 0)) == 100
    await bus.commit(topic, 0, "other", tokens[49])
    await bus.publish(topic, numbered(range(100, 150)))
    kept = [int(r.value) for r in await read_all(bus, topic, 0, tokens[49])]
    assert kept == list(range(50, 150))


@bounded
async def test_a_topic_without_groups_keeps_its_last_records(make_bus: MakeBus, topic: str) -> None:
    bus = await make_bus(kept=50, max_records=10)
    await bus.declare(topic, 1)
    for first in range(0, 200, 20):
        await bus.publish(topic, numbered(range(first, first + 20)))
    kept = [int(r.value) for r in await read_all(bus, topic, 0)]
    assert kept[-50:] == list(range(150, 200))
    assert len(kept) < 200


async def test_an_offset_before_the_first_record_is_lost(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["ledger"])
    tokens = await bus.publish(topic, numbered(range(10)))
    await broker.forget(topic, 0, tokens[4])
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[2], max_records=5, wait=0)
    assert [r.value for r in await read_all(bus, topic, 0, tokens[4])] == [
        b"%d" % n for n in range(5, 10)
    ]
    await broker.forget(topic, 0, tokens[-1])
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[4], max_records=5, wait=0)
    assert await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0) == []
