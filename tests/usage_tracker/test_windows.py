from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from operator import add
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.usage_tracker.domain.judging import Row, moment
from services.usage_tracker.domain.pricing import PriceBook
from services.usage_tracker.domain.settling import Arrived, settle
from services.usage_tracker.domain.windows import (
    GAMMA,
    MINUTE_US,
    Delta,
    Priced,
    Sums,
    deltas_of,
    latency_bin,
)

pytestmark = pytest.mark.unit

LARGEST = 2**63 - 1


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


@given(st.lists(EVENTS, max_size=30), st.integers(0, 30))
def test_however_a_batch_is_cut_its_windows_hold_the_same(
    arrived: Callable[..., Arrived], events: list[dict[str, Any]], cut: int
) -> None:
    book = PriceBook.bundled()

    def made(fields: dict[str, Any]) -> Arrived:
        given = dict(fields)
        at = timedelta(seconds=given.pop("offset"))
        made = arrived(**given)
        return made._replace(
            row=made.row._replace(at=made.row.at + at // timedelta(microseconds=1))
        )

    all_of_them = [made(event) for event in events]
    whole = settle(all_of_them, {}, book, 1)
    parts = [settle(some, {}, book, 1) for some in (all_of_them[:cut], all_of_them[cut:])]

    assert totals(whole.deltas) == totals([d for part in parts for d in part.deltas])
    assert sum(d.sums[0] for d in whole.deltas) == len(events)
    assert all(0 <= n <= LARGEST for d in whole.deltas for n in d.sums)


def test_a_window_is_the_minute_of_the_event_and_every_dimension(
    arrived: Callable[..., Arrived],
) -> None:
    key = UUID(int=5)
    base = arrived(api_key_id=key)
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
    rows = [base.row, *(base.row._replace(**change) for change in variants)]
    deltas = deltas_of(
        [Priced(row, None, None) for row in [*rows, rows[0], rows[0]]],
        [key.bytes] * (len(rows) + 1) + [None],
    )

    assert len(deltas) == len(rows) + 1
    assert deltas[0].sums[0] == 2
    assert moment(deltas[0].key.minute * MINUTE_US).second == 0


def test_what_is_no_dimension_opens_no_window(arrived: Callable[..., Arrived]) -> None:
    row = arrived().row
    same = [
        row._replace(**change)
        for change in (
            {"event_id": b"x" * 16},
            {"at": row.at + 1},
            {"session_id": "s"},
            {"error_type": "timeout"},
            {"service_tier": "batch"},
            {"latency_us": 5},
        )
    ]

    assert len(deltas_of([Priced(r, None, None) for r in same], [None] * len(same))) == 1


def test_the_fields_of_a_row_are_the_columns_of_a_record() -> None:
    from services.usage_tracker.domain.records import Columns

    assert Columns.__struct_fields__ == Row._fields
