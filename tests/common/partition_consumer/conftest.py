"""Consumers of a topic's partitions, and the table that they apply its records to."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from common.database import Connection, Database
from common.events.bus import Backoff, Bus, Outgoing, Record
from common.events.ledger import PartitionConsumer
from common.settings import Settings
from tests.common.brokers import DRIVERS, Broker
from tests.common.ledger_process import INSERT
from tests.conftest import ROOT

NAME = "ledger"
QUICK = Backoff(first=0.01, limit=0.1)
APPLIED = """
CREATE TABLE applied (
    id bigint GENERATED ALWAYS AS IDENTITY,
    topic text NOT NULL,
    part int NOT NULL,
    n int NOT NULL
)
"""
Make = Callable[..., Awaitable[PartitionConsumer]]


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_applied.sql").write_text(APPLIED)
    return await service_database(NAME, folder, size=8)


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[Bus]:
    bus = DRIVERS[broker.driver][1](broker.address)
    await bus.start()
    yield bus
    await bus.stop()


@pytest.fixture
async def topic(bus: Bus) -> str:
    name = f"usage-{uuid4().hex[:12]}"
    await bus.declare(name, 2, ["ledger"])
    return name


class Ledger:
    """The table ``applied``; ``gate`` holds every transaction before its commit while closed."""

    def __init__(self, db: Database, topic: str) -> None:
        self._db = db
        self._topic = topic
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def apply(self, connection: Connection, part: int, records: list[Record]) -> int:
        await connection.execute(INSERT, self._topic, part, [int(r.value) for r in records])
        if not self.gate.is_set():
            self.waiting.set()
            await self.gate.wait()
        return len(records)

    def now(self) -> datetime:
        return self._db.clock.now()

    async def numbers(self, part: int) -> list[int]:
        """What is committed, in the order of insertion."""
        async with self._db.session() as connection:
            rows = await connection.fetch(
                "SELECT n FROM applied WHERE topic = $1 AND part = $2 ORDER BY id",
                self._topic,
                part,
            )
        return [row["n"] for row in rows]

    async def holds(self, part: int, numbers: list[int]) -> bool:
        return await self.numbers(part) == numbers

    async def expire(self) -> None:
        """As when nobody has renewed anything for a lease."""
        async with self._db.session() as connection:
            await connection.execute(
                "UPDATE offsets SET lease_until = now() - interval '1 s' WHERE topic = $1",
                self._topic,
            )
            await connection.execute("DELETE FROM partition_members WHERE topic = $1", self._topic)

    async def place(self, part: int) -> asyncpg.Record | None:
        async with self._db.session() as connection:
            return await connection.fetchrow(
                "SELECT * FROM offsets WHERE topic = $1 AND part = $2", self._topic, part
            )


@pytest.fixture
def ledger(db: Database, topic: str) -> Ledger:
    return Ledger(db, topic)


@pytest.fixture
async def make(bus: Bus, db: Database, topic: str, ledger: Ledger) -> AsyncIterator[Make]:
    """Starts consumers; they are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> PartitionConsumer:
            given: dict[str, Any] = {
                "bus": bus,
                "db": db,
                "topic": topic,
                "group": "ledger",
                "owner": uuid4().hex,
                "apply": ledger.apply,
                "lease": 1.0,
                "backoff": QUICK,
            }
            consumer = PartitionConsumer(**given | options)
            await consumer.start()
            stack.push_async_callback(consumer.stop)
            return consumer

        yield start


class LedgerProcess:
    """``tests.common.ledger_process``, whose owner and lease each start gives."""

    def __init__(self, broker: Broker, dsn: str, topic: str, folder: Path) -> None:
        self._given = {
            "driver": broker.driver,
            "address": broker.address,
            "dsn": dsn,
            "topic": topic,
            "file": str(folder / "applied"),
        }
        self._file = folder / "applied"
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(
        self, owner: str, *, lease: float, pause: float = 0.0
    ) -> asyncio.subprocess.Process:
        given = json.dumps(self._given | {"owner": owner, "lease": lease, "pause": pause})
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.common.ledger_process", given, cwd=ROOT
        )
        self._processes.append(process)
        return process

    def batches(self) -> int:
        """How many were begun by all of them."""
        return len(self._file.read_text().splitlines()) if self._file.exists() else 0

    async def end(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def other_process(
    broker: Broker, settings: Settings, topic: str, tmp_path: Path
) -> AsyncIterator[LedgerProcess]:
    """A consumer in another process; it is killed after the test, if it was not before."""
    process = LedgerProcess(broker, settings.runtime_dsn(NAME), topic, tmp_path)
    yield process
    await process.end()


async def publish(bus: Bus, topic: str, numbers: range, part: int = 0) -> list[str]:
    return await bus.publish(topic, [Outgoing(b"%d" % n, partition=part) for n in numbers])


def caught_up(consumer: PartitionConsumer, part: int, at: datetime) -> bool:
    return consumer.caught_up_at(part) == at


def stopped(consumer: PartitionConsumer, why: str) -> bool:
    status = consumer.status()
    return status.live and not status.ready and why in status.detail
