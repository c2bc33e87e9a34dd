"""Exactly once: the place in a partition and the effect of its records commit together."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from common.background import PartStatus
from common.clock import ManualClock
from common.database import Connection, Database
from common.errors import Unavailable
from common.events.bus import Backoff, Bus, Outgoing, Record
from common.events.ledger import PartitionConsumer, RecordRefused
from common.settings import Settings
from tests.common.brokers import RedisStreams, redis_streams_bus
from tests.common.ledger_process import INSERT
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "ledger"
QUICK = Backoff(first=0.01, limit=0.1)
APPLIED = """
CREATE TABLE applied (
    id bigint GENERATED ALWAYS AS IDENTITY,
    topic text NOT NULL,
    part int NOT NULL,
    n int NOT NULL
)
"""

Make = Callable[..., Awaitable[PartitionConsumer]]


@pytest.fixture(scope="module")
async def db(
    service_database: Callable[..., Awaitable[Database]], tmp_path_factory: pytest.TempPathFactory
) -> Database:
    folder = tmp_path_factory.mktemp("migrations")
    (folder / "0001_applied.sql").write_text(APPLIED)
    return await service_database(NAME, folder, size=8)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = RedisStreams(tmp_path_factory.mktemp("ledger"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def bus(broker: RedisStreams) -> AsyncIterator[Bus]:
    bus = redis_streams_bus(broker.address)
    yield bus
    await bus.stop()


@pytest.fixture
async def topic(bus: Bus) -> str:
    name = f"usage-{uuid4().hex[:12]}"
    await bus.declare(name, 2, ["ledger"])
    return name


class Ledger:
    """The table ``applied``; ``gate`` holds every transaction before its commit while closed."""

    def __init__(self, db: Database, topic: str) -> None:
        self._db = db
        self._topic = topic
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def apply(self, connection: Connection, part: int, records: list[Record]) -> int:
        await connection.execute(INSERT, self._topic, part, [int(r.value) for r in records])
        if not self.gate.is_set():
            self.waiting.set()
            await self.gate.wait()
        return len(records)

    def now(self) -> datetime:
        return self._db.clock.now()

    async def numbers(self, part: int) -> list[int]:
        """What is committed, in the order of insertion."""
        async with self._db.session() as connection:
            rows = await connection.fetch(
                "SELECT n FROM applied WHERE topic = $1 AND part = $2 ORDER BY id",
                self._topic,
                part,
            )
        return [row["n"] for row in rows]

    async def holds(self, part: int, numbers: list[int]) -> bool:
        return await self.numbers(part) == numbers

    async def place(self, part: int) -> asyncpg.Record | None:
        async with self._db.session() as connection:
            return await connection.fetchrow(
                "SELECT * FROM offsets WHERE topic = $1 AND part = $2", self._topic, part
            )


@pytest.fixture
def ledger(db: Database, topic: str) -> Ledger:
    return Ledger(db, topic)


@pytest.fixture
async def make(bus: Bus, db: Database, topic: str, ledger: Ledger) -> AsyncIterator[Make]:
    """Starts consumers; they are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> PartitionConsumer:
            given: dict[str, Any] = {
                "bus": bus,
                "db": db,
                "topic": topic,
                "group": "ledger",
                "owner": uuid4().hex,
                "apply": ledger.apply,
                "lease": 1.0,
                "backoff": QUICK,
            }
            consumer = PartitionConsumer(**given | options)
            await consumer.start()
            stack.push_async_callback(consumer.stop)
            return consumer

        yield start


async def publish(bus: Bus, topic: str, numbers: range, part: int = 0) -> list[str]:
    return await bus.publish(topic, [Outgoing(b"%d" % n, partition=part) for n in numbers])


def caught_up(consumer: PartitionConsumer, part: int, at: datetime) -> bool:
    return consumer.caught_up_at(part) == at


def stopped(consumer: PartitionConsumer, why: str) -> bool:
    status = consumer.status()
    return not status.live and not status.ready and why in status.detail


