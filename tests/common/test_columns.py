"""Columns: what is packed is read again, and what does not fit is refused."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.columns import (
    Coded,
    column_of,
    grouped,
    joined,
    merged,
    numbers,
    packed_column,
    packed_numbers,
    ranges,
)

pytestmark = pytest.mark.unit

INTEGERS = st.one_of(
    *(st.integers(-(2**bits), 2**bits - 1) for bits in (0, 7, 15, 31, 63)),
    st.sampled_from([2**bits - off for bits in (7, 15, 31) for off in (0, 1)]),
    st.sampled_from([-(2**bits) - off for bits in (7, 15, 31) for off in (0, 1)]),
)
VALUES = st.lists(st.sampled_from(["a", "b", "", None, "é"]), min_size=1, max_size=40)


@given(st.lists(INTEGERS, max_size=20))
def test_numbers_are_read_as_they_were_packed_and_take_the_least_bytes(values: list[int]) -> None:
    packed = packed_numbers(np.array(values, np.int64))
    assert numbers(packed, len(values)).tolist() == values
    widths = [size for size in (1, 2, 4, 8) if len(packed) == size * len(values)]
    if any(values):
        smaller = [size for size in (1, 2, 4) if size < widths[0]]
        for size in smaller:
            assert not all(-(2 ** (8 * size - 1)) <= v < 2 ** (8 * size - 1) for v in values)


@pytest.mark.parametrize(("column", "count"), [(b"1", 0), (b"123", 2), (b"12", 3), (b"1" * 48, 3)])
def test_numbers_of_more_or_fewer_rows_are_refused(column: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="different lengths"):
        numbers(column, count)


@given(VALUES, st.data())
def test_some_rows_of_a_column_travel_as_they_are(
    values: list[str | None], data: st.DataObject
) -> None:
    places = st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=60)
    chosen = data.draw(places)
    packed = packed_column(column_of(values), np.array(chosen))
    assert merged([packed], [len(chosen)]).listed() == [values[place] for place in chosen]


def test_more_values_than_codes_can_tell_apart_travel_one_by_one() -> None:
    values = [str(n) for n in range(70_000)] * 3
    packed = packed_column(column_of(values), np.arange(len(values)))
    assert not packed.codes
    assert merged([packed], [len(values)]).listed() == values


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_columns_behind_each_other_hold_no_value_twice(parts: list[list[str | None]]) -> None:
    columns = [column_of(part) for part in parts]
    found = joined((column.values, column.codes) for column in columns)
    assert found.listed() == [value for part in parts for value in part]
    assert len(set(found.values)) == len(found.values)


@pytest.mark.parametrize(
    "coded", [Coded(["a", "b"], b""), Coded(["a"], b"\x00\x00"), Coded(["a"], b"\x01\x00" * 3)]
)
def test_codes_that_do_not_fit_are_refused(coded: Coded[str]) -> None:
    with pytest.raises(ValueError, match=r"lengths|codes"):
        coded.indices(3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60))
@pytest.mark.parametrize("most", [4, 2**40])
def test_rows_are_grouped_by_all_columns(most: int, rows: list[tuple[int, int]]) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    firsts, groups = grouped([(columns[0], most), (columns[1], most), (columns[0], 4)])
    seen = list(dict.fromkeys(rows))
    assert [rows[first] for first in firsts.tolist()] == seen
    assert [seen[group] for group in groups.tolist()] == rows


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=20))
def test_ranges_are_all_places_behind_each_other(spans: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in spans], np.int64)
    stops = starts + np.array([length for _, length in spans], np.int64)
    wanted = [n for start, length in spans for n in range(start, start + length)]
    assert ranges(starts, stops).tolist() == wanted
    assert len(wanted) == list(accumulate(length for _, length in spans))[-1] if spans else True
