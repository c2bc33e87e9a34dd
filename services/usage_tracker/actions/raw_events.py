"""Raw events for those who ask what was counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from uuid import UUID

from services.usage_tracker.domain.judging import MAX_AHEAD
from services.usage_tracker.domain.ranges import RangeTooLong
from services.usage_tracker.domain.raw_events import RawEvent
from services.usage_tracker.store.raw_events import Place, RawEventStore, RawEventView, Wanted

# How much of the time that is asked for is looked at first; then so many times more. Blocks of
# events tell which times they hold, so that little else is read.
_FIRST = timedelta(minutes=10)
_MORE = 4
# Metadata of a page; an event has 16 kB at most.
_METADATA_BYTES = 2_000_000
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class AskedEvents:
    """Which events: those whose own time is in a range; ``equal`` by columns, None is any."""

    org_id: UUID
    start: datetime
    end: datetime
    equal: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Page:
    """Some events, and the place after which the next ones are; None where there are none."""

    events: Sequence[RawEvent]
    next: Place | None


class RawEvents:
    """Pages of events.

    Args:
        store: of the events.
        raw: how long they are kept, and how old one may be when it comes.
    """

    def __init__(self, store: RawEventStore, raw: timedelta) -> None:
        self._store = store
        self._raw = raw

    async def page(self, asked: AskedEvents, after: Place | None, size: int) -> Page:
        """Events, the latest first, from the one after a place on.

        At most ``size``; fewer where their metadata is large, or where to find more takes long.

        Raises:
            RangeTooLong: to find the first one takes too long.
        """
        found: list[RawEvent] = []
        try:
            async with self._store.view(Wanted(asked.org_id, self._raw, asked.equal)) as view:
                async for some in self._spans(view, asked, after, size + 1):
                    found += some
                    if len(found) > _fitting(found, size):
                        break
        except RangeTooLong:
            if not found:
                raise
            return _page(found, size, more=True)
        return _page(found, size, more=False)

    async def _spans(
        self, view: RawEventView, asked: AskedEvents, after: Place | None, most: int
    ) -> AsyncIterator[list[RawEvent]]:
        start, end = asked.start, asked.end
        if after is not None:
            end = min(end, after[0] + _INSTANT)
        received = await view.receptions(start, end)
        if received is not None:
            if not received:
                return
            most, end = min(most, len(received)), min(end, max(received) + MAX_AHEAD + _INSTANT)
        span = _FIRST
        while start < end and most > 0:
            begin = max(start, end - min(span, end - start))
            some = await view.between(begin, end, after, most, received)
            yield some
            most -= len(some)
            end, span = begin, min(span * _MORE, timedelta(days=366_000))


def _fitting(found: Sequence[RawEvent], size: int) -> int:
    """How many of them a page holds."""
    held = accumulate(len((event.row["metadata"] or "").encode()) for event in found[:size])
    return sum(1 for total in held if total <= _METADATA_BYTES)


def _page(found: Sequence[RawEvent], size: int, *, more: bool) -> Page:
    fitting = _fitting(found, size)
    if not more and fitting == len(found):
        return Page(found, None)
    last = found[fitting - 1].row
    return Page(found[:fitting], (last["at"], last["event_id"]))
