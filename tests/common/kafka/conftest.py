"""What tests of the driver on Kafka share: the broker of this run, and buses of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from common.events.kafka import KafkaBus
from common.testing import silent_telemetry
from tests.common.brokers import GIVEN_KAFKA, Broker

MakeBus = Callable[..., Awaitable[KafkaBus]]


# Those hurt the broker.
collect_ignore = ["test_lost_records.py", "test_outages.py"] if GIVEN_KAFKA else []


@pytest.fixture
async def make_bus(broker: Broker) -> AsyncIterator[MakeBus]:
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> KafkaBus:
            given = {"telemetry": silent_telemetry(), "lease": 6.0, **options}
            bus = KafkaBus(given.pop("access", broker.address), **given)
            stack.push_async_callback(bus.stop)
            return bus

        yield make


@pytest.fixture
async def bus(make_bus: MakeBus) -> KafkaBus:
    return await make_bus()


@pytest.fixture
async def admin(broker: Broker) -> AsyncIterator[Any]:
    """Another client of the broker."""
    client = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid4().hex[:12]}"
