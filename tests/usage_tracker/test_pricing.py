from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from genai_prices.data import providers
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
    Usage,
)
from hypothesis import given
from hypothesis import strategies as st

from services.usage_tracker.domain import pricing
from services.usage_tracker.domain.judging import microseconds
from services.usage_tracker.domain.pricing import (
    LARGEST,
    Cost,
    Price,
    PriceBook,
    Rate,
    Tokens,
    half_even,
)

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
COUNTS = st.integers(min_value=0, max_value=2**53)


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook.bundled()


def price_of(
    book: PriceBook,
    model: str,
    provider: str | None = None,
    tier: str | None = None,
    at: datetime = NOW,
) -> Price | None:
    return book.price(model, provider, tier, microseconds(at))


def seller(
    *models: ModelInfo, name: str = "acme", falls_back_on: list[str] | None = None
) -> Provider:
    return Provider(
        id=name,
        name=name,
        api_pattern=f"https://{name}",
        models=list(models),
        model_match=ClauseEquals(equals="bot"),
        fallback_model_providers=falls_back_on,
    )


def model(
    prices: ModelPrice | list[ConditionalPrice], variants: list[PriceVariant] | None = None
) -> ModelInfo:
    return ModelInfo(
        id="bot", match=ClauseEquals(equals="bot"), prices=prices, price_variants=variants
    )


def usd(**prices: str) -> ModelPrice:
    return ModelPrice(**{f"{name}_mtok": Decimal(value) for name, value in prices.items()})


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_a_quotient_is_rounded_to_the_nearest_and_halves_to_even(
    numerator: int, denominator: int
) -> None:
    found = half_even(numerator, denominator)

    # The standard library rounds fractions half to even, exactly.
    assert found == round(Fraction(numerator, denominator))


@given(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS))
def test_each_kind_of_token_is_rounded_by_itself(counts: tuple[int, ...]) -> None:
    rates = tuple(Rate(base) for base in (3, 7, 11, 13, 17))
    tokens = Tokens(*counts)
    cost = Price("v", rates).cost(tokens)
    kinds = [round(Fraction(n * r.base, 1_000_000)) for n, r in zip(tokens, rates, strict=True)]

    assert cost == Cost(kinds[0], kinds[1], kinds[2], kinds[3] + kinds[4])
    assert cost.total == sum(kinds)


def test_halves_of_a_nano_dollar_go_to_the_even_neighbour() -> None:
    rates = (Rate(500_000), *(None,) * 4)

    assert [Price("v", rates).cost(Tokens(n)) for n in (1, 2, 3, 5)] == [
        Cost(0, 0, 0, 0),
        Cost(1, 0, 0, 0),
        Cost(2, 0, 0, 0),
        Cost(2, 0, 0, 0),
    ]


def test_tokens_of_a_kind_without_a_price_leave_the_event_unpriced() -> None:
    price = Price("v", (Rate(1_000_000), Rate(1_000_000), None, None, None))

    assert price.cost(Tokens(1, 1)) == Cost(1, 1, 0, 0)
    for kind in ("cache_read", "cache_write_5m", "cache_write_1h"):
        assert price.cost(Tokens(1, 1)._replace(**{kind: 1})) is None


def test_a_cost_beyond_64_bits_is_no_cost() -> None:
    price = Price("v", (Rate(600_000_000_000), *(None,) * 4))

    assert price.cost(Tokens(2**53)) is None
    assert price.cost(Tokens(LARGEST // 600_000)) is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-haiku-4-5", (1, 5, "0.1", "1.25", 2)),
        ("claude-opus-4-8", (5, 25, "0.5", "6.25", 10)),
        ("claude-sonnet-4-5-20250929", (3, 15, "0.3", "3.75", 6)),
        ("gpt-5-mini", ("0.25", 2, "0.025", None, None)),
        ("gemini-2.5-flash", ("0.3", "2.5", "0.03", None, None)),
    ],
)
def test_prices_are_those_of_the_providers_own_lists(
    book: PriceBook, name: str, expected: tuple[object, ...]
) -> None:
    price = price_of(book, name)

    assert price is not None
    assert [None if r is None else r.base for r in price.rates] == [
        None if usd is None else int(Decimal(str(usd)) * 10**9) for usd in expected
    ]


def test_anthropic_asks_twice_the_input_for_an_hour_and_a_quarter_more_for_five_minutes(
    book: PriceBook,
) -> None:
    (anthropic,) = (p for p in providers if p.id == "anthropic")
    hourly = 0
    for info in anthropic.models:
        for tier in (None, "batch"):
            price = price_of(book, info.id, "anthropic", tier)
            if price is None or price.rates[4] is None:
                continue
            base, _, _, five, hour = price.rates
            assert base is not None
            assert five is not None
            for prompt in (1, 10**6):
                assert hour.at(prompt) == 2 * base.at(prompt)
                # Claude 3 Haiku alone was listed at 1.2 times.
                if info.id != "claude-3-haiku":
                    assert five.at(prompt) * 4 == 5 * base.at(prompt)
            hourly += 1
    assert hourly > 20


