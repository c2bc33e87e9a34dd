"""kill -9 of the one process in the middle of a replay: nothing is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from fleet.embedded.folder import read_run
from fleet.process import Platform
from fleet.workload import Event, Workload, generate
from tests.e2e.checker import Checker
from tests.e2e.comparison import differences
from tests.e2e.own import databases, own_platform
from tests.e2e.raw_rows import connect, count_rows, raw_rows, row_differences, window_differences
from tests.e2e.tenant import tenant

pytestmark = pytest.mark.e2e

ROUNDS = 5
TRIES = 25


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with own_platform(tmp_path / "data") as platform:
        yield platform


async def send_and_kill(
    platform: Platform, checker: Checker, first: list[Event], second: list[Event], delay: float
) -> bool:
    """Kill after the first batch is acknowledged, the second one under way.

    Returns whether the second one was acknowledged.
    """
    assert await checker.send(first)
    under_way = asyncio.create_task(checker.send(second, patience=0.0))
    await asyncio.sleep(delay)
    platform.kill()
    return await under_way


async def send_and_kill_before_it_is_stored(
    platform: Platform, checker: Checker, first: list[Event], second: list[Event]
) -> bool:
    """As ``send_and_kill``, while the database takes nothing."""
    assert await checker.send(first)
    frozen = databases(platform)
    for process in frozen:
        process.suspend()
    try:
        return await checker.send(second, patience=0.0)
    finally:
        platform.kill()
        for process in frozen:
            process.resume()


def database_url(platform: Platform) -> str:
    """Of the database, which a kill leaves behind."""
    run = read_run(platform.data)
    assert run is not None
    return run["database_url"]


async def stored(platform: Platform, org_id: str) -> int:
    connection = await connect(database_url(platform))
    count = await count_rows(connection, org_id)
    await connection.close()
    return count


async def test_five_kills_with_lag_above_zero_end_with_exact_sums(platform: Platform):
    who = tenant(platform.address)
    checker = Checker(platform.address, who)
    rng = Random(20261121)
    proven = 0
    for attempt in range(TRIES):
        requests = generate(seed=attempt, count=2500)
        workload = Workload(requests, who.projects, datetime.now(UTC), seed=attempt)
        first, second, *rest = workload.batches(1000)
        if attempt % 2:
            done = await send_and_kill_before_it_is_stored(platform, checker, first, second)
        else:
            done = await send_and_kill(platform, checker, first, second, rng.uniform(0, 0.03))
        # Fewer rows than acknowledged events: the kill met events that were not stored yet.
        proven += await stored(platform, who.org_id) < len(checker.oracle.events)
        platform.start()
        platform.wait_until_ready()
        for batch in rest if done else [second, *rest]:
            assert await checker.send(batch)
        if proven == ROUNDS:
            break
    assert proven == ROUNDS, f"only {proven} of {TRIES} kills met events not yet stored"

    # Once more with everything: the database and the broker too.
    first, second, *_ = Workload(
        generate(seed=99, count=2500), who.projects, datetime.now(UTC), seed=99
    ).batches(1000)
    assert await checker.send(first)
    platform.kill_everything()
    platform.start()
    platform.wait_until_ready()
    assert await checker.send(second)

    await checker.finish()
    assert differences(who.client, who.org_id, checker.oracle) == []
    platform.kill()
    connection = await connect(database_url(platform))
    assert row_differences(await raw_rows(connection, who.org_id), checker.oracle) == []
    assert await window_differences(connection, who.org_id, checker.oracle) == []
    await connection.close()
