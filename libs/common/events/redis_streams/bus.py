"""The bus port on streams."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from uuid import uuid4

from redis.exceptions import RedisError

from common.events.bus import (
    LEDGER_TOPIC,
    Backoff,
    BusFull,
    BusUnavailable,
    Handler,
    OffsetLost,
    Outgoing,
    Record,
    Subscription,
    TopicMismatch,
    TopicUnknown,
    partition_for,
)
from common.events.delivery import PATIENCE, Delivery
from common.events.redis_streams import scripts
from common.events.redis_streams.broker import BLOCK, Broker
from common.events.redis_streams.entries import Entries, encode_headers, records_of
from common.events.redis_streams.keys import (
    end_field,
    group_field,
    groups_key,
    number,
    stream_key,
    topic_key,
)
from common.events.redis_streams.subscription import GroupSubscription
from common.events.tail import Tail
from common.telemetry import SpanKind, Telemetry, inject

# Bytes that one fetch should not pass, and its records while nobody knows how large they are.
_BUDGET = 8 * 1024 * 1024
_FIRST_FETCH = 8
# How much an estimate of the largest record shrinks with each fetch that held only smaller ones.
_DECAY = 0.9
# Milliseconds that a record stays after every group has committed it, for those who tail.
_LINGER = 2_000

_logger = logging.getLogger(__name__)


class RedisStreamsBus:
    """Redis 7 or Valkey with an append-only file that is synced always, and noeviction.

    Tokens are stream ids, ``<milliseconds>-<number>``; the numbers of a partition have no gaps.
    """

    name = "redis-streams"

    def __init__(
        self,
        url: str,
        *,
        telemetry: Telemetry,
        max_records: int = 20_000,
        kept: int = 100_000,
        lease: float = 10.0,
        patience: float = PATIENCE,
    ) -> None:
        """Connects when first used.

        Args:
            url: the broker's, redis:// or unix://.
            telemetry: of the service whose bus this is.
            max_records: uncommitted records that a partition holds before it is full.
            kept: records that a partition of a topic without groups holds.
            lease: seconds until a partition of a reader that died is another's.
            patience: seconds after which a handler that has not returned is taken to hang.
        """
        self.broker = Broker(url, telemetry.service)
        self._telemetry = telemetry
        self._max_records = max_records
        self._kept = kept
        self._lease = lease
        self._patience = patience
        self._declared: dict[str, tuple[int, set[str]]] = {}
        self._counts: dict[str, int] = {}
        self._largest: dict[tuple[str, int], float] = {}
        self._capacity = telemetry.gauge(
            "mindweave_bus_capacity_records",
            "Uncommitted records that a topic with groups holds before it is full.",
            ["topic"],
        )

    async def start(self) -> None:
        """Nothing to prepare: connections are made and healed as they are used."""

    async def stop(self) -> None:
        await self.broker.close()

    async def ping(self) -> None:
        try:
            await self.broker.command("PING")
        except RedisError as error:
            raise BusUnavailable(str(error)) from error

    async def declare(self, topic: str, partitions: int, groups: Sequence[str] = ()) -> None:
        keys = [topic_key(topic), *(groups_key(topic, p) for p in range(partitions))]
        stored = await self.broker.script(scripts.DECLARE, keys, [partitions, uuid4().hex, *groups])
        if stored != partitions:
            raise TopicMismatch(
                f"{topic} has {stored} partitions, not {partitions}: their number is for good"
            )
        self._know(topic, partitions, groups)

    async def replace(self, topic: str, partitions: int, groups: Sequence[str] = ()) -> None:
        replaced = 0
        while not replaced:
            stored = await self.broker.command("HGET", topic_key(topic), "partitions")
            old = int(stored or 0)
            keys = [topic_key(topic)]
            for partition in range(old):
                keys += (stream_key(topic, partition), groups_key(topic, partition))
            keys += (groups_key(topic, partition) for partition in range(partitions))
            replaced = await self.broker.script(
                scripts.REPLACE, keys, [partitions, uuid4().hex, old, *groups]
            )
        self._declared.pop(topic, None)
        self._know(topic, partitions, groups)

    async def partitions(self, topic: str) -> int:
        stored = await self.broker.command("HGET", topic_key(topic), "partitions")
        if stored is None:
            raise TopicUnknown(topic)
        self._counts[topic] = int(stored)
        return int(stored)

    async def birth(self, topic: str, partition: int) -> str:
        stored = await self.broker.command("HGET", topic_key(topic), "birth")
        if stored is None:
            await self._declare_again(topic)
            stored = await self.broker.command("HGET", topic_key(topic), "birth")
        return f"{stored.decode()}-{partition}"

    async def publish(self, topic: str, records: Sequence[Outgoing]) -> list[str]:
        if not records:
            return []
        with self._telemetry.span(f"{topic} publish", kind=SpanKind.PRODUCER):
            count = self._counts.get(topic, 0)
            if count <= max(record.partition or 0 for record in records):
                count = await self.partitions(topic)
            keys, arguments = self._publishing(topic, records, count)
            try:
                answer = await self.broker.script(scripts.PUBLISH, keys, arguments)
            except BusFull:
                await self._make_room()
                answer = await self.broker.script(scripts.PUBLISH, keys, arguments)
            if answer[0] == b"unknown":
                await self._declare_again(topic)
                answer = await self.broker.script(scripts.PUBLISH, keys, arguments)
        if answer[0] == b"moved":
            self._counts.pop(topic, None)
            raise BusUnavailable(f"{topic} has another number of partitions now.")
        if answer[0] == b"full":
            raise BusFull(f"{topic}/{int(answer[1])} holds as many records as it may.")
        return [token.decode() for token in answer[1:]]

    async def fetch(
        self, topic: str, partition: int, after: str | None, *, max_records: int, wait: float
    ) -> list[Record]:
        stream = stream_key(topic, partition)
        position = [(stream, after or "0-0")]
        count = self._fitting(topic, partition, max_records)
        deadline = monotonic() + wait
        while True:
            left = deadline - monotonic()
            found = await self.broker.read(position, count, max(0.0, left))
            if found:
                return self._taken(topic, partition, after, found[0][1])
            await self._check_end(topic, partition, after)
            if left <= BLOCK:
                return []

    async def end(self, topic: str, partition: int) -> str | None:
        token = await self.broker.command("HGET", topic_key(topic), end_field(partition))
        return token.decode() if token is not None else None

    async def commit(self, topic: str, partition: int, group: str, token: str) -> None:
        keys = [stream_key(topic, partition), groups_key(topic, partition), topic_key(topic)]
        arguments = (group, token, _LINGER, end_field(partition))
        await self.broker.script(scripts.COMMIT, keys, arguments)

    async def forget(self, topic: str, group: str) -> None:
        for partition in range(await self.partitions(topic)):
            await self.broker.command("HDEL", groups_key(topic, partition), group)
        await self.broker.command("HDEL", topic_key(topic), group_field(group))

    async def commit_as(
        self, topic: str, partition: int, group: str, token: str, lease: str, owner: str
    ) -> bool:
        """Commit if ``owner`` holds the lease; else change nothing and return False."""
        keys = [stream_key(topic, partition), groups_key(topic, partition), topic_key(topic), lease]
        arguments = (group, token, _LINGER, end_field(partition), owner)
        return bool(await self.broker.script(scripts.COMMIT, keys, arguments))

    async def committed(self, topic: str, partition: int, group: str) -> str | None:
        """What the group has committed last; None before its first commit."""
        token = await self.broker.command("HGET", groups_key(topic, partition), group)
        return token.decode() if token is not None and number(token.decode()) else None

    async def room(self, topic: str, group: str) -> float | None:
        parts = range(await self.partitions(topic))
        declared, ends, *groups = await self.broker.pipeline(
            [
                ("HGET", topic_key(topic), group_field(group)),
                ("HMGET", topic_key(topic), *(end_field(p) for p in parts)),
                *(("HEXISTS", groups_key(topic, p), group) for p in parts),
                *(("HVALS", groups_key(topic, p)) for p in parts),
                *(("XLEN", stream_key(topic, p)) for p in parts),
            ]
        )
        held, rest = groups[: len(parts)], groups[len(parts) :]
        # A hold that an earlier release began has no field.
        if declared is None and not any(held):
            return None
        if not all(held):
            return 0.0
        most = 0
        for end, tokens, kept in zip(ends, rest[: len(parts)], rest[len(parts) :], strict=True):
            if end is not None:
                least = min(number(token.decode()) for token in tokens)
                most = max(most, min(number(end.decode()) - least, kept))
        return max(0.0, 1 - most / self._max_records)

    async def lag(self, topic: str, group: str) -> int:
        parts = range(await self.partitions(topic))
        answers = await self.broker.pipeline(
            [("HMGET", topic_key(topic), *(end_field(p) for p in parts))]
            + [("HGET", groups_key(topic, p), group) for p in parts]
            + [("XLEN", stream_key(topic, p)) for p in parts]
        )
        ends, rest = answers[0], answers[1:]
        total = 0
        for end, done, kept in zip(ends, rest[: len(parts)], rest[len(parts) :], strict=True):
            if end is not None:
                behind = number(end.decode()) - (number(done.decode()) if done else 0)
                total += max(0, min(behind, kept))
        return total

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
        delivery = Delivery(
            self,
            handler,
            telemetry=self._telemetry,
            topics=topics,
            group=group,
            ordered=ordered,
            max_attempts=max_attempts,
            backoff=backoff,
            patience=self._patience,
        )
        return GroupSubscription(self, delivery, lease=self._lease)

    def tail(self, topics: Sequence[str], handler: Handler) -> Subscription:
        return Tail(self, topics, handler)

    def _publishing(
        self, topic: str, records: Sequence[Outgoing], partitions: int
    ) -> tuple[list[str], list[str | bytes | int]]:
        context: dict[str, str] = {}
        inject(context)
        alike = encode_headers(context)
        targets: dict[int, int] = {}
        counts: list[int] = []
        flat: list[str | bytes | int] = []
        for record in records:
            partition = record.partition
            if partition is None:
                partition = partition_for(record.key, partitions)
            elif not 0 <= partition < partitions:
                raise ValueError(f"{topic} has {partitions} partitions, none is {partition}")
            if partition not in targets:
                targets[partition] = len(targets)
                counts.append(0)
            target = targets[partition]
            counts[target] += 1
            headers = encode_headers({**context, **record.headers}) if record.headers else alike
            flat += (target + 1, record.key, record.value, headers)
        keys = [topic_key(topic)]
        for partition in targets:
            keys += (stream_key(topic, partition), groups_key(topic, partition))
        return keys, [self._max_records, self._kept, partitions, *targets, *counts, *flat]

    def _fitting(self, topic: str, partition: int, most: int) -> int:
        largest = self._largest.get((topic, partition))
        if largest is None:
            return min(most, _FIRST_FETCH)
        return max(1, min(most, int(_BUDGET / largest)))

    def _taken(
        self, topic: str, partition: int, after: str | None, entries: Entries
    ) -> list[Record]:
        records = records_of(topic, partition, entries)
        largest = max(len(r.value) for r in records) + 1.0
        before = self._largest.get((topic, partition), 0.0)
        self._largest[topic, partition] = max(largest, before * _DECAY)
        first, last = number(records[0].token), number(records[-1].token)
        if after is not None and first != number(after) + 1:
            raise OffsetLost(f"{topic}/{partition}: the record next to {after} is not there")
        if last - first != len(records) - 1:
            raise OffsetLost(f"{topic}/{partition}: records between {first} and {last} are gone")
        return records

    async def _check_end(self, topic: str, partition: int, after: str | None) -> None:
        """Nothing was found after ``after``: see that nothing should have been."""
        if after is None or await self.end(topic, partition) == after:
            return
        if not await self.broker.read([(stream_key(topic, partition), after)], 1, 0):
            raise OffsetLost(f"{topic}/{partition}: the broker's last record is not {after}")

    def _know(self, topic: str, partitions: int, groups: Sequence[str]) -> None:
        self._counts[topic] = partitions
        _, known = self._declared.get(topic, (partitions, set()))
        self._declared[topic] = partitions, known.union(groups)
        if self._declared[topic][1]:
            self._capacity.of(topic=topic).set(partitions * self._max_records)

    async def _make_room(self) -> None:
        """The server has no memory left: drop what lingers behind the commits of all groups."""
        # What is kept there for backups goes first, whoever needs the room.
        with suppress(TopicUnknown):
            await self.partitions(LEDGER_TOPIC)
        keys: list[str] = []
        for topic, count in self._counts.items():
            for partition in range(count):
                keys += (stream_key(topic, partition), groups_key(topic, partition))
        await self.broker.script(scripts.TRIM, keys, [])

    async def _declare_again(self, topic: str) -> None:
        """The broker does not know the topic: make it anew, where this bus has declared it."""
        self._counts.pop(topic, None)
        if topic not in self._declared:
            raise TopicUnknown(topic)
        _logger.error("the broker has lost the topic %s; it is made anew", topic)
        partitions, groups = self._declared[topic]
        await self.declare(topic, partitions, sorted(groups))
