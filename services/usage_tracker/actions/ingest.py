"""Taking events in: judged one by one, acknowledged once the broker has them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import ParamSpec, TypeVar
from uuid import UUID

import msgspec
import numpy as np

from common.clock import Clock
from common.columns import Integers
from common.events.bus import Bus, Outgoing
from common.events.envelope import PACKED_HEADERS, Envelope, Metadata, pack
from common.identity.access import AccessResolver
from common.identity.call import Principal, permitted
from common.ids import uuid7
from common.telemetry import Telemetry, correlation_id
from common.threads import off_loop
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.actions.projects import Projects
from services.usage_tracker.actions.turns import InHand, Turns
from services.usage_tracker.domain.columns import Columns, columns_of
from services.usage_tracker.domain.events import (
    Event,
    Fields,
    Rejection,
    read_batch,
    read_fields,
)
from services.usage_tracker.domain.judged import judge_fields
from services.usage_tracker.domain.judging import Judge, Row, Tenancy, microseconds, parse_uuid
from services.usage_tracker.domain.layout import Layout
from services.usage_tracker.domain.records import EVENTS_TOPIC, UsageEvents, events_partition

PERMISSION = "events:write"
P = ParamSpec("P")
T = TypeVar("T")
Chosen = TypeVar("Chosen", Integers, Sequence[Row])
BATCH_SIZES = (1, 10, 30, 100, 300, 1_000, 3_000, 10_000)
# Bytes to read, and events to judge one by one, that take milliseconds.
_LONG_BODY = 64 * 1024
_MANY_EVENTS = 200
# Of a record's data. Brokers bound records, and workers fetch several at once; the limits of its
# fields bound an event to a small part of this.
MAX_RECORD_BYTES = 1_000_000

Found = Sequence[Event | Rejection]
Named = Iterable[str | None]
Rejected = Sequence[tuple[int, Rejection]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch. ``accepted_at`` is None where nothing was accepted."""

    accepted: int
    rejected: Rejected
    accepted_at: datetime | None
    first_id: bytes | None


