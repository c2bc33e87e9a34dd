"""Rate limits."""

from __future__ import annotations

import pytest
from starlette.datastructures import MutableHeaders

from common.http.limits import Limiter, RatePolicy

pytestmark = pytest.mark.unit

POLICY = RatePolicy("requests", 3, 10)


class Hands:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_quota_holds_for_its_window_and_begins_anew_after_it() -> None:
    hands = Hands()
    limiter = Limiter(now=hands)
    taken = [limiter.take(POLICY, "a") for _ in range(5)]
    assert [t.allowed for t in taken] == [True, True, True, False, False]
    assert [t.remaining for t in taken] == [2, 1, 0, 0, 0]
    hands.now += 9.5
    late = limiter.take(POLICY, "a")
    assert (late.allowed, late.reset) == (False, 0.5)
    hands.now += 0.5
    assert limiter.take(POLICY, "a").remaining == 2


def test_subjects_and_policies_are_counted_apart() -> None:
    limiter = Limiter(now=Hands())
    for _ in range(3):
        limiter.take(POLICY, "a")
    assert not limiter.take(POLICY, "a").allowed
    assert limiter.take(POLICY, "b").allowed
    assert limiter.take(RatePolicy("other", 3, 10), "a").allowed


def test_what_is_given_back_may_be_taken_again() -> None:
    limiter = Limiter(now=Hands())
    limiter.give_back(POLICY, "a")
    for _ in range(3):
        limiter.take(POLICY, "a")
    limiter.give_back(POLICY, "a")
    assert limiter.take(POLICY, "a").allowed
    assert not limiter.take(POLICY, "a").allowed


def test_whoever_looks_counts_nothing() -> None:
    hands = Hands()
    limiter = Limiter(now=hands)
    assert limiter.peek(POLICY, "a").remaining == 3
    for _ in range(3):
        assert limiter.peek(POLICY, "a").allowed
        limiter.take(POLICY, "a")
    hands.now += 4
    spent = limiter.peek(POLICY, "a")
    assert (spent.allowed, spent.remaining, spent.reset) == (False, 0, 6)
    hands.now += 6
    assert limiter.peek(POLICY, "a").allowed


def test_only_so_many_windows_are_kept() -> None:
    limiter = Limiter(capacity=2, now=Hands())
    for subject in ("a", "b", "c"):
        limiter.take(POLICY, subject)
    assert limiter.take(POLICY, "c").remaining == 1
    assert limiter.take(POLICY, "a").remaining == 2


def test_an_answer_tells_quota_rest_and_reset() -> None:
    headers = MutableHeaders()
    hands = Hands()
    limiter = Limiter(now=hands)
    limiter.take(POLICY, "a")
    hands.now += 2.5
    limiter.take(POLICY, "a").describe(headers)
    assert dict(headers) == {
        "ratelimit-policy": '"requests";q=3;w=10',
        "ratelimit": '"requests";r=1;t=8',
        "x-ratelimit-limit": "3",
        "x-ratelimit-remaining": "1",
        "x-ratelimit-reset": "8",
    }
