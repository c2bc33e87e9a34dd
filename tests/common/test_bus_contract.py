"""What every driver of the bus promises, against its real broker."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest

from common.errors import Unavailable
from common.events.bus import (
    Backoff,
    Bus,
    BusFull,
    BusUnavailable,
    OffsetLost,
    Outgoing,
    Record,
    Subscription,
    TopicMismatch,
    TopicUnknown,
)
from common.events.envelope import EventRefused, decode, message_of
from common.telemetry import CORRELATION_HEADER, correlation_id, inject
from common.testing import silent_telemetry
from tests.common.brokers import DRIVERS, Broker
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

ROOT = Path(__file__).resolve().parent.parent.parent
MEGABYTE = 1024 * 1024
QUICK = Backoff(first=0.01, limit=0.05)

MakeBus = Callable[..., Awaitable[Bus]]


@pytest.fixture(scope="session")
def ran() -> Counter[str]:
    """How many tests each driver has begun."""
    return Counter()


@pytest.fixture(scope="module", params=DRIVERS)
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    server = DRIVERS[request.param][0](tmp_path_factory.mktemp("bus"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def make_bus(broker: Broker, ran: Counter[str]) -> AsyncIterator[MakeBus]:
    """Makes buses of the driver at hand, with leases of a second."""
    ran[f"{broker.driver} ({broker.version()})"] += 1
    async with AsyncExitStack() as stack:

        async def make(**options: object) -> Bus:
            bus = DRIVERS[broker.driver][1](broker.address, **{"lease": 1.0, **options})
            await bus.start()
            stack.push_async_callback(bus.stop)
            return bus

        yield make


@pytest.fixture
async def bus(make_bus: MakeBus) -> Bus:
    return await make_bus()


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid4().hex[:12]}"


@asynccontextmanager
async def running(*subscriptions: Subscription) -> AsyncIterator[None]:
    for subscription in subscriptions:
        await subscription.start()
    try:
        yield
    finally:
        for subscription in subscriptions:
            await subscription.stop()


class Seen:
    """A handler that keeps what it was given."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def __call__(self, record: Record) -> None:
        self.records.append(record)

    @property
    def values(self) -> list[bytes]:
        return [record.value for record in self.records]

    def by_partition(self) -> dict[int, list[bytes]]:
        found: dict[int, list[bytes]] = defaultdict(list)
        for record in self.records:
            found[record.partition].append(record.value)
        return found


def numbered(numbers: range, partition: int | None = None) -> list[Outgoing]:
    return [Outgoing(b"%d" % n, partition=partition) for n in numbers]


async def read_all(bus: Bus, topic: str, partition: int, after: str | None = None) -> list[Record]:
    found: list[Record] = []
    while batch := await bus.fetch(topic, partition, after, max_records=100, wait=0):
        found += batch
        after = found[-1].token
    return found


async def back(bus: Bus) -> None:
    """Returns when the bus has found its broker again."""

    async def answers() -> bool:
        try:
            await bus.ping()
        except BusUnavailable:
            return False
        return True

    await asyncio.sleep(0.1)
    await eventually(answers)


async def test_records_of_a_partition_keep_their_order(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 3, ["readers"])
    for first in range(0, 90, 10):
        await bus.publish(
            topic, [Outgoing(str(n).encode(), partition=n % 3) for n in range(first, first + 10)]
        )
    seen = Seen()
    async with running(bus.subscribe([topic], "readers", seen)):
        await eventually(lambda: len(seen.records) == 90)
    for partition in range(3):
        expected = [str(n).encode() for n in range(partition, 90, 3)]
        assert seen.by_partition()[partition] == expected
        assert [r.value for r in await read_all(bus, topic, partition)] == expected


