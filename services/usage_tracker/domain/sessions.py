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

PROJECT, USER = 1, 2


def _row(count: str) -> np.dtype[np.void]:
    return np.dtype(
        [
            *(("first_at", "<i8"), ("last_at", "<i8"), ("project_id", "V16"), ("user_id", "V16")),
            *((name, count) for name in COUNTS),
            *((name, "<i8") for name in (*TOKENS, "cost_nano")),
            ("has", "u1"),
        ]
    )


# Times are microseconds since 1970; the bits of ``has`` tell which ids there are.
DELTA = _row("<i8")
# As it is stored: a batch has no more events.
_STORED = _row("<i4")


def has_project(rows: NDArray[np.void]) -> Mask:
    """Where there is a project."""
    found: Mask = (rows["has"] & PROJECT) != 0
    return found


def has_user(rows: NDArray[np.void]) -> Mask:
    """Where there is a user."""
    found: Mask = (rows["has"] & USER) != 0
    return found


class Used(NamedTuple):
    """What an event called."""

    event_type: str
    model: str | None
    mcp_server: str | None
    tool: str | None


_USED = Used._fields


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    deltas: bytes
    session_id: Coded[str | None]
    used: Coded[tuple[str, str | None, str | None, str | None]]


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

    def packed(self, chosen: Integers, rows: bytes) -> bytes:
        """Some of them, whose ``rows`` the caller has cut out."""
        return msgspec.msgpack.encode(
            _Packed(rows, packed_column(self.session_id, chosen), packed_column(self.used, chosen))
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
            "unpriced_events": unpriced,
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


def _deltas(batch: Batch, measures: Mapping[str, Integers | Mask], *, events: int) -> list[OfOrg]:
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
    rows = np.zeros(len(chosen), _STORED)
    times = at[order]
    rows["first_at"] = np.minimum.reduceat(times, starts) if several else times
    rows["last_at"] = np.maximum.reduceat(times, starts) if several else times
    for name, values in measures.items():
        sorted_ = values[order].astype(np.int64, copy=False)
        rows[name] = np.add.reduceat(sorted_, starts) if several else sorted_
    if events:
        rows["events"] = np.diff(starts, append=len(order)) if several else 1
    for name, bit in (("project_id", PROJECT), ("user_id", USER)):
        column = coded[name]
        codes = column.codes[chosen]
        rows[name] = _ids(column.values)[codes]
        rows["has"] |= np.array([0 if v is None else bit for v in column.values], np.uint8)[codes]
    deltas = SessionDeltas(rows, coded["session_id"].take(chosen), _used(batch, chosen))
    return list(_by_org(deltas, coded["org_id"], coded["org_id"].codes[chosen]))


def _by_org(deltas: SessionDeltas, orgs: Column, codes: Integers) -> Iterator[OfOrg]:
    """Of deltas that are sorted by organization."""
    whole, width = deltas.rows.tobytes(), _STORED.itemsize
    starts = _runs(codes).tolist()
    for start, end in zip(starts, [*starts[1:], len(codes)], strict=True):
        packed = deltas.packed(np.arange(start, end), whole[start * width : end * width])
        yield OfOrg(orgs.values[codes[start]], end - start, packed)


def _runs(codes: Integers) -> Integers:
    """Where runs of equal codes begin, of which there is at least one."""
    return np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))


def _used(batch: Batch, chosen: Integers) -> Column:
    columns = [batch.coded[name] for name in _USED]
    key, _ = dense(combined([(column.codes[chosen], len(column.values)) for column in columns]))
    firsts = np.zeros(int(key.max()) + 1, np.int64)
    firsts[key] = chosen
    return Column([Used(*(c.at(index) for c in columns)) for index in firsts.tolist()], key)


def _ids(values: Sequence[bytes | None]) -> NDArray[np.void]:
    return np.frombuffer(b"".join(value or bytes(16) for value in values), "V16")


def unpacked(packed: Sequence[bytes]) -> SessionDeltas:
    """The deltas of one organization, behind each other."""
    if not packed:
        return SessionDeltas(np.zeros(0, DELTA), column_of([]), column_of([]))
    found = [msgspec.msgpack.decode(data, type=_Packed) for data in packed]
    rows = [np.frombuffer(one.deltas, _STORED).astype(DELTA) for one in found]
    counts = [len(some) for some in rows]
    used = merged([one.used for one in found], counts)
    return SessionDeltas(
        np.concatenate(rows),
        merged([one.session_id for one in found], counts),
        Column([Used(*value) for value in used.values], used.codes),
    )


def together(several: Sequence[SessionDeltas]) -> SessionDeltas:
    """All of them, behind each other; at least one."""
    return SessionDeltas(
        np.concatenate([some.rows for some in several]),
        joined((some.session_id.values, some.session_id.codes) for some in several),
        joined((some.used.values, some.used.codes) for some in several),
    )
