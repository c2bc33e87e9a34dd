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
from heapq import heappop, heappush
from uuid import UUID

import numpy as np

from common.columns import Integers
from services.usage_tracker.domain.pricing import Price, PriceBook, Rate, half_even

WHOLE_BP = 10_000
STANDARD_TIERS = frozenset({None, "standard", "default"})
_FOR_EVER = 2**63 - 1
_OTHER_TIERS = ""


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

    @property
    def tiers(self) -> tuple[str | None, ...]:
        """For which it is meant: one by name, or None for the standard one, "" for all others."""
        if self.service_tier is not None:
            return (self.service_tier,)
        return (None,) if self.rates is not None else (None, _OTHER_TIERS)

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


class _Stated:
    """The entries for one model of an organization."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._meant: defaultdict[tuple[str | None, str | None], list[int]] = defaultdict(list)
        for number, entry in enumerate(entries):
            for tier in entry.tiers:
                self._meant[entry.provider, tier].append(number)
        self._timelines: dict[tuple[str | None, str | None], _Timeline] = {}

    def in_force(self, provider: str | None, tier: str | None, at: Integers) -> Integers:
        """The number of the entry that holds at each time; -1 where none does.

        It takes as long as times there are, however many entries.
        """
        every = None if tier in STANDARD_TIERS else _OTHER_TIERS
        tiers = dict.fromkeys([every, tier])
        found = np.full(len(at), -1, np.int64)
        # What says more of the events goes before what says less.
        for key in [(named, t) for named in dict.fromkeys([None, provider]) for t in tiers]:
            if key in self._meant:
                numbers = self._timeline(key).at(at)
                found = np.where(numbers >= 0, numbers, found)
        return found

    def _timeline(self, key: tuple[str | None, str | None]) -> _Timeline:
        known = self._timelines.get(key)
        if known is None:
            known = self._timelines[key] = _Timeline(self.entries, self._meant[key])
        return known


class _Timeline:
    """Which of some entries is the newest that holds, from when on."""

    def __init__(self, entries: Sequence[Entry], numbers: Sequence[int]) -> None:
        coming = sorted(numbers, key=lambda n: entries[n].since, reverse=True)
        ends = {until for n in numbers if (until := entries[n].until) is not None}
        borders = sorted({entries[n].since for n in numbers} | ends)
        holding: list[tuple[int, int]] = []
        found = [-1]
        for time in borders:
            while coming and entries[coming[-1]].since <= time:
                number = coming.pop()
                heappush(holding, (-entries[number].seq, number))
            while holding and (entries[holding[0][1]].until or _FOR_EVER) <= time:
                heappop(holding)
            found.append(holding[0][1] if holding else -1)
        self._borders = np.array(borders, np.int64)
        self._found = np.array(found, np.int64)

    def at(self, times: Integers) -> Integers:
        return self._found[np.searchsorted(self._borders, times, side="right")]


_NOTHING = _Stated(())


class Overrides:
    """The entries of all organizations up to one; it is never changed.

    Attributes:
        last: the greatest number of an entry; 0 where there is none.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.last = 0
        self._entries: dict[bytes, Mapping[str, _Stated]] = {}
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
                merged[model] = _Stated([*merged.get(model, _NOTHING).entries, *more])
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
        stated = self._entries.get(org_id, {}).get(model, _NOTHING)
        found = stated.in_force(provider, tier, at)
        order = np.argsort(found, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(found[order])) + 1):
            number = int(found[chosen[0]])
            entry = stated.entries[number] if number >= 0 else None
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
