"""Pricing anew on a real PostgreSQL: exact over kills, nothing overwritten, all parts agree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from common.database import Database, Scope
from common.events.ledger.offsets import Fenced, Offsets
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.store import PriceStore
from tests.usage_tracker.conftest import MakeArrived, MakeRecord
from tests.usage_tracker.deltas import add_up, waiting
from tests.usage_tracker.repricing.conftest import (
    DAY,
    HAIKU,
    MONEY,
    NOW,
    ORG,
    OTHER,
    OWN,
    World,
    many,
)

pytestmark = pytest.mark.store


async def test_a_price_that_arrives_prices_what_was_without_one_and_nothing_else(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    without = many(arrived, 300)
    early = many(arrived, 3, at=NOW - 2 * DAY)
    others = many(arrived, 4, org_id=OTHER)
    await world.count(record(*without, *early, *others, *many(arrived, 5, model=HAIKU)))
    rows = await world.all("SELECT * FROM events ORDER BY event_id")
    before = await world.windows()
    assert before["unpriced_events"] == 307
    await world.state(usd=3)
    steps = await world.finish()

    assert steps > 3
    after = await world.windows()
    # By hand: 3 dollars a million of input, 6 of output, of which each event has 100.
    added = 3_000 * sum(range(300)) + 300 * 600_000
    assert after["cost_nano"] - before["cost_nano"] == added
    assert after["output_nano"] - before["output_nano"] == 300 * 600_000
    assert after["unpriced_events"] == 7
    assert after["events"] == before["events"]
    assert after["input_tokens"] == before["input_tokens"]
    assert await world.all("SELECT * FROM events ORDER BY event_id") == rows
    assert await world.all("SELECT DISTINCT reason FROM deltas WHERE events = 0") == [("reprice",)]
    left = await world.actions.unpriced(ORG, None, 10)
    assert [(m.model, m.provider, m.events) for m in left] == [(OWN, None, 3)]
    assert (left[0].first_at, left[0].last_at) == (NOW - 2 * DAY, NOW)
    assert [m.events for m in await world.actions.unpriced(OTHER, None, 10)] == [4]


async def test_it_is_exact_over_a_kill_in_every_step(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 200)))
    stated = await world.state(usd=3)
    await world.finish(kills=True)

    numbers = [row["seq"] for row in await waiting(world.db)]
    assert numbers == list(range(1, len(numbers) + 1))
    windows = await world.windows()
    assert windows["cost_nano"] == 3_000 * sum(range(200)) + 200 * 600_000
    assert windows["unpriced_events"] == 0
    versions = "SELECT old_version, new_version, unpriced, count(*) FROM adjustments GROUP BY 1,2,3"
    assert await world.all(versions) == [(None, f"organization/{stated.entry.id}", -1, 200)]


async def test_a_period_is_priced_anew_again_and_again_and_always_comes_to_the_present_price(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.state(usd=3)
    await world.count(record(*many(arrived, 50), *many(arrived, 2, at=NOW - 3 * DAY, model=HAIKU)))
    base = 50 * 600_000 + 3_000 * sum(range(50)) + 2 * 500_000 + 1_000
    assert (await world.windows())["cost_nano"] == base
    for usd in (5, 5, 1):
        await world.state(usd=usd)
        await world.finish()
        number = await world.orders.order_all(ORG, NOW - DAY, NOW + DAY)
        await world.finish()
        windows = await world.windows()
        wanted = usd * (1_000 * sum(range(50)) + 50 * 200_000) + 2 * 500_000 + 1_000
        assert windows["cost_nano"] == wanted
        assert windows["cost_nano"] == sum(windows[name] for name in MONEY[:-1])
        progress = await world.orders.progress(number)
        assert progress is not None
        assert (progress.finished, progress.parts) == (True, 1)
    # The second of three changed nothing, so an event has two adjustments.
    per_event = "SELECT count(*) FROM adjustments GROUP BY event_id"
    assert set(await world.all(per_event)) == {(2,)}
    sums = "SELECT (SELECT sum(cost_nano) FROM events) + (SELECT sum(cost_nano) FROM adjustments)"
    assert await world.all(sums) == [((await world.windows())["cost_nano"],)]


async def test_what_loses_its_price_is_unpriced_again(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.state(model=OWN)
    await world.count(record(*many(arrived, 10)))
    # Neither price nor discount: the base price again, of which this model has none.
    await world.state(model=OWN, rates=None)
    await world.orders.order_all(ORG, NOW - DAY, NOW + DAY)
    await world.finish()
    windows = await world.windows()
    assert (windows["cost_nano"], windows["unpriced_events"]) == (0, 10)
    assert [m.events for m in await world.actions.unpriced(ORG, None, 10)] == [10]
    await world.state(model=OWN, usd=2)
    await world.finish()
    assert (await world.windows())["cost_nano"] == 2 * (1_000 * sum(range(10)) + 10 * 200_000)
    assert await world.actions.unpriced(ORG, None, 10) == []


async def test_an_order_is_finished_when_all_parts_are_done(
    db: Database, world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    world = World(db, 2)
    for part in (0, 1):
        await world.count(record(*many(arrived, 20)), part=part)
    await world.state(usd=1)
    await world.finish(0)
    async with db.session() as connection:
        (number,) = [r["id"] for r in await connection.fetch("SELECT id FROM repricings")]
    progress = await world.orders.progress(number)
    assert progress is not None
    assert (progress.finished, progress.parts, progress.events) == (False, 1, 20)
    await world.finish(1)
    progress = await world.orders.progress(number)
    assert progress is not None
    assert (progress.finished, progress.parts, progress.events) == (True, 2, 40)
    assert progress.cost_nano == (await world.windows())["cost_nano"]
    assert await world.orders.open_orders() == frozenset()


async def test_another_generation_of_the_layout_begins_an_order_anew_and_adds_nothing_twice(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 300)))
    await world.state(usd=3)
    await world.repricing.look()
    while not (await world.windows())["cost_nano"]:
        await world.step(0)
    assert (await world.windows())["unpriced_events"] > 0
    world.layouts.layout = Layout(1, 2, State.OPEN, None)
    await world.finish()
    windows = await world.windows()
    assert windows["cost_nano"] == 3_000 * sum(range(300)) + 300 * 600_000
    assert windows["unpriced_events"] == 0
    assert await world.all("SELECT count(*) FROM adjustments") == [(300,)]


async def test_an_order_may_begin_long_ago_and_end_in_ages(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 3)))
    first, last = (datetime(year, 1, 1, tzinfo=UTC) for year in (1970, 8999))
    await world.state(usd=3, since=first, until=last)
    await world.finish()
    assert (await world.windows())["unpriced_events"] == 0


async def test_while_the_layout_changes_nothing_is_done(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 3)))
    await world.state(usd=3)
    await world.repricing.look()
    assert world.repricing.due(0)
    world.layouts.layout = Layout(1, 1, State.DRAINING, 2)
    await world.step(0)
    assert (await world.windows())["cost_nano"] == 0
    await world.repricing.look()
    assert not world.repricing.due(0)


async def test_whoever_lost_the_part_adjusts_nothing(
    db: Database, world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 5)))
    await world.state()
    await world.repricing.look()
    first, second = (Offsets(db, topic="usage.events", owner=o, lease=0) for o in ("a", "b"))
    holding = await first.take(0, "born")
    assert holding is not None
    assert await second.take(0, "born") is not None

    async def adjust() -> None:
        async with db.session() as connection, connection.transaction():
            await first.hold(connection, 0, holding.epoch)
            await world.repricing.step(connection, 0)

    with pytest.raises(Fenced):
        await adjust()
    assert (await world.windows())["cost_nano"] == 0


async def test_costs_of_clients_stand_beside_ours_as_they_are_now(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    tokens = {"input_tokens": 1_000, "output_tokens": 0}
    await world.count(
        record(
            arrived(model=HAIKU, client_cost_nano=1_000_000, **tokens),
            arrived(model=HAIKU, client_cost_nano=1_500_000, **tokens),
            arrived(model=HAIKU, **tokens),
            arrived(model=HAIKU, client_cost_nano=7, at=NOW - 2 * DAY, **tokens),
            arrived(model=HAIKU, client_cost_nano=9, org_id=OTHER, **tokens),
            arrived(model=OWN, provider="us", client_cost_nano=400, **tokens),
        )
    )

    async def rows() -> list[tuple[Any, ...]]:
        found = await world.actions.reconciled(ORG, NOW - DAY, NOW + DAY, None, 10)
        assert (
            await world.actions.reconciled(ORG, NOW - DAY, NOW + DAY, (OWN, "us"), 1) == found[1:]
        )
        names = ("model", "events", "differing_events", "client_nano", "cost_nano")
        names = (*names, "unpriced_events", "without_client_cost")
        return [tuple(getattr(row, name) for name in names) for row in found]

    assert await rows() == [
        (OWN, 0, 0, 0, 0, 1, 0),
        (HAIKU, 2, 1, 2_500_000, 2_000_000, 0, 1),
    ]
    await world.state(usd=1)
    await world.state(model=HAIKU, rates=None, discount_bp=5_000)
    await world.orders.order_all(ORG, NOW - DAY, NOW + DAY)
    await world.finish()
    assert await rows() == [
        (OWN, 1, 1, 400, 1_000_000, 0, 0),
        (HAIKU, 2, 2, 2_500_000, 1_000_000, 0, 1),
    ]


async def test_a_deleted_organization_leaves_no_prices_and_no_orders(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 3)))
    await world.state()
    await world.finish()
    async with world.db.change(Scope((ORG,)), call=None) as change:
        await world.usage.note_deleted(change, ORG, NOW)
    await world.usage.begin_forgetting(NOW + DAY)
    await add_up(world.db)
    while await world.usage.forget_some():
        pass
    for table in ("adjustments", "unpriced", "repricings", "events", "deltas"):
        assert await world.all(f"SELECT count(*) FROM {table}") == [(0,)], table
    async with world.db.read(Scope((ORG,))) as connection:
        assert await PriceStore(connection).prices(ORG, None, None, 5) == []
