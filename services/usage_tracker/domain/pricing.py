"""What tokens cost: the prices of genai-prices as integers, chosen by the event's own time.

Money is integer nano-dollars (1e-9 USD). A price is nano-dollars for a million tokens; the cost of
a kind of token is rounded half-even by itself, and an event's cost is the sum of its kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from genai_prices.data import providers as bundled
from genai_prices.data_snapshot import DataSnapshot
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from common.columns import Integers, Mask
from services.usage_tracker.domain.judging import moment

NANO = 1_000_000_000
PER = 1_000_000
LARGEST = 2**63 - 1
_MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
_OUTPUT = 1
_REMEMBERED = 10_000

# Where the data say what a kind of token costs, the most specific first. The plain price of a
# cache write is that of one kept for 5 minutes; an hour has a price of its own or none.
_KINDS = (
    ("input_mtok",),
    ("output_mtok",),
    ("cache_read_mtok",),
    ("cache_write_5m_mtok", "cache_write_mtok"),
    ("cache_write_1h_mtok",),
)
# Where one of these belongs to a price, an event does not say enough to be priced.
_UNSAID = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok")
_STANDARD = (None, "standard")
_ALSO_STANDARD = "default"


def usd(nano: int) -> str:
    """Nano-dollars as a decimal with nine digits after the point."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{part:09d}"


class Tokens(NamedTuple):
    """Tokens by kind; ``input`` is the uncached input only."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0

    @property
    def prompt(self) -> int:
        """The length of the whole prompt, which decides the step of a price."""
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h


class Cost(NamedTuple):
    """Nano-dollars by kind; both kinds of cache writes in one."""

    input_nano: int
    output_nano: int
    cache_read_nano: int
    cache_write_nano: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True, slots=True)
class Rate:
    """Nano-dollars for a million tokens; ``steps`` are (prompt longer than, rate), descending."""

    base: int
    steps: tuple[tuple[int, int], ...] = ()

    def at(self, prompt: int) -> int:
        for start, rate in self.steps:
            if prompt > start:
                return rate
        return self.base

    def each(self, prompts: Integers) -> Integers:
        """``at`` of many prompts."""
        found = np.full(prompts.shape, self.base, np.int64)
        for start, rate in reversed(self.steps):
            found[prompts > start] = rate
        return found


@dataclass(frozen=True, slots=True)
class Price:
    """What one model costs in one period and service tier.

    ``version`` tells where that stands; ``rates`` are by kind in the order of ``Tokens``, None
    where a kind has no price.
    """

    version: str
    rates: tuple[Rate | None, ...]

    def cost(self, tokens: Tokens) -> Cost | None:
        """None where tokens of a kind have no price, or the cost is beyond any real one."""
        nanos = []
        for rate, count in zip(self.rates, tokens, strict=True):
            if count == 0:
                nanos.append(0)
            elif rate is None:
                return None
            else:
                nanos.append(half_even(count * rate.at(tokens.prompt), PER))
        cost = Cost(nanos[0], nanos[1], nanos[2], nanos[3] + nanos[4])
        return cost if cost.total <= LARGEST else None

    def costs(self, tokens: Integers) -> tuple[Integers, Mask]:
        """``cost`` of many events.

        Args:
            tokens: of shape (events, 5), by kind in the order of ``Tokens``.

        Returns:
            Nano-dollars of shape (events, 4) in the order of ``Cost``, and which events have them.
        """
        prompts = tokens.sum(axis=1) - tokens[:, _OUTPUT]
        nanos = np.zeros(tokens.shape, np.int64)
        priced = np.ones(len(tokens), np.bool_)
        large = np.zeros(len(tokens), np.bool_)
        for kind, rate in enumerate(self.rates):
            counts = tokens[:, kind]
            if rate is None:
                priced &= counts == 0
                continue
            rates = rate.each(prompts)
            large |= counts > LARGEST // np.maximum(rates, 1)
            nanos[:, kind] = _half_even_each(counts * rates)
        found = np.concatenate([nanos[:, :3], nanos[:, 3:4] + nanos[:, 4:5]], axis=1)
        for index in np.flatnonzero(large).tolist():
            cost = self.cost(Tokens(*tokens[index].tolist()))
            priced[index] = cost is not None
            found[index] = cost or 0
        found[~priced] = 0
        return found, priced


def _half_even_each(products: Integers) -> Integers:
    """``half_even`` of many products by ``PER``, none negative."""
    quotients, rests = np.divmod(products, PER)
    twice = 2 * rests
    up: Mask = (twice > PER) | ((twice == PER) & (quotients % 2 == 1))
    return np.add(quotients, up)


def half_even(numerator: int, denominator: int) -> int:
    """The quotient of two integers, the second positive, rounded to the nearest, halves to even."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return quotient + (twice > denominator or (twice == denominator and quotient % 2 == 1))


