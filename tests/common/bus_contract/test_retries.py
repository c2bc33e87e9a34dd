"""What becomes of records that a handler fails on, before they are done."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from common.errors import Unavailable
from common.events.bus import Backoff, Bus, DeadLetter, Outgoing, Record, TopicUnknown, retry_topic
from tests.common.brokers import Broker
from tests.common.bus_contract.conftest import QUICK, MakeBus, Seen, back, numbered, running
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

NEVER = Backoff(first=3600, limit=3600)


async def caught_up(bus: Bus, topic: str) -> bool:
    waits = [await bus.lag(name, "readers") for name in (topic, retry_topic(topic, "readers"))]
    return waits == [0, 0]


async def test_a_record_that_fails_comes_again_and_its_partition_goes_on_meanwhile(
    bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, numbered(range(1), partition=1))
    (token,) = await bus.publish(
        topic, [Outgoing(b"1", key="k", partition=1, headers={"note": "mine"})]
    )
    await bus.publish(topic, numbered(range(2, 4), partition=1))
    seen = Seen()

    async def handle(record: Record) -> None:
        await seen(record)
        if record.value == b"1" and (record.attempt < 3 or b"3" not in seen.values):
            raise ValueError("not yet")

    async with running(bus.subscribe([topic], "readers", handle, max_attempts=1000, backoff=QUICK)):
        await eventually(lambda: seen.values.count(b"1") >= 3 and b"3" in seen.values)
        await eventually(lambda: caught_up(bus, topic))
    assert [value for value in seen.values if value != b"1"] == [b"0", b"2", b"3"]
    tries = [record for record in seen.records if record.value == b"1"]
    assert [record.attempt for record in tries] == list(range(1, len(tries) + 1))
    assert {(r.topic, r.partition, r.token, r.key) for r in tries} == {(topic, 1, token, "k")}
    assert {record.headers["note"] for record in tries} == {"mine"}
    assert await bus.end(topic + ".dead", 0) is None


async def test_where_order_is_needed_the_partition_waits_for_the_record_that_fails(
    bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(3)))
    attempts: list[tuple[bytes, int]] = []

    async def handle(record: Record) -> None:
        attempts.append((record.value, record.attempt))
        if record.value == b"1":
            raise ValueError("never")

    reading = bus.subscribe([topic], "readers", handle, ordered=True, max_attempts=3, backoff=QUICK)
    async with running(reading):
        await eventually(lambda: (b"2", 1) in attempts)
    assert attempts == [(b"0", 1), (b"1", 1), (b"1", 2), (b"1", 3), (b"2", 1)]
    assert await bus.end(topic + ".dead", 0) is not None
    assert await bus.end(retry_topic(topic, "readers"), 0) is None


async def test_what_is_down_for_a_while_holds_its_place_and_makes_no_dead_letter(
    bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(2)))
    seen = Seen()

    async def handle(record: Record) -> None:
        if record.attempt < 8:
            raise Unavailable("the database is down") if record.attempt % 2 else ConnectionError
        await seen(record)

    async with running(bus.subscribe([topic], "readers", handle, max_attempts=2, backoff=QUICK)):
        await eventually(lambda: seen.values == [b"0", b"1"])
    assert await bus.end(topic + ".dead", 0) is None
    assert await bus.end(retry_topic(topic, "readers"), 0) is None


async def test_each_group_tries_its_own_failures_again(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers", "others"])
    failing, fine = Seen(), Seen()

    async def handle(record: Record) -> None:
        await failing(record)
        if record.attempt < 3:
            raise ValueError("not yet")

    async with running(
        bus.subscribe([topic], "readers", handle, backoff=QUICK),
        bus.subscribe([topic], "others", fine, backoff=QUICK),
    ):
        await bus.publish(topic, numbered(range(1)))
        await eventually(lambda: len(failing.records) == 3 and len(fine.records) == 1)
        await eventually(lambda: caught_up(bus, topic))
    assert [record.attempt for record in fine.records] == [1]


async def test_a_stop_ends_the_wait_of_a_record_that_is_not_due_and_loses_nothing(
    make_bus: MakeBus, topic: str
) -> None:
    bus = await make_bus()
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(1)))

    async def refuse(_: Record) -> None:
        raise ValueError("not now")

    async with running(bus.subscribe([topic], "readers", refuse, backoff=NEVER)):
        await eventually(lambda: _is_put_off(bus, topic))
    assert await bus.lag(retry_topic(topic, "readers"), "readers") == 1

    seen = Seen()
    later = (await make_bus()).subscribe([topic], "readers", seen, backoff=QUICK)
    async with running(later):
        await eventually(lambda: seen.values == [b"0"])
    assert seen.records[0].attempt == 2


async def _is_put_off(bus: Bus, topic: str) -> bool:
    return (
        await bus.lag(topic, "readers") == 0
        and await bus.end(retry_topic(topic, "readers"), 0) is not None
    )


async def test_a_retry_that_somebody_else_has_written_is_handled_or_buried_all_the_same(
    bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    seen = Seen()

    async def handle(record: Record) -> None:
        await seen(record)
        if record.value == b"bad":
            raise DeadLetter("bad")

    retries = retry_topic(topic, "readers")
    async with running(bus.subscribe([topic], "readers", handle, backoff=QUICK)):
        await eventually(lambda: _exists(bus, retries))
        strange = {"attempt": "many", "not-before": "-7", "origin-topic": "elsewhere"}
        await bus.publish(retries, [Outgoing(b"bad", headers=strange), Outgoing(b"good")])
        await eventually(lambda: seen.values == [b"bad", b"good"])
        await eventually(lambda: caught_up(bus, topic))
    assert {(record.topic, record.attempt) for record in seen.records} == {(topic, 1)}
    assert await bus.end(topic + ".dead", 0) is not None


async def _exists(bus: Bus, topic: str) -> bool:
    try:
        await bus.partitions(topic)
    except TopicUnknown:
        return False
    return True


async def test_failures_outlive_the_broker_and_the_reader(
    broker: Broker, make_bus: MakeBus, topic: str
) -> None:
    bus = await make_bus()
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, [Outgoing(b"%d" % n, partition=n % 2) for n in range(20)])
    begun = asyncio.Event()
    done: set[bytes] = set()

    async def handle(record: Record) -> None:
        begun.set()
        if record.attempt < 3:
            raise ValueError("not yet")
        done.add(record.value)

    first = bus.subscribe([topic], "readers", handle, max_attempts=1000, backoff=QUICK)
    async with running(first):
        await begun.wait()
        broker.kill()
        broker.start()
        await back(bus)
    last = (await make_bus()).subscribe(
        [topic], "readers", handle, max_attempts=1000, backoff=QUICK
    )
    async with running(last):
        await eventually(lambda: len(done) == 20)
        await eventually(partial(caught_up, bus, topic))
    assert await bus.end(topic + ".dead", 0) is None
