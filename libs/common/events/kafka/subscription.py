"""A member of a consumer group: one of Kafka's groups for each topic that it reads."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from common.background import PartStatus
from common.events.bus import Backoff, BusUnavailable, TopicUnknown
from common.events.delivery import Delivery
from common.events.kafka.membership import Membership
from common.events.kafka.seat import GRACE, Seat
from common.events.worker import cut

if TYPE_CHECKING:
    from common.events.kafka.bus import KafkaBus

# Seconds for members to give their partitions back, beside what their handlers get.
_REBALANCE = GRACE + 5.0
# Before a subscription that stands still is told not to be live, after that part of its time, all
# connections are made anew.
_HEALS_EARLIER = 3
_RECONNECT = Backoff(first=0.1, limit=1.0)

_logger = logging.getLogger(__name__)


class GroupSubscription:
    """Reads the partitions that its memberships are given."""

    def __init__(
        self,
        bus: KafkaBus,
        delivery: Delivery,
        *,
        instance: str,
        session: float,
        stalled_after: float,
    ) -> None:
        """Reads nothing before ``start``.

        Args:
            bus: whose records are read.
            delivery: brings them to the handler.
            instance: names this member among those of the group.
            session: seconds after which a silent member's partitions are another's.
            stalled_after: seconds of standing still after which this is not live any more.
        """
        self.name = f"{delivery.group} of {', '.join(delivery.topics)}"
        self._bus = bus
        self._delivery = delivery
        self._instance = instance
        self._session = session
        self._stalled_after = stalled_after
        self._seats: list[Seat] = []
        self._trouble = "not started"
        self._lag: int | None = None
        self._seen: object = None
        self._stands_since: float | None = None
        self._healed = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        if self._task is not None:
            await cut(self._task)
        await asyncio.gather(*(seat.stop() for seat in self._seats))

    def status(self) -> PartStatus:
        ended = self._task is not None and (
            self._task.done() or any(seat.ended for seat in self._seats)
        )
        trouble = self._trouble or next((s.trouble for s in self._seats if s.trouble), "")
        stalled = self._delivery.stalled
        if stalled:
            detail = f"the handler of {stalled} does not return"
        elif self._still_for() > self._stalled_after and not trouble:
            detail = stalled = f"{self._lag} records wait and none is read"
        else:
            held = sum(seat.reading for seat in self._seats)
            parts = sum(seat.partitions for seat in self._seats)
            detail = trouble or f"reads {held} of {parts} partitions"
        return PartStatus(
            ready=not (trouble or ended or stalled),
            detail=detail,
            lag=self._lag,
            live=not (ended or stalled),
        )

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                if not self._seats:
                    await self._take_seats()
                self._lag = await self._delivery.measure()
                await self._watch()
            except Exception as error:
                if not isinstance(error, BusUnavailable | TopicUnknown):
                    _logger.exception("%s cannot read", self.name)
                failures, self._stands_since = failures + 1, None
                self._trouble = f"{type(error).__name__}: {error}"
                await asyncio.sleep(_RECONNECT.delay(failures))
            else:
                failures, self._trouble = 0, ""
                await asyncio.sleep(self._session / 3)

    async def _take_seats(self) -> None:
        for topic, partitions in (await self._delivery.prepare()).items():
            member = Membership(
                self._bus.cluster,
                self._bus.groups,
                group=self._delivery.group,
                topic=topic,
                instance=self._instance,
                session=self._session,
                rebalance=_REBALANCE,
            )
            seat = Seat(self._bus, self._delivery, member, topic, partitions, self._session)
            self._seats.append(seat)
            seat.start()

    async def _watch(self) -> None:
        """Heal what stands still without saying why."""
        seen = [seat.places() for seat in self._seats]
        busy = any(seat.busy for seat in self._seats)
        if not self._lag or busy or seen != self._seen or not await self._behind():
            self._seen, self._stands_since, self._healed = seen, None, False
        elif self._stands_since is None:
            self._stands_since = monotonic()
        elif self._still_for() > self._stalled_after / _HEALS_EARLIER and not self._healed:
            _logger.error("%s stands still: its connections are made anew", self.name)
            self._healed = True
            self._bus.cluster.reset()

    async def _behind(self) -> bool:
        return any([await seat.behind() for seat in self._seats])

    def _still_for(self) -> float:
        return 0.0 if self._stands_since is None else monotonic() - self._stands_since
