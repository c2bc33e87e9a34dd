"""What a subscription does with its handler, and with the handler's errors."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from itertools import count
from uuid import uuid4

import pytest

from common.errors import Unavailable
from common.events.bus import Bus, Outgoing, Record
from common.events.envelope import EventRefused, decode, message_of
from common.telemetry import CORRELATION_HEADER, correlation_id, inject
from common.testing import silent_telemetry
from tests.common.bus_contract.conftest import QUICK, Seen, numbered, read_all, running
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

MEGABYTE = 1024 * 1024


async def test_a_handler_that_fails_gets_the_record_again(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(3)))
    attempts: list[tuple[bytes, int]] = []

    async def handle(record: Record) -> None:
        attempts.append((record.value, record.attempt))
        if record.value == b"1" and record.attempt < 3:
            raise ValueError("not yet")

    async with running(bus.subscribe([topic], "readers", handle, backoff=QUICK)):
        await eventually(lambda: (b"2", 1) in attempts)
    assert attempts == [(b"0", 1), (b"1", 1), (b"1", 2), (b"1", 3), (b"2", 1)]
    assert await bus.end(topic + ".dead", 0) is None


async def test_a_record_that_always_fails_becomes_a_dead_letter(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, numbered(range(1), partition=1))
    tokens = await bus.publish(
        topic, [Outgoing(b"poison", key="k", partition=1, headers={"note": "mine"})]
    )
    await bus.publish(topic, numbered(range(2, 3), partition=1))
    good = Seen()

    async def handle(record: Record) -> None:
        if record.value == b"poison":
            raise ValueError("cannot be done")
        await good(record)

    async with running(bus.subscribe([topic], "readers", handle, max_attempts=3, backoff=QUICK)):
        await eventually(lambda: good.values == [b"0", b"2"])
    (letter,) = await read_all(bus, topic + ".dead", 0)
    assert (letter.value, letter.key) == (b"poison", "k")
    assert letter.headers["note"] == "mine"
    assert letter.headers["origin-topic"] == topic
    assert letter.headers["origin-partition"] == "1"
    assert letter.headers["origin-token"] == tokens[0]
    assert letter.headers["error"] == "ValueError: cannot be done"
    assert letter.headers["attempt"] == "3"


async def test_what_is_down_for_a_while_makes_no_dead_letter(bus: Bus, topic: str) -> None:
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


async def test_an_unknown_event_type_becomes_a_dead_letter_at_once(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    envelope = {
        "id": str(uuid4()),
        "type": "moon.risen",
        "source": "sky",
        "timestamp": "2026-01-01T00:00:00Z",
        "data": {},
    }
    await bus.publish(topic, [Outgoing(json.dumps(envelope).encode()), Outgoing(b"next")])
    seen = Seen()

    async def handle(record: Record) -> None:
        if record.value == b"next":
            return await seen(record)
        with pytest.raises(EventRefused) as refused:
            message_of(decode(record.value))
        raise refused.value

    async with running(bus.subscribe([topic], "readers", handle)):
        await eventually(lambda: seen.values == [b"next"])
    (letter,) = await read_all(bus, topic + ".dead", 0)
    assert letter.headers["error"] == "EventRefused: unknown event type moon.risen"
    assert letter.headers["attempt"] == "1"


async def test_a_slow_handler_does_not_pile_up_records_in_memory(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    for _ in range(64):
        await bus.publish(topic, [Outgoing(bytes(MEGABYTE))])
    begun, go_on = asyncio.Event(), asyncio.Event()
    seen = count(1)
    handled = 0

    async def handle(_: Record) -> None:
        nonlocal handled
        handled = next(seen)
        begun.set()
        await go_on.wait()

    tracemalloc.start()
    try:
        async with running(bus.subscribe([topic], "readers", handle)):
            await begun.wait()
            await asyncio.sleep(1)
            held, _ = tracemalloc.get_traced_memory()
            assert held < 24 * MEGABYTE
            go_on.set()
            await eventually(lambda: handled == 64)
            _, peak = tracemalloc.get_traced_memory()
            assert peak < 40 * MEGABYTE
    finally:
        tracemalloc.stop()


async def test_a_handler_goes_on_in_the_trace_and_under_the_correlation_id_of_the_publisher(
    bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    telemetry = silent_telemetry("publisher")
    trace_id = uuid4().hex
    request = {"traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-01", CORRELATION_HEADER: "first"}
    traces: list[tuple[str, str]] = []

    async def publish() -> None:
        with telemetry.continued(request, "the request"):
            other = {CORRELATION_HEADER: "second"}
            await bus.publish(topic, [Outgoing(b"x"), Outgoing(b"y", headers=other)])

    async def handle(_: Record) -> None:
        headers: dict[str, str] = {}
        inject(headers)
        traces.append((correlation_id(), headers["traceparent"].split("-")[1]))

    await asyncio.create_task(publish())
    async with running(bus.subscribe([topic], "readers", handle)):
        await eventually(lambda: len(traces) == 2)
    assert traces == [("first", trace_id), ("second", trace_id)]


async def test_stopping_lets_the_handler_finish_its_record(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    await bus.publish(topic, numbered(range(5)))
    begun, finished = asyncio.Event(), Seen()

    async def handle(record: Record) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        await finished(record)

    async with running(bus.subscribe([topic], "readers", handle)):
        await begun.wait()
    assert finished.values == [b"0"]
    assert await bus.lag(topic, "readers") == 4
