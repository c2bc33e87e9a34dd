"""New records of some topics, shown to this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.background import PartStatus
from common.events.bus import Backoff, BusUnavailable, Handler, TopicUnknown
from common.events.redis_streams.broker import BLOCK
from common.events.redis_streams.entries import records_of
from common.events.redis_streams.keys import stream_key
from common.events.worker import cut

if TYPE_CHECKING:
    from common.events.redis_streams.bus import RedisStreamsBus

_BATCH = 64
_RECONNECT = Backoff(first=0.1, limit=1.0)

_logger = logging.getLogger(__name__)


class Tail:
    """One blocking read over all streams; a handler's error is logged, and the tail goes on."""

    def __init__(self, bus: RedisStreamsBus, topics: Sequence[str], handler: Handler) -> None:
        self.name = f"tail of {', '.join(topics)}"
        self._bus = bus
        self._topics = tuple(topics)
        self._handler = handler
        self._streams: dict[str, tuple[str, int]] = {}
        self._positions: dict[str, str] = {}
        self._unborn: set[str] = set()
        self._trouble = "not started"
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
        return PartStatus(
            ready=not (self._trouble or ended),
            detail=self._trouble or f"listens to {len(self._positions)} partitions",
            live=not ended,
        )

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                if not self._positions:
                    await self._attach()
                await self._listen()
            except Exception as error:
                if not isinstance(error, BusUnavailable | TopicUnknown):
                    _logger.exception("%s cannot listen", self.name)
                failures += 1
                self._trouble = f"{type(error).__name__}: {error}"
                await asyncio.sleep(_RECONNECT.delay(failures))
            else:
                failures, self._trouble = 0, ""

    async def _attach(self) -> None:
        """Stand behind the last record of every partition."""
        positions: dict[str, str] = {}
        for topic in self._topics:
            try:
                count = await self._bus.partitions(topic)
            except TopicUnknown:
                self._unborn.add(topic)
                raise
            for partition in range(count):
                stream = stream_key(topic, partition)
                end = None if topic in self._unborn else await self._bus.end(topic, partition)
                positions[stream] = end or "0-0"
                self._streams[stream] = (topic, partition)
        self._positions = positions
        self._trouble = ""

    async def _listen(self) -> None:
        found = await self._bus.broker.read(list(self._positions.items()), _BATCH, BLOCK)
        for stream, entries in found:
            topic, partition = self._streams[stream.decode()]
            for record in records_of(topic, partition, entries):
                self._positions[stream.decode()] = record.token
                try:
                    await self._handler(record)
                except Exception:
                    _logger.exception("%s: %s/%d %s", self.name, topic, partition, record.token)