async def test_a_record_arrives_as_it_was_sent(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    value = bytes(range(256))
    tokens = await bus.publish(
        topic, [Outgoing(value, key="ключ", headers={"content-type": "x/y", "note": "ü"})]
    )
    record = (await bus.fetch(topic, 0, None, max_records=10, wait=0))[0]
    assert (record.topic, record.partition, record.token) == (topic, 0, tokens[0])
    assert (record.key, record.value) == ("ключ", value)
    assert record.headers["content-type"] == "x/y"
    assert record.headers["note"] == "ü"


async def test_records_with_the_same_key_go_to_the_same_partition(
    make_bus: MakeBus, topic: str
) -> None:
    one, other = await make_bus(), await make_bus()
    await one.declare(topic, 8, ["readers"])
    await one.publish(topic, [Outgoing(b"1", key=f"key {n}") for n in range(40)])
    await other.publish(topic, [Outgoing(b"2", key=f"key {n}") for n in range(40)])
    where = defaultdict(set)
    for partition in range(8):
        for record in await read_all(one, topic, partition):
            where[record.key].add(partition)
    assert len(where) == 40
    assert all(len(partitions) == 1 for partitions in where.values())
    assert len(set.union(*where.values())) == 8


async def test_a_large_record_arrives_whole(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    values = [bytes([n]) * MEGABYTE for n in range(3)]
    await bus.publish(topic, [Outgoing(value) for value in values])
    seen = Seen()
    async with running(bus.subscribe([topic], "readers", seen)):
        await eventually(lambda: len(seen.records) == 3)
    assert seen.values == values


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


async def test_a_full_partition_refuses_the_whole_call_and_loses_nothing(
    make_bus: MakeBus, topic: str
) -> None:
    bus = await make_bus(max_records=10)
    await bus.declare(topic, 2, ["fast", "slow"])
    tokens = await bus.publish(topic, numbered(range(10), partition=0))
    mixed = [Outgoing(b"a", partition=1), Outgoing(b"b", partition=0), Outgoing(b"c", partition=1)]
    with pytest.raises(BusFull):
        await bus.publish(topic, mixed)
    assert await bus.end(topic, 1) is None
    await bus.commit(topic, 0, "fast", tokens[-1])
    with pytest.raises(BusFull):
        await bus.publish(topic, mixed)
    assert [r.value for r in await read_all(bus, topic, 0)] == [b"%d" % n for n in range(10)]

    await bus.commit(topic, 0, "slow", tokens[0])
    await bus.publish(topic, mixed)
    with pytest.raises(BusFull):
        await bus.publish(topic, mixed)
    left = [r.value for r in await read_all(bus, topic, 0, tokens[0])]
    assert left == [*(b"%d" % n for n in range(1, 10)), b"b"]
    assert [r.value for r in await read_all(bus, topic, 1)] == [b"a", b"c"]


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


def longer(items: list[int], length: int) -> bool:
    return len(items) > length


def assert_each_handled_in_order(consumers: list[Consumer], total: int, partitions: int) -> None:
    """At least once, and in order but for what was handled again."""
    for partition in range(partitions):
        done = [value for c in consumers for p, value in c.lines("done") if p == partition]
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
    assert_each_handled_in_order([*killed, survivor], 200, 2)


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
    before = len(frozen.lines("start"))
    frozen.process.send_signal(signal.SIGCONT)
    await bus.publish(topic, [Outgoing(b"%d" % n, partition=n % 2) for n in range(100, 200)])
    await eventually(caught_up)
    assert len(frozen.lines("start")) == before
    assert_each_handled_in_order([frozen, other], 200, 2)


async def test_a_place_of_ones_own_is_read_from_any_token(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["ledger"])
    assert await bus.end(topic, 0) is None
    assert await bus.fetch(topic, 0, None, max_records=5, wait=0) == []
    tokens = await bus.publish(topic, numbered(range(10)))
    assert len(set(tokens)) == 10
    assert await bus.end(topic, 0) == tokens[-1]

    some = await bus.fetch(topic, 0, None, max_records=3, wait=0)
    assert [r.token for r in some] == tokens[: len(some)]
    assert 1 <= len(some) <= 3
    rest = await read_all(bus, topic, 0, tokens[6])
    assert [r.value for r in rest] == [b"7", b"8", b"9"]
    assert await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0) == []


async def test_a_waiting_fetch_is_answered_by_the_next_record(bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["ledger"])
    (first,) = await bus.publish(topic, numbered(range(1)))
    waiting = asyncio.create_task(bus.fetch(topic, 0, first, max_records=5, wait=60))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await bus.publish(topic, numbered(range(1, 2)))
    async with asyncio.timeout(20):
        assert [r.value for r in await waiting] == [b"1"]
    assert await bus.fetch(topic, 0, await bus.end(topic, 0), max_records=5, wait=0.05) == []


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


async def test_records_are_kept_until_every_group_has_committed(
    make_bus: MakeBus, topic: str
) -> None:
    bus = await make_bus(max_records=100)
    await bus.declare(topic, 1, ["one", "other"])
    tokens = await bus.publish(topic, numbered(range(100)))
    await bus.commit(topic, 0, "one", tokens[-1])
    assert len(await read_all(bus, topic, 0)) == 100
    await bus.commit(topic, 0, "other", tokens[49])
    await bus.publish(topic, numbered(range(100, 150)))
    kept = [int(r.value) for r in await read_all(bus, topic, 0, tokens[49])]
    assert kept == list(range(50, 150))


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


async def test_a_topic_without_groups_keeps_its_last_records(make_bus: MakeBus, topic: str) -> None:
    bus = await make_bus(kept=50, max_records=10)
    await bus.declare(topic, 1)
    for first in range(0, 200, 20):
        await bus.publish(topic, numbered(range(first, first + 20)))
    kept = [int(r.value) for r in await read_all(bus, topic, 0)]
    assert kept[-50:] == list(range(150, 200))
    assert len(kept) < 200


async def test_an_offset_before_the_first_record_is_lost(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["ledger"])
    tokens = await bus.publish(topic, numbered(range(10)))
    await broker.forget(topic, 0, tokens[4])
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[2], max_records=5, wait=0)
    assert [r.value for r in await read_all(bus, topic, 0, tokens[4])] == [
        b"%d" % n for n in range(5, 10)
    ]
    await broker.forget(topic, 0, tokens[-1])
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[4], max_records=5, wait=0)
    assert await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0) == []


