"""Windows from a real broker into a real PostgreSQL, and what a deletion leaves."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from common.clock import SystemClock
from common.events.bus import Record
from common.events.ledger import RecordRefused
from services.analytics.consumer import WindowsConsumer
from services.analytics.store import Appended, RollupStore

pytestmark = pytest.mark.store


@pytest.mark.parametrize("value", [b"", b"{}", b"\x80", b"nonsense", b"\xc1"])
async def test_a_record_that_is_no_window_is_refused_and_named(service_database, value):
    store = RollupStore(await service_database("analytics"))
    consumer = WindowsConsumer(store, SystemClock(), partitions=1)
    with pytest.raises(RecordRefused, match=r"usage\.windows/0 17-0"):
        await consumer.append(None, 0, [Record("usage.windows", 0, "17-0", "", value, {})])


async def test_adding_up_ends_though_more_arrives_meanwhile():
    class Busy:
        moved: ClassVar[list[int]] = []

        async def gather(self, part: int) -> int:
            self.moved.append(part)
            await consumer.appended(part, Appended(1, {}))
            return 1

        def remember(self, appended: Appended) -> None: ...

    consumer = WindowsConsumer(Busy(), SystemClock(), partitions=2)
    async with asyncio.timeout(5):
        assert await consumer.gather() == 2
    assert Busy.moved == [0, 1]