def test_a_long_prompt_has_its_price_for_the_whole_request_cached_tokens_included(
    book: PriceBook,
) -> None:
    price = price_of(book, "claude-sonnet-4-5")
    assert price is not None

    assert price.cost(Tokens(100_000, 1000, 100_000)) == Cost(
        300_000_000, 15_000_000, 30_000_000, 0
    )
    assert price.cost(Tokens(100_000, 1000, 100_001)) == Cost(
        600_000_000, 22_500_000, 60_000_600, 0
    )
    assert price.cost(Tokens(0, 0, 200_000, 0, 1)) == Cost(0, 0, 120_000_000, 12_000)


def test_a_price_is_that_of_the_events_own_time(book: PriceBook) -> None:
    before = price_of(book, "claude-opus-4-6", at=datetime(2026, 3, 12, 23, 59, 59, tzinfo=UTC))
    since = price_of(book, "claude-opus-4-6", at=datetime(2026, 3, 13, tzinfo=UTC))
    assert before is not None
    assert since is not None

    assert before.cost(Tokens(300_000)) == Cost(3_000_000_000, 0, 0, 0)
    assert since.cost(Tokens(300_000)) == Cost(1_500_000_000, 0, 0, 0)
    assert before.version != since.version
    assert since.version.endswith("anthropic/claude-opus-4-6 since 2026-03-13")


def test_a_price_by_time_of_day_changes_at_its_minute() -> None:
    night = TimeOfDateConstraint(time(1, tzinfo=UTC), time(4, tzinfo=UTC))
    prices = [
        ConditionalPrice(prices=usd(input="1")),
        ConditionalPrice(night, prices=usd(input="2")),
    ]
    book = PriceBook([seller(model(prices))], "test")
    day = datetime(2026, 11, 21, tzinfo=UTC)
    found = [
        price_of(book, "bot", at=day + offset)
        for offset in (
            timedelta(minutes=59, seconds=59),
            timedelta(hours=1),
            timedelta(hours=4),
        )
    ]

    assert [p and p.cost(Tokens(1)) for p in found] == [
        Cost(1000, 0, 0, 0),
        Cost(2000, 0, 0, 0),
        Cost(1000, 0, 0, 0),
    ]


def test_before_its_first_price_a_model_has_none() -> None:
    start = StartDateConstraint(date(2026, 11, 20))
    book = PriceBook([seller(model([ConditionalPrice(start, prices=usd(input="1"))]))], "test")

    assert price_of(book, "bot", at=datetime(2026, 11, 19, 23, tzinfo=UTC)) is None
    assert price_of(book, "bot", at=datetime(2026, 11, 20, tzinfo=UTC)) is not None


def test_a_service_tier_has_a_price_only_where_the_data_list_one(book: PriceBook) -> None:
    standard = price_of(book, "claude-haiku-4-5")
    batch = price_of(book, "claude-haiku-4-5", tier="batch")
    assert standard is not None
    assert batch is not None

    assert price_of(book, "claude-haiku-4-5", tier="standard") == standard
    assert batch.cost(Tokens(1000, 1000, 1000, 1000, 1000)) == Cost(
        500_000, 2_500_000, 50_000, 625_000 + 1_000_000
    )
    assert price_of(book, "claude-haiku-4-5", tier="priority") is None
    assert price_of(book, "gpt-4.1", tier="priority") is not None
    usual, named = price_of(book, "gpt-4.1"), price_of(book, "gpt-4.1", tier="default")
    assert usual is not None
    assert named is not None
    assert named.rates == usual.rates
    assert price_of(book, "gpt-4.1", tier="no such tier") is None


def test_a_tier_changes_the_kinds_it_names_from_the_day_it_is_offered() -> None:
    batch = PriceVariant(
        {"processing": "batch"}, usd(input="1"), StartDateConstraint(date(2026, 11, 20))
    )
    other = PriceVariant({"processing": "batch", "region": "eu"}, usd(output="9"))
    book = PriceBook([seller(model(usd(input="2", output="3"), [other, batch]))], "test")
    price = price_of(book, "bot", tier="BATCH")

    assert price is not None
    assert price.cost(Tokens(1, 1)) == Cost(1000, 3000, 0, 0)
    assert price_of(book, "bot", tier="batch", at=datetime(2026, 11, 19, tzinfo=UTC)) is None


