"""Which identities may have been accepted before: what tells most new events apart at once."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from common.columns import Integers, Mask
from services.usage_tracker.domain.pricing import DAY_US

Hashes = NDArray[np.uint64]
_HALF = np.uint64(32)

# Ids for each word of 64 bits, of which every id sets so many: 16 bits an id in a full segment, one
# new id in a hundred taken for a known one.
_PER_WORD = 4
_BITS = 5
# Ids of a day's first segment; each further one has room for twice as many as the one before.
_SMALLEST = 2**14


class _Segment:
    """A Bloom filter whose bits of one hash are all in one word."""

    def __init__(self, capacity: int) -> None:
        self.capacity = self.room = capacity
        self.words = np.zeros(-(-capacity // _PER_WORD), np.uint64)

    def add(self, hashes: Hashes) -> None:
        np.bitwise_or.at(self.words, self._places(hashes), _bits(hashes))
        self.room -= len(hashes)

    def may_hold(self, hashes: Hashes, bits: Hashes) -> Mask:
        found: Mask = (self.words[self._places(hashes)] & bits) == bits
        return found

    def _places(self, hashes: Hashes) -> Integers:
        scaled = (hashes >> _HALF) * np.uint64(len(self.words)) >> _HALF
        return scaled.astype(np.int64)


class Identities:
    """The committed identities of a part, by hash and by day of acceptance.

    It never takes a known identity for a new one; of the new ones it takes a few for known.
    """

    def __init__(self) -> None:
        self.count = 0
        self._days: defaultdict[int, list[_Segment]] = defaultdict(list)
        # Microseconds since 1970 from which on all are here.
        self._floor = 0

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return sum(s.words.nbytes for segments in self._days.values() for s in segments)

    def add(self, hashes: Hashes, received_at: Integers) -> None:
        """Note identities that are committed, first accepted at these times."""
        days = received_at // DAY_US
        for day in np.unique(days).tolist():
            self._add_to(self._days[day], hashes[days == day])
        self.count += len(hashes)

    def may_hold(self, hashes: Hashes, since: int) -> Mask:
        """Where an identity may have been accepted, from a time (microseconds) on."""
        if since < self._floor:
            return np.ones(len(hashes), np.bool_)
        found = np.zeros(len(hashes), np.bool_)
        bits = _bits(hashes)
        for segments in self._days.values():
            for segment in segments:
                found |= segment.may_hold(hashes, bits)
        return found

    def forget(self, before: int) -> None:
        """Drop the days that ended before a time (microseconds)."""
        for day in [day for day in self._days if (day + 1) * DAY_US <= before]:
            del self._days[day]
            self._floor = max(self._floor, (day + 1) * DAY_US)

    def _add_to(self, segments: list[_Segment], hashes: Hashes) -> None:
        while len(hashes):
            if not segments or not segments[-1].room:
                least = 2 * segments[-1].capacity if segments else _SMALLEST
                segments.append(_Segment(max(least, len(hashes))))
            room = segments[-1].room
            segments[-1].add(hashes[:room])
            hashes = hashes[room:]


def _bits(hashes: Hashes) -> Hashes:
    found = np.zeros(len(hashes), np.uint64)
    for number in range(_BITS):
        place = (hashes >> np.uint64(6 * number)) & np.uint64(63)
        found |= np.uint64(1) << place
    return found
