"""Rows of the ledger as they are copied into its tables."""

from __future__ import annotations

import numpy as np

from common.columns import Column, Integers
from common.database.copying import CopyRows
from services.usage_tracker.domain.columns import ABSENT, Batch
from services.usage_tracker.domain.pricing import Cost
from services.usage_tracker.domain.settling import Settled
from services.usage_tracker.domain.windows import MINUTE_US, SUMS, TOKENS, Deltas

# Columns of one width first, side by side: so they are laid out at once.
_EVENT_IDS = ("project_id", "team_id", "user_id", "api_key_id")
_EVENT_TEXTS = (*("session_id", "request_id", "decision_id", "user_ref", "metadata"),)
# Of few values, which often go together.
_EVENT_KINDS = (
    *("event_type", "status", "model", "provider", "service_tier", "mcp_server", "tool"),
    "error_type",
)
_EVENT_NUMBERS = ("latency_us", "client_cost_nano")
EVENT_COLUMNS = (
    *("part", "received_at", "at", "event_id", "org_id"),
    *TOKENS,
    *_EVENT_IDS,
    *_EVENT_NUMBERS,
    *Cost._fields,
    "cost_nano",
    "price_version",
    *_EVENT_KINDS,
    *_EVENT_TEXTS,
)
ID_COLUMNS = ("part", "org_id", "event_id", "received_at", "digest")
IDS_OF_DELTA = ("project_id", "team_id", "user_id", "api_key_id")
TEXTS_OF_DELTA = ("model", "provider", "event_type", "status", "mcp_server", "tool")
SKETCH = ("latency_bins", "latency_counts")
DELTA_COLUMNS = (
    *("part", "seq", "start"),
    *SUMS,
    "org_id",
    *IDS_OF_DELTA,
    *TEXTS_OF_DELTA,
    "reason",
    *SKETCH,
)


def id_rows(part: int, accepted: Batch) -> bytes:
    """For ``ID_COLUMNS``."""
    rows = CopyRows(accepted.count, len(ID_COLUMNS))
    rows.int2(part).raw(accepted.organizations).raw(accepted.ids["event_id"])
    return rows.timestamp(accepted.numbers["received_at"]).raw(accepted.ids["digest"]).finish()


def event_rows(part: int, settled: Settled) -> bytes:
    """For ``EVENT_COLUMNS``."""
    batch, costs = settled.accepted, settled.costs
    rows = CopyRows(batch.count, len(EVENT_COLUMNS))
    rows.int2(part).timestamp(batch.numbers["received_at"]).timestamp(batch.numbers["at"])
    rows.raw(batch.ids["event_id"]).raw(batch.organizations)
    for name in TOKENS:
        rows.int8(batch.numbers[name])
    for name in _EVENT_IDS:
        _coded(rows, batch.coded[name])
    for name in _EVENT_NUMBERS:
        rows.int8(batch.numbers[name], batch.numbers[name] != ABSENT)
    for nanos in (*costs.nanos.T, costs.nanos.sum(axis=1)):
        rows.int8(nanos, costs.priced)
    _coded(rows, costs.versions, *(batch.coded[name] for name in _EVENT_KINDS))
    for name in _EVENT_TEXTS:
        _coded(rows, batch.coded[name])
    return rows.finish()


def delta_rows(part: int, numbers: Integers, deltas: Deltas, reason: str | None = None) -> bytes:
    """For ``DELTA_COLUMNS``."""
    rows = CopyRows(len(deltas), len(DELTA_COLUMNS))
    rows.int2(part).int8(numbers)
    rows.timestamp(deltas.minutes * MINUTE_US)
    for name in SUMS:
        rows.int8(deltas.sums[name])
    for name in ("org_id", *IDS_OF_DELTA):
        _coded(rows, deltas.dimensions[name])
    why = Column([reason], np.zeros(len(deltas), np.int64))
    _coded(rows, *(deltas.dimensions[name] for name in TEXTS_OF_DELTA), why)
    sketches = deltas.sketches
    rows.int4_arrays(sketches.bins, sketches.ends).int8_arrays(sketches.counts, sketches.ends)
    return rows.finish()


def _coded(rows: CopyRows, *columns: Column) -> None:
    rows.coded(*((column.encoded(), column.codes) for column in columns))
