"""Events as columns: how they travel, and how a batch of records is worked on."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.columns import Bytes, Coded, Column, Integers, merged, mixed, numbers
from services.usage_tracker.domain.judging import Row

V = TypeVar("V")

ID_BYTES = 16
# Stands for None in a column of numbers, all of which are 0 or more.
ABSENT = -1

_IDS = ("event_id", "digest")
NUMBERS = (
    *("at", "input_tokens", "output_tokens", "cache_read_tokens"),
    *("cache_write_5m_tokens", "cache_write_1h_tokens", "latency_us", "client_cost_nano"),
)
CODED = tuple(name for name in Row._fields if name not in (*_IDS, *NUMBERS))
_MAX_INT4 = 2**31 - 1


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
        coded = {name: merged([getattr(c, name) for c in all_columns], counts) for name in CODED}
        keys: list[Coded[Any]] = [Coded([key], b"") for _, key, _ in records]
        coded["api_key_id"] = merged(keys, counts)
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
