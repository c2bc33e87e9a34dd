from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from common.events.bus import Backoff, Bus, BusUnavailable, DeadLetter, Outgoing, Record
from common.events.delivery import Delivery
from common.events.worker import Worker, cut
from common.testing import silent_telemetry

pytestmark = pytest.mark.unit

RECORD = Record("orders", 3, "7-1", "key", b"value", {})


class Unreliable:
    """A bus that takes nothing at first."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.taken: list[tuple[str, Outgoing]] = []

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        if self.failures:
            self.failures -= 1
            raise BusUnavailable
        self.taken += [(topic, record) for record in records]
        return ["token"] * len(records)


async def refuse(_: Record) -> None:
    raise DeadLetter("cannot be")


def delivery(bus: Any, handler: Any) -> Delivery:
    return Delivery(
        cast(Bus, bus),
        handler,
        telemetry=silent_telemetry(),
        group="readers",
        max_attempts=3,
        backoff=Backoff(first=0.001, limit=0.002),
    )


async def test_a_dead_letter_waits_for_the_broker() -> None:
    bus = Unreliable(failures=4)
    await delivery(bus, refuse).deliver(RECORD)
    ((topic, letter),) = bus.taken
    assert topic == "orders.dead"
    assert (letter.value, letter.key) == (b"value", "key")
    assert letter.headers["origin-group"] == "readers"


async def test_deliveries_are_counted_by_their_outcome() -> None:
    bus = Unreliable(failures=0)

    async def handle(record: Record) -> None:
        if record.attempt < 3:
            raise ConnectionError

    telemetry = silent_telemetry()
    counted = Delivery(
        cast(Bus, bus),
        handle,
        telemetry=telemetry,
        group="readers",
        max_attempts=3,
        backoff=Backoff(first=0.001, limit=0.002),
    )
    await counted.deliver(RECORD)
    exposed = telemetry.metrics.exposition().decode()
    for outcome, times in (("done", 1), ("retried", 2)):
        labels = f'group="readers",outcome="{outcome}",service="test",topic="orders"'
        assert f"mindweave_bus_records_total{{{labels}}} {times}.0" in exposed


async def test_a_stop_ends_a_wait_between_attempts() -> None:
    worker = Worker("reader")
    tried = asyncio.Event()

    async def run() -> None:
        with worker.step():
            tried.set()
            await worker.pause(3600)

    worker.start(run())
    await tried.wait()
    await worker.end(3600)
    assert not worker.running
    assert worker.failure is None


async def test_a_stop_waits_for_a_step_no_longer_than_its_grace() -> None:
    worker = Worker("reader")
    inside = asyncio.Event()
    finished = False

    async def run() -> None:
        nonlocal finished
        with worker.step():
            inside.set()
            await asyncio.sleep(3600)
            finished = True

    worker.start(run())
    await inside.wait()
    await worker.end(0.01)
    assert not worker.running
    assert not finished


async def test_a_worker_that_never_ran_ends() -> None:
    worker = Worker("reader")
    await worker.end(1)
    assert not worker.running
    assert worker.failure is None


async def test_a_worker_tells_what_ended_it() -> None:
    worker = Worker("reader")

    async def run() -> None:
        raise KeyError("a bug")

    ended = asyncio.Event()
    worker.start(run(), ended=ended.set)
    await ended.wait()
    assert isinstance(worker.failure, KeyError)


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await cut(task)
    assert task.cancelled()
    assert lost == 3