class PriceBook:
    """Finds prices and keeps what it has found; threads may share it.

    Args:
        providers: the price data.
        source: names the data and their version.
    """

    def __init__(self, providers: Sequence[Provider], source: str) -> None:
        self._providers = list(providers)
        self._source = source
        self._tariffs: dict[tuple[str, str | None, str | None], _Tariff | None] = {}

    @classmethod
    def bundled(cls) -> PriceBook:
        """The data that came with the installed genai-prices."""
        return cls(bundled, f"genai-prices/{version('genai-prices')}")

    def price(
        self, model: str, provider: str | None, service_tier: str | None, at: int
    ) -> Price | None:
        """The price in force at a time (microseconds since 1970); None where there is none."""
        tariff = self._tariff(model, provider, service_tier)
        return tariff.price(at) if tariff is not None else None

    def prices(
        self, model: str, provider: str | None, service_tier: str | None, at: Integers
    ) -> Iterator[tuple[Price | None, Integers]]:
        """The prices in force at some times, each with the indices of its times."""
        tariff = self._tariff(model, provider, service_tier)
        if tariff is None:
            yield None, np.arange(len(at))
            return
        units = at // tariff.unit_us
        order = np.argsort(units, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(units[order])) + 1):
            yield tariff.price(int(at[chosen[0]])), chosen

    def _tariff(self, model: str, provider: str | None, tier: str | None) -> _Tariff | None:
        key = (model, provider, tier)
        try:
            return self._tariffs[key]
        except KeyError:
            tariff = self._look_up(*key)
        if len(self._tariffs) >= _REMEMBERED:
            self._tariffs.clear()
        self._tariffs[key] = tariff
        return tariff

    def _look_up(self, model: str, provider: str | None, tier: str | None) -> _Tariff | None:
        # A snapshot of its own: the library keeps what it did not find for ever.
        snapshot = DataSnapshot(providers=self._providers, from_auto_update=False)
        try:
            seller, info = snapshot.find_provider_model(model, None, provider, None)
        except LookupError:
            return None
        return _Tariff(self._source, seller, info, tier.lower() if tier else None)


class _Tariff:
    """The prices of one model in one service tier over time."""

    def __init__(self, source: str, seller: Provider, model: ModelInfo, tier: str | None) -> None:
        self._name = f"{source} {seller.id}/{model.id}"
        self._tier = tier
        self._periods = (
            [ConditionalPrice(prices=model.prices)]
            if isinstance(model.prices, ModelPrice)
            else model.prices
        )
        # What a seller asks beside its standard price does not hold for a model of another.
        own = any(model is one for one in seller.models)
        self._variants = (model.price_variants or []) if own else []
        parts: list[ConditionalPrice | PriceVariant] = [*self._periods, *self._variants]
        # Microseconds, counted from midnight, in which no price changes.
        self.unit_us = _unit_us([part.constraint for part in parts])
        self._days: dict[int, Price | None] = {}

    def price(self, at: int) -> Price | None:
        if self.unit_us < DAY_US:
            return self._found(moment(at))
        day = at // DAY_US
        if day not in self._days:
            self._days[day] = self._found(moment(at))
        return self._days[day]

    def _found(self, at: datetime) -> Price | None:
        for period in reversed(self._periods):
            if period.constraint is None or period.constraint.active(at):
                break
        else:
            return None
        prices = dict(vars(period.prices))
        if self._tier not in _STANDARD:
            changed = self._changed(at)
            if not changed and self._tier != _ALSO_STANDARD:
                return None
            prices |= changed
        if any(prices.get(key) is not None for key in _UNSAID):
            return None
        rates = tuple(_rate(prices, keys) for keys in _KINDS)
        if not any(rates):
            return None
        since = _since(period)
        tier = f" {self._tier}" if self._tier not in _STANDARD else ""
        return Price(f"{self._name}{since}{tier}", rates)

    def _changed(self, at: datetime) -> dict[str, object]:
        """What the tier costs otherwise than the standard, by key; the first variant wins."""
        context = {"service_tier": self._tier, "processing": self._tier}
        changed: dict[str, object] = {}
        for variant in self._variants:
            active = variant.constraint is None or variant.constraint.active(at)
            if active and variant.when.items() <= context.items():
                for key, value in vars(variant.prices).items():
                    if value is not None:
                        changed.setdefault(key, value)
        return changed


def _unit_us(constraints: Sequence[object]) -> int:
    times = [
        time
        for constraint in constraints
        if isinstance(constraint, TimeOfDateConstraint)
        for time in (constraint.start_time, constraint.end_time)
    ]
    if not times:
        return DAY_US
    whole = all(time.second == time.microsecond == 0 for time in times)
    return _MINUTE_US if whole else 1


def _rate(prices: Mapping[str, object], keys: Sequence[str]) -> Rate | None:
    value = next((prices[key] for key in keys if prices.get(key) is not None), None)
    if isinstance(value, TieredPrices):
        steps = sorted(((t.start, _nano(t.price)) for t in value.tiers), reverse=True)
        return Rate(_nano(value.base), tuple(steps))
    return Rate(_nano(value)) if isinstance(value, Decimal) else None


def _nano(usd: Decimal) -> int:
    """Integer nano-dollars; a few prices in the data carry the noise of a float beyond them."""
    return int((usd * NANO).to_integral_value(ROUND_HALF_EVEN))


def _since(period: ConditionalPrice) -> str:
    constraint = period.constraint
    if isinstance(constraint, StartDateConstraint):
        return f" since {constraint.start_date.isoformat()}"
    if isinstance(constraint, TimeOfDateConstraint):
        start, end = (t.isoformat("minutes") for t in (constraint.start_time, constraint.end_time))
        return f" from {start} to {end}"
    return ""
