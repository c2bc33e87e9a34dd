"""Members of a group keep their name, and standing still is noticed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.events.bus import Outgoing, Record
from common.events.kafka import KafkaBus
from tests.common.brokers import Broker
from tests.common.kafka.conftest import MakeBus
from tests.common.waiting import eventually
from tests.conftest import ROOT

pytestmark = [pytest.mark.bus, pytest.mark.parametrize("server", ["kafka"], indirect=True)]


async def test_a_process_that_was_killed_gets_its_partitions_back_at_once(
    bus: KafkaBus, broker: Broker, make_bus: MakeBus, topic: str, tmp_path: Path
) -> None:
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, [Outgoing(b"%d" % n, partition=n % 2) for n in range(4)])
    file = tmp_path / "seen"
    given = {
        "driver": broker.driver,
        "address": broker.address,
        "lease": 300.0,
        "topic": topic,
        "group": "readers",
        "file": str(file),
        "pause": 0,
        "options": {"instance": "worker-1"},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.common.consumer_process", json.dumps(given), cwd=ROOT
    )
    await eventually(lambda: file.exists() and file.read_text().count("done") == 4)
    process.kill()
    await process.wait()
    seen: list[bytes] = []

    async def handle(record: Record) -> None:
        seen.append(record.value)

    again = (await make_bus(lease=300.0, instance="worker-1")).subscribe([topic], "readers", handle)
    await again.start()
    await bus.publish(topic, [Outgoing(b"next", partition=n) for n in range(2)])
    await eventually(lambda: seen.count(b"next") == 2)
    await again.stop()


async def test_the_groups_of_kafka_have_members_that_keep_their_name(
    make_bus: MakeBus, admin: Any, topic: str
) -> None:
    bus = await make_bus(instance="worker-7")
    await bus.declare(topic, 1, ["readers"])

    async def handle(_: Record) -> None:
        """Nothing to do."""

    reading = bus.subscribe([topic], "readers", handle)
    await reading.start()
    await eventually(lambda: reading.status().ready)
    (answer,) = await admin.describe_consumer_groups([f"readers.{topic}"])
    ((_, _, state, _, rule, members, *_),) = answer.groups
    assert (state, rule, len(members)) == ("Stable", "mindweave-ranks", 1)
    assert members[0][0].startswith("worker-7")
    await reading.stop()


class Silent:
    """Finds nothing, and says that nothing is wrong."""

    async def fetch(self, *_: Any, wait: float, **__: Any) -> list[Record]:
        await asyncio.sleep(min(wait, 0.05))
        return []


async def test_a_reader_that_stands_still_is_healed_and_then_not_live(
    make_bus: MakeBus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, other = await make_bus(stalled_after=3.0, lease=6.0), await make_bus()
    await bus.declare(topic, 1, ["readers"])
    seen: list[bytes] = []

    async def handle(record: Record) -> None:
        seen.append(record.value)

    reading = bus.subscribe([topic], "readers", handle)
    with monkeypatch.context() as patch:
        patch.setattr(bus, "fetch", Silent().fetch)
        await reading.start()
        await eventually(lambda: reading.status().ready)
        losses = bus.cluster.losses
        await other.publish(topic, [Outgoing(b"x")])
        await eventually(lambda: bus.cluster.losses > losses)
        await eventually(lambda: not reading.status().live)
        assert "1 records wait" in reading.status().detail
    await eventually(lambda: seen == [b"x"])
    await eventually(lambda: reading.status().live and reading.status().ready)
    await reading.stop()
