"""Events take effect once, in the transaction that notes their ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.clock import SystemClock
from common.database import Change, Database, Scope
from common.errors import NotFound, Unavailable
from common.events.bus import Backoff, Bus, Outgoing, Record, retry_topic
from common.events.consumer import EventConsumer, EventHandler
from common.events.dead_letters import DeadLetters, Letter
from common.events.envelope import Envelope, encode, envelope_for
from common.events.redis_streams import RedisStreamsBus
from common.identity.call import current_call_or_none
from common.telemetry import CORRELATION_HEADER, correlation_id
from common.testing import silent_telemetry
from fleet.embedded import Valkey
from mindweave.account.v1.events_pb2 import OrgCreated, OrgDeleted, OrgUpdated
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

NAME = "listener"
QUICK = Backoff(first=0.01, limit=0.05)
NOTES = """
CREATE TABLE notes (org_id uuid NOT NULL, note text NOT NULL);
SELECT mindweave_protect('notes');
"""

Make = Callable[..., Awaitable[EventConsumer]]


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    folder: Path = tmp_path_factory.mktemp("migrations")
    (folder / "0001_notes.sql").write_text(NOTES)
    return await service_database(NAME, folder, size=6)


@pytest.fixture
async def bus(valkey: Valkey) -> AsyncIterator[Bus]:
    bus = RedisStreamsBus(valkey.url, telemetry=silent_telemetry(NAME), lease=1.0)
    yield bus
    await bus.stop()


@pytest.fixture
async def topic(bus: Bus) -> str:
    name = f"events-{uuid4().hex[:12]}"
    await bus.declare(name, 1, [NAME])
    return name


@pytest.fixture
async def make(bus: Bus, db: Database, topic: str) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def start(handlers: Mapping[str, EventHandler], **options: Any) -> EventConsumer:
            given: dict[str, Any] = {
                "bus": bus,
                "db": db,
                "group": NAME,
                "topics": [topic],
                "backoff": QUICK,
            }
            consumer = EventConsumer(handlers=handlers, **given | options)
            await consumer.start()
            stack.push_async_callback(consumer.stop)
            return consumer

        yield start


def event(message: Any, org_id: UUID | None = None, user_id: UUID | None = None) -> Envelope:
    return envelope_for(message, "account", SystemClock(), org_id, user_id, "request-1")


def about(org: UUID) -> Envelope:
    return event(OrgDeleted(org_id=str(org)), org)


async def send(bus: Bus, topic: str, *envelopes: Envelope) -> None:
    await bus.publish(topic, [Outgoing(encode(envelope)) for envelope in envelopes])


async def note(change: Change, message: Any, envelope: Envelope) -> None:
    await change.connection.execute(
        "INSERT INTO notes (org_id, note) VALUES ($1, $2)",
        UUID(message.org_id),
        envelope.type,
    )


async def notes(db: Database, *orgs: UUID) -> list[str]:
    async with db.read(Scope(orgs)) as connection:
        return [r["note"] for r in await connection.fetch("SELECT note FROM notes")]


async def letters(bus: Bus, topic: str) -> list[Record]:
    return await bus.fetch(f"{topic}.dead", 0, None, max_records=10, wait=0)


async def handled(bus: Bus, topic: str) -> bool:
    """Whether no event waits, neither for its first attempt nor for another."""
    return not await bus.lag(topic, NAME) and not await bus.lag(retry_topic(topic, NAME), NAME)


async def test_an_event_delivered_again_takes_effect_once(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org = uuid4()
    envelope = about(org)
    await send(bus, topic, envelope, envelope)
    consumer = await make({"org.deleted": note})
    await send(bus, topic, envelope)
    await eventually(lambda: handled(bus, topic))
    assert await notes(db, org) == ["org.deleted"]
    await eventually(lambda: consumer.status().ready)


async def test_each_group_takes_an_event_for_itself(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org = uuid4()
    await make({"org.deleted": note})
    await make({"org.deleted": note}, group="another")
    await send(bus, topic, about(org))
    await eventually(lambda: _noted(db, org, 2))


async def _noted(db: Database, org: UUID, times: int) -> bool:
    return len(await notes(db, org)) == times


async def test_a_handler_that_fails_leaves_nothing_behind_and_is_tried_again(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org = uuid4()
    tries: list[str] = []

    async def handle(change: Change, message: Any, envelope: Envelope) -> None:
        await note(change, message, envelope)
        tries.append(correlation_id())
        if len(tries) == 1:
            raise KeyError("once")
        if len(tries) < 9:
            raise Unavailable("for a while")

    await make({"org.deleted": handle}, max_attempts=2)
    await send(bus, topic, about(org))
    await eventually(lambda: handled(bus, topic))
    assert len(tries) == 9
    assert await notes(db, org) == ["org.deleted"]
    assert await letters(bus, topic) == []


async def test_an_event_that_a_handler_always_refuses_is_a_dead_letter(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org, next_org = uuid4(), uuid4()

    async def handle(change: Change, message: Any, envelope: Envelope) -> None:
        await note(change, message, envelope)
        if message.org_id == str(org):
            raise NotFound("there is no such organization")

    await make({"org.deleted": handle}, max_attempts=3)
    envelope = about(org)
    await send(bus, topic, envelope, about(next_org))
    await eventually(lambda: handled(bus, topic))
    (letter,) = await letters(bus, topic)
    assert letter.value == encode(envelope)
    assert letter.headers["attempt"] == "3"
    assert letter.headers["origin-topic"] == topic
    assert letter.headers["error"] == "NotFound: there is no such organization"
    assert await notes(db, org, next_org) == ["org.deleted"]


async def test_a_dead_letter_that_is_replayed_takes_effect_once(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org = uuid4()
    broken = True

    async def handle(change: Change, message: Any, envelope: Envelope) -> None:
        if broken:
            raise KeyError("a bug")
        await note(change, message, envelope)

    await make({"org.deleted": handle}, max_attempts=1)
    await send(bus, topic, about(org))
    await eventually(lambda: handled(bus, topic))
    (letter,) = await letters(bus, topic)
    broken = False
    dead_letters = DeadLetters(bus, telemetry=silent_telemetry(), clock=SystemClock())
    for operator in ("ada", "bob"):
        await dead_letters.replay(Letter(letter), operator)
    await eventually(lambda: handled(bus, topic))
    assert await notes(db, org) == ["org.deleted"]


@pytest.mark.parametrize("ordered", [False, True])
async def test_an_event_that_fails_holds_up_others_only_where_order_is_asked_for(
    bus: Bus, topic: str, make: Make, ordered: bool
) -> None:
    bad, good = uuid4(), uuid4()
    tried: list[UUID] = []

    async def handle(change: Change, message: Any, envelope: Envelope) -> None:
        tried.append(UUID(message.org_id))
        if tried[-1] == bad and (len(tried) < 5 if ordered else good not in tried):
            raise KeyError("not yet")

    await send(bus, topic, about(bad), about(good))
    await make({"org.deleted": handle}, ordered=ordered, max_attempts=1000)
    await eventually(lambda: good in tried)
    await eventually(lambda: handled(bus, topic))
    assert tried[0] == bad
    assert tried[-1] == (good if ordered else bad)


async def test_types_without_a_handler_are_skipped_and_unknown_ones_are_dead_letters(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org = uuid4()
    created = event(OrgCreated(org_id=str(org), name="Ours"), org)
    unknown = encode(about(org)).replace(b"org.deleted", b"org.vanished")
    wrong = encode(about(org)).replace(b'"data":{', b'"data":{"size":3,')
    await bus.publish(topic, [Outgoing(v) for v in (b"noise", unknown, wrong)])
    await send(bus, topic, created, about(org))
    await make({"org.deleted": note})
    await eventually(lambda: handled(bus, topic))
    dead = await letters(bus, topic)
    assert [letter.value for letter in dead] == [b"noise", unknown, wrong]
    assert all(letter.headers["attempt"] == "1" for letter in dead)
    assert "not an envelope" in dead[0].headers["error"]
    assert "unknown event type org.vanished" in dead[1].headers["error"]
    assert "size" in dead[2].headers["error"]
    assert await notes(db, org) == ["org.deleted"]


async def test_a_handler_sees_only_the_organization_of_its_event(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org, other = uuid4(), uuid4()
    seen: list[tuple[list[UUID], Any]] = []

    async def look(change: Change, message: Any, envelope: Envelope) -> None:
        await change.connection.execute(
            "INSERT INTO notes (org_id, note) VALUES ($1, 'mine')", envelope.metadata.org_id
        )
        rows = await change.connection.fetch("SELECT org_id FROM notes")
        seen.append(([row["org_id"] for row in rows], current_call_or_none()))

    await make({"org.updated": look})
    await send(bus, topic, *(event(OrgUpdated(org_id=str(o)), o) for o in (org, other)))
    await eventually(lambda: handled(bus, topic))
    assert seen == [([org], None), ([other], None)]


async def test_what_a_handler_publishes_commits_with_its_effect(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    org = uuid4()
    tries = 0

    async def handle(change: Change, message: Any, envelope: Envelope) -> None:
        nonlocal tries
        tries += 1
        change.publish(OrgUpdated(org_id=message.org_id, fields=["name"]))
        if tries == 1:
            raise KeyError("once")

    await make({"org.deleted": handle})
    await bus.publish(
        topic, [Outgoing(encode(about(org)), headers={CORRELATION_HEADER: "request-7"})]
    )
    await eventually(lambda: handled(bus, topic))
    async with db.session() as connection:
        rows = await connection.fetch("SELECT value FROM outbox WHERE key = $1", str(org))
    assert len(rows) == 1
    assert b'"correlation_id":"request-7"' in rows[0]["value"]


async def test_two_consumers_of_a_group_share_the_work(
    bus: Bus, topic: str, make: Make, db: Database
) -> None:
    orgs = [uuid4() for _ in range(30)]
    first = await make({"org.deleted": note})
    await make({"org.deleted": note})
    await send(bus, topic, *(about(org) for org in orgs[:20]))
    await asyncio.sleep(0.05)
    await first.stop()
    await send(bus, topic, *(about(org) for org in orgs[20:]))
    await eventually(lambda: handled(bus, topic))
    assert len(await notes(db, *orgs)) == 30


def test_a_handler_of_a_type_that_no_proto_declares_is_refused(bus: Bus, db: Database) -> None:
    with pytest.raises(ValueError, match=r"moon\.risen"):
        EventConsumer(bus=bus, db=db, handlers={"moon.risen": note})
