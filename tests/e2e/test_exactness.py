"""On Redis Streams, kill -9 of ingest, workers and broker in a replay: every event is there once.

On Kafka that is a part of `make chaos`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from random import Random
from uuid import UUID

import asyncpg
import pytest

from fleet.process import Platform
from tests.common.waiting import eventually
from tests.e2e.checker import Checker
from tests.e2e.comparison import Grouping, differences
from tests.e2e.harms import HARMS
from tests.e2e.own import SOON_ENDED, own_platform
from tests.e2e.processes import health, member, pid_of
from tests.e2e.raw_rows import connect, count_rows, raw_rows, row_differences, window_differences
from tests.e2e.tenant import Tenant, tenant

pytestmark = pytest.mark.e2e

SEED = "MINDWEAVE_TEST_SEED"
# Seconds until what comes back by itself is taken for gone.
PATIENCE = 120.0
INGEST = ("usage_tracker-serve-1", "usage_tracker-serve-2")
WORKERS = ("usage_tracker-work-1", "usage_tracker-work-2")
# Its name among the servers.
BROKER = "broker"
ROUNDS = 5
GROUPINGS: tuple[Grouping, ...] = (
    ("all", ("model",)),
    ("all", ("project_id", "user_id", "status")),
    ("minute", ()),
    ("hour", ("event_type", "tool")),
)


@dataclass
class Scene:
    """A platform whose parts are hurt, who sends to it, and how to look beside it."""

    platform: Platform
    who: Tenant
    checker: Checker
    database: asyncpg.Connection
    seed: int
    rng: Random
    tell: Callable[[str], None]

    def schedule(self) -> list[list[str]]:
        """Whom each round kills: all three kinds alike, in random order; every fifth round two."""
        kinds: Sequence[Sequence[str]] = (WORKERS, INGEST, (BROKER,))
        found = [[self.rng.choice(kinds[n % len(kinds)])] for n in range(ROUNDS)]
        self.rng.shuffle(found)
        for victims in found[::5]:
            victims.append(self.rng.choice([n for n in INGEST + WORKERS if n not in victims]))
        return found

    async def kill(self, victims: Sequence[str]) -> bool:
        """Kill them at a random moment, once they are back from an earlier kill.

        Returns when others run in their place, be they ready or not: true where the kill met
        acknowledged events that were not stored yet.
        """
        await self.whole(victims)
        delay, before_it = self.rng.uniform(0.05, 0.8), len(self.checker.oracle.events)
        await eventually(lambda: len(self.checker.oracle.events) > before_it, PATIENCE)
        await asyncio.sleep(delay)
        before = {name: await self._pid(name) for name in victims}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        acknowledged = len(self.checker.oracle.events)
        behind = acknowledged - await count_rows(self.database, self.who.org_id)
        retries = self.checker.retries
        await eventually(lambda: self._are_others(before), PATIENCE)
        after = [f"{name} {pid} → {await self._pid(name)}" for name, pid in before.items()]
        self.tell(
            f"after {delay:.2f} s: {', '.join(after)}; {behind} of {acknowledged} acknowledged"
            f" were not stored, {self.checker.retries - retries} requests went again"
        )
        return behind > 0

    async def _pid(self, name: str) -> int:
        return await asyncio.to_thread(pid_of, self.platform, name)

    async def _are_others(self, before: dict[str, int]) -> bool:
        return all([await self._pid(name) not in (0, pid) for name, pid in before.items()])

    async def whole(self, names: Sequence[str] = INGEST + WORKERS) -> None:
        """Returns when they are ready; the broker is where events are acknowledged."""
        await eventually(lambda: asyncio.to_thread(self._are_ready, names), PATIENCE)

    def _are_ready(self, names: Sequence[str]) -> bool:
        members = [member(self.platform, name) for name in names if name != BROKER]
        return all(health(process, "ready") == 200 for process in members)

    async def owners(self) -> dict[int, str]:
        """Who works on each partition of usage.events."""
        rows = await self.database.fetch(
            "SELECT part, owner FROM offsets WHERE topic = 'usage.events' AND lease_until > now()"
        )
        return {row["part"]: row["owner"] for row in rows}

    async def differences(self) -> list[str]:
        """Where the ledger's own rows differ from the books."""
        oracle, org_id = self.checker.oracle, self.who.org_id
        found = row_differences(await raw_rows(self.database, org_id), oracle)
        return found + await window_differences(self.database, org_id, oracle)

    async def check(self) -> None:
        """Raw rows, the ledger's windows and what analytics answers are as the books say."""
        await self.checker.finish()
        oracle, org_id = self.checker.oracle, self.who.org_id
        assert await self.differences() == []
        assert (
            await asyncio.to_thread(differences, self.who.client, org_id, oracle, GROUPINGS) == []
        )


