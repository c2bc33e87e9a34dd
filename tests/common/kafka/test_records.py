"""Publishing and reading where the broker, or a caller, makes it hard."""

from __future__ import annotations

import asyncio

import psutil
import pytest
from aiokafka.errors import KafkaError

from common.events.bus import BusUnavailable, Outgoing
from common.events.kafka import KafkaBus

pytestmark = [pytest.mark.bus, pytest.mark.parametrize("server", ["kafka"], indirect=True)]

MEGABYTE = 1024 * 1024


async def test_a_batch_of_records_is_read_in_parts_of_any_size(bus: KafkaBus, topic: str) -> None:
    await bus.declare(topic, 1)
    tokens = await bus.publish(topic, [Outgoing(b"%d" % n) for n in range(50)])
    found: list[str] = []
    while part := await bus.fetch(topic, 0, found[-1] if found else None, max_records=7, wait=0):
        assert len(part) <= 7
        found += [record.token for record in part]
    assert found == tokens
    again = await bus.fetch(topic, 0, tokens[30], max_records=7, wait=0)
    assert [record.token for record in again] == tokens[31:38]


async def test_large_records_do_not_all_come_at_once(bus: KafkaBus, topic: str) -> None:
    await bus.declare(topic, 1)
    for _ in range(12):
        await bus.publish(topic, [Outgoing(bytes(MEGABYTE))])
    assert 1 <= len(await bus.fetch(topic, 0, None, max_records=12, wait=0)) < 12


async def test_a_record_that_is_too_large_is_refused_and_the_next_one_goes(
    bus: KafkaBus, topic: str
) -> None:
    await bus.declare(topic, 1)
    with pytest.raises(KafkaError):
        await bus.publish(topic, [Outgoing(bytes(17 * MEGABYTE))])
    (token,) = await bus.publish(topic, [Outgoing(b"x")])
    assert await bus.end(topic, 0) == token


async def test_a_partition_that_does_not_exist_is_refused(bus: KafkaBus, topic: str) -> None:
    await bus.declare(topic, 2)
    with pytest.raises(ValueError, match="has 2 partitions"):
        await bus.publish(topic, [Outgoing(b"x", partition=0), Outgoing(b"x", partition=2)])
    assert await bus.end(topic, 0) is None


async def test_many_callers_share_a_few_connections(bus: KafkaBus, topic: str) -> None:
    await bus.declare(topic, 4)
    await asyncio.gather(*(bus.publish(topic, [Outgoing(b"x", key=str(n))]) for n in range(300)))
    assert await bus.lag(topic, "nobody") == 300
    port = int(bus.cluster.access.bootstrap.rpartition(":")[2])
    ours = [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port]
    assert len(ours) < 10


async def test_a_cancelled_fetch_spoils_no_connection(bus: KafkaBus, topic: str) -> None:
    await bus.declare(topic, 1, ["ledger"])
    tokens = await bus.publish(topic, [Outgoing(b"x")] * 3)
    for moment in range(100):
        fetching = asyncio.create_task(
            bus.fetch(topic, 0, tokens[-1], max_records=3, wait=0.002 * (moment % 5))
        )
        for _ in range(moment % 40):
            await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.wait([fetching])
        assert fetching.cancelled() or fetching.result() == []
    assert len(await bus.fetch(topic, 0, None, max_records=3, wait=0)) == 3
    assert await bus.end(topic, 0) == tokens[-1]


@pytest.mark.parametrize("code", [-1, 29, 30])
def test_what_only_people_can_mend_is_unavailable_meanwhile(bus: KafkaBus, code: int) -> None:
    with pytest.raises(BusUnavailable):
        bus.cluster.check("fetch", code, "topic")
