"""Events as columns: how they travel, and how a batch of records is worked on."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.usage_tracker.domain.judging import Row

V = TypeVar("V")
Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

ID_BYTES = 16
# Stands for None in a column of numbers, all of which are 0 or more.
ABSENT = -1

_IDS = ("event_id", "digest")
NUMBERS = (
    *("at", "input_tokens", "output_tokens", "cache_read_tokens"),
    *("cache_write_5m_tokens", "cache_write_1h_tokens", "latency_us", "client_cost_nano"),
)
CODED = tuple(name for name in Row._fields if name not in (*_IDS, *NUMBERS))
_CODE = np.dtype("<u2")
_INT4, _INT8 = np.dtype("<i4"), np.dtype("<i8")
_MAX_INT4 = 2**31 - 1


class Coded(msgspec.Struct, Generic[V], frozen=True, array_like=True):
    """A column by its values and, for each event, a little-endian uint16 that chooses one.

    Without codes, one value is that of all events, and more are those of one event each.
    """

    values: list[V]
    codes: bytes

    def indices(self, count: int) -> Integers:
        """Where in ``values`` the value of each of so many events is.

        Raises:
            ValueError: there are codes for more or fewer events, or for no value.
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


class Columns(msgspec.Struct, frozen=True):
    """Events of one record, named as the fields of ``Row``.

    Ids and digests are 16 bytes each, numbers little-endian int32 or int64 (nothing where all are
    0), -1 where there is none.
    """

    event_id: bytes
    org_id: Coded[bytes]
    team_id: Coded[bytes | None]
    at: bytes
    event_type: Coded[str]
    project_id: Coded[bytes | None]
    user_id: Coded[bytes | None]
    user_ref: Coded[str | None]
    model: Coded[str | None]
    provider: Coded[str | None]
    service_tier: Coded[str | None]
    mcp_server: Coded[str | None]
    tool: Coded[str | None]
    session_id: Coded[str | None]
    request_id: Coded[str | None]
    decision_id: Coded[str | None]
    status: Coded[str]
    error_type: Coded[str | None]
    input_tokens: bytes
    output_tokens: bytes
    cache_read_tokens: bytes
    cache_write_5m_tokens: bytes
    cache_write_1h_tokens: bytes
    latency_us: bytes
    client_cost_nano: bytes
    metadata: Coded[bytes | None]
    digest: bytes

    def __post_init__(self) -> None:
        count = self.count
        if count * ID_BYTES != len(self.event_id) or len(self.digest) != len(self.event_id):
            raise ValueError("columns of different lengths")
        for name in NUMBERS:
            numbers(getattr(self, name), count)
        for name in CODED:
            getattr(self, name).indices(count)

    @property
    def count(self) -> int:
        return len(self.event_id) // ID_BYTES


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a batch: event n holds ``values[codes[n]]``; no value stands there twice."""

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


@dataclass(frozen=True)
class Batch:
    """Events of many records, in the order of their partition.

    ``ids`` are by the names of ``event_id`` and ``digest``, of shape (count, 16); ``numbers`` and
    ``coded`` by the fields of ``Row``, with ``received_at`` and ``api_key_id`` beside them.
    """

    count: int
    ids: Mapping[str, Bytes]
    numbers: Mapping[str, Integers]
    coded: Mapping[str, Column]

    @classmethod
    def of(cls, records: Sequence[tuple[int, bytes | None, Columns]]) -> Batch:
        """Of at least one record: ``received_at``, ``api_key_id`` and the columns of each."""
        counts = [columns.count for _, _, columns in records]
        all_columns = [columns for _, _, columns in records]
        ids = {
            name: np.frombuffer(b"".join(getattr(c, name) for c in all_columns), np.uint8)
            for name in _IDS
        }
        numeric = {
            name: np.concatenate([numbers(getattr(c, name), c.count) for c in all_columns])
            for name in NUMBERS
        }
        numeric["received_at"] = np.repeat(
            np.array([received_at for received_at, _, _ in records], np.int64), counts
        )
        coded = {name: _merged([getattr(c, name) for c in all_columns], counts) for name in CODED}
        keys: list[Coded[Any]] = [Coded([key], b"") for _, key, _ in records]
        coded["api_key_id"] = _merged(keys, counts)
        return cls(
            sum(counts),
            {name: found.reshape(-1, ID_BYTES) for name, found in ids.items()},
            numeric,
            coded,
        )

    def take(self, chosen: Integers) -> Batch:
        """Some of the events, in the order given."""
        return Batch(
            len(chosen),
            {name: column[chosen] for name, column in self.ids.items()},
            {name: column[chosen] for name, column in self.numbers.items()},
            {name: column.take(chosen) for name, column in self.coded.items()},
        )

    @cached_property
    def organizations(self) -> Bytes:
        """The organization of each event, of shape (count, 16)."""
        column = self.coded["org_id"]
        table = np.frombuffer(b"".join(column.values), np.uint8).reshape(-1, ID_BYTES)
        return table[column.codes]

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """A hash of each event's identity: equal identities have equal ones."""
        return identity_hashes(self.organizations, self.ids["event_id"])


