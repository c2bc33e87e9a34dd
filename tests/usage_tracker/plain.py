"""Settling event by event, as plain as can be said: what the columns are compared with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import add, itemgetter
from typing import NamedTuple, cast

from services.usage_tracker.domain.columns import Batch, columns_of
from services.usage_tracker.domain.judging import Row
from services.usage_tracker.domain.pricing import Cost, PriceBook, Tokens
from services.usage_tracker.domain.records import UsageEvents
from services.usage_tracker.domain.settling import First, Identity
from services.usage_tracker.domain.settling import Settled as SettledColumns
from services.usage_tracker.domain.windows import MINUTE_US, latency_bin

_LARGE_TOKENS = 2**40
_LARGE_NANO = 2**45


class Arrived(NamedTuple):
    """An event with what its request adds; ``received_at`` is microseconds since 1970."""

    row: Row
    received_at: int
    api_key_id: bytes | None

    @property
    def identity(self) -> Identity:
        return self.row.org_id, self.row.event_id


class Key(NamedTuple):
    """What a delta is of. Ids are their 16 bytes, ``minute`` counts from 1970.

    ``alone`` tells apart the deltas of single large events; it is no dimension.
    """

    org_id: bytes
    minute: int
    model: str | None
    provider: str | None
    project_id: bytes | None
    team_id: bytes | None
    user_id: bytes | None
    api_key_id: bytes | None
    event_type: str
    status: str
    mcp_server: str | None
    tool: str | None
    alone: int = -1


class Sums(NamedTuple):
    """What adds up in a window; money in nano-dollars."""

    events: int
    errors: int
    unpriced_events: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    input_nano: int
    output_nano: int
    cache_read_nano: int
    cache_write_nano: int
    cost_nano: int
    latency_count: int
    latency_sum_us: int


@dataclass(slots=True)
class Delta:
    """What a batch adds to one window."""

    key: Key
    sums: tuple[int, ...]
    latencies: Counter[int] = field(default_factory=Counter)


class Priced(NamedTuple):
    """An event with its cost; None where it is unpriced or has no model to price."""

    row: Row
    cost: Cost | None
    price_version: str | None

    @property
    def unpriced(self) -> bool:
        return self.row.model is not None and self.cost is None


@dataclass(slots=True)
class Settled:
    """What a batch comes to, event by event."""

    accepted: list[Arrived] = field(default_factory=list)
    priced: list[Priced] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    duplicates: int = 0
    conflicts: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    unpriced: dict[tuple[bytes, str, str | None], tuple[int, int]] = field(default_factory=dict)


def settle(
    arrived: Sequence[Arrived],
    known: Mapping[Identity, First],
    prices: PriceBook,
    identity_us: int,
) -> Settled:
    settled = Settled()
    seen = dict(known)
    for event in arrived:
        first = seen.get(event.identity)
        if first is not None and event.received_at - first.received_at < identity_us:
            if first.digest == event.row.digest:
                settled.duplicates += 1
            else:
                settled.conflicts[event.row.org_id].append(event.row.event_id)
            continue
        seen[event.identity] = First(event.row.digest, event.received_at)
        settled.accepted.append(event)
        settled.priced.append(_price(event.row, prices))
    for priced in settled.priced:
        if priced.unpriced:
            _note_unpriced(settled, priced.row)
    settled.deltas = deltas_of(settled.priced, [a.api_key_id for a in settled.accepted])
    return settled


def _price(row: Row, prices: PriceBook) -> Priced:
    if row.model is None:
        return Priced(row, None, None)
    price = prices.price(row.model, row.provider, row.service_tier, row.at)
    cost = price.cost(_tokens(row)) if price is not None else None
    return Priced(row, cost, price.version if price is not None and cost is not None else None)


def _tokens(row: Row) -> Tokens:
    return Tokens(
        row.input_tokens,
        row.output_tokens,
        row.cache_read_tokens,
        row.cache_write_5m_tokens,
        row.cache_write_1h_tokens,
    )


def _note_unpriced(settled: Settled, row: Row) -> None:
    key = (row.org_id, row.model or "", row.provider)
    events, first_at = settled.unpriced.get(key, (0, row.at))
    settled.unpriced[key] = (events + 1, min(first_at, row.at))


def deltas_of(events: Iterable[Priced], api_key_ids: Sequence[bytes | None]) -> list[Delta]:
    """What the events add, one delta for each window and combination of dimensions.

    Args:
        events: in the order of ``api_key_ids``.
        api_key_ids: the key that each event came with.
    """
    found: dict[Key, Delta] = {}
    for index, (event, api_key_id) in enumerate(zip(events, api_key_ids, strict=True)):
        row = event.row
        sums = _sums(event)
        large = max(sums[3:8]) > _LARGE_TOKENS or sums[12] > _LARGE_NANO
        key = Key(
            row.org_id,
            row.at // MINUTE_US,
            row.model,
            row.provider,
            row.project_id,
            row.team_id,
            row.user_id,
            api_key_id,
            row.event_type,
            row.status,
            row.mcp_server,
            row.tool,
            index if large else -1,
        )
        delta = found.get(key)
        if delta is None:
            delta = found[key] = Delta(key, sums)
        else:
            delta.sums = tuple(map(add, delta.sums, sums))
        if row.latency_us is not None:
            delta.latencies[latency_bin(row.latency_us)] += 1
    return list(found.values())


_FREE = Cost(0, 0, 0, 0)


def _sums(event: Priced) -> Sums:
    row = event.row
    cost = event.cost or _FREE
    timed = row.latency_us is not None
    return Sums(
        1,
        int(row.status == "error"),
        int(event.unpriced),
        row.input_tokens,
        row.output_tokens,
        row.cache_read_tokens,
        row.cache_write_5m_tokens,
        row.cache_write_1h_tokens,
        *cost,
        cost.total,
        int(timed),
        row.latency_us or 0,
    )


def batch_of(arrived: Sequence[Arrived]) -> Batch:
    """The batch of a record for each run of events that came together."""
    runs = [list(run) for _, run in groupby(arrived, key=itemgetter(1, 2))]
    return Batch.of([(run[0][1], run[0][2], columns_of([a.row for a in run])) for run in runs])


def events_of(data: UsageEvents) -> list[Arrived]:
    """The events of a record."""
    return rows_of(Batch.of([(data.received_at, data.api_key_id, data.columns)]))


def rows_of(batch: Batch) -> list[Arrived]:
    """The events of a batch, one by one."""
    columns: dict[str, list[object]] = {
        name: [value.tobytes() for value in column] for name, column in batch.ids.items()
    }
    for name, numbers in batch.numbers.items():
        columns[name] = numbers.tolist()
    for name in ("latency_us", "client_cost_nano"):
        columns[name] = [None if value == -1 else value for value in columns[name]]
    for name, column in batch.coded.items():
        columns[name] = [column.values[code] for code in column.codes]
    rows = map(Row._make, zip(*(columns[name] for name in Row._fields), strict=True))
    return [
        Arrived(row, cast(int, received_at), cast("bytes | None", key))
        for row, received_at, key in zip(
            rows, columns["received_at"], columns["api_key_id"], strict=True
        )
    ]


def plain(settled: SettledColumns) -> Settled:
    """What the columns say, event by event and delta by delta."""
    accepted = rows_of(settled.accepted)
    costs = settled.costs
    priced = [
        Priced(a.row, Cost(*nanos) if found else None, costs.versions.values[code])
        for a, nanos, found, code in zip(
            accepted, costs.nanos.tolist(), costs.priced, costs.versions.codes, strict=True
        )
    ]
    deltas = []
    found = settled.deltas
    starts = [0, *found.sketches.ends.tolist()][:-1]
    for n, (start, end) in enumerate(zip(starts, found.sketches.ends.tolist(), strict=True)):
        dimensions = {name: column.at(n) for name, column in found.dimensions.items()}
        key = Key(minute=int(found.minutes[n]), **dimensions)
        sums = tuple(int(found.sums[name][n]) for name in Sums._fields)
        bins, counts = (
            found.sketches.bins[start:end].tolist(),
            found.sketches.counts[start:end].tolist(),
        )
        deltas.append(Delta(key, sums, Counter(dict(zip(bins, counts, strict=True)))))
    unpriced = {key: (u.events, u.first_at) for key, u in settled.unpriced.items()}
    return Settled(accepted, priced, deltas, settled.duplicates, dict(settled.conflicts), unpriced)
