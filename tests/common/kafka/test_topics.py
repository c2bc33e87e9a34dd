"""How topics are made, kept and replaced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from common.events.bus import LEDGER_TOPIC, OffsetLost, Outgoing
from common.events.kafka import KafkaBus
from tests.common.kafka.conftest import MakeBus

pytestmark = [pytest.mark.bus, pytest.mark.parametrize("server", ["kafka"], indirect=True)]

DAY = 24 * 3600 * 1000


async def settings_of(admin: Any, topic: str) -> dict[str, str]:
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}


async def test_what_groups_read_is_kept_for_a_week_whatever_its_size(
    bus: KafkaBus, admin: Any, topic: str
) -> None:
    await bus.declare(topic, 1)
    unread = await settings_of(admin, topic)
    assert int(unread["retention.bytes"]) > 0
    await bus.declare(topic, 1, ["late"])
    read = await settings_of(admin, topic)
    assert (read["retention.ms"], read["retention.bytes"]) == (str(7 * DAY), "-1")


async def test_no_file_of_the_ledgers_topic_is_open_for_longer_than_six_hours(
    bus: KafkaBus, admin: Any
) -> None:
    await bus.declare(LEDGER_TOPIC, 1, ["ledger"])
    assert (await settings_of(admin, LEDGER_TOPIC))["segment.ms"] == str(DAY // 4)


async def test_dead_letters_are_kept_for_a_month(bus: KafkaBus, admin: Any, topic: str) -> None:
    await bus.declare(topic + ".dead", 1)
    kept = await settings_of(admin, topic + ".dead")
    assert (kept["retention.ms"], kept["retention.bytes"]) == (str(30 * DAY), "-1")


async def test_many_may_make_a_topic_at_once(make_bus: MakeBus, topic: str) -> None:
    buses = [await make_bus() for _ in range(6)]
    await asyncio.gather(*(bus.declare(topic, 3, ["readers"]) for bus in buses))
    assert {await bus.birth(topic, 0) for bus in buses} == {await buses[0].birth(topic, 0)}


async def test_a_token_is_never_taken_for_one_of_the_topic_made_anew(
    make_bus: MakeBus, topic: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 1, ["ledger"])
    old = await bus.publish(topic, [Outgoing(b"%d" % n) for n in range(5)])
    assert len(await other.fetch(topic, 0, old[0], max_records=9, wait=0)) == 4
    waiting = asyncio.create_task(other.fetch(topic, 0, old[-1], max_records=9, wait=60))
    await asyncio.sleep(0.2)
    await bus.replace(topic, 2, ["ledger"])
    new = await bus.publish(topic, [Outgoing(b"%d" % n, partition=0) for n in range(9)])
    with pytest.raises(OffsetLost):
        await waiting
    for reader in (bus, other):
        with pytest.raises(OffsetLost):
            await reader.fetch(topic, 0, old[2], max_records=9, wait=0)
        assert await reader.partitions(topic) == 2
        assert await reader.end(topic, 0) == new[-1]
    assert await bus.lag(topic, "ledger") == 9
