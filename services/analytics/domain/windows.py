"""Windows of usage as they arrive, as they wait, and added up."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import msgspec
import numpy as np
import xxhash

from common.columns import (
    Bytes,
    Coded,
    Column,
    Integers,
    Mask,
    alone,
    dense,
    grouped,
    joined,
    merged,
    mixed,
    numbers,
    packed_column,
    packed_numbers,
)
from common.sketches import Sketches, sketches_of
from services.analytics.domain.measures import DIMENSIONS, SUMS

_ID_BYTES = 16
_SEQ = np.dtype("<i8")
_pack = msgspec.msgpack.Encoder().encode


class Columns(msgspec.Struct, frozen=True):
    """Deltas as packed columns of one length; the shapes are those of the record's contract.

    ``seq`` are little-endian int64, ids 16 bytes, minutes those since 1970. The sketch of delta n
    is in ``latency_bins`` and ``latency_counts`` from where that of the one before ends to
    ``latency_ends[n]``.
    """

    seq: bytes
    org_id: Coded[bytes]
    minute: bytes
    model: Coded[str | None]
    provider: Coded[str | None]
    project_id: Coded[bytes | None]
    team_id: Coded[bytes | None]
    user_id: Coded[bytes | None]
    api_key_id: Coded[bytes | None]
    event_type: Coded[str | None]
    status: Coded[str | None]
    mcp_server: Coded[str | None]
    tool: Coded[str | None]
    events: bytes
    errors: bytes
    unpriced_events: bytes
    input_tokens: bytes
    output_tokens: bytes
    cache_read_tokens: bytes
    cache_write_5m_tokens: bytes
    cache_write_1h_tokens: bytes
    input_nano: bytes
    output_nano: bytes
    cache_read_nano: bytes
    cache_write_nano: bytes
    cost_nano: bytes
    latency_count: bytes
    latency_sum_us: bytes
    latency_bins: bytes
    latency_counts: bytes
    latency_ends: bytes
    reason: Coded[str | None]

    def __post_init__(self) -> None:
        if not self.seq or len(self.seq) % _SEQ.itemsize:
            raise ValueError("a column seq without numbers")
        for name in ("org_id", *DIMENSIONS):
            getattr(self, name).indices(self.count)
        if any(len(org) != _ID_BYTES for org in self.org_id.values):
            raise ValueError("an org_id that is none")
        for name in ("minute", *SUMS):
            self.numbers(name)
        _ = self.sketches

    @property
    def count(self) -> int:
        return len(self.seq) // _SEQ.itemsize

    @property
    def numbered(self) -> Integers:
        """The number of each delta, ascending."""
        return np.frombuffer(self.seq, _SEQ).astype(np.int64)

    @property
    def sketches(self) -> Sketches:
        ends = numbers(self.latency_ends, self.count)
        if (np.diff(ends, prepend=0) < 0).any():
            raise ValueError("sketches that end before they begin")
        cells = int(ends[-1])
        return Sketches(
            numbers(self.latency_bins, cells), numbers(self.latency_counts, cells), ends
        )

    def numbers(self, name: str) -> Integers:
        """What the deltas add to a measure, or their minutes."""
        if name == "cache_write_tokens":
            return self.numbers("cache_write_5m_tokens") + self.numbers("cache_write_1h_tokens")
        return numbers(getattr(self, name), self.count)


class Windows(msgspec.Struct, frozen=True):
    """The data of one record on ``usage.windows``; watermarks are microseconds since 1970.

    ``sources`` says how many sources there are, behind a number that grows when that changes.
    """

    watermarks: dict[int, int]
    source: int | None = None
    columns: Columns | None = None
    sources: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Fresh:
    """Deltas of one source that are not applied yet: ``begin`` to ``end`` of a record's columns."""

    source: int
    columns: Columns
    begin: int
    end: int
    last: int

    def __len__(self) -> int:
        return self.end - self.begin