def identity_hashes(org_ids: Bytes, event_ids: Bytes) -> NDArray[np.uint64]:
    """Of ids in arrays of shape (count, 16)."""
    words = np.concatenate([org_ids, event_ids], axis=1).view("<u8")
    found = np.full(len(words), 0x9E3779B97F4A7C15, np.uint64)
    for word in words.T:
        found = mixed(found ^ word)
    return found


def mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit depends on every bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def numbers(column: bytes, count: int) -> Integers:
    """The numbers of so many events.

    Raises:
        ValueError: there are more or fewer.
    """
    if not column:
        return np.zeros(count, np.int64)
    kind = _INT4 if len(column) == 4 * count else _INT8
    if len(column) != kind.itemsize * count:
        raise ValueError("columns of different lengths")
    return np.frombuffer(column, kind).astype(np.int64)


def packed_numbers(values: Integers) -> bytes:
    """What ``numbers`` reads."""
    if not values.any():
        return b""
    kind = _INT4 if int(values.max()) <= _MAX_INT4 else _INT8
    return values.astype(kind).tobytes()


def column_of(values: Sequence[Any]) -> Column:
    """A column by the values of its events."""
    known = {value: code for code, value in enumerate(dict.fromkeys(values))}
    if len(known) == 1:
        return Column(list(known), np.zeros(len(values), np.int64))
    codes = np.fromiter(map(known.__getitem__, values), np.int64, len(values))
    return Column(list(known), codes)


def packed_column(column: Column, chosen: Integers) -> Coded[Any]:
    """Some events of a column; values that none of them holds may come along."""
    if len(column.values) == 1:
        return Coded(list(column.values), b"")
    codes = column.codes[chosen]
    if 2 * len(column.values) > len(codes):
        return Coded([column.values[code] for code in codes.tolist()], b"")
    return Coded(list(column.values), codes.astype(_CODE).tobytes())


def columns_of(rows: Sequence[Row]) -> Columns:
    """The columns of some rows, at least one; of a few, without arrays it is faster."""
    by_name: dict[str, Sequence[Any]] = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
    found: dict[str, Any] = {name: b"".join(by_name[name]) for name in _IDS}
    for name in NUMBERS:
        found[name] = _packed([ABSENT if value is None else value for value in by_name[name]])
    for name in CODED:
        found[name] = _coded(by_name[name])
    return Columns(**found)


def _packed(values: Sequence[int]) -> bytes:
    if not any(values):
        return b""
    return struct.pack(f"<{len(values)}{'i' if max(values) <= _MAX_INT4 else 'q'}", *values)


def _coded(values: Sequence[V]) -> Coded[V]:
    known = {value: code for code, value in enumerate(dict.fromkeys(values))}
    if len(known) == 1:
        return Coded(list(known), b"")
    if 2 * len(known) > len(values):
        return Coded(list(values), b"")
    return Coded(list(known), struct.pack(f"<{len(values)}H", *map(known.__getitem__, values)))


def _merged(parts: Sequence[Coded[Any]], counts: Iterable[int]) -> Column:
    known: dict[Any, int] = {}
    codes = []
    for part, count in zip(parts, counts, strict=True):
        there = np.array([known.setdefault(v, len(known)) for v in part.values], np.int64)
        codes.append(there[part.indices(count)])
    return Column(list(known), np.concatenate(codes))
