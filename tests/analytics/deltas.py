"""Deltas of ``usage.windows`` as rows, and as they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.columns import Integers, column_of, packed_column, packed_numbers
from services.analytics.domain.measures import DIMENSIONS, SUMS
from services.analytics.domain.windows import Columns, Windows
from services.usage_tracker.domain.windows import SUMS as STORED

Row = Mapping[str, Any]


def packed_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Deltas by the names of their columns, at least one, as they are sent on."""
    everything = np.arange(len(rows))

    def integers(name: str) -> Integers:
        return np.array([row[name] for row in rows], np.int64)

    def cells(name: str) -> Integers:
        return np.array([cell for row in rows for cell in row[name]], np.int64)

    return {
        "seq": integers("seq").astype("<i8").tobytes(),
        **{name: packed_numbers(integers(name)) for name in ("minute", *STORED)},
        **{
            name: packed_column(column_of([row[name] for row in rows]), everything)
            for name in ("org_id", *DIMENSIONS, "reason")
        },
        "latency_bins": packed_numbers(cells("latency_bins")),
        "latency_counts": packed_numbers(cells("latency_counts")),
        "latency_ends": packed_numbers(np.cumsum([len(row["latency_bins"]) for row in rows])),
    }


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
