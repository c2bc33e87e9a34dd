"""A broker that has lost its last records, as after a failure of the machine."""

from __future__ import annotations

import pytest

from common.events.bus import BusUnavailable, OffsetLost, Outgoing
from common.events.kafka import KafkaBus
from tests.common.brokers import OwnKafka
from tests.common.waiting import eventually

pytestmark = [pytest.mark.bus, pytest.mark.parametrize("server", ["kafka"], indirect=True)]


async def publish(bus: KafkaBus, topic: str, numbers: range) -> list[str]:
    """Each as a batch of its own."""
    return [(await bus.publish(topic, [Outgoing(b"%d" % n)]))[0] for n in numbers]


async def back(bus: KafkaBus, broker: OwnKafka, topic: str) -> None:
    broker.start()

    async def serves() -> bool:
        try:
            await bus.end(topic, 0)
        except BusUnavailable:
            return False
        return True

    await eventually(serves)


async def test_records_at_offsets_of_others_that_were_read_are_not_taken_for_what_follows(
    bus: KafkaBus, broker: OwnKafka, topic: str
) -> None:
    await bus.declare(topic, 1, ["ledger"])
    tokens = await publish(bus, topic, range(10))
    read = await bus.fetch(topic, 0, None, max_records=100, wait=1)
    assert [record.token for record in read] == tokens
    broker.lose(topic, 0, tokens[5])
    await back(bus, broker, topic)
    assert await bus.end(topic, 0) == tokens[5]
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, read[-1].place, max_records=100, wait=0)
    assert await bus.fetch(topic, 0, read[5].place, max_records=100, wait=0) == []

    # Fewer than were lost, as many, and more.
    again: list[str] = []
    for count in (3, 1, 4):
        again += await publish(bus, topic, range(count))
        with pytest.raises(OffsetLost):
            await bus.fetch(topic, 0, read[-1].place, max_records=100, wait=0)
    assert again[:4] == tokens[6:]
    found = await bus.fetch(topic, 0, read[5].place, max_records=100, wait=0)
    assert [record.token for record in found] == again
