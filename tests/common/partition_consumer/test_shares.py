"""Consumers share a topic's partitions, and each record is applied once whoever comes and goes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import asyncpg
import pytest

from common.events.bus import Bus, BusUnavailable
from common.events.ledger import PartitionConsumer
from common.events.ledger.members import share_of
from tests.common.partition_consumer.conftest import (
    NAME,
    Ledger,
    LedgerProcess,
    Make,
    publish,
)
from tests.common.waiting import eventually

pytestmark = pytest.mark.bus

PARTS = range(4)


@pytest.fixture
async def topic(bus: Bus, topic: str) -> str:
    """One of four partitions."""
    wide = f"{topic}-wide"
    await bus.declare(wide, len(PARTS), ["ledger"])
    return wide


class Stream:
    """Numbers published to every partition, a further piece with each call."""

    def __init__(self, bus: Bus, topic: str, ledger: Ledger) -> None:
        self._bus = bus
        self._topic = topic
        self._ledger = ledger
        self._sent = 0

    async def send(self, count: int = 25) -> None:
        for part in PARTS:
            await publish(self._bus, self._topic, range(self._sent, self._sent + count), part)
        self._sent += count

    async def applied(self) -> None:
        """Returns when each partition holds every number once and in order."""
        for part in PARTS:
            await eventually(partial(self._ledger.holds, part, list(range(self._sent))))


@pytest.fixture
def stream(bus: Bus, topic: str, ledger: Ledger) -> Stream:
    return Stream(bus, topic, ledger)


def shared(consumers: Sequence[PartitionConsumer], *sizes: int) -> Callable[[], bool]:
    """Whether each partition has one consumer, and each consumer so many partitions."""

    def look() -> bool:
        held = [consumer.held() for consumer in consumers]
        whole = sorted(part for parts in held for part in parts) == list(PARTS)
        return whole and sorted(map(len, held)) == sorted(sizes)

    return look


@pytest.mark.parametrize("members", range(1, 6))
def test_the_shares_are_whole_and_differ_by_one_at_most(members: int) -> None:
    names = [f"member {n}" for n in range(members)]
    shares = [share_of(name, names, len(PARTS)) for name in names]
    assert sorted(part for share in shares for part in share) == list(PARTS)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares == [share_of(name, names[::-1], len(PARTS)) for name in names]


async def test_those_who_come_are_given_their_share_and_those_who_go_give_it_back(
    make: Make, stream: Stream
) -> None:
    one, two = await make(owner="1"), await make(owner="2")
    await eventually(shared([one, two], 2, 2))
    await stream.send()
    three = await make(owner="3")
    await eventually(shared([one, two, three], 1, 1, 2))
    await stream.send()
    await one.stop()
    await eventually(shared([two, three], 2, 2))
    await stream.send()
    await stream.applied()
    assert two.status().detail == "works on 2 of 4 partitions"


async def test_a_partition_that_is_given_back_finishes_its_batch_first(
    bus: Bus, topic: str, make: Make, ledger: Ledger, stream: Stream
) -> None:
    one = await make(owner="1")
    await eventually(shared([one], 4))
    ledger.gate.clear()
    await publish(bus, topic, range(5), part=1)
    await ledger.waiting.wait()
    epoch = (await ledger.place(1) or {})["epoch"]
    two = await make(owner="2")
    await eventually(lambda: two.held() == [3])
    assert one.held() == [0, 1, 2]
    ledger.gate.set()
    await eventually(shared([one, two], 2, 2))
    assert await ledger.numbers(1) == list(range(5))
    assert (await ledger.place(1) or {})["epoch"] == epoch + 1


async def test_the_share_of_one_that_was_killed_is_taken_after_its_lease(
    make: Make, ledger: Ledger, stream: Stream, other_process: LedgerProcess
) -> None:
    heir = await make(owner="1", lease=1.5)
    killed = await other_process.start("2", lease=1.5, pause=0.02)
    await eventually(lambda: heir.held() == [0, 2])
    await stream.send(100)
    await eventually(lambda: other_process.batches() > 2)
    killed.kill()
    await killed.wait()
    await stream.send()
    await eventually(shared([heir], 4))
    await stream.applied()


async def test_one_that_was_frozen_comes_back_as_a_zombie_and_doubles_nothing(
    make: Make, ledger: Ledger, stream: Stream, other_process: LedgerProcess
) -> None:
    heir = await make(owner="1", lease=1.5)
    zombie = await other_process.start("2", lease=1.5, pause=0.2)
    await eventually(lambda: heir.held() == [0, 2])
    await stream.send(100)
    await eventually(lambda: other_process.batches() > 2)
    # In the pause before a commit, most likely: its connection stays open, its locks are held.
    zombie.send_signal(signal.SIGSTOP)
    await eventually(lambda: len(heir.held()) > 2)
    zombie.send_signal(signal.SIGCONT)
    await stream.send()
    await stream.applied()
    await eventually(lambda: heir.held() == [0, 2])
    begun = other_process.batches()
    await stream.send()
    await stream.applied()
    assert other_process.batches() > begun


class CutOff:
    """Stands before a bus; while ``cut`` its broker answers nothing."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._bus, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def asked(*args: Any, **kwargs: Any) -> Any:
            if not self.cut:
                found = await method(*args, **kwargs)
            if self.cut:
                raise BusUnavailable
            return found

        return asked