def test_a_tier_of_one_seller_does_not_hold_at_another_that_resells_the_model() -> None:
    batch = PriceVariant({"processing": "batch"}, usd(input="1"))
    book = PriceBook(
        [
            seller(model(usd(input="2"), [batch]), name="maker"),
            seller(name="reseller", falls_back_on=["maker"]),
        ],
        "test",
    )

    assert price_of(book, "bot", "reseller") is not None
    assert price_of(book, "bot", "reseller", "batch") is None
    assert price_of(book, "bot", "maker", "batch") is not None


def test_the_general_price_of_a_cache_write_holds_for_five_minutes_and_not_for_an_hour() -> None:
    book = PriceBook([seller(model(usd(input="1", cache_write="4")))], "test")
    price = price_of(book, "bot")

    assert price is not None
    assert price.cost(Tokens(cache_write_5m=10)) == Cost(0, 0, 0, 40_000)
    assert price.cost(Tokens(cache_write_1h=10)) is None


@pytest.mark.parametrize(
    "prices",
    [
        ModelPrice(),
        ModelPrice(audio_hours=Decimal(1)),
        ModelPrice(input_mtok=Decimal(1), requests_kcount=Decimal(5)),
        ModelPrice(output_mtok=Decimal(1), output_reasoning_mtok=Decimal(5)),
    ],
)
def test_a_model_whose_price_depends_on_what_no_event_says_has_none(prices: ModelPrice) -> None:
    assert price_of(PriceBook([seller(model(prices))], "test"), "bot") is None


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("acme-support-13b", None),
        ("acme-support-13b", "anthropic"),
        ("claude-haiku-4-5", "nobody"),
        ("", None),
        ("\ud7ff" * 200, None),
    ],
)
def test_a_model_or_seller_that_is_not_listed_has_no_price(
    book: PriceBook, name: str, provider: str | None
) -> None:
    assert price_of(book, name, provider) is None


def test_many_unknown_models_do_not_make_a_known_one_unknown() -> None:
    book = PriceBook([seller(model(usd(input="1")))], "test")
    first = price_of(book, "bot")
    for number in range(10_050):
        assert price_of(book, f"unknown-{number}") is None

    assert price_of(book, "bot") == first


def test_threads_may_share_a_book_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "_REMEMBERED", 1)
    book = PriceBook([], "none")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            names = [str(n % 3) for n in range(5_000)]
            found = set(pool.map(lambda name: book.price(name, None, None, 0), names))
    finally:
        sys.setswitchinterval(before)
    assert found == {None}


def test_a_few_listed_prices_with_the_noise_of_a_float_become_whole_nano_dollars(
    book: PriceBook,
) -> None:
    price = price_of(book, "Qwen/Qwen3-VL-8B-Instruct", "huggingface_together")

    assert price is not None
    assert price.rates[0] == Rate(180_000_000)


def listed() -> list[tuple[Provider, ModelInfo]]:
    return [(p, m) for p in providers for m in p.models]


@given(
    st.sampled_from(listed()),
    st.integers(0, 400_000),
    st.integers(0, 100_000),
    st.integers(0, 400_000),
    st.integers(0, 50_000),
)
def test_wherever_both_have_a_price_ours_is_that_of_genai_prices_to_the_nano(
    found: tuple[Provider, ModelInfo], fresh: int, output: int, read: int, write: int
) -> None:
    """Theirs counts cached tokens as input, is a Decimal, and rounds nowhere."""
    provider, info = found
    price = price_of(PriceBook(providers, "test"), info.id, provider.id)
    tokens = Tokens(fresh, output, read, write)
    cost = price.cost(tokens) if price is not None else None
    if cost is None or not info.is_match(info.id):
        return
    first = next((m for m in provider.models if m.is_match(info.id.lower())), None)
    assert first is not None
    usage = Usage(
        input_tokens=tokens.prompt,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_tokens=write,
    )
    theirs = first.calc_price(usage, provider, genai_request_timestamp=NOW)

    # Four roundings of half a nano-dollar, and the noise of floats in 28 of the listed prices.
    assert abs(theirs.total_price * 10**9 - cost.total) <= Decimal("2.001")


def test_steps_are_taken_by_the_longest_one_that_applies() -> None:
    tiers = TieredPrices(
        base=Decimal(1), tiers=[Tier(start=10, price=Decimal(2)), Tier(start=20, price=Decimal(3))]
    )
    book = PriceBook([seller(model(ModelPrice(input_mtok=tiers)))], "test")
    price = price_of(book, "bot")

    assert price is not None
    assert [price.cost(Tokens(n)) for n in (10, 11, 20, 21)] == [
        Cost(n * 1000, 0, 0, 0) for n in (10, 22, 40, 63)
    ]
