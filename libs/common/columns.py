"""Columns of values: as they travel in packed records, and as numpy works on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

V = TypeVar("V")
Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

_CODE = np.dtype("<u2")
_MOST_CODES = 2**16
# By the bytes of a number.
_INTEGERS = {size: np.dtype(f"<i{size}") for size in (1, 2, 4, 8)}
_MOST_KEYS = 2**62
# So much stays within 64 bits.
_MOST_SUM = 2**62


class Coded(msgspec.Struct, Generic[V], frozen=True, array_like=True):
    """A column by its values and, for each row, a little-endian uint16 that chooses one.

    Without codes, one value is that of all rows, and more are those of one row each.
    """

    values: list[V]
    codes: bytes

    def indices(self, count: int) -> Integers:
        """Where in ``values`` the value of each of so many rows is.

        Raises:
            ValueError: there are codes for more or fewer rows, or for no value.
        """
        if self.codes:
            codes = np.frombuffer(self.codes, _CODE)
            if codes.size != count or int(codes.max()) >= len(self.values):
                raise ValueError("codes that do not fit their column")
            return codes.astype(np.int64)
        if len(self.values) == 1:
            return np.zeros(count, np.int64)
        if len(self.values) != count:
            raise ValueError("columns of different lengths")
        return np.arange(count)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a batch: row n holds ``values[codes[n]]``; no value stands there twice."""

    values: Sequence[Any]
    codes: Integers

    def take(self, chosen: Integers) -> Column:
        return Column(self.values, self.codes[chosen])

    def none(self) -> Mask:
        """Where there is no value."""
        found: Mask = np.array([value is None for value in self.values], np.bool_)[self.codes]
        return found

    def encoded(self) -> list[bytes | None]:
        """The values as bytes; a text as UTF-8."""
        return [value.encode() if isinstance(value, str) else value for value in self.values]

    def at(self, index: int) -> Any:
        return self.values[self.codes[index]]

    def listed(self) -> list[Any]:
        """The value of each row."""
        return [self.values[code] for code in self.codes.tolist()]


def column_of(values: Sequence[Any]) -> Column:
    """A column by the values of its rows."""
    if values and values[0] is values[-1] is None and values.count(None) == len(values):
        return Column([None], np.zeros(len(values), np.int64))
    known = {value: code for code, value in enumerate(dict.fromkeys(values))}
    if len(known) == 1:
        return Column(list(known), np.zeros(len(values), np.int64))
    codes = np.fromiter(map(known.__getitem__, values), np.int64, len(values))
    return Column(list(known), codes)


def joined(columns: Iterable[tuple[Sequence[Any], Integers]]) -> Column:
    """One column of several, behind each other: of each its values and the codes of its rows."""
    known: dict[Any, int] = {}
    codes = []
    for values, some in columns:
        there = np.array([known.setdefault(v, len(known)) for v in values], np.int64)
        codes.append(there[some])
    return Column(list(known), np.concatenate(codes))


def merged(parts: Iterable[Coded[Any]], counts: Iterable[int]) -> Column:
    """One column of several that travelled; each has so many rows."""
    return joined(
        (part.values, part.indices(count)) for part, count in zip(parts, counts, strict=True)
    )


def packed_column(column: Column, chosen: Integers) -> Coded[Any]:
    """Some rows of a column; values that none of them holds may come along."""
    if len(column.values) == 1:
        return Coded(list(column.values), b"")
    codes = column.codes[chosen]
    if 2 * len(column.values) > len(codes) or len(column.values) > _MOST_CODES:
        return Coded([column.values[code] for code in codes.tolist()], b"")
    return Coded(list(column.values), codes.astype(_CODE).tobytes())


def numbers(column: bytes, count: int) -> Integers:
    """The numbers of so many rows.

    Raises:
        ValueError: there are more or fewer.
    """
    if not column:
        return np.zeros(count, np.int64)
    kind = _INTEGERS.get(len(column) // count if count else 0)
    if kind is None or len(column) != kind.itemsize * count:
        raise ValueError("columns of different lengths")
    return np.frombuffer(column, kind).astype(np.int64)


def packed_numbers(values: Integers, least: int = 1) -> bytes:
    """Little-endian integers, nothing where all are 0: what ``numbers`` reads.

    They are as short as fits all, and of so many bytes at least.
    """
    if not values.any():
        return b""
    most = max(int(values.max()), -int(values.min()) - 1)
    size = next(size for size in _INTEGERS if size >= least and most < 2 ** (8 * size - 1))
    return values.astype(_INTEGERS[size]).tobytes()


def dense(values: NDArray[Any]) -> tuple[Integers, int]:
    """A code for each value, and how many there are."""
    distinct, codes = np.unique(values, return_inverse=True)
    return codes, len(distinct)


def combined(columns: Sequence[tuple[Integers, int]]) -> Integers:
    """One key of columns of codes, each with how many codes there are; it sorts as they do."""
    key, most = np.zeros(len(columns[0][0]), np.int64), 1
    for codes, count in columns:
        if count <= 1:
            continue
        if most * count > _MOST_KEYS:
            key, most = dense(key)
        key, most = key * count + codes, most * count
    return key


def grouped(columns: Sequence[tuple[Integers, int]]) -> tuple[Integers, Integers]:
    """Group by columns of codes, each with how many codes there are.

    Returns:
        The first row of each group, ascending, and the group of each row.
    """
    _, firsts, groups = np.unique(combined(columns), return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return firsts[order], ranks[groups]


def alone(sums: Mapping[str, Integers]) -> tuple[Integers, int]:
    """A code of its own for each row that is too large to be added to as many as there are.

    0 for all others; and how many codes there are.
    """
    count = len(next(iter(sums.values())))
    bound = _MOST_SUM // max(1, count)
    large: Mask = np.zeros(count, np.bool_)
    for values in sums.values():
        large |= (values > bound) | (values < -bound)
    return np.where(large, np.cumsum(large), 0), int(large.sum()) + 1


def ranges(starts: Integers, stops: Integers) -> Integers:
    """All places from each start to before its stop, behind each other."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - stops, lengths)


def mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit depends on every bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
