from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.usage_tracker.domain.identities import Identities

pytestmark = pytest.mark.unit

DAY_US = 86_400_000_000
HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=50)


def hashes(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


@given(st.lists(st.tuples(HASHES, st.integers(0, 9)), max_size=8), HASHES)
def test_what_was_added_is_never_taken_for_new(
    added: list[tuple[list[int], int]], others: list[int]
) -> None:
    known = Identities()
    for values, day in added:
        known.add(hashes(values), np.full(len(values), day * DAY_US))

    for values, _ in added:
        assert known.may_hold(hashes([*others, *values]), 0)[len(others) :].all()


def test_most_of_what_is_new_is_known_to_be_new_however_many_there_are() -> None:
    random = np.random.default_rng(1)
    known = Identities()
    for _ in range(20):
        known.add(random.integers(0, 2**64, 10_000, np.uint64), np.zeros(10_000, np.int64))
    new = random.integers(0, 2**64, 100_000, np.uint64)

    assert known.may_hold(new, 0).mean() < 0.03
    assert known.size < 5 * known.count


def test_whoever_asks_for_a_day_that_was_forgotten_is_told_to_look() -> None:
    known = Identities()
    known.add(hashes([1]), np.array([DAY_US]))
    known.add(hashes([2]), np.array([2 * DAY_US]))
    before = known.size
    known.forget(2 * DAY_US - 1)
    assert known.size == before
    known.forget(2 * DAY_US)

    assert known.size < before
    assert known.may_hold(hashes([1, 2, 3]), 2 * DAY_US).tolist() == [False, True, False]
    assert known.may_hold(hashes([1, 2, 3]), 2 * DAY_US - 1).tolist() == [True, True, True]
