"""A member of a consumer group: holds leases of partitions and delivers their records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

from common.background import PartStatus
from common.events.bus import Backoff, BusUnavailable, TopicUnknown
from common.events.delivery import Delivery
from common.events.place import Place
from common.events.redis_streams import scripts
from common.events.redis_streams.keys import lease_key
from common.events.worker import Worker, cut

if TYPE_CHECKING:
    from common.events.redis_streams.bus import RedisStreamsBus

# Seconds that a handler gets to finish when the subscription stops.
_GRACE = 10.0
_RECONNECT = Backoff(first=0.1, limit=1.0)

_logger = logging.getLogger(__name__)


class GroupSubscription:
    """Reads the partitions that no other member of the group holds.

    A partition's lease is renewed three times in its life. A handler that still runs when it could
    not be renewed in time is cancelled, so that two members never work on one partition at once.
    """

    def __init__(self, bus: RedisStreamsBus, delivery: Delivery, *, lease: float) -> None:
        self.name = f"{delivery.group} of {', '.join(delivery.topics)}"
        self._bus = bus
        self._delivery = delivery
        self._lease = lease
        self._owner = uuid4().hex
        self._parts: list[tuple[str, int]] = []
        self._readers: dict[tuple[str, int], Worker] = {}
        self._held_until = 0.0
        self._stopping = False
        self._trouble = "not started"
        self._lag: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._run(), name=self.name),
            asyncio.create_task(self._measure(), name=f"{self.name} lag"),
        ]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*(reader.end(_GRACE) for reader in self._readers.values()))
        await cut(*self._tasks)
        try:
            if self._parts:
                await self._bus.broker.script(scripts.RELEASE, self._leases(), [self._owner])
        except BusUnavailable:
            _logger.info("%s: its leases run out by themselves", self.name)

    def status(self) -> PartStatus:
        ended = any(task.done() for task in self._tasks)
        held = sum(reader.running for reader in self._readers.values())
        stalled = self._delivery.stalled
        if stalled:
            detail = f"the handler of {stalled} does not return"
        else:
            detail = self._trouble or f"reads {held} of {len(self._parts)} partitions"
        return PartStatus(
            ready=not (self._trouble or ended or stalled),
            detail=detail,
            lag=self._lag,
            live=not (ended or stalled),
        )

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                if self._trouble:
                    await self._prepare()
                await self._hold()
            except Exception as error:
                if not isinstance(error, BusUnavailable | TopicUnknown):
                    _logger.exception("%s cannot hold its partitions", self.name)
                failures += 1
                self._trouble = f"{type(error).__name__}: {error}"
                pause = _RECONNECT.delay(failures)
            else:
                failures, self._trouble, pause = 0, "", self._lease / 3
            left = self._held_until - monotonic()
            if left <= 0:
                await self._cut(self._parts)
            await asyncio.sleep(min(pause, left) if left > 0 else pause)

    async def _measure(self) -> None:
        """Beside the leases, which do not wait until many dead letters are counted."""
        while True:
            await asyncio.sleep(self._lease / 3)
            if not self._parts:
                continue
            try:
                self._lag = await self._delivery.measure()
            except (BusUnavailable, TopicUnknown) as error:
                _logger.info("%s: its lag is not known: %s", self.name, error)
            except Exception:
                _logger.exception("%s: its lag is not known", self.name)

    async def _prepare(self) -> None:
        reads = await self._delivery.prepare()
        self._parts = [(topic, p) for topic, count in reads.items() for p in range(count)]

    async def _hold(self) -> None:
        """Renew the leases held and take those that are free."""
        asked = monotonic()
        answer = await self._bus.broker.script(
            scripts.LEASE, self._leases(), [self._owner, int(self._lease * 1000)]
        )
        held = {part for part, mine in zip(self._parts, answer, strict=True) if mine}
        await self._cut([part for part in self._readers if part not in held])
        self._held_until = asked + self._lease
        for part in held:
            self._read(part)

    def _read(self, part: tuple[str, int]) -> None:
        reader = self._readers.get(part)
        if self._stopping or (reader is not None and reader.running):
            return
        if reader is not None and reader.failure is not None:
            _logger.error("%s: %s/%d ended", self.name, *part, exc_info=reader.failure)
        worker = Worker(f"{self.name} {part[0]}/{part[1]}")
        self._readers[part] = worker
        group = self._delivery.group
        place = Place(
            self._bus,
            self._delivery,
            *part,
            stored=partial(self._bus.committed, *part, group),
            commit=partial(
                self._bus.commit_as, *part, group, lease=lease_key(*part, group), owner=self._owner
            ),
            held=self._still_held,
        )
        worker.start(place.run(worker))

    def _still_held(self) -> bool:
        return monotonic() < self._held_until

    async def _cut(self, parts: Sequence[tuple[str, int]]) -> None:
        lost = [self._readers.pop(part) for part in parts if part in self._readers]
        if any(reader.running for reader in lost):
            _logger.warning("%s: gives up %d partitions", self.name, len(lost))
        await asyncio.gather(*(reader.cut() for reader in lost))

    def _leases(self) -> list[str]:
        group = self._delivery.group
        return [lease_key(topic, partition, group) for topic, partition in self._parts]
