"""What tests of the outbox share: a broker that can be hurt, and writers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from secrets import SystemRandom
from uuid import UUID, uuid4

from common.database import Database, Scope
from common.events.bus import Backoff, BusFull, BusUnavailable, Outgoing
from common.events.envelope import Envelope, decode, message_of
from common.outbox import Relay
from mindweave.audit.v1.events_pb2 import AuditRecorded
from mindweave.team.v1.events_pb2 import MemberAdded

NAME = "sender"
TOPIC = "platform.events"
QUICK = Backoff(first=0.01, limit=0.05)
START = datetime(2026, 11, 21, 9, tzinfo=UTC)
COUNTERS = "CREATE TABLE counters (id uuid PRIMARY KEY, version int NOT NULL DEFAULT 0)"


class Receiver:
    """A broker that keeps what it acknowledged; ``refuse`` by topic is raised instead."""

    def __init__(self) -> None:
        self.received: list[tuple[str, Outgoing]] = []
        self.refuse: dict[str, Exception] = {}
        self.batches: list[int] = []

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        if topic in self.refuse:
            raise self.refuse[topic]
        await self.accept(topic, records)
        return [str(len(self.received))] * len(records)

    async def accept(self, topic: str, records: Sequence[Outgoing]) -> None:
        self.batches.append(len(records))
        self.received += [(topic, record) for record in records]

    @property
    def envelopes(self) -> list[Envelope]:
        return [decode(record.value) for _, record in self.received]

    @property
    def labels(self) -> list[str]:
        return [role(envelope) for envelope in self.envelopes]


def role(envelope: Envelope) -> str:
    message = message_of(envelope)
    assert isinstance(message, MemberAdded)
    return message.role


@asynccontextmanager
async def relaying(relay: Relay) -> AsyncIterator[Relay]:
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


async def say(db: Database, label: str, org: UUID | None = None) -> None:
    async with db.change(Scope()) as change:
        change.publish(added(label, org))


def added(label: str, org: UUID | None = None) -> MemberAdded:
    return MemberAdded(org_id=str(org or uuid4()), user_id=str(uuid4()), role=label)


async def waiting(db: Database) -> int:
    async with db.session() as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM outbox")
    return count


async def nothing(db: Database) -> bool:
    return await waiting(db) == 0


def heard(receiver: Receiver, label: str) -> bool:
    return label in receiver.labels


async def end_relays_connections(db: Database) -> int:
    """Ends every connection that waits for notifications; their count."""
    async with db.session() as connection:
        ended: int = await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks"
            " WHERE locktype = 'advisory' AND granted AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    return ended


def record_of_audit() -> AuditRecorded:
    record = AuditRecorded(action="a", actor_kind="user", org_id=str(uuid4()))
    record.occurred_at.GetCurrentTime()
    return record


class Counting:
    """Writers that race for few rows; each change tells the row's new version."""

    def __init__(self, db: Database, rows: int) -> None:
        self.db = db
        self.dice = SystemRandom()
        self.rows = [uuid4() for _ in range(rows)]
        self.committed = 0

    async def prepare(self) -> None:
        async with self.db.change(Scope()) as change:
            await change.connection.executemany(
                "INSERT INTO counters (id) VALUES ($1)", [(row,) for row in self.rows]
            )

    async def write(self, times: int) -> None:
        for _ in range(times):
            try:
                await self._count(self.dice.choice(self.rows))
                self.committed += 1
            except LookupError:
                continue

    async def _count(self, row: UUID) -> None:
        async with self.db.change(Scope()) as change:
            version = await change.connection.fetchval(
                "UPDATE counters SET version = version + 1 WHERE id = $1 RETURNING version", row
            )
            change.publish(added(str(version), row))
            await asyncio.sleep(self.dice.random() / 200)
            if self.dice.random() < 0.1:
                raise LookupError

    async def disturb(self, receiver: Receiver) -> None:
        for _ in range(12):
            await asyncio.sleep(0.05)
            receiver.refuse[TOPIC] = self.dice.choice([BusUnavailable(), BusFull(), ValueError()])
            await asyncio.sleep(0.02)
            receiver.refuse.clear()
            if self.dice.random() < 0.4:
                await end_relays_connections(self.db)
