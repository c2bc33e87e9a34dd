"""Databases of one moment and a broker of another: what is refused, and what is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import redis.asyncio

from common.database import Database
from common.errors import NotReady, Unavailable
from common.events.bus import Bus, Outgoing, Record
from common.events.drivers import bus_for
from common.events.envelope import Envelope, pack, unpack
from common.events.ledger import Fenced, Places, Stored
from common.events.ledger.offsets import Offsets
from common.ids import uuid7
from common.settings import Settings
from common.testing import silent_telemetry
from fleet.backup import BackupFailed
from fleet.backup.folder import BackupFolder, Manifest, fingerprint, name_of
from fleet.backup.reading import read_up_to
from fleet.backup.rejoining import rejoin, rejoin_given
from services.analytics.consumer import TOPIC as WINDOWS
from services.analytics.domain.windows import Windows
from services.analytics.store import RollupStore
from services.usage_tracker.domain.records import windows_data
from tests.analytics.deltas import packed_rows
from tests.analytics.store.conftest import START, Books, ask

pytestmark = pytest.mark.store

Make = Callable[..., Awaitable[Database]]
EVENTS = "usage.events"
TRACKERS = ("offsets", "parts", "relays", "layout")


@pytest.fixture(scope="module")
async def tracker(service_database: Make) -> Database:
    return await service_database("usage_tracker", size=4)


@pytest.fixture(scope="module")
async def analytics(service_database: Make) -> Database:
    return await service_database("analytics", size=4)


@pytest.fixture(autouse=True)
async def _empty(tracker: Database, analytics: Database) -> None:
    for db, tables in ((tracker, TRACKERS), (analytics, ("offsets", "sources", "blocks"))):
        async with db.session() as connection:
            for table in tables:
                await connection.execute(f"DELETE FROM {table}")


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


def told(
    settings: Settings, backup: BackupFolder | None = None, *, accept_loss: bool = False
) -> Awaitable[None]:
    return rejoin(settings, backup, accept_loss=accept_loss, tell=lambda _: None)


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


FIRST = {0: 5, 1: 3}
SENT = {0: 4, 1: 3}
PART = 1


@pytest.fixture
async def bus(settings: Settings) -> AsyncIterator[Bus]:
    """With ``usage.windows`` of its own, and none of the topics afterwards."""
    bus = bus_for(settings, telemetry=silent_telemetry())
    await bus.declare(WINDOWS, settings.windows_partitions, ["analytics"])
    yield bus
    await bus.stop()
    await forget_topics(settings)


async def forget_topics(settings: Settings) -> None:
    async with redis.asyncio.Redis.from_url(settings.redis_url) as client:
        keys = [key async for key in client.scan_iter("mw:usage.*")]
        await client.delete(*keys)


class Sent:
    """Windows of two sources as they were sent, of which the restored ledger knows the first ones.

    One record holds deltas of both ledgers; the last one is of the lost ledger alone. analytics has
    applied the first.
    """

    def __init__(self) -> None:
        self.books = Books(part=PART)
        self.kept: list[dict[str, Any]] = []
        self.records: list[bytes] = []
        for source, seqs in ((0, (1, 2, 3)), (1, (1, 2, 3)), (0, (4, 5, 6, 7)), (1, (4, 5))):
            rows = [self.books.row(source) for _ in seqs]
            self.kept += [row for row in rows if row["seq"] <= FIRST[source]]
            data = windows_data(source, packed_rows(rows), {source: 1})
            envelope = Envelope(
                id=uuid7(),
                type=WINDOWS,
                source="usage_tracker",
                timestamp=datetime.now(UTC),
                data=msgspec.msgpack.encode(data),
            )
            self.records.append(pack(envelope))
        self.tokens: list[str] = []

    async def publish(self, bus: Bus) -> None:
        self.tokens = await bus.publish(
            WINDOWS, [Outgoing(r, partition=PART) for r in self.records]
        )

    async def store(self, bus: Bus, tracker: Database, analytics: Database) -> None:
        """Databases of the moment that is restored."""
        async with tracker.session() as connection:
            for source, number in FIRST.items():
                await connection.execute(
                    "INSERT INTO parts (part, last_seq) VALUES ($1, $2)", source, number
                )
                await connection.execute(
                    "INSERT INTO relays (part, seq) VALUES ($1, $2)", source, SENT[source]
                )
        first = [unpack(self.records[0], Windows)[1]]
        async with analytics.session() as connection, connection.transaction():
            await RollupStore(analytics).append(connection, PART, first)
        await applied_up_to(analytics, self.tokens[0], await bus.birth(WINDOWS, PART))

    def backup(self, path: Path, settings: Settings, end: int = 4) -> BackupFolder:
        """That has recorded what follows the first record."""
        folder = BackupFolder(path)
        folder.make()
        writer = folder.writer(WINDOWS, PART)
        for token, value in list(zip(self.tokens, self.records, strict=True))[1:end]:
            writer.write(Record(WINDOWS, PART, token, "", value, {}))
        writer.close()
        now, name = datetime.now(UTC), name_of(WINDOWS, PART)
        folder.finish(
            Manifest(
                version("mindweave"),
                "redis-streams",
                now,
                now,
                fingerprint(settings.secret),
                {WINDOWS: settings.windows_partitions},
                {name: self.tokens[0]},
                {name: writer.count},
            )
        )
        return folder

    async def require_counted(self, analytics: Database) -> None:
        """See that every sum is that of what the restored ledger knows, and of nothing else."""
        store = RollupStore(analytics)
        assert await store.applied() == FIRST
        found = await ask(store, self.books, START, START + timedelta(days=40), "all")
        for name in ("events", "cost_nano", "input_tokens"):
            assert found.totals.sums[name] == sum(row[name] for row in self.kept)


async def applied_up_to(analytics: Database, token: str, birth: str) -> None:
    async with analytics.session() as connection:
        await connection.execute(
            "INSERT INTO offsets (topic, part, token, birth) VALUES ($1, $2, $3, $4)",
            WINDOWS,
            PART,
            token,
            birth,
        )


async def held(db: Database) -> int:
    async with db.session() as connection:
        return await connection.fetchval(
            "SELECT count(*) FROM offsets WHERE lease_until = 'infinity'"
        )


async def test_windows_are_applied_up_to_the_restored_ledger_however_often_it_is_run(
    settings: Settings, tracker: Database, analytics: Database, bus: Bus, tmp_path: Path
) -> None:
    sent = Sent()
    await sent.publish(bus)
    await sent.store(bus, tracker, analytics)
    for backup in (None, sent.backup(tmp_path / "backup", settings)):
        await told(settings, backup)
        await sent.require_counted(analytics)
        place = (await Places(analytics, WINDOWS).read())[PART].place
        assert place == sent.tokens[-1]
    assert await held(tracker) + await held(analytics) == 0


async def test_windows_that_the_broker_has_lost_are_those_that_the_backup_has_recorded(
    settings: Settings, tracker: Database, analytics: Database, bus: Bus, tmp_path: Path
) -> None:
    sent = Sent()
    await sent.publish(bus)
    await sent.store(bus, tracker, analytics)
    backup = sent.backup(tmp_path / "backup", settings)
    await forget_topics(settings)
    with pytest.raises(BackupFailed, match="no backup is given that has recorded it"):
        await told(settings)
    await told(settings, backup)
    await sent.require_counted(analytics)


async def test_windows_with_a_gap_before_them_are_refused(
    settings: Settings, tracker: Database, analytics: Database, bus: Bus, tmp_path: Path
) -> None:
    sent = Sent()
    await sent.publish(bus)
    await sent.store(bus, tracker, analytics)
    short = sent.backup(tmp_path / "short", settings, end=2)
    await forget_topics(settings)
    with pytest.raises(BackupFailed, match="has sent delta 4 of part 0, and analytics comes to 3"):
        await told(settings, short)
    before = (await Places(analytics, WINDOWS).read())[PART]
    assert before.place == sent.tokens[0]
    # Of another place than the backup's.
    async with analytics.session() as connection:
        await connection.execute("UPDATE offsets SET token = '1-1'")
    with pytest.raises(BackupFailed, match="the backup has no record 1-1"):
        await told(settings, sent.backup(tmp_path / "backup", settings))


async def test_an_empty_answer_of_the_broker_is_not_taken_for_the_end(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent()
    await sent.publish(bus)
    fetch, asked = bus.fetch, count()

    async def hesitant(*args: Any, **given: Any) -> list[Record]:
        return [] if next(asked) % 2 == 0 else (await fetch(*args, **given))[:1]

    monkeypatch.setattr(bus, "fetch", hesitant)
    end = await bus.end(WINDOWS, PART)
    found = [r.token async for some in read_up_to(end, bus, WINDOWS, PART, None) for r in some]
    assert found == sent.tokens
    monkeypatch.setattr("fleet.backup.reading._PATIENCE", 0.1)
    monkeypatch.setattr(bus, "fetch", fetch)
    with pytest.raises(Unavailable, match="keeps its last records back"):
        async for _ in read_up_to("9-9", bus, WINDOWS, PART, sent.tokens[-1]):
            pass


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
