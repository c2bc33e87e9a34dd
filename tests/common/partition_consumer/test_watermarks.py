"""The watermark of a partition: as far as all is committed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

import pytest

from common.clock import ManualClock
from common.database import Database
from common.events.bus import Bus
from tests.common.partition_consumer.conftest import Ledger, Make, caught_up, publish
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


async def test_the_watermark_moves_on_while_nothing_arrives(
    topic: str, make: Make, ledger: Ledger
) -> None:
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    consumer = await make(clock=clock, cadence=0.02)
    for _ in range(3):
        clock.advance(timedelta(seconds=1))
        for part in (0, 1):
            await eventually(partial(caught_up, consumer, part, clock.now()))
    assert consumer.caught_up_at(7) is None


async def test_the_watermark_waits_for_what_is_not_committed(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    consumer = await make(clock=clock, cadence=0.02)
    await eventually(lambda: consumer.caught_up_at(0) == clock.now())
    ledger.gate.clear()
    before = clock.now()
    await publish(bus, topic, range(3))
    clock.advance(timedelta(seconds=1))
    accepted_at = clock.now()
    await ledger.waiting.wait()
    clock.advance(timedelta(seconds=1))
    await eventually(lambda: consumer.caught_up_at(1) == clock.now())
    assert consumer.caught_up_at(0) == before
    assert await ledger.numbers(0) == []
    ledger.gate.set()
    await eventually(lambda: (consumer.caught_up_at(0) or before) > accepted_at)
    assert await ledger.numbers(0) == [0, 1, 2]


async def test_the_watermark_is_never_ahead_of_a_record_that_is_not_committed(
    bus: Bus, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    consumer = await make(cadence=0.01, max_records=5)
    accepted: dict[int, datetime] = {}
    done = False

    async def produce() -> None:
        for n in range(400):
            await publish(bus, topic, range(n, n + 1))
            accepted[n] = db.clock.now()

    async def watch() -> int:
        looks = 0
        while not done:
            known = dict(accepted)
            watermark = consumer.caught_up_at(0)
            if watermark is not None:
                there = set(await ledger.numbers(0))
                due = {n for n, at in known.items() if at < watermark}
                assert due <= there
                looks += bool(due)
            await asyncio.sleep(0)
        return looks

    watching = asyncio.create_task(watch())
    await produce()
    await eventually(lambda: (consumer.caught_up_at(0) or accepted[0]) > accepted[399])
    done = True
    assert await watching > 10
    assert await ledger.numbers(0) == list(range(400))


class Commits:
    """A bus that counts what it is told of how far partition 0 is."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.tokens: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def commit(self, topic: str, partition: int, group: str, token: str) -> None:
        await self._bus.commit(topic, partition, group, token)
        if partition == 0:
            self.tokens.append(token)


async def test_the_broker_is_told_how_far_a_partition_is_now_and_then_and_in_the_end(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    counting = Commits(bus)
    consumer = await make(bus=counting, cadence=0.01, max_records=1)
    began = monotonic()
    for n in range(60):
        await publish(bus, topic, range(n, n + 1))
        await eventually(partial(ledger.holds, 0, list(range(n + 1))))
    assert 0 < len(counting.tokens) <= 4 * (monotonic() - began) + 1
    await consumer.stop()
    assert counting.tokens[-1] == await bus.end(topic, 0)


class LateAnswers:
    """A bus whose answers about the end of partition 0 come only while ``gate`` is open."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def end(self, topic: str, partition: int) -> str | None:
        end = await self._bus.end(topic, partition)
        if partition == 0 and end is not None:
            self.asked.set()
            await self.gate.wait()
        return end


async def test_a_late_answer_about_the_end_does_not_hold_the_watermark(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    late = LateAnswers(bus)
    consumer = await make(bus=late, cadence=0.02)
    await eventually(lambda: consumer.caught_up_at(0) is not None)
    await publish(bus, topic, range(1))
    await late.asked.wait()
    await publish(bus, topic, range(1, 3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    accepted_at = ledger.now()
    late.gate.set()
    await eventually(lambda: (consumer.caught_up_at(0) or accepted_at) > accepted_at)


async def test_a_lag_that_cannot_be_read_does_not_end_the_watermarks(
    bus: Bus, topic: str, make: Make, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def lag(*_: str) -> int:
        asked.set()
        raise KeyError("a bug")

    monkeypatch.setattr(bus, "lag", lag)
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    consumer = await make(clock=clock, cadence=0.02)
    ledger.gate.clear()
    await publish(bus, topic, range(3))
    await asked.wait()
    ledger.gate.set()
    clock.advance(timedelta(seconds=1))
    await eventually(partial(caught_up, consumer, 0, clock.now()))
    assert consumer.status().live
