"""What stops a partition with an alert, and what does not."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from common.database import Connection, Database
from common.events.bus import Bus, BusUnavailable, Outgoing, Record
from common.events.ledger import RecordRefused
from tests.common.brokers import Broker, OwnKafka
from tests.common.logs import written_logs
from tests.common.partition_consumer.conftest import NAME, Ledger, Make, publish, stopped
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


async def test_a_refused_record_stops_its_partition_and_is_never_skipped(
    bus: Bus, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        await ledger.apply(connection, part, records)
        if any(r.value == b"13" for r in records):
            raise RecordRefused("13 is no number")

    await publish(bus, topic, range(10))
    consumer = await make(apply=apply)
    await eventually(partial(ledger.holds, 0, list(range(10))))
    await publish(bus, topic, range(10, 20))
    await publish(bus, topic, range(5), part=1)
    await eventually(lambda: stopped(consumer, "13 is no number"))
    assert f"{topic}/0 has stopped: RecordRefused" in consumer.status().detail
    exposed = db.telemetry.metrics.exposition().decode()
    assert f'partition="0",service="{NAME}",topic="{topic}"}} 1.0' in exposed
    await eventually(partial(ledger.holds, 1, list(range(5))))
    assert await ledger.numbers(0) == list(range(10))
    assert await bus.end(topic + ".dead", 0) is None
    assert consumer.held() == [1]
    assert consumer.caught_up_at(0) is None

    await consumer.stop()
    await make()
    await eventually(partial(ledger.holds, 0, list(range(20))))


async def test_the_alert_of_a_partition_that_stops_names_the_trace_of_its_records(
    bus: Bus, topic: str, make: Make
) -> None:
    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        raise RecordRefused("of a trace")

    trace = uuid4().hex
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "x-correlation-id": "request-7"}
    await bus.publish(topic, [Outgoing(b"1", partition=0, headers=headers)])
    with written_logs() as written:
        consumer = await make(apply=apply)
        await eventually(lambda: stopped(consumer, "of a trace"))
        (line,) = (found for found in map(json.loads, written()) if found.get("alert"))
    assert (line["trace_id"], line["correlation_id"]) == (trace, "request-7")


async def test_the_same_unexpected_error_again_and_again_stops_the_partition(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    tries = 0

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        nonlocal tries
        tries += 1
        raise KeyError("a bug")

    await publish(bus, topic, range(3))
    consumer = await make(apply=apply)
    await eventually(lambda: stopped(consumer, "KeyError"))
    assert tries == 5
    assert await ledger.numbers(0) == []


async def test_an_unexpected_error_that_does_not_come_back_is_survived(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    tries = 0

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        nonlocal tries
        await ledger.apply(connection, part, records)
        tries += 1
        if tries < 3:
            raise KeyError("once in a while")

    await publish(bus, topic, range(3))
    consumer = await make(apply=apply)
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    assert consumer.status().live


async def test_records_that_are_gone_stop_the_partition(
    bus: Bus, broker: Broker, topic: str, make: Make, ledger: Ledger
) -> None:
    first = await make()
    await publish(bus, topic, range(5))
    await eventually(partial(ledger.holds, 0, list(range(5))))
    await first.stop()
    tokens = await publish(bus, topic, range(5, 10))
    await broker.forget(topic, 0, tokens[2])
    consumer = await make()
    await eventually(lambda: stopped(consumer, "OffsetLost"))
    assert await ledger.numbers(0) == list(range(5))


async def test_a_replaced_stream_stops_the_partition_at_its_taking(
    bus: Bus, broker: Broker, topic: str, make: Make, ledger: Ledger
) -> None:
    first = await make()
    await publish(bus, topic, range(5))
    await eventually(partial(ledger.holds, 0, list(range(5))))
    await first.stop()
    broker.replace()
    await asyncio.sleep(0.1)
    await publish(bus, topic, range(5, 15))
    consumer = await make()
    await eventually(lambda: stopped(consumer, "StreamReplaced"))
    await eventually(lambda: consumer.held() == [])
    assert await ledger.numbers(0) == list(range(5))


@pytest.mark.parametrize("applied", [0, 5])
async def test_a_stream_replaced_under_a_running_consumer_stops_it(
    bus: Bus, broker: Broker, topic: str, make: Make, ledger: Ledger, applied: int
) -> None:
    consumer = await make()
    await publish(bus, topic, range(applied))
    await eventually(partial(ledger.holds, 0, list(range(applied))))
    await eventually(lambda: consumer.held() == [0, 1])
    broker.replace()
    await asyncio.sleep(0.1)
    await publish(bus, topic, range(100, 100 + applied + 1))
    await eventually(lambda: stopped(consumer, f"{topic}/0 has stopped"))
    assert await ledger.numbers(0) == list(range(applied))


async def test_a_partition_whose_first_records_are_gone_begins_with_what_comes(
    bus: Bus, broker: Broker, topic: str, make: Make, ledger: Ledger
) -> None:
    tokens = await publish(bus, topic, range(5))
    await broker.forget(topic, 0, tokens[-1])
    consumer = await make()
    await eventually(lambda: consumer.caught_up_at(0) is not None)
    await publish(bus, topic, range(5, 8))
    await eventually(partial(ledger.holds, 0, [5, 6, 7]))


@pytest.mark.parametrize("server", ["kafka"], indirect=True)
async def test_records_that_took_the_place_of_others_that_were_applied_stop_the_partition(
    bus: Bus, broker: OwnKafka, topic: str, make: Make, ledger: Ledger
) -> None:
    consumer = await make()
    tokens = [(await publish(bus, topic, range(n, n + 1)))[0] for n in range(10)]
    await eventually(partial(ledger.holds, 0, list(range(10))))
    await consumer.stop()
    broker.lose(topic, 0, tokens[5])
    broker.start()
    await eventually(partial(_published, bus, topic, range(100, 120)))
    heir = await make()
    await eventually(lambda: stopped(heir, "OffsetLost"))
    assert await ledger.numbers(0) == list(range(10))


async def _published(bus: Bus, topic: str, numbers: range) -> bool:
    try:
        await publish(bus, topic, numbers)
    except BusUnavailable:
        return False
    return True


async def test_a_database_that_takes_no_writes_is_waited_for(
    bus: Bus, topic: str, make: Make, ledger: Ledger, postgres: Any
) -> None:
    consumer = await make()
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    admin = await asyncpg.connect(postgres.admin_dsn)
    try:
        await writes(admin, allowed=False)
        await publish(bus, topic, range(3, 6))
        # So often that an error of its own would have stopped it.
        await eventually(lambda: "takes no writes" in consumer.status().detail)
        await asyncio.sleep(1.0)
        assert consumer.status().live
    finally:
        await writes(admin, allowed=True)
        await admin.close()
    await eventually(partial(ledger.holds, 0, list(range(6))))
    await eventually(lambda: consumer.status().ready)


async def writes(admin: asyncpg.Connection[asyncpg.Record], *, allowed: bool) -> None:
    mode = "off" if allowed else "on"
    await admin.execute(f"ALTER DATABASE {NAME} SET default_transaction_read_only = {mode}")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", NAME
    )
