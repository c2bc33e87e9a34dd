"""What streams keep for backups, and when it goes."""

from __future__ import annotations

from typing import Any

import pytest

from common.events.bus import BACKUPS, LEDGER_TOPIC, BusFull, Outgoing
from common.events.redis_streams import RedisStreamsBus
from common.events.redis_streams.keys import group_field, groups_key, topic_key
from common.testing import silent_telemetry
from tests.common.brokers import RedisStreams
from tests.common.redis_streams.conftest import KILOBYTE, fill

pytestmark = pytest.mark.bus


async def kept(bus: RedisStreamsBus, topic: str) -> list[str]:
    """The tokens of all records that partition 0 still holds."""
    found: list[str] = []
    while batch := await bus.fetch(topic, 0, found[-1] if found else None, max_records=9, wait=0):
        found += [record.token for record in batch]
    return found


async def test_what_backups_need_is_kept_until_there_is_no_room_for_it(
    broker: RedisStreams, topic: str
) -> None:
    bus = RedisStreamsBus(broker.address, telemetry=silent_telemetry(), max_records=200)
    await bus.declare(topic, 1, ["ledger", BACKUPS])
    tokens: list[str] = []
    for _ in range(20):
        tokens += await bus.publish(topic, [Outgoing(b"x")] * 10)
        await bus.commit(topic, 0, "ledger", tokens[-1])
    assert await kept(bus, topic) == tokens
    await bus.commit(topic, 0, BACKUPS, tokens[120])
    tokens += await bus.publish(topic, [Outgoing(b"x")] * 100)
    assert await kept(bus, topic) == tokens[121:]
    # A ledger that counts is not stopped by backups that nobody takes.
    tokens += await bus.publish(topic, [Outgoing(b"x")] * 100)
    assert await kept(bus, topic) == tokens[200:]
    with pytest.raises(BusFull):
        await bus.publish(topic, [Outgoing(b"x")])
    await bus.stop()


async def test_the_room_for_what_backups_need_is_told_from_the_first_backup_on(
    broker: RedisStreams, topic: str
) -> None:
    bus = RedisStreamsBus(broker.address, telemetry=silent_telemetry(), max_records=100)
    await bus.declare(topic, 2, ["ledger"])
    records = [Outgoing(b"x", partition=1)] * 40
    tokens = await bus.publish(topic, records)
    assert await bus.room(topic, BACKUPS) is None
    await bus.declare(topic, 2, [BACKUPS])
    await bus.commit(topic, 1, "ledger", tokens[-1])
    assert await bus.room(topic, BACKUPS) == pytest.approx(0.6)
    await bus.commit(topic, 1, BACKUPS, tokens[29])
    assert await bus.room(topic, BACKUPS) == pytest.approx(0.9)
    # Each counts at once, so that what backups need gives way.
    for _ in range(3):
        (*_, last) = await bus.publish(topic, records)
        await bus.commit(topic, 1, "ledger", last)
    assert await bus.room(topic, BACKUPS) == 0
    await bus.declare(topic, 2, [BACKUPS])
    await bus.commit(topic, 1, BACKUPS, last)
    assert await bus.room(topic, BACKUPS) == 1
    await bus.replace(topic, 3, ["ledger"])
    assert await bus.room(topic, BACKUPS) == 0
    await bus.stop()


async def test_what_was_dropped_before_the_first_backup_takes_no_room_from_it(
    broker: RedisStreams, topic: str
) -> None:
    bus = RedisStreamsBus(broker.address, telemetry=silent_telemetry(), max_records=100)
    await bus.declare(topic, 1, ["ledger"])
    for _ in range(5):
        tokens = await bus.publish(topic, [Outgoing(b"x")] * 60)
        await bus.commit(topic, 0, "ledger", tokens[-1])
    await bus.declare(topic, 1, [BACKUPS])
    # Nothing was committed for it yet, as while the first backup runs and after it has failed.
    assert await bus.room(topic, BACKUPS) == pytest.approx(0.4)
    await bus.stop()


async def test_the_room_is_told_of_a_hold_that_the_topic_does_not_remember(
    bus: RedisStreamsBus, server: Any, topic: str
) -> None:
    await bus.declare(topic, 2, ["ledger", BACKUPS])
    await server.hdel(topic_key(topic), group_field(BACKUPS))
    assert await bus.room(topic, BACKUPS) == 1
    await server.hdel(groups_key(topic, 1), BACKUPS)
    assert await bus.room(topic, BACKUPS) == 0
    await server.hdel(groups_key(topic, 0), BACKUPS)
    assert await bus.room(topic, BACKUPS) is None


@pytest.mark.usefixtures("little_memory")
async def test_what_backups_need_goes_before_the_server_has_no_memory(
    bus: RedisStreamsBus, topic: str
) -> None:
    await bus.declare(topic, 1, ["ledger", BACKUPS])
    first = await fill(bus, topic)
    await bus.commit(topic, 0, "ledger", first[-1])
    second = await bus.publish(topic, [Outgoing(bytes(100 * KILOBYTE), partition=0)])
    assert await kept(bus, topic) == second


@pytest.mark.usefixtures("little_memory")
async def test_what_backups_need_goes_for_a_publisher_that_knows_another_topic_alone(
    broker: RedisStreams, bus: RedisStreamsBus, topic: str
) -> None:
    await bus.declare(LEDGER_TOPIC, 1, ["ledger"])
    tokens = await fill(bus, LEDGER_TOPIC)
    await bus.declare(LEDGER_TOPIC, 1, [BACKUPS])
    await bus.commit(LEDGER_TOPIC, 0, "ledger", tokens[-1])
    other = RedisStreamsBus(broker.address, telemetry=silent_telemetry())
    await other.declare(topic, 1, ["readers"])
    await other.publish(topic, [Outgoing(bytes(100 * KILOBYTE))])
    assert await kept(bus, LEDGER_TOPIC) == []
    await other.stop()


async def test_a_group_that_is_forgotten_keeps_nothing(
    broker: RedisStreams, bus: RedisStreamsBus, topic: str
) -> None:
    await bus.declare(topic, 1)
    await bus.declare(topic, 1, [BACKUPS])
    tokens = await bus.publish(topic, [Outgoing(b"x")] * 3)
    await bus.forget(topic, BACKUPS)
    assert await bus.room(topic, BACKUPS) is None
    small = RedisStreamsBus(broker.address, telemetry=silent_telemetry(), kept=2)
    tokens += await small.publish(topic, [Outgoing(b"x")])
    assert await kept(bus, topic) == tokens[2:]
    await small.stop()
