"""The worker: records of ``usage.events`` become rows of the ledger, each exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from common.database import Change, Connection, Database
from common.events.bus import Record
from common.events.envelope import EventRefused, unpack
from common.events.ledger import RecordRefused
from common.telemetry import Telemetry
from mindweave.usage_tracker.v1.events_pb2 import UsageConflict, UsageUnpriced
from services.usage_tracker.actions.accounting import Accounting
from services.usage_tracker.domain.judging import moment
from services.usage_tracker.domain.records import EVENTS_TOPIC, UsageEvents
from services.usage_tracker.domain.settling import Arrived, Settled

# Events that are settled at a time; a transaction holds as many such chunks as it has records for.
CHUNK_EVENTS = 20_000
BATCH_SIZES = (1, 10, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
# What one transaction tells of: at most so many messages of each kind, so many ids in each.
_MOST_TOLD = 100


@dataclass(frozen=True, slots=True)
class Counted:
    """What one transaction came to."""

    events: int = 0
    duplicates: int = 0
    conflicts: int = 0
    unpriced: int = 0
    deltas: int = 0

    def plus(self, settled: Settled) -> Counted:
        return Counted(
            self.events + len(settled.accepted),
            self.duplicates + settled.duplicates,
            self.conflicts + settled.conflict_count,
            self.unpriced + settled.unpriced_count,
            self.deltas + len(settled.deltas),
        )

    @property
    def arrived(self) -> int:
        return self.events + self.duplicates + self.conflicts


class EventsConsumer:
    """What a ``PartitionConsumer`` of ``usage.events`` runs.

    Args:
        accounting: settles the events.
        db: whose clock and name the events it publishes carry.
        telemetry: counts what was committed.
        added: set after each commit that added deltas.
    """

    def __init__(
        self, accounting: Accounting, db: Database, telemetry: Telemetry, added: asyncio.Event
    ) -> None:
        self._accounting = accounting
        self._db = db
        self._added = added
        kinds = telemetry.counter(
            "mindweave_events_counted_total", "Events that the worker committed.", ["outcome"]
        )
        self._stored = kinds.of(outcome="stored")
        self._duplicates = kinds.of(outcome="duplicate")
        self._conflicts = kinds.of(outcome="conflict")
        self._unpriced = telemetry.counter(
            "mindweave_events_unpriced_total", "Stored events of a model without a price."
        ).of()
        self._sizes = telemetry.histogram(
            "mindweave_worker_batch_events", "Events in a transaction.", buckets=BATCH_SIZES
        ).of()

    async def apply(self, connection: Connection, part: int, records: Sequence[Record]) -> Counted:
        """Count a batch in the consumer's transaction.

        Raises:
            RecordRefused: a record is none of ours.
        """
        arrived = await asyncio.to_thread(_arrived, records)
        change = Change(
            connection,
            None,
            source=self._db.name,
            clock=self._db.clock,
            sealer=self._db.sealer,
        )
        counted = Counted()
        events = iter(arrived)
        while chunk := list(islice(events, CHUNK_EVENTS)):
            settled = await self._accounting.count(connection, part, chunk)
            _tell(change, settled)
            counted = counted.plus(settled)
        await change.finish()
        return counted

    async def after(self, part: int, counted: Counted) -> None:
        """Count what was committed, and have its deltas sent on."""
        self._stored.inc(counted.events)
        self._duplicates.inc(counted.duplicates)
        self._conflicts.inc(counted.conflicts)
        self._unpriced.inc(counted.unpriced)
        self._sizes.observe(counted.arrived)
        if counted.deltas:
            self._added.set()


def _arrived(records: Sequence[Record]) -> list[Arrived]:
    return [event for record in records for event in _events(record)]


def _events(record: Record) -> Iterator[Arrived]:
    try:
        envelope, data = unpack(record.value, UsageEvents)
    except EventRefused as error:
        raise RecordRefused(f"{record.topic}/{record.partition} {record.token}: {error}") from error
    if envelope.type != EVENTS_TOPIC:
        raise RecordRefused(f"{record.topic}/{record.partition} {record.token}: is {envelope.type}")
    for row in data.rows():
        yield Arrived(row, data.received_at, data.api_key_id)


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
