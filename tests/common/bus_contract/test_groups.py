"""A group reads each record, one reader a partition, whatever becomes of its readers."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from common.events.bus import Bus, Outgoing, Record
from tests.common.brokers import Broker
from tests.common.bus_contract.conftest import MakeBus, Seen, numbered, running
from tests.common.waiting import eventually
from tests.conftest import ROOT

pytestmark = pytest.mark.bus


async def test_two_groups_each_get_every_record(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 2, ["one", "other"])
    await bus.publish(topic, [Outgoing(b"%d" % n, key=str(n)) for n in range(50)])
    one, other = Seen(), Seen()
    async with running(bus.subscribe([topic], "one", one), bus.subscribe([topic], "other", other)):
        await eventually(lambda: len(one.records) == len(other.records) == 50)
    assert one.by_partition() == other.by_partition()


async def test_a_group_goes_on_where_it_stopped(make_bus: MakeBus, topic: str) -> None:
    bus = await make_bus()
    await bus.declare(topic, 2, ["readers"])
    first, second = Seen(), Seen()
    await bus.publish(topic, [Outgoing(b"%d" % n, key=str(n)) for n in range(20)])
    async with running(bus.subscribe([topic], "readers", first)):
        await eventually(lambda: len(first.records) == 20)
    await bus.publish(topic, [Outgoing(b"%d" % n, key=str(n)) for n in range(20, 30)])
    async with running((await make_bus()).subscribe([topic], "readers", second)):
        await eventually(lambda: len(second.records) == 10)
    assert sorted(map(int, second.values)) == list(range(20, 30))


async def test_two_readers_of_a_group_never_work_on_one_partition_at_once(
    make_bus: MakeBus, topic: str
) -> None:
    readers = [await make_bus() for _ in range(3)]
    await readers[0].declare(topic, 4, ["readers"])
    inside: Counter[int] = Counter()
    most = 0
    seen = Seen()

    async def handle(record: Record) -> None:
        nonlocal most
        inside[record.partition] += 1
        most = max(most, inside[record.partition])
        await asyncio.sleep(0.002)
        inside[record.partition] -= 1
        await seen(record)

    async with AsyncExitStack() as stack:
        subscriptions = [reader.subscribe([topic], "readers", handle) for reader in readers]
        for subscription in subscriptions:
            await subscription.start()
            stack.push_async_callback(subscription.stop)
        for n in range(0, 400, 20):
            await readers[0].publish(
                topic, [Outgoing(b"%d" % i, partition=i % 4) for i in range(n, n + 20)]
            )
            if n == 200:
                await subscriptions[0].stop()
        await eventually(lambda: len({r.value for r in seen.records}) == 400)
    assert most == 1
    for partition, values in seen.by_partition().items():
        assert [int(value) for value in values] == list(range(partition, 400, 4))


class Consumer:
    """A consumer process, and what it wrote down."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self._file = file

    def lines(self, verb: str) -> list[tuple[int, int]]:
        """Pairs of partition and value, whole lines only."""
        text = self._file.read_text() if self._file.exists() else ""
        words = [line.split() for line in text.split("\n")[:-1]]
        return [(int(p), int(v)) for kind, p, v in words if kind == verb]

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@pytest.fixture
async def spawn(
    broker: Broker, topic: str, tmp_path: Path
) -> AsyncIterator[Callable[[], Awaitable[Consumer]]]:
    """Starts consumer processes of the group ``readers``."""
    names = count(1)
    started: list[Consumer] = []

    async def start() -> Consumer:
        file = tmp_path / f"consumer-{next(names)}"
        given = {
            "driver": broker.driver,
            "address": broker.address,
            "lease": 1.0,
            "topic": topic,
            "group": "readers",
            "file": str(file),
            "pause": 0.01,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.common.consumer_process", json.dumps(given), cwd=ROOT
        )
        started.append(Consumer(process, file))
        return started[-1]

    yield start
    for consumer in started:
        if consumer.process.returncode is None:
            await consumer.kill()


def has_done(consumer: Consumer, records: int) -> bool:
    return len(consumer.lines("done")) >= records


