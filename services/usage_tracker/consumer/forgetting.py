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
from services.usage_tracker.actions.layout import Layouts
from services.usage_tracker.actions.projects import Projects
from services.usage_tracker.domain.layout import State
from services.usage_tracker.store import UsageStore, days_around

EVERY = timedelta(seconds=5)
# By then nobody takes events for a deleted organization any more.
_LAST_ACCEPTED = timedelta(seconds=10)
# A request may have been received this long before it was accepted, which the watermark tells of.
_IN_HAND = timedelta(minutes=5)
# Ranges of rows that are looked through before other duties have their turn.
_RANGES = 64
_EVICTING = frozenset({"org.deleted", "project.deleted", "project.updated"})


class Forgetting:
    """Removes by watermarks, never by the clock: what was accepted and not counted yet stays.

    Args:
        store: the ledger.
        clock: tells which days come.
        layouts: tells how many partitions there are.
        raw: how long raw events stay.
        ids: how long identities stay.
    """

    def __init__(
        self,
        store: UsageStore,
        clock: Clock,
        *,
        layouts: Layouts,
        raw: timedelta,
        ids: timedelta,
    ) -> None:
        self._store = store
        self._clock = clock
        self._layouts = layouts
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
        layout = await self._layouts.read()
        if layout.state is not State.OPEN:
            return await self._store.to_forget()
        watermark = await self._store.least_watermark(layout.partitions)
        if watermark is None:
            return await self._store.to_forget()
        received = watermark - _IN_HAND
        await self._store.expire((received - self._raw).date(), (received - self._ids).date())
        await self._store.begin_forgetting(watermark - _LAST_ACCEPTED)
        for _ in range(_RANGES):
            if not await self._store.forget_some():
                break
        return await self._store.to_forget()

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
        elif isinstance(message, ProjectDeleted) or (
            isinstance(message, ProjectUpdated) and _moves(message)
        ):
            projects.evict(project_id=UUID(message.project_id))

    return evict


def _moves(message: ProjectUpdated) -> bool:
    """Whether it may tell of another team; what else changes is nothing to us."""
    return not message.fields or "team_id" in message.fields