async def test_the_share_of_one_that_the_broker_does_not_answer_is_taken_by_others(
    bus: Bus, make: Make, stream: Stream
) -> None:
    lost = CutOff(bus)
    one, two = await make(owner="1", bus=lost), await make(owner="2")
    await eventually(shared([one, two], 2, 2))
    lost.cut = True
    await stream.send()
    await eventually(lambda: two.held() == list(PARTS))
    assert one.held() == []
    await stream.applied()
    lost.cut = False
    await eventually(shared([one, two], 2, 2))
    await eventually(lambda: one.status().ready)


async def test_while_the_broker_answers_nobody_nothing_is_prepared_anew(
    bus: Bus, make: Make, stream: Stream
) -> None:
    prepared: list[int] = []

    async def on_take(part: int) -> None:
        prepared.append(part)

    lost = CutOff(bus)
    both = [await make(owner=name, bus=lost, on_take=on_take) for name in ("1", "2")]
    await eventually(shared(both, 2, 2))
    await stream.send()
    await stream.applied()
    before = len(prepared)
    lost.cut = True
    # Three leases and a half.
    await asyncio.sleep(3.5)
    lost.cut = False
    await stream.send()
    await stream.applied()
    await eventually(shared(both, 2, 2))
    assert len(prepared) == before


async def test_one_that_was_told_another_number_of_partitions_has_no_share(
    make: Make, stream: Stream
) -> None:
    told = await make(owner="1", partitions=len(PARTS) + 1, lease=10.0)
    await eventually(lambda: "TopicMismatch" in told.status().detail)
    two = await make(owner="2", lease=10.0)
    await eventually(shared([told, two], 0, 4))
    await stream.send()
    await stream.applied()


async def test_shares_come_back_after_an_outage_of_the_database(
    make: Make, stream: Stream, postgres: Any
) -> None:
    one, two = await make(owner="1"), await make(owner="2")
    await eventually(shared([one, two], 2, 2))
    admin = await asyncpg.connect(postgres.admin_dsn)
    await admin.execute(f"ALTER DATABASE {NAME} ALLOW_CONNECTIONS false")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", NAME
    )
    await stream.send()
    await eventually(lambda: not one.status().ready and not two.status().ready)
    assert one.status().live
    await admin.execute(f"ALTER DATABASE {NAME} ALLOW_CONNECTIONS true")
    await admin.close()
    await eventually(shared([one, two], 2, 2))
    await stream.applied()
    await eventually(lambda: one.status().ready and two.status().ready)
