"""The settings of a running platform's servers that decide what a crash may lose, and memory."""

from __future__ import annotations

import logging
from typing import Any

import asyncpg
from redis.asyncio import Redis

_POSTGRES = (
    *("fsync", "synchronous_commit", "full_page_writes"),
    *("shared_buffers", "max_wal_size"),
)
_KAFKA = ("log.flush.interval.messages", "log.flush.interval.ms", "min.insync.replicas")


async def durability(facts: dict[str, Any]) -> dict[str, str]:
    """By name, as the servers themselves tell; ``facts`` are of ``run.json``."""
    connection = await asyncpg.connect(facts["database_url"])
    found = {name: await connection.fetchval(f"SHOW {name}") for name in _POSTGRES}
    await connection.close()
    if facts.get("kafka_brokers"):
        return found | await _kafka(facts)
    async with Redis.from_url(facts["redis_url"]) as broker:
        told = await broker.config_get("append*")
    return found | {name: told[name] for name in ("appendonly", "appendfsync")}


async def _kafka(facts: dict[str, Any]) -> dict[str, str]:
    """The broker's settings; the producer's ``acks=all`` is the driver's and no setting."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    from common.events.kafka import Access

    # It warns of the password that a broker on this machine is shown.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    access = Access(
        facts["kafka_brokers"],
        facts["kafka_security_protocol"],
        facts["kafka_sasl_mechanism"],
        facts["kafka_username"],
        facts["kafka_password"],
    )
    admin = AIOKafkaAdminClient(**access.options())
    await admin.start()
    try:
        node = (await admin.describe_cluster())["brokers"][0]["node_id"]
        (answer,) = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.BROKER, str(node))]
        )
    finally:
        await admin.close()
    entries = answer.resources[0][4]
    found = {entry[0]: entry[1] for entry in entries if entry[0] in _KAFKA}
    return {"acks": "all"} | found
