"""Pricing anew what was counted: the differences, event by event and window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.columns import Integers, Mask
from services.usage_tracker.domain.columns import Batch
from services.usage_tracker.domain.overrides import Overrides
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.sessions import OfOrg, session_corrections_of
from services.usage_tracker.domain.settling import Unpriceds, priced, unpriced_of
from services.usage_tracker.domain.windows import Deltas, corrections_of


@dataclass(frozen=True, slots=True)
class Counted:
    """Events with what they cost until now, of shape (events, 4) in the order of ``Cost``.

    What is not ``priced`` has no version.
    """

    batch: Batch
    nanos: Integers
    priced: Mask
    versions: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Repriced:
    """The events whose cost has changed.

    ``more`` is by how many nano-dollars, of shape (events, 4); ``unpriced`` is 1 for one that has
    lost its price, -1 for one that has one now, else 0.
    """

    batch: Batch
    more: Integers
    unpriced: Integers
    old_versions: Sequence[str | None]
    new_versions: Sequence[str | None]
    deltas: Deltas
    sessions: Sequence[OfOrg]
    unpriceds: Unpriceds


def reprice(
    counted: Counted, book: PriceBook, overrides: Overrides, unpriced_only: bool
) -> Repriced:
    """What the events cost now, less what they cost until now.

    An event whose cost stays is left alone: its version still tells how it came to be. So the same
    once more changes nothing.
    """
    costs = priced(counted.batch, book, overrides)
    more = costs.nanos - counted.nanos
    unpriced = counted.priced.astype(np.int64) - costs.priced
    changed = (more != 0).any(axis=1) | (unpriced != 0)
    if unpriced_only:
        changed &= ~counted.priced
    chosen = np.flatnonzero(changed)
    batch, more, unpriced = counted.batch.take(chosen), more[chosen], unpriced[chosen]
    return Repriced(
        batch,
        more,
        unpriced,
        [counted.versions[index] for index in chosen.tolist()],
        [costs.versions.at(index) for index in chosen.tolist()],
        corrections_of(batch, more, unpriced),
        session_corrections_of(batch, more, unpriced),
        unpriced_of(batch, unpriced),
    )
