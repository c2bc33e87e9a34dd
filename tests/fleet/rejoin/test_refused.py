"""What is refused: databases, a broker and a backup that do not fit."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from common.database import Database
from common.errors import NotReady
from common.events.bus import Bus
from common.events.ledger import Fenced, Places, Stored
from common.events.ledger.offsets import Offsets
from common.settings import Settings
from fleet.backup import BackupFailed
from fleet.backup.rejoining import rejoin_given
from tests.fleet.rejoin.conftest import EVENTS, held, told

pytestmark = pytest.mark.store


async def ahead(analytics: Database, number: int) -> None:
    async with analytics.session() as connection:
        await connection.execute(
            "INSERT INTO sources (part, source, last_seq) VALUES (1, 3, $1)", number
        )


async def owned(tracker: Database, lease: timedelta) -> None:
    async with tracker.session() as connection:
        await connection.execute(
            "INSERT INTO offsets (topic, part, token, birth, lease_until)"
            " VALUES ($1, 2, '5-5', $2, now() + $3)",
            EVENTS,
            uuid4().hex,
            lease,
        )


async def test_analytics_of_a_later_moment_than_the_ledger_is_refused(
    settings: Settings, tracker: Database, analytics: Database
) -> None:
    await ahead(analytics, 7)
    async with tracker.session() as connection:
        await connection.execute("INSERT INTO parts (part, last_seq) VALUES (3, 6)")
    with pytest.raises(BackupFailed, match="delta 7 of part 3, and usage_tracker has 6"):
        await told(settings, accept_loss=True)
    async with tracker.session() as connection:
        await connection.execute("UPDATE parts SET last_seq = 7")
    await told(settings)


async def test_a_broker_that_lacks_what_is_not_counted_is_refused_unless_that_is_accepted(
    settings: Settings, tracker: Database
) -> None:
    await owned(tracker, timedelta())
    places = Places(tracker, EVENTS)
    stored = (await places.read())[2]
    with pytest.raises(BackupFailed, match=r"usage\.events/2: the broker has .*--accept-loss"):
        await told(settings)
    assert (await places.read())[2] == stored
    assert await held(tracker) == 0
    await told(settings, accept_loss=True)
    assert (await places.read())[2] == Stored(None, None)


async def test_databases_whose_services_run_are_left_alone(
    settings: Settings, tracker: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await owned(tracker, timedelta(hours=1))
    before = await Places(tracker, EVENTS).read()
    monkeypatch.setattr("fleet.backup.rejoining.LEASE", 0.1)
    monkeypatch.setenv("MINDWEAVE_SECRET", settings.secret)
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    with pytest.raises(NotReady, match="end all services first"):
        await asyncio.to_thread(
            partial(rejoin_given, None, tmp_path, accept_loss=False, tell=print)
        )
    assert await Places(tracker, EVENTS).read() == before


async def test_databases_of_another_number_of_partitions_are_refused_whatever_is_accepted(
    settings: Settings, tracker: Database, bus: Bus
) -> None:
    await bus.declare(EVENTS, 3)
    async with tracker.session() as connection:
        await connection.execute("INSERT INTO layout (partitions) VALUES (4)")
    with pytest.raises(BackupFailed, match="has 3 partitions in the broker and 4 in the databases"):
        await told(settings, accept_loss=True)
    assert await Places(tracker, EVENTS).read() == {}


async def test_nobody_takes_a_partition_that_is_held_and_nobody_writes_who_has_lost_it(
    tracker: Database,
) -> None:
    places, worker = Places(tracker, EVENTS), Offsets(tracker, topic=EVENTS, owner="w", lease=9.0)
    taken = await worker.take(0, "birth")
    assert taken is not None
    assert await places.hold(2) is None
    await worker.give_back(0, taken.epoch)
    ours = await places.hold(2)
    assert ours is not None
    assert await worker.take(0, "birth") is None
    again = await places.hold(2)
    assert again is not None
    with pytest.raises(Fenced):
        await places.put(0, ours[0], Stored("5-5", "birth"))
    with pytest.raises(Fenced):
        async with tracker.session() as connection:
            await places.check(connection, 1, ours[1])
    await places.put(0, again[0], Stored("6-6", "birth"))
    await places.release(again)
    found = await worker.take(0, "birth")
    assert found is not None
    assert found.place == "6-6"
