"""Periodic work goes on after a failure and ends when it is told to."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from common.background import PartStatus
from common.periodic import Periodic

pytestmark = pytest.mark.unit


class Steps:
    """Counts its turns; the first one fails."""

    def __init__(self) -> None:
        self.done = 0
        self.third = asyncio.Event()

    async def step(self) -> int:
        self.done += 1
        if self.done == 1:
            raise OSError
        if self.done == 3:
            self.third.set()
        return 10 - self.done


async def test_a_step_that_fails_is_tried_again_and_the_status_tells() -> None:
    steps = Steps()
    seen: list[PartStatus] = []

    async def watched() -> int:
        seen.append(periodic.status())
        return await steps.step()

    periodic = Periodic("work", watched, every=timedelta(milliseconds=1))
    await periodic.start()
    await steps.third.wait()
    await periodic.stop()
    assert seen[:2] == [PartStatus(ready=True), PartStatus(ready=True, detail="failed: OSError")]
    assert seen[2] == PartStatus(ready=True, lag=8)


async def test_stopping_waits_for_the_step_in_hand_and_then_runs_no_more() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    turns = 0

    async def step() -> None:
        nonlocal turns
        turns += 1
        entered.set()
        await leave.wait()

    periodic = Periodic("work", step, every=timedelta(0))
    await periodic.start()
    await entered.wait()
    stopping = asyncio.create_task(periodic.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    leave.set()
    await stopping
    assert turns == 1
    assert periodic.status() == PartStatus(ready=True)


async def test_a_part_that_never_started_stops_at_once() -> None:
    await Periodic("work", Steps().step, every=timedelta(1)).stop()
