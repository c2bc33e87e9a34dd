"""Deltas that were sent on become rows: those of one window and combination of dimensions one."""

from __future__ import annotations

from datetime import timedelta

from common.periodic import Periodic
from services.usage_tracker.store import BlockStore


class Compaction:
    """Whichever worker comes first adds up what waits, of all parts; the others find nothing.

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
        """Add up all that was sent on."""
        while await self._blocks.add_up():
            continue
