"""The worker: records of ``usage.events`` become rows of the ledger, each exactly once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from common.database import Change, Connection, Database
from common.events.bus import Record
from common.events.envelope import EventRefused, unpack
from common.events.ledger import RecordRefused
from common.telemetry import Telemetry
from common.threads import off_loop
from mindweave.usage_tracker.v1.events_pb2 import UsageConflict, UsageUnpriced
from services.usage_tracker.actions.accounting import Accepted, Accounting
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.consumer.spend import Spend
from services.usage_tracker.domain.blocks import Numbered
from services.usage_tracker.domain.judging import moment
from services.usage_tracker.domain.records import EVENTS_TOPIC, UsageEvents
from services.usage_tracker.domain.settling import Settled

BATCH_SIZES = (1, 10, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
_logger = logging.getLogger(__name__)

# What one transaction tells of: at most so many messages of each kind, so many ids in each.
_MOST_TOLD = 100
# Bytes that take milliseconds to read.
_LONG_RECORDS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Counted:
    """What one transaction came to."""

    events: int = 0
    duplicates: int = 0
    conflicts: int = 0
    unpriced: int = 0
    deltas: tuple[Numbered, ...] = ()
    accepted: tuple[Accepted, ...] = ()

    def plus(self, settled: Settled, last: int) -> Counted:
        """With another chunk; ``last`` is the number of its last delta."""
        accepted = settled.accepted
        if not accepted.count:
            return replace(
                self,
                duplicates=self.duplicates + settled.duplicates,
                conflicts=self.conflicts + settled.conflict_count,
            )
        return Counted(
            self.events + accepted.count,
            self.duplicates + settled.duplicates,
            self.conflicts + settled.conflict_count,
            self.unpriced + settled.unpriced_count,
            (*self.deltas, Numbered(last - len(settled.deltas) + 1, settled.deltas)),
            (*self.accepted, (accepted.hashes, accepted.numbers["received_at"])),
        )

    @property
    def arrived(self) -> int:
        return self.events + self.duplicates + self.conflicts


class EventsConsumer:
    """What a ``PartitionConsumer`` of ``usage.events`` runs.

    A record that was split by another number of partitions than there is comes from a process that
    stood still while that was changed. It was never acknowledged, and is left out.

    Args:
        accounting: settles the events.
        db: whose clock and name the events it publishes carry.
        telemetry: counts what was committed.
        recent: gets the deltas of each commit.
        layouts: tells how many partitions there are.
        chunk_events: about so many are settled at a time; a transaction holds as many chunks as it
            has records for.
    """

    def __init__(
        self,
        accounting: Accounting,
        db: Database,
        telemetry: Telemetry,
        recent: RecentDeltas,
        layouts: Layouts,
        chunk_events: int = 20_000,
    ) -> None:
        self._layouts = layouts
        self._partitions: dict[int, int] = {}
        self._chunk_events = chunk_events
        self._accounting = accounting
        self._db = db
        self._recent = recent
        kinds = telemetry.counter(
            "mindweave_events_counted_total", "Events that the worker committed.", ["outcome"]
        )
        self._stored = kinds.of(outcome="stored")
        self._duplicates = kinds.of(outcome="duplicate")
        self._conflicts = kinds.of(outcome="conflict")
        self._unpriced = telemetry.counter(
            "mindweave_events_unpriced_total", "Stored events of a model without a price."
        ).of()
        self._astray = telemetry.counter(
            "mindweave_records_astray_total",
            "Records published late, by a number of partitions that was changed, and left out.",
        ).of()
        self._spend = Spend(telemetry)
        self._sizes = telemetry.histogram(
            "mindweave_worker_batch_events", "Events in a transaction.", buckets=BATCH_SIZES
        ).of()

    async def apply(self, connection: Connection, part: int, records: Sequence[Record]) -> Counted:
        """Count a batch in the consumer's transaction.

        Raises:
            RecordRefused: a record is none of ours.
            PricesChanged: a price was stated meanwhile; the same again will do.
        """
        change = Change(
            connection,
            None,
            source=self._db.name,
            clock=self._db.clock,
            sealer=self._db.sealer,
        )
        counted = Counted()
        long = sum(len(record.value) for record in records) > _LONG_RECORDS
        events = await off_loop(long, _events, records)
        prices = await self._accounting.prices(connection, part)
        org_ids: set[bytes] = set()
        for chunk in _chunks(self._at_home(part, events), self._chunk_events):
            before = [hashes for hashes, _ in counted.accepted]
            settled, last = await self._accounting.count(connection, part, chunk, prices, before)
            _tell(change, settled)
            counted = counted.plus(settled, last)
            if settled.accepted.count:
                org_ids.update(settled.accepted.coded["org_id"].values)
        await change.finish()
        await self._accounting.confirm(connection, part, prices, org_ids)
        return counted

    def _at_home(self, part: int, events: list[UsageEvents]) -> list[UsageEvents]:
        known = (None, self._partitions.get(part))
        found = [data for data in events if data.partitions in known]
        if astray := len(events) - len(found):
            _logger.warning("%s/%d: %d records were never acknowledged", EVENTS_TOPIC, part, astray)
            self._astray.inc(astray)
        return found

    async def take(self, part: int) -> None:
        """Make ready for a part that this process has just taken."""
        # It cannot change before another has taken the part.
        self._partitions[part] = (await self._layouts.read()).partitions
        await self._accounting.take(part)

    async def after(self, part: int, counted: Counted) -> None:
        """Count and remember what was committed, and have its deltas sent on."""
        await self._accounting.remember(part, counted.accepted)
        self._stored.inc(counted.events)
        self._duplicates.inc(counted.duplicates)
        self._conflicts.inc(counted.conflicts)
        self._unpriced.inc(counted.unpriced)
        self._sizes.observe(counted.arrived)
        for numbered in counted.deltas:
            self._recent.add(part, numbered)
            self._spend.add(numbered.deltas)


def _events(records: Sequence[Record]) -> list[UsageEvents]:
    return list(map(_read, records))


def _read(record: Record) -> UsageEvents:
    try:
        envelope, data = unpack(record.value, UsageEvents)
    except EventRefused as error:
        raise RecordRefused(f"{record.topic}/{record.partition} {record.token}: {error}") from error
    if envelope.type != EVENTS_TOPIC:
        raise RecordRefused(f"{record.topic}/{record.partition} {record.token}: is {envelope.type}")
    return data


def _chunks(records: Sequence[UsageEvents], size: int) -> Iterator[list[UsageEvents]]:
    """The records in turn, about so many events at once."""
    chunk: list[UsageEvents] = []
    events = 0
    for data in records:
        chunk.append(data)
        events += data.columns.count
        if events >= size:
            yield chunk
            chunk, events = [], 0
    if chunk:
        yield chunk


def _tell(change: Change, settled: Settled) -> None:
    """Publish, with the commit, what people should look at."""
    for org_id, ids in islice(settled.conflicts.items(), _MOST_TOLD):
        change.publish(
            UsageConflict(
                org_id=str(UUID(bytes=org_id)),
                events=len(ids),
                event_ids=[str(UUID(bytes=i)) for i in ids[:_MOST_TOLD]],
            )
        )
    for (org_id, model, provider), found in islice(settled.unpriced.items(), _MOST_TOLD):
        first_at = Timestamp()
        first_at.FromDatetime(moment(found.first_at))
        change.publish(
            UsageUnpriced(
                org_id=str(UUID(bytes=org_id)),
                model=model,
                provider=provider,
                events=found.events,
                first_at=first_at,
            )
        )
