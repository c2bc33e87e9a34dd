"""A tail shows every process what is new."""

from __future__ import annotations

import pytest

from common.events.bus import Bus, Record
from tests.common.bus_contract.conftest import MakeBus, Seen, numbered, running
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


async def test_a_tail_shows_new_records_to_every_process(make_bus: MakeBus, topic: str) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, numbered(range(5), partition=0))
    one, two = Seen(), Seen()

    async def failing(record: Record) -> None:
        await two(record)
        raise ValueError("a handler of a tail may fail")

    async with running(bus.tail([topic], one), other.tail([topic], failing)):
        tokens = await bus.publish(topic, numbered(range(5, 10), partition=0))
        await bus.commit(topic, 0, "readers", tokens[-1])
        await bus.publish(topic, numbered(range(10, 15), partition=1))
        await eventually(lambda: len(one.records) == len(two.records) == 10)
    for seen in (one, two):
        assert sorted(map(int, seen.values)) == list(range(5, 15))


async def test_a_tail_of_a_topic_that_comes_later_shows_all_of_it(bus: Bus, topic: str) -> None:
    tailed = Seen()
    tail = bus.tail([topic], tailed)
    async with running(tail):
        assert "TopicUnknown" in tail.status().detail
        await bus.declare(topic, 1)
        await bus.publish(topic, numbered(range(3)))
        await eventually(lambda: tailed.values == [b"0", b"1", b"2"])
        assert tail.status().ready
