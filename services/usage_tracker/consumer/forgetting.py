"""What goes: days beyond their retention, organizations that were deleted, answers out of date."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from common.clock import Clock
from common.database import Change
from common.events.bus import Record
from common.events.envelope import Envelope, decode, message_of
from common.identity.access import AccessResolver
from common.periodic import Periodic
from mindweave.account.v1.events_pb2 import OrgDeleted
from mindweave.project.v1.events_pb2 import ProjectDeleted, ProjectUpdated
from services.usage_tracker.actions.projects import Projects
from services.usage_tracker.store import UsageStore, days_around

EVERY = timedelta(seconds=5)
# By then nobody takes events for a deleted organization any more.
_LAST_ACCEPTED = timedelta(seconds=10)
# A request may have been received this long before it was accepted, which the watermark tells of.
_IN_HAND = timedelta(minutes=5)
_EVICTING = frozenset({"org.deleted", "project.deleted", "project.updated"})


class Forgetting:
    """Removes by watermarks, never by the clock: what was accepted and not counted yet stays.

    Args:
        store: the ledger.
        clock: tells which days come.
        partitions: of ``usage.events``.
        raw: how long raw events stay.
        ids: how long identities stay.
    """

    def __init__(
        self,
        store: UsageStore,
        clock: Clock,
        *,
        partitions: int,
        raw: timedelta,
        ids: timedelta,
    ) -> None:
        self._store = store
        self._clock = clock
        self._partitions = partitions
        self._raw = raw
        self._ids = ids

    def periodic(self) -> Periodic:
        return Periodic("retention", self.step, every=EVERY)

    async def step(self) -> int:
        """Make the days that come, drop those that are over, remove deleted organizations.

        Returns:
            Deleted organizations whose rows are still there.
        """
        await self._store.prepare_days(days_around(self._clock.now()))
        watermark = await self._store.least_watermark(self._partitions)
        if watermark is None:
            return 0
        received = watermark - _IN_HAND
        await self._store.expire((received - self._raw).date(), (received - self._ids).date())
        return await self._store.forget_deleted(self._partitions, watermark - _LAST_ACCEPTED)

    async def org_deleted(self, change: Change, message: OrgDeleted, envelope: Envelope) -> None:
        """Note that the organization's rows are to go."""
        await self._store.note_deleted(change, UUID(message.org_id), envelope.timestamp)


def eviction(projects: Projects, access: AccessResolver) -> Callable[[Record], Awaitable[None]]:
    """Shown every new platform event, it forgets the answers that the event has made untrue."""

    async def evict(record: Record) -> None:
        envelope = decode(record.value)
        if envelope.type not in _EVICTING:
            return
        message = message_of(envelope)
        if isinstance(message, OrgDeleted):
            projects.evict(org_id=UUID(message.org_id))
            access.evict(org_id=UUID(message.org_id))
        elif isinstance(message, ProjectDeleted | ProjectUpdated):
            projects.evict(project_id=UUID(message.project_id))

    return evict
