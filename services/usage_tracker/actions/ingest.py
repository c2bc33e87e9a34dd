"""Taking events in: judged one by one, acknowledged once the broker has them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from common.clock import Clock
from common.events.bus import Bus, Outgoing
from common.events.envelope import PACKED_HEADERS, Envelope, Metadata, pack
from common.identity.access import AccessResolver
from common.identity.call import Principal, permitted
from common.ids import uuid7
from common.telemetry import Telemetry, correlation_id
from services.usage_tracker.actions.projects import Projects
from services.usage_tracker.domain.events import Event, Rejection
from services.usage_tracker.domain.judging import Judge, Row, Tenancy, microseconds, parse_uuid
from services.usage_tracker.domain.records import EVENTS_TOPIC, events_data, events_partition

PERMISSION = "events:write"
BATCH_SIZES = (1, 10, 30, 100, 300, 1_000, 3_000, 10_000)
# Events above which judging and packing leave the event loop.
_OFF_LOOP = 200

Found = Sequence[Event | Rejection]


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch. ``accepted_at`` is None where nothing was accepted."""

    rows: Sequence[Row]
    rejected: Sequence[tuple[int, Rejection]]
    accepted_at: datetime | None


class Ingest:
    """Judges events for their caller and publishes those that are taken."""

    def __init__(
        self,
        *,
        bus: Bus,
        access: AccessResolver,
        projects: Projects,
        clock: Clock,
        telemetry: Telemetry,
        partitions: int,
        raw_retention: timedelta,
    ) -> None:
        self._bus = bus
        self._access = access
        self._projects = projects
        self._clock = clock
        self._partitions = partitions
        self._raw_retention = raw_retention
        self._accepted = telemetry.counter(
            "mindweave_events_accepted_total", "Events acknowledged, repeats included."
        ).of()
        self._rejected = telemetry.counter(
            "mindweave_events_rejected_total", "Events refused.", ["code"]
        )
        self._sizes = telemetry.histogram(
            "mindweave_ingest_batch_events", "Events in a request.", buckets=BATCH_SIZES
        ).of()

    async def send(
        self,
        principal: Principal,
        found: Found,
        name_event: Callable[[UUID], UUID] | None = None,
    ) -> Taken:
        """Judge the events, and publish what is taken, all or nothing.

        Args:
            principal: who sends them.
            found: events in the order of the request, and why others are none.
            name_event: gives the id of an event that has none, by its organization.

        Raises:
            BusFull: nothing was taken.
            BusUnavailable: nothing was acknowledged; a repeat is safe.
            Unavailable: tenants cannot be checked.
        """
        self._sizes.observe(len(found))
        tenancy = await self._tenancy(principal, [e for e in found if isinstance(e, Event)])
        received_at = self._clock.now()
        judge = Judge(tenancy, received_at, self._raw_retention, name_event)
        if len(found) > _OFF_LOOP:
            rows, rejected = await asyncio.to_thread(_judged, judge, found)
        else:
            rows, rejected = _judged(judge, found)
        for code, count in Counter(rejection.code for _, rejection in rejected).items():
            self._rejected.of(code=code).inc(count)
        if not rows:
            return Taken(rows, rejected, None)
        await self._publish(principal, rows, received_at)
        self._accepted.inc(len(rows))
        return Taken(rows, rejected, self._clock.now())

    async def _tenancy(self, principal: Principal, events: Sequence[Event]) -> Tenancy:
        bound = principal.project_id
        wanted = {bound} if bound else _ids(event.project_id for event in events)
        projects = await self._projects.resolve(wanted)
        named = _ids(event.org_id for event in events)
        if principal.kind == "project_key":
            named = {principal.org_id} if principal.org_id else set()
        else:
            named |= {project.org_id for project in projects.values()}
        roles = await self._access.resolve(principal)
        # One question is enough for all that are not among the answers kept: it names none.
        unknown = next((org for org in sorted(named) if org not in roles), None)
        if unknown is not None:
            roles = await self._access.resolve(principal, unknown)
        orgs = {org: permitted(principal, role, PERMISSION) for org, role in roles.items()}
        return Tenancy(orgs, projects, bound)

    async def _publish(
        self, principal: Principal, rows: Sequence[Row], received_at: datetime
    ) -> None:
        envelope = Envelope(
            id=uuid7(),
            type=EVENTS_TOPIC,
            source="usage_tracker",
            timestamp=received_at,
            correlation_id=correlation_id(),
            data=b"",
            metadata=Metadata(principal.user_id, principal.org_id),
        )
        api_key_id = principal.api_key_id.bytes if principal.api_key_id else None
        at = microseconds(received_at)
        if len(rows) > _OFF_LOOP:
            records = await asyncio.to_thread(
                _records, rows, envelope, at, api_key_id, self._partitions
            )
        else:
            records = _records(rows, envelope, at, api_key_id, self._partitions)
        await self._bus.publish(EVENTS_TOPIC, records)


def _judged(judge: Judge, found: Found) -> tuple[list[Row], list[tuple[int, Rejection]]]:
    rows: list[Row] = []
    rejected: list[tuple[int, Rejection]] = []
    for index, event in enumerate(found):
        verdict = event if isinstance(event, Rejection) else judge.judge(event)
        if isinstance(verdict, Rejection):
            rejected.append((index, verdict))
        else:
            rows.append(verdict)
    return rows, rejected


def _records(
    rows: Sequence[Row],
    envelope: Envelope,
    received_at: int,
    api_key_id: bytes | None,
    partitions: int,
) -> list[Outgoing]:
    """One record for each partition that the events fall into."""
    parts: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        parts[events_partition(row.org_id, row.event_id, partitions)].append(row)
    return [
        Outgoing(
            pack(
                msgspec.structs.replace(
                    envelope,
                    id=uuid7(),
                    data=msgspec.msgpack.encode(events_data(part, received_at, api_key_id)),
                )
            ),
            partition=partition,
            headers=PACKED_HEADERS,
        )
        for partition, part in parts.items()
    ]


def _ids(texts: Iterable[str | None]) -> set[UUID]:
    return {found for text in set(texts) if (found := parse_uuid(text)) is not None}
