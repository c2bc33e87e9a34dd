"""Ranges, buckets, sketches and money of analytics."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Invalid
from services.analytics.domain.measures import GAMMA, quantile_ms, usd
from services.analytics.domain.ranges import TABLES, check_buckets, pieces, widen

pytestmark = pytest.mark.unit

UNITS = {table: unit for unit, table in TABLES.items()}
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
moments = st.integers(0, 3 * 365 * 86_400_000).map(lambda ms: EPOCH + timedelta(milliseconds=ms))
minutes = moments.map(lambda m: m.replace(second=0, microsecond=0))
granularities = st.sampled_from(["minute", "hour", "day", "month", "all"])


@given(minutes, minutes, granularities)
def test_the_pieces_of_a_range_follow_each_other_and_cover_it(start, end, granularity):
    start, end = sorted((start, end))
    found = pieces(start, end, granularity)
    edges = [(p.start, p.end) for p in found]
    assert all(a < b for a, b in edges)
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    if start < end:
        assert (edges[0][0], edges[-1][1]) == (start, end)
    else:
        assert not edges


@given(minutes, minutes, granularities)
def test_a_piece_of_a_coarse_table_holds_whole_units_only(start, end, granularity):
    start, end = sorted((start, end))
    for piece in pieces(start, end, granularity):
        unit = UNITS[piece.table]
        for moment in (piece.start, piece.end):
            if unit != "minute":
                assert moment.minute == 0
            if unit in {"day", "month"}:
                assert moment.hour == 0
            if unit == "month":
                assert moment.day == 1


def test_a_granularity_never_reads_a_coarser_table():
    start, end = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    assert {p.table for p in pieces(start, end, "hour")} == {"hours"}
    assert {p.table for p in pieces(start, end, "day")} == {"days"}
    assert {p.table for p in pieces(start, end, "all")} == {"months"}


@given(moments, moments)
def test_a_range_is_widened_to_whole_minutes_and_keeps_all_of_itself(start, end):
    start, end = sorted((start, end))
    if start == end:
        end += timedelta(seconds=1)
    low, high = widen(start, end)
    assert low <= start < end <= high
    assert start - low < timedelta(minutes=1)
    assert high - end < timedelta(minutes=1)
    assert low.second == high.second == 0


def test_a_range_that_ends_before_it_starts_names_start():
    with pytest.raises(Invalid) as refused:
        widen(datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))
    assert refused.value.fields[0].pointer == "/start"


@pytest.mark.parametrize("year", [1, 1969, 2200, 9999])
def test_a_year_out_of_range_is_refused_by_the_name_of_its_field(year):
    with pytest.raises(Invalid) as refused:
        widen(datetime(2026, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, 59, tzinfo=UTC))
    assert refused.value.fields[0].pointer == "/end"


def test_minutes_of_a_decade_are_refused_with_the_way_out():
    start = datetime(2016, 1, 1, tzinfo=UTC)
    with pytest.raises(Invalid, match="coarser granularity"):
        check_buckets(start, start + timedelta(days=3650), "minute")
    check_buckets(start, start + timedelta(days=3650), "day")


@given(st.lists(st.integers(2, 3_600_000_000), min_size=1, max_size=200))
def test_a_quantile_of_a_sketch_is_within_one_percent_of_the_nearest_rank(latencies):
    bins: dict[int, int] = {}
    for latency in latencies:
        index = math.ceil(math.log(latency) / math.log(GAMMA))
        bins[index] = bins.get(index, 0) + 1
    exact = sorted(latencies)[math.ceil(0.95 * len(latencies)) - 1] / 1000
    shown = quantile_ms(list(bins.items()), 0.95)
    assert shown is not None
    assert abs(shown - exact) <= exact * 0.01 + 1e-6


def test_a_sketch_of_nothing_has_no_quantile():
    assert quantile_ms([], 0.95) is None


@given(st.integers(-(10**18), 10**18))
def test_money_is_shown_exactly_with_nine_decimals(nano):
    shown = usd(nano)
    assert Decimal(shown) == Decimal(nano) / 10**9
    assert len(shown.split(".")[1]) == 9
