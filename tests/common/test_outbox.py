from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import SystemRandom
from uuid import UUID, uuid4

import asyncpg
import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from common.events.bus import Backoff, BusFull, BusUnavailable, Outgoing, TopicUnknown
from common.events.envelope import Envelope, decode, message_of
from common.events.redis_streams import RedisStreamsBus
from common.outbox import Relay
from common.settings import Settings
from common.telemetry import bind_correlation_id
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from mindweave.account.v1.events_pb2 import OrgCreated
from mindweave.audit.v1.events_pb2 import AuditRecorded
from mindweave.team.v1.events_pb2 import MemberAdded
from tests.common.brokers import RedisStreams
from tests.common.waiting import eventually

pytestmark = pytest.mark.store

NAME = "sender"
TOPIC = "platform.events"
QUICK = Backoff(first=0.01, limit=0.05)
START = datetime(2026, 11, 21, 9, tzinfo=UTC)
COUNTERS = "CREATE TABLE counters (id uuid PRIMARY KEY, version int NOT NULL DEFAULT 0)"


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_counters.sql").write_text(COUNTERS)
    return await service_database(NAME, folder, size=8, clock=ManualClock(START))


@pytest.fixture(autouse=True)
async def _empty_outbox(db: Database) -> AsyncIterator[None]:
    yield
    async with db.session() as connection:
        await connection.execute("DELETE FROM outbox")


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


def age(db: Database) -> float | None:
    return db.telemetry.metrics.registry.get_sample_value(
        "mindweave_outbox_age_seconds", {"service": NAME}
    )


async def waiting(db: Database) -> int:
    async with db.session() as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM outbox")
    return count


async def end_relays_connections(db: Database) -> int:
    """Ends every connection that waits for notifications; their count."""
    async with db.session() as connection:
        ended: int = await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks"
            " WHERE locktype = 'advisory' AND granted AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    return ended


async def test_what_a_change_publishes_is_sent_whole_and_then_forgotten(
    db: Database, valkey: Valkey
) -> None:
    bus = RedisStreamsBus(valkey.url, telemetry=silent_telemetry(NAME))
    org = uuid4()
    bind_correlation_id("cause-of-it-all")
    message = added("owner", org)
    try:
        await bus.declare(TOPIC, 1)
        before = await bus.end(TOPIC, 0)
        async with relaying(Relay(db, bus, backoff=QUICK)):
            async with db.change(Scope()) as change:
                change.publish(message)
            [record] = await bus.fetch(TOPIC, 0, before, max_records=10, wait=10)
            await eventually(lambda: nothing(db))
    finally:
        bind_correlation_id("")
        await bus.stop()
    envelope = decode(record.value)
    assert record.key == str(org)
    assert record.headers["content-type"] == "application/json"
    assert record.headers["x-correlation-id"] == "cause-of-it-all"
    assert message_of(envelope) == message
    assert (envelope.type, envelope.source) == ("member.added", NAME)
    assert envelope.correlation_id == "cause-of-it-all"
    assert envelope.metadata.org_id == org
    assert str(envelope.metadata.user_id) == message.user_id
    assert envelope.timestamp == START


def received(receiver: Receiver, count: int) -> bool:
    return len(receiver.received) == count


async def nothing(db: Database) -> bool:
    return await waiting(db) == 0


async def test_a_change_that_fails_publishes_nothing(db: Database) -> None:
    receiver = Receiver()

    async def fail() -> None:
        async with db.change(Scope()) as change:
            change.publish(added("never"))
            raise LookupError

    async with relaying(Relay(db, receiver)):
        with pytest.raises(LookupError):
            await fail()
        await say(db, "after")
        await eventually(lambda: bool(receiver.received))
    assert receiver.labels == ["after"]


async def test_a_notification_wakes_the_relay(db: Database) -> None:
    receiver = Receiver()
    async with relaying(Relay(db, receiver, poll=3600)) as relay:
        await eventually(lambda: relay.status().detail == "sending")
        for n in range(3):
            await say(db, str(n))
            await eventually(partial(received, receiver, n + 1))


async def test_a_message_is_found_though_nobody_notified(db: Database) -> None:
    receiver = Receiver()
    await say(db, "before the start")
    async with relaying(Relay(db, receiver, poll=0.05)):
        await eventually(lambda: len(receiver.received) == 1)
        async with db.session() as connection:
            await connection.execute(
                "INSERT INTO outbox (topic, key, value, created_at) VALUES ($1, '', $2, now())",
                TOPIC,
                receiver.received[0][1].value,
            )
        await eventually(lambda: len(receiver.received) == 2)


async def test_a_row_that_commits_after_a_younger_one_is_sent_all_the_same(db: Database) -> None:
    receiver = Receiver()
    async with relaying(Relay(db, receiver, poll=0.05)):
        async with db.change(Scope()) as slow:
            slow.publish(added("older"))
            await slow.finish()
            await say(db, "younger")
            await eventually(lambda: receiver.labels == ["younger"])
        await eventually(lambda: receiver.labels == ["younger", "older"])


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