async def test_another_number_of_partitions_is_refused(make_bus: MakeBus, topic: str) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 4, ["one"])
    await bus.declare(topic, 4, ["other"])
    for count_asked in (2, 8):
        with pytest.raises(TopicMismatch):
            await other.declare(topic, count_asked)
    assert await other.partitions(topic) == 4


async def test_a_topic_that_nobody_declared_is_unknown(bus: Bus, topic: str) -> None:
    with pytest.raises(TopicUnknown):
        await bus.partitions(topic)
    with pytest.raises(TopicUnknown):
        await bus.publish(topic, numbered(range(1)))


async def test_a_tail_shows_new_records_to_every_process(make_bus: MakeBus, topic: str) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 2, ["readers"])
    await bus.publish(topic, numbered(range(5), partition=0))
    one, two = Seen(), Seen()

    async def failing(record: Record) -> None:
        await two(record)
        raise ValueError("a handler of a tail may fail")

    async with running(bus.tail([topic], one), other.tail([topic], failing)):
        tokens = await bus.publish(topic, numbered(range(5, 10), partition=0))
        await bus.commit(topic, 0, "readers", tokens[-1])
        await bus.publish(topic, numbered(range(10, 15), partition=1))
        await eventually(lambda: len(one.records) == len(two.records) == 10)
    for seen in (one, two):
        assert sorted(map(int, seen.values)) == list(range(5, 15))


async def test_a_tail_of_a_topic_that_comes_later_shows_all_of_it(bus: Bus, topic: str) -> None:
    tailed = Seen()
    tail = bus.tail([topic], tailed)
    async with running(tail):
        assert "TopicUnknown" in tail.status().detail
        await bus.declare(topic, 1)
        await bus.publish(topic, numbered(range(3)))
        await eventually(lambda: tailed.values == [b"0", b"1", b"2"])
        assert tail.status().ready


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


async def test_stopping_needs_no_broker(broker: Broker, bus: Bus, topic: str) -> None:
    await bus.declare(topic, 1, ["readers"])
    seen, tailed = Seen(), Seen()
    async with running(bus.subscribe([topic], "readers", seen), bus.tail([topic], tailed)):
        await bus.publish(topic, numbered(range(1)))
        await eventually(lambda: seen.values == tailed.values == [b"0"])
        broker.kill()
    broker.start()


