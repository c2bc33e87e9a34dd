"""Changing the number of partitions of ``usage.events``, in steps that can be begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import msgspec

from common.clock import Clock
from common.database import Connection
from common.errors import Conflict, Unavailable
from common.events.bus import Bus, OffsetLost, Outgoing, TopicMismatch, token_of
from common.events.envelope import PACKED_HEADERS, Envelope, pack
from common.events.ledger import Members
from common.ids import uuid7
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.layout import Layout, State
from services.usage_tracker.domain.records import EVENTS_TOPIC, WINDOWS_TOPIC, windows_data
from services.usage_tracker.store import LayoutStore

_LOOK_EVERY = 0.2
_TELL_EVERY = 25
# A process that starts in the very moment may make the topic as it knew it.
_TRIES = 10
# For which group the broker keeps records until they are applied.
GROUP = "usage_tracker"

Tell = Callable[[str], None]


class Repartition:
    """Drains, moves every row to its new part, and lets events in again.

    Where it is ended in the middle, by whatever, another run goes on from there. Until all is
    drained it may be called off by asking for the number that there was.

    Args:
        store: the layout and all that hangs on it.
        publishers: the processes that take events in.
        bus: where the topics are.
        clock: for the watermark of the partitions that are new.
        skew: how far the clocks of ingest may be from each other.
        tell: is told what is done, and what is waited for.
    """

    def __init__(
        self,
        store: LayoutStore,
        publishers: Members,
        bus: Bus,
        clock: Clock,
        *,
        skew: timedelta,
        tell: Tell,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._skew = skew
        self._tell = tell
        self._publishers = publishers

    async def run(self, wanted: int) -> None:
        """Returns when there are so many partitions and events come in.

        Raises:
            Conflict: another change is under way.
            Unavailable: the database or the broker is; run it again.
        """
        only = await self._store.only_changer()
        if only is None:
            raise Conflict("Another process is changing the number of partitions.")
        try:
            await self._run(wanted, only)
        finally:
            await only.close()

    async def _run(self, wanted: int, only: Connection) -> None:
        layout = await self._begin(wanted)
        if layout.state is State.OPEN:
            return
        if layout.state is State.DRAINING:
            await self._drain(layout.partitions, wanted)
        await asyncio.sleep(await self._store.seconds_of_leases())
        await self._replace_topic(wanted, only)
        while left := await self._store.rehash_some(wanted):
            self._tell(f"{left} blocks of rows are left to move")
            await self._store.check(only, wanted)
        await self._store.check(only, wanted)
        await self._announce(layout.generation + 1, wanted)
        await self._store.open(wanted)
        self._tell(f"{EVENTS_TOPIC} has {wanted} partitions; events come in again")

    async def _begin(self, wanted: int) -> Layout:
        layout = await self._layout()
        if layout.state is State.OPEN and layout.partitions == wanted:
            self._tell(f"{EVENTS_TOPIC} has {wanted} partitions")
            return layout
        if layout.state is State.OPEN:
            await self._store.drain(wanted)
            self._tell("no events come in any more")
            return await self._layout()
        if layout.wanted == wanted:
            self._tell("goes on with what was begun")
            return layout
        if layout.state is State.DRAINING and layout.partitions == wanted:
            await self._store.call_off()
            self._tell(f"called off: {EVENTS_TOPIC} has {wanted} partitions; events come in again")
            return await self._layout()
        raise Conflict(
            f"A change to {layout.wanted} partitions was begun:"
            f" finish it with `mindweave partitions {layout.wanted}`."
        )

    async def _layout(self) -> Layout:
        found = await self._store.read()
        return found or await self._store.begin(await self._bus.partitions(EVENTS_TOPIC))

    async def _drain(self, before: int, after: int) -> None:
        """Until whatever was acknowledged is applied and sent on, and nobody applies any more."""
        looks = 0
        while left := await self._publishers.count():
            if looks % _TELL_EVERY == 0:
                self._tell(f"waits for {left} processes that take events in")
            looks += 1
            await asyncio.sleep(_LOOK_EVERY)
        looks = 0
        while True:
            waits = await self._not_applied(before)
            unsent = await self._store.unsent()
            if not (waits or unsent) and await self._store.fence(max(before, after)):
                self._tell("all that was acknowledged is counted")
                return
            if looks % _TELL_EVERY == 0:
                self._tell(
                    f"waits for the workers: partitions {waits or 'none'} are not applied to"
                    f" their end, {unsent} deltas are not sent on"
                )
            looks += 1
            await asyncio.sleep(_LOOK_EVERY)

    async def _not_applied(self, partitions: int) -> list[int]:
        places = await self._store.places(partitions)
        return [p for p in range(partitions) if not await self._is_applied(p, places[p])]

    async def _is_applied(self, partition: int, place: str | None) -> bool:
        at_end = await self._bus.end(EVENTS_TOPIC, partition) == (place and token_of(place))
        if place is not None and not at_end:
            return False
        # Records that were gone before the first one was applied are not waited for.
        try:
            return not await self._bus.fetch(EVENTS_TOPIC, partition, place, max_records=1, wait=0)
        except OffsetLost as lost:
            raise Conflict(f"People have to look at the broker first: {lost}.") from lost

    async def _replace_topic(self, partitions: int, only: Connection) -> None:
        """Looks before each step whether this is still the one process that may take it.

        One that stood still may wake when another has finished, and events are in the new topic.
        """
        for _ in range(_TRIES):
            await self._store.check(only, partitions)
            try:
                await self._bus.replace(EVENTS_TOPIC, partitions, [GROUP])
                births = [await self._bus.birth(EVENTS_TOPIC, p) for p in range(partitions)]
            except TopicMismatch:
                await asyncio.sleep(_LOOK_EVERY)
            else:
                await self._store.check(only, partitions)
                await self._store.forget_places(births)
                return
        raise Unavailable(f"{EVENTS_TOPIC} is made by others again and again.")

    async def _announce(self, generation: int, partitions: int) -> None:
        """Tell who reads windows how many sources there are, before one of them sends anything.

        All that was acknowledged is in windows that were sent before, so every source is as far.
        """
        now = self._clock.now()
        mark = microseconds(now - self._skew)
        marks = dict.fromkeys(range(partitions), mark)
        value = pack(
            Envelope(
                id=uuid7(),
                type=WINDOWS_TOPIC,
                source=GROUP,
                timestamp=now,
                data=msgspec.msgpack.encode(
                    windows_data(None, None, marks, sources=(generation, partitions))
                ),
            )
        )
        parts = range(await self._bus.partitions(WINDOWS_TOPIC))
        await self._bus.publish(
            WINDOWS_TOPIC, [Outgoing(value, partition=p, headers=PACKED_HEADERS) for p in parts]
        )
