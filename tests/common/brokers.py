"""Real brokers for the bus contract: one class a driver, all used alike."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import redis

from common.events.bus import Bus
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Valkey


class Broker(Protocol):
    """A broker process that a test may hurt."""

    driver: str
    address: str

    def version(self) -> str: ...

    def start(self) -> None:
        """Start it, or start it again with the data that it has."""

    def kill(self) -> None:
        """End it at once, as by kill -9."""

    def replace(self) -> None:
        """Start it anew without its data, as after a restore to an empty disk."""

    def stop(self) -> None: ...

    async def forget(self, topic: str, partition: int, token: str) -> None:
        """Drop the partition's records up to the token, whoever still needs them."""


class RedisStreams:
    """Valkey with an append-only file."""

    driver = "redis-streams"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "broker"
        self._server = Valkey(self._folder, "password", durable=True)
        self.address = self._server.url

    def version(self) -> str:
        with redis.Redis.from_url(self.address) as client:
            about: dict[str, Any] = client.info("server")
        return f"Valkey {about['valkey_version']}"

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        process = self._server.process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()

    def replace(self) -> None:
        self._server.stop()
        shutil.rmtree(self._folder)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    async def forget(self, topic: str, partition: int, token: str) -> None:
        milliseconds, number = token.split("-")
        oldest = f"{milliseconds}-{int(number) + 1}"

        def trim() -> None:
            with redis.Redis.from_url(self.address) as client:
                client.execute_command("XTRIM", f"mw:{topic}:{partition}", "MINID", "=", oldest)

        await asyncio.to_thread(trim)


def redis_streams_bus(address: str, **options: Any) -> Bus:
    return RedisStreamsBus(address, telemetry=silent_telemetry(), **options)


# Every driver of the contract: its broker, and its bus with the options max_records, kept, lease.
DRIVERS: Mapping[str, tuple[Callable[[Path], Broker], Callable[..., Bus]]] = {
    "redis-streams": (RedisStreams, redis_streams_bus),
}
