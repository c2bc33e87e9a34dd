"""What events add to sessions, as deltas that only ever add, packed by organization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.columns import (
    Coded,
    Column,
    Integers,
    Mask,
    column_of,
    combined,
    dense,
    joined,
    merged,
    packed_column,
)
from services.usage_tracker.domain.columns import Batch
from services.usage_tracker.domain.windows import MINUTE_US, Costs

# What adds up in a session; money in nano-dollars.
COUNTS = ("events", "errors", "unpriced_events")
TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
SUMS = (*COUNTS, *TOKENS, "cost_nano")
# A delta beyond it is added to no other one: so those of four million stay within 64 bits.
LARGE = 2**40

_PROJECT, _USER = 1, 2
_BITS = {"project_id": np.uint8(_PROJECT), "user_id": np.uint8(_USER)}


# Times are microseconds since 1970; the bits of ``has`` tell which ids there are.
DELTA = np.dtype(
    [
        *(("first_at", "<i8"), ("last_at", "<i8"), ("project_id", "V16"), ("user_id", "V16")),
        *((name, "<i8") for name in SUMS),
        ("has", "u1"),
    ]
)
# As it is stored, by the bytes of its tokens; ``lasts`` is the time from the first to the last. No
# delta has more events than a batch, or reaches beyond a minute.
_STORED = {
    size: np.dtype(
        [
            *(("first_at", "<i8"), ("lasts", "<i4")),
            *((name, "<i4") for name in COUNTS),
            *((name, f"<i{size}") for name in TOKENS),
            ("cost_nano", "<i8"),
        ]
    )
    for size in (4, 8)
}


def has_project(rows: NDArray[np.void]) -> Mask:
    """Where there is a project."""
    found: Mask = (rows["has"] & _PROJECT) != 0
    return found


def has_user(rows: NDArray[np.void]) -> Mask:
    """Where there is a user."""
    found: Mask = (rows["has"] & _USER) != 0
    return found


class Used(NamedTuple):
    """What an event called."""

    event_type: str
    model: str | None
    mcp_server: str | None
    tool: str | None


_USED = Used._fields
_TEXTS = ("project_id", "user_id", "session_id")


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    bytes_of_tokens: int
    rows: bytes
    project_id: Coded[bytes | None]
    user_id: Coded[bytes | None]
    session_id: Coded[str | None]
    used: Coded[tuple[str, str | None, str | None, str | None]]

    def unpacked_rows(self) -> NDArray[np.void]:
        """Without their ids."""
        stored = np.frombuffer(self.rows, _STORED[self.bytes_of_tokens])
        rows = np.zeros(len(stored), DELTA)
        rows["first_at"] = stored["first_at"]
        rows["last_at"] = stored["first_at"] + stored["lasts"]
        for name in SUMS:
            rows[name] = stored[name]
        return rows


@dataclass(frozen=True, slots=True)
class SessionDeltas:
    """Deltas of sessions of one organization or of several, row by row.

    ``rows`` are of the type ``DELTA``, and ``used`` holds a ``Used`` each.
    """

    rows: NDArray[np.void]
    session_id: Column
    used: Column

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Integers | Mask) -> SessionDeltas:
        return SessionDeltas(
            self.rows[chosen],
            Column(self.session_id.values, self.session_id.codes[chosen]),
            Column(self.used.values, self.used.codes[chosen]),
        )


class OfOrg(NamedTuple):
    """The deltas of an organization, packed."""

    org_id: bytes
    deltas: int
    data: bytes


def session_deltas_of(batch: Batch, costs: Costs) -> list[OfOrg]:
    """What the events add to sessions."""
    unpriced = ~batch.coded["model"].none() & ~costs.priced
    errors = np.array([v == "error" for v in batch.coded["status"].values], np.int64)
    numbers = batch.numbers
    return _deltas(
        batch,
        {
            "errors": errors[batch.coded["status"].codes],
            "unpriced_events": unpriced.astype(np.int64),
            "input_tokens": numbers["input_tokens"],
            "output_tokens": numbers["output_tokens"],
            "cache_read_tokens": numbers["cache_read_tokens"],
            "cache_write_tokens": numbers["cache_write_5m_tokens"]
            + numbers["cache_write_1h_tokens"],
            "cost_nano": costs.nanos.sum(axis=1),
        },
        events=1,
    )


def session_corrections_of(batch: Batch, more: Integers, unpriced: Integers) -> list[OfOrg]:
    """What a change of the events' costs adds to their sessions, signed.

    Args:
        batch: events that were counted before.
        more: nano-dollars by which each has become dearer, of shape (events, 4).
        unpriced: 1 for an event that has lost its price, -1 for one that has one now, else 0.
    """
    return _deltas(batch, {"unpriced_events": unpriced, "cost_nano": more.sum(axis=1)}, events=0)


def _deltas(batch: Batch, measures: Mapping[str, Integers], *, events: int) -> list[OfOrg]:
    """One for each session, minute, user and what was called; all of 0 that is not given.

    Whatever the gap of a session may be, it is not shorter than a minute: so deltas are as good as
    events.
    """
    if not batch.count:
        return []
    coded, at = batch.coded, batch.numbers["at"]
    large = np.zeros(batch.count, np.bool_)
    for name, values in measures.items():
        if name not in COUNTS:
            large |= np.abs(values) > LARGE
    names = ("org_id", "project_id", "session_id", "user_id", *_USED)
    key = combined(
        [
            *((coded[name].codes, len(coded[name].values)) for name in names),
            dense(at // MINUTE_US),
            (np.where(large, np.cumsum(large), 0), int(large.sum()) + 1),
        ]
    )
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = _runs(key)
    several = len(starts) < len(order)
    chosen = order[starts] if several else order
    sums = {
        name: np.add.reduceat(values[order], starts, dtype=np.int64) if several else values[order]
        for name, values in measures.items()
    }
    if events:
        sums["events"] = np.diff(starts, append=len(order))
    times = at[order]
    first = np.minimum.reduceat(times, starts) if several else times
    last = np.maximum.reduceat(times, starts) if several else times
    most = max((int(sums[name].max()) for name in TOKENS if name in sums), default=0)
    size = 4 if most < 2**31 else 8
    rows = np.zeros(len(chosen), _STORED[size])
    rows["first_at"], rows["lasts"] = first, last - first
    for name, values in sums.items():
        rows[name] = values
    columns = (*(coded[name].take(chosen) for name in _TEXTS), _used(batch, chosen))
    return list(_by_org(size, rows, columns, coded["org_id"].take(chosen)))


def _by_org(
    size: int, rows: NDArray[np.void], columns: Sequence[Column], orgs: Column
) -> Iterator[OfOrg]:
    """Of deltas that are sorted by organization."""
    whole, width = rows.tobytes(), rows.itemsize
    starts = _runs(orgs.codes).tolist()
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        chosen = np.arange(start, end)
        coded = (packed_column(column, chosen) for column in columns)
        data = msgspec.msgpack.encode((size, whole[start * width : end * width], *coded))
        yield OfOrg(orgs.at(start), end - start, data)


def _runs(codes: Integers) -> Integers:
    """Where runs of equal codes begin, of which there is at least one."""
    return np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))


def _used(batch: Batch, chosen: Integers) -> Column:
    columns = [batch.coded[name] for name in _USED]
    key, _ = dense(combined([(column.codes[chosen], len(column.values)) for column in columns]))
    firsts = np.zeros(int(key.max()) + 1, np.int64)
    firsts[key] = chosen
    return Column([Used(*(c.at(index) for c in columns)) for index in firsts.tolist()], key)


def unpacked(packed: Sequence[bytes]) -> SessionDeltas:
    """The deltas of one organization, behind each other."""
    if not packed:
        return SessionDeltas(np.zeros(0, DELTA), column_of([]), column_of([]))
    found = [msgspec.msgpack.decode(data, type=_Packed) for data in packed]
    rows = np.concatenate([one.unpacked_rows() for one in found])
    counts = [len(one.rows) // _STORED[one.bytes_of_tokens].itemsize for one in found]
    put_ids(rows, "project_id", merged([one.project_id for one in found], counts))
    put_ids(rows, "user_id", merged([one.user_id for one in found], counts))
    used = merged([one.used for one in found], counts)
    return SessionDeltas(
        rows,
        merged([one.session_id for one in found], counts),
        Column([Used(*value) for value in used.values], used.codes),
    )


def put_ids(rows: NDArray[np.void], name: str, ids: Column) -> None:
    """Fill a field of rows that have no ids yet."""
    there = np.array([value is not None for value in ids.values], np.uint8)
    table = np.frombuffer(b"".join(value or bytes(16) for value in ids.values), "V16")
    rows[name] = table[ids.codes]
    rows["has"] |= there[ids.codes] * _BITS[name]


def together(several: Sequence[SessionDeltas]) -> SessionDeltas:
    """All of them, behind each other; at least one."""
    return SessionDeltas(
        np.concatenate([some.rows for some in several]),
        joined((some.session_id.values, some.session_id.codes) for some in several),
        joined((some.used.values, some.used.codes) for some in several),
    )
