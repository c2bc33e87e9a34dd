"""Windows from a real broker into a real PostgreSQL, and what a deletion leaves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from common.clock import ManualClock, SystemClock
from common.database import Scope
from common.events.bus import Record
from common.events.envelope import envelope_for
from common.events.ledger import RecordRefused
from mindweave.account.v1.events_pb2 import OrgDeleted
from services.analytics.consumer import Forgetting, WindowsConsumer
from services.analytics.store import Appended, DeletedOrgs, RollupStore

pytestmark = pytest.mark.store
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("value", [b"", b"{}", b"\x80", b"nonsense", b"\xc1"])
async def test_a_record_that_is_no_window_is_refused_and_named(service_database, value):
    store = RollupStore(await service_database("analytics"))
    consumer = WindowsConsumer(store, SystemClock(), partitions=1)
    with pytest.raises(RecordRefused, match=r"usage\.windows/0 17-0"):
        await consumer.append(None, 0, [Record("usage.windows", 0, "17-0", "", value, {})])


async def test_a_deletion_is_noted_at_once_and_carried_out_when_all_have_seen_the_note(
    service_database,
):
    db, clock = await service_database("analytics"), ManualClock(NOW)
    forgetting = Forgetting(DeletedOrgs(db), clock, partitions=4)
    event = OrgDeleted(org_id=str(uuid4()))
    envelope = envelope_for(event, "account", clock)
    for _ in range(2):
        async with db.change(Scope(), call=None) as change:
            await forgetting.org_deleted(change, event, envelope)
    assert await forgetting.step() == 1
    clock.advance(timedelta(minutes=3))
    assert await forgetting.step() == 1
    clock.advance(timedelta(seconds=1))
    assert await forgetting.step() == 0


class Moves:
    """A store in which something arrives whenever something is added up."""

    def __init__(self) -> None:
        self.gathered: list[int] = []
        self.rolled_up: list[tuple[int, datetime]] = []
        self.consumer: WindowsConsumer | None = None
        self.much: dict[int, int] = {}
        self.broken: set[int] = set()

    async def gather(self, part: int) -> int:
        self.gathered.append(part)
        assert self.consumer is not None
        await self.consumer.appended(part, Appended(1, ()))
        return 1

    async def waiting(self, part: int, before: datetime) -> int:
        return self.much.get(part, 0)

    async def roll_up(self, part: int, before: datetime) -> int:
        self.rolled_up.append((part, before))
        if part in self.broken:
            raise InterruptedError
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


async def test_much_that_is_over_does_not_wait_for_its_minute() -> None:
    moves, clock = Moves(), ManualClock(NOW)
    moves.consumer = consumer = WindowsConsumer(moves, clock, partitions=2)
    await consumer.roll_up()
    moves.much[1] = 100_000
    clock.advance(timedelta(seconds=5))
    await consumer.roll_up()
    assert [part for part, _ in moves.rolled_up] == [0, 1, 1]


async def test_a_partition_that_fails_keeps_no_other_from_its_turn() -> None:
    moves, clock = Moves(), ManualClock(NOW)
    moves.consumer = consumer = WindowsConsumer(moves, clock, partitions=3)
    moves.broken = {1}
    for _ in range(2):
        with pytest.raises(InterruptedError):
            await consumer.roll_up()
    assert [part for part, _ in moves.rolled_up] == [0, 1, 2] * 2
    moves.broken = set()
    await consumer.roll_up()
    clock.advance(timedelta(seconds=1))
    await consumer.roll_up()
    assert len(moves.rolled_up) == 9
