"""Which events the load generator sends again."""

from __future__ import annotations

import numpy as np
import pytest

from bench.repeats import Repeats
from bench.traffic import ROW_BYTES

pytestmark = pytest.mark.unit

NONE = np.empty((0, ROW_BYTES), np.uint8)


def rows(count, mark):
    return np.full((count, ROW_BYTES), mark, np.uint8)


def test_nothing_is_sent_again_before_something_was_acknowledged():
    repeats = Repeats(NONE, seed=1)
    assert not len(repeats.choose(1000))
    repeats.keep(rows(1000, 7))
    assert len(repeats.choose(1000)) == 10


def test_half_of_what_is_sent_again_was_stored_before_the_run():
    repeats = Repeats(rows(20, 1), seed=1)
    repeats.keep(rows(1000, 2))
    chosen = repeats.choose(1000)
    assert chosen[:, 0].tolist() == [2] * 5 + [1] * 5


def test_requests_of_one_event_are_sent_again_as_often():
    repeats = Repeats(rows(20, 1), seed=1)
    count = 0
    for _ in range(2000):
        chosen = repeats.choose(1)
        count += len(chosen)
        repeats.keep(rows(1 - len(chosen), 2))
    assert count == pytest.approx(20, abs=2)


def test_what_is_sent_again_is_of_all_the_run():
    repeats = Repeats(NONE, seed=1)
    for mark, requests in ((1, 5000), (2, 1000)):
        for _ in range(requests):
            repeats.keep(rows(1, mark))
    assert set(repeats.choose(100_000)[:, 0].tolist()) == {1, 2}
