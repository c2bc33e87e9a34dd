"""Databases of one moment and a broker of another, that are to be joined."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio

from common.database import Database
from common.events.bus import Bus, Outgoing, Record
from common.events.drivers import bus_for
from common.events.envelope import Envelope, pack, unpack
from common.ids import uuid7
from common.settings import Settings
from common.testing import silent_telemetry
from fleet.backup.folder import BackupFolder, Manifest, fingerprint, name_of
from fleet.backup.rejoining import rejoin
from services.analytics.consumer import TOPIC as WINDOWS
from services.analytics.domain.windows import Windows
from services.analytics.store import RollupStore
from services.usage_tracker.domain.records import windows_data
from tests.analytics.deltas import packed_rows
from tests.analytics.store.conftest import START, Books, ask

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


def told(
    settings: Settings, backup: BackupFolder | None = None, *, accept_loss: bool = False
) -> Awaitable[None]:
    return rejoin(settings, backup, accept_loss=accept_loss, tell=lambda _: None)


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


@pytest.fixture
async def sent(bus: Bus, tracker: Database, analytics: Database) -> Sent:
    """In the broker, and the databases are of the moment that is restored."""
    sent = Sent()
    await sent.publish(bus)
    await sent.store(bus, tracker, analytics)
    return sent
