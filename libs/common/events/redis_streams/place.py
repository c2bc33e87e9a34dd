"""A group's place in one partition."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from common.events.bus import Backoff, BusUnavailable, OffsetLost, Record
from common.events.delivery import Delivery
from common.events.redis_streams.broker import BLOCK
from common.events.redis_streams.keys import lease_key
from common.events.worker import Worker

if TYPE_CHECKING:
    from common.events.redis_streams.bus import RedisStreamsBus

# Records in memory for each partition.
_BATCH = 16
# Seconds between commits while records of one fetch are left.
_COMMIT_EVERY = 0.05
_RECONNECT = Backoff(first=0.1, limit=1.0)

_logger = logging.getLogger(__name__)


class Place:
    """Delivers a partition's records from where the group stands, while the lease is held."""

    def __init__(
        self,
        bus: RedisStreamsBus,
        delivery: Delivery,
        topic: str,
        partition: int,
        *,
        owner: str,
        held: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._delivery = delivery
        self._topic = topic
        self._partition = partition
        self._owner = owner
        self._held = held
        self._lease = lease_key(topic, partition, delivery.group)
        self._done: str | None = None
        self._committed: str | None = None
        self._committed_at = 0.0

    async def run(self, worker: Worker) -> None:
        """Returns when the lease turns out to be another's."""
        failures = 0
        known = False
        while self._held():
            try:
                if not known:
                    self._done = self._committed = await self._stored()
                    known = True
                if not await self._commit():
                    return
                records = await self._bus.fetch(
                    self._topic, self._partition, self._done, max_records=_BATCH, wait=BLOCK
                )
                failures = 0
                for record in records:
                    if not await self._process(record, worker):
                        return
            except BusUnavailable:
                failures += 1
                await worker.pause(_RECONNECT.delay(failures))
            except OffsetLost:
                _logger.exception("goes on with the first record that is left")
                self._done = None

    async def _process(self, record: Record, worker: Worker) -> bool:
        if not self._held():
            return False
        with worker.step():
            await self._delivery.deliver(record, worker.pause)
            self._done = record.token
            if monotonic() - self._committed_at < _COMMIT_EVERY and not worker.ending:
                return True
            return await self._commit()

    async def _stored(self) -> str | None:
        return await self._bus.committed(self._topic, self._partition, self._delivery.group)

    async def _commit(self) -> bool:
        """Commit what is done; False where another holds the lease."""
        if self._done is None or self._done == self._committed:
            return True
        mine = await self._bus.commit_as(
            self._topic,
            self._partition,
            self._delivery.group,
            self._done,
            lease=self._lease,
            owner=self._owner,
        )
        if mine:
            self._committed, self._committed_at = self._done, monotonic()
        return mine
