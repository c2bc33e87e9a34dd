"""Publishing: acknowledged by all replicas that are in step, idempotent, without delay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordTooLargeError
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.sender import Sender
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.structs import TopicPartition

from common.events.bus import BusUnavailable, Outgoing
from common.events.kafka.cluster import ANSWER_TIMEOUT, Cluster, connected
from common.events.worker import cut

_ALL_REPLICAS = -1
_UNCOMPRESSED = 0
# Bytes of records that travel as one while others are under way.
_BATCH = 1024 * 1024
_RETRY_MS = 50
_NO_TRANSACTION_TIMEOUT = 2**31 - 1
_REFUSED = (MessageSizeTooLargeError, RecordTooLargeError)

_logger = logging.getLogger(__name__)


class Producer:
    """aiokafka's sender with one producer id, of which the first failure is the last.

    The library keeps trying for ever, and a record that was given up leaves a gap in the sequence,
    after which the broker takes nothing more under this id.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.losses = cluster.losses
        self.failed = False
        self._pending = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._retired = asyncio.Event()
        self._client = connected(cluster.access, cluster.name, lambda: None)
        state = TransactionManager(None, _NO_TRANSACTION_TIMEOUT)
        self._records = MessageAccumulator(
            self._client.cluster,
            _BATCH,
            _UNCOMPRESSED,
            ANSWER_TIMEOUT,
            txn_manager=state,
            linger_ms=0,
        )
        self._sender = Sender(
            self._client,
            acks=_ALL_REPLICAS,
            txn_manager=state,
            message_accumulator=self._records,
            retry_backoff_ms=_RETRY_MS,
            request_timeout_ms=int(ANSWER_TIMEOUT * 1000),
        )

    async def start(self) -> None:
        """Connect and be given a producer id."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await self._client.bootstrap()
            await self._sender.start()

    async def send(
        self, topic: str, partitions: Mapping[int, Sequence[Outgoing]]
    ) -> dict[int, list[int]]:
        """The offsets of each partition's records, once the brokers have all of them.

        Raises:
            BusUnavailable: one of them was not confirmed; this producer is of no use any more.
        """
        self._pending += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._know(topic)
                sent = await asyncio.gather(
                    *(self._put(TopicPartition(topic, p), r) for p, r in partitions.items())
                )
                await self._confirmed([future for futures in sent for future in futures])
        except _REFUSED:
            self._fail()
            raise
        except (KafkaError, OSError, TimeoutError) as error:
            _logger.warning("Kafka has not confirmed records of %s: %r", topic, error)
            self._fail()
            raise BusUnavailable from error
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle.set()
        return {
            p: [future.result().offset for future in futures]
            for p, futures in zip(partitions, sent, strict=True)
        }

    def _fail(self) -> None:
        self.failed = True
        self._retired.set()

    async def _know(self, topic: str) -> None:
        await self._client.add_topic(topic)
        while self._client.cluster.partitions_for_topic(topic) is None:
            await asyncio.sleep(_RETRY_MS / 1000)
            await self._client.force_metadata_update()

    async def _put(
        self, place: TopicPartition, records: Sequence[Outgoing]
    ) -> list[asyncio.Future[Any]]:
        return [
            await self._records.add_message(
                place,
                record.key.encode() or None,
                record.value,
                ANSWER_TIMEOUT,
                headers=[(name, value.encode()) for name, value in record.headers.items()],
            )
            for record in records
        ]

    async def _confirmed(self, futures: Sequence[asyncio.Future[Any]]) -> None:
        """Returns when all are; a cancelled caller leaves them to others of the same batch."""
        ended = asyncio.ensure_future(self._retired.wait())
        left = set(futures)
        try:
            while left:
                done, _ = await asyncio.wait({ended, *left}, return_when=asyncio.FIRST_COMPLETED)
                left -= done
                for future in done - {ended}:
                    if future.result().offset < 0:
                        raise BusUnavailable("Kafka has the record but does not say where.")
                if ended in done and left:
                    raise TimeoutError("the producer was given up")
        finally:
            ended.cancel()

    async def close(self) -> None:
        """Close when nothing is under way; whatever hangs is cut."""
        if not self.failed:
            await self._idle.wait()
        if self._sender.sender_task is not None:
            await cut(self._sender.sender_task)
        await self._client.end()


class Publisher:
    """One producer at a time; a new one after a failure or a lost connection."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: Producer | None = None
        self._starting: asyncio.Task[Producer] | None = None
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()

    async def send(
        self, topic: str, partitions: Mapping[int, Sequence[Outgoing]]
    ) -> dict[int, list[int]]:
        """As ``Producer.send``."""
        producer = await self._usable()
        try:
            return await producer.send(topic, partitions)
        finally:
            if producer.failed:
                self._give_up(producer)

    async def close(self) -> None:
        self._closed = True
        if self._starting is not None:
            await asyncio.wait([self._starting])
        if self._producer is not None:
            self._give_up(self._producer)
        while self._closing:
            await asyncio.wait(self._closing)

    async def _usable(self) -> Producer:
        current = self._producer
        if current is not None and current.losses == self._cluster.losses:
            return current
        if current is not None:
            self._give_up(current)
        if self._closed:
            raise BusUnavailable("This bus is closed.")
        # All who wait share one attempt.
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Producer:
        producer = Producer(self._cluster)
        try:
            await producer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            _logger.info("no producer: %r", error)
            self._close(producer)
            raise BusUnavailable from error
        else:
            self._producer = producer
            return producer
        finally:
            self._starting = None

    def _give_up(self, producer: Producer) -> None:
        if producer is self._producer:
            self._producer = None
            self._close(producer)

    def _close(self, producer: Producer) -> None:
        closing = asyncio.create_task(producer.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