def assert_each_handled_in_order(lines: list[tuple[int, int]], total: int, partitions: int) -> None:
    """At least once, and in order but for what was handled again."""
    for partition in range(partitions):
        done = [value for p, value in lines if p == partition]
        assert list(dict.fromkeys(done)) == list(range(partition, total, partitions))


async def test_a_reader_killed_in_its_work_loses_no_record(
    bus: Bus, topic: str, spawn: Callable[[], Awaitable[Consumer]]
) -> None:
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, [Outgoing(b"%d" % n, partition=n % 2) for n in range(200)])
    killed: list[Consumer] = []
    for handled in (20, 20, 20):
        consumer = await spawn()
        await eventually(partial(has_done, consumer, handled))
        await consumer.kill()
        killed.append(consumer)
    assert any(c.lines("start") != c.lines("done") for c in killed)
    assert await bus.lag(topic, "readers") > 0
    survivor = await spawn()

    async def caught_up() -> bool:
        return await bus.lag(topic, "readers") == 0

    await eventually(caught_up)
    done = [line for consumer in (*killed, survivor) for line in consumer.lines("done")]
    assert_each_handled_in_order(done, 200, 2)


async def test_a_reader_frozen_past_its_lease_gives_its_partitions_up(
    bus: Bus, topic: str, spawn: Callable[[], Awaitable[Consumer]]
) -> None:
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, [Outgoing(b"%d" % n, partition=n % 2) for n in range(100)])
    frozen = await spawn()
    await eventually(lambda: len(frozen.lines("done")) >= 10)
    frozen.process.send_signal(signal.SIGSTOP)
    other = await spawn()

    async def caught_up() -> bool:
        return await bus.lag(topic, "readers") == 0

    await eventually(caught_up)
    started = len(frozen.lines("start"))
    finished = frozen.lines("done")
    others = len(other.lines("done"))
    frozen.process.send_signal(signal.SIGCONT)
    await bus.publish(topic, [Outgoing(b"%d" % n, partition=n % 2) for n in range(100, 200)])
    await eventually(caught_up)
    # It may be given a partition again, but goes on with nothing that it had before.
    assert all(value >= 100 for _, value in frozen.lines("start")[started:])
    assert_each_handled_in_order([*finished, *other.lines("done")[:others]], 100, 2)
    handled = {value for _, value in (*frozen.lines("done"), *other.lines("done"))}
    assert handled == set(range(200))


async def test_the_lag_counts_what_a_group_has_not_committed(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 2, ["one", "other"])
    assert await bus.lag(topic, "one") == 0
    first = await bus.publish(topic, numbered(range(6), partition=0))
    second = await bus.publish(topic, numbered(range(4), partition=1))
    assert await bus.lag(topic, "one") == 10
    await bus.commit(topic, 0, "one", first[3])
    await bus.commit(topic, 1, "one", second[-1])
    assert await bus.lag(topic, "one") == 2
    assert await bus.lag(topic, "other") == 10
    await bus.commit(topic, 0, "one", first[1])
    assert await bus.lag(topic, "one") == 2


async def test_a_group_that_is_declared_later_starts_with_what_is_kept(
    bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1)
    await bus.publish(topic, numbered(range(5)))
    await bus.declare(topic, 1, ["late"])
    await bus.publish(topic, numbered(range(5, 8)))
    seen = Seen()
    async with running(bus.subscribe([topic], "late", seen)):
        await eventually(lambda: len(seen.records) == 8)
    assert seen.values == [b"%d" % n for n in range(8)]


async def test_a_subscription_to_a_topic_that_comes_later_reads_all_of_it(
    bus: Bus, topic: str
) -> None:
    seen = Seen()
    reading = bus.subscribe([topic], "readers", seen)
    async with running(reading):
        await eventually(lambda: "TopicUnknown" in reading.status().detail)
        assert reading.status().live
        await bus.declare(topic, 1)
        await bus.publish(topic, numbered(range(3)))
        await eventually(lambda: seen.values == [b"0", b"1", b"2"])
