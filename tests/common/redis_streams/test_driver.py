"""What the driver on streams adds to the contract: its keys, its memory, its connections."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis.asyncio
import redis.exceptions

from common.events.bus import BusFull, BusUnavailable, OffsetLost, Outgoing, Record
from common.events.delivery import Delivery
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from tests.common.brokers import RedisStreams
from tests.common.redis_streams.conftest import KILOBYTE, fill
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus


async def test_a_server_that_answers_with_an_error_is_not_available(
    broker: RedisStreams, server: Any
) -> None:
    await server.execute_command("ACL SETUSER", "guest", "on", ">secret", "~*", "+@all", "-ping")
    address = urlsplit(broker.address)
    place = f"guest:secret@{address.netloc.rpartition('@')[2]}"
    refused = address._replace(netloc=place).geturl()
    bus = RedisStreamsBus(refused, telemetry=silent_telemetry())
    with pytest.raises(BusUnavailable, match="no permissions"):
        await bus.ping()
    await bus.stop()


async def test_the_numbers_of_a_partition_have_no_gaps(bus: RedisStreamsBus, topic: str) -> None:
    await bus.declare(topic, 2, ["readers"])
    tokens: list[str] = []
    for size in (1, 5, 3):
        tokens += await bus.publish(topic, [Outgoing(b"x", partition=1)] * size)
        await bus.publish(topic, [Outgoing(b"x", partition=0)])
    assert [int(token.split("-")[1]) for token in tokens] == list(range(1, 10))
    times = [int(token.split("-")[0]) for token in tokens]
    assert times == sorted(times)


async def test_a_record_taken_out_of_the_middle_is_noticed(
    bus: RedisStreamsBus, server: Any, topic: str
) -> None:
    await bus.declare(topic, 1, ["ledger"])
    tokens = await bus.publish(topic, [Outgoing(b"x")] * 6)
    await server.xdel(f"mw:{topic}:0", tokens[3])
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[1], max_records=6, wait=0)
    with pytest.raises(OffsetLost):
        await bus.fetch(topic, 0, tokens[2], max_records=6, wait=0)
    assert len(await bus.fetch(topic, 0, tokens[3], max_records=6, wait=0)) == 2


async def test_a_partition_that_does_not_exist_is_refused(bus: RedisStreamsBus, topic: str) -> None:
    await bus.declare(topic, 2)
    with pytest.raises(ValueError, match="has 2 partitions"):
        await bus.publish(topic, [Outgoing(b"x", partition=0), Outgoing(b"x", partition=2)])
    assert await bus.end(topic, 0) is None


async def test_committed_records_make_room_after_a_while(bus: RedisStreamsBus, topic: str) -> None:
    await bus.declare(topic, 1, ["one", "other"])
    large = Outgoing(bytes(8 * KILOBYTE))
    tokens = await bus.publish(topic, [large] * 50)
    for group in ("one", "other"):
        await bus.commit(topic, 0, group, tokens[-1])
    (first,) = await bus.fetch(topic, 0, None, max_records=1, wait=0)
    assert first.token == tokens[0]

    async def trimmed() -> bool:
        (token,) = await bus.publish(topic, [large])
        for group in ("one", "other"):
            await bus.commit(topic, 0, group, token)
        (first,) = await bus.fetch(topic, 0, None, max_records=1, wait=0)
        return first.token not in tokens

    await eventually(trimmed)
    assert await bus.lag(topic, "one") == 0


@pytest.mark.usefixtures("little_memory")
async def test_a_server_without_memory_is_full_and_goes_on_after_a_commit(
    bus: RedisStreamsBus, topic: str
) -> None:
    await bus.declare(topic, 2, ["ledger"])
    value = bytes(100 * KILOBYTE)
    tokens = await fill(bus, topic)
    both = [Outgoing(value, partition=p) for p in (1, 0)]
    with pytest.raises(BusFull):
        await bus.publish(topic, both)
    assert await bus.end(topic, 1) is None

    seen: list[str] = []
    while batch := await bus.fetch(topic, 0, seen[-1] if seen else None, max_records=10, wait=0):
        seen += [record.token for record in batch]
    assert seen == tokens
    await bus.commit(topic, 0, "ledger", tokens[-1])
    await bus.publish(topic, both)
    assert len(await bus.fetch(topic, 0, tokens[-1], max_records=5, wait=0)) == 1


@pytest.mark.usefixtures("little_memory")
async def test_a_group_takes_over_and_works_on_while_the_server_has_no_memory(
    bus: RedisStreamsBus, topic: str
) -> None:
    await bus.declare(topic, 1, ["readers"])
    published = len(await fill(bus, topic))
    seen: list[Record] = []

    async def handle(record: Record) -> None:
        seen.append(record)

    subscription = bus.subscribe([topic], "readers", handle)
    await subscription.start()
    await eventually(lambda: len(seen) == published)
    await subscription.stop()
    assert await bus.lag(topic, "readers") == 0
    await bus.publish(topic, [Outgoing(bytes(100 * KILOBYTE))])


async def test_a_server_that_does_not_answer_is_unavailable(
    bus: RedisStreamsBus, server: Any, topic: str
) -> None:
    await bus.declare(topic, 1)
    process = psutil.Process((await server.info("server"))["process_id"])
    process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            with pytest.raises(BusUnavailable):
                await bus.publish(topic, [Outgoing(b"x")])
    finally:
        process.send_signal(signal.SIGCONT)
    await bus.ping()


async def test_a_wrong_password_is_unavailable(broker: RedisStreams) -> None:
    bus = RedisStreamsBus(
        broker.address.replace("password", "another"), telemetry=silent_telemetry()
    )
    with pytest.raises(BusUnavailable):
        await bus.ping()
    await bus.stop()


async def test_a_server_that_may_not_write_is_unavailable(
    bus: RedisStreamsBus, server: Any, topic: str
) -> None:
    await bus.declare(topic, 1)
    await server.config_set("min-replicas-to-write", 1)
    with pytest.raises(BusUnavailable):
        await bus.publish(topic, [Outgoing(b"x")])
    await server.config_set("min-replicas-to-write", 0)
    await server.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(BusUnavailable):
        await bus.publish(topic, [Outgoing(b"x")])
    await server.execute_command("REPLICAOF", "NO", "ONE")
    await bus.publish(topic, [Outgoing(b"x")])


async def test_an_answer_that_nobody_expects_is_no_outage(
    bus: RedisStreamsBus, server: Any, topic: str
) -> None:
    await server.set(f"mw:{topic}", "of somebody else")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await bus.partitions(topic)


async def test_a_reader_that_met_something_unexpected_goes_on_when_it_is_gone(
    bus: RedisStreamsBus, server: Any, topic: str
) -> None:
    await server.set(f"mw:{topic}", "of somebody else")
    seen: list[bytes] = []

    async def handle(record: Record) -> None:
        seen.append(record.value)

    reading, tail = bus.subscribe([topic], "readers", handle), bus.tail([topic], handle)
    await reading.start()
    await eventually(lambda: "WRONGTYPE" in reading.status().detail)
    await server.delete(f"mw:{topic}")
    await bus.declare(topic, 1)
    await tail.start()
    await bus.publish(topic, [Outgoing(b"x")])
    await eventually(lambda: seen == [b"x", b"x"])
    await reading.stop()
    await tail.stop()


async def test_more_callers_than_connections_are_all_served(
    bus: RedisStreamsBus, server: Any, topic: str
) -> None:
    await bus.declare(topic, 4)
    await asyncio.gather(*(bus.publish(topic, [Outgoing(b"x", key=str(n))]) for n in range(300)))
    assert sum([await server.xlen(f"mw:{topic}:{p}") for p in range(4)]) == 300
    assert (await server.info("clients"))["connected_clients"] < 50


async def test_a_cancelled_fetch_ends_at_once_and_spoils_no_connection(
    bus: RedisStreamsBus, topic: str
) -> None:
    await bus.declare(topic, 1, ["ledger"])
    tokens = await bus.publish(topic, [Outgoing(b"x")] * 3)
    for moment in range(200):
        fetching = asyncio.create_task(
            bus.fetch(topic, 0, tokens[-1], max_records=3, wait=0.001 * (moment % 5))
        )
        for _ in range(moment % 40):
            await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.wait([fetching])
        assert fetching.cancelled() or fetching.result() == []
    assert len(await bus.fetch(topic, 0, None, max_records=3, wait=0)) == 3
    assert await bus.end(topic, 0) == tokens[-1]


async def test_a_server_that_is_busy_with_another_script_is_unavailable(
    bus: RedisStreamsBus, broker: RedisStreams, server: Any
) -> None:
    before = (await server.config_get("lua-time-limit"))["lua-time-limit"]
    await server.config_set("lua-time-limit", 50)
    endless = asyncio.create_task(server.eval("while true do end", 0))
    try:
        await asyncio.sleep(0.5)
        with pytest.raises(BusUnavailable):
            await bus.ping()
    finally:
        async with redis.asyncio.Redis.from_url(broker.address) as other:
            await other.script_kill()
        with pytest.raises(redis.exceptions.ResponseError):
            await endless
        await server.config_set("lua-time-limit", before)


async def test_records_are_read_while_lag_and_dead_letters_are_counted(
    broker: RedisStreams, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, seen = asyncio.Event(), asyncio.Event()

    async def never_done(_: Delivery) -> int:
        counting.set()
        await asyncio.Event().wait()
        return 0

    async def handler(_: Record) -> None:
        seen.set()

    monkeypatch.setattr(Delivery, "measure", never_done)
    bus = RedisStreamsBus(broker.address, telemetry=silent_telemetry(), lease=0.5)
    await bus.declare(topic, 1)
    subscription = bus.subscribe([topic], "readers", handler)
    await subscription.start()
    await counting.wait()
    # Until its lease would be over.
    await asyncio.sleep(1.0)
    await bus.publish(topic, [Outgoing(b"x")])
    async with asyncio.timeout(30):
        await seen.wait()
    await subscription.stop()
    await bus.stop()


async def test_a_commit_by_one_who_missed_that_the_topic_was_replaced_changes_nothing(
    broker: RedisStreams, topic: str
) -> None:
    bus = RedisStreamsBus(broker.address, telemetry=silent_telemetry(), max_records=10)
    await bus.declare(topic, 1, ["ledger"])
    for _ in range(3):
        tokens = await bus.publish(topic, [Outgoing(b"x")] * 10)
        await bus.commit(topic, 0, "ledger", tokens[-1])
    await bus.replace(topic, 1, ["ledger"])
    late = tokens[-1]
    for _ in range(2):
        tokens = await bus.publish(topic, [Outgoing(b"x")] * 10)
        await bus.commit(topic, 0, "ledger", late)
        assert await bus.lag(topic, "ledger") == 10
        await bus.commit(topic, 0, "ledger", tokens[-1])
        assert await bus.lag(topic, "ledger") == 0
    await bus.stop()


async def test_what_a_topic_holds_before_it_is_full_is_shown_where_groups_read_it(
    broker: RedisStreams, topic: str
) -> None:
    telemetry = silent_telemetry("team")
    bus = RedisStreamsBus(broker.address, telemetry=telemetry, max_records=10)
    capacity = partial(
        telemetry.metrics.registry.get_sample_value, "mindweave_bus_capacity_records"
    )
    await bus.declare(f"{topic}.dead", 1)
    await bus.declare(topic, 3, ["ledger"])
    await bus.stop()
    assert capacity({"service": "team", "topic": topic}) == 30
    assert capacity({"service": "team", "topic": f"{topic}.dead"}) is None
