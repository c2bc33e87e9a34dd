"""Real brokers for the bus contract: one class a driver, all used alike."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil
import redis
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from common.events.bus import Bus
from common.events.kafka import KafkaBus
from common.events.redis_streams import RedisStreamsBus
from common.testing import silent_telemetry
from fleet.embedded import Kafka, Valkey
from fleet.embedded.daemon import Daemon

# A broker that is there already, which no test may hurt; without it one is started.
GIVEN_KAFKA = os.environ.get("KAFKA_BROKERS")
# The least session that brokers allow by default, seconds.
_GIVEN_SESSION = 6.0


class Broker(Protocol):
    """A broker process that a test may hurt."""

    driver: str

    @property
    def address(self) -> str: ...

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


class OwnBroker:
    """A broker of this run, in a folder of its own."""

    def __init__(self, folder: Path, server: Daemon) -> None:
        self._folder = folder
        self._server = server

    def start(self) -> None:
        self._server.start()

    @property
    def process(self) -> psutil.Process:
        process = self._server.process
        assert process is not None
        return process

    def kill(self) -> None:
        process = self.process
        process.send_signal(signal.SIGKILL)
        process.wait()

    def replace(self) -> None:
        self._server.stop()
        shutil.rmtree(self._folder)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


class RedisStreams(OwnBroker):
    """Valkey with an append-only file."""

    driver = "redis-streams"

    def __init__(self, folder: Path) -> None:
        server = Valkey(folder / "broker", "password", durable=True)
        super().__init__(folder / "broker", server)
        self.address = server.url

    def version(self) -> str:
        with redis.Redis.from_url(self.address) as client:
            about: dict[str, Any] = client.info("server")
        return f"Valkey {about['valkey_version']}"

    async def forget(self, topic: str, partition: int, token: str) -> None:
        milliseconds, number = token.split("-")
        oldest = f"{milliseconds}-{int(number) + 1}"

        def trim() -> None:
            with redis.Redis.from_url(self.address) as client:
                client.execute_command("XTRIM", f"mw:{topic}:{partition}", "MINID", "=", oldest)

        await asyncio.to_thread(trim)


class OwnKafka(OwnBroker):
    """Apache Kafka as one node, by Maven and Java."""

    driver = "kafka"

    def __init__(self, folder: Path) -> None:
        self._kafka = Kafka(folder / "kafka")
        super().__init__(folder / "kafka", self._kafka)

    @property
    def address(self) -> str:
        return self._kafka.bootstrap

    def lose(self, topic: str, partition: int, token: str) -> None:
        """End it without the records behind the token, as where the machine failed.

        The system writes them to the disk by itself; those were acknowledged before that.
        """
        self.kill()
        (file,) = (self._folder / "data" / f"{topic}-{partition}").glob("*.log")
        written = file.read_bytes()
        kept = 0
        while kept < len(written):
            first, length = struct.unpack_from(">qi", written, kept)
            if first > int(token.rpartition("-")[2]):
                break
            kept += 12 + length
        os.truncate(file, kept)

    def version(self) -> str:
        return f"Apache Kafka {self._kafka.version}"

    async def forget(self, topic: str, partition: int, token: str) -> None:
        await forget_in_kafka(self.address, topic, partition, token)


class GivenKafka:
    """The broker at an address from the environment."""

    driver = "kafka"

    def __init__(self, _: Path) -> None:
        self.address = GIVEN_KAFKA or ""

    def version(self) -> str:
        return f"Apache Kafka at {self.address}"

    def start(self) -> None:
        """It runs."""

    def stop(self) -> None:
        """It goes on."""

    def kill(self) -> None:
        raise NotImplementedError("OWN names the drivers whose broker may be killed")

    def replace(self) -> None:
        raise NotImplementedError("OWN names the drivers whose broker may be replaced")

    async def forget(self, topic: str, partition: int, token: str) -> None:
        await forget_in_kafka(self.address, topic, partition, token)


async def forget_in_kafka(address: str, topic: str, partition: int, token: str) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    before = int(token.rpartition("-")[2]) + 1
    await client.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})
    await client.close()


def redis_streams_bus(address: str, **options: Any) -> Bus:
    return RedisStreamsBus(address, telemetry=silent_telemetry(), **options)


def kafka_bus(address: str, **options: Any) -> Bus:
    if GIVEN_KAFKA:
        options["lease"] = _GIVEN_SESSION
    return KafkaBus(address, telemetry=silent_telemetry(), **options)


# Every driver of the contract: its broker, and its bus with the option lease.
DRIVERS: Mapping[str, tuple[Callable[[Path], Broker], Callable[..., Bus]]] = {
    "redis-streams": (RedisStreams, redis_streams_bus),
    "kafka": (GivenKafka if GIVEN_KAFKA else OwnKafka, kafka_bus),
}
# Those whose broker a test may kill and replace.
OWN = tuple(name for name in DRIVERS if not (name == "kafka" and GIVEN_KAFKA))
# Those that bound the records of a partition by their number: options max_records and kept.
BOUNDED = ("redis-streams",)
