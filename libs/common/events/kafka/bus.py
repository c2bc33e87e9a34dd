"""The bus port on Kafka."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import count
from uuid import UUID, uuid4

from common.events.bus import (
    Backoff,
    Handler,
    OffsetLost,
    Outgoing,
    Record,
    Subscription,
    TopicUnknown,
    partition_for,
)
from common.events.delivery import Delivery
from common.events.kafka.cluster import Access, Cluster, Topic
from common.events.kafka.groups import Groups
from common.events.kafka.publisher import Publisher
from common.events.kafka.reader import Reader, TopicReplaced
from common.events.kafka.subscription import GroupSubscription
from common.events.kafka.tokens import offset_in, token_at
from common.events.kafka.topics import Topics
from common.events.tail import Tail
from common.telemetry import SpanKind, Telemetry, inject

# Seconds after which a publisher looks whether a topic has got another number of partitions.
_TOPIC_AGE = 1.0

_logger = logging.getLogger(__name__)


class KafkaBus:
    """Kafka 3.1 or newer, with ``acks=all`` and one idempotent producer.

    A record is durable once every replica in step has it: how many those are is the brokers'
    setting ``min.insync.replicas``.
    """

    name = "kafka"

    def __init__(
        self,
        access: Access | str,
        *,
        telemetry: Telemetry,
        instance: str | None = None,
        replication: int | None = None,
        lease: float = 10.0,
        stalled_after: float = 60.0,
    ) -> None:
        """Connects when first used.

        Args:
            access: how the brokers are reached, or just their addresses.
            telemetry: of the service whose bus this is.
            instance: names this process among those of its service, now and after a restart: the
                partitions of a group then wait for it for as long as a session lasts.
            replication: of topics made here; the brokers' own where it is absent.
            lease: seconds of a session, after which a silent reader's partitions are another's.
            stalled_after: seconds that a subscription may stand still while records wait.
        """
        given = Access(access) if isinstance(access, str) else access
        self.cluster = Cluster(given, telemetry.service)
        self.groups = Groups(self.cluster)
        self._telemetry = telemetry
        self._instance = instance or uuid4().hex
        self._session = lease
        self._stalled_after = stalled_after
        self._reader = Reader(self.cluster)
        self._topics = Topics(self.cluster, self._reader, replication)
        self._publisher = Publisher(self.cluster)
        self._declared: dict[str, tuple[int, bool]] = {}
        self._hints: dict[tuple[UUID, int, str], int] = {}
        self._subscriptions = count()

    async def start(self) -> None:
        """Nothing to prepare: connections are made and healed as they are used."""

    async def stop(self) -> None:
        await self._publisher.close()
        await self.cluster.close()

    async def ping(self) -> None:
        await self.cluster.ping()

    async def declare(self, topic: str, partitions: int, groups: Sequence[str] = ()) -> None:
        _, read = self._declared.get(topic, (partitions, False))
        await self._topics.declare(topic, partitions, read=bool(groups))
        self._declared[topic] = (partitions, read or bool(groups))

    async def replace(self, topic: str, partitions: int, groups: Sequence[str] = ()) -> None:
        await self._topics.remove(topic)
        await self.declare(topic, partitions, groups)

    async def partitions(self, topic: str) -> int:
        return len((await self._topic(topic, age=0.0)).leaders)

    async def birth(self, topic: str, partition: int) -> str:
        try:
            found = await self.cluster.look_up(topic)
        except TopicUnknown:
            found = await self._declare_again(topic)
        return f"{found.id}-{partition}"

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        if not records:
            return []
        with self._telemetry.span(f"{topic} publish", kind=SpanKind.PRODUCER):
            found = await self._topic(topic, age=_TOPIC_AGE)
            places = [self._partition(found, record) for record in records]
            by_partition: dict[int, list[Outgoing]] = {}
            for record, place in zip(records, places, strict=True):
                by_partition.setdefault(place, []).append(_traced(record))
            offsets = await self._publisher.send(topic, by_partition)
        in_turn = {place: iter(row) for place, row in offsets.items()}
        return [token_at(found.id, next(in_turn[place])) for place in places]

    async def fetch(
        self, topic: str, partition: int, after: str | None, *, max_records: int, wait: float
    ) -> list[Record]:
        try:
            found = await self.cluster.topic(topic)
        except TopicUnknown:
            if after is not None:
                raise OffsetLost(f"{topic}/{partition}: the broker has lost the topic") from None
            found = await self._declare_again(topic)
        try:
            return await self._reader.fetch(
                found, partition, after, max_records=max_records, wait=wait
            )
        except TopicReplaced as gone:
            return await self._fetch_anew(topic, partition, after, max_records, gone)

    async def _fetch_anew(
        self,
        topic: str,
        partition: int,
        after: str | None,
        max_records: int,
        gone: TopicReplaced,
    ) -> list[Record]:
        """From the topic that has taken the place of the one that was known.

        Raises:
            OffsetLost: the token is of the one that is gone.
        """
        try:
            found = await self.cluster.look_up(topic)
        except TopicUnknown:
            raise OffsetLost(f"{topic}/{partition}: the broker has lost the topic") from gone
        return await self._reader.fetch(found, partition, after, max_records=max_records, wait=0)

    async def end(self, topic: str, partition: int) -> str | None:
        try:
            found = await self.cluster.topic(topic)
        except TopicUnknown:
            return None
        (offset,) = await self._reader.next(found, range(partition, partition + 1))
        return token_at(found.id, offset - 1) if offset else None

    async def commit(self, topic: str, partition: int, group: str, token: str) -> None:
        offset = await self.offset_after(topic, token)
        if offset is None:
            return
        found = await self._topic(topic)
        place = found.id, partition, group
        if place not in self._hints:
            stored = await self.groups.committed(group, found)
            self._hints[place] = stored[partition] or 0
        if offset > self._hints[place]:
            await self.groups.commit(group, topic, partition, offset)
            self._hints[place] = offset

    async def forget(self, topic: str, group: str) -> None:
        """Nothing to do: Kafka keeps records for their time, whoever reads them."""

    async def committed(self, topic: str, partition: int, group: str) -> str | None:
        """What the group has committed last; None before its first commit."""
        found = await self._topic(topic)
        offset = (await self.groups.committed(group, found))[partition]
        return token_at(found.id, offset - 1) if offset else None

    async def offset_after(self, topic: str, token: str) -> int | None:
        """The offset next to a token; None where the token is of a topic that is gone."""
        offset = offset_in(token, (await self._topic(topic)).id)
        return None if offset is None else offset + 1

    async def room(self, topic: str, group: str) -> float | None:
        """Records go by their age alone, whoever has committed them."""
        return None

    async def lag(self, topic: str, group: str) -> int:
        return sum(await self.lags(topic, group))

    async def lags(self, topic: str, group: str) -> list[int]:
        """Of each partition: records that the group has not committed."""
        found = await self._topic(topic)
        done = await self.groups.committed(group, found)
        first = await self._reader.first(found)
        ends = await self._reader.next(found)
        return [
            max(0, end - max(start, offset or 0))
            for start, offset, end in zip(first, done, ends, strict=True)
        ]

    def subscribe(
        self,
        topics: Sequence[str],
        group: str,
        handler: Handler,
        *,
        ordered: bool = False,
        max_attempts: int = 5,
        backoff: Backoff | None = None,
    ) -> Subscription:
        return GroupSubscription(
            self,
            Delivery(
                self,
                handler,
                telemetry=self._telemetry,
                topics=topics,
                group=group,
                ordered=ordered,
                max_attempts=max_attempts,
                backoff=backoff,
            ),
            instance=f"{self._instance}.{next(self._subscriptions)}",
            session=self._session,
            stalled_after=self._stalled_after,
        )

    def tail(self, topics: Sequence[str], handler: Handler) -> Subscription:
        return Tail(self, topics, handler)

    def _partition(self, topic: Topic, record: Outgoing) -> int:
        partitions = len(topic.leaders)
        if record.partition is None:
            return partition_for(record.key, partitions)
        if not 0 <= record.partition < partitions:
            raise ValueError(
                f"{topic.name} has {partitions} partitions, none is {record.partition}"
            )
        return record.partition

    async def _topic(self, name: str, age: float = math.inf) -> Topic:
        try:
            return await self.cluster.topic(name, age)
        except TopicUnknown:
            return await self._declare_again(name)

    async def _declare_again(self, name: str) -> Topic:
        """The brokers do not know the topic: make it anew, where this bus has declared it."""
        if name not in self._declared:
            raise TopicUnknown(name)
        _logger.error("the broker has lost the topic %s; it is made anew", name)
        partitions, read = self._declared[name]
        return await self._topics.declare(name, partitions, read=read)


def _traced(record: Outgoing) -> Outgoing:
    context: dict[str, str] = {}
    inject(context)
    return Outgoing(record.value, record.key, headers={**context, **record.headers})
