"""Settling a batch: which events are new, what they cost, what they add to the windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.usage_tracker.domain.judging import Row
from services.usage_tracker.domain.pricing import PriceBook, Tokens
from services.usage_tracker.domain.windows import Delta, Priced, deltas_of

Identity = tuple[bytes, bytes]


class Arrived(NamedTuple):
    """An event with what its request adds; ``received_at`` is microseconds since 1970."""

    row: Row
    received_at: int
    api_key_id: bytes | None

    @property
    def identity(self) -> Identity:
        return self.row.org_id, self.row.event_id


class First(NamedTuple):
    """The first acceptance of an identity."""

    digest: bytes
    received_at: int


@dataclass(slots=True)
class Unpriced:
    """Events of one model of one organization without a price; ``first_at`` as ``Row.at``."""

    events: int
    first_at: int


@dataclass(slots=True)
class Settled:
    """What a batch comes to. ``priced`` stands beside ``accepted``, event by event.

    ``conflicts`` are ids of events by organization; ``unpriced`` is by (organization, model,
    provider).
    """

    accepted: list[Arrived] = field(default_factory=list)
    priced: list[Priced] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    duplicates: int = 0
    conflicts: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    unpriced: dict[tuple[bytes, str, str | None], Unpriced] = field(default_factory=dict)

    @property
    def conflict_count(self) -> int:
        return sum(map(len, self.conflicts.values()))

    @property
    def unpriced_count(self) -> int:
        return sum(found.events for found in self.unpriced.values())


def settle(
    arrived: Sequence[Arrived],
    known: Mapping[Identity, First],
    prices: PriceBook,
    identity_us: int,
) -> Settled:
    """Tell first acceptances from repeats, price them, and add them up.

    Args:
        arrived: in the order of their partition.
        known: the latest acceptance of those identities that were accepted before.
        prices: chosen by each event's own time.
        identity_us: microseconds for which an identity holds from its first acceptance.
    """
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
    found = settled.unpriced.get(key)
    if found is None:
        settled.unpriced[key] = Unpriced(1, row.at)
    else:
        found.events += 1
        found.first_at = min(found.first_at, row.at)
