from __future__ import annotations

import numpy as np
import pytest

from common.sketches import Sketches
from services.usage_tracker.consumer.recent import RecentDeltas
from services.usage_tracker.domain.blocks import Numbered
from services.usage_tracker.domain.windows import Deltas

pytestmark = pytest.mark.unit


def numbered(first: int, last: int) -> Numbered:
    nothing = np.zeros(last - first + 1, np.int64)
    return Numbered(first, Deltas(nothing, {}, {}, Sketches(nothing, nothing, nothing)))


def span(found: Numbered) -> tuple[int, int]:
    return found.first, found.last


def after(recent: RecentDeltas, number: int, most: int = 100) -> list[tuple[int, int]]:
    return list(map(span, recent.following(0, number, most)))


def test_what_was_committed_comes_in_the_order_of_its_numbers_until_it_was_sent() -> None:
    recent = RecentDeltas()
    recent.add(0, numbered(1, 3))
    recent.add(0, numbered(4, 4))

    assert after(recent, 0) == [(1, 3), (4, 4)]
    assert after(recent, 0) == [(1, 3), (4, 4)]
    assert after(recent, 4) == []
    assert recent.added.is_set()


def test_nothing_comes_behind_a_gap() -> None:
    recent = RecentDeltas()
    recent.add(0, numbered(5, 6))

    assert after(recent, 3) == []
    assert after(recent, 5) == []

    recent.add(0, numbered(9, 9))
    assert after(recent, 6) == []
    assert after(recent, 8) == [(9, 9)]


def test_only_so_much_is_kept_and_of_other_parts_nothing() -> None:
    recent = RecentDeltas(most=10)
    for first in range(1, 41, 4):
        recent.add(0, numbered(first, first + 3))
    assert after(recent, 0) == []
    assert after(recent, 32) == [(33, 36), (37, 40)]

    recent.keep([1])
    assert after(recent, 32) == []


def test_several_commits_come_together_up_to_so_many_deltas() -> None:
    recent = RecentDeltas()
    for first, last in ((1, 4), (5, 8), (9, 10), (11, 30)):
        recent.add(0, numbered(first, last))

    assert after(recent, 0, 8) == [(1, 4), (5, 8)]
    assert after(recent, 8, 8) == [(9, 10)]
    assert after(recent, 10, 8) == [(11, 30)]