async def test_events_of_one_row_keep_the_order_of_its_changes(db: Database) -> None:
    receiver, counting = Receiver(), Counting(db, rows=3)
    await counting.prepare()
    async with relaying(Relay(db, receiver, batch=7, poll=0.05, backoff=QUICK)):
        await asyncio.gather(*(counting.write(25) for _ in range(6)), counting.disturb(receiver))
        await eventually(lambda: nothing(db))
    first_seen: dict[UUID, Envelope] = {}
    for envelope in receiver.envelopes:
        first_seen.setdefault(envelope.id, envelope)
    assert len(first_seen) == counting.committed
    versions: dict[UUID | None, list[int]] = defaultdict(list)
    for envelope in first_seen.values():
        versions[envelope.metadata.org_id].append(int(role(envelope)))
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())


async def test_a_relay_that_ends_between_sending_and_deleting_sends_the_same_envelope_again(
    db: Database,
) -> None:
    class Cut(Receiver):
        async def accept(self, topic: str, records: Sequence[Outgoing]) -> None:
            await super().accept(topic, records)
            if len(self.batches) == 1:
                assert await end_relays_connections(db) == 1

    receiver = Cut()
    await say(db, "once")
    async with relaying(Relay(db, receiver, backoff=QUICK)):
        await eventually(lambda: nothing(db))
    assert receiver.labels == ["once", "once"]
    first, second = receiver.envelopes
    assert first.id == second.id
    assert receiver.received[0] == receiver.received[1]


async def test_a_relay_cancelled_in_mid_batch_leaves_it_to_the_next(db: Database) -> None:
    class Silent(Receiver):
        async def accept(self, topic: str, records: Sequence[Outgoing]) -> None:
            await super().accept(topic, records)
            await asyncio.Event().wait()

    silent, receiver = Silent(), Receiver()
    await say(db, "kept")
    async with relaying(Relay(db, silent, patience=0.05)):
        await eventually(lambda: bool(silent.received))
    async with relaying(Relay(db, receiver)):
        await eventually(lambda: nothing(db))
    assert [e.id for e in silent.envelopes] == [e.id for e in receiver.envelopes]


async def test_a_stopping_relay_finishes_its_batch_and_no_more(db: Database) -> None:
    class Slow(Receiver):
        taken = asyncio.Event()

        async def accept(self, topic: str, records: Sequence[Outgoing]) -> None:
            self.taken.set()
            await asyncio.sleep(0.1)
            await super().accept(topic, records)

    slow = Slow()
    for n in range(5):
        await say(db, str(n))
    async with relaying(Relay(db, slow, batch=2)) as relay:
        await slow.taken.wait()
    assert slow.labels == ["0", "1"]
    assert await waiting(db) == 3
    assert not relay.status().ready


async def test_messages_wait_while_the_broker_is_down_and_go_once_it_is_up(
    db: Database, tmp_path: Path
) -> None:
    broker = RedisStreams(tmp_path)
    broker.start()
    bus = RedisStreamsBus(broker.address, telemetry=silent_telemetry(NAME))
    try:
        await bus.declare(TOPIC, 1)
        async with relaying(Relay(db, bus, backoff=QUICK)) as relay:
            await say(db, "up")
            await eventually(lambda: nothing(db))
            broker.kill()
            for label in ("down", "down too"):
                await say(db, label)
            await eventually(lambda: TOPIC in relay.status().detail)
            assert relay.status().ready
            assert await waiting(db) == 2
            await asyncio.to_thread(broker.start)
            await eventually(lambda: nothing(db))
            records = await bus.fetch(TOPIC, 0, None, max_records=10, wait=10)
    finally:
        await bus.stop()
        broker.stop()
    assert [role(decode(record.value)) for record in records] == ["up", "down", "down too"]


async def test_a_full_topic_waits_and_the_others_go_on(db: Database) -> None:
    receiver = Receiver()
    receiver.refuse[TOPIC] = BusFull()
    for n in range(8):
        await say(db, str(n))
    async with db.change(Scope()) as change:
        change.publish(record_of_audit())
    never = Backoff(first=3600, limit=3600)
    async with relaying(Relay(db, receiver, batch=2, poll=3600, backoff=never)) as relay:
        await eventually(lambda: [topic for topic, _ in receiver.received] == ["audit.log"])
        await eventually(lambda: relay.status().lag == 8)
        assert TOPIC in relay.status().detail
    receiver.refuse.clear()
    async with relaying(Relay(db, receiver, batch=2)):
        await eventually(lambda: nothing(db))
    assert [role(e) for e in receiver.envelopes[1:]] == [str(n) for n in range(8)]


def record_of_audit() -> AuditRecorded:
    record = AuditRecorded(action="a", actor_kind="user", org_id=str(uuid4()))
    record.occurred_at.GetCurrentTime()
    return record


