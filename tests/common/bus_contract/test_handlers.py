"""What a subscription does with its handler."""

from __future__ import annotations

import asyncio
import tracemalloc
from itertools import count
from uuid import uuid4

import pytest

from common.events.bus import Bus, Outgoing, Record
from common.telemetry import CORRELATION_HEADER, correlation_id, inject
from common.testing import silent_telemetry
from tests.common.bus_contract.conftest import Seen, numbered, running
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

MEGABYTE = 1024 * 1024


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