def telling(config: pytest.Config) -> Callable[[str], None]:
    """Writes lines that are seen though the tests pass: without the seed no failure comes back."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(line)

    return tell


@pytest.fixture(scope="module")
async def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    tell = telling(request.config)
    seed = int(os.environ.get(SEED) or secrets.randbelow(10**6))
    tell(f"\nexactness, {ROUNDS} rounds, {SEED}={seed}")
    data, options = tmp_path_factory.mktemp("exact"), ("--broker", "redis-streams")
    with own_platform(data, SOON_ENDED, layout="up", options=options) as platform:
        who = await asyncio.to_thread(tenant, platform.address)
        database = await connect(platform.run()["database_url"])
        yield Scene(
            platform,
            who,
            Checker(platform.address, who),
            database,
            seed,
            Random(seed),
            tell,
        )
        await database.close()


async def test_kills_at_random_moments_of_a_replay_neither_lose_nor_double(scene: Scene):
    hits = 0
    async with scene.checker.replaying(scene.seed):
        for number, victims in enumerate(scene.schedule(), 1):
            scene.tell(f"round {number}: kill -9 {' and '.join(victims)}")
            hits += await scene.kill(victims)
        await scene.whole()
    assert hits, "no kill met an event that was acknowledged and not stored yet"
    await scene.check()


async def test_a_worker_that_sleeps_longer_than_its_lease_doubles_nothing(scene: Scene):
    pid = pid_of(scene.platform, WORKERS[0])
    await eventually(lambda: shared(scene, 2), PATIENCE)
    async with scene.checker.replaying(scene.seed + 100):
        try:
            await eventually(lambda: stopped_within_a_batch(scene, pid), PATIENCE)
            await eventually(lambda: shared(scene, 1), PATIENCE)
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(lambda: shared(scene, 2), PATIENCE)
    assert pid_of(scene.platform, WORKERS[0]) == pid
    await scene.check()


async def stopped_within_a_batch(scene: Scene, pid: int) -> bool:
    """Stop the worker; where it has no batch in hand that it could still commit, let it go on."""
    await asyncio.sleep(scene.rng.uniform(0.0, 0.1))
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.2)
    if await scene.database.fetchval(
        """
        SELECT EXISTS (
            SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'idle in transaction'
                AND state_change < now() - interval '0.1 s' AND query LIKE 'COPY %events%'
        )
        """
    ):
        return True
    os.kill(pid, signal.SIGCONT)
    return False


async def shared(scene: Scene, workers: int) -> bool:
    """Whether all partitions are worked on, by so many workers."""
    owners = await scene.owners()
    return len(owners) == 4 and len(set(owners.values())) == workers


@pytest.mark.parametrize("harm", HARMS)
async def test_the_check_notices(scene: Scene, harm: str):
    undone = scene.database.transaction()
    await undone.start()
    try:
        done = await scene.database.execute(HARMS[harm], UUID(scene.who.org_id))
        found = await scene.differences()
    finally:
        await undone.rollback()
    assert done.endswith(" 1")
    assert found
