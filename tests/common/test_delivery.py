from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import pytest

from common.events.bus import (
    Backoff,
    Bus,
    BusUnavailable,
    DeadLetter,
    Outgoing,
    Record,
)
from common.events.delivery import Delivery
from common.events.envelope import Envelope, encode
from common.events.worker import Worker, cut
from common.testing import silent_telemetry
from tests.common.logs import capture_logs, written_logs

pytestmark = pytest.mark.unit

RECORD = Record("orders", 3, "7-1", "key", b"value", {})


class Unreliable:
    """A bus that takes nothing at first."""

    def __init__(self, failures: int = 0, error: type[Exception] = BusUnavailable) -> None:
        self.failures = failures
        self.error = error
        self.taken: list[tuple[str, Outgoing]] = []

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        if self.failures:
            self.failures -= 1
            raise self.error
        self.taken += [(topic, record) for record in records]
        return ["token"] * len(records)


async def refuse(_: Record) -> None:
    raise DeadLetter("cannot be")


async def fail(_: Record) -> None:
    raise ValueError("a bug")


def delivery(bus: Any, handler: Any, **options: Any) -> Delivery:
    given: dict[str, Any] = {
        "telemetry": silent_telemetry(),
        "topics": ["orders"],
        "group": "readers",
        "max_attempts": 3,
        "backoff": Backoff(first=0.001, limit=0.002),
    }
    return Delivery(cast(Bus, bus), handler, **given | options)


def again(outgoing: Outgoing) -> Record:
    """What is read from the retry topic when this was published there."""
    return Record("orders.readers.retry", 0, "1-1", outgoing.key, outgoing.value, outgoing.headers)


@pytest.mark.parametrize("error", [BusUnavailable, RuntimeError])
async def test_a_dead_letter_waits_for_the_broker(error: type[Exception]) -> None:
    bus = Unreliable(4, error)
    await delivery(bus, refuse).deliver(RECORD)
    ((topic, letter),) = bus.taken
    assert topic == "orders.dead"
    assert (letter.value, letter.key) == (b"value", "key")
    assert letter.headers["origin-group"] == "readers"


async def test_a_record_carries_its_attempts_and_its_place_through_the_retries() -> None:
    bus = Unreliable(failures=1)
    delivering = delivery(bus, fail)
    await delivering.deliver(replace(RECORD, headers={"note": "mine", "attempt": "7"}))
    await delivering.deliver(again(bus.taken[0][1]))
    await delivering.deliver(again(bus.taken[1][1]))
    assert [topic for topic, _ in bus.taken] == [
        "orders.readers.retry",
        "orders.readers.retry",
        "orders.dead",
    ]
    assert [outgoing.headers["attempt"] for _, outgoing in bus.taken] == ["1", "2", "3"]
    for _, outgoing in bus.taken:
        assert (outgoing.value, outgoing.key, outgoing.headers["note"]) == (b"value", "key", "mine")
        assert outgoing.headers["origin-topic"] == "orders"
        assert outgoing.headers["origin-partition"] == "3"
        assert outgoing.headers["origin-token"] == "7-1"
    assert "not-before" not in bus.taken[2][1].headers
    assert bus.taken[2][1].headers["error"] == "ValueError: a bug"


async def test_a_retry_waits_until_it_is_due_and_no_longer_than_the_longest_backoff() -> None:
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    async def handle(_: Record) -> None: ...

    for due in (0, time.time() * 1000 + 3_600_000):
        headers = {"not-before": str(int(due))}
        delivering = delivery(Unreliable(), handle, backoff=Backoff(first=0.5, limit=7))
        await delivering.deliver(again(Outgoing(b"value", headers=headers)), pause)
    assert waited == [7]


async def test_a_replay_of_an_ordered_group_is_put_off_and_keeps_nobody_waiting() -> None:
    bus = Unreliable()
    await delivery(bus, fail, ordered=True).deliver(again(Outgoing(b"value")))
    assert [topic for topic, _ in bus.taken] == ["orders.readers.retry"]


