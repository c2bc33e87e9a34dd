"""Raw events for those who ask what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from services.usage_tracker.domain.raw_events import RawEvent
from services.usage_tracker.store.raw_events import Place, RawEventStore, Wanted

# How much of the time that is asked for is looked at first; then so many times more. Blocks of
# events tell which times they hold, so that little else is read.
_FIRST = timedelta(minutes=10)
_MORE = 4


@dataclass(frozen=True, slots=True)
class AskedEvents:
    """Which events: those whose own time is in a range; ``equal`` by columns, None is any."""

    org_id: UUID
    start: datetime
    end: datetime
    equal: Mapping[str, object]


class RawEvents:
    """Pages of events.

    Args:
        store: of the events.
        raw: how long they are kept, and how old one may be when it comes.
    """

    def __init__(self, store: RawEventStore, raw: timedelta) -> None:
        self._store = store
        self._raw = raw

    async def page(self, asked: AskedEvents, after: Place | None, size: int) -> list[RawEvent]:
        """Events, the latest first, from the one after a place on; at most ``size``."""
        found: list[RawEvent] = []
        end = asked.end if after is None else min(asked.end, after[0] + timedelta(microseconds=1))
        span = _FIRST
        wanted = Wanted(asked.org_id, self._raw, asked.equal)
        async with self._store.view(wanted) as view:
            while asked.start < end and len(found) < size:
                begin = max(asked.start, end - min(span, end - asked.start))
                found += await view.between(begin, end, after, size - len(found))
                end, span = begin, min(span * _MORE, timedelta(days=366_000))
        return found