async def test_a_topic_with_little_room_takes_fewer_messages_at_a_time(db: Database) -> None:
    class Narrow(Receiver):
        async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
            if len(records) > 2:
                raise BusFull
            return await super().publish(topic, records)

    narrow = Narrow()
    for n in range(6):
        await say(db, str(n))
    async with relaying(Relay(db, narrow, batch=16, backoff=QUICK)):
        await eventually(lambda: nothing(db))
    assert narrow.labels == [str(n) for n in range(6)]


async def test_an_unexpected_refusal_does_not_end_the_relay(db: Database) -> None:
    receiver = Receiver()
    receiver.refuse[TOPIC] = TopicUnknown(TOPIC)
    async with relaying(Relay(db, receiver, poll=0.05, backoff=QUICK)) as relay:
        await say(db, "early")
        await eventually(lambda: TOPIC in relay.status().detail)
        assert relay.status().live
        receiver.refuse.clear()
        await eventually(lambda: receiver.labels == ["early"])


async def test_of_two_relays_one_sends_until_it_ends(db: Database) -> None:
    one, other = Receiver(), Receiver()
    first, second = Relay(db, one, poll=0.05), Relay(db, other, poll=0.05)
    async with relaying(second), relaying(first):
        await eventually(
            lambda: {first.status().detail, second.status().detail} == {"sending", "standby"}
        )
        if first.status().detail == "standby":
            first, second, one, other = second, first, other, one
        assert first.status().ready
        assert second.status().ready
        for n in range(20):
            await say(db, str(n))
        await eventually(lambda: nothing(db))
        assert (len(one.received), len(other.received)) == (20, 0)
        await first.stop()
        await say(db, "taken over")
        await eventually(lambda: other.labels == ["taken over"])
        assert second.status().detail == "sending"


async def test_a_relay_whose_connection_is_cut_connects_again(db: Database) -> None:
    receiver = Receiver()
    async with relaying(Relay(db, receiver, poll=3600, backoff=QUICK)) as relay:
        for n in range(3):
            await eventually(lambda: relay.status().detail == "sending")
            assert await end_relays_connections(db) == 1
            await say(db, str(n))
            await eventually(partial(received, receiver, n + 1))
    assert receiver.labels == ["0", "1", "2"]


async def test_a_relay_that_cannot_read_its_table_tries_again(
    db: Database, settings: Settings
) -> None:
    receiver = Receiver()
    owner = await asyncpg.connect(settings.owner_dsn(NAME))
    try:
        await owner.execute("ALTER TABLE outbox RENAME TO hidden")
        async with relaying(Relay(db, receiver, poll=0.05, backoff=QUICK)) as relay:
            await eventually(lambda: relay.status().detail == "failing")
            await owner.execute("ALTER TABLE hidden RENAME TO outbox")
            await say(db, "found")
            await eventually(lambda: receiver.labels == ["found"])
    finally:
        await owner.close()


async def test_the_age_of_what_waits_is_measured(db: Database) -> None:
    clock = db.clock
    assert isinstance(clock, ManualClock)
    receiver = Receiver()
    receiver.refuse[TOPIC] = BusUnavailable()
    async with relaying(Relay(db, receiver, poll=0.05, backoff=QUICK)) as relay:
        await say(db, "old")
        clock.advance(timedelta(seconds=90))
        await say(db, "young")
        await eventually(lambda: age(db) == 90.0)
        await eventually(lambda: relay.status().lag == 2)
        receiver.refuse.clear()
        await eventually(lambda: age(db) == 0.0)
        await eventually(lambda: relay.status().lag == 0)
    sent = db.telemetry.metrics.registry.get_sample_value(
        "mindweave_outbox_sent_total", {"service": NAME, "topic": TOPIC}
    )
    assert sent is not None
    assert sent >= 2


async def test_a_standby_measures_too(db: Database) -> None:
    receiver = Receiver()
    receiver.refuse[TOPIC] = BusUnavailable()
    async with relaying(Relay(db, receiver, poll=0.05, backoff=QUICK)) as leader:
        await eventually(lambda: leader.status().detail == "sending")
        await say(db, "stays")
        async with relaying(Relay(db, receiver, poll=0.05)) as standby:
            await eventually(lambda: standby.status().detail == "standby")
            await eventually(lambda: standby.status().lag == 1)


async def test_other_events_of_a_change_keep_their_order_within_it(db: Database) -> None:
    receiver = Receiver()
    org = uuid4()
    async with db.change(Scope()) as change:
        change.publish(OrgCreated(org_id=str(org), name="Acme"))
        for n in range(50):
            change.publish(added(str(n), org))
    async with relaying(Relay(db, receiver, batch=8)):
        await eventually(lambda: nothing(db))
    assert receiver.envelopes[0].type == "org.created"
    assert [role(e) for e in receiver.envelopes[1:]] == [str(n) for n in range(50)]
