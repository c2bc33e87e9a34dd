"""Deltas that this process has just committed, kept until they are sent on."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Collection

from services.usage_tracker.domain.blocks import Numbered

# Deltas of one part in memory; whoever falls behind further reads them from the database.
_MOST = 200_000


class RecentDeltas:
    """A short cut from the worker to the relay; what it lacks is in the database.

    Attributes:
        added: set where deltas were committed, so that they need not wait for the next watermark.
    """

    def __init__(self, most: int = _MOST) -> None:
        self.added = asyncio.Event()
        self._most = most
        self._waiting: defaultdict[int, deque[Numbered]] = defaultdict(deque)

    def add(self, part: int, numbered: Numbered) -> None:
        """Keep what was committed, in the order of the commits."""
        waiting = self._waiting[part]
        if waiting and waiting[-1].last + 1 != numbered.first:
            waiting.clear()
        waiting.append(numbered)
        while len(waiting) > 1 and waiting[-1].last - waiting[0].first >= self._most:
            waiting.popleft()
        self.added.set()

    def following(self, part: int, number: int, most: int) -> list[Numbered]:
        """The commits from the number after this one on, without a gap.

        One at least where there is one; no more than ``most`` deltas where there are several.
        """
        waiting = self._waiting[part]
        while waiting and waiting[0].first <= number:
            waiting.popleft()
        found: list[Numbered] = []
        for numbered in waiting:
            if numbered.first != number + 1:
                break
            if found and numbered.last - found[0].first >= most:
                break
            found.append(numbered)
            number = numbered.last
        return found

    def waits(self, part: int) -> bool:
        """Whether something is kept that does not follow what was asked for last."""
        return bool(self._waiting[part])

    def keep(self, parts: Collection[int]) -> None:
        """Forget what was committed to other parts."""
        for part in self._waiting.keys() - set(parts):
            del self._waiting[part]