async def test_every_record_is_applied_once_and_in_order(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    await publish(bus, topic, range(50))
    consumer = await make(max_records=7)
    tokens = await publish(bus, topic, range(50, 60))
    await publish(bus, topic, range(100, 130), part=1)
    await eventually(partial(ledger.holds, 0, list(range(60))))
    await eventually(partial(ledger.holds, 1, list(range(100, 130))))
    place = await ledger.place(0)
    assert place is not None
    assert (place["token"], place["epoch"]) == (tokens[-1], 1)
    assert place["birth"] == await bus.birth(topic, 0)
    await eventually(lambda: consumer.status() == PartStatus(True, "works on 2 of 2 partitions", 0))
    assert consumer.held() == [0, 1]

    async def broker_may_forget() -> bool:
        return await bus.lag(topic, "ledger") == 0

    await eventually(broker_may_forget)


async def test_after_gets_what_apply_returned_once_it_is_committed(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    told: list[tuple[int, int, list[int]]] = []

    async def after(part: int, count: int) -> None:
        told.append((part, count, await ledger.numbers(part)))

    await publish(bus, topic, range(3))
    await make(after=after)
    await eventually(lambda: told == [(0, 3, [0, 1, 2])])


async def test_a_partition_is_prepared_before_its_first_batch(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    told: list[str] = []

    async def on_take(part: int) -> None:
        place = await ledger.place(part)
        told.append(f"take {part} in epoch {place['epoch'] if place else None}")
        if told.count(f"take {part} in epoch 1") == 1:
            raise Unavailable("not yet")

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        told.append(f"apply {part}")
        await ledger.apply(connection, part, records)

    await publish(bus, topic, range(2), part=1)
    await make(on_take=on_take, apply=apply)
    await eventually(partial(ledger.holds, 1, [0, 1]))
    ones = [line for line in told if line.split()[1] == "1"]
    assert ones == ["take 1 in epoch 1", "take 1 in epoch 1", "apply 1"]


async def test_a_consumer_killed_between_effect_and_commit_neither_loses_nor_doubles(
    bus: Bus,
    broker: RedisStreams,
    topic: str,
    make: Make,
    ledger: Ledger,
    settings: Settings,
    tmp_path: Path,
) -> None:
    await publish(bus, topic, range(40), part=0)
    await publish(bus, topic, range(40), part=1)
    file = tmp_path / "applied"
    given = {
        "driver": broker.driver,
        "address": broker.address,
        "dsn": settings.runtime_dsn(NAME),
        "topic": topic,
        "owner": "the same",
        "lease": 60.0,
        "file": str(file),
        "pause": 0.1,
    }

    def lines() -> int:
        return len(file.read_text().splitlines()) if file.exists() else 0

    def more_than(before: int) -> bool:
        return lines() > before

    for batches in (1, 2, 5):
        begun = lines()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.common.ledger_process", json.dumps(given), cwd=ROOT
        )
        await eventually(partial(more_than, begun + batches))
        process.kill()
        await process.wait()
    done = len(await ledger.numbers(0)) + len(await ledger.numbers(1))
    assert 0 < done < 80
    assert done < 4 * lines()
    await make(owner="the same")
    await eventually(partial(ledger.holds, 0, list(range(40))))
    await eventually(partial(ledger.holds, 1, list(range(40))))


async def test_an_owner_that_lost_its_partition_rolls_back(
    bus: Bus, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    ledger.gate.clear()
    zombie = await make(lease=60.0)
    await publish(bus, topic, range(10))
    await ledger.waiting.wait()
    await eventually(lambda: zombie.held() == [0, 1])
    async with db.session() as connection:
        await connection.execute(
            "UPDATE offsets SET lease_until = now() - interval '1 s' WHERE topic = $1", topic
        )
    heir = Ledger(db, topic)
    await make(apply=heir.apply)
    await eventually(partial(ledger.holds, 0, list(range(10))))
    ledger.gate.set()
    await eventually(lambda: zombie.held() == [])
    await publish(bus, topic, range(10, 15))
    await eventually(partial(ledger.holds, 0, list(range(15))))
    place = await ledger.place(0)
    assert place is not None
    assert place["epoch"] == 2


async def test_a_lease_that_was_lost_is_noticed_while_nothing_arrives(
    topic: str, make: Make, db: Database
) -> None:
    consumer = await make(lease=0.5)
    await eventually(lambda: consumer.held() == [0, 1])
    async with db.session() as connection:
        await connection.execute(
            """
            UPDATE offsets SET owner = 'another', epoch = epoch + 1,
                lease_until = now() + interval '1 hour'
            WHERE topic = $1 AND part = 1
            """,
            topic,
        )
    await eventually(lambda: consumer.held() == [0])
    assert consumer.caught_up_at(1) is None
    assert consumer.status().live


async def test_a_dead_owners_partitions_are_taken_when_its_lease_is_over(
    bus: Bus,
    broker: RedisStreams,
    topic: str,
    make: Make,
    ledger: Ledger,
    settings: Settings,
    tmp_path: Path,
) -> None:
    file = tmp_path / "applied"
    given = {
        "driver": broker.driver,
        "address": broker.address,
        "dsn": settings.runtime_dsn(NAME),
        "topic": topic,
        "owner": "soon dead",
        "lease": 1.5,
        "file": str(file),
        "pause": 0,
    }
    await publish(bus, topic, range(5))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.common.ledger_process", json.dumps(given), cwd=ROOT
    )
    await eventually(partial(ledger.holds, 0, list(range(5))))
    heir = await make(lease=1.5)
    await asyncio.sleep(2.5)
    assert heir.held() == []
    assert heir.status().ready
    process.kill()
    await process.wait()
    await eventually(lambda: heir.held() == [0, 1])
    await publish(bus, topic, range(5, 8))
    await eventually(partial(ledger.holds, 0, list(range(8))))


async def test_a_consumer_that_stops_gives_its_partitions_back_at_once(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    first = await make(lease=600.0)
    await publish(bus, topic, range(5))
    await eventually(partial(ledger.holds, 0, list(range(5))))
    await first.stop()
    assert first.held() == []
    second = await make(lease=600.0)
    await eventually(lambda: second.held() == [0, 1])
    await publish(bus, topic, range(5, 8))
    await eventually(partial(ledger.holds, 0, list(range(8))))


async def test_stopping_lets_the_batch_at_hand_commit(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    ledger.gate.clear()
    consumer = await make()
    await publish(bus, topic, range(5))
    await ledger.waiting.wait()
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    ledger.gate.set()
    await stopping
    assert await ledger.numbers(0) == list(range(5))


async def test_an_error_that_passes_is_tried_again_for_ever(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    failures = 0

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        nonlocal failures
        await ledger.apply(connection, part, records)
        failures += 1
        if failures < 12:
            raise Unavailable("a while longer")

    await publish(bus, topic, range(5))
    consumer = await make(apply=apply)
    await eventually(lambda: "a while longer" in consumer.status().detail)
    assert consumer.status().live
    await eventually(partial(ledger.holds, 0, list(range(5))))
    await eventually(lambda: consumer.status().ready)


async def test_connections_cut_by_the_database_do_no_harm(
    bus: Bus, topic: str, make: Make, ledger: Ledger, postgres: Any
) -> None:
    await make(max_records=3)
    admin = await asyncpg.connect(postgres.admin_dsn)
    for first in range(0, 100, 10):
        await publish(bus, topic, range(first, first + 10))
        await asyncio.sleep(0.05)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", NAME
        )
    await admin.close()
    await eventually(partial(_holds_at_last, ledger, list(range(100))))


async def _holds_at_last(ledger: Ledger, numbers: list[int]) -> bool:
    try:
        return await ledger.numbers(0) == numbers
    except Unavailable:
        return False


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
    bus: Bus, broker: RedisStreams, topic: str, make: Make, ledger: Ledger
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


async def test_an_owner_whose_records_an_heir_has_applied_gives_up_and_does_not_stop(
    bus: Bus, broker: RedisStreams, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    paused = False

    async def apply(connection: Connection, part: int, records: list[Record]) -> None:
        if paused:
            raise Unavailable("paused")
        await ledger.apply(connection, part, records)

    zombie = await make(apply=apply, lease=60.0)
    await publish(bus, topic, range(1))
    await eventually(partial(ledger.holds, 0, [0]))
    paused = True
    tokens = await publish(bus, topic, range(1, 6))
    async with db.session() as connection:
        await connection.execute(
            """
            UPDATE offsets SET owner = 'another', epoch = epoch + 1, token = $2,
                lease_until = now() + interval '1 hour'
            WHERE topic = $1 AND part = 0
            """,
            topic,
            tokens[-1],
        )
    await broker.forget(topic, 0, tokens[2])
    await eventually(lambda: zombie.held() == [1])
    assert zombie.status().live
    await eventually(lambda: zombie.status().ready)


async def test_a_replaced_stream_stops_the_partition_at_its_taking(
    bus: Bus, broker: RedisStreams, topic: str, make: Make, ledger: Ledger
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
    bus: Bus, broker: RedisStreams, topic: str, make: Make, ledger: Ledger, applied: int
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


async def test_a_broker_that_comes_back_is_read_on(
    bus: Bus, broker: RedisStreams, topic: str, make: Make, ledger: Ledger
) -> None:
    consumer = await make()
    await publish(bus, topic, range(5))
    await eventually(partial(ledger.holds, 0, list(range(5))))
    broker.kill()
    await eventually(lambda: not consumer.status().ready)
    assert consumer.status().live
    broker.start()
    await eventually(lambda: consumer.status().ready)
    await publish(bus, topic, range(5, 8))
    await eventually(partial(ledger.holds, 0, list(range(8))))


async def test_a_consumer_waits_for_its_topic(bus: Bus, make: Make, db: Database) -> None:
    topic = f"late-{uuid4().hex[:12]}"
    ledger = Ledger(db, topic)
    consumer = await make(topic=topic, apply=ledger.apply)
    await eventually(lambda: "TopicUnknown" in consumer.status().detail)
    await bus.declare(topic, 1)
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))


async def test_a_partition_whose_first_records_are_gone_begins_with_what_comes(
    bus: Bus, broker: RedisStreams, topic: str, make: Make, ledger: Ledger
) -> None:
    tokens = await publish(bus, topic, range(5))
    await broker.forget(topic, 0, tokens[-1])
    consumer = await make()
    await eventually(lambda: consumer.caught_up_at(0) is not None)
    await publish(bus, topic, range(5, 8))
    await eventually(partial(ledger.holds, 0, [5, 6, 7]))


async def test_the_watermark_moves_on_while_nothing_arrives(
    topic: str, make: Make, ledger: Ledger
) -> None:
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    consumer = await make(clock=clock, cadence=0.02)
    for _ in range(3):
        clock.advance(timedelta(seconds=1))
        for part in (0, 1):
            await eventually(partial(caught_up, consumer, part, clock.now()))
    assert consumer.caught_up_at(7) is None


async def test_the_watermark_waits_for_what_is_not_committed(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    clock = ManualClock(datetime(2026, 11, 21, tzinfo=UTC))
    consumer = await make(clock=clock, cadence=0.02)
    await eventually(lambda: consumer.caught_up_at(0) == clock.now())
    ledger.gate.clear()
    before = clock.now()
    await publish(bus, topic, range(3))
    clock.advance(timedelta(seconds=1))
    accepted_at = clock.now()
    await ledger.waiting.wait()
    clock.advance(timedelta(seconds=1))
    await eventually(lambda: consumer.caught_up_at(1) == clock.now())
    assert consumer.caught_up_at(0) == before
    assert await ledger.numbers(0) == []
    ledger.gate.set()
    await eventually(lambda: (consumer.caught_up_at(0) or before) > accepted_at)
    assert await ledger.numbers(0) == [0, 1, 2]


async def test_the_watermark_is_never_ahead_of_a_record_that_is_not_committed(
    bus: Bus, topic: str, make: Make, ledger: Ledger, db: Database
) -> None:
    consumer = await make(cadence=0.01, max_records=5)
    accepted: dict[int, datetime] = {}
    done = False

    async def produce() -> None:
        for n in range(400):
            await publish(bus, topic, range(n, n + 1))
            accepted[n] = db.clock.now()

    async def watch() -> int:
        looks = 0
        while not done:
            known = dict(accepted)
            watermark = consumer.caught_up_at(0)
            if watermark is not None:
                there = set(await ledger.numbers(0))
                due = {n for n, at in known.items() if at < watermark}
                assert due <= there
                looks += bool(due)
            await asyncio.sleep(0)
        return looks

    watching = asyncio.create_task(watch())
    await produce()
    await eventually(lambda: (consumer.caught_up_at(0) or accepted[0]) > accepted[399])
    done = True
    assert await watching > 10
    assert await ledger.numbers(0) == list(range(400))


class LateAnswers:
    """A bus whose answers about the end of partition 0 come only while ``gate`` is open."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def end(self, topic: str, partition: int) -> str | None:
        end = await self._bus.end(topic, partition)
        if partition == 0 and end is not None:
            self.asked.set()
            await self.gate.wait()
        return end


async def test_a_late_answer_about_the_end_does_not_hold_the_watermark(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    late = LateAnswers(bus)
    consumer = await make(bus=late, cadence=0.02)
    await eventually(lambda: consumer.caught_up_at(0) is not None)
    await publish(bus, topic, range(1))
    await late.asked.wait()
    await publish(bus, topic, range(1, 3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    accepted_at = ledger.now()
    late.gate.set()
    await eventually(lambda: (consumer.caught_up_at(0) or accepted_at) > accepted_at)


async def test_stopping_needs_no_broker(
    bus: Bus, broker: RedisStreams, topic: str, make: Make, ledger: Ledger
) -> None:
    consumer = await make(lease=600.0)
    await publish(bus, topic, range(3))
    await eventually(partial(ledger.holds, 0, [0, 1, 2]))
    broker.kill()
    await consumer.stop()
    broker.start()
    heir = await make(lease=600.0)
    await eventually(lambda: heir.held() == [0, 1])


async def test_the_lag_is_told_while_there_is_some(
    bus: Bus, topic: str, make: Make, ledger: Ledger
) -> None:
    ledger.gate.clear()
    consumer = await make(max_records=5)
    await publish(bus, topic, range(20))
    await eventually(lambda: consumer.status().lag == 20)
    ledger.gate.set()
    await eventually(lambda: consumer.status().lag == 0)
