"""A group's place in one partition, whatever the broker is."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from common.events.bus import Backoff, Bus, BusUnavailable, OffsetLost, Record
from common.events.delivery import Delivery
from common.events.worker import Worker

# Records in memory for each partition.
_BATCH = 16
# Seconds that one fetch waits for records.
_WAIT = 5.0
# Seconds between commits while records of one fetch are left.
_COMMIT_EVERY = 0.05
_RECONNECT = Backoff(first=0.1, limit=1.0)

_logger = logging.getLogger(__name__)


class Place:
    """Delivers a partition's records from where the group stands, while the group has it."""

    def __init__(
        self,
        bus: Bus,
        delivery: Delivery,
        topic: str,
        partition: int,
        *,
        stored: Callable[[], Awaitable[str | None]],
        commit: Callable[[str], Awaitable[bool]],
        held: Callable[[], bool],
    ) -> None:
        """Begins with ``run``.

        Args:
            bus: where the records are fetched from.
            delivery: brings them to the handler.
            topic: what is read.
            partition: of the topic.
            stored: the last token that the group has committed.
            commit: commits a token; false where the partition is another's.
            held: whether nobody else can have the partition now.
        """
        # The last record that the handler is done with.
        self.done: str | None = None
        self.delivering = False
        self._bus = bus
        self._delivery = delivery
        self._topic = topic
        self._partition = partition
        self._stored = stored
        self._store = commit
        self._held = held
        self._committed: str | None = None
        self._committed_at = 0.0

    async def run(self, worker: Worker) -> None:
        """Returns when the partition turns out to be another's."""
        failures = 0
        known = False
        while self._held():
            try:
                if not known:
                    self.done = self._committed = await self._stored()
                    known = True
                with worker.step():
                    ours = await self._commit()
                if not ours:
                    return
                records = await self._bus.fetch(
                    self._topic, self._partition, self.done, max_records=_BATCH, wait=_WAIT
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
                self.done = None

    async def _process(self, record: Record, worker: Worker) -> bool:
        if not self._held():
            return False
        with worker.step():
            self.delivering = True
            try:
                await self._delivery.deliver(record, worker.pause)
            finally:
                self.delivering = False
            self.done = record.token
            if monotonic() - self._committed_at < _COMMIT_EVERY and not worker.ending:
                return True
            return await self._commit()

    async def _commit(self) -> bool:
        """Commit what is done; False where the partition is another's."""
        if self.done is None or self.done == self._committed:
            return True
        mine = await self._store(self.done)
        if mine:
            self._committed, self._committed_at = self.done, monotonic()
        return mine
