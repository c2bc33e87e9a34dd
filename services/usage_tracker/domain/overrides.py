"""What organizations pay otherwise than the base price, from a date on and perhaps until another.

An event's ``price_version`` says how its cost came to be: the price it names gives nano-dollars
for a million tokens by kind; where that steps, the tokens of the whole prompt (stored with the
event) choose the step; an entry's discount makes of each of them ``discounted``; each kind's tokens
times its rate, over a million, rounded half-even, is the kind's cost. It reads

- ``genai-prices/VERSION SELLER/MODEL[ since DATE][ TIER]`` for a base price,
- ``organization/ENTRY[ less N bp]`` for unit prices of the organization's own,
- ``<base price> less N bp by organization/ENTRY`` for a discount.

Entries are never changed, so that the same version is the same formula for ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import numpy as np

from services.usage_tracker.domain.columns import Integers
from services.usage_tracker.domain.pricing import Price, PriceBook, Rate, half_even

WHOLE_BP = 10_000
STANDARD_TIERS = frozenset({None, "standard", "default"})
_FOR_EVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """What an organization pays for a model; times are microseconds since 1970.

    Attributes:
        seq: a newer entry has a greater one.
        service_tier: in lower case.
        rates: by kind in the order of ``Tokens``; None where the base price holds.
    """

    id: UUID
    seq: int
    org_id: UUID
    model: str
    provider: str | None
    service_tier: str | None
    since: int
    until: int | None
    rates: tuple[Rate | None, ...] | None
    discount_bp: int = 0

    def fits(self, provider: str | None, tier: str | None) -> bool:
        """Whether it is meant for events with this provider and tier (in lower case)."""
        if self.provider is not None and self.provider != provider:
            return False
        if self.service_tier is not None:
            return self.service_tier == tier
        return self.rates is None or tier in STANDARD_TIERS

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The greatest of those that hold decides."""
        return self.provider is not None, self.service_tier is not None, self.seq

    def priced(self, base: Price | None) -> Price | None:
        """The price that this entry makes of the base price; None where there is nothing to."""
        name = f"organization/{self.id}"
        if self.rates is not None:
            own = Price(name, self.rates)
            return discounted(own, self.discount_bp, f"{name} less {self.discount_bp} bp")
        if base is None:
            return None
        version = f"{base.version} less {self.discount_bp} bp by {name}"
        return discounted(base, self.discount_bp, version)


def discounted(price: Price, discount_bp: int, version: str) -> Price:
    """The price less so many hundredths of a percent; rates are rounded half-even."""
    if not discount_bp:
        return price
    keep = WHOLE_BP - discount_bp

    def less(nano: int) -> int:
        return half_even(nano * keep, WHOLE_BP)

    return replace(
        price,
        version=version,
        rates=tuple(
            rate and Rate(less(rate.base), tuple((over, less(nano)) for over, nano in rate.steps))
            for rate in price.rates
        ),
    )


class Overrides:
    """The entries of all organizations up to one; it is never changed.

    Attributes:
        last: the greatest number of an entry; 0 where there is none.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.last = 0
        self._entries: dict[bytes, Mapping[str, Sequence[Entry]]] = {}
        self._newest: dict[bytes, int] = {}
        self._add(entries)

    def plus(self, entries: Iterable[Entry]) -> Overrides:
        """With newer entries; what they do not concern is shared."""
        found = Overrides()
        found.last = self.last
        found._entries, found._newest = dict(self._entries), dict(self._newest)
        found._add(entries)
        return found

    def changed_since(self, last: int, org_ids: Iterable[bytes]) -> bool:
        """Whether one of the organizations has stated an entry after the one with a number."""
        return any(self._newest.get(org_id, 0) > last for org_id in org_ids)

    def _add(self, entries: Iterable[Entry]) -> None:
        for org_id, models in _by_org_and_model(entries).items():
            merged = dict(self._entries.get(org_id, {}))
            for model, more in models.items():
                merged[model] = [*merged.get(model, ()), *more]
            self._entries[org_id] = merged
            newest = max(entry.seq for more in models.values() for entry in more)
            self._newest[org_id] = max(newest, self._newest.get(org_id, 0))
            self.last = max(newest, self.last)

    def __contains__(self, org_id: bytes) -> bool:
        return org_id in self._entries

    def __bool__(self) -> bool:
        return bool(self._entries)

    def prices(
        self,
        book: PriceBook,
        org_id: bytes,
        model: str,
        provider: str | None,
        service_tier: str | None,
        at: Integers,
    ) -> Iterator[tuple[Price | None, Integers]]:
        """As ``PriceBook.prices``, of an organization's events."""
        tier = service_tier.lower() if service_tier else None
        entries = [
            entry
            for entry in self._entries.get(org_id, {}).get(model, ())
            if entry.fits(provider, tier)
        ]
        entries.sort(key=lambda entry: entry.rank, reverse=True)
        since = np.array([entry.since for entry in entries], np.int64)
        until = np.array([entry.until or _FOR_EVER for entry in entries], np.int64)
        borders = np.unique(np.concatenate([since, until]))
        spans = np.searchsorted(borders, at, side="right")
        order = np.argsort(spans, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(spans[order])) + 1):
            # No price changes within a span: what holds for one of its events holds for all.
            holding = (since <= at[chosen[0]]) & (at[chosen[0]] < until)
            entry = entries[int(holding.argmax())] if holding.any() else None
            if entry is not None and entry.rates is not None:
                yield entry.priced(None), chosen
                continue
            for price, some in book.prices(model, provider, service_tier, at[chosen]):
                yield (entry.priced(price) if entry is not None else price), chosen[some]


def _by_org_and_model(entries: Iterable[Entry]) -> dict[bytes, dict[str, list[Entry]]]:
    found: defaultdict[bytes, defaultdict[str, list[Entry]]]
    found = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        found[entry.org_id.bytes][entry.model].append(entry)
    return {org_id: dict(models) for org_id, models in found.items()}
