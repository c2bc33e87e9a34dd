from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from operator import add
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.columns import Column
from services.usage_tracker.domain.judging import moment
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.settling import settle as settle_columns
from services.usage_tracker.domain.windows import (
    GAMMA,
    MINUTE_US,
    SUMS,
    corrections_of,
    latency_bin,
    latency_bins,
)
from tests.usage_tracker.conftest import MakeArrived
from tests.usage_tracker.plain import Arrived, Delta, Settled, Sums, batch_of, plain

pytestmark = pytest.mark.unit

LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook.bundled()


def settle(events: list[Arrived], book: PriceBook) -> Settled:
    return plain(settle_columns(batch_of(events), {}, book, 1))


def value_of(index: int) -> Fraction:
    """The latency that a bin stands for, in microseconds, exactly."""
    gamma = Fraction(GAMMA)
    return 2 * gamma**index / (gamma + 1)


@given(st.integers(2, 2 * 10**12))
def test_a_bin_of_the_sketch_is_within_one_percent_of_every_latency_in_it(us: int) -> None:
    error = abs(value_of(latency_bin(us)) - us) / us

    assert error <= Fraction(1, 100)


@given(st.integers(0, 2 * 10**12), st.integers(0, 2 * 10**12))
def test_a_longer_latency_is_never_in_an_earlier_bin(one: int, two: int) -> None:
    shorter, longer = sorted((one, two))

    assert latency_bin(shorter) <= latency_bin(longer)


@given(st.lists(st.integers(0, 2 * 10**12), min_size=1), st.integers(1, 1400))
def test_many_latencies_fall_into_the_bins_that_each_falls_into(
    latencies: list[int], index: int
) -> None:
    edge = math.floor(GAMMA**index)
    latencies += [max(0, edge + n) for n in (-1, 0, 1)]

    assert latency_bins(np.array(latencies)).tolist() == list(map(latency_bin, latencies))


def test_up_to_a_microsecond_is_bin_zero() -> None:
    assert [latency_bin(us) for us in (0, 1, 2)] == [0, 0, 36]


@given(st.lists(st.integers(0, 10**9), max_size=60), st.integers(0, 60))
def test_sketches_of_parts_add_up_to_the_sketch_of_all(latencies: list[int], cut: int) -> None:
    whole = Counter(map(latency_bin, latencies))
    first = Counter(map(latency_bin, latencies[:cut]))
    second = Counter(map(latency_bin, latencies[cut:]))

    assert first + second == whole


def totals(deltas: list[Delta]) -> dict[Any, tuple[int, ...]]:
    """Sums by everything that is a dimension."""
    found: dict[Any, tuple[int, ...]] = {}
    for delta in deltas:
        key = delta.key._replace(alone=-1)
        before = found.get(key, (0,) * len(Sums._fields))
        found[key] = tuple(map(add, before, delta.sums))
    return found


EVENTS = st.fixed_dictionaries(
    {
        "model": st.sampled_from([None, "claude-haiku-4-5", "acme-13b"]),
        "status": st.sampled_from(["ok", "error"]),
        "tool": st.sampled_from([None, "search"]),
        "user_id": st.sampled_from([None, UUID(int=7).bytes]),
        "latency_us": st.none() | st.integers(0, 10**9),
        "input_tokens": st.integers(0, 10**6) | st.integers(2**52, 2**53),
        "output_tokens": st.integers(0, 10**6),
        "offset": st.integers(0, 300),
    }
)


@given(st.lists(EVENTS, min_size=1, max_size=30), st.integers(0, 30))
def test_however_a_batch_is_cut_its_windows_hold_the_same(
    arrived: Callable[..., Arrived], book: PriceBook, events: list[dict[str, Any]], cut: int
) -> None:

    def made(fields: dict[str, Any]) -> Arrived:
        given = dict(fields)
        at = timedelta(seconds=given.pop("offset"))
        made = arrived(**given)
        return made._replace(
            row=made.row._replace(at=made.row.at + at // timedelta(microseconds=1))
        )

    all_of_them = [made(event) for event in events]
    whole = settle(all_of_them, book)
    parts = [settle(some, book) for some in (all_of_them[:cut], all_of_them[cut:]) if some]

    assert totals(whole.deltas) == totals([d for part in parts for d in part.deltas])
    assert sum(d.sums[0] for d in whole.deltas) == len(events)
    assert all(0 <= n <= LARGEST for d in whole.deltas for n in d.sums)


def test_a_window_is_the_minute_of_the_event_and_every_dimension(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    base = arrived(api_key_id=UUID(int=5))
    variants = [
        {"org_id": UUID(int=2).bytes},
        {"at": base.row.at + MINUTE_US},
        {"model": "gpt-5-mini"},
        {"provider": "anthropic"},
        {"project_id": UUID(int=3).bytes},
        {"team_id": UUID(int=3).bytes},
        {"user_id": UUID(int=3).bytes},
        {"event_type": "mcp_tool"},
        {"status": "error"},
        {"mcp_server": "github"},
        {"tool": "search"},
    ]

    def changed(**change: Any) -> Arrived:
        return base._replace(row=base.row._replace(event_id=uuid4().bytes, **change))

    events = [base, *(changed(**change) for change in variants), changed(), changed()]
    deltas = settle([*events, changed()._replace(api_key_id=None)], book).deltas

    assert len(deltas) == len(variants) + 2
    assert deltas[0].sums[0] == 3
    assert moment(deltas[0].key.minute * MINUTE_US).second == 0


def test_what_is_no_dimension_opens_no_window(
    arrived: Callable[..., Arrived], book: PriceBook
) -> None:
    row = arrived().row
    same = [
        arrived()._replace(row=row._replace(**{"event_id": uuid4().bytes, **change}))
        for change in (
            {"event_id": b"x" * 16},
            {"at": row.at + 1},
            {"session_id": "s"},
            {"error_type": "timeout"},
            {"service_tier": "batch"},
            {"latency_us": 5},
        )
    ]

    assert len(settle(same, book).deltas) == 1


def test_what_adds_up_is_what_the_plain_formulation_adds_up() -> None:
    assert Sums._fields == SUMS
    assert Column([None, "a"], np.array([1, 0])).none().tolist() == [False, True]


def test_kinds_of_a_correction_that_cancel_out_stay_exact_however_large(
    arrived: MakeArrived,
) -> None:
    batch = batch_of([arrived() for _ in range(5)])
    more = np.array([[2**62, -(2**62), 0, 1]] * 5, np.int64)
    deltas = corrections_of(batch, more, np.zeros(5, np.int64))
    sums = {name: sum(values.tolist()) for name, values in deltas.sums.items() if values.any()}
    assert sums == {
        "input_nano": 5 * 2**62,
        "output_nano": -5 * 2**62,
        "cache_write_nano": 5,
        "cost_nano": 5,
    }
