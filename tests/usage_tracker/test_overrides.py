"""What organizations pay otherwise: compared event by event with a plain search of all entries."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from uuid import UUID, uuid4

import numpy as np
import pytest

from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.overrides import Entry, Overrides, discounted
from services.usage_tracker.domain.pricing import Price, PriceBook, Rate, Tokens
from services.usage_tracker.domain.settling import priced
from tests.usage_tracker.conftest import NOW, MakeArrived
from tests.usage_tracker.plain import batch_of

pytestmark = pytest.mark.unit

ORGS = [UUID(int=n) for n in range(1, 5)]
HAIKU, OWN = "claude-haiku-4-5", "a model of our own"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook.bundled()


def entry(seq: int, org_id: UUID = ORGS[0], model: str = OWN, **given: object) -> Entry:
    fields: dict[str, object] = {
        "id": uuid4(),
        "provider": None,
        "service_tier": None,
        "since": microseconds(NOW - DAY),
        "until": None,
        "rates": None,
    }
    return Entry(seq=seq, org_id=org_id, model=model, **{**fields, **given})


def rates(nano: int) -> tuple[Rate | None, ...]:
    """Every kind for another multiple of ``nano``; a long prompt costs twice as much."""
    return tuple(Rate(kind * nano, ((2000, 2 * kind * nano),)) for kind in range(1, 6))


def nano_of(price: Price | None, **tokens: int) -> int:
    assert price is not None
    cost = price.cost(Tokens(**tokens))
    assert cost is not None
    return cost.total


def found(
    overrides: Overrides,
    book: PriceBook,
    at: datetime = NOW,
    model: str = OWN,
    provider: str | None = None,
    tier: str | None = None,
    org_id: UUID = ORGS[0],
) -> Price | None:
    times = np.array([microseconds(at)], np.int64)
    ((price, _),) = overrides.prices(book, org_id.bytes, model, provider, tier, times)
    return price


def test_unit_prices_are_those_of_the_step_that_the_whole_prompt_reaches(book: PriceBook) -> None:
    price = found(Overrides([entry(1, rates=rates(1_000_000_000))]), book)
    assert nano_of(price, input=2000) == 2_000_000
    assert nano_of(price, input=2001) == 4_002_000
    # 1 input at 2, 1999 read from the cache at 6 and 1 written for an hour at 10 dollars.
    assert nano_of(price, input=1, cache_read=1999, cache_write_1h=1) == 2_000 + 11_994_000 + 10_000


def test_a_discount_is_taken_from_the_base_price_of_every_tier(book: PriceBook) -> None:
    overrides = Overrides([entry(1, model=HAIKU, discount_bp=2_500)])
    for tier in (None, "standard", "batch"):
        base = book.price(HAIKU, None, tier, microseconds(NOW))
        if base is not None:
            less = found(overrides, book, model=HAIKU, tier=tier)
            assert 4 * nano_of(less, output=1_000_000) == 3 * nano_of(base, output=1_000_000)
    # 1 dollar for a million: three quarters of 1000 nano-dollars a token.
    assert nano_of(found(overrides, book, model=HAIKU), input=1) == 750


def test_a_discounted_rate_is_rounded_half_even() -> None:
    price = Price("v", (Rate(5), Rate(15), None, None, None))
    assert discounted(price, 5_000, "w").rates[:3] == (Rate(2), Rate(8), None)


def test_a_newer_entry_supersedes_from_its_date_until_its_end(book: PriceBook) -> None:
    old = entry(1, rates=rates(10**9), since=microseconds(NOW - 4 * DAY))
    new = entry(
        2, rates=rates(2 * 10**9), since=microseconds(NOW - DAY), until=microseconds(NOW + DAY)
    )
    overrides = Overrides([new, old])
    wanted = {-5 * DAY: None, -4 * DAY: old, -2 * DAY: old, -DAY: new, DAY: old, 3 * DAY: old}
    for offset, stated in wanted.items():
        price = found(overrides, book, NOW + offset)
        assert (price and price.version) == (stated and f"organization/{stated.id}")
    assert found(overrides, book, NOW + DAY - timedelta(microseconds=1)) == new.priced(None)


def test_what_names_provider_and_tier_goes_before_what_is_newer(book: PriceBook) -> None:
    both = entry(1, provider="us", service_tier="batch", rates=rates(1))
    provider = entry(2, provider="us", rates=rates(2))
    tier = entry(3, service_tier="batch", rates=rates(3))
    plain = entry(4, rates=rates(4))
    overrides = Overrides([both, provider, tier, plain])
    asked = [("us", "Batch"), ("us", None), ("them", "batch"), (None, "default"), (None, "flex")]
    chosen = [found(overrides, book, provider=p, tier=t) for p, t in asked]
    wanted = [both, provider, tier, plain]
    assert [p and p.version for p in chosen] == [*(f"organization/{e.id}" for e in wanted), None]


def test_an_entry_with_neither_price_nor_discount_is_the_base_price_again(book: PriceBook) -> None:
    overrides = Overrides(
        [entry(1, model=HAIKU, rates=rates(1)), entry(2, model=HAIKU, since=microseconds(NOW))]
    )
    assert found(overrides, book, NOW, HAIKU) == book.price(HAIKU, None, None, microseconds(NOW))


@pytest.mark.parametrize("discount_bp", [0, 1_000])
def test_the_version_of_an_event_leads_back_to_its_cost(book: PriceBook, discount_bp: int) -> None:
    own = entry(1, rates=rates(3 * 10**9), discount_bp=discount_bp)
    less = entry(2, model=HAIKU, discount_bp=1_000)
    entries = {str(e.id): e for e in (own, less)}
    overrides = Overrides(entries.values())
    for model in (OWN, HAIKU):
        price = found(overrides, book, model=model)
        assert price is not None
        told = price.version.partition("organization/")
        stated = entries[told[2].split(" ")[0]]
        base = None
        if told[0]:
            source, name = told[0].split(" less ")[0].split(" ")[:2]
            assert source.startswith("genai-prices/")
            seller, _, kind = name.partition("/")
            base = book.price(kind, seller, None, microseconds(NOW))
        assert stated.priced(base) == price


def _plain(
    book: PriceBook, entries: Sequence[Entry], org_id: bytes, row: object, at: int
) -> tuple[int | None, str | None]:
    """Cost and entry by looking at every entry, in fractions."""
    model, provider, tier = row.model, row.provider, row.service_tier
    best = None
    for one in entries:
        standard = tier in (None, "standard", "default")
        tier_fits = one.service_tier == tier if one.service_tier else standard or one.rates is None
        if (
            (one.org_id.bytes, one.model) == (org_id, model)
            and one.provider in (None, provider)
            and tier_fits
            and one.since <= at
            and (one.until is None or at < one.until)
        ):
            rank = (one.provider is not None, one.service_tier is not None, one.seq)
            if best is None or rank > best[0]:
                best = rank, one
    chosen = best[1] if best else None
    base = book.price(model, provider, tier, at)
    own = chosen.rates if chosen and chosen.rates else (base.rates if base else None)
    if own is None:
        return None, None
    tokens = (
        row.input_tokens,
        row.output_tokens,
        row.cache_read_tokens,
        row.cache_write_5m_tokens,
        row.cache_write_1h_tokens,
    )
    prompt = sum(tokens) - tokens[1]
    bp = chosen.discount_bp if chosen else 0
    total = 0
    for rate, count in zip(own, tokens, strict=True):
        if not count:
            continue
        if rate is None:
            return None, None
        reached = [nano for over, nano in rate.steps if prompt > over]
        unit = round(Fraction((reached or [rate.base])[0] * (10_000 - bp), 10_000))
        total += round(Fraction(count * unit, 1_000_000))
    return total, str(chosen.id) if chosen and (chosen.rates or bp) else None


@pytest.mark.parametrize("seed", range(6))
def test_many_events_cost_what_a_plain_search_says(
    book: PriceBook, arrived: MakeArrived, seed: int
) -> None:
    chance = random.Random(seed)
    models = [HAIKU, "claude-sonnet-4-5", OWN]
    providers, tiers = [None, "anthropic", "us"], [None, "standard", "batch"]

    def when() -> int:
        return microseconds(NOW) + chance.randrange(-3, 4) * 86_400_000_000

    entries = []
    for seq in range(1, 30):
        since, until = sorted([when(), when() + 1])
        entries.append(
            entry(
                seq,
                chance.choice(ORGS[:3]),
                chance.choice(models),
                provider=chance.choice(providers),
                service_tier=chance.choice([None, None, "batch", "standard"]),
                since=since,
                until=chance.choice([None, until]),
                rates=chance.choice([None, rates(chance.randrange(1, 10**10))]),
                discount_bp=chance.choice([0, 1, 3_333, 10_000]),
            )
        )
    events = [
        arrived(
            org_id=chance.choice(ORGS),
            model=chance.choice([*models, None]),
            provider=chance.choice(providers),
            service_tier=chance.choice(tiers),
            at=datetime.fromtimestamp(when() / 1e6, UTC),
            input_tokens=chance.randrange(4000),
            cache_read_tokens=chance.choice([0, 1500]),
            cache_write_5m_tokens=chance.choice([0, 7]),
        )
        for _ in range(400)
    ]
    batch = batch_of(events)
    overrides = Overrides(entries[:10]).plus(entries[10:20]).plus(entries[20:])
    assert overrides.last == 29
    costs = priced(batch, book, overrides)
    for index, event in enumerate(events):
        row = event.row
        wanted: tuple[int | None, str | None] = (None, None)
        if row.model is not None:
            wanted = _plain(book, entries, row.org_id, row, row.at)
        version = costs.versions.at(index)
        named = (version or "").partition("organization/")[2].split(" ")[0] or None
        cost = int(costs.nanos[index].sum()) if costs.priced[index] else None
        assert (cost, named) == wanted
    # Of the last organization, which has stated nothing, everything is as it would be alone.
    alone = priced(batch, book)
    others = np.array([event.row.org_id == ORGS[3].bytes for event in events])
    assert (costs.nanos[others] == alone.nanos[others]).all()


def test_as_many_prices_as_there_may_be_make_no_batch_slow(
    book: PriceBook, arrived: MakeArrived
) -> None:
    """Each event of the batch names another provider, and each price has another date."""
    entries = [
        entry(n, since=microseconds(NOW) - 10_000 + n, rates=rates(n * 10**6))
        for n in range(1, 10_001)
    ]
    overrides = Overrides(entries)
    events = [
        arrived(model=OWN, provider=f"p{n}", at=NOW - timedelta(microseconds=n), input_tokens=1_000)
        for n in range(2_000)
    ]
    costs = priced(batch_of(events), book, overrides)
    assert costs.nanos[:, 0].tolist() == [(10_000 - n) * 1_000 for n in range(2_000)]


def test_who_has_stated_a_price_since_another_is_known() -> None:
    overrides = Overrides([entry(1, ORGS[0]), entry(2, ORGS[1])]).plus([entry(3, ORGS[0])])
    ids = [org_id.bytes for org_id in ORGS]
    assert overrides.changed_since(2, ids)
    assert not overrides.changed_since(2, ids[1:])
    assert not overrides.changed_since(3, ids)
