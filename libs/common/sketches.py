"""Sketches of many latencies: bins with counts, which add up exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.columns import Integers, dense, ranges


@dataclass(frozen=True, slots=True)
class Sketches:
    """Of delta n, (bin, count) from where those of the one before end to ``ends[n]``."""

    bins: Integers
    counts: Integers
    ends: Integers

    @property
    def starts(self) -> Integers:
        return np.concatenate([[0], self.ends[:-1]])

    def take(self, chosen: Integers) -> Sketches:
        starts, ends = self.starts[chosen], self.ends[chosen]
        cells = ranges(starts, ends)
        return Sketches(self.bins[cells], self.counts[cells], np.cumsum(ends - starts))

    def added_up(self, groups: Integers, count: int) -> Sketches:
        """One for each of so many groups, with each bin once."""
        owners = groups[np.repeat(np.arange(len(groups)), self.ends - self.starts)]
        bins, width = dense(self.bins)
        cells, where = np.unique(owners * width + bins, return_inverse=True)
        counts = np.zeros(len(cells), np.int64)
        np.add.at(counts, where, self.counts)
        ends = np.searchsorted(cells, (np.arange(count) + 1) * width)
        return Sketches(np.unique(self.bins)[cells % max(width, 1)], counts, ends)


def sketches_of(several: Sequence[Sketches]) -> Sketches:
    """All of them, behind each other."""
    offsets = np.cumsum([0, *(len(sketches.bins) for sketches in several)])
    return Sketches(
        np.concatenate([sketches.bins for sketches in several]),
        np.concatenate([sketches.counts for sketches in several]),
        np.concatenate([s.ends + o for s, o in zip(several, offsets[:-1], strict=True)]),
    )
