"""Windows from a real broker into a real PostgreSQL, and what a deletion leaves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from common.clock import ManualClock, SystemClock
from common.events.bus import Record
from common.events.ledger import RecordRefused
from services.analytics.consumer import WindowsConsumer
from services.analytics.store import Appended, RollupStore

pytestmark = pytest.mark.store
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("value", [b"", b"{}", b"\x80", b"nonsense", b"\xc1"])
async def test_a_record_that_is_no_window_is_refused_and_named(service_database, value):
    store = RollupStore(await service_database("analytics"))
    consumer = WindowsConsumer(store, SystemClock(), partitions=1)
    with pytest.raises(RecordRefused, match=r"usage\.windows/0 17-0"):
        await consumer.append(None, 0, [Record("usage.windows", 0, "17-0", "", value, {})])


class Moves:
    """A store in which something arrives whenever something is added up."""

    def __init__(self) -> None:
        self.gathered: list[int] = []
        self.rolled_up: list[tuple[int, datetime]] = []
        self.consumer: WindowsConsumer | None = None

    async def gather(self, part: int) -> int:
        self.gathered.append(part)
        assert self.consumer is not None
        await self.consumer.appended(part, Appended(1, {}))
        return 1

    async def roll_up(self, part: int, before: datetime) -> int:
        self.rolled_up.append((part, before))
        return 0

    def remember(self, appended: Appended) -> None: ...


async def test_adding_up_ends_though_more_arrives_and_minutes_that_are_over_move_on_each_minute():
    moves, clock = Moves(), ManualClock(NOW)
    moves.consumer = consumer = WindowsConsumer(moves, clock, partitions=2)
    for seconds in (0, 5, 54, 1, 5):
        clock.advance(timedelta(seconds=seconds))
        async with asyncio.timeout(5):
            assert await consumer.roll_up() == 2

    assert moves.gathered == [0, 1] * 5
    over = [NOW + timedelta(seconds=seconds) - timedelta(minutes=2) for seconds in (0, 60)]
    assert moves.rolled_up == [(0, over[0]), (1, over[0]), (0, over[1]), (1, over[1])]
