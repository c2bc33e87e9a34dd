"""One topic of a subscription: a membership, and the partitions that come with it."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from common.events.bus import Backoff, BusUnavailable, TopicUnknown
from common.events.delivery import Delivery
from common.events.kafka.groups import Lost
from common.events.kafka.membership import Membership, Standing
from common.events.place import Place
from common.events.worker import Worker, cut

if TYPE_CHECKING:
    from common.events.kafka.bus import KafkaBus

# Seconds that a handler gets to finish when its partition is asked back.
GRACE = 10.0
_RECONNECT = Backoff(first=0.1, limit=1.0)

_logger = logging.getLogger(__name__)


class Seat:
    """Joins, reads what it is given, and gives it back when the group begins anew.

    All is given back at each new beginning (the eager way): with members that keep their name
    those are rare, and so nobody ever has to wait for a partition that two plans disagree about.
    A handler that still runs when the membership could not be kept up is cancelled.
    """

    def __init__(
        self,
        bus: KafkaBus,
        delivery: Delivery,
        member: Membership,
        topic: str,
        partitions: int,
        session: float,
    ) -> None:
        self.partitions = partitions
        self.trouble = "not joined"
        self._bus = bus
        self._delivery = delivery
        self._member = member
        self._topic = topic
        self._session = session
        self._given: list[int] = []
        self._places: dict[int, tuple[Place, Worker]] = {}
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._name = f"{delivery.group} of {topic}"

    @property
    def ended(self) -> bool:
        return self._task is not None and self._task.done()

    @property
    def reading(self) -> int:
        """How many partitions are read here."""
        return sum(worker.running for _, worker in self._places.values())

    @property
    def busy(self) -> bool:
        """Whether a handler is at work."""
        return any(place.delivering for place, _ in self._places.values())

    def places(self) -> dict[int, str | None]:
        """Of each partition: the last record that is done with."""
        return {partition: place.done for partition, (place, _) in self._places.items()}

    async def behind(self) -> bool:
        """Whether records wait in the partitions that are read here."""
        lags = await self._bus.lags(self._topic, self._delivery.group)
        return any(lags[partition] for partition in self._places)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Let handlers finish, then leave."""
        self._stopping = True
        await self._end_all()
        if self._task is not None:
            await cut(self._task)
        try:
            await self._member.leave()
        except (BusUnavailable, Lost) as error:
            _logger.info("%s: its session runs out by itself: %s", self._name, error)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                self._given = await self._member.join(self.partitions)
                failures, self.trouble = 0, ""
                await self._stay()
                await self._give_back()
            except Exception as error:
                await self._cut_all()
                if not isinstance(error, BusUnavailable | TopicUnknown | Lost):
                    _logger.exception("%s is no member", self._name)
                failures += 1
                if not isinstance(error, Lost):
                    self.trouble = f"{type(error).__name__}: {error}"
                await asyncio.sleep(_RECONNECT.delay(failures))

    async def _stay(self) -> None:
        """Read until the group begins anew."""
        failures = 0
        while True:
            self._read()
            if failures:
                await self._rest(_RECONNECT.delay(failures))
            else:
                await self._rest(self._session / 3)
            try:
                standing = await self._beat()
            except BusUnavailable as error:
                failures += 1
                self.trouble = f"{type(error).__name__}: {error}"
            else:
                failures, self.trouble = 0, ""
                if standing is Standing.REBALANCE:
                    return

    async def _rest(self, seconds: float) -> None:
        left = self._member.until - monotonic()
        await asyncio.sleep(min(seconds, left) if left > 0 else seconds)
        if not self._member.held:
            await self._cut_all()

    async def _beat(self) -> Standing:
        """Give a sign of life; a partition that may be another's before it is heard is let go."""
        beating = asyncio.create_task(self._member.beat())
        try:
            await asyncio.wait({beating}, timeout=max(0.0, self._member.until - monotonic()))
            if not beating.done():
                await self._cut_all()
            return await beating
        finally:
            await cut(beating)

    async def _give_back(self) -> None:
        ending = asyncio.create_task(self._end_all())
        try:
            while not ending.done():
                await asyncio.wait({ending}, timeout=self._session / 3)
                if not ending.done():
                    await self._beat()
        finally:
            await cut(ending)
        self._places.clear()

    def _read(self) -> None:
        if self._stopping or not self._member.held:
            return
        for partition in self._given:
            _, before = self._places.get(partition, (None, None))
            if before is not None and before.running:
                continue
            if before is not None and before.failure is not None:
                _logger.error("%s/%d ended", self._name, partition, exc_info=before.failure)
            self._places[partition] = self._open(partition)

    def _open(self, partition: int) -> tuple[Place, Worker]:
        place = Place(
            self._bus,
            self._delivery,
            self._topic,
            partition,
            stored=partial(self._bus.committed, self._topic, partition, self._delivery.group),
            commit=partial(self._commit, partition),
            held=lambda: self._member.held,
        )
        worker = Worker(f"{self._name}/{partition}")
        worker.start(place.run(worker))
        return place, worker

    async def _commit(self, partition: int, token: str) -> bool:
        offset = await self._bus.offset_after(self._topic, token)
        if offset is None:
            return True
        try:
            await self._member.commit(partition, offset)
        except Lost as lost:
            _logger.warning("%s/%d is given up: %s", self._topic, partition, lost)
            return False
        return True

    async def _end_all(self) -> None:
        await asyncio.gather(*(worker.end(GRACE) for _, worker in self._places.values()))

    async def _cut_all(self) -> None:
        if any(worker.running for _, worker in self._places.values()):
            _logger.warning("%s: gives up %s", self._name, sorted(self._places))
        await asyncio.gather(*(worker.cut() for _, worker in self._places.values()))
        self._places.clear()
