"""Making topics, and how long they keep their records."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Never

from aiokafka.protocol.admin import (
    AlterConfigsRequest,
    CreateTopicsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
)

from common.events.bus import (
    DEAD,
    LEDGER_TOPIC,
    SETTLED,
    BusUnavailable,
    TopicMismatch,
    TopicUnknown,
)
from common.events.kafka.cluster import ANSWER_TIMEOUT, Cluster, Topic
from common.events.kafka.reader import Reader

_DAY = 24 * 3600 * 1000
_READ = 7 * _DAY
_LEDGER_FILE = _DAY // 4
_DEAD = 30 * _DAY
# Bytes that a partition holds of a topic that no group reads, and of one of its files.
_UNREAD = 256 * 1024 * 1024
_SEGMENT = 32 * 1024 * 1024
# Larger than any record: several of them travel as one.
_LARGEST = 16 * 1024 * 1024
_TOPIC = 2
_NONE, _UNKNOWN, _EXISTS = 0, 3, 36
_LOOK_EVERY = 0.05


class Topics:
    """Declares topics: 7 days for what groups read, 30 for dead letters, else by size too."""

    def __init__(self, cluster: Cluster, reader: Reader, replication: int | None) -> None:
        """Args: ``replication`` of topics made here; None takes the brokers' own."""
        self._cluster = cluster
        self._reader = reader
        self._replication = -1 if replication is None else replication
        self._read: set[str] = set()

    async def declare(self, name: str, partitions: int, *, read: bool) -> Topic:
        """Make the topic where it does not exist.

        Args:
            name: the topic's.
            partitions: how many it has for good.
            read: whether groups read it, so that its size must not shorten its time.

        Raises:
            TopicMismatch: it exists with another number of partitions.
        """
        try:
            topic = await self._cluster.look_up(name)
        except TopicUnknown:
            topic = await self._make(name, partitions, read=read)
        if len(topic.leaders) != partitions:
            raise TopicMismatch(
                f"{name} has {len(topic.leaders)} partitions, not {partitions}: "
                "their number is for good"
            )
        if read and name not in self._read:
            await self._keep_for_groups(name)
            self._read.add(name)
        return topic

    async def remove(self, name: str) -> None:
        """Remove the topic with its records, where it exists."""
        request = DeleteTopicsRequest([name], int(ANSWER_TIMEOUT * 1000))
        answer = await self._cluster.ask(None, request, lane="topics", wait=ANSWER_TIMEOUT)
        ((_, code, *_),) = answer.topic_error_codes
        if code not in (_NONE, _UNKNOWN):
            self._cluster.check(f"removal of {name}", code, name)
        self._read.discard(name)
        deadline = monotonic() + ANSWER_TIMEOUT
        while monotonic() < deadline:
            try:
                await self._cluster.look_up(name)
            except TopicUnknown:
                return
            await asyncio.sleep(_LOOK_EVERY)
        raise BusUnavailable(f"{name} is still there.")

    async def _make(self, name: str, partitions: int, *, read: bool) -> Topic:
        settings = list(_kept(name, read=read).items())
        assigned: list[Never] = []
        wanted = (name, partitions, self._replication, assigned, settings)
        request = CreateTopicsRequest([wanted], int(ANSWER_TIMEOUT * 1000), False)
        answer = await self._cluster.ask(None, request, lane="topics", wait=ANSWER_TIMEOUT)
        ((_, code, *_),) = answer.topic_errors
        if code not in (_NONE, _EXISTS):
            self._cluster.check(f"topic {name}", code, name)
        deadline = monotonic() + ANSWER_TIMEOUT
        while True:
            try:
                topic = await self._cluster.look_up(name)
                # A leader is named a moment before it serves.
                await self._reader.next(topic)
                return topic
            except (TopicUnknown, BusUnavailable):
                if monotonic() > deadline:
                    raise BusUnavailable(f"{name} is not there yet.") from None
                await asyncio.sleep(_LOOK_EVERY)

    async def _keep_for_groups(self, name: str) -> None:
        """Lift the bound of size that a topic had while no group read it."""
        asked = DescribeConfigsRequest([(_TOPIC, name, ["retention.bytes"])])
        answer = await self._cluster.ask(None, asked, lane="topics")
        ((code, _, _, _, entries),) = answer.resources
        self._cluster.check(f"settings of {name}", code, name)
        if [entry[1] for entry in entries] != [str(_UNREAD)]:
            return
        wanted = (_TOPIC, name, list(_kept(name, read=True).items()))
        answer = await self._cluster.ask(None, AlterConfigsRequest([wanted]), lane="topics")
        ((code, *_),) = answer.resources
        self._cluster.check(f"settings of {name}", code, name)


def _kept(name: str, *, read: bool) -> Mapping[str, str]:
    settled = name.endswith(DEAD) or name == SETTLED
    # A file goes as a whole, by its newest record: none in it may be so old by then that the ledger
    # has forgotten its identity.
    often = {"segment.ms": str(_LEDGER_FILE)} if name == LEDGER_TOPIC else {}
    return {
        **often,
        "cleanup.policy": "delete",
        "retention.ms": str(_DEAD if settled else _READ),
        "segment.bytes": str(_SEGMENT),
        "max.message.bytes": str(_LARGEST),
        "retention.bytes": "-1" if read or settled else str(_UNREAD),
    }
