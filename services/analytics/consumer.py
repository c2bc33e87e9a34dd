"""What analytics listens to: windows of usage, and organizations that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from common.events.envelope import EventRefused, unpack
from common.events.ledger import RecordRefused
from mindweave.account.v1 import events_pb2 as account
from services.analytics.domain.windows import Windows, partition_of

if TYPE_CHECKING:
    import asyncpg

    from common.clock import Clock
    from common.database import Change
    from common.events.bus import Record
    from common.events.envelope import Envelope
    from services.analytics.store import Appended, DeletedOrgs, RollupStore

TOPIC = "usage.windows"
# Little arrives for a minute that began so long ago.
_OVER_FOR = timedelta(minutes=2)
# Every row that is written again costs.
_ROLL_UP_EVERY = timedelta(minutes=1)
# Windows of a partition that wait, with some that are over.
_MUCH = 50_000
# A statement that moves windows and does not see yet that their organization is gone has committed
# or come to nothing: the server ends it after a minute, and after another one its transaction.
_NOT_SEEN_FOR = timedelta(minutes=3)
# In which rows are removed before other duties have their turn.
_STEPS = 64


class WindowsConsumer:
    """Appends windows and rolls them up; one instance serves every partition it is given."""

    def __init__(self, store: RollupStore, clock: Clock, partitions: int) -> None:
        self._store = store
        self._clock = clock
        self._partitions = partitions
        self._rolled_up: datetime | None = None
        # What an earlier process left to add up is unknown.
        self._arrived = set(range(partitions))

    async def append(
        self, connection: asyncpg.Connection, part: int, records: Sequence[Record]
    ) -> Appended:
        """Append a batch, in the consumer's transaction.

        Raises:
            RecordRefused: a record does not fit its contract.
        """
        return await self._store.append(connection, part, [_windows(r) for r in records])

    async def appended(self, part: int, appended: Appended) -> None:
        """Remember, after the commit, that the partition has something to add up."""
        self._store.remember(appended)
        if appended.rows:
            self._arrived.add(part)

    async def roll_up(self) -> int:
        """Put together what has arrived, and now and then move on what is over.

        A partition in which that fails keeps no other from its turn.

        Returns:
            Partitions in which something has arrived meanwhile.

        Raises:
            Exception: the first of those that failed.
        """
        now = self._clock.now()
        due = self._rolled_up is None or now - self._rolled_up >= _ROLL_UP_EVERY
        failed = []
        for part in range(self._partitions):
            (outcome,) = await asyncio.gather(
                self._turn(part, now - _OVER_FOR, due), return_exceptions=True
            )
            if outcome is not None:
                failed.append(outcome)
        if failed:
            raise failed[0]
        if due:
            self._rolled_up = now
        return len(self._arrived)

    async def _turn(self, part: int, before: datetime, due: bool) -> None:
        if part in self._arrived:
            self._arrived.discard(part)
            try:
                await self._store.gather(part)
                # As when old events come in: more than questions should have to read.
                due = due or await self._store.waiting(part, before) > _MUCH
            except BaseException:
                self._arrived.add(part)
                raise
        if due:
            await self._store.roll_up(part, before)


class Forgetting:
    """Removes what a deleted organization leaves behind, in steps."""

    def __init__(self, deleted: DeletedOrgs, clock: Clock, partitions: int) -> None:
        self._deleted = deleted
        self._clock = clock
        self._partitions = partitions

    async def org_deleted(
        self, change: Change, message: account.OrgDeleted, envelope: Envelope
    ) -> None:
        """Note that the organization's windows are to go."""
        org = UUID(message.org_id)
        part = partition_of(org, self._partitions)
        await self._deleted.note(change, part, org, self._clock.now())

    async def step(self) -> int:
        """Remove some windows of deleted organizations.

        Returns:
            Organizations whose windows may still be there.
        """
        before = self._clock.now() - _NOT_SEEN_FOR
        for _ in range(_STEPS):
            if not await self._deleted.remove_some(before):
                break
        return await self._deleted.left()


def _windows(record: Record) -> Windows:
    try:
        return unpack(record.value, Windows)[1]
    except EventRefused as error:
        raise RecordRefused(f"{record.topic}/{record.partition} {record.token}: {error}") from error
