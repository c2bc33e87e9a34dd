"""kill -9 in the middle of a replay: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import UUID

import asyncpg
import pytest

from fleet.embedded import DataFolder
from fleet.process import Platform
from fleet.replay import ReplayFailed, Sender, client, wait_until_fresh
from fleet.workload import Event, Workload, generate
from tests.e2e.comparison import differences
from tests.e2e.oracle import Oracle
from tests.e2e.own import own_platform
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

ROUNDS = 5
TRIES = 25


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with own_platform(tmp_path / "data") as platform:
        yield platform


class Client:
    """Sends like a client that never gives up: what was not acknowledged goes again, unchanged."""

    def __init__(self, platform: Platform, who: Tenant) -> None:
        self._platform = platform
        self._who = who
        self.oracle = Oracle(who.org_id, who.key["id"])
        self.accepted_at = datetime.now(UTC)

    async def send(self, batch: list[Event], patience: float = 30.0) -> bool:
        """Whether the batch was acknowledged; then it is in the oracle's books."""
        async with client(self._platform.address, self._who.key["key"]) as http:
            try:
                outcome = await Sender(http, concurrency=1, patience=patience).send([batch])
            except ReplayFailed:
                return False
        assert outcome.rejected == []
        assert outcome.accepted_at is not None
        self.oracle.acknowledge(outcome.acknowledged)
        self.accepted_at = max(self.accepted_at, outcome.accepted_at)
        return True

    async def send_and_kill(self, first: list[Event], second: list[Event], delay: float) -> bool:
        """Kill after the first batch is acknowledged, the second one under way.

        Returns whether the second one was acknowledged.
        """
        assert await self.send(first)
        under_way = asyncio.create_task(self.send(second, patience=0.0))
        await asyncio.sleep(delay)
        self._platform.kill()
        return await under_way

    async def finish(self) -> None:
        async with client(self._platform.address, self._who.key["key"]) as http:
            await wait_until_fresh(http, self._who.org_id, self.accepted_at)


async def stored(platform: Platform, org_id: str) -> int:
    """Raw rows of an organization, counted in the database that a kill left behind."""
    folder = DataFolder(platform.data)
    dsn = folder.postgres().admin_dsn
    folder.close()
    connection = await asyncpg.connect(dsn, database="usage_tracker")
    count = await connection.fetchval("SELECT count(*) FROM events WHERE org_id = $1", UUID(org_id))
    await connection.close()
    return count


async def test_five_kills_with_lag_above_zero_end_with_exact_sums(platform: Platform):
    who = tenant(platform.address)
    sender = Client(platform, who)
    rng = Random(20261121)
    proven = 0
    for attempt in range(TRIES):
        requests = generate(seed=attempt, count=2500)
        workload = Workload(requests, who.projects, datetime.now(UTC), seed=attempt)
        first, second, *rest = workload.batches(1000)
        done = await sender.send_and_kill(first, second, rng.uniform(0, 0.03))
        # Fewer rows than acknowledged events: the kill met events that were not stored yet.
        proven += await stored(platform, who.org_id) < len(sender.oracle.events)
        platform.start()
        platform.wait_until_ready()
        for batch in rest if done else [second, *rest]:
            assert await sender.send(batch)
        if proven == ROUNDS:
            break
    assert proven == ROUNDS, f"only {proven} of {TRIES} kills met events not yet stored"

    # Once more with everything: the database and the broker too.
    first, second, *_ = Workload(
        generate(seed=99, count=2500), who.projects, datetime.now(UTC), seed=99
    ).batches(1000)
    assert await sender.send(first)
    for process in platform.processes():
        process.kill()
    platform.process.wait()
    platform.start()
    platform.wait_until_ready()
    assert await sender.send(second)

    await sender.finish()
    assert differences(who.client, who.org_id, sender.oracle) == []
    platform.kill()
    assert await stored(platform, who.org_id) == len(sender.oracle.events)
