"""From when on a price holds, whatever a worker is doing when it is stated."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.database import Connection
from common.errors import Unavailable
from common.testing import silent_telemetry
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.store.prices import Stated, hold_prices
from tests.usage_tracker.conftest import MakeArrived, MakeRecord, layouts_of
from tests.usage_tracker.repricing.conftest import ORG, OTHER, World, many

pytestmark = pytest.mark.store


async def test_a_batch_is_priced_by_what_was_stated_before_it(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.prices.learn()
    stated = await world.state(usd=3)
    await world.count(record(*many(arrived, 3)))
    found = "SELECT DISTINCT price_version FROM events"
    assert await world.all(found) == [(f"organization/{stated.entry.id}",)]


async def test_a_price_that_is_stated_while_a_long_batch_is_counted_has_it_counted_anew(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = world.usage.append

    async def slow(connection: Connection, part: int, settled: Any) -> int:
        last = await append(connection, part, settled)
        await world.state(usd=3)
        return last

    with monkeypatch.context() as slowly:
        slowly.setattr(world.usage, "append", slow)
        with pytest.raises(Unavailable):
            await world.count(record(*many(arrived, 3)))
    assert (await world.windows())["events"] == 0
    await world.count(record(*many(arrived, 3)))
    assert (await world.windows())["unpriced_events"] == 0


async def test_a_price_that_is_stated_between_two_chunks_has_the_whole_batch_counted_anew(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = world.accounting.count
    world.worker = EventsConsumer(
        world.accounting, world.db, silent_telemetry(), RecentDeltas(), layouts_of(1), 1
    )

    async def and_state(*given: Any) -> Any:
        found = await count(*given)
        if not await world.actions.prices(ORG, None, None, 1):
            await world.state(usd=3)
        return found

    records = [record(*many(arrived, 3)), record(*many(arrived, 3))]
    monkeypatch.setattr(world.accounting, "count", and_state)
    with pytest.raises(Unavailable):
        await world.count(*records)
    assert (await world.windows())["events"] == 0
    await world.count(*records)
    assert (await world.windows())["unpriced_events"] == 0


async def test_a_price_of_another_organization_has_nothing_counted_anew(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = world.usage.append

    async def slow(*given: Any) -> int:
        last = await append(*given)
        await world.state()
        return last

    monkeypatch.setattr(world.usage, "append", slow)
    await world.count(record(*many(arrived, 3, org_id=OTHER)))
    assert (await world.windows())["events"] == 3


async def test_prices_that_are_stated_all_the_time_keep_no_batch_from_being_counted(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, stated = world.usage.append, list[asyncio.Task[Stated]]()

    async def slow(*given: Any) -> int:
        last = await append(*given)
        stated.append(asyncio.create_task(world.state(usd=len(stated) + 1)))
        await asyncio.wait(stated, timeout=0.5)
        return last

    monkeypatch.setattr(world.usage, "append", slow)
    with pytest.raises(Unavailable):
        await world.count(record(*many(arrived, 3)))
    await world.count(record(*many(arrived, 3)))
    first, second = await asyncio.gather(*stated)
    found = "SELECT DISTINCT price_version FROM events"
    assert await world.all(found) == [(f"organization/{first.entry.id}",)]
    assert second.entry.seq > first.entry.seq


async def test_whoever_stands_still_before_the_commit_commits_nothing_by_the_price_before(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    records = record(*many(arrived, 3))
    await world.worker.take(0)

    async def stand_still() -> None:
        async with world.db.session() as connection, connection.transaction():
            await world.worker.apply(connection, 0, [records])
            stating = asyncio.create_task(world.state(usd=3))
            _, waiting = await asyncio.wait([stating], timeout=0.3)
            assert waiting
            # The server gives up whoever asks for nothing.
            await stating

    with pytest.raises(Unavailable):
        await stand_still()
    assert (await world.windows())["events"] == 0
    await world.count(records)
    assert (await world.windows())["unpriced_events"] == 0


async def test_whoever_states_a_price_keeps_nobody_waiting_for_one_who_takes_long(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.worker.take(0)
    async with world.db.session() as slow, slow.transaction():
        await hold_prices(slow)
        stating = asyncio.create_task(world.state(usd=3))
        await asyncio.wait([stating], timeout=0.3)
        async with world.db.session() as quick, quick.transaction():
            await world.worker.apply(quick, 0, [record(*many(arrived, 3))])
        assert not stating.done()
    await stating
    await world.finish()
    assert (await world.windows())["unpriced_events"] == 0
