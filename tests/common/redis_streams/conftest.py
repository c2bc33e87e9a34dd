"""A server of streams for the tests of its driver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio
import redis.exceptions

from common.events.bus import BusFull, Outgoing
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from tests.common.brokers import RedisStreams

KILOBYTE = 1024
MEGABYTE = 1024 * KILOBYTE


@pytest.fixture(scope="package")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisStreams]:
    server = RedisStreams(tmp_path_factory.mktemp("streams"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def server(broker: RedisStreams) -> AsyncIterator[Any]:
    """The server itself."""
    client = redis.asyncio.Redis.from_url(broker.address)
    yield client
    await client.aclose()


@pytest.fixture
async def bus(broker: RedisStreams) -> AsyncIterator[RedisStreamsBus]:
    bus = RedisStreamsBus(broker.address, telemetry=silent_telemetry(), lease=1.0)
    yield bus
    await bus.stop()


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid4().hex[:12]}"


@pytest.fixture
async def little_memory(server: Any) -> AsyncIterator[None]:
    """Lets the server have four megabytes more than it has now."""
    used: Any = (await server.info("memory"))["used_memory"]
    await server.config_set("maxmemory", used + 4 * MEGABYTE)
    yield
    await server.config_set("maxmemory", 0)


async def fill(bus: RedisStreamsBus, topic: str) -> list[str]:
    """Publish to partition 0 until the broker is full; the tokens."""
    tokens: list[str] = []
    while True:
        try:
            tokens += await bus.publish(topic, [Outgoing(bytes(100 * KILOBYTE), partition=0)])
        except BusFull:
            return tokens
