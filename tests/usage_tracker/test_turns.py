"""Tenants in turn, and what of each is in hand."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

import pytest

from common.errors import RateLimited, Unavailable
from services.usage_tracker.actions.turns import InHand, Shares, Turns

pytestmark = pytest.mark.unit

SHARES = Shares(everybody=400, org=60, credential=30)


async def test_a_tenant_that_sends_much_waits_for_itself_and_another_one_is_next() -> None:
    turns, order = Turns(at_once=1, shares=SHARES), []

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
    turns, busy, most, done = Turns(at_once=2, shares=SHARES), 0, 0, 0

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
    turns = Turns(at_once=1, shares=SHARES)
    async with turns.turn("first"):
        gone = asyncio.create_task(turns.turn("second").__aenter__())
        await asyncio.sleep(0)
    # It has its turn now, and does not know yet.
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    async with asyncio.timeout(5), turns.turn("third"):
        pass


def test_what_is_in_hand_is_bounded_for_a_credential_an_organization_and_all() -> None:
    turns = Turns(at_once=1, shares=SHARES)

    def arrives(org: str, credential: str, *sizes: int) -> InHand:
        body = stack.enter_context(turns.holding(org, credential))
        for size in sizes:
            body.take(size)
        return body

    with ExitStack() as stack:
        arrives("one", "a", 10, 10)
        with pytest.raises(RateLimited, match="credential") as limited:
            arrives("one", "a", 9, 2)
        assert limited.value.retry_after == 1.0
        arrives("one", "b", 30)
        with pytest.raises(RateLimited, match="organization"):
            arrives("one", "c", 2)
        for org in range(4):
            arrives(str(org), f"of {org}", 30)
        with pytest.raises(Unavailable) as full:
            arrives("five", "f", 60)
        assert (full.value.code, full.value.retry_after) == ("overloaded", 1.0)
    with ExitStack() as stack:
        # Nothing is left of those, and one alone is let in, however large.
        arrives("one", "a", 1_000)
        with pytest.raises(Unavailable):
            arrives("two", "b", 1)


def test_what_is_announced_is_in_hand_before_it_comes_and_counts_once() -> None:
    turns = Turns(at_once=1, shares=SHARES)
    with ExitStack() as stack:
        first = stack.enter_context(turns.holding("one", "a"))
        first.expect(20)
        with pytest.raises(RateLimited):
            stack.enter_context(turns.holding("one", "a")).expect(11)
        second = stack.enter_context(turns.holding("one", "a"))
        second.expect(10)
        for body, size in ((first, 15), (second, 10), (first, 5)):
            body.take(size)
        # More than was announced, as when a body is unpacked.
        with pytest.raises(RateLimited):
            first.take(1)
    with turns.holding("one", "a") as alone:
        alone.expect(30)
        with turns.holding("one", "a") as other, pytest.raises(RateLimited):
            other.expect(1)
    with turns.holding("one", "a") as again:
        again.expect(30)


def test_however_many_take_what_they_can_there_is_room_for_one_more_who_holds_little() -> None:
    turns = Turns(at_once=1, shares=Shares(everybody=1_000, org=1_000, credential=1_000))
    with ExitStack() as stack:
        stack.enter_context(turns.holding("first", "key")).take(1)
        for tenant in range(12):
            greedy = stack.enter_context(turns.holding(tenant, tenant))
            with suppress(Unavailable):
                for _ in range(1_000):
                    greedy.take(1)
        with pytest.raises(Unavailable):
            greedy.take(1)
        stack.enter_context(turns.holding("quiet", "key")).take(1)


def test_what_is_only_announced_takes_nobody_elses_room() -> None:
    turns = Turns(at_once=1, shares=Shares(everybody=1_000, org=500, credential=500))
    with ExitStack() as stack:
        for tenant in range(50):
            for _ in range(5):
                stack.enter_context(turns.holding(tenant, tenant)).expect(100)
            with pytest.raises(RateLimited):
                stack.enter_context(turns.holding(tenant, tenant)).expect(1)
        stack.enter_context(turns.holding("quiet", "key")).take(240)
