"""Deltas that wait, packed, become rows: those of one window or session one."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from common.periodic import Periodic
from services.usage_tracker.store import BlockStore
from services.usage_tracker.store.sessions import SessionStore

_EVERY = timedelta(seconds=10)
# Whatever has waited so long becomes rows, or what is so much that every question feels it.
_AGE = timedelta(minutes=30)
_MUCH = 500_000
# Organizations of a step.
_ORGANIZATIONS = 200


class WindowCompaction:
    """Whichever worker comes first adds up what waits of a part; the others find nothing.

    Args:
        blocks: what waits.
        every: so much comes together in one row.
    """

    def __init__(self, blocks: BlockStore, every: timedelta) -> None:
        self._blocks = blocks
        self._every = every

    def periodic(self) -> Periodic:
        return Periodic("compaction", self.step, every=self._every)

    async def step(self) -> None:
        """Add up all that was sent on before; a part that fails keeps no other one.

        Raises:
            ExceptionGroup: some parts failed, and wait for the next step.
        """
        failed: list[Exception] = []
        for part, until in (await self._blocks.sent()).items():
            (found,) = await asyncio.gather(self._all_of(part, until), return_exceptions=True)
            if isinstance(found, Exception):
                failed.append(found)
        if failed:
            raise ExceptionGroup("deltas wait to become rows", failed)

    async def _all_of(self, part: int, until: int) -> None:
        while await self._blocks.add_up(part, until):
            continue


class SessionCompaction:
    """Makes rows of deltas that have waited, an organization at a time."""

    def __init__(self, store: SessionStore, age: timedelta = _AGE, much: int = _MUCH) -> None:
        self._store = store
        self._age = age
        self._much = much

    def periodic(self) -> Periodic:
        return Periodic("sessions", self.step, every=_EVERY)

    async def step(self) -> int:
        """Work on those that are due, for a bounded time; returns how many are left."""
        due = await self._store.due(self._age, self._much)
        moved = 0
        for done, org_id in enumerate(due):
            if done == _ORGANIZATIONS or moved >= self._much:
                return len(due) - done
            while moved < self._much and (some := await self._store.compact(org_id)):
                moved += some
        return 0
