"""Deltas of ``usage.windows`` as rows, and as they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.windows import Columns, Windows
from services.usage_tracker.domain.windows import packed_rows

Row = Mapping[str, Any]


def columns_of(rows: Sequence[Row]) -> Columns:
    """As usage_tracker packs them."""
    return Columns(**packed_rows(rows))


def windows_of(rows: Sequence[Row], source: int = 0, mark: int | None = None) -> Windows:
    return Windows({} if mark is None else {source: mark}, source, columns_of(rows))


def rows_of(columns: Columns) -> list[dict[str, Any]]:
    """By the names of the numbers, ids and measures; sketches as lists."""
    found: dict[str, list[Any]] = {"seq": columns.numbered.tolist()}
    for name in ("minute", *SUMS):
        found[name] = columns.numbers(name).tolist()
    for name in ("org_id", *DIMENSIONS, "reason"):
        coded = getattr(columns, name)
        found[name] = [coded.values[i] for i in coded.indices(columns.count).tolist()]
    sketches = columns.sketches
    for name, cells in (("latency_bins", sketches.bins), ("latency_counts", sketches.counts)):
        spans = zip(sketches.starts.tolist(), sketches.ends.tolist(), strict=True)
        found[name] = [cells[start:end].tolist() for start, end in spans]
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
