"""Orders that fail, processes that stand still, workers of the release before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast
from uuid import UUID

import pytest

from common.database import Database, Scope
from common.errors import Unavailable
from common.events.bus import Bus
from common.events.ledger import Members
from services.usage_tracker.actions import repricing
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.actions.repricing import Repricing
from services.usage_tracker.domain.pricing import PriceBook, Rate
from services.usage_tracker.store import LayoutStore, RepricingStore
from tests.usage_tracker.conftest import MakeArrived, MakeRecord
from tests.usage_tracker.deltas import add_up
from tests.usage_tracker.repricing.conftest import DAY, HAIKU, NOW, ORG, OTHER, World, many

pytestmark = pytest.mark.store


async def test_an_order_that_always_fails_keeps_no_other_from_its_turn(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.count(record(*many(arrived, 5), *many(arrived, 5, org_id=OTHER)))
    counted = world.orders.counted

    async def broken(connection: Any, part: int, order: Any, place: Any) -> Any:
        if order.org_id == ORG:
            raise KeyError("a bug")
        return await counted(connection, part, order, place)

    monkeypatch.setattr(world.orders, "counted", broken)
    await world.state(org_id=ORG)
    failing = await world.orders.open_orders()
    await world.state(org_id=OTHER)
    await world.repricing.look()
    for _ in range(20):
        if world.repricing.due(0):
            with suppress(KeyError):
                await world.step(0)
    assert await world.orders.open_orders() == failing
    assert not world.repricing.due(0)
    assert (await world.windows())["unpriced_events"] == 5


async def test_organizations_take_turns(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 300), *many(arrived, 5, org_id=OTHER)))
    for _ in range(5):
        await world.orders.order_all(ORG, NOW - DAY, NOW + DAY)
    await world.state(org_id=OTHER)
    await world.finish()
    ended = await world.all("SELECT org_id FROM repricings ORDER BY finished_at")
    assert ended[0] == (OTHER,) or ended[1] == (OTHER,)


async def test_rows_in_the_hands_of_one_who_stands_still_are_not_passed_over(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.count(record(*many(arrived, 5)))
    await world.state(usd=3)
    await world.repricing.look()
    async with world.db.session() as still:
        async with still.transaction():
            await world.repricing.step(still, 0)
        begun = await world.all("SELECT count(*) FROM walks WHERE next_block < blocks")
        await world.all("UPDATE walks SET next_block = 0")
        async with still.transaction():
            await still.execute("SELECT FROM walks FOR UPDATE")
            await world.step(0)
            await world.step(0)
            assert await world.orders.open_orders()
    assert begun
    world.restart()
    await world.finish()
    assert (await world.windows())["unpriced_events"] == 0
    assert await world.orders.open_orders() == frozenset()


async def test_a_step_needs_one_connection(
    service_database: Callable[..., Awaitable[Database]], world: World
) -> None:
    db = await service_database("usage_tracker", size=1)
    store = LayoutStore(db)
    await store.begin(1)
    layouts = Layouts(store, cast(Bus, None), cast(Members, None), None)
    orders = RepricingStore(db)
    owner = Repricing(orders, world.usage, CurrentPrices(PriceBook.bundled(), db), layouts)
    number = await orders.order_all(ORG, NOW - DAY, NOW + DAY)
    await owner.look()
    while owner.due(0):
        async with db.session() as connection, connection.transaction():
            await owner.step(connection, 0)
    progress = await orders.progress(number)
    assert progress is not None
    assert progress.finished


async def test_what_a_worker_of_the_release_before_counted_is_known_to_have_no_price(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    async def as_of_the_release_before() -> None:
        """It adds deltas, and knows no table of models without a price."""
        await add_up(world.db)
        await world.all("DELETE FROM unpriced RETURNING 1")
        await world.all("UPDATE parts SET unpriced_seq = 0 RETURNING 1")

    await world.count(record(*many(arrived, 5)))
    await as_of_the_release_before()
    await world.count(record(*many(arrived, 2)))
    (left,) = await world.actions.unpriced(ORG, None, 10)
    assert (left.events, left.first_at.date()) == (7, NOW.date())
    await as_of_the_release_before()
    await world.state(usd=3)
    await world.finish()
    assert await world.actions.unpriced(ORG, None, 10) == []
    assert (await world.windows())["unpriced_events"] == 0


async def test_the_base_price_again_prices_what_an_own_one_said_too_little_of(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    await world.state(model=HAIKU, rates=(Rate(10**9), None, None, None, None))
    await world.count(record(*many(arrived, 5, model=HAIKU)))
    await world.finish()
    assert (await world.windows())["unpriced_events"] == 5
    await world.state(model=HAIKU, rates=None)
    await world.finish()
    assert (await world.windows())["unpriced_events"] == 0


async def test_how_far_an_order_is_goes_with_its_organization_and_with_the_layout(
    world: World, arrived: MakeArrived, record: MakeRecord
) -> None:
    async def begin(org_id: UUID) -> None:
        await world.state(org_id=org_id)
        await world.repricing.look()
        await world.step(0)

    async def walks() -> int:
        ((found,),) = await world.all("SELECT count(*) FROM walks WHERE name LIKE 'reprice%'")
        return int(found)

    await world.count(record(*many(arrived, 300), *many(arrived, 300, org_id=OTHER)))
    await begin(ORG)
    mine = await walks()
    await begin(OTHER)
    assert 0 < mine < await walks()
    async with world.db.change(Scope((ORG,)), call=None) as change:
        await world.usage.note_deleted(change, ORG, NOW)
    assert await walks() == mine
    await LayoutStore(world.db).open(1)
    assert await walks() == 0


async def test_a_step_that_takes_too_long_is_done_in_smaller_ones(
    world: World, arrived: MakeArrived, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.count(record(*many(arrived, 300)))
    counted = world.orders.counted

    async def slow(connection: Any, part: int, order: Any, place: Any) -> Any:
        if place.end[0] - place.start[0] > 1:
            raise Unavailable("It takes too long.")
        return await counted(connection, part, order, place)

    monkeypatch.setattr(world.orders, "counted", slow)
    monkeypatch.setattr(repricing, "_REST", 0.0)
    await world.state(usd=3)
    await world.repricing.look()
    with pytest.raises(Unavailable):
        await world.step(0)
    assert await world.finish() > 3
    assert (await world.windows())["unpriced_events"] == 0
