"""New records of some topics, shown to this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from common.background import PartStatus
from common.events.bus import (
    Backoff,
    Bus,
    BusUnavailable,
    Handler,
    OffsetLost,
    Record,
    TopicUnknown,
)
from common.events.worker import cut

_BATCH = 64
# Seconds that one fetch waits for records.
_WAIT = 5.0
_RECONNECT = Backoff(first=0.1, limit=1.0)

_logger = logging.getLogger(__name__)


class Tail:
    """Reads every partition; a handler's error is logged, and the tail goes on."""

    def __init__(self, bus: Bus, topics: Sequence[str], handler: Handler) -> None:
        self.name = f"tail of {', '.join(topics)}"
        self._bus = bus
        self._topics = tuple(topics)
        self._handler = handler
        self._positions: dict[tuple[str, int], str | None] = {}
        self._troubles: dict[tuple[str, int], str] = {}
        self._trouble = "not started"
        # A handler is shown one record at a time.
        self._one = asyncio.Lock()
        self._unborn: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns with the tail in its place where the broker answers, else without."""
        try:
            await self._attach()
        except (BusUnavailable, TopicUnknown) as error:
            self._trouble = f"{type(error).__name__}: {error}"
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        if self._task is not None:
            await cut(self._task)

    def status(self) -> PartStatus:
        ended = self._task is not None and self._task.done()
        trouble = self._trouble or next(iter(self._troubles.values()), "")
        return PartStatus(
            ready=not (trouble or ended),
            detail=trouble or f"listens to {len(self._positions)} partitions",
            live=not ended,
        )

    async def _run(self) -> None:
        failures = 0
        while not self._positions:
            failures += 1
            await asyncio.sleep(_RECONNECT.delay(failures))
            try:
                await self._attach()
            except Exception as error:
                if not isinstance(error, BusUnavailable | TopicUnknown):
                    _logger.exception("%s cannot listen", self.name)
                self._trouble = f"{type(error).__name__}: {error}"
        async with asyncio.TaskGroup() as listeners:
            for part in self._positions:
                listeners.create_task(self._listen(part))

    async def _attach(self) -> None:
        """Stand behind the last record of every partition."""
        positions: dict[tuple[str, int], str | None] = {}
        for topic in self._topics:
            try:
                count = await self._bus.partitions(topic)
            except TopicUnknown:
                self._unborn.add(topic)
                raise
            for partition in range(count):
                unborn = topic in self._unborn
                end = None if unborn else await self._bus.end(topic, partition)
                positions[topic, partition] = end
        self._positions = positions
        self._trouble = ""

    async def _listen(self, part: tuple[str, int]) -> None:
        failures = 0
        while True:
            try:
                records = await self._bus.fetch(
                    *part, self._positions[part], max_records=_BATCH, wait=_WAIT
                )
            except OffsetLost:
                _logger.exception("%s goes on with the first record that is left", self.name)
                self._positions[part] = None
            except Exception as error:
                if not isinstance(error, BusUnavailable | TopicUnknown):
                    _logger.exception("%s cannot listen", self.name)
                failures += 1
                self._troubles[part] = f"{type(error).__name__}: {error}"
                await asyncio.sleep(_RECONNECT.delay(failures))
            else:
                failures = 0
                self._troubles.pop(part, None)
                for record in records:
                    await self._show(part, record)

    async def _show(self, part: tuple[str, int], record: Record) -> None:
        self._positions[part] = record.token
        async with self._one:
            try:
                await self._handler(record)
            except Exception:
                _logger.exception("%s: %s/%d %s", self.name, *part, record.token)
