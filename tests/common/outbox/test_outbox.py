from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest

from common.clock import ManualClock
from common.database import Database, Scope
from common.events.bus import BusUnavailable, Outgoing
from common.events.envelope import decode, message_of
from common.events.redis_streams import RedisStreamsBus
from common.outbox import Relay
from common.telemetry import bind_correlation_id
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from mindweave.account.v1.events_pb2 import OrgCreated
from tests.common.outboxes import (
    NAME,
    QUICK,
    START,
    TOPIC,
    Receiver,
    added,
    heard,
    nothing,
    relaying,
    role,
    say,
    waiting,
)
from tests.common.waiting import eventually

pytestmark = pytest.mark.store


def shown(db: Database, name: str) -> float | None:
    registry = db.telemetry.metrics.registry
    return registry.get_sample_value(f"mindweave_outbox_{name}", {"service": NAME})


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
            await eventually(partial(heard, receiver, str(n)))


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


async def test_the_age_and_number_of_what_waits_are_measured(db: Database) -> None:
    clock = db.clock
    assert isinstance(clock, ManualClock)
    receiver = Receiver()
    receiver.refuse[TOPIC] = BusUnavailable()
    async with relaying(Relay(db, receiver, poll=0.05, backoff=QUICK)) as relay:
        await say(db, "old")
        clock.advance(timedelta(seconds=90))
        await say(db, "young")
        await eventually(lambda: shown(db, "age_seconds") == 90.0)
        await eventually(lambda: relay.status().lag == shown(db, "messages") == 2)
        receiver.refuse.clear()
        await eventually(lambda: shown(db, "age_seconds") == 0.0)
        await eventually(lambda: relay.status().lag == shown(db, "messages") == 0)
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