def fresh(windows: Windows, after: int, until: int | None = None) -> Fresh | None:
    """The deltas of a record whose number is beyond ``after``; None where there is none.

    Args:
        windows: the record.
        after: the last number that was applied.
        until: the last number that may be.
    """
    columns, source = windows.columns, windows.source
    if columns is None or source is None:
        return None
    seq = columns.numbered
    begin = int(np.searchsorted(seq, after, side="right"))
    end = len(seq) if until is None else int(np.searchsorted(seq, until, side="right"))
    return Fresh(source, columns, begin, end, int(seq[end - 1])) if begin < end else None


@dataclass(frozen=True, slots=True)
class Deltas:
    """What is added to windows: the organization, the minute since 1970 and the series of each.

    ``series`` are ids of shape (deltas, 16); ``sums`` are by the names of ``SUMS``.
    """

    orgs: Column
    minutes: Integers
    series: Bytes
    sums: Mapping[str, Integers]
    sketches: Sketches

    def __len__(self) -> int:
        return len(self.minutes)

    def of(self, org_id: UUID, start: int, end: int) -> Deltas:
        """Those of one organization from a minute to before another."""
        mine = np.array([org == org_id.bytes for org in self.orgs.values], np.bool_)
        return self.where(mine[self.orgs.codes] & (self.minutes >= start) & (self.minutes < end))

    def by(self, minutes: int) -> Deltas:
        """The same, each dated at the begin of so many minutes that hold its own."""
        return replace(self, minutes=self.minutes // minutes * minutes)

    def where(self, chosen: Mask) -> Deltas:
        """Some of them."""
        return self.take(np.flatnonzero(chosen))

    def packed(self) -> bytes:
        """As they wait in the database: what ``unpacked`` reads."""
        everything = np.arange(len(self))
        return _pack(
            _Packed(
                packed_column(self.orgs, everything),
                self.series.tobytes(),
                packed_numbers(self.minutes),
                {name: packed_numbers(values) for name, values in self.sums.items()},
                packed_numbers(self.sketches.bins),
                packed_numbers(self.sketches.counts),
                packed_numbers(self.sketches.ends - self.sketches.starts),
            )
        )

    def take(self, chosen: Integers) -> Deltas:
        """Some of them, by their places."""
        return Deltas(
            self.orgs.take(chosen),
            self.minutes[chosen],
            self.series[chosen],
            {name: values[chosen] for name, values in self.sums.items()},
            self.sketches.take(chosen),
        )


class _Packed(msgspec.Struct, frozen=True):
    org_id: Coded[bytes]
    series: bytes
    minute: bytes
    sums: dict[str, bytes]
    latency_bins: bytes
    latency_counts: bytes
    latency_lengths: bytes


_unpack = msgspec.msgpack.Decoder(_Packed).decode


def unpacked(data: bytes) -> Deltas:
    """Deltas that ``Deltas.packed`` has packed."""
    packed = _unpack(data)
    count = len(packed.series) // _ID_BYTES
    ends = np.cumsum(numbers(packed.latency_lengths, count))
    cells = int(ends[-1])
    return Deltas(
        Column(packed.org_id.values, packed.org_id.indices(count)),
        numbers(packed.minute, count),
        np.frombuffer(packed.series, np.uint8).reshape(count, _ID_BYTES),
        {name: numbers(packed.sums.get(name, b""), count) for name in SUMS},
        Sketches(numbers(packed.latency_bins, cells), numbers(packed.latency_counts, cells), ends),
    )


def added_up(several: Sequence[Deltas]) -> Deltas:
    """All of them, at least one; those of one window and series are one where 64 bits hold it."""
    every = _joined(several)
    words = every.series.view("<u8")
    apart, _ = alone(every.sums)
    # What one word of two tells apart stays apart; what it does not, nearly always is the same.
    order = np.lexsort((apart, every.minutes, words[:, 0]))
    begins = np.ones(len(order), np.bool_)
    begins[1:] = False
    for key in (words[:, 0], words[:, 1], every.orgs.codes, every.minutes, apart):
        begins[1:] |= key[order[1:]] != key[order[:-1]]
    groups = np.empty(len(order), np.int64)
    groups[order] = np.cumsum(begins) - 1
    return _summed(every, order[begins], groups)


@dataclass(frozen=True, slots=True)
class Arrived:
    """Deltas that have arrived, added up, and the dimensions of each by their names."""

    deltas: Deltas
    dimensions: Mapping[str, Column]

    def new(self, known: Container[bytes]) -> Iterator[tuple[bytes, int]]:
        """Organization and id of the series that are not known, and a delta that is of each."""
        orgs = np.frombuffer(b"".join(self.deltas.orgs.values), np.uint8).reshape(-1, _ID_BYTES)
        both = np.concatenate([orgs[self.deltas.orgs.codes], self.deltas.series], axis=1)
        ids = both.reshape(-1).view(f"V{2 * _ID_BYTES}").tolist()
        seen: set[bytes] = set()
        for index, series in enumerate(ids):
            if series not in known and series not in seen:
                seen.add(series)
                yield series, index


def arrived(found: Sequence[Fresh]) -> Arrived:
    """What has arrived in at least one record, added up; other dimensions are another series."""
    columns = [one.columns for one in found]
    counts = [some.count for some in columns]
    begins = np.cumsum([0, *counts[:-1]])
    chosen = np.concatenate(
        [np.arange(b + one.begin, b + one.end) for one, b in zip(found, begins, strict=True)]
    )
    coded = {
        name: merged((getattr(some, name) for some in columns), counts).take(chosen)
        for name in ("org_id", *DIMENSIONS)
    }
    minutes = np.concatenate([some.numbers("minute") for some in columns])[chosen]
    sums = {name: np.concatenate([some.numbers(name) for some in columns])[chosen] for name in SUMS}
    sketches = sketches_of([some.sketches for some in columns]).take(chosen)
    keys = [(column.codes, len(column.values)) for column in coded.values()]
    firsts, groups = grouped([*keys, dense(minutes), alone(sums)])
    orgs = coded.pop("org_id")
    series = np.zeros((len(minutes), _ID_BYTES), np.uint8)
    every = Deltas(orgs, minutes, series, sums, sketches)
    deltas = _summed(every, firsts, groups)
    dimensions = {name: column.take(firsts) for name, column in coded.items()}
    ids = _series_ids([deltas.orgs, *dimensions.values()])
    return Arrived(replace(deltas, series=ids), dimensions)


def _series_ids(columns: Sequence[Column]) -> Bytes:
    """Names of 128 bits for the combinations of values in columns, two words of 64 bits each."""
    words = np.zeros((len(columns[0].codes), 2), np.uint64)
    for place, column in enumerate(columns):
        digests = b"".join(xxhash.xxh3_128_digest(_pack(v), seed=place) for v in column.values)
        words = mixed(words ^ np.frombuffer(digests, "<u8").reshape(-1, 2)[column.codes])
    return words.astype("<u8").view(np.uint8)


def _summed(every: Deltas, firsts: Integers, groups: Integers) -> Deltas:
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(len(firsts)))
    return Deltas(
        every.orgs.take(firsts),
        every.minutes[firsts],
        every.series[firsts],
        {name: np.add.reduceat(values[order], starts) for name, values in every.sums.items()},
        every.sketches.added_up(groups, len(firsts)),
    )


def _joined(several: Sequence[Deltas]) -> Deltas:
    return Deltas(
        joined((deltas.orgs.values, deltas.orgs.codes) for deltas in several),
        np.concatenate([deltas.minutes for deltas in several]),
        np.concatenate([deltas.series for deltas in several]),
        {name: np.concatenate([deltas.sums[name] for deltas in several]) for name in SUMS},
        sketches_of([deltas.sketches for deltas in several]),
    )


def partition_of(org_id: UUID, partitions: int) -> int:
    """The partition of ``usage.windows`` that holds the organization."""
    return xxhash.xxh3_64_intdigest(org_id.bytes) % partitions