async def test_an_error_that_is_no_text_is_buried_as_text() -> None:
    async def handle(_: Record) -> None:
        raise DeadLetter("\ud800" + "x" * 10_000)

    bus = Unreliable()
    await delivery(bus, handle).deliver(RECORD)
    ((_, letter),) = bus.taken
    assert letter.headers["error"].startswith("DeadLetter: ?xxx")
    assert len(letter.headers["error"]) == 500


async def test_a_burial_is_told_with_the_event_and_where_it_lies() -> None:
    envelope = Envelope(
        id=uuid4(), type="org.deleted", source="account", timestamp=datetime.now(UTC), data={}
    )
    delivering = delivery(Unreliable(), refuse)
    with capture_logs() as logs:
        await delivering.deliver(replace(RECORD, value=encode(envelope)))
        await delivering.deliver(RECORD)
    told, bare = (log for log in logs if log["event"] == "a record is a dead letter")
    assert told["letter"] == "orders.dead/0/token"
    assert (told["event_id"], told["event_type"]) == (str(envelope.id), "org.deleted")
    assert (told["topic"], told["group"], told["attempts"]) == ("orders", "readers", 1)
    assert told["error"] == "DeadLetter: cannot be"
    assert "event_id" not in bare


async def test_deliveries_are_counted_by_their_outcome() -> None:
    waits = iter([ConnectionError, ConnectionError])

    async def handle(record: Record) -> None:
        for error in waits:
            raise error
        if record.value == b"value":
            raise ValueError("a bug")

    telemetry = silent_telemetry()
    counted = delivery(Unreliable(), handle, telemetry=telemetry, max_attempts=2)
    await counted.deliver(RECORD)
    await counted.deliver(again(Outgoing(b"value", headers={"attempt": "1"})))
    await counted.deliver(replace(RECORD, value=b"fine"))
    exposed = telemetry.metrics.exposition().decode()
    for outcome, times in (("done", 1), ("retried", 2), ("retry", 1), ("dead", 1)):
        labels = f'group="readers",outcome="{outcome}",service="test",topic="orders"'
        assert f"mindweave_bus_records_total{{{labels}}} {times}.0" in exposed


async def test_a_handler_that_does_not_return_is_noticed_and_forgotten_once_it_does() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(_: Record) -> None:
        begun.set()
        await go_on.wait()

    hanging = delivery(Unreliable(), handle, patience=0.0)
    patient = delivery(Unreliable(), handle)
    running = [asyncio.create_task(each.deliver(RECORD)) for each in (hanging, patient)]
    await begun.wait()
    await asyncio.sleep(0.01)
    assert hanging.stalled == "orders/3 7-1"
    assert patient.stalled == ""
    go_on.set()
    await asyncio.gather(*running)
    assert hanging.stalled == ""


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


async def test_lines_that_tell_of_a_failure_are_json_and_name_the_trace_of_its_cause() -> None:
    trace = uuid4().hex
    caused = {"traceparent": f"00-{trace}-{uuid4().hex[:16]}-01", "x-correlation-id": "request-7"}
    left: list[Exception] = [DeadLetter("cannot be"), ValueError("a bug"), BusUnavailable()]

    async def handle(_: Record) -> None:
        raise left.pop()

    delivering = delivery(Unreliable(), handle, ordered=True)
    with written_logs() as written:
        await delivering.deliver(replace(RECORD, headers=caused))
    lines = [json.loads(line) for line in written()]
    assert [line["level"] for line in lines] == ["warning", "error", "error"]
    assert "ValueError: a bug" in lines[1]["exception"]
    assert lines[2]["event"] == "a record is a dead letter"
    for line in lines:
        assert (line["trace_id"], line["correlation_id"]) == (trace, "request-7")
