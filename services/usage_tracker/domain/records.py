"""What travels on ``usage.events`` and ``usage.windows``: columns, as msgpack."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec
import xxhash

from services.usage_tracker.domain.columns import Columns

EVENTS_TOPIC = "usage.events"
WINDOWS_TOPIC = "usage.windows"


class UsageEvents(msgspec.Struct, frozen=True):
    """One request's events of one partition; ``received_at`` is microseconds since 1970.

    ``partitions`` is the number of partitions by which that one was chosen.
    """

    received_at: int
    api_key_id: bytes | None
    columns: Columns
    partitions: int | None = None


def windows_data(
    source: int | None,
    columns: Mapping[str, object] | None,
    watermarks: Mapping[int, int],
    sources: tuple[int, int] | None = None,
) -> dict[str, object]:
    """The data of a record on ``usage.windows``.

    Args:
        source: the partition of ``usage.events`` whose deltas these are.
        columns: the deltas, packed, with their numbers, ascending, in the column ``seq``.
        watermarks: microseconds since 1970 by source.
        sources: generation of the layout, and how many sources there are by it.
    """
    return {
        "source": source,
        "columns": columns,
        "watermarks": dict(watermarks),
        "sources": sources,
    }


def events_partition(org_id: bytes, event_id: bytes, partitions: int) -> int:
    """Where all copies of an event meet."""
    return xxhash.xxh3_64_intdigest(org_id + event_id) % partitions


def windows_partition(org_id: UUID, partitions: int) -> int:
    """Where all windows of an organization are."""
    return xxhash.xxh3_64_intdigest(org_id.bytes) % partitions