async def test_nothing_hangs_while_the_broker_is_down_and_all_goes_on_after(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 2, ["readers"])
    seen, tailed = Seen(), Seen()
    reading = bus.subscribe([topic], "readers", seen)
    async with running(reading, bus.tail([topic], tailed)):
        await bus.publish(topic, numbered(range(10), partition=0))
        await eventually(lambda: len(seen.records) == len(tailed.records) == 10)
        broker.kill()
        async with asyncio.timeout(20):
            with pytest.raises(BusUnavailable):
                await bus.publish(topic, numbered(range(1)))
            with pytest.raises(BusUnavailable):
                await bus.fetch(topic, 0, None, max_records=1, wait=60)
            with pytest.raises(BusUnavailable):
                await bus.ping()
        await eventually(lambda: not reading.status().ready)
        assert reading.status().live
        broker.start()
        await back(bus)
        await bus.publish(topic, numbered(range(10, 20), partition=1))
        await eventually(lambda: {b"%d" % n for n in range(20)} == set(seen.values))
        await eventually(lambda: {b"%d" % n for n in range(20)} == set(tailed.values))
        await eventually(lambda: reading.status().ready)


async def test_a_subscription_starts_before_its_broker(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    seen, tailed = Seen(), Seen()
    broker.kill()
    async with running(bus.subscribe([topic], "readers", seen), bus.tail([topic], tailed)):
        broker.start()
        await back(bus)
        await bus.publish(topic, numbered(range(1)))
        await eventually(lambda: seen.values == [b"0"])


async def test_no_confirmed_record_is_lost_with_a_killed_broker(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 2, ["ledger"])
    confirmed: list[int] = []
    numbers = count()
    stopping = False

    async def publish() -> None:
        while not stopping:
            number = next(numbers)
            try:
                await bus.publish(topic, [Outgoing(b"%d" % number, partition=number % 2)])
            except BusUnavailable:
                await asyncio.sleep(0.05)
            else:
                confirmed.append(number)

    writers = [asyncio.create_task(publish()) for _ in range(8)]
    births = [await bus.birth(topic, p) for p in range(2)]
    for _ in range(3):
        goal = len(confirmed) + 100
        await eventually(partial(longer, confirmed, goal))
        broker.kill()
        broker.start()
    stopping = True
    await asyncio.gather(*writers)
    stored = [int(record.value) for p in range(2) for record in await read_all(bus, topic, p)]
    assert set(confirmed) <= set(stored)
    assert [await bus.birth(topic, p) for p in range(2)] == births


async def test_a_stream_is_born_again_when_the_brokers_data_is_replaced(
    broker: Broker, make_bus: MakeBus, topic: str
) -> None:
    bus, other = await make_bus(), await make_bus()
    await bus.declare(topic, 2, ["ledger"])
    await other.declare(topic, 2, ["ledger"])
    births = [await bus.birth(topic, p) for p in range(2)]
    assert [await other.birth(topic, p) for p in range(2)] == births
    assert len(set(births)) == 2
    tokens = await bus.publish(topic, numbered(range(5), partition=0))
    broker.replace()
    await back(bus)
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0)
    again = await bus.publish(topic, numbered(range(5, 12), partition=0))
    reborn = [await bus.birth(topic, p) for p in range(2)]
    assert not set(reborn) & set(births)
    assert [await other.birth(topic, p) for p in range(2)] == reborn
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0)
    assert [r.token for r in await read_all(bus, topic, 0)] == again


async def test_a_group_reads_on_when_the_brokers_data_was_replaced(
    broker: Broker, bus: Bus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    seen = Seen()
    async with running(bus.subscribe([topic], "readers", seen)):
        await bus.publish(topic, numbered(range(5)))
        await eventually(lambda: len(seen.records) == 5)
        broker.replace()
        await back(bus)
        await bus.publish(topic, numbered(range(5, 7)))
        await eventually(lambda: {b"5", b"6"} <= set(seen.values))


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


def test_every_driver_ran(
    ran: Counter[str], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    with capsys.disabled():
        for driver, tests in sorted(ran.items()):
            sys.stdout.write(f"\nbus contract: {driver}: {tests} tests\n")
    assert {driver.split(" ")[0] for driver in ran} == set(DRIVERS)
