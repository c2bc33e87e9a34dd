"""What tests of every driver of the bus share: its real broker, and buses of it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import pytest

from common.events.bus import Backoff, Bus, BusUnavailable, Outgoing, Record, Subscription
from tests.common.brokers import DRIVERS, Broker
from tests.common.waiting import eventually

QUICK = Backoff(first=0.01, limit=0.05)
MakeBus = Callable[..., Awaitable[Bus]]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What each driver ran is told once all of it has."""
    items.sort(key=lambda item: item.name == "test_every_driver_ran")


@pytest.fixture(scope="session")
def ran() -> Counter[str]:
    """How many tests each driver has begun."""
    return Counter()


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
