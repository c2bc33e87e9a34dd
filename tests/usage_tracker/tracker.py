"""The work of a process of usage_tracker, and what is seen of it at both ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from common.database import Database
from common.events.bus import Bus, Outgoing
from common.events.envelope import PACKED_HEADERS, unpack
from common.events.ledger import PartitionConsumer
from common.testing import silent_telemetry
from services.analytics.domain.windows import Windows
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.actions.prices import CurrentPrices
from services.usage_tracker.actions.repricing import Repricing
from services.usage_tracker.consumer.events import EventsConsumer
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.consumer.relay import WindowsRelay
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.records import events_partition
from services.usage_tracker.store import BlockStore, RepricingStore, UsageStore
from tests.analytics.deltas import rows_of
from tests.usage_tracker.conftest import MakeRecord, layouts_of
from tests.usage_tracker.plain import Arrived

SKEW = timedelta(milliseconds=200)
PARTS, WINDOWS_PARTS = 2, 2


class Tracker:
    """The background work of one process of usage_tracker."""

    def __init__(
        self,
        bus: Bus,
        db: Database,
        owner: str = "one",
        layouts: Layouts | None = None,
        lease: float = 2.0,
    ) -> None:
        layouts = layouts or layouts_of(PARTS)
        self.store, self.blocks = UsageStore(db), BlockStore(db)
        recent = RecentDeltas()
        prices = CurrentPrices(PriceBook.bundled(), db)
        repricing = Repricing(RepricingStore(db), self.store, prices, layouts)
        self.orders = repricing.periodic()
        counting = EventsConsumer(
            Accounting(self.store, prices, timedelta(days=8)),
            db,
            silent_telemetry(),
            recent,
            layouts,
        )
        self.worker = PartitionConsumer(
            bus=bus,
            db=db,
            topic="usage.events",
            group="usage_tracker",
            owner=owner,
            apply=counting.apply,
            after=counting.after,
            on_take=counting.take,
            cadence=0.02,
            lease=lease,
            chores=repricing,
        )
        self.relay = WindowsRelay(
            bus=bus,
            store=self.store,
            blocks=self.blocks,
            progress=self.worker,
            clock=db.clock,
            telemetry=silent_telemetry(),
            partitions=WINDOWS_PARTS,
            skew=SKEW,
            layouts=layouts,
            recent=recent,
            cadence=0.02,
        )

    async def __aenter__(self) -> Tracker:
        await self.worker.start()
        await self.relay.start()
        await self.orders.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.orders.stop()
        await self.relay.stop()
        await self.worker.stop()


class Reader:
    """What analytics would see: every record of usage.windows, in order by partition."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._after: dict[int, str | None] = dict.fromkeys(range(WINDOWS_PARTS))
        self.seen: list[tuple[int, Windows]] = []

    async def read(self) -> None:
        for part in range(WINDOWS_PARTS):
            while records := await self._bus.fetch(
                "usage.windows", part, self._after[part], max_records=100, wait=0
            ):
                self._after[part] = records[-1].token
                self.seen += [(part, unpack(r.value, Windows)[1]) for r in records]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await self.read()
                await asyncio.sleep(0.02)

    def events(self) -> int:
        """Events in deltas, each number of a source counted once."""
        return self.sum("events")

    def sum(self, measure: str) -> int:
        """A measure of all deltas, each number of a source counted once."""
        found: dict[tuple[int, int, int], int] = {}
        for part, windows in self.seen:
            if windows.columns is not None and windows.source is not None:
                for row in rows_of(windows.columns):
                    found[part, windows.source, row["seq"]] = row[measure]
        return sum(found.values())

    def fresh_until(self, part: int, parts: int) -> int | None:
        """The least of the last watermarks of all sources; None while one is unknown."""
        marks: dict[int, int] = {}
        for seen_in, windows in self.seen:
            if seen_in == part:
                marks |= windows.watermarks
        known = [mark for source, mark in marks.items() if source < parts]
        return min(known) if len(known) == parts else None

    def fresh(self, at: datetime, parts: int = PARTS) -> bool:
        marks = [self.fresh_until(p, parts) for p in range(WINDOWS_PARTS)]
        return all(m is not None and m > microseconds(at) for m in marks)


async def publish(
    bus: Bus, record: MakeRecord, *events: Arrived, partitions: int = PARTS
) -> datetime:
    """Publish as ingest does; returns a time after the broker's acknowledgement."""
    parts: dict[int, list[Arrived]] = {}
    for event in events:
        part = events_partition(event.row.org_id, event.row.event_id, partitions)
        parts.setdefault(part, []).append(event)
    await bus.publish(
        "usage.events",
        [
            Outgoing(
                record(*some, partitions=partitions).value,
                partition=part,
                headers=PACKED_HEADERS,
            )
            for part, some in parts.items()
        ],
    )
    return datetime.now(UTC)