@dataclass(frozen=True, slots=True)
class _Parts:
    """Accepted events as data of records with their partitions, and why others are not."""

    records: Sequence[tuple[int, bytes]]
    rejected: Rejected
    accepted: int = 0
    first_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Head:
    """What all records of a request have in common."""

    received_at: int
    api_key_id: bytes | None
    partitions: int

    def packed(self, columns: Callable[[Chosen], Columns], chosen: Chosen) -> Iterator[bytes]:
        """Some events of one partition as data of records of bounded size, in their order."""
        data = msgspec.msgpack.encode(
            UsageEvents(self.received_at, self.api_key_id, columns(chosen), self.partitions)
        )
        if len(data) <= MAX_RECORD_BYTES or len(chosen) == 1:
            yield data
            return
        half = len(chosen) // 2
        yield from self.packed(columns, chosen[:half])
        yield from self.packed(columns, chosen[half:])


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
        layouts: Layouts,
        raw_retention: timedelta,
        turns: Turns,
    ) -> None:
        self._bus = bus
        self._turns = turns
        self._access = access
        self._projects = projects
        self._clock = clock
        self._layouts = layouts
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

    async def send(self, principal: Principal, body: bytes) -> Taken:
        """Judge the events of a batch, and publish what is taken, all or nothing.

        Args:
            principal: who sends them.
            body: as it came.

        Raises:
            Invalid, PayloadTooLarge: it is no batch.
            BusFull: nothing was taken.
            BusUnavailable: nothing was acknowledged; a repeat is safe.
            Unavailable: tenants cannot be checked, or the number of partitions is being changed.
        """
        long = len(body) > _LONG_BODY
        fields = await self._work(principal, long, read_fields, body)
        if fields is None:
            found = await self._work(principal, long, read_batch, body)
            return await self.send_found(principal, found)
        self._sizes.observe(len(fields["event_id"]))
        tenancy = await self._tenancy(principal, fields["project_id"], fields["org_id"])
        layout = self._layouts.open()
        received_at = self._clock.now()
        judge = Judge(tenancy, received_at, self._raw_retention)
        head = _head(principal, received_at, layout)
        parts = await self._work(principal, long, _parts_of_fields, judge, fields, body, head)
        return await self._publish(principal, parts, received_at, layout)

    async def send_found(
        self,
        principal: Principal,
        found: Found,
        name_event: Callable[[UUID], UUID] | None = None,
    ) -> Taken:
        """As ``send``, of events that were read one by one.

        Args:
            principal: who sends them.
            found: events in the order of the request, and why others are none.
            name_event: gives the id of an event that has none, by its organization.
        """
        self._sizes.observe(len(found))
        events = [e for e in found if isinstance(e, Event)]
        tenancy = await self._tenancy(
            principal, [e.project_id for e in events], [e.org_id for e in events]
        )
        layout = self._layouts.open()
        received_at = self._clock.now()
        judge = Judge(tenancy, received_at, self._raw_retention, name_event)
        long = len(found) > _MANY_EVENTS
        head = _head(principal, received_at, layout)
        parts = await self._work(principal, long, _parts_of_events, judge, found, head)
        return await self._publish(principal, parts, received_at, layout)

    def holding(self, principal: Principal) -> AbstractContextManager[InHand]:
        """A body of a caller, while it arrives and until it is answered."""
        return self._turns.holding(_tenant(principal), principal.subject)

    async def _work(
        self,
        principal: Principal,
        long: bool,
        work: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Work of milliseconds is done in a thread, in the turn of its organization."""
        if not long:
            return work(*args, **kwargs)
        async with self._turns.turn(_tenant(principal)):
            return await off_loop(True, work, *args, **kwargs)

    async def _tenancy(
        self, principal: Principal, projects_named: Named, orgs_named: Named
    ) -> Tenancy:
        bound = principal.project_id
        wanted = {bound} if bound else _ids(projects_named)
        projects = await self._projects.resolve(wanted)
        named = _ids(orgs_named)
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
        self, principal: Principal, parts: _Parts, received_at: datetime, layout: Layout
    ) -> Taken:
        for code, count in Counter(rejection.code for _, rejection in parts.rejected).items():
            self._rejected.of(code=code).inc(count)
        if not parts.records:
            return Taken(0, parts.rejected, None, None)
        envelope = Envelope(
            id=uuid7(),
            type=EVENTS_TOPIC,
            source="usage_tracker",
            timestamp=received_at,
            correlation_id=correlation_id(),
            data=b"",
            metadata=Metadata(principal.user_id, principal.org_id),
        )
        await self._bus.publish(EVENTS_TOPIC, list(_outgoing(parts.records, envelope)))
        self._layouts.confirm(layout)
        self._accepted.inc(parts.accepted)
        return Taken(parts.accepted, parts.rejected, self._clock.now(), parts.first_id)


def _tenant(principal: Principal) -> object:
    """The organization where the credential says it, else who sends, with whatever credentials."""
    return principal.org_id or principal.user_id or principal.subject


def _head(principal: Principal, received_at: datetime, layout: Layout) -> _Head:
    api_key_id = principal.api_key_id.bytes if principal.api_key_id else None
    return _Head(microseconds(received_at), api_key_id, layout.partitions)


def _verdict(judge: Judge, event: Event | Rejection) -> Row | Rejection:
    return event if isinstance(event, Rejection) else judge.judge(event)


def _parts_of_fields(judge: Judge, fields: Fields, body: bytes, head: _Head) -> _Parts:
    judged, plain = judge_fields(judge, fields)
    rejected: list[tuple[int, Rejection]] = []
    if not plain.all():
        found = read_batch(body)
        for index in np.flatnonzero(~plain).tolist():
            verdict = _verdict(judge, found[index])
            if not isinstance(verdict, Rejection):
                # It is taken, so its place among the others counts.
                return _parts_of_events(judge, found, head)
            rejected.append((index, verdict))
    if judged is None:
        return _Parts((), rejected)
    places = judged.partitions(partial(events_partition, partitions=head.partitions))
    records = [
        (part, data)
        for part, events in places.items()
        for data in head.packed(judged.columns, events)
    ]
    return _Parts(records, rejected, len(judged), judged.ids["event_id"][0].tobytes())


def _parts_of_events(judge: Judge, found: Found, head: _Head) -> _Parts:
    rejected: list[tuple[int, Rejection]] = []
    taken: list[Row] = []
    rows: defaultdict[int, list[Row]] = defaultdict(list)
    for index, event in enumerate(found):
        verdict = _verdict(judge, event)
        if isinstance(verdict, Rejection):
            rejected.append((index, verdict))
        else:
            taken.append(verdict)
            part = events_partition(verdict.org_id, verdict.event_id, head.partitions)
            rows[part].append(verdict)
    records = [
        (part, data) for part, some in rows.items() for data in head.packed(columns_of, some)
    ]
    return _Parts(records, rejected, len(taken), taken[0].event_id if taken else None)


def _outgoing(records: Iterable[tuple[int, bytes]], envelope: Envelope) -> Iterator[Outgoing]:
    for partition, data in records:
        packed = pack(msgspec.structs.replace(envelope, id=uuid7(), data=data))
        yield Outgoing(packed, partition=partition, headers=PACKED_HEADERS)


def _ids(texts: Named) -> set[UUID]:
    return {found for text in set(texts) if (found := parse_uuid(text)) is not None}
