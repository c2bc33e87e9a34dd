"""What analytics listens to: windows of usage, and organizations that are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from common.background import PartStatus
from common.errors import Unavailable
from common.events.envelope import EventRefused, unpack
from common.events.ledger import RecordRefused
from mindweave.account.v1 import events_pb2 as account
from services.analytics.domain import Windows, partition_of

if TYPE_CHECKING:
    import asyncpg

    from common.database import Change
    from common.events.bus import Record
    from common.events.envelope import Envelope
    from services.analytics.store import RollupStore

TOPIC = "usage.windows"
_log = logging.getLogger(__name__)


class WindowsConsumer:
    """Appends windows and rolls them up; one instance serves every partition it is given."""

    name = "rollup"

    def __init__(self, store: RollupStore, partitions: int, pause: float = 1.0) -> None:
        """Args: ``pause`` is the least time between two roll-ups, in seconds."""
        self._store = store
        self._partitions = partitions
        self._pause = pause
        self._arrived: set[int] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def append(
        self, connection: asyncpg.Connection, part: int, records: Sequence[Record]
    ) -> int:
        """Append a batch, in the consumer's transaction.

        Raises:
            RecordRefused: a record does not fit its contract.
        """
        return await self._store.append(connection, part, [_windows(r) for r in records])

    async def appended(self, part: int, rows: int) -> None:
        """Remember, after the commit, that the partition has something to roll up."""
        if rows:
            self._arrived.add(part)
            self._wake.set()

    async def start(self) -> None:
        self._arrived = set(range(self._partitions))
        self._wake.set()
        self._task = asyncio.create_task(self._run(), name="analytics-rollup")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def status(self) -> PartStatus:
        running = self._task is not None and not self._task.done()
        return PartStatus(
            ready=running,
            detail="rolling up" if running else "stopped",
            lag=len(self._arrived),
            live=self._task is None or running,
        )

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for part in sorted(self._arrived):
                self._arrived.discard(part)
                try:
                    await self._store.roll_up(part)
                except Unavailable as error:
                    _log.warning("roll-up of partition %d waits: %s", part, error)
                    self._arrived.add(part)
                    self._wake.set()
            await asyncio.sleep(self._pause)


class Forgetting:
    """Removes what a deleted organization leaves behind."""

    def __init__(self, store: RollupStore, partitions: int) -> None:
        self._store = store
        self._partitions = partitions

    async def org_deleted(
        self, change: Change, message: account.OrgDeleted, envelope: Envelope
    ) -> None:
        org = UUID(message.org_id)
        await self._store.forget(change, partition_of(org, self._partitions), org)


def _windows(record: Record) -> Windows:
    try:
        return unpack(record.value, Windows)[1]
    except EventRefused as error:
        raise RecordRefused(f"{record.topic}/{record.partition} {record.token}: {error}") from error
