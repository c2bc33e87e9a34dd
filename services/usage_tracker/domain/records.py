"""What travels on ``usage.events`` and ``usage.windows``: columns of one length, as msgpack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import msgspec
import xxhash

from services.usage_tracker.domain.judging import Row

EVENTS_TOPIC = "usage.events"
WINDOWS_TOPIC = "usage.windows"


class Columns(msgspec.Struct, frozen=True):
    """Events as columns, named as the fields of ``Row``."""

    event_id: list[bytes]
    org_id: list[bytes]
    team_id: list[bytes | None]
    at: list[int]
    event_type: list[str]
    project_id: list[bytes | None]
    user_id: list[bytes | None]
    user_ref: list[str | None]
    model: list[str | None]
    provider: list[str | None]
    service_tier: list[str | None]
    mcp_server: list[str | None]
    tool: list[str | None]
    session_id: list[str | None]
    request_id: list[str | None]
    decision_id: list[str | None]
    status: list[str]
    error_type: list[str | None]
    input_tokens: list[int]
    output_tokens: list[int]
    cache_read_tokens: list[int]
    cache_write_5m_tokens: list[int]
    cache_write_1h_tokens: list[int]
    latency_us: list[int | None]
    client_cost_nano: list[int | None]
    metadata: list[bytes | None]
    digest: list[bytes]

    def __post_init__(self) -> None:
        if len({len(column) for column in msgspec.structs.astuple(self)}) != 1:
            raise ValueError("columns of different lengths")


class UsageEvents(msgspec.Struct, frozen=True):
    """One request's events of one partition; ``received_at`` is microseconds since 1970."""

    received_at: int
    api_key_id: bytes | None
    columns: Columns

    def rows(self) -> Iterable[Row]:
        return map(Row._make, zip(*msgspec.structs.astuple(self.columns), strict=True))


def columns_of(rows: Sequence[Row]) -> dict[str, Sequence[object]]:
    """The columns of some rows, at least one, ready to be packed."""
    return dict(zip(Row._fields, zip(*rows, strict=True), strict=True))


def events_data(
    rows: Sequence[Row], received_at: int, api_key_id: bytes | None
) -> dict[str, object]:
    """The data of a record that ``UsageEvents`` reads."""
    return {
        "received_at": received_at,
        "api_key_id": api_key_id,
        "columns": columns_of(rows),
    }


def windows_data(
    source: int | None,
    columns: Mapping[str, Sequence[object]] | None,
    watermarks: Mapping[int, int],
) -> dict[str, object]:
    """The data of a record on ``usage.windows``.

    Args:
        source: the partition of ``usage.events`` whose deltas these are.
        columns: the deltas with their numbers, ascending, in the column ``seq``.
        watermarks: microseconds since 1970 by source.
    """
    numbers = columns["seq"] if columns else None
    return {
        "source": source,
        "first": numbers[0] if numbers else None,
        "last": numbers[-1] if numbers else None,
        "columns": columns,
        "watermarks": dict(watermarks),
    }


def events_partition(org_id: bytes, event_id: bytes, partitions: int) -> int:
    """Where all copies of an event meet."""
    return xxhash.xxh3_64_intdigest(org_id + event_id) % partitions


def windows_partition(org_id: UUID, partitions: int) -> int:
    """Where all windows of an organization are."""
    return xxhash.xxh3_64_intdigest(org_id.bytes) % partitions
