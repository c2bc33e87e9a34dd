"""Dead letters: buried, read, counted, replayed and discarded."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from common.clock import SystemClock
from common.events.bus import Bus, BusUnavailable, DeadLetter, Outgoing, Record, TopicUnknown
from common.events.dead_letters import (
    DeadLetters,
    Letter,
    LetterCount,
    LetterUnknown,
    NotReplayable,
)
from common.events.envelope import EventRefused, decode, message_of
from common.telemetry import Telemetry
from common.testing import silent_telemetry
from tests.common.brokers import Broker
from tests.common.bus_contract.conftest import QUICK, MakeBus, Seen, back, numbered, running
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


@pytest.fixture
def dead_letters(bus: Bus) -> DeadLetters:
    return DeadLetters(bus, telemetry=silent_telemetry(), clock=SystemClock())


async def letters(dead_letters: DeadLetters, topic: str) -> list[Letter]:
    try:
        return [letter async for letter in dead_letters.read(topic)]
    except TopicUnknown:
        return []


def buried(dead_letters: DeadLetters, topic: str, count: int) -> Callable[[], Awaitable[bool]]:
    async def are_there() -> bool:
        return len(await letters(dead_letters, topic)) == count

    return are_there


async def refuse(_: Record) -> None:
    raise DeadLetter("cannot be")


async def test_a_record_that_always_fails_is_buried_with_where_it_was_and_why(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 2, ["readers"])
    (token,) = await bus.publish(
        topic, [Outgoing(b"poison", key="k", partition=1, headers={"note": "mine"})]
    )
    await bus.publish(topic, numbered(range(2), partition=1))
    good = Seen()

    async def handle(record: Record) -> None:
        if record.value == b"poison":
            raise ValueError("cannot be done with mwu_0123456789abcdef" + "!" * 600)
        await good(record)

    async with running(bus.subscribe([topic], "readers", handle, max_attempts=3, backoff=QUICK)):
        await eventually(buried(dead_letters, topic, 1))
    assert good.values == [b"0", b"1"]
    (letter,) = await letters(dead_letters, topic)
    assert letter.id.startswith(f"{topic}.dead/0/")
    assert (letter.record.value, letter.record.key) == (b"poison", "k")
    assert letter.record.headers["note"] == "mine"
    origin = letter.origin
    assert (origin.topic, origin.partition, origin.token) == (topic, 1, token)
    assert (origin.group, origin.attempts) == ("readers", 3)
    assert letter.error.startswith("ValueError: cannot be done with mwu_***!!!")
    assert len(letter.error) <= 500
    assert letter.when.endswith("+00:00")
    assert letter.state == "waiting"


async def test_an_unknown_event_type_becomes_a_dead_letter_at_once(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers"])
    unknown = (
        b'{"id":"%s","type":"moon.risen","source":"sky","timestamp":"2026-01-01T00:00:00Z","data":{}}'
        % str(uuid4()).encode()
    )
    await bus.publish(topic, [Outgoing(unknown), Outgoing(b"next")])
    seen = Seen()

    async def handle(record: Record) -> None:
        if record.value == b"next":
            return await seen(record)
        with pytest.raises(EventRefused) as refused:
            message_of(decode(record.value))
        raise refused.value

    async with running(bus.subscribe([topic], "readers", handle)):
        await eventually(lambda: seen.values == [b"next"])
    (letter,) = await letters(dead_letters, topic)
    assert letter.error == "EventRefused: unknown event type moon.risen"
    assert letter.origin.attempts == 1


async def test_a_record_of_a_megabyte_has_room_for_what_a_dead_letter_says_of_it(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers"])
    value = random.Random(7).randbytes(1024 * 1024)
    await bus.publish(topic, [Outgoing(value)])

    async def handle(_: Record) -> None:
        raise ValueError("!" * 500)

    async with running(bus.subscribe([topic], "readers", handle, max_attempts=2, backoff=QUICK)):
        await eventually(buried(dead_letters, topic, 1))
    (letter,) = await letters(dead_letters, topic)
    assert letter.record.value == value


async def test_a_replay_goes_to_the_group_that_failed_and_to_no_other(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers", "others"])
    (token,) = await bus.publish(topic, [Outgoing(b"x", key="k", headers={"note": "mine"})])
    mended, others = Seen(), Seen()
    broken = True

    async def handle(record: Record) -> None:
        if broken:
            raise DeadLetter("a bug")
        await mended(record)

    async with running(
        bus.subscribe([topic], "readers", handle), bus.subscribe([topic], "others", others)
    ):
        await eventually(buried(dead_letters, topic, 1))
        broken = False
        (letter,) = await letters(dead_letters, topic)
        await dead_letters.replay(letter, "ada")
        await eventually(lambda: len(mended.records) == 1)
    (record,) = mended.records
    assert (record.topic, record.partition, record.token) == (topic, 0, token)
    assert (record.value, record.key, record.headers["note"]) == (b"x", "k", "mine")
    assert record.attempt == 1
    assert others.values == [b"x"]
    (letter,) = await dead_letters.find([letter.id])
    assert letter.state == "replayed"
    assert [(s.by, s.outcome) for s in letter.settlements] == [("ada", "replayed")]


async def test_a_replay_that_fails_again_is_a_new_letter_that_names_the_first(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(1)))

    async def handle(_: Record) -> None:
        raise ValueError("still a bug")

    reading = bus.subscribe([topic], "readers", handle, max_attempts=2, backoff=QUICK)
    async with running(reading):
        await eventually(buried(dead_letters, topic, 1))
        (first,) = await letters(dead_letters, topic)
        await dead_letters.replay(first, "ada")
        await eventually(buried(dead_letters, topic, 2))
    first, second = await letters(dead_letters, topic)
    assert (first.state, second.state) == ("replayed", "waiting")
    assert second.replay_of == first.id
    assert second.origin == first.origin


async def test_a_letter_that_two_operators_settle_keeps_both_their_names(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(1)))
    async with running(bus.subscribe([topic], "readers", refuse)):
        await eventually(buried(dead_letters, topic, 1))
    (letter,) = await letters(dead_letters, topic)
    await dead_letters.discard(letter, "ada", "a test")
    await dead_letters.replay(letter, "bob")
    (letter,) = await letters(dead_letters, topic)
    assert letter.state == "replayed"
    assert [(s.by, s.outcome, s.reason) for s in letter.settlements] == [
        ("ada", "discarded", "a test"),
        ("bob", "replayed", ""),
    ]


async def test_letters_are_counted_by_what_became_of_them(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers"])
    early, late = silent_telemetry(), silent_telemetry()
    await bus.publish(topic, numbered(range(3)))
    async with running(bus.subscribe([topic], "readers", refuse)):
        await eventually(buried(dead_letters, topic, 3))
        watching = LetterCount(bus, [topic], early)
        await watching.refresh()
        assert counts(early, topic) == {"waiting": 3, "replayed": 0, "discarded": 0}
        first, second, _ = await letters(dead_letters, topic)
        await dead_letters.discard(first, "ada", "a test")
        await dead_letters.replay(second, "ada")
        await eventually(buried(dead_letters, topic, 4))
        await watching.refresh()
    assert counts(early, topic) == {"waiting": 2, "replayed": 1, "discarded": 1}
    await dead_letters.replay(first, "bob")
    await watching.refresh()
    assert counts(early, topic) == {"waiting": 2, "replayed": 2, "discarded": 0}
    await LetterCount(bus, [topic], late).refresh()
    assert counts(late, topic) == counts(early, topic)


def counts(telemetry: Telemetry, topic: str) -> dict[str, float]:
    found = {}
    for state in ("waiting", "replayed", "discarded"):
        labels = {"service": "test", "topic": topic, "state": state}
        value = telemetry.metrics.registry.get_sample_value("mindweave_dead_letters", labels)
        assert value is not None
        found[state] = value
    return found


async def test_letters_that_retention_has_taken_are_gone_and_the_count_begins_anew(
    broker: Broker, bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(3)))
    telemetry = silent_telemetry()
    counting = LetterCount(bus, [topic], telemetry)
    reading = bus.subscribe([topic], "readers", refuse)
    async with running(reading):
        await eventually(buried(dead_letters, topic, 3))
        await counting.refresh()
        first, second, third = await letters(dead_letters, topic)
        await bus.publish(topic, numbered(range(3, 5)))
        await eventually(buried(dead_letters, topic, 5))
        (*_, fourth, _) = await letters(dead_letters, topic)
        await broker.forget(f"{topic}.dead", 0, fourth.record.token)
    with pytest.raises(LetterUnknown, match=first.id):
        await dead_letters.find([first.id])
    await dead_letters.discard(second, "ada", "it was there a moment ago")
    for _ in range(2):
        await counting.refresh()
    assert counts(telemetry, topic) == {"waiting": 1, "replayed": 0, "discarded": 0}
    assert third.id not in {letter.id for letter in await letters(dead_letters, topic)}


async def test_what_was_never_there_is_unknown(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(f"{topic}.dead", 1)
    for strange in ("", "nothing", f"{topic}.dead/0/7-7", "a b.dead/0/1", f"{topic}.dead/x/1"):
        with pytest.raises(LetterUnknown):
            await dead_letters.find([strange])


async def test_a_letter_that_nobody_would_read_is_not_replayed(
    bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(f"{topic}.dead", 1)
    await bus.publish(f"{topic}.dead", [Outgoing(b"\xff of somebody else", headers={"note": "x"})])
    (letter,) = await letters(dead_letters, topic)
    with pytest.raises(NotReplayable):
        await dead_letters.replay(letter, "ada")
    assert [each.state for each in await letters(dead_letters, topic)] == ["waiting"]


async def test_a_letter_is_settled_only_where_the_broker_has_confirmed_it(
    broker: Broker, make_bus: MakeBus, bus: Bus, topic: str, dead_letters: DeadLetters
) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(1)))
    async with running(bus.subscribe([topic], "readers", refuse)):
        await eventually(buried(dead_letters, topic, 1))
    (letter,) = await letters(dead_letters, topic)
    broker.kill()
    with pytest.raises(BusUnavailable):
        await dead_letters.replay(letter, "ada")
    with pytest.raises(BusUnavailable):
        await dead_letters.discard(letter, "ada", "a test")
    with pytest.raises(BusUnavailable):
        await letters(dead_letters, topic)
    broker.start()
    await back(bus)
    again = DeadLetters(await make_bus(), telemetry=silent_telemetry(), clock=SystemClock())
    states: list[str] = []

    async def answers() -> bool:
        try:
            states[:] = [each.state for each in await letters(again, topic)]
        except BusUnavailable:
            return False
        return True

    await eventually(answers)
    assert states == ["waiting"]
