from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from common.database import Database, Scope
from common.events.bus import Backoff, BusFull, Outgoing, TopicUnknown
from common.events.envelope import Envelope, decode
from common.events.redis_streams import RedisStreamsBus
from common.outbox import Relay
from common.settings import Settings
from common.testing import silent_telemetry
from tests.common.brokers import RedisStreams
from tests.common.outboxes import (
    NAME,
    QUICK,
    TOPIC,
    Counting,
    Receiver,
    end_relays_connections,
    heard,
    nothing,
    record_of_audit,
    relaying,
    role,
    say,
    waiting,
)
from tests.common.waiting import eventually

pytestmark = pytest.mark.store


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


async def test_a_relay_whose_connection_is_cut_connects_again(db: Database) -> None:
    receiver = Receiver()
    async with relaying(Relay(db, receiver, poll=3600, backoff=QUICK)) as relay:
        for n in range(3):
            await eventually(lambda: relay.status().detail == "sending")
            assert await end_relays_connections(db) == 1
            await say(db, str(n))
            await eventually(partial(heard, receiver, str(n)))


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
