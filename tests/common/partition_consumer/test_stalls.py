"""A consumer that stands still while records wait is not live; whatever else happens, it is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from common.database import Connection
from common.errors import Unavailable
from common.events.bus import Bus, Record
from tests.common.partition_consumer.conftest import Ledger, Make, publish
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


class Deaf:
    """A bus whose reader stops bringing records and says nothing, while ``deaf``."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.deaf = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def fetch(
        self, topic: str, partition: int, after: str | None, *, max_records: int, wait: float
    ) -> list[Record]:
        records = await self._bus.fetch(
            topic, partition, after, max_records=max_records, wait=min(wait, 0.1)
        )
        return [] if self.deaf else records


async def test_a_stalled_consumer_is_not_live_until_it_reads_again(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    deaf = Deaf(bus)
    consumer = await make(bus=deaf, stall=0.5)
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    deaf.deaf = True
    await publish(bus, topic, range(3, 6))
    await eventually(lambda: not consumer.status().live)
    status = consumer.status()
    assert not status.ready
    assert f"{topic}/0: records wait, and none has come for 0.5 s" in status.detail
    assert f"{topic}/1" not in status.detail
    deaf.deaf = False
    await eventually(partial(ledger.holds, 0, list(range(6))))
    await eventually(lambda: consumer.status().live and consumer.status().ready)


async def test_one_that_fails_again_and_again_is_live(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    failures = 0

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        nonlocal failures
        failures += 1
        raise Unavailable("not yet")

    consumer = await make(apply=apply, stall=0.5)
    await publish(bus, topic, range(3))
    await eventually(lambda: failures > 12)
    assert consumer.status().live
    assert not consumer.status().ready


async def test_one_for_which_nothing_arrives_is_live(
    topic: str, make: Make, ledger: Ledger
) -> None:
    consumer = await make(stall=0.1)
    await eventually(lambda: consumer.caught_up_at(0) is not None)
    begun = ledger.now()
    await eventually(lambda: (ledger.now() - begun).total_seconds() > 0.5)
    assert consumer.status().live
