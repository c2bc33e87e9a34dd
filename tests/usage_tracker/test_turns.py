"""Tenants in turn, and what of each is in hand."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from common.errors import RateLimited, Unavailable
from services.usage_tracker.actions.turns import Turns

pytestmark = pytest.mark.unit


async def test_a_tenant_that_sends_much_waits_for_itself_and_another_one_is_next() -> None:
    turns, order = Turns(at_once=1, most=10, share=10), []

    async def work(tenant: str, number: int) -> None:
        async with turns.turn(tenant):
            order.append((tenant, number))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(work("flood", number))
        await asyncio.sleep(0)
        for number in range(3):
            group.create_task(work("quiet", number))
            group.create_task(work("other", number))

    assert [number for tenant, number in order if tenant == "flood"] == list(range(50))
    for tenant in ("quiet", "other"):
        places = [place for place, (who, _) in enumerate(order) if who == tenant]
        assert places[0] <= 4
        assert places[-1] <= 12


async def test_no_more_work_at_once_than_said_and_none_is_lost_when_some_give_up() -> None:
    turns, busy, most, done = Turns(at_once=2, most=10, share=10), 0, 0, 0

    async def work(tenant: int) -> None:
        nonlocal busy, most, done
        async with turns.turn(tenant):
            busy += 1
            most = max(most, busy)
            try:
                await asyncio.sleep(0.001)
                done += 1
            finally:
                busy -= 1

    tasks = [asyncio.create_task(work(n % 3)) for n in range(60)]
    await asyncio.sleep(0.003)
    given_up = tasks[5::7]
    for task in given_up:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)

    cancelled = sum(isinstance(one, asyncio.CancelledError) for one in found)
    assert cancelled > 0
    assert (most, done) == (2, 60 - cancelled)
    async with asyncio.timeout(5), turns.turn(0), turns.turn(1):
        pass


async def test_a_turn_that_comes_as_its_waiter_gives_up_goes_to_the_next() -> None:
    turns = Turns(at_once=1, most=10, share=10)
    async with turns.turn("first"):
        gone = asyncio.create_task(turns.turn("second").__aenter__())
        await asyncio.sleep(0)
    # It has its turn now, and does not know yet.
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    async with asyncio.timeout(5), turns.turn("third"):
        pass


def test_what_one_tenant_has_in_hand_is_bounded_and_so_is_that_of_all() -> None:
    turns = Turns(at_once=1, most=100, share=60)
    with ExitStack() as stack:
        stack.enter_context(turns.holding("one", 50))
        with pytest.raises(RateLimited) as limited, turns.holding("one", 20):
            pass
        assert limited.value.retry_after == 1.0
        stack.enter_context(turns.holding("two", 40))
        with pytest.raises(Unavailable) as full, turns.holding("three", 20):
            pass
        assert (full.value.code, full.value.retry_after) == ("overloaded", 1.0)
        stack.enter_context(turns.holding("three", 10))
    with turns.holding("one", 1_000), pytest.raises(Unavailable), turns.holding("two", 1):
        pass
    with turns.holding("one", 60), turns.holding("two", 40):
        pass
