"""Three Kafka brokers as processes, each behind a link, kept by a watch as by any supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from fleet.embedded import Kafka
from fleet.embedded.folder import start_together
from fleet.embedded.kafka import cluster_id
from fleet.ports import free_port, free_ports
from fleet.surroundings import watch
from tests.chaos.link import HOST, Link

COUNT = 3
TOPIC = "usage.events"


@dataclass
class Cluster:
    """The brokers, and the links by which all clients reach them; none on Redis Streams."""

    brokers: Sequence[Kafka]
    links: Sequence[Link]

    @property
    def addresses(self) -> str:
        return ",".join(link.address for link in self.links)

    def pid(self, index: int) -> int:
        """Of a broker; 0 where it does not run."""
        return self.brokers[index].pid or 0

    async def leaders(self) -> dict[int, int]:
        """By partition of usage.events: the index of the broker that leads it, -1 for none."""
        return {p["partition"]: max(-1, p["leader"] - 1) for p in await self._partitions()}

    async def in_step(self) -> bool:
        """Whether every partition of usage.events has all its replicas."""
        if not self.brokers:
            return True
        found = await self._partitions()
        return bool(found) and all(len(p["isr"]) == COUNT for p in found)

    async def _partitions(self) -> list[dict[str, Any]]:
        """None while no broker answers."""
        addresses = [broker.bootstrap for broker in self.brokers]
        client = AIOKafkaAdminClient(bootstrap_servers=addresses, request_timeout_ms=2000)
        try:
            await client.start()
            (topic,) = await client.describe_topics([TOPIC])
        except KafkaError:
            return []
        finally:
            await client.close()
        found: list[dict[str, Any]] = topic["partitions"]
        return found


@asynccontextmanager
async def cluster(folders: Sequence[Path]) -> AsyncIterator[Cluster]:
    """A broker in each folder; one that ends is started again."""
    name = cluster_id()
    # Its clients', its controller's, its peers'.
    ports = list(islice(free_ports(neighbours=2), 0, 3 * COUNT, 3))
    voters = ",".join(f"{n}@{HOST}:{port + 1}" for n, port in enumerate(ports, 1))
    links = [Link(free_port(), (HOST, port)) for port in ports]
    brokers = [
        Kafka(
            folder / "kafka",
            _options(number, port, link, voters),
            port=port,
            cluster=name,
        )
        for number, (folder, port, link) in enumerate(zip(folders, ports, links, strict=True), 1)
    ]
    async with AsyncExitStack() as stack:
        for link in links:
            await stack.enter_async_context(link)
        stack.callback(_kill, brokers)
        # All at once: none answers before most of them have met.
        await asyncio.to_thread(start_together, list(brokers))
        watching = [asyncio.create_task(watch([broker])) for broker in brokers]
        try:
            yield Cluster(brokers, links)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)


def _kill(brokers: Sequence[Kafka]) -> None:
    """Each would wait for the others to end in order."""
    for broker in brokers:
        if broker.process is not None:
            broker.process.kill()


def _options(number: int, port: int, link: Link, voters: str) -> dict[str, str]:
    protocols = ("CONTROLLER", "PLAINTEXT", "PEERS")
    return {
        "node.id": str(number),
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{port + 1},"
        f"PEERS://{HOST}:{port + 2}",
        "advertised.listeners": f"PLAINTEXT://{link.address},PEERS://{HOST}:{port + 2}",
        "inter.broker.listener.name": "PEERS",
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in protocols),
        "controller.quorum.voters": voters,
        "controller.quorum.election.timeout.ms": "500",
        "controller.quorum.fetch.timeout.ms": "1500",
        "default.replication.factor": str(COUNT),
        "min.insync.replicas": "2",
        "offsets.topic.replication.factor": str(COUNT),
        "replica.lag.time.max.ms": "3000",
        "log.segment.bytes": str(8 * 1024 * 1024),
        "unclean.leader.election.enable": "false",
    }
