"""Events that a client sends again: the same content in another batch."""

from __future__ import annotations

import numpy as np

from bench.traffic import ROW_BYTES, Bytes

# Of all events of a request.
SHARE = 0.01
_KEPT = 4096


class Repeats:
    """Which events of one organization are sent again.

    Half of them were acknowledged before in this run, half are of ``stored``; all are of this run
    where that is empty.

    Args:
        stored: rows of events that were stored before the run.
        seed: of what is chosen.
    """

    def __init__(self, stored: Bytes, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._stored = stored
        self._kept = np.empty((_KEPT, ROW_BYTES), np.uint8)
        self._count = 0
        self._due = [0.0, 0.0]

    def choose(self, events: int) -> Bytes:
        """The rows to send again in a request of so many events."""
        sources = (self._kept[: self._count], self._stored)
        share = SHARE / 2 if len(self._stored) else SHARE
        chosen = []
        room = events
        for number, source in enumerate(sources):
            if not len(source):
                continue
            self._due[number] += share * events
            count = min(int(self._due[number]), room)
            self._due[number] -= count
            room -= count
            chosen.append(source[self._random.integers(len(source), size=count)])
        return np.concatenate(chosen) if chosen else self._kept[:0]

    def keep(self, rows: Bytes) -> None:
        """Remember some of the new rows of a request that was acknowledged."""
        some = rows[: max(1, round(SHARE * len(rows)))]
        if self._count < _KEPT:
            places = np.arange(self._count, self._count + len(some)) % _KEPT
        else:
            places = self._random.integers(_KEPT, size=len(some))
        self._kept[places] = some
        self._count = min(self._count + len(some), _KEPT)
