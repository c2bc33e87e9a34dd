"""Reading a partition from an offset of one's own."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from time import monotonic

from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord, TopicPartition

from common.events.bus import OffsetLost, Record
from common.events.kafka.cluster import Cluster, Topic, Unready
from common.events.kafka.protocol import FetchRequest
from common.events.kafka.tokens import NO_EPOCH, epoch_in, offset_in, proof_by, token_at

_LATEST, _EARLIEST = -1, -2
_OUT_OF_RANGE = 1
# Error codes: unknown topic (or not known yet), unknown topic id, another topic id.
_REPLACED = (3, 100, 103)
# The tag of an answer that says where the log parts from what was read before.
_DIVERGING = 0
# A batch begins with its first offset, the length of the rest and its leader's epoch; the number of
# its last record follows the magic byte, a checksum and the attributes.
_BATCH = struct.Struct(">qii7xi")
_BEFORE_LENGTH = 12
# Bytes of one answer; the broker sends at least one batch of records, however large.
_BUDGET = 4 * 1024 * 1024
# Seconds that the broker holds a question back while there is nothing new.
_HOLD = 2.0
# Records that were read with others and not asked for yet, of so many partitions.
_BUFFERS = 64


class TopicReplaced(Unready):
    """The brokers know no topic with this id any more."""


class Reader:
    """Asks for records by offset; the broker knows nothing of who reads.

    A batch of records comes as a whole. What was not asked for stays here until the next question
    goes on at just that place.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._buffers: OrderedDict[tuple[str, int, int], list[Record]] = OrderedDict()

    async def fetch(
        self, topic: Topic, partition: int, after: str | None, *, max_records: int, wait: float
    ) -> list[Record]:
        """As ``Bus.fetch``."""
        offset = await self._next(topic, partition, after)
        epoch = NO_EPOCH if after is None else epoch_in(after)
        found = self._buffers.pop((topic.id.hex, partition, offset), [])
        deadline = monotonic() + wait
        while not found:
            left = max(0.0, deadline - monotonic())
            found, offset, epoch = await self._ask(
                topic, partition, offset, epoch, min(left, _HOLD)
            )
            if left <= _HOLD:
                break
        taken, rest = found[:max_records], found[max_records:]
        if rest:
            place = offset_in(rest[0].token, topic.id) or 0
            self._buffers[topic.id.hex, partition, place] = rest
            if len(self._buffers) > _BUFFERS:
                self._buffers.popitem(last=False)
        return taken

    async def first(self, topic: Topic) -> list[int]:
        """Of each partition: the offset of the first record kept, or of the one to come."""
        return await self._offsets(topic, range(len(topic.leaders)), _EARLIEST)

    async def next(self, topic: Topic, partitions: range | None = None) -> list[int]:
        """Of each partition: the offset of the record to come."""
        return await self._offsets(topic, partitions or range(len(topic.leaders)), _LATEST)

    async def _next(self, topic: Topic, partition: int, after: str | None) -> int:
        if after is None:
            return (await self._offsets(topic, range(partition, partition + 1), _EARLIEST))[0]
        offset = offset_in(after, topic.id)
        if offset is None:
            raise OffsetLost(f"{topic.name}/{partition}: {after} is of another topic's records")
        return offset + 1

    async def _ask(
        self, topic: Topic, partition: int, offset: int, epoch: int, hold: float
    ) -> tuple[list[Record], int, int]:
        """Records from an offset; the offset, and the epoch before it, to go on with."""
        request = FetchRequest(
            topic.id,
            partition,
            offset,
            last_epoch=epoch,
            max_wait_ms=int(hold * 1000),
            max_bytes=_BUDGET,
            isolation_level=READ_COMMITTED,
        )
        node = topic.leaders[partition]
        if hold:
            answer = await self._cluster.ask_waiting(node, request, hold)
        else:
            answer = await self._cluster.ask(node, request)
        place = f"{topic.name}/{partition}"
        self._cluster.check(place, answer.error_code, topic.name)
        ((_, ((_, code, _, _, _, aborted, _, raw, tags),), _),) = answer.topics
        if code in _REPLACED:
            self._cluster.forget(topic.name)
            raise TopicReplaced(f"{place} is not the one that it was.")
        if code == _OUT_OF_RANGE:
            raise OffsetLost(f"{place}: the broker has no record {offset}")
        self._cluster.check(place, code, topic.name)
        if _DIVERGING in tags:
            raise OffsetLost(f"{place}: the broker has lost records before {offset}")
        unpacked = PartitionRecords(
            TopicPartition(topic.name, partition),
            MemoryRecords(raw or b""),
            [(producer, first) for producer, first, _ in aborted or ()],
            offset,
            None,
            None,
            True,
            READ_COMMITTED,
        )
        epochs = _epochs(raw or b"")
        records = [_record(topic, found, epochs) for found in unpacked]
        return records, unpacked.next_fetch_offset, epochs[-1][1] if epochs else epoch

    async def _offsets(self, topic: Topic, partitions: range, which: int) -> list[int]:
        by_node: dict[int, list[tuple[int, int]]] = {}
        for partition in partitions:
            by_node.setdefault(topic.leaders[partition], []).append((partition, which))
        found: dict[int, int] = {}
        for node, asked in by_node.items():
            request = OffsetRequest(-1, READ_COMMITTED, [(topic.name, asked)])
            answer = await self._cluster.ask(node, request)
            for number, code, _, offset in answer.topics[0][1]:
                self._cluster.check(f"{topic.name}/{number}", code, topic.name)
                found[number] = offset
        return [found[partition] for partition in partitions]


def _epochs(raw: bytes) -> list[tuple[int, int]]:
    """Of each whole batch in turn: the offset behind it, and the epoch of who wrote it."""
    found, start = [], 0
    while start + _BATCH.size <= len(raw):
        first, length, epoch, last = _BATCH.unpack_from(raw, start)
        start += _BEFORE_LENGTH + length
        if start <= len(raw):
            found.append((first + last + 1, epoch))
    return found


def _record(topic: Topic, found: ConsumerRecord, epochs: Sequence[tuple[int, int]]) -> Record:
    batch = bisect_right(epochs, found.offset, key=lambda known: known[0])
    return Record(
        topic.name,
        found.partition,
        token_at(topic.id, found.offset),
        (found.key or b"").decode(),
        found.value or b"",
        {name: value.decode() for name, value in found.headers},
        proof=proof_by(epochs[batch][1]),
    )
