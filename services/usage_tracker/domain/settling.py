"""Settling a batch: which events are new, what they cost, what they add to the windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.columns import Column, Integers, Mask
from services.usage_tracker.domain.columns import Batch
from services.usage_tracker.domain.overrides import Overrides
from services.usage_tracker.domain.pricing import Price, PriceBook
from services.usage_tracker.domain.sessions import OfOrg, session_deltas_of
from services.usage_tracker.domain.windows import TOKENS, Costs, Deltas, deltas_of

Identity = tuple[bytes, bytes]
Unpriceds = dict[tuple[bytes, str, str | None], "Unpriced"]


class First(NamedTuple):
    """The first acceptance of an identity; ``received_at`` is microseconds since 1970."""

    digest: bytes
    received_at: int


@dataclass(slots=True)
class Unpriced:
    """Events of one model of one organization without a price; times as ``Row.at``."""

    events: int
    first_at: int
    last_at: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What a batch comes to. ``costs`` stands beside ``accepted``, event by event.

    ``conflicts`` are ids of events by organization; ``unpriced`` is by (organization, model,
    provider).
    """

    accepted: Batch
    costs: Costs
    deltas: Deltas
    sessions: Sequence[OfOrg]
    duplicates: int
    conflicts: Mapping[bytes, list[bytes]]
    unpriced: Unpriceds

    @property
    def conflict_count(self) -> int:
        return sum(map(len, self.conflicts.values()))

    @property
    def unpriced_count(self) -> int:
        return sum(found.events for found in self.unpriced.values())


def settle(
    batch: Batch,
    known: Mapping[Identity, First],
    prices: PriceBook,
    identity_us: int,
    overrides: Overrides | None = None,
) -> Settled:
    """Tell first acceptances from repeats, price them, and add them up.

    Args:
        batch: in the order of its partition.
        known: the latest acceptance of those identities that were accepted before.
        prices: chosen by each event's own time.
        identity_us: microseconds for which an identity holds from its first acceptance.
        overrides: what organizations pay otherwise.
    """
    repeats = _Repeats(identity_us, dict(known))
    suspects = repeats.suspects(batch)
    refused = [index for index in suspects.tolist() if not repeats.is_first(batch, index)]
    accepted = batch
    if refused:
        accepted = batch.take(np.delete(np.arange(batch.count), refused))
    costs = priced(accepted, prices, overrides)
    return Settled(
        accepted,
        costs,
        deltas_of(accepted, costs),
        session_deltas_of(accepted, costs),
        repeats.duplicates,
        repeats.conflicts,
        unpriced_of(accepted, (~costs.priced & ~accepted.coded["model"].none()).astype(np.int64)),
    )


class _Repeats:
    """Tells repeats one by one, of those events that may be one."""

    def __init__(self, identity_us: int, seen: dict[Identity, First]) -> None:
        self.duplicates = 0
        self.conflicts: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._identity_us = identity_us
        self._seen = seen

    def suspects(self, batch: Batch) -> Integers:
        """The events, in order, that share a hash with another or whose id was seen before."""
        order = np.argsort(batch.hashes)
        same = np.diff(batch.hashes[order].astype(np.uint64)) == 0
        suspect = np.zeros(batch.count, np.bool_)
        suspect[order[1:][same]] = True
        suspect[order[:-1][same]] = True
        if self._seen:
            ids = {event_id for _, event_id in self._seen}
            events = batch.ids["event_id"].view("V16").reshape(-1).tolist()
            suspect |= np.fromiter(map(ids.__contains__, events), np.bool_, batch.count)
        return np.flatnonzero(suspect)

    def is_first(self, batch: Batch, index: int) -> bool:
        org_id: bytes = batch.coded["org_id"].at(index)
        event_id = batch.ids["event_id"][index].tobytes()
        event = First(
            batch.ids["digest"][index].tobytes(), int(batch.numbers["received_at"][index])
        )
        first = self._seen.get((org_id, event_id))
        if first is None or event.received_at - first.received_at >= self._identity_us:
            self._seen[org_id, event_id] = event
            return True
        if first.digest == event.digest:
            self.duplicates += 1
        else:
            self.conflicts[org_id].append(event_id)
        return False


def priced(batch: Batch, book: PriceBook, overrides: Overrides | None = None) -> Costs:
    """What the events cost, each at its own time; those without a model cost nothing."""
    tokens = np.stack([batch.numbers[name] for name in TOKENS], axis=1)
    nanos = np.zeros((batch.count, 4), np.int64)
    found: Mask = np.zeros(batch.count, np.bool_)
    versions: dict[str | None, int] = {None: 0}
    codes = np.zeros(batch.count, np.int64)
    for price, where in _prices(batch, book, overrides):
        if price is not None:
            nanos[where], found[where] = price.costs(tokens[where])
            codes[where] = versions.setdefault(price.version, len(versions))
    codes[~found] = 0
    return Costs(nanos, found, Column(list(versions), codes))


def _prices(
    batch: Batch, book: PriceBook, overrides: Overrides | None
) -> Iterator[tuple[Price | None, Integers]]:
    """The price of every event with a model, each with the indices of its events."""
    names = ("model", "provider", "service_tier")
    model, provider, tier = (batch.coded[name] for name in names)
    key = (model.codes * len(provider.values) + provider.codes) * len(tier.values) + tier.codes
    own = _with_own_prices(batch, overrides)
    if own is not None:
        key = key * (len(own.values) + 1) + own.codes
    for events in _split(key):
        first = int(events[0])
        name = model.at(first)
        if name is None:
            continue
        asked = (name, provider.at(first), tier.at(first), batch.numbers["at"][events])
        org_id = None if own is None else own.at(first)
        found = (
            book.prices(*asked)
            if org_id is None or overrides is None
            else overrides.prices(book, org_id, *asked)
        )
        for price, chosen in found:
            yield price, events[chosen]


def _with_own_prices(batch: Batch, overrides: Overrides | None) -> Column | None:
    """The organization of the events of those that have overrides; None where none of them has."""
    if not overrides:
        return None
    org = batch.coded["org_id"]
    values: list[bytes | None] = [None]
    codes = []
    for org_id in org.values:
        codes.append(len(values) if org_id in overrides else 0)
        if org_id in overrides:
            values.append(org_id)
    return Column(values, np.array(codes, np.int64)[org.codes]) if len(values) > 1 else None


def unpriced_of(batch: Batch, unpriced: Integers) -> Unpriceds:
    """Events by organization, model and provider, counted as often as ``unpriced`` says of each."""
    model, provider, org = (batch.coded[name] for name in ("model", "provider", "org_id"))
    without = np.flatnonzero(unpriced)
    key = (org.codes * len(model.values) + model.codes) * len(provider.values) + provider.codes
    found: Unpriceds = {}
    for chosen in _split(key[without]):
        events = without[chosen]
        first = int(events[0])
        at = batch.numbers["at"][events]
        found[org.at(first), model.at(first), provider.at(first)] = Unpriced(
            int(unpriced[events].sum()), int(at.min()), int(at.max())
        )
    return found


def _split(key: Integers) -> list[Integers]:
    """The indices of each value of the key."""
    if not len(key):
        return []
    order = np.argsort(key, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
