"""A topic is made anew with another number of partitions; buses that knew the old one find out."""

from __future__ import annotations

import pytest

from common.events.bus import Bus, BusUnavailable, OffsetLost, Outgoing
from tests.common.bus_contract.conftest import MakeBus, numbered, read_all
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


@pytest.mark.parametrize("partitions", [1, 3])
async def test_a_replaced_topic_is_empty_and_its_partitions_have_another_birth(
    make_bus: MakeBus, topic: str, partitions: int
) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 2, ["ledger"])
    tokens = await other.publish(topic, numbered(range(5), partition=0))
    births = {await bus.birth(topic, partition) for partition in range(2)}
    await bus.replace(topic, partitions, ["ledger"])
    for asked in (bus, other):
        assert await asked.partitions(topic) == partitions
        assert births.isdisjoint({await asked.birth(topic, p) for p in range(partitions)})
        assert [await asked.end(topic, p) for p in range(partitions)] == [None] * partitions
        assert await asked.lag(topic, "ledger") == 0
    again = await bus.publish(topic, numbered(range(7), partition=0))
    assert set(again).isdisjoint(tokens)
    assert [r.value for r in await read_all(other, topic, 0)] == [b"%d" % n for n in range(7)]
    with pytest.raises(OffsetLost):
        await other.fetch(topic, 0, tokens[-1], max_records=1, wait=0)


async def test_a_topic_that_does_not_exist_is_made(bus: Bus, topic: str) -> None:
    await bus.replace(topic, 3, ["ledger"])
    assert await bus.partitions(topic) == 3


async def test_a_publisher_that_knew_another_number_of_partitions_goes_on(
    make_bus: MakeBus, topic: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 1, ["ledger"])
    await other.publish(topic, [Outgoing(b"before", partition=0)])
    await bus.replace(topic, 4, ["ledger"])

    async def published() -> bool:
        try:
            await other.publish(topic, [Outgoing(b"after", partition=3)])
        except (BusUnavailable, ValueError):
            return False
        return True

    await eventually(published)
    assert [r.value for r in await read_all(bus, topic, 3)] == [b"after"]
