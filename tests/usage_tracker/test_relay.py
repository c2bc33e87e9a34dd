"""The relay of ``usage.windows`` when it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import cast
from uuid import UUID, uuid4

import numpy as np
import pytest

from common.clock import Clock, ManualClock, SystemClock
from common.columns import Column
from common.events.bus import Bus, Outgoing
from common.events.envelope import unpack
from common.sketches import Sketches
from common.testing import silent_telemetry
from services.analytics.domain.windows import Windows
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.consumer.relay import WindowsRelay
from services.usage_tracker.domain.blocks import Numbered
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.records import windows_partition
from services.usage_tracker.domain.settling import settle
from services.usage_tracker.domain.windows import DIMENSIONS, SUMS, Deltas
from services.usage_tracker.store import BlockStore, UsageStore
from tests.analytics.deltas import rows_of
from tests.usage_tracker.conftest import MakeArrived, layouts_of
from tests.usage_tracker.plain import batch_of

pytestmark = pytest.mark.unit


def one_delta(number: int) -> Numbered:
    one = np.ones(1, np.int64)
    dimensions = dict.fromkeys(DIMENSIONS, Column([None], one - 1))
    deltas = Deltas(
        one,
        dimensions | {"org_id": Column([UUID(int=1).bytes], one - 1)},
        dict.fromkeys(SUMS, one),
        Sketches(one[:0], one[:0], one - 1),
    )
    return Numbered(number, deltas)


class Backlog:
    """Deltas without end."""

    def __init__(self) -> None:
        self._numbers = count(1)

    async def unsent(self, part: int, after: int) -> list[Numbered]:
        return [one_delta(next(self._numbers)) for _ in range(8)]

    async def sent_up_to(self, part: int) -> int:
        return 0

    async def sent(self, part: int, seq: int) -> None: ...

    async def note_watermarks(self, watermarks: Mapping[int, datetime]) -> None: ...


class Empty(Backlog):
    """Nothing beyond what is in memory; knows up to which number was sent."""

    def __init__(self) -> None:
        self.last = 0

    async def unsent(self, part: int, after: int) -> list[Numbered]:
        return []

    async def sent(self, part: int, seq: int) -> None:
        self.last = seq


class Noting(Empty):
    """Counts how often watermarks are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = 0

    async def note_watermarks(self, watermarks: Mapping[int, datetime]) -> None:
        self.noted += 1


class Stored(Empty):
    """What is in the database alone."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Numbered] = []

    async def unsent(self, part: int, after: int) -> list[Numbered]:
        return [numbered for numbered in self.waiting if numbered.first > after and part == 0]


class Taking:
    """A bus that takes everything."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.taken = asyncio.Event()

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        await asyncio.sleep(0)
        self.values += [record.value for record in records]
        self.taken.set()
        return ["1-1" for _ in records]


class CaughtUp:
    def held(self) -> list[int]:
        return [0, 1]

    def caught_up_at(self, part: int) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC)


def relay_of(
    bus: Taking, store: Backlog, recent: RecentDeltas, clock: Clock | None = None
) -> WindowsRelay:
    return WindowsRelay(
        bus=cast(Bus, bus),
        store=cast(UsageStore, store),
        blocks=cast(BlockStore, store),
        progress=CaughtUp(),
        clock=clock or SystemClock(),
        telemetry=silent_telemetry(),
        partitions=2,
        skew=timedelta(),
        layouts=layouts_of(2),
        recent=recent,
    )


async def test_a_stop_does_not_wait_for_a_backlog_and_leaves_its_watermark_unsent() -> None:
    bus = Taking()
    relay = relay_of(bus, Backlog(), RecentDeltas())
    await relay.start()
    await bus.taken.wait()
    async with asyncio.timeout(5):
        await relay.stop()
    assert not any(b"watermarks\x81" in value for value in bus.values)


async def test_a_clock_that_is_set_back_does_not_stop_watermarks_from_being_sent_and_noted() -> (
    None
):
    bus, store = Taking(), Noting()
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    relay = relay_of(bus, store, RecentDeltas(), clock)
    await relay.step()
    sent = len(bus.values)

    await relay.step()
    assert (len(bus.values), store.noted) == (sent, 1)
    clock.advance(-timedelta(hours=1))
    await relay.step()
    assert (len(bus.values), store.noted) == (2 * sent, 2)


async def test_what_many_commits_left_goes_as_one_record_to_each_partition(
    arrived: MakeArrived,
) -> None:
    recent, expected = RecentDeltas(), []
    orgs = [UUID(int=n).bytes for n in range(1, 5)]
    number = 1
    for _ in range(3):
        batch = batch_of([arrived(org_id=org, event_id=uuid4().bytes) for org in orgs])
        deltas = settle(batch, {}, PriceBook.bundled(), 1).deltas
        recent.add(0, Numbered(number, deltas))
        costs, org_ids = deltas.sums["cost_nano"], deltas.dimensions["org_id"]
        for index, cost in enumerate(costs.tolist()):
            expected.append((number + index, org_ids.at(index), cost))
        number += len(deltas)
    bus, store = Taking(), Empty()

    await relay_of(bus, store, recent).step()

    found = [record for value in bus.values if (record := unpack(value, Windows)[1]).columns]
    places = {windows_partition(UUID(bytes=org), 2) for org in orgs}
    assert len(found) == len(places)
    told = []
    for windows in found:
        assert windows.columns is not None
        rows = rows_of(windows.columns)
        assert rows == sorted(rows, key=lambda row: row["seq"])
        told += [(row["seq"], row["org_id"], row["cost_nano"]) for row in rows]
    assert sorted(told) == expected
    assert store.last == number - 1


async def test_how_far_deltas_were_sent_is_noted_now_and_then_and_when_it_stops() -> None:
    bus, store, recent = Taking(), Empty(), RecentDeltas()
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    relay = relay_of(bus, store, recent, clock)
    noted = []
    for number in (1, 2, 3):
        recent.add(0, one_delta(number))
        await relay.step()
        noted.append(store.last)
        clock.advance(timedelta(seconds=1.5))
    recent.add(0, one_delta(4))
    await relay.step()
    assert noted == [1, 1, 3]
    await relay.stop()
    assert store.last == 4


async def test_where_nothing_is_sent_watermarks_are_fewer() -> None:
    bus, store, recent = Taking(), Empty(), RecentDeltas()
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    relay = relay_of(bus, store, recent, clock)

    async def watermarks(seconds: float) -> int:
        before = told(bus)
        for _ in range(round(seconds * 10)):
            clock.advance(timedelta(seconds=0.1))
            await relay.step()
        return told(bus) - before

    assert await watermarks(2) == 4
    for number in range(1, 21):
        recent.add(0, one_delta(number))
        await watermarks(0.1)
    assert told(bus) == 4 + 20


async def test_a_watermark_is_not_ahead_of_deltas_that_are_in_the_database_alone() -> None:
    bus, store, recent = Taking(), Stored(), RecentDeltas()
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    relay = relay_of(bus, store, recent, clock)
    await relay.step()
    store.waiting.append(one_delta(1))
    before = len(bus.values)
    while len(bus.values) == before:
        clock.advance(timedelta(seconds=0.1))
        await relay.step()
    first, *others = [unpack(value, Windows)[1] for value in bus.values[before:]]
    assert first.columns is not None
    assert any(windows.watermarks for windows in others)


def told(bus: Taking) -> int:
    """How often watermarks were sent, to each of two partitions."""
    return sum(bool(unpack(value, Windows)[1].watermarks) for value in bus.values) // 2
